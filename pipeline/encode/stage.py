"""Turns test probabilities into the submission, by the decision that tune chose, and checks it.

    python -m pipeline encode RECIPE [--strict]

reads   work/<competition>/<run>/predictions/test_fold_<k>.npy (of an ensemble: those of its runs), postprocess.json,
        mask_statistics.npz, fold_<k>/fold.json, work/<competition>/test_images.parquet, the sample submission; and
        which raw test images there are, so that predictions of others are never submitted; and what decode took of
        the training images to compare the test images with, where it is there (a bundle has none of it)
writes  submissions/<run>.csv (or another kind of file, as the competition has it), and submissions/<run>.json: how it
        came about, the verdict and its reasons; an older pair that differs is kept as submissions/<run>.<when it was
        made>.csv and .json
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
"""Windows of a large image that are decided side by side: each takes some 20 bytes per pixel and class."""
EXPECT = ("metric", "remark", "score", "interval_95", "nested", "untuned", "scores")
"""What postprocess.json says of the score to expect."""


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage; none without a test set."""
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
        PipelineError: predictions, test images and sample submission do not fit together, or what was made is no valid
            submission; nothing is written then.
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
    # the record lies ready before the submission is renamed into its place, and follows it
    with writing(run.record) as record, writing(run.submission) as temporary:
        rows = submission.write(temporary, texts, want, scores)
        never = [run.competition.classes[number] for number in result.get("never", [])]
        prior = result.get("presence_prior")
        faults, odd = sanity.examine(temporary, want, run.competition, never, run.mask_statistics, prior)
        if faults:
            raise PipelineError(f"the submission would not be valid, nothing was written: {'; '.join(faults[:5])}.")
        reasons = [*from_json(result), *sanity.format_note(want, run.competition), *odd, *unlike]
        digest = freshness.hash_file(temporary)
        said = {"verdict": verdict_of(reasons), "reasons": to_json(reasons), "warnings": sanity.warnings_of(odd)}
        write_json(record, _record(run, result, digest, test, said, rows))
        older.keep(run, digest)
    older.rename_other_kinds(run)
    _print(test, result)
    what = "rows" if want.settings.format != "images" else "mask images"
    _print_verdict(f"{rows} {what}, valid → {shown(run.submission)}", reasons)
    yield from waiting


def _check_images(run: Run, images: pd.DataFrame, want: Expected, predicted: list[str]) -> None:
    """Checks that test images, predictions and sample submission are of one another.

    Raises:
        PipelineError: they are not.
    """
    if len(images) and not (images["height"] * images["width"]).any():
        raise PipelineError(
            f"none of the {len(images)} test images can be read ({images['fault'].iloc[0]}): put sound ones in their "
            "place. Nothing was written."
        )
    listed, table_name, folder = images["image_id"].tolist(), shown(run.test_table), run.input
    whole = table.submitted(images)["image_id"].tolist()
    predictions = shown(blends.files(run, "test")[0])
    blank = unanswered(images)
    paths = zip(listed, images["path"], strict=True)
    gone = [one for one, path in paths if one not in blank and not (folder / path).exists()]
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
            f"vanished from {shown(folder)} since decode; put the image files back, or decode again without them",
        ),
    )
    for ids, sentence in faults:
        if ids:
            names = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
            raise PipelineError(f"{len(ids)} test id{'s' * (len(ids) > 1)} ({names}) {sentence}. Nothing was written.")


def _without(ids: list[str], others: list[str]) -> list[str]:
    known = set(others)
    return [one for one in ids if one not in known]


def _encode_all(
    run: Run, images: pd.DataFrame, want: Expected, blend: Blend, result: dict[str, Any]
) -> tuple[submission.Texts, submission.Scores, dict[str, Any]]:
    """What the rows hold, how sure they are, and what the masks look like as a whole; image by image, so that
    probabilities at native size never lie in memory together."""
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
    texts = {key: text for own, *_ in encoded for key, text in own.items()}
    scores = {key: known for _, own, *_ in encoded for key, known in own.items()}
    shapes = zip(images["height"].tolist(), images["width"].tolist(), strict=True)
    highest, pixels = [one for *_, one in encoded], np.prod([*map(run.competition.scored_shape, shapes)], axis=1)
    return texts, scores, _summary(np.array([areas for _, _, areas, _ in encoded]), highest, pixels, run)


