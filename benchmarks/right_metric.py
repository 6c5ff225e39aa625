"""The gain of tuning on the competition's metric over tuning on Dice, on drawn masks and probabilities, in pairs.

    python -m benchmarks.right_metric [--draws 12] [--images 80] [--metric 'f_beta(beta=0.5, over=data_set)' …]

Every draw has round objects, some of which touch, and probabilities that show where they are: blurred edges, smooth
noise, images for which the network is more or less sure, and faint false objects. Half of the images are used to tune,
once by the mean Dice over images and once by the competition's metric, as tune does it: steps that improve the score,
or else threshold 0.5. Both decisions are scored by the competition's metric on the other half.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import cv2
import numpy as np
import pandas as pd

from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import validate
from pipeline.core.console import enable_quiet
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks import rle
from pipeline.masks.decision import Rules
from pipeline.masks.geometry import geometry_of
from pipeline.masks.metrics import metric_of
from pipeline.masks.scale import scale_of
from pipeline.predictions.blends import Blend, RunPredictions
from pipeline.tune import drawn_masks, mask_rules, rule_search
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.procedure import Parts, choose_steps
from pipeline.tune.selection import Fits

SIDE = 64
METRICS = ("dice(over=data_set)", "f_beta(beta=0.5, over=data_set)", "iou_precision", "instance_precision")
COMPETITION = {
    "name": "drawn",
    "title": "Drawn",
    "classes": ["thing"],
    "train": {"images": "{id}.png", "masks": "train.csv"},
    "test": None,
    "metric": "dice",
}
WEIGHTING = Weighting((False,), (1.0,))


@dataclass(frozen=True)
class Drawn:
    """The N images of one draw."""

    labels: list[np.ndarray]
    """Label map (64, 64) int32, one number per object."""
    probabilities: list[np.ndarray]
    """Probabilities (1, 64, 64) uint8."""


def draw(seed: int, images: int) -> Drawn:
    """Returns images whose probabilities come from the distance to the objects' edges."""
    random = np.random.default_rng(seed)
    labels, probabilities = [], []
    for _ in range(images):
        label, faint = np.zeros((SIDE, SIDE), np.int32), np.zeros((SIDE, SIDE), np.uint8)
        for number in range(1, 1 + int(random.integers(0, 8))):
            cv2.circle(label, _place(random), int(random.integers(5, 10)), number, -1)
        for _ in range(int(random.poisson(0.7))):
            cv2.circle(faint, _place(random), int(random.integers(3, 7)), 1, -1)
        mask = (label > 0).astype(np.uint8)
        edge = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
        noise = cv2.GaussianBlur(random.standard_normal((SIDE, SIDE)).astype(np.float32), (0, 0), 2)
        logit = 0.9 * np.clip(edge, -5, 5) + 1.0 + 1.5 * noise / noise.std() + 0.7 * random.standard_normal()
        logit = cv2.GaussianBlur((logit + 4.0 * faint * (mask == 0)).astype(np.float32), (0, 0), 1)
        labels.append(label)
        probabilities.append(np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8)[None])
    return Drawn(labels, probabilities)


def _place(random: np.random.Generator) -> tuple[int, int]:
    return int(random.integers(6, SIDE - 6)), int(random.integers(6, SIDE - 6))


