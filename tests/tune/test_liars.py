"""That liars-test gives every image the masks of another one, and believes an estimate only where it falls."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from evidence import Images, held_out_of, random_images, random_labels, run_of
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.run import Run
from pipeline.masks.geometry import IGNORE
from pipeline.masks.overlaps import counts, dice
from pipeline.tune import liars, stage
from pipeline.tune.held_out import HeldOut, Weighting

LABELS: dict[str, Any] = {
    "classes": ["ground", "soil", "sand", "rock"],
    "kind": "multiclass",
    "metric": "mean_iou",
    "submission": {"format": "labels"},
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))


@pytest.mark.parametrize("sizes", [[5, 5, 5], [8, 4, 2, 2], [1] * 9], ids=str)
def test_every_image_gets_the_masks_of_another_group(sizes: list[int]) -> None:
    groups = np.repeat([f"p{number}" for number in range(len(sizes))], sizes)
    for seed in range(5):
        donors = liars.permutation(groups, seed)
        assert sorted(donors) == list(range(len(groups)))
        assert (groups[donors] != groups).all()
    assert (liars.permutation(groups, 0) != liars.permutation(groups, 1)).any()


def test_with_one_large_group_every_image_gets_the_masks_of_another_image() -> None:
    groups = np.array(["a"] * 7 + ["b"])
    donors = liars.permutation(groups, 0)
    assert sorted(donors) == list(range(8)) and (donors != np.arange(8)).all()


def test_masks_are_resized_to_the_image_that_gets_them() -> None:
    images = random_images(2, number=6)  # of six shapes
    held = held_out_of(replace(images, probabilities=[np.zeros((1, 4, 4), np.uint8)] * 6), run_of())
    found = liars._permuted(held, np.arange(6), 3)
    donors = liars.permutation(held.images["group"].to_numpy(), 3)
    masks = found.each([], lambda number, _, true: true, "")
    for number, mask in enumerate(masks):
        given = (images.truths[donors[number]][0] == 1).astype(np.uint8)
        resized = cv2.resize(given, images.truths[number].shape[:0:-1], interpolation=cv2.INTER_NEAREST)
        valid = mask[0] != IGNORE
        np.testing.assert_array_equal(mask[0][valid], resized[valid])
        assert valid.mean() > 0.7


def answer(nested: float, constant: float = 0.5) -> liars.Answer:
    return liars.Answer(nested, nested, 0.01, constant, 0.01, "an empty mask everywhere")


def test_an_estimate_that_stays_above_the_constant_answer_is_not_believed() -> None:
    real = answer(0.9)
    fair = liars.Verdict("dice", 1, real, [answer(0.5 + noise) for noise in (-0.01, 0.0, 0.02)])
    lie = liars.Verdict("dice", 1, real, [answer(0.58 + noise) for noise in (-0.01, 0.0, 0.02)])
    assert fair.honest and not lie.honest
    assert "The estimate is honest here" in list(fair.lines())[-1]
    assert "Do not trust the estimate" in list(lie.lines())[-1] and "+0.0833" in list(lie.lines())[-1]
    lower = liars.Verdict("error", -1, answer(0.1), [answer(0.42 + noise) for noise in (-0.01, 0.0, 0.02)])
    assert not lower.honest  # an error below that of the best constant answer
    assert liars.Verdict("error", -1, answer(0.1), [answer(0.58) for _ in range(3)]).honest


def verdict_on(run: Run, images: Images, estimated: liars.Estimated, monkeypatch: pytest.MonkeyPatch) -> liars.Verdict:
    held = held_out_of(images, run)
    monkeypatch.setattr(liars, "held_out", lambda _: held)
    return liars.liars_test(run, estimated, 3)


@pytest.mark.parametrize("kind", ["masks", "several", "labels"])
def test_the_estimate_of_permuted_masks_falls(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "labels":
        run, images = run_of(LABELS), random_labels(1, number=24)
    else:
        several = {"classes": ["a", "b"], "submission": {"label": "class"}} if kind == "several" else {}
        run, images = (
            run_of(several, tune={"steps": ["threshold", "area"]}),
            random_images(7, 1 + (kind == "several"), 24, shape=(20, 24)),
        )
    before = [true.copy() for true in images.truths]
    verdict = verdict_on(run, images, stage.estimated, monkeypatch)
    assert verdict.honest and len(verdict.permuted) == 3
    assert verdict.real.nested > np.mean([one.nested for one in verdict.permuted]) + 0.1
    assert all(np.array_equal(one, other) for one, other in zip(before, images.truths, strict=True))
    assert not run.folder.exists()  # nothing is written


def test_an_estimate_that_has_seen_the_masks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def peeking(held: HeldOut, counted: np.ndarray) -> dict[str, Any]:
        """Every image at the threshold that suits it best."""
        each = held.each([Weighting((False,), (1.0,))], lambda _, both, true: best_of(both[0], true), "")
        score = float(np.mean(each))
        return {"score": score, "nested": score, "nested_interval_95": [score - 0.1, score + 0.1]}

    def best_of(probability: np.ndarray, true: np.ndarray) -> float:
        cuts = [counts((probability >= cut).astype(np.uint8), true) for cut in range(1, 257)]
        return max(float(dice(*one).mean()) for one in cuts)

    images = random_images(7, number=24, shape=(20, 24), head=False)
    assert not verdict_on(run_of(), images, peeking, monkeypatch).honest


@pytest.mark.parametrize("nested, code", [(0.5, 0), (0.7, 1)])
def test_the_command_says_what_it_found(nested: float, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def found(run: Run, estimated: Any, permutations: int) -> liars.Verdict:
        asked.append(permutations)
        return liars.Verdict("dice", 1, answer(0.9), [answer(nested)] * 3)

    monkeypatch.setattr(liars, "liars_test", found)
    result = CliRunner().invoke(app, ["liars-test", "sample", "--permutations", "3"])
    assert (result.exit_code, asked) == (code, [3])
    assert "permuted, 3 times" in result.output and "(an empty mask everywhere)" in result.output
