"""Turns test probabilities into the submission with the decision that tune chose, and checks it.

    python -m pipeline encode RECIPE [--strict]

reads   work/<competition>/<run>/predictions/test_fold_<k>.npy (for an ensemble, those of its runs), postprocess.json,
        mask_statistics.npz, fold_<k>/fold.json, work/<competition>/test_images.parquet, the sample submission; the
        names of the raw test images, so that predictions of other images are never submitted; and, if they exist (a
        bundle has none), decode's descriptors of the training images, to compare the test images with
writes  submissions/<run>.csv (or the competition's kind of file), and submissions/<run>.json: how the submission was
        made, the verdict and its reasons; an older pair that differs is kept as submissions/<run>.<time>.csv and .json
"""

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from pipeline.core import freshness
from pipeline.core.console import say, track, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, shown, write_json, writing
from pipeline.core.freshness import Step
from pipeline.core.results import read_tuned
from pipeline.core.run import Run, describe
from pipeline.core.tables import as_packed
from pipeline.core.trainings import read_training
from pipeline.core.verdict import Reason, from_json, to_json, verdict_of
from pipeline.decode import table
from pipeline.encode import joining, older, sanity, shift, submission
from pipeline.masks.decision import Decision, decision_of, disjoint
from pipeline.masks.scale import scale_of
from pipeline.predictions import blends
from pipeline.predictions.blends import Blend
from pipeline.predictions.format.expected import Expected
from pipeline.predictions.test_images import check_predicted, raw_test_files

NEEDS_TEST, READS_FOLDS = True, "test"
LESS_MEMORY = "set a smaller image.size or image.store, whose probabilities are encoded"
WINDOWS_AT_ONCE = 2
"""The number of windows of a large image that are decided in parallel; each takes about 20 bytes per pixel and
class."""
EXPECT = ("metric", "remark", "score", "interval_95", "nested", "untuned", "scores")
"""The keys of postprocess.json that describe the expected score."""


