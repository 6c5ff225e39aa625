"""What test-time augmentation brings on the held-out images, before it is paid for on the test images.

Every held-out image is scored at native size, plain and with test-time augmentation, each at the threshold that suits
it best: an average is less sure of itself, and at 0.5 would be judged for that. Tune asks again for some of the images,
where it estimates what was chosen without the others.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.config.recipe import TuneSettings
from pipeline.core.console import console
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown, write_json, writing
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks.bootstrap import Gain, Score, gain, mean_counts, mean_score, presence_weights
from pipeline.masks.class_bias import labels
from pipeline.masks.metrics import METRICS, confusion, pooled_score
from pipeline.predictions import blends
from pipeline.tune.evidence import histogram_counts
from pipeline.tune.held_out import Mix, held_out

THRESHOLDS = np.arange(16, 256, 16)
"""Thresholds that are tried, of 255."""


@dataclass(frozen=True)
class Measured:
    """Pixel counts of held-out images at each of the THRESHOLDS; of a multiclass competition untuned."""

    images: pd.DataFrame
    """image_id, fold and group of all of them but the broken ones (N rows)."""
    plain: np.ndarray
    """(N, T, 3, C) int64: intersection, predicted and true pixels; multiclass (N, 1, C, C), rows are true classes."""
    tta: np.ndarray
    """The same with test-time augmentation."""

    def of(self, image_ids: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Returns the counts of some images, plain and with test-time augmentation, in their order.

        Raises:
            PipelineError: one of them was not measured.
        """
        places = pd.Index(self.images["image_id"]).get_indexer(pd.Index(image_ids))
        if (places < 0).any():
            raise PipelineError(
                f"tta.npz lacks image {image_ids.iloc[int(np.argmin(places))]}, which is held out now; run the predict "
                "stage again."
            )
        return self.plain[places], self.tta[places]


def measure(
    plain: np.ndarray, tta: np.ndarray, groups: np.ndarray, competition: Competition, settings: TuneSettings
) -> tuple[Gain, bool]:
    """Returns what test-time augmentation brings on these images, and whether it is kept.

    It is where tune is `fixed`, or where at least the share `tune.confidence` of the bootstrap draws shows a gain.

    Args:
        plain: counts (N, T, 3, C), or (N, 1, C, C) of a multiclass competition; see Measured.
        tta: the same with test-time augmentation.
        groups: (N,) what is drawn together.
        competition: gives the metric.
        settings: how tune chooses.
    """
    if competition.kind == "multiclass":
        score: Score = pooled_score(competition)
    else:
        score, metric = mean_score, METRICS[competition.metric]
        weights = presence_weights(plain[:, 0, 2], settings.presence_prior)
        plain, tta = (
            np.stack([mean_counts(metric(*one.swapaxes(0, 1)), weights) for one in counts.swapaxes(0, 1)], axis=1)
            for counts in (plain, tta)
        )
    before, after = (counts[:, int(np.argmax(score(counts.sum(0))))] for counts in (plain, tta))
    found = gain(before, after, score, groups)
    return found, settings.method == "fixed" or found.confidence >= settings.confidence


def of_test(run: Run) -> str:
    """Returns the test-time augmentation that test images get: the recipe's, where it was measured and is kept."""
    tta = run.recipe.predict.tta
    return tta if tta != "none" and run.tta.exists() and read_json(run.tta)["kept"] else "none"


def read(run: Run) -> Measured:
    """Returns what was measured.

    Raises:
        PipelineError: nothing was yet.
    """
    if not run.tta_counts.exists():
        raise PipelineError(f"{shown(run.tta_counts)} does not exist; run the predict stage.")
    with np.load(run.tta_counts) as file:
        images = pd.DataFrame({name: file[name] for name in ("image_id", "fold", "group")})
        return Measured(images, file["plain"], file["tta"])


# --- a step of the predict stage -------------------------------------------------------------------------------------