def unanswered(images: pd.DataFrame) -> dict[str, str]:
    """Returns why test images have no prediction of their own, by their ids: what decode says of those that could not
    be read."""
    faulty = images[images["fault"] != ""]
    return dict(zip(faulty["image_id"], faulty["fault"], strict=True))


def constant_masks(shape: tuple[int, ...], usual: int | None) -> np.ndarray:
    """Returns masks (C, h, w) uint8 that say the same everywhere: nothing, or the class of this number."""
    masks = np.zeros(shape, np.uint8)
    if usual is not None:
        masks[usual] = 1
    return masks


def _unanswered_reasons(blank: dict[str, str], count: int) -> list[Reason]:
    if not blank:
        return []
    examples = "; ".join(list(blank.values())[:3])
    text = (
        f"{len(blank)} of {count} test images have no prediction and got the usual answer (an empty mask, or the "
        f"commonest class): {examples}."
    )
    return [Reason("check", "test images without prediction", text)]


def _join_all(
    run: Run, images: pd.DataFrame, want: Expected, blend: Blend, decision: Decision
) -> tuple[submission.Texts, submission.Scores, dict[str, Any]]:
    """As _encode_all, of images that were cut into windows: one image after the other; the figures are of windows, as
    those of held-out images are."""
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
    """What the predicted masks look like as a whole; areas (N, C) in pixels of `pixels` (N,), and the highest
    probability of each."""
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
    run: Run, result: dict[str, Any], digest: str, test: dict[str, Any], said: dict[str, Any], rows: int
) -> dict[str, Any]:
    """What the record holds; `said` is the verdict, its reasons, and the warnings of the test masks."""
    others = () if run.recipe.trains else blends.files(run, "test")
    return {
        "run": run.name,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "sha256": digest,
        "rows": rows,
        "expect": {key: result[key] for key in EXPECT},
        "test": test,
        **said,
        **_sent(run, digest),
        "postprocess": result,
        "folds": {name: _training(path) for name, path in _trainings(run).items()},
        "predictions": {shown(path): freshness.hash_file(path) for path in others},
        "code": freshness.checkout() | {"encode": _digest(freshness.code("encode"))},
        "environment": freshness.environment(),
        **describe(run),
    }


def _sent(run: Run, digest: str) -> dict[str, Any]:
    """What an earlier record says of uploads of the same file, and of their scores."""
    before = read_record(run.record)
    return {"kaggle": before["kaggle"]} if before.get("sha256") == digest and "kaggle" in before else {}


def _trainings(run: Run) -> dict[str, Path]:
    """The fold.json of every training, by its folder's name without `fold_`; none where nothing is trained."""
    if not run.recipe.trains:
        return {}
    folds = dict.fromkeys([*run.trained_folds(), *run.test_folds()])
    folders = [run.fold_folder(member.fold, member.seed) for fold in folds for member in run.members(fold)]
    return {folder.name.removeprefix("fold_"): folder / "fold.json" for folder in folders}


def _training(path: Path) -> dict[str, Any]:
    """What the record says of one training: the hashes of its weights among it, and of the code that trained them."""
    fold, manifest = read_training(path), freshness.read_manifest(path.with_name("manifest.json"))
    kept = ("best_epoch", "best_score", "epochs", "seconds", "weights", "compute", "sha256")
    code = _digest(manifest["code"]) if manifest else None
    return {key: fold[key] for key in kept} | {"code": code}


def _digest(code: dict[str, str]) -> str:
    """One hash of the hashes of several files."""
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16]


# --- messages --------------------------------------------------------------------------------------------------------


def _print(test: dict[str, Any], result: dict[str, Any]) -> None:
    """The test masks beside the predicted and the true ones of held-out images."""
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
    """What was written, and what it is worth: of what kind the reasons against it are; the command says more."""
    verdict = verdict_of(reasons)
    if verdict == "fine":
        say(f"  {written}; {verdict}")
        return
    kinds = dict.fromkeys(one.kind for level in ("stop", "check") for one in reasons if one.level == level)
    colour = "bold red" if verdict == "do not submit" else "yellow"
    warn(f"  {escape(written)}; [{colour}]{verdict}: {escape(', '.join(kinds))}[/{colour}]")
