"""Every metric that a competition's YAML may name is tuned, with an interval, a nested estimate and a verdict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence import Images, few_partitions, held_out_of, random_images, random_labels, run_of

from pipeline.core.config.metric_text import METRICS, OVER, SETTINGS
from pipeline.core.files import read_json
from pipeline.core.verdict import from_json, verdict_of
from pipeline.masks.metrics import named
from pipeline.masks.statistics import blank
from pipeline.tune import stage as tune

SURFACES = ("surface_dice", "hausdorff")
ADDED = ("0.4 * dice + 0.6 * iou", "0.5 * f_beta(beta=0.5, over=data_set) + 0.5 * instance_f1")


def texts() -> list[str]:
    """Every metric over everything that it may be taken over, and two sums."""
    found = [f"{name}(over={over})" for name, keys in SETTINGS.items() if "over" in keys for over in OVER]
    return [one for one in [*found, *ADDED] if one != "hausdorff(over=data_set)"]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    few_partitions(monkeypatch, 1)


def tuned(images: Images, competition: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    run = run_of({**competition, "group": "patient"}, tune={"confidence": 0.5, "steps": ["threshold", "area"]})
    held = held_out_of(images, run)
    monkeypatch.setattr(tune, "held_out", lambda run: held)
    monkeypatch.setattr(tune, "_mask_statistics", lambda run: blank(["thing"], False, []))
    list(tune.execute(run, []))
    found = read_json(run.postprocess)
    assert isinstance(found, dict)
    return found


def check(result: dict[str, Any], text: str) -> None:
    metric = named(text)
    assert result["metric"] == text and result["search"] == metric.counted
    low, high = result["interval_95"]
    assert low <= result["score"] + 1e-9 and result["score"] - 1e-9 <= high and low < high
    nested_low, nested_high = result["nested_interval_95"]
    assert nested_low < nested_high and np.isfinite(result["nested"])
    assert metric.sign * (result["score"] - result["untuned"]) >= -1e-9
    assert result["constants"]["mean_mask"] is not None
    assert result["scores"]["fold_model"]["score"] == result["nested"]
    assert verdict_of(from_json(result)) in ("fine", "check first", "do not submit")


@pytest.mark.parametrize("text", texts())
def test_masks(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if text.startswith(SURFACES):
        pytest.importorskip("surface_distance")
    images = random_images(3, number=8, side=12, shape=(12, 14), ignored=False, head=False)
    images.groups = [f"patient{number // 2}" for number in range(8)]
    check(tuned(images, {"metric": text}, monkeypatch), text)


def test_class_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_labels(0, classes=3, number=8, shape=(12, 14))
    images.groups = [f"patient{number // 2}" for number in range(8)]
    competition = {"kind": "multiclass", "classes": ["zero", "one", "two"], "metric": "mean_iou"}
    competition |= {"submission": {"format": "labels"}}
    check(tuned(images, competition, monkeypatch), "mean_iou")


def test_no_metric_is_left_out() -> None:
    assert {one.partition("(")[0] for one in texts() if " " not in one} | {"mean_iou"} == {*METRICS}
