"""Small out-of-fold predictions in memory: smooth blobs with holes and specks, empty masks, ignored pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.core.config.competition import Competition
from pipeline.core.config.recipe import Recipe
from pipeline.core.run import Run
from pipeline.masks import rle
from pipeline.masks.decision import Rules, decide
from pipeline.masks.geometry import IGNORE, geometry_of
from pipeline.masks.metrics import METRICS
from pipeline.masks.overlaps import counts
from pipeline.masks.regions import shortlist_counts
from pipeline.masks.scale import scale_of
from pipeline.predictions.blends import Blend, RunPredictions
from pipeline.tune import procedure, selection
from pipeline.tune.evidence import Evidence, Regions, histogram_counts
from pipeline.tune.held_out import HeldOut


@dataclass
class Images:
    """Out-of-fold images of a binary or multilabel competition."""

    probabilities: list[np.ndarray]
    """(C, h, w) uint8, shapes may differ."""
    truths: list[np.ndarray]
    """(C, h, w) uint8 of 0, 1 and 255."""
    presence: np.ndarray | None = None
    """(N, C)."""
    folds: int = 3
    groups: list[str] = field(default_factory=list)
    """By default each image alone."""

    @property
    def table(self) -> pd.DataFrame:
        """image_id, fold, group, use."""
        ids = [f"image{number}" for number in range(len(self.truths))]
        fold = np.arange(len(ids)) % self.folds
        return pd.DataFrame({"image_id": ids, "fold": fold, "group": self.groups or ids, "use": "train"})

    def evidence(self, thresholds: tuple[tuple[int, ...], ...] | None = None) -> Evidence:
        """What tune keeps of them, with connected regions at `thresholds`, a list a class."""
        pairs = list(zip(self.probabilities, self.truths, strict=True))
        counted = [histogram_counts(*pair) for pair in pairs]
        regions = None
        if thresholds:
            found = [shortlist_counts(*pair, thresholds) for pair in pairs]
            regions = Regions(thresholds, *(np.stack(part) for part in zip(*found, strict=True)))
        area, predicted, intersection, true = (np.stack(part) for part in zip(*counted, strict=True))
        return Evidence(self.table, area, predicted, intersection, true, self.presence, regions)

    def masks(self, decision: Rules) -> list[np.ndarray]:
        """The masks (C, h, w) that `decide` draws, each predicted by its fold's network."""
        heads = [None] * len(self.truths) if self.presence is None else self.presence
        each = zip(self.probabilities, heads, self.table["fold"], strict=True)
        return [decide(one, decision, head, folds=[str(fold)]) for one, head, fold in each]

    def scores(self, decision: Rules, metric: str) -> np.ndarray:
        """The metric (N, C) of the masks that `decide` draws."""
        pairs = zip(self.masks(decision), self.truths, strict=True)
        return np.stack([METRICS[metric](*counts(mask, true)) for mask, true in pairs])

    def of_class(self, index: int) -> "Images":
        """The same images with one class alone."""
        presence = None if self.presence is None else self.presence[:, [index]]
        pick = slice(index, index + 1)
        probabilities, truths = [one[pick] for one in self.probabilities], [one[pick] for one in self.truths]
        return Images(probabilities, truths, presence, self.folds, self.groups)