def held_out_of(drawn: Drawn, metric: str) -> HeldOut:
    """Returns the images as tune sees the held-out images of a run: two per group, in two folds."""
    competition = validate(RleCsv, COMPETITION | {"metric": metric}, "drawn")
    recipe = validate(Recipe, {"name": "drawn", "competition": "drawn", "image": {"size": [SIDE, SIDE]}}, "drawn")
    number = np.arange(len(drawn.labels))
    listed = pd.DataFrame({"image_id": [f"i{one}" for one in number], "fold": number // 2 % 2,
                           "group": [f"g{one // 2}" for one in number], "use": "train"})  # fmt: skip
    listed["row"] = listed.groupby("fold").cumcount()
    rows = []
    for name, label in zip(listed["image_id"], drawn.labels, strict=True):
        objects = [(label == one).astype(np.uint8) for one in np.unique(label[label > 0])]
        rows.append(pd.Series({"image_id": name, "height": SIDE, "width": SIDE, "ignore": "",
                               "rle_thing": rle.encode((label > 0).astype(np.uint8)),
                               "instances_thing": "|".join(map(rle.encode, objects))}))  # fmt: skip
    opened = {}
    for fold, own in listed.groupby("fold"):
        arrays = (np.stack([drawn.probabilities[place] for place in own.index]),)
        source = RunPredictions(arrays, geometry_of(recipe.image), None)
        opened[fold] = Blend(
            own["image_id"].tolist(), (source,), (1.0,), scale=scale_of(competition), names=(str(fold),)
        )
    return HeldOut(Run(recipe, competition, "drawn"), listed, rows, {(False,): opened})


def tuned(held: HeldOut, counted: np.ndarray) -> Rules:
    """Returns the decision that tune ships for the images at `counted` by the competition's metric."""
    settings, parts = held.run.recipe.tune, Parts.of(held, counted)
    (evidence,) = mask_rules.collect(held, [WEIGHTING])
    problem = drawn_masks.problem_of(held, WEIGHTING, evidence, np.ones(evidence.true.shape))
    fits = Fits(problem, counted, parts.cells)
    steps = mask_rules.steps_of(settings, evidence, problem.metric)
    decision: Rules = choose_steps(parts, [fits] * len(parts.left_out), steps, settings).choice.decision
    return decision


def scored(held: HeldOut, decision: Rules, rows: np.ndarray) -> float:
    """Returns the competition's metric of the masks of the images at `rows`."""
    metric = metric_of(held.run.competition)
    blends = held.blends(WEIGHTING)
    predicted, true = [], []
    for number in rows.tolist():
        image = held.images.iloc[number]
        blend = blends[image["fold"]]
        probability = blend.native(int(image["row"]), (SIDE, SIDE))
        predicted.append(blend.decide(int(image["row"]), probability, decision))
        true.append(table.scored_truth(held.rows[number], held.run.competition, metric))
    groups = held.images["group"].to_numpy()[rows]
    return metric.score_of(metric.measured_all(predicted, true, groups), groups)


def main() -> None:
    """Prints one row per metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--metric", nargs="+", default=list(METRICS))
    asked = parser.parse_args()
    enable_quiet()
    started = time.perf_counter()
    found: dict[str, list[Sequence[float]]] = {metric: [] for metric in asked.metric}
    for seed in range(asked.draws):
        drawn = draw(seed, asked.images)
        half = np.flatnonzero(np.arange(asked.images) // 2 % 4 < 2)  # each half has images of both folds
        other = np.setdiff1d(np.arange(asked.images), half)
        by_dice = tuned(held_out_of(drawn, "dice"), half)
        for metric in asked.metric:
            held = held_out_of(drawn, metric)
            by_metric = tuned(held, half)
            untuned = replace(by_dice, rules=(rule_search.UNTUNED,))
            found[metric].append([scored(held, one, other) for one in (untuned, by_dice, by_metric)])
    seconds = time.perf_counter() - started
    print(f"{date.today()}, {asked.draws} draws of {asked.images} images, half tuned on, {seconds:.0f} s")
    print("| scored by | threshold 0.5 | tuned by Dice | tuned by it | difference | better, of draws |")
    print("|---|---|---|---|---|---|")
    for metric, scores in found.items():
        plain, dice, right = np.array(scores).T
        gain = right - dice
        error = gain.std(ddof=1) / len(gain) ** 0.5
        means = " | ".join(f"{one.mean():.4f}" for one in (plain, dice, right))
        better = f"{(gain > 0).sum()} of {len(gain)}, {(gain == 0).sum()} equal"
        print(f"| `{metric}` | {means} | {gain.mean():+.4f} ± {error:.4f} | {better} |")


if __name__ == "__main__":
    main()
