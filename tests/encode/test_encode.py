"""From test probabilities to the submission: every convention on the way out, refusals, the record, older files."""

import errno
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import Result
from conftest import MANIFEST, SHAPE, TEST_IDS, Tiny
from typer.testing import CliRunner
from written import FOLD, RESULT

from pipeline import bring
from pipeline.__main__ import app
from pipeline.core import driver
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import ArraysSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.core.verdict import Reason, from_json, to_json
from pipeline.decode import table
from pipeline.encode import scoring, shift, submission
from pipeline.encode.older import shutil
from pipeline.encode.stage import _record, _trainings, freshness, shown, steps
from pipeline.masks import decision, rle, statistics
from pipeline.predictions import blends, test_images

EXPECT = {key: RESULT[key] for key in ("metric", "remark", "score", "interval_95", "nested", "untuned", "scores")}


@pytest.fixture
def ready(tiny: Tiny) -> Tiny:
    """The tiny competition as tune leaves it: probabilities of its test images, of two folds, and a decision."""
    tiny.recipe |= {"image": {"size": list(SHAPE)}, "train": {"folds": [0, 1]}}
    tiny.save()
    run = tiny.run("decode")
    for fold in (0, 1):
        predict(run, fold, TEST_IDS, np.stack([probability(number) for number in range(4)]))
        put(run.fold_folder(fold) / "fold.json", FOLD)
        put(run.fold_folder(fold) / "manifest.json", MANIFEST | {"code": {"losses.py": "1"}})
    put(run.postprocess, RESULT)
    statistics.save(run.mask_statistics, statistics.of_table(table.read_table(run.table), ["thing"], False))
    return tiny


def probability(number: int) -> np.ndarray:
    """The probabilities (1, h, w) uint8 of a test image: the second's mask is too small, the others' ever larger."""
    found = np.full(SHAPE, 20, np.uint8)
    cv2.circle(found, (30, 20), (6, 1, 8, 10)[number], 200 + number, -1)
    return found[None]


def predict(run: Run, fold: int | None, ids: list[str], array: np.ndarray) -> None:
    """Writes test predictions as the predict stage does."""
    path = run.predictions("test", fold)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    pd.DataFrame({"image_id": ids}).to_csv(path.with_suffix(".csv"), index=False)
    raw = freshness.fingerprint(test_images.raw_test_files(run), {})
    put(path.with_suffix(".manifest.json"), MANIFEST | {"inputs": raw})


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def rows_of(run: Run) -> dict[str, str]:
    frame = pd.read_csv(run.submission, dtype=str, keep_default_na=False)
    return dict(zip(frame["id"], frame["mask"], strict=True))


def submissions(tiny: Tiny) -> list[str]:
    """The names of all that lies in submissions/, hidden files too."""
    folder = tiny.root / "submissions"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- the masks and the record ----------------------------------------------------------------------------------------


def test_masks_are_those_of_the_decision(ready: Tiny) -> None:
    run = ready.run("encode")
    expected = {name: rle.encode(probability(number)[0] >= 128) for number, name in enumerate(TEST_IDS)}
    assert rows_of(run) == expected | {"t2": ""}
    test = read_json(run.record)["test"]
    areas = [int((probability(number) >= 128).sum()) for number in (0, 2, 3)]
    assert test["share_empty"] == 0.25
    assert test["share_full"] == 0
    assert test["mean_area"] == sum(areas) / 4
    assert test["highest"] == pytest.approx((200 + 201 + 202 + 203) / 4 / 255)


def test_images_may_be_predicted_in_another_order(ready: Tiny) -> None:
    before = rows_of(ready.run("encode"))
    run = open_run(str(ready.recipe_path))
    for fold in (0, 1):
        predict(run, fold, TEST_IDS[::-1], np.stack([probability(number) for number in (3, 2, 1, 0)]))
    assert rows_of(ready.run("encode")) == before


def test_the_record_says_how_it_came_about(ready: Tiny) -> None:
    run = ready.run("encode")
    record = read_json(run.record)
    assert record["expect"] == EXPECT
    assert record["postprocess"] == RESULT
    assert record["recipe"]["name"] == "small"
    assert record["competition"]["name"] == "tiny"
    assert record["warnings"] == []
    assert record["predictions"] == {}
    assert record["folds"].keys() == {"0", "1"}
    assert record["folds"]["0"]["sha256"] == FOLD["sha256"]
    assert record["code"].keys() == {"commit", "modified", "encode"}
    assert record["sha256"] == freshness.hash_file(run.submission)