def random_images(
    seed: int,
    classes: int = 1,
    number: int = 12,
    ignored: bool = True,
    head: bool = True,
    side: int = 20,
    shape: tuple[int, int] | None = None,
) -> Images:
    """Images whose predictions know something of the truth; a third of the masks are empty.

    All of one shape, or of any up to `side` × `side`.
    """
    rng, asked = np.random.default_rng(seed), shape
    probabilities, truths = [], []
    for place in range(number):
        shape = asked or (int(rng.integers(side // 2, side)), int(rng.integers(side // 2, side)))
        fields = [cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 2) for _ in range(2 * classes)]
        fields = [one / one.std() for one in fields]
        signal, other = np.stack(fields[:classes]), np.stack(fields[classes:])
        true = (signal > rng.uniform(0.2, 1.5)).astype(np.uint8)
        true[rng.random(classes) < 1 / 3] = 0
        logit = 2.5 * (np.where(true.any((1, 2), keepdims=True), signal, -1) + 0.7 * other - 0.8)
        probability = np.rint(255 / (1 + np.exp(-logit)))
        specks = rng.random(probability.shape)
        probability[specks < 0.02], probability[specks > 0.98] = 255, 0
        if ignored and place % 2:
            true[:, rng.random(shape) < 0.15] = IGNORE
        probabilities.append(probability.astype(np.uint8))
        truths.append(true)
    presence = None
    if head:
        there = np.stack([(true == 1).any((1, 2)) for true in truths])
        presence = np.round(1 / (1 + np.exp(-(2.0 * there - 1 + rng.standard_normal(there.shape)))), 5)
    return Images(probabilities, truths, presence)


def random_labels(seed: int, classes: int = 4, number: int = 12, shape: tuple[int, int] = (16, 20)) -> Images:
    """Class maps and float16 probabilities of them, which make too little of the rarer classes; some pixels ignored."""
    rng = np.random.default_rng(seed)
    lift = np.linspace(0, -1.2, classes)[:, None, None]
    probabilities, truths = [], []
    for _ in range(number):
        signal, other = (
            np.stack([cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 2) for _ in range(classes)])
            for _ in range(2)
        )
        label = (signal / signal.std() + lift / 2).argmax(0)
        logit = 2 * signal / signal.std() + other / other.std() + 2 * lift
        exponent = np.exp(logit - logit.max(0))
        probabilities.append((exponent / exponent.sum(0)).astype(np.float16))
        true = (label == np.arange(classes)[:, None, None]).astype(np.uint8)
        true[:, rng.random(shape) < 0.05] = IGNORE
        truths.append(true)
    return Images(probabilities, truths)


def run_of(competition: dict[str, Any] | None = None, **recipe: Any) -> Run:
    """A run of a binary competition scored by Dice, whose training keeps its last epoch."""
    told = {"title": "X", "reader": "any", "classes": ["thing"], "metric": "dice", **(competition or {})}
    settings = {"name": "x", "competition": "x", "train": {"keep": "last"}, **recipe}
    return Run(Recipe(**settings), Competition(name="x", **told), "x")


def held_out_of(images: Images, run: Run, models: Sequence[Sequence[np.ndarray]] = ()) -> HeldOut:
    """The out-of-fold images of a run, of one shape, in memory; by default one model predicts them.

    `models`: what further models of the fold say, lists of probabilities.
    """
    listed, classes = images.table, run.competition.classes
    listed["row"] = listed.groupby("fold").cumcount()
    rows = [_table_row(name, true, classes) for name, true in zip(listed["image_id"], images.truths, strict=True)]
    opened = {}
    for fold, own in listed.groupby("fold"):
        arrays = tuple(np.stack([model[place] for place in own.index]) for model in (images.probabilities, *models))
        heads = None if images.presence is None else (images.presence[own.index].astype(np.float32),) * len(arrays)
        size = arrays[0].shape[2:]
        geometry = geometry_of(run.recipe.image.model_copy(update={"size": size, "fit": "stretch"}))
        source, scale = RunPredictions(arrays, geometry, heads), scale_of(run.competition)
        opened[fold] = Blend(own["image_id"].tolist(), (source,), (1.0,), scale=scale, names=(str(fold),))
    return HeldOut(run, listed, rows, {(False,): opened})


def _table_row(name: str, true: np.ndarray, classes: Sequence[str]) -> pd.Series:
    """A row of images.parquet, as far as its masks go."""
    row = {"image_id": name, "height": true.shape[1], "width": true.shape[2]}
    row |= {f"rle_{one}": rle.encode((mask == 1).astype(np.uint8)) for one, mask in zip(classes, true, strict=True)}
    return pd.Series(row | {"ignore": rle.encode((true[0] == IGNORE).astype(np.uint8))})


def few_partitions(monkeypatch: pytest.MonkeyPatch, count: int = 2, inner: int = 1) -> None:
    """Lets tune judge and estimate by fewer partitions: what a choice may see does not depend on their number."""
    original = selection.partitions_of

    def some(cells: np.ndarray, folds: np.ndarray, without: selection.Cells = selection.Cells(),
             wanted: int = count) -> list[selection.Partition]:  # fmt: skip
        return original(cells, folds, without, wanted)

    monkeypatch.setattr(procedure, "partitions_of", some)
    monkeypatch.setattr(procedure, "INNER", inner)