def manifest(run: Run) -> Path:
    """Returns the manifest of the step."""
    return run.tta.with_suffix(".manifest.json")


def steps(run: Run) -> list[Step]:
    """Returns the one step, or none without test-time augmentation."""
    predict, competition = run.recipe.predict, run.competition
    if predict.tta == "none":
        return []
    settings = {key: getattr(competition, key) for key in ("metric", "ignore_class", "ignored_prediction")}
    settings |= {"tta": predict.tta, "never": list(run.never), "image": run.recipe.image.model_dump(mode="json")}
    settings |= run.recipe.tune.model_dump(mode="json", include={"method", "confidence", "rows", "presence_prior"})
    outputs = run.tta, run.tta_counts
    predicted = [path for path in blends.files(run, "oof") if path not in outputs]
    inputs = (*predicted, run.table, run.folds, run.outliers)
    return [Step("predict", "predict tta gain", manifest(run), inputs, outputs, settings)]


def execute(run: Run) -> None:
    """Counts, measures, writes tta.npz and tta.json, and says what came out.

    Raises:
        PipelineError: predictions are missing, or no image counts.
    """
    measured, competition, settings = _count(run), run.competition, run.recipe.tune
    counted = np.ones(len(measured.images), bool)
    if settings.rows == "cleaned":
        counted = (measured.images["use"] == "train").to_numpy()
    if not counted.any():
        raise PipelineError(
            f"none of the {len(counted)} held-out images counts (tune.rows is {settings.rows}), so what predict.tta="
            f"{run.recipe.predict.tta} brings cannot be measured: set predict.tta=none, or list fewer to leave out."
        )
    groups = measured.images["group"].to_numpy()[counted]
    found, kept = measure(measured.plain[counted], measured.tta[counted], groups, competition, settings)
    columns = {name: measured.images[name].to_numpy() for name in ("image_id", "fold", "group")}
    columns = {name: column.astype(str) if column.dtype == object else column for name, column in columns.items()}
    with writing(run.tta_counts) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, plain=measured.plain, tta=measured.tta, **columns)
    write_json(run.tta, {
        "tta": run.recipe.predict.tta, "kept": kept, "gain": found.value, "standard_error": found.standard_error,
        "confidence": found.confidence, "metric": competition.metric, "images": int(counted.sum()),
    })  # fmt: skip
    _print(run, found, kept, int(counted.sum()))


def _count(run: Run) -> Measured:
    classes, held = run.competition.classes, held_out(run)

    def count_one(probability: np.ndarray, true: np.ndarray) -> np.ndarray:
        if run.competition.kind == "multiclass":
            predicted = labels(probability, [0.0] * len(classes), run.never)
            return confusion(predicted, table.true_labels(true), len(classes))[None]
        _, predicted, intersection, total = histogram_counts(probability, true)
        some = (intersection[:, THRESHOLDS].T, predicted[:, THRESHOLDS].T, np.tile(total, (len(THRESHOLDS), 1)))
        return np.stack(some, axis=1)

    def count(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> list[np.ndarray]:
        return [count_one(one, true) for one in probabilities]

    mixes = [Mix((plain,), (1.0,)) for plain in (True, False)]
    plain, tta = np.array(held.each(mixes, count, "test-time augmentation"), np.int64).swapaxes(0, 1)
    return Measured(held.images, plain, tta)


def _print(run: Run, found: Gain, kept: bool, images: int) -> None:
    settings = run.recipe.tune
    verdict = "kept" if kept else "the test images are predicted without it"
    if settings.method == "fixed":
        verdict += ", as tune.method is fixed"
    elif not kept:
        verdict = f"less than the {settings.confidence:.0%} of tune.confidence, so {verdict}"
    console.print(
        f"  test-time augmentation {run.recipe.predict.tta}: {run.competition.metric} {found.value:+.4f} ± "
        f"{found.standard_error:.4f} on {images} held-out images, better in {found.confidence:.0%} of the draws: "
        f"{verdict} → {shown(run.tta)}"
    )