def test_a_package_outside_of_a_checkout_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.core.freshness.PACKAGE", tmp_path)
    assert freshness.checkout() == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", "")
    assert freshness.checkout() == {"commit": None, "modified": None}


def test_predictions_of_others_are_recorded_by_their_hashes(ready: Tiny) -> None:
    ready.run("encode")
    run = open_run(str(ready.recipe_path))
    brought = run.recipe.model_copy(update={"arrays": ArraysSettings(oof="oof.npy")})
    foreign = replace(run, recipe=brought)
    predict(foreign, foreign.test_folds()[0], TEST_IDS, np.zeros((4, 1, *SHAPE), np.uint8))
    assert _trainings(foreign) == {}
    record = _record(foreign, RESULT, "d", {}, {}, 4)
    assert record["folds"] == {}
    assert set(record["predictions"]) == {shown(path) for path in blends.files(foreign, "test")}
    assert all(len(digest) == 64 for digest in record["predictions"].values())


# --- an older submission of the same name ----------------------------------------------------------------------------


def changed(ready: Tiny, threshold: int) -> Run:
    """Encodes again after another threshold was chosen."""
    run = open_run(str(ready.recipe_path))
    rules = decision.described(decision.Rules((decision.Rule(threshold, 0),)), ["thing"])
    put(run.postprocess, RESULT | {"rules": rules})
    return ready.run("encode")


def test_an_older_submission_is_kept_under_its_date(ready: Tiny) -> None:
    run = ready.run("encode")
    first, made = run.submission.read_bytes(), read_json(run.record)["made"]
    changed(ready, 10)
    dated = f"small.{made.replace(' ', '-').replace(':', '')}"
    assert submissions(ready) == sorted(["small.csv", "small.json", f"{dated}.csv", f"{dated}.json"])
    kept = ready.root / "submissions" / f"{dated}.csv"
    assert kept.read_bytes() == first != run.submission.read_bytes()
    record = read_json(kept.with_suffix(".json"))
    assert (record["made"], record["sha256"]) == (made, freshness.hash_file(kept))
    assert read_json(run.record)["sha256"] == freshness.hash_file(run.submission)


def test_the_same_submission_is_not_kept_twice(ready: Tiny) -> None:
    ready.run("encode")
    run = ready.run("encode")
    put(run.postprocess, RESULT | {"score": 0.71})
    ready.run("encode")
    assert read_json(run.record)["expect"]["score"] == 0.71
    assert submissions(ready) == ["small.csv", "small.json"]


def test_a_dated_file_is_never_overwritten(ready: Tiny) -> None:
    run = ready.run("encode")
    made = read_json(run.record)["made"].replace(" ", "-").replace(":", "")
    mine = run.submission.with_name(f"small.{made}.csv")
    mine.write_text("mine")
    before = run.submission.read_bytes()
    changed(ready, 10)
    assert mine.read_text() == "mine"
    kept = [path for path in run.submission.parent.glob("small.*.csv") if path != mine]
    assert [path.read_bytes() for path in kept] == [before]


def test_a_file_that_somebody_else_put_there_is_kept_too(ready: Tiny) -> None:
    run = open_run(str(ready.recipe_path))
    run.submission.parent.mkdir()
    run.submission.write_text("id,mask\n")
    os.utime(run.submission, (0, time.mktime((2024, 2, 3, 4, 5, 6, 0, 0, -1))))
    ready.run("encode")
    assert (run.submission.parent / "small.2024-02-03-040506.csv").read_text() == "id,mask\n"