def steps(run: Run) -> list[Step]:
    """Returns the step of this stage; none without a test set."""
    if not run.competition.has_test:
        return []
    name = run.competition.sample_submission
    sample = [as_packed(run.input / name)] if name else []
    inputs = (
        run.postprocess, run.mask_statistics, run.test_table, *blends.files(run, "test"), *_trainings(run).values(),
        *raw_test_files(run), *sample, *shift.files(run),
    )  # fmt: skip
    settings = run.competition.model_dump(mode="json", include={"submission", "rle", "classes", "values"})
    if run.recipe.tune.presence_neighbours:
        settings["duplicates"] = run.competition.clean.duplicates.model_dump(mode="json")
    manifest = run.folder / "submission.manifest.json"
    return [Step("encode", "encode", manifest, inputs, (run.submission, run.record), settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the submission and its record, whatever the verdict is.

    Raises:
        PipelineError: predictions, test images and sample submission do not match, or the result is not a valid
            submission. Nothing is written then.
    """
    want = submission.expected(run.competition, run.input, run.competition_folder)
    result = read_tuned(run)
    blend = blends.test(run, result)
    images = want.images[want.images["subset"] == "test"]
    _check_images(run, images, want, blend.ids)
    blank = unanswered(images)
    check_predicted(run)
    texts, scores, test = _encode_all(run, images, want, blend, result)
    unlike = [*_unanswered_reasons(blank, len(images)), *shift.find_reasons(run)]
    # both are complete before the submission is renamed into place, and then the record
    with writing(run.record) as record, writing(run.submission) as temporary:
        rows = submission.write(temporary, texts, want, scores)
        never = [run.competition.classes[number] for number in result.get("never", [])]
        prior = result.get("presence_prior")
        faults, odd = sanity.examine(temporary, want, run.competition, never, run.mask_statistics, prior)
        if faults:
            raise PipelineError(f"the submission would not be valid, nothing was written: {'; '.join(faults[:5])}.")
        reasons = [*from_json(result), *sanity.format_note(want, run.competition), *odd, *unlike]
        digest = freshness.hash_file(temporary)
        verdict = {"verdict": verdict_of(reasons), "reasons": to_json(reasons), "warnings": sanity.warnings_of(odd)}
        write_json(record, _record(run, result, digest, test, verdict, rows))
        older.keep(run, digest)
    older.rename_other_kinds(run)
    _print(test, result)
    parts = "rows" if want.settings.format != "images" else "mask images"
    _print_verdict(f"{rows} {parts}, valid → {shown(run.submission)}", reasons)
    yield from waiting


def _check_images(run: Run, images: pd.DataFrame, want: Expected, predicted: list[str]) -> None:
    """Checks that test images, predictions and sample submission contain the same images.

    Raises:
        PipelineError: they do not.
    """
    if len(images) and not (images["height"] * images["width"]).any():
        raise PipelineError(
            f"none of the {len(images)} test images can be read ({images['fault'].iloc[0]}): replace them by valid "
            "ones. Nothing was written."
        )
    listed, table_name, folder = images["image_id"].tolist(), shown(run.test_table), run.input
    whole = table.submitted(images)["image_id"].tolist()
    predictions = shown(blends.files(run, "test")[0])
    blank = unanswered(images)
    paths = zip(listed, images["path"], strict=True)
    gone = [image_id for image_id, path in paths if image_id not in blank and not (folder / path).exists()]
    faults = (
        (
            _without(predicted, listed),
            f"of {predictions}, which {table_name} no longer lists; decode again with the images in their place, or "
            "run the predict stage again",
        ),
        (
            _without(want.ids, whole),
            f"of {want.sample}, which no test image has; correct it, or put the images in their place and decode again",
        ),
        (_without(listed, predicted), f"of {table_name}, which {predictions} lacks; run the predict stage again"),
        (
            gone,
            f"disappeared from {shown(folder)} after decode; put the image files back, or decode again without them",
        ),
    )
    for ids, sentence in faults:
        if ids:
            names = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
            raise PipelineError(f"{len(ids)} test id{'s' * (len(ids) > 1)} ({names}) {sentence}. Nothing was written.")


def _without(ids: list[str], others: list[str]) -> list[str]:
    known = set(others)
    return [image_id for image_id in ids if image_id not in known]


def _encode_all(
    run: Run, images: pd.DataFrame, want: Expected, blend: Blend, result: dict[str, Any]
) -> tuple[submission.Texts, submission.Scores, dict[str, Any]]:
    """Returns the texts of the rows, their confidences, and statistics of all masks.

    Images are processed one by one, so that only few probabilities at native size are in memory.
    """
    decision, blank, usual = decision_of(result), unanswered(images), submission.usual_class(result)
    place = {image_id: row for row, image_id in enumerate(blend.ids)}

    def encode_one(image: tuple[str, int, int]) -> tuple[submission.Texts, submission.Scores, list[int], float]:
        image_id, *shape = image
        row = place[image_id]
        probability = blend.native(row, run.competition.scored_shape((shape[0], shape[1])))
        masks = disjoint(blend.objects(row, probability, decision), probability, run.competition.submission.overlap)
        if image_id in blank:
            masks = constant_masks(masks.shape, usual)
        areas = [int(np.count_nonzero(mask)) for mask in masks]
        scores = submission.scores_of(image_id, masks, probability, want)
        return submission.texts_of(image_id, masks, want), scores, areas, float(probability.max())

    if want.windows:
        return _join_all(run, images, want, blend, decision)
    with ThreadPoolExecutor() as pool:
        tasks = zip(images["image_id"], images["height"].tolist(), images["width"].tolist(), strict=True)
        encoded = list(track(pool.map(encode_one, tasks), "encode", len(images)))
    texts = {key: text for of_image, *_ in encoded for key, text in of_image.items()}
    scores = {key: known for _, of_image, *_ in encoded for key, known in of_image.items()}
    shapes = zip(images["height"].tolist(), images["width"].tolist(), strict=True)
    highest, pixels = [value for *_, value in encoded], np.prod([*map(run.competition.scored_shape, shapes)], axis=1)
    return texts, scores, _summary(np.array([areas for _, _, areas, _ in encoded]), highest, pixels, run)


def unanswered(images: pd.DataFrame) -> dict[str, str]:
    """Returns the test images without a prediction, by id, with the fault for which decode could not read them."""
    faulty = images[images["fault"] != ""]
    return dict(zip(faulty["image_id"], faulty["fault"], strict=True))


def constant_masks(shape: tuple[int, ...], usual: int | None) -> np.ndarray:
    """Returns constant masks (C, h, w) uint8: empty ones, or the class with this number everywhere."""
    masks = np.zeros(shape, np.uint8)
    if usual is not None:
        masks[usual] = 1
    return masks


def _unanswered_reasons(blank: dict[str, str], count: int) -> list[Reason]:
    if not blank:
        return []
    examples = "; ".join(list(blank.values())[:3])
    text = (
        f"{len(blank)} of {count} test images have no prediction and got the usual answer (an empty mask, or the most "
        f"frequent class): {examples}."
    )
    return [Reason("check", "test images without prediction", text)]


def _join_all(
    run: Run, images: pd.DataFrame, want: Expected, blend: Blend, decision: Decision
) -> tuple[submission.Texts, submission.Scores, dict[str, Any]]:
    """Returns the same as _encode_all for images that were cut into windows. The statistics are over windows, like
    those of held-out images."""
    place = {image_id: row for row, image_id in enumerate(blend.ids)}
    texts: submission.Texts = {}
    areas, highest, pixels = [], [], []
    with ThreadPoolExecutor(WINDOWS_AT_ONCE) as pool:
        for whole in track(table.wholes_of(images), "encode", len(want.windows)):
            joined = joining.join(whole, place, blend, decision, want.convention.order, pool)
            texts |= joining.texts_of(whole.image_id, joined, want)
            areas.append(joined.areas)
            highest += joined.highest
            pixels += [(bottom - top) * (right - left) for top, left, bottom, right in whole.cores]
    return texts, {}, _summary(np.concatenate(areas), highest, np.array(pixels), run)


def _summary(areas: np.ndarray, highest: list[float], pixels: np.ndarray, run: Run) -> dict[str, Any]:
    """Returns statistics of all predicted masks.

    Args:
        areas: the mask pixels of each image and class (N, C).
        highest: the highest probability in each image.
        pixels: the number of pixels of each image (N,).
        run: the run.
    """
    if run.competition.kind == "multiclass":
        shares = areas.sum(0) / pixels.sum()
        return {"class_share": dict(zip(run.competition.classes, map(float, shares), strict=True))}
    total = areas.sum(1)
    full = (areas == pixels[:, None]).all(1)
    return {
        "share_empty": float((total == 0).mean()),
        "share_full": float(full.mean()),
        "mean_area": float(total.mean()),
        "highest": float(np.mean(highest)) / scale_of(run.competition).largest,
    }


# --- the record ------------------------------------------------------------------------------------------------------


def _record(
    run: Run, result: dict[str, Any], digest: str, test: dict[str, Any], verdict: dict[str, Any], rows: int
) -> dict[str, Any]:
    """Returns the record; `verdict` holds the verdict, its reasons, and the warnings about the test masks."""
    others = () if run.recipe.trains else blends.files(run, "test")
    return {
        "run": run.name,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "sha256": digest,
        "rows": rows,
        "expect": {key: result[key] for key in EXPECT},
        "test": test,
        **verdict,
        **_sent(run, digest),
        "postprocess": result,
        "folds": {name: _training(path) for name, path in _trainings(run).items()},
        "predictions": {shown(path): freshness.hash_file(path) for path in others},
        "code": freshness.checkout() | {"encode": _digest(freshness.code("encode"))},
        "environment": freshness.environment(),
        **describe(run),
    }


def _sent(run: Run, digest: str) -> dict[str, Any]:
    """Returns the uploads of the same file, with their scores, from an earlier record."""
    before = read_record(run.record)
    return {"kaggle": before["kaggle"]} if before.get("sha256") == digest and "kaggle" in before else {}


def _trainings(run: Run) -> dict[str, Path]:
    """Returns the fold.json of every training, by the name of its folder without `fold_`; none if nothing is
    trained."""
    if not run.recipe.trains:
        return {}
    folds = dict.fromkeys([*run.trained_folds(), *run.test_folds()])
    folders = [run.fold_folder(member.fold, member.seed) for fold in folds for member in run.members(fold)]
    return {folder.name.removeprefix("fold_"): folder / "fold.json" for folder in folders}


def _training(path: Path) -> dict[str, Any]:
    """Returns the entry of one training in the record, with hashes of its weights and of the code that trained them."""
    fold, manifest = read_training(path), freshness.read_manifest(path.with_name("manifest.json"))
    kept = ("best_epoch", "best_score", "epochs", "seconds", "weights", "compute", "sha256")
    code = _digest(manifest["code"]) if manifest else None
    return {key: fold[key] for key in kept} | {"code": code}


def _digest(code: dict[str, str]) -> str:
    """Returns one hash over the hashes of several files."""
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16]


# --- messages --------------------------------------------------------------------------------------------------------


def _print(test: dict[str, Any], result: dict[str, Any]) -> None:
    """Prints statistics of the test masks beside those of the predicted and the true masks of held-out images."""
    held_out = result["oof"]
    if "class_share" in test:
        parts = [
            f"{name} {share:.1%} (out-of-fold {held_out['class_share'][name] or 0:.1%}, true "
            f"{result['class_share_true'][name] or 0:.1%})"
            for name, share in test["class_share"].items()
        ]
        say(f"  pixels: {', '.join(parts)}")
    else:
        say(
            f"  empty masks: {test['share_empty']:.0%} (out-of-fold {held_out['share_empty']:.0%}, true "
            f"{result['share_empty_true']:.0%}); mean area {test['mean_area']:.0f} px ({held_out['mean_area']:.0f}, "
            f"{result['mean_true_area']:.0f})"
        )


def _print_verdict(written: str, reasons: list[Reason]) -> None:
    """Prints what was written, the verdict, and the kinds of reasons against it; the command prints the full
    reasons."""
    verdict = verdict_of(reasons)
    if verdict == "fine":
        say(f"  {written}; {verdict}")
        return
    kinds = dict.fromkeys(reason.kind for level in ("stop", "check") for reason in reasons if reason.level == level)
    colour = "bold red" if verdict == "do not submit" else "yellow"
    warn(f"  {escape(written)}; [{colour}]{verdict}: {escape(', '.join(kinds))}[/{colour}]")
