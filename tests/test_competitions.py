"""Every competition that ships: raw files as they are downloaded, drawn small, are read as what was drawn; and true
masks, given as predictions, come out as a file that is read back as these masks without the pipeline."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from imitations import RECENT, Raw
from imitations_of_classics import CLASSICS
from read_back import OF_INSTANCES, READERS

from pipeline.bring import bring, encode
from pipeline.core.config.raw_layouts import FOLDER
from pipeline.core.config.settings import merge
from pipeline.core.driver import run_stage
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.running import check_submission

IMITATIONS = RECENT | CLASSICS
ELSEWHERE = {"sample", "tgs-salt", "ultrasound-nerve", "mars-terrain", "oxford-pet", "oxford-pet-foreground"}
"""Competitions with a recipe of their own, whose raw files other tests draw."""
TOUCHING = {"dsb2018", "sartorius", "airbus", "hubmap-vasculature"}
"""Those whose recipe learns to separate touching objects."""
SMALL: dict[str, Any] = {"clean": {"duplicates": {"search": False}}, "split": {"seeds": 1}}
"""What saves time, and is tested elsewhere."""


def opened(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Raw, Run]:
    """The raw files of a competition, drawn, and a run of its shipped YAML, but for what small images change."""
    monkeypatch.setenv("PIPELINE_ROOT", str(root))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    draw, changes = IMITATIONS[name]
    raw = Raw(root / "input" / name)
    draw(raw)
    settings: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    path = root / f"{name}.yaml"
    settings = merge({**settings, "shape": None}, merge(SMALL, changes))
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    baseline = open_run(name).recipe
    (root / "recipe.yaml").write_text(yaml.safe_dump({
        "competition": str(path), "image": {"size": [32, 32], "channels": baseline.image.channels},
        "model": {"instances": baseline.model.instances}}))  # fmt: skip
    return raw, open_run(str(root / "recipe.yaml"))


def test_every_shipped_competition_is_drawn_somewhere() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == IMITATIONS.keys() | ELSEWHERE


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with NumPy 2
@pytest.mark.parametrize("name", IMITATIONS)
def test_from_raw_files_to_a_submission(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, run = opened(name, tmp_path, monkeypatch)
    assert_decoded(name, raw, run)
    if name in READERS:
        path = encode(fed_with_the_truth(raw, run))
        found = READERS[name](path, raw)
        assert found.keys() == raw.test.keys()
        assert [image_id for image_id, masks in found.items() if not np.array_equal(masks, raw.test[image_id])] == []
        if name in OF_INSTANCES:
            regions = {image_id: count(masks) for image_id, masks in raw.test.items()}
            assert +raw.submitted == {image_id: number for image_id, number in regions.items() if number}


def test_what_would_stop_encode_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, run = opened("geoai-arctic", tmp_path, monkeypatch)
    manifest = raw.folder / "metadata" / "test_manifest.csv"
    pd.read_csv(manifest).drop(columns="image_id").to_csv(manifest, index=False)
    for stage in ("decode", "clean", "split"):
        run_stage(run, stage)
    with pytest.raises(
        PipelineError, match="submission.columns.image_id names {image_id}, which the images do not have"
    ):
        check_submission(run)


def assert_decoded(name: str, raw: Raw, run: Run) -> None:
    for stage in ("decode", "clean", "split"):
        run_stage(run, stage)
    assert (run.separators is not None) == (name in TOUCHING)
    images = table.read_table(run.table)
    read = reader_of(run.competition).opener(run.competition, run.input)
    assert not images["fault"].any()
    whole = "of_image" if "of_box" in images else "image_id"
    assert set(images[whole]) == raw.train.keys()
    for _, row in images.iterrows():
        assert_as_drawn(raw, row, read(row), table.true_mask(row, run.competition.classes))
        told = [row.get(f"instances_{one}", "") for one in run.competition.classes]
        if row["image_id"] in raw.instances:
            assert sum(len(text.split("|")) for text in told if text) == raw.instances[row["image_id"]]
    if run.competition.split.together:
        folds = pd.read_csv(run.folds_file, dtype=str).set_index("image_id")["fold"]
        assert folds.groupby(lambda one: together(name, one)).nunique().max() == 1


def fed_with_the_truth(raw: Raw, run: Run) -> Run:
    """A run whose predictions are the true masks."""
    train, test = table.read_table(run.table, "train"), table.read_table(run.test_table)
    oof = [table.true_mask(row, run.competition.classes) for _, row in train.iterrows()]
    predicted = [part_of(raw, row) for _, row in test.iterrows()]
    return bring(
        "truth", competition=run.recipe.competition, assignments=["tune.method=fixed"],
        oof=255 * (np.stack(oof) == 1).astype(np.uint8), oof_ids=train["image_id"].tolist(),
        test=255 * np.stack(predicted), test_ids=test["image_id"].tolist(),
    )  # fmt: skip


def count(masks: np.ndarray) -> int:
    """How many connected regions masks (classes, h, w) have."""
    return sum(cv2.connectedComponents(mask)[0] - 1 for mask in masks)


def part_of(raw: Raw, row: Any) -> np.ndarray:
    """The true masks (C, h, w) of a test image, which may be a window, or a slice of a volume."""
    masks = raw.test[row.get("of_image") or row["image_id"]]
    if row.get("of_box"):
        top, left, bottom, right = map(int, row["of_box"].split())
        return masks[:, top:bottom, left:right]
    return masks[:, int(row["of_slices"].split()[1])] if row.get("of_slices") else masks


def assert_as_drawn(raw: Raw, row: Any, image: np.ndarray, masks: np.ndarray) -> None:
    """An image, or a window of one, and its masks are what was drawn; a window ignores what belongs to others."""
    whole, (top, left, bottom, right) = row["image_id"], (0, 0, *image.shape[:2])
    if row.get("of_box"):
        whole, (top, left, bottom, right) = row["of_image"], map(int, row["of_box"].split())
        masks = np.where(masks == 255, raw.train[whole][:, top:bottom, left:right], masks)
    if whole in raw.images:
        wanted = raw.images[whole][top:bottom, left:right]
        assert image.dtype == wanted.dtype and np.array_equal(image, wanted)
    assert np.array_equal(masks, raw.train[whole][:, top:bottom, left:right])
    assert whole not in raw.groups or row["group"] == raw.groups[whole]


def together(name: str, image_id: str) -> str:
    """What must stay in one fold, where it is more than a group."""
    if name == "vesuvius-surface":
        return "two" if image_id[:10] in ("1004283650", "1004283651") else image_id[:10]
    return image_id.split("_")[1] if name == "sennet" else image_id.split("_")[0]