@pytest.mark.parametrize("before", [".csv", ".json"])
def test_a_kill_while_the_files_change_places_loses_nothing(
    ready: Tiny, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    run = ready.run("encode")
    first, replace_file = run.submission.read_bytes(), os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == f"small{before}":
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            changed(ready, 10)
    kept = {path.read_bytes() for path in run.submission.parent.glob("small*.csv")}
    assert first in kept
    ready.run("encode")
    assert len(submissions(ready)) == 4
    assert {path.read_bytes() for path in run.submission.parent.glob("small*.csv")} == {
        first, run.submission.read_bytes()
    }  # fmt: skip
    assert read_json(run.record)["sha256"] == freshness.hash_file(run.submission)


def test_without_links_older_files_are_copied(ready: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready.run("encode").submission.read_bytes()

    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    run = changed(ready, 10)
    assert len(submissions(ready)) == 4
    assert first in {path.read_bytes() for path in run.submission.parent.glob("small.*.csv")}


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(ready: Tiny, words: str) -> None:
    """Encoding fails with these words, and what was there before stays as it was."""
    folder = ready.root / "submissions"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    message = ready.refused("encode")
    assert words in message
    assert "\n" not in message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_sample_submission_with_ids_of_no_image(ready: Tiny) -> None:
    ready.run("encode")
    pd.DataFrame({"id": [*TEST_IDS, "t8", "t9"], "mask": ""}).to_csv(ready.input / "sample.csv", index=False)
    refused(ready, "2 test ids (t8, t9) of sample.csv, which no test image has; correct it, or put the images in")


def test_a_test_image_whose_file_vanished(ready: Tiny) -> None:
    ready.run("encode")
    ready.path("t3").unlink()
    put(open_run(str(ready.recipe_path)).postprocess, RESULT | {"score": 0.9})
    refused(ready, "1 test id (t3) disappeared from input/tiny after decode; put the image files back")


def test_a_table_of_test_images_that_decode_did_not_write(ready: Tiny) -> None:
    run = ready.run("encode")
    images = pd.read_parquet(run.test_table)
    images[images["image_id"] != "t3"].to_parquet(run.test_table, index=False)
    refused(ready, "work/tiny/test_images.parquet is not what decode wrote")


def test_a_test_image_that_was_not_predicted(ready: Tiny) -> None:
    run = ready.run("encode")
    for fold in (0, 1):
        predict(run, fold, TEST_IDS[:3], np.stack([probability(number) for number in range(3)]))
    refused(
        ready,
        "1 test id (t4) of work/tiny/test_images.parquet, which work/tiny/small/predictions/test_fold_0.npy lacks",
    )


def test_a_refusal_is_one_sentence_and_exit_2(ready: Tiny) -> None:
    ready.path("t3").unlink()
    done = ready.cli("encode", ready.recipe_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "  sample.csv row 4: id t3 has no image: test/t3.tif does not exist"
    assert "Traceback" not in done.stderr
    assert submissions(ready) == []


@pytest.mark.parametrize("what", ["submission", "record", "older"])
def test_a_disk_that_fills_up(ready: Tiny, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    ready.run("encode")

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "submission":
        monkeypatch.setattr(submission, "write", full)
    elif what == "record":
        monkeypatch.setattr("pipeline.core.files.write_text", full)
    else:
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr(shutil, "copy2", full)
    rules = decision.described(decision.Rules((decision.Rule(10, 0),)), ["thing"])
    put(open_run(str(ready.recipe_path)).postprocess, RESULT | {"rules": rules})
    refused(ready, "could not be written: No space left on device. Nothing was changed.")
    assert submissions(ready) == ["small.csv", "small.json"]


# --- the verdict -----------------------------------------------------------------------------------------------------

EMPTY = "All masks are empty: 4 of 4 test images, compared with 25 % of the training images."
WEAK = Reason("check", "weak group", "Patient p3 scores 0.2.", "look at it", ["a07"])


def write_empty_masks(run: Run, *reasons: Reason) -> None:
    """Tunes to an area that no mask has, and for these reasons."""
    rules = {"thing": RESULT["rules"]["thing"] | {"min_area": 2400}}
    put(run.postprocess, RESULT | {"rules": rules, "reasons": to_json(reasons)})


def test_the_record_has_the_reasons_of_tune_and_of_the_test_set(
    ready: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready.run("encode")
    record = read_json(run.record)
    assert (record["verdict"], record["reasons"]) == ("fine", [])
    assert "4 rows, valid → submissions/small.csv; fine\n" in capsys.readouterr().err
    put(run.postprocess, RESULT | {"reasons": to_json([WEAK])})
    record = read_json(ready.run("encode").record)
    assert (record["verdict"], record["warnings"], from_json(record)) == ("check first", [], [WEAK])
    write_empty_masks(run, WEAK)
    record = read_json(ready.run("encode").record)
    assert (record["verdict"], record["warnings"]) == ("do not submit", [EMPTY])
    assert [(one.level, one.kind) for one in from_json(record)] == [
        ("stop", "all masks empty"),
        ("check", "weak group"),
    ]
    assert "valid → submissions/small.csv; do not submit: all masks empty, weak group\n" in capsys.readouterr().err
    assert set(rows_of(run).values()) == {""}


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("command", ["encode", "run"])
def test_strict_writes_everything_and_ends_with_3(ready: Tiny, command: str) -> None:
    run = open_run(str(ready.recipe_path))
    words = [command, ready.recipe_path, *(["--from", "encode", "--to", "encode"] if command == "run" else [])]
    assert call(*words, "--strict").exit_code == 0
    write_empty_masks(run)
    done = call(*words)
    assert done.exit_code == 0 and "  verdict         DO NOT SUBMIT\n" in done.stdout and EMPTY in done.stdout
    assert call(*words, "--strict").exit_code == 3  # although encode is up to date
    run.record.unlink()
    assert call(*words, "--strict").exit_code == 3
    assert read_json(run.record)["verdict"] == "do not submit" and set(rows_of(run).values()) == {""}
    put(run.postprocess, RESULT | {"reasons": to_json([WEAK])})
    assert call(*words, "--strict").exit_code == 0


def test_strict_from_python_raises_after_writing(ready: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(str(ready.recipe_path))
    monkeypatch.setattr(bring.stages, "run_through", lambda run, stage: driver.run_stage(run, stage))
    assert bring.encode(run, strict=True) == run.submission
    write_empty_masks(run)
    with pytest.raises(PipelineError, match=r"^do not submit submissions/small\.csv: All masks are empty"):
        bring.encode(run, strict=True)
    assert set(rows_of(run).values()) == {""}
    assert bring.encode(run) == run.submission


def test_check_says_what_looks_wrong_and_with_strict_fails(ready: Tiny) -> None:
    path, options = ready.root / "mine.csv", ("--competition", str(ready.competition_path))
    pd.DataFrame({"id": TEST_IDS, "mask": f"1 {SHAPE[0] * SHAPE[1]}"}).to_csv(path, index=False)
    done = call("check", path, *options)
    assert (done.exit_code, done.stdout) == (0, f"{path}: valid, but it looks wrong\n")
    assert done.stderr.startswith(
        "  stop  All masks are full: 4 of 4 test images are filled, compared with 0 % of the training images.\n"
        "        → "
    )
    assert done.stderr.endswith("\n  verdict: do not submit\n")
    done = call("check", path, *options, "--strict")
    assert (done.exit_code, done.stdout) == (1, f"{path}: valid, but it looks wrong (--strict)\n")


def test_the_format_is_the_yaml_s_word_without_a_sample_submission(ready: Tiny) -> None:
    ready.settings["sample_submission"] = None
    ready.save()
    run = ready.run("decode", "encode")
    text = "There is no sample submission that shows the format: columns (id, mask) and run lengths follow the YAML."
    record = json.loads(run.record.read_text())
    assert [one["level"] for one in record["reasons"] if one["text"] == text] == ["note"]
    done = call("check", run.submission, "--competition", str(ready.competition_path))
    assert done.exit_code == 0
    assert " ".join(done.stderr.split()).count(text) == 1


def test_a_bundle_without_training_descriptors_is_enough(ready: Tiny) -> None:
    """They are inputs where they are there: test images may be unlike training images."""
    run = ready.run("encode")
    assert shift.files(run) and set(shift.files(run)) <= set(steps(run)[0].inputs)
    for path in (run.histograms, run.thumbnails, run.table):
        path.unlink()
    assert not shift.files(run) and not set(shift.files(run)) & set(steps(run)[0].inputs)
    assert shift.find_reasons(run) == []
    assert read_json(ready.run("encode").record)["verdict"] == "fine"


# --- every convention on the way out ---------------------------------------------------------------------------------

COLUMN, ROW = {"order": "column", "base": 1, "empty": ""}, {"order": "row", "base": 0, "empty": "-1"}
RELATIVE = COLUMN | {"base": 0, "empty": "-1", "offsets": "relative"}
ROW_RELATIVE = ROW | {"base": 1, "empty": "", "offsets": "relative"}
CLASSES = {"thing": 1, "rim": 2, "spot": 3}
LABEL, PATTERN = {"id": "id", "label": "class", "rle": "mask"}, {"id": "id", "pattern": "{id}_{label}", "rle": "mask"}
PLAIN = {"id": "id", "rle": "mask"}
MULTILABEL = {"classes": CLASSES, "kind": "multilabel", "columns": LABEL}
MULTICLASS: dict[str, Any] = {
    "classes": {"ground": 0, **CLASSES}, "kind": "multiclass", "metric": "mean_iou",
    "train": {"images": "train/{id}.tif", "masks": "masks/{id}.png"},
}  # fmt: skip
KINDS = {
    "an image": PLAIN | {"rows": "image"},
    "an instance": PLAIN | {"rows": "instance"},
    "a class by label": LABEL,
    "a class by pattern": PATTERN,
    "an instance of a class": PATTERN | {"rows": "instance"},
    "multiclass by label": LABEL,
    "multiclass by pattern": PATTERN,
}


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the table of the tiny competition, and its settings without a sample submission."""
    root = tmp_path_factory.mktemp("round_trip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        tiny.settings["sample_submission"] = None
        tiny.save()
        tiny.run("decode")
    return root


def opened(root: Path, change: dict[str, Any]) -> tuple[Any, submission.Expected]:
    """The tiny competition after this change, and what a submission of it must hold."""
    settings = yaml.safe_load((root / "competition" / "tiny.yaml").read_text()) | change
    path = root / "changed.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    competition = load_competition(str(path))
    return competition, submission.expected(competition, root / "input", root / "work" / "tiny")


def planes(count: int, exclusive: bool) -> dict[str, np.ndarray]:
    """Masks (count, h, w) of every test image: blobs that touch corners, one image empty, one full; `exclusive`: each
    pixel is of one class."""
    random, found = np.random.default_rng(5), {}
    for name in TEST_IDS:
        blobs = cv2.resize(random.normal(size=(5, 7, count)), SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
        masks = (np.moveaxis(blobs.reshape(*SHAPE, count), 2, 0) > 0.4).astype(np.uint8)
        masks[:, 0, 0] = masks[:, -1, -1] = 1
        found[name] = masks
    found["t2"][:], found["t3"][:] = 0, 1
    if not exclusive:
        return found
    labels = {name: np.where(masks.any(0), masks.argmax(0), 0) for name, masks in found.items()}
    return {name: (np.arange(count)[:, None, None] == one).astype(np.uint8) for name, one in labels.items()}


def round_trip(root: Path, change: dict[str, Any], masks: dict[str, np.ndarray]) -> tuple[Path, submission.Expected]:
    """Writes masks; the file must be valid, and score perfectly against itself and against the masks."""
    competition, want = opened(root, change)
    texts = {key: text for name, own in masks.items() for key, text in submission.texts_of(name, own, want).items()}
    path, seen = root / "mine.csv", {}
    submission.write(path, texts, want)

    def measure(image_id: str, number: int, mask: np.ndarray) -> None:
        seen[image_id, number] = mask

    assert submission.examine(path, want, measure) == ([], [])
    for (name, number), mask in seen.items():
        np.testing.assert_array_equal(mask, masks[name][number])
    assert len(seen) == len(want.classes) * len(masks)
    assert scoring.score(path, path, competition, want)[0] == 1
    return path, want


@pytest.mark.parametrize("convention", [COLUMN, ROW, RELATIVE, ROW_RELATIVE], ids=["column", "row", "relative", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_run_lengths_come_back_as_they_went_out(decoded: Path, kind: str, convention: dict[str, Any]) -> None:
    several = MULTICLASS if "multiclass" in kind else MULTILABEL if "class" in kind else {}
    masks = planes(len(several["classes"]) if several else 1, "multiclass" in kind)
    change = several | {"submission": KINDS[kind], "rle": convention}
    path, want = round_trip(decoded, change, masks)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(frame.columns) == want.header
    rows = [number for number in range(len(masks["t1"])) if not (several is MULTICLASS and number == 0)]
    assert want.classes == rows  # a background has none
    for name in TEST_IDS:
        for number in rows:
            label = str(list(several.get("classes", {"": ""}).values())[number])
            own = frame[(frame["id"] == name) | (frame["id"] == f"{name}_{label}")]
            texts = own["mask"][own["class"] == label] if "class" in own else own["mask"]
            order = "F" if convention["order"] == "column" else "C"
            assert pixels(texts, convention) == np.flatnonzero(masks[name][number].ravel(order)).tolist()


def pixels(texts: pd.Series, convention: dict[str, Any]) -> list[int]:
    """The pixels that texts name, numbered from 0 in the order of the convention, each once."""
    found: list[int] = []
    for text in texts[texts != convention["empty"]]:
        values, end = list(map(int, text.split())), 0
        for start, length in zip(values[::2], values[1::2], strict=True):
            first = start - convention["base"]
            if convention.get("offsets") == "relative" and end:
                first = end + start
            end = first + length
            found += range(first, end)
    return sorted(found)


@pytest.mark.parametrize("values", [[0, 1, 2, 3], [7, 1, 4, 9]])
def test_class_maps_come_back_as_they_went_out(decoded: Path, values: list[int]) -> None:
    names = dict(zip(MULTICLASS["classes"], values, strict=True))
    change = MULTICLASS | {"classes": names, "submission": {"format": "labels", "id": "id"}}
    path, _ = round_trip(decoded, change, planes(4, True))
    frame = pd.read_csv(path)
    assert frame.columns.tolist() == ["id", *map(str, range(SHAPE[0] * SHAPE[1]))]
    np.testing.assert_array_equal(
        frame.iloc[0, 1:].to_numpy(int), np.array(values)[planes(4, True)["t1"].argmax(0).ravel()]
    )


def test_runs_of_one_convention_are_faults_in_another(decoded: Path) -> None:
    change = {"submission": PLAIN | {"rows": "image"}, "rle": RELATIVE}
    path, _ = round_trip(decoded, change, planes(1, False))
    _, other = opened(decoded, change | {"rle": COLUMN})
    faults = submission.faults_of(path, other)
    assert [fault.split(":")[0] for fault in faults] == ["row 2", "row 3", "row 4", "row 5"]


def test_multiclass_rows_are_scored_by_their_class_maps(decoded: Path) -> None:
    competition, want = opened(decoded, MULTICLASS | {"submission": LABEL})
    frame = pd.DataFrame([("t1", "1", "1 1200"), ("t1", "2", "1201 1200"), ("t1", "3", "")], columns=want.header)
    truth = decoded / "truth.csv"
    frame.to_csv(truth, index=False)
    frame["mask"] = ["1 600", "1201 1200", ""]  # half of the first class is background
    frame.to_csv(decoded / "mine.csv", index=False)
    score, images = scoring.score(decoded / "mine.csv", truth, competition, want)
    assert (score, images) == (pytest.approx((0 + 0.5 + 1) / 3), 1)


# --- remarks ---------------------------------------------------------------------------------------------------------


def test_another_order_is_a_remark_and_no_fault(ready: Tiny) -> None:
    run = ready.run("encode")
    competition = load_competition(str(ready.competition_path))
    want = submission.expected(competition, run.input, run.competition_folder)
    assert submission.examine(run.submission, want) == ([], [])
    path = ready.root / "mine.csv"
    pd.read_csv(run.submission, dtype=str, keep_default_na=False).iloc[[0, 2, 1, 3]].to_csv(path, index=False)
    text = "Rows are in another order than in sample.csv: row 3 is t3, in the sample it is t2."
    assert submission.examine(path, want) == ([], [Reason("note", "row order", text)])
    assert submission.examine(path, replace(want, sample=None)) == ([], [])


def test_an_empty_older_submission_is_not_kept(ready: Tiny) -> None:
    run = ready.run("encode")
    content = run.submission.read_bytes()
    run.submission.write_bytes(b"")
    ready.run("encode")
    assert run.submission.read_bytes() == content
    assert submissions(ready) == ["small.csv", "small.json"]
