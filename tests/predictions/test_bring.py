"""Predictions made elsewhere, and ensembles: the same decision and submission by every way in, and faults in words."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny
from typer.testing import CliRunner
from written import FOLD

from pipeline import stages
from pipeline.__main__ import app
from pipeline.bring import bring, encode, tune
from pipeline.core import driver, freshness
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import validate
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Run, describe, open_run
from pipeline.masks import rle
from pipeline.new.sample import write_sample
from pipeline.predictions import blends, external
from pipeline.predictions.external import ExternalPredictions
from pipeline.predictions.files import read_predictions, read_probabilities, write_probabilities
from pipeline.predictions.test_images import raw_test_files
from pipeline.split.folds import read_folds

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "bring-your-own.md").read_text(encoding="utf-8")


def soft(mask: np.ndarray, size: tuple[int, int], seed: int) -> np.ndarray:
    """Probabilities float32 of a network that sees the mask, (rows, columns) of `size`: 0.15 and 0.85, and noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, size)
    small = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    return np.clip(0.15 + 0.7 * small + noise, 0, 1).astype(np.float32)


def call(*words: str | Path) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: str | Path) -> str:
    """The sentence with which a command stops."""
    with pytest.raises(PipelineError) as caught:
        CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return str(caught.value)


# --- the page, on the sample competition -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A small sample competition under the name `my`, in the working directory, and predictions of it."""

    root: Path
    oof: np.ndarray
    oof_ids: list[str]
    test: np.ndarray
    test_ids: list[str]

    def save(self, dtype: Any) -> None:
        for name, array, ids in (("oof", self.oof, self.oof_ids), ("test", self.test, self.test_ids)):
            saved = np.rint(array * 255) if dtype == np.uint8 else array
            np.save(self.root / f"{name}.npy", saved.astype(dtype))
            pd.DataFrame({"image_id": ids}).to_csv(self.root / f"{name}.csv", index=False)

    def score(self, name: str) -> float:
        path = self.root / "submissions" / f"{name}.csv"
        truth = self.root / "input" / "my" / "truth.csv"
        return json.loads(call("score", path, truth, "--competition", "my.yaml", "--json"))["score"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    root = tmp_path_factory.mktemp("brought")
    write_sample(root / "input" / "my", 24, 6)
    (root / "my.yaml").write_text((REPOSITORY / "pipeline" / "competitions" / "sample.yaml").read_text())
    masks, truth = (
        pd.read_csv(root / "input" / "my" / name, keep_default_na=False) for name in ("train_masks.csv", "truth.csv")
    )
    arrays = [
        np.stack([soft(rle.decode(text, (420, 580)), (105, 140), seed) for seed, text in enumerate(one["pixels"])])
        for one in (masks, truth)
    ]
    ids = [f"{row.subject}_{row.img}" for row in masks.itertuples()]
    return Sample(root, arrays[0][::-1], ids[::-1], arrays[1], truth["img"].astype(str).tolist())


@pytest.fixture
def sample(drawn: Sample, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sample]:
    monkeypatch.setenv("PIPELINE_ROOT", str(drawn.root))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    monkeypatch.chdir(drawn.root)
    yield drawn


def test_the_page(sample: Sample) -> None:
    """Both three-liners, with floats and with uint8: the same decision, and the same submission, which scores well."""
    sample.save(np.float32)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    lines = [shlex.split(line, comments=True)[3:] for line in block.splitlines()]
    assert len(lines) == 3
    outputs = [call(*words) for words in lines]
    assert outputs[-1].endswith("submissions/mine.csv: valid\n")
    by_command = read_json(sample.root / "work" / "my" / "mine" / "postprocess.json")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {"oof_ids": sample.oof_ids, "test_ids": sample.test_ids, "test": sample.test}
    names |= {"oof": np.rint(sample.oof[:, None] * 255).astype(np.uint8)}
    exec(code.replace('"mine"', '"two"'), names)
    assert names["result"]["rules"] == by_command["rules"]
    assert names["result"]["score"] == by_command["score"] > 0.93
    assert "external predictions from oof.npy" in names["result"]["remark"]
    assert names["path"] == sample.root / "submissions" / "two.csv"
    assert names["path"].read_bytes() == (sample.root / "submissions" / "mine.csv").read_bytes()
    assert sample.score("mine") > 0.93


def test_run_and_status(sample: Sample) -> None:
    sample.save(np.float16)
    brought = ["third", "--competition", "my.yaml", "--oof", "oof.npy"]
    call("run", *brought)
    run = open_run("third", competition="my.yaml", oof="oof.npy")
    assert run.postprocess.exists() and not run.submission.exists()
    told = call("status", *brought)
    assert "train" not in told and "encode and later stages need predictions for the test images" in told
    told = call("status", *brought, "--test", "test.npy")
    following = "python -m pipeline run third --competition my.yaml --oof oof.npy --test test.npy"
    assert f"next: {following}\n" in told
    call(*following.split()[3:])
    assert "everything is up to date" in call("status", *brought, "--test", "test.npy")
    assert run.submission.exists() and run.report.exists()


def test_the_recipes_of_the_page_are_valid() -> None:
    first, second = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
    assert validate(Recipe, {"name": "mine", **first}, "docs").arrays
    assert list(validate(Recipe, {"name": "both", **second}, "docs").ensemble) == ["mine", "second"]


# --- import ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny competition with the run `mine`, imported."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("decoded")
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        imported(tiny)
    return tiny


@pytest.fixture
def ready(tiny: Tiny, decoded: Tiny) -> Tiny:
    """A tiny competition of its own, decoded, cleaned and split already."""
    shutil.copytree(decoded.root / "work", tiny.root / "work", ignore=shutil.ignore_patterns("mine"))
    shutil.copytree(decoded.root / "folds", tiny.root / "folds")
    return tiny


def predictions(tiny: Tiny, size: tuple[int, int] = (20, 30), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (12, *size) and (4, *size) float32 of the training and the test images."""
    oof = [soft(tiny.masks[name], size, seed + number) for number, name in enumerate(TRAIN_IDS)]
    test = [soft(np.zeros(SHAPE, np.uint8), size, seed + 90 + number) for number in range(len(TEST_IDS))]
    return np.stack(oof), np.stack(test)


def imported(tiny: Tiny, name: str = "mine", **changes: Any) -> Run:
    """The run of predictions of all images, after their import; without `test`, of the training images only."""
    given: dict[str, Any] = {"oof": predictions(tiny)[0], "oof_ids": TRAIN_IDS} | changes
    return import_arrays(bring(name, competition=str(tiny.competition_path), **given))


def import_arrays(run: Run) -> Run:
    """Imports what is not up to date: out-of-fold predictions in validate, test predictions in predict."""
    stages.run_through(run, "validate")
    driver.run_stage(run, "predict")
    return run


def read(run: Run, subset: Any, fold: int | None) -> tuple[np.ndarray, list[str]]:
    array, ids = read_probabilities(run.predictions(subset, fold))
    return np.asarray(array), ids


def test_every_form_gives_the_same_files(ready: Tiny) -> None:
    oof, test = predictions(ready)
    order = np.random.default_rng(3).permutation(len(TRAIN_IDS))
    shuffled = {"oof_ids": [TRAIN_IDS[row] for row in order], "test_ids": TEST_IDS[::-1]}
    run = imported(ready, test=test, test_ids=TEST_IDS)
    split = read_folds(run)
    for form in (
        {"oof": oof.astype(np.float64)[order], "test": test[::-1]},
        {"oof": np.rint(oof * 255).astype(np.uint8)[order, None], "test": np.rint(test * 255).astype(np.uint8)[::-1]},
        {"oof": np.asfortranarray(oof[order]), "test": test[::-1, None]},
    ):
        other = imported(ready, "other", **form, **shuffled)
        for subset, fold in (("oof", 0), ("oof", 1), ("oof", 2), ("test", None)):
            (array, ids), (same, same_ids) = read(run, subset, fold), read(other, subset, fold)
            assert ids == same_ids and (array == same).all()
    array, ids = read(run, "oof", 1)
    assert ids == split["image_id"][split["fold"] == 1].tolist()
    assert array.dtype == np.uint8 and array.shape == (len(ids), 1, 20, 30)
    assert (array[:, 0] == np.rint(oof[[TRAIN_IDS.index(one) for one in ids]] * 255)).all()
    assert read(run, "test", None)[1] == TEST_IDS
    assert run.recipe.image.size == (20, 30) and run.trained_folds() == [0, 1, 2] and run.test_folds() == [None]


def test_import_runs_again_when_the_array_changed(ready: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = imported(ready)
    capsys.readouterr()
    import_arrays(run)
    assert "validate: up to date" in capsys.readouterr().err
    before = read(run, "oof", 0)[0]
    oof, test = predictions(ready, seed=5)
    again = imported(ready, oof=oof, test=test, test_ids=TEST_IDS)
    assert (read(again, "oof", 0)[0] != before).any()
    before, same = read(again, "test", None)[0].copy(), read(again, "oof", 0)[0]
    capsys.readouterr()
    imported(ready, oof=oof, test=test[::-1].copy(), test_ids=TEST_IDS)
    said = capsys.readouterr().err
    assert (read(again, "test", None)[0] != before).any() and (read(again, "oof", 0)[0] == same).all()
    assert "validate: up to date" in said and "predict: " in said


def test_some_of_the_images(ready: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    first = imported(ready)
    split = read_folds(first).set_index("image_id")["fold"]
    some = [name for name in TRAIN_IDS if split[name] != 1][:5]
    run = imported(ready, oof=predictions(ready)[0][[TRAIN_IDS.index(name) for name in some]], oof_ids=some)
    assert "5 of 12 training images" in capsys.readouterr().err
    assert run.trained_folds() == sorted(set(split[some]))
    assert not run.predictions("oof", 1).exists()  # of the earlier array
    where = {"competition": str(ready.competition_path), "oof": str(run.folder / "arrays" / "oof.npy")}
    narrowed = open_run("mine", assignments=["train.folds=[1]"], **where)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=r"train.folds is \[1\]; expected some of 0, 2, of which oof.npy"):
        narrowed.trained_folds()


def test_folds_of_ones_own(ready: Tiny) -> None:
    ready.settings["group"] = "patient"
    ready.save()
    own = [number % 2 for number in range(12)]  # of every patient one image in each fold
    run = imported(ready, folds=own)
    assert run.trained_folds() == [0, 1]
    assert read(run, "oof", 1)[1] == TRAIN_IDS[1::2]
    assert "the folds of oof.csv leak: 6 groups or sets of near-duplicates are split over several folds" in run.remark
    split = read_folds(run)["fold"].tolist()
    assert "leak" not in imported(ready, folds=split).remark


def test_presence(ready: Tiny) -> None:
    run = imported(ready)
    path = run.folder / "arrays" / "oof.npy"
    presence = np.linspace(0, 1, 12).round(5)
    pd.DataFrame({"image_id": TRAIN_IDS, "presence_thing": presence}).to_csv(path.with_suffix(".csv"), index=False)
    import_arrays(run)
    for fold in run.trained_folds():
        head = read_predictions(run.predictions("oof", fold), ["thing"])[2]
        assert head is not None
        rows = [TRAIN_IDS.index(name) for name in read(run, "oof", fold)[1]]
        assert head[:, 0] == pytest.approx(presence[rows], abs=1e-5)


def test_images_that_decode_could_not_read_are_left_out(ready: Tiny) -> None:
    ready.settings["decode"] = {"on_error": "drop"}
    ready.row("a03")["mask"] = "1 nonsense"
    ready.save()
    imported(ready)
    ready.path("a04").unlink()
    run = imported(ready)
    ids = [name for fold in run.trained_folds() for name in read(run, "oof", fold)[1]]
    assert "a04" not in ids and set(ids) | {"a04"} == set(TRAIN_IDS)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[3, 2, 2] = value
    return array


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "logits": ({"oof": lambda a: np.log(a + 0.01) - np.log(1.01 - a)}, r"these look like logits: apply a sigmoid"),
    "255": ({"oof": lambda a: a * 255}, r"image 0 \(a01\) holds values .* divide by 255"),
    "nan": ({"oof": lambda a: with_value(a, np.nan)}, r"oof.npy image 3 \(a04\) holds NaN"),
    "inf": ({"oof": lambda a: with_value(a, np.inf)}, r"image 3 \(a04\) holds values from .* to inf"),
    "uint8 masks": ({"oof": lambda a: (a > 0.5).astype(np.uint8)}, "holds only 0 and 1.*multiply by 255"),
    "bool": ({"oof": lambda a: a > 0.5}, r"holds bool; expected floats.*astype\(numpy.uint8\) \* 255"),
    "int": ({"oof": lambda a: np.rint(a * 255).astype(np.int64)}, "holds int64; expected floats from 0 to 1"),
    "classes": ({"oof": lambda a: np.stack([a, a], 1)}, "oof.npy is 12×2×20×30; expected images × 1 × rows × columns"),
    "last": ({"oof": lambda a: a[..., None]}, "the classes are the last axis"),
    "flat": ({"oof": lambda a: a[0]}, r"oof.npy holds shape 20×30; expected probabilities"),
    "transposed": ({"oof": lambda a: np.zeros((12, 60, 40), np.float32)}, "60×40 .*it looks transposed"),
    "fewer ids": ({"oof_ids": TRAIN_IDS[:-1]}, "oof.csv has 11 ids, and oof.npy has 12 images"),
    "repeated": ({"oof_ids": ["a02", *TRAIN_IDS[1:]]}, r"oof.csv repeats 1 id, 'a02' \(row 3\)"),
    "unknown": ({"oof_ids": ["b1", "b2", *TRAIN_IDS[2:]]}, r"2 ids, 'b1' \(row 2\), .*ids look like 'a01', 'a02'"),
    "other set": ({"oof_ids": [*TEST_IDS, *TRAIN_IDS[4:]]}, "that no training image has; they belong to the other set"),
    "fold": ({"folds": [*[0] * 11, "x"]}, r"oof.csv row 13: fold is 'x'; expected 0, 1, 2"),
    "test size": ({"test": np.zeros((4, 9, 9), np.uint8), "test_ids": TEST_IDS}, "both must have the same rows"),
    "test ids": ({"test": np.zeros((3, 20, 30), np.uint8), "test_ids": TEST_IDS[1:]}, "lacks 1 of 4 test images.* t1"),
    "test again": ({"test": np.zeros((4, 20, 30), np.uint8), "test_ids": TRAIN_IDS[:4]}, "that no test image has;"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_predictions_that_do_not_fit_are_refused(decoded: Tiny, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one sentence, and the files of an earlier import are unchanged."""
    monkeypatch.setenv("PIPELINE_ROOT", str(decoded.root))
    monkeypatch.setenv("PIPELINE_INPUT", str(decoded.root / "input"))
    changes, words = FAULTS[fault]
    given: dict[str, Any] = {"oof": predictions(decoded)[0]}
    given |= {key: change(given["oof"]) if callable(change) else change for key, change in changes.items()}
    folder = decoded.root / "work" / "tiny" / "mine" / "predictions"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "oof.manifest.json"}
    with pytest.raises(PipelineError, match=words) as caught:
        imported(decoded, **given)
    assert "\n" not in str(caught.value) and len(re.findall(r"\.(?= [A-Z])", str(caught.value))) == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "oof.manifest.json"}
    assert after == before


def test_a_test_array_that_does_not_fit_is_refused_before_tune_runs(ready: Tiny) -> None:
    given: dict[str, Any] = {"oof": predictions(ready)[0], "oof_ids": TRAIN_IDS}
    given |= {"test": np.zeros((3, 20, 30), np.uint8), "test_ids": TEST_IDS[1:]}
    run = bring("mine", competition=str(ready.competition_path), **given)
    with pytest.raises(PipelineError, match="test.csv lacks 1 of 4 test images"):
        stages.run_through(run, "validate")
    assert not run.predictions("oof", 0).exists()


def test_presence_in_one_file_only(ready: Tiny) -> None:
    oof, test = predictions(ready)
    run = imported(ready, test=test, test_ids=TEST_IDS)
    file = run.folder / "arrays" / "oof.csv"
    for values, words in ((0.5, "oof.csv and .*test.csv has presence_thing"), (1.5, "row 2: presence_thing is '1.5'")):
        pd.read_csv(file).assign(presence_thing=values).to_csv(file, index=False)
        with pytest.raises(PipelineError, match=words):
            import_arrays(run)


def test_multiclass() -> None:
    mars = load_competition("mars-terrain")
    logits = np.random.default_rng(0).normal(0, 3, (4, 5, 6, 7)).astype(np.float32)
    right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    index = pd.DataFrame({"image_id": list("abcd")})

    def made(array: np.ndarray) -> ExternalPredictions:
        return ExternalPredictions(Path("oof.npy"), array, index, 4)

    for array in (right, right.astype(np.float16), np.rint(right * 255).astype(np.uint8)):
        external.check_values(made(array), mars)
        (found,) = external.converted(made(array), np.array([2, 0]), mars)
        assert found.dtype == np.float16 and np.abs(found - right[[2, 0]]).max() < 0.5 / 255 + 1e-3
    with pytest.raises(PipelineError, match=r"image 0 \(a\): the classes of a pixel sum to 1 ± 0\.\d\d; .*softmax"):
        external.check_values(made(right * 0.9), mars)
    with pytest.raises(PipelineError, match="apply a softmax over the classes"):
        external.check_values(made(logits), mars)


def test_chunks_are_as_good_as_one(ready: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imported(ready)
    monkeypatch.setattr(external, "CHUNK", 1)
    parts = imported(ready, "parts")
    for fold in whole.trained_folds():
        assert (read(whole, "oof", fold)[0] == read(parts, "oof", fold)[0]).all()
    with pytest.raises(PipelineError, match=r"image 3 \(a04\) holds NaN"):
        imported(ready, oof=with_value(predictions(ready)[0], np.nan))


def test_the_name_of_a_trained_run_is_refused(ready: Tiny) -> None:
    imported(ready)
    trained = ready.run("decode")
    write_text(trained.folder / "recipe.yaml", yaml.safe_dump(describe(trained)))
    with pytest.raises(PipelineError, match="small holds a trained run; give your predictions another name"):
        imported(ready, trained.name)
    assert not (trained.folder / "arrays").exists()
    brought = open_run(str(ready.recipe_path), name="mine")  # and the other way round
    with pytest.raises(PipelineError, match="holds training with other inputs or settings"):
        driver.run_stage(brought, "train")


# --- the command line ------------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(ready: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ready.root)
    given = ("--competition", ready.competition_path)
    assert "--oof needs --competition" in refused("tune", "mine", "--oof", "oof.npy")
    assert "--test can only be used with --oof" in refused("encode", "mine", "--test", "test.npy")
    assert "oof.npy does not exist; expected" in refused("tune", "mine", *given, "--oof", "oof.npy")
    assert "small.yaml is the path of a recipe" in refused("tune", ready.recipe_path, *given, "--oof", "oof.npy")
    np.save("oof.npy", predictions(ready)[0])
    assert "oof.csv does not exist; write it beside oof.npy" in refused("tune", "mine", *given, "--oof", "oof.npy")
    pd.DataFrame({"image_id": TRAIN_IDS}).to_csv("oof.csv", index=False)
    assert "encode needs predictions of the test images" in refused("encode", "mine", *given, "--oof", "oof.npy")
    assert "--folds 1-2: expected numbers separated by commas" in refused("status", ready.recipe_path, "--folds", "1-2")


def test_folds_are_short_for_a_setting(ready: Tiny) -> None:
    told = call("status", ready.recipe_path, "--folds", "0,2")
    assert "fold 0" not in told
    assert f"next: python -m pipeline run {ready.recipe_path} --set 'train.folds=[0,2]'\n" in told
    for name in ("run", "validate", "tune", "predict", "encode", "evaluate", "report"):
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        context = command.make_context(name, [str(ready.recipe_path), "--folds", "0,2"])
        assert context.params["folds"] == "0,2"


def test_recipe_with_arrays(ready: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the recipe, from wherever it is called."""
    np.save(ready.root / "oof.npy", predictions(ready)[0])
    pd.DataFrame({"image_id": TRAIN_IDS}).to_csv(ready.root / "oof.csv", index=False)
    ready.recipe = {"competition": "competition/tiny.yaml", "arrays": {"oof": "oof.npy"}}
    ready.save()
    monkeypatch.chdir("/")
    run = ready.run("decode", "clean", "split", "train", "validate", "predict")
    assert run.name == "small" and run.recipe.image.size == (20, 30)
    assert sum(len(read(run, "oof", fold)[1]) for fold in run.trained_folds()) == 12


# --- missing folds, and ensembles ------------------------------------------------------------------------------------


def trained(tiny: Tiny, name: str, seed: int, folds: tuple[int, ...] = (0, 1, 2)) -> Run:
    """What a run leaves that was trained and predicted, as far as others read it."""
    tiny.recipe["train"] = {"keep": "last"}
    tiny.save()
    run = open_run(str(tiny.recipe_path), name=name)
    for stage in ("decode", "clean", "split"):
        driver.run_stage(run, stage)
    write_text(run.folder / "recipe.yaml", yaml.safe_dump(describe(run)))
    oof, test = predictions(tiny, (32, 32), seed)
    split = read_folds(run)["fold"].to_numpy()
    for fold in folds:
        rows = np.flatnonzero(split == fold)
        put(run.predictions("oof", fold), oof[rows], [TRAIN_IDS[row] for row in rows])
        put(run.predictions("test", fold), test, TEST_IDS)
        step = freshness.Step("train", "train", run.fold_folder(fold) / "manifest.json", (run.folds_file,), (), {})
        freshness.record(step, 0)
        predicted = run.predictions("test", fold).with_suffix(".manifest.json")
        freshness.record(freshness.Step("predict", "predict", predicted, raw_test_files(run), (), {}), 0)
        write_json(run.fold_folder(fold) / "fold.json", FOLD)
    return run


def put(path: Path, array: np.ndarray, ids: list[str]) -> None:
    values = np.rint(array[:, None] * 255).astype(np.uint8)
    write_probabilities(path, values.shape, values.dtype, iter([(values, None)]), ids, ["thing"], lambda count: None)


def ensemble(tiny: Tiny, *words: str, **weights: float | None) -> Run:
    path = tiny.root / "both.yaml"
    path.write_text(yaml.safe_dump({"competition": str(tiny.competition_path), "ensemble": weights}))
    return open_run(str(path), assignments=list(words))


def test_missing_folds_are_named_and_the_others_offered(ready: Tiny) -> None:
    run = trained(ready, "small", 0, folds=(0, 2))
    said = ready.refused("tune")
    assert said == (
        "tune reads the predictions of folds 0–2, and those of 1 are missing: train and predict them, or continue with "
        "--folds 0,2."
    )
    call("tune", ready.recipe_path, "--folds", "0,2")
    scores = pd.read_csv(run.folder / "oof_scores.csv")
    assert set(scores["fold"]) == {0, 2}
    run.predictions("test", 2).unlink()
    with pytest.raises(PipelineError, match="the test predictions of folds 0 and 2, .* 2 are missing.* --folds 0[.]"):
        call("encode", ready.recipe_path, "--folds", "0,2")


def test_nothing_there_is_said_as_before(ready: Tiny) -> None:
    ready.run("decode", "clean", "split")
    said = f"`python -m pipeline run {ready.recipe_path} --to tune` runs the stages that write it"
    assert said in ready.refused("tune")


def test_an_ensemble(ready: Tiny) -> None:
    """Of a trained run and one that was brought; nothing is trained or predicted, and the submission is valid."""
    first = trained(ready, "small", 0)
    oof, test = predictions(ready, (40, 60), 50)
    imported(ready, "mine", oof=oof, test=test, test_ids=TEST_IDS)
    run = ensemble(ready, small=0.25, mine=0.75)
    assert [driver.states(run, stage) for stage in ("train", "validate", "predict")] == [[]] * 3
    recipe = ready.root / "both.yaml"
    assert "next: python -m pipeline run" in call("status", recipe)
    call("run", recipe, "--to", "encode")
    assert run.trained_folds() == [0, 1, 2]
    assert read_json(run.postprocess)["images"] == 12
    assert ": valid" in call("check", run.submission, "--competition", ready.competition_path)
    first.predictions("test", 1).unlink()
    with pytest.raises(PipelineError, match="test predictions of folds 0–2, and those of 1 are missing"):
        driver.run_stage(run, "encode", force=True)


def test_an_ensemble_knows_the_folds_of_all_sessions(ready: Tiny) -> None:
    first, _ = trained(ready, "small", 0), trained(ready, "other", 1)
    write_recipe(open_run(str(ready.recipe_path), name="small", assignments=["train.folds=[2]"]))
    run = ensemble(ready, small=1, other=1)
    wanted = {first.predictions("test", fold) for fold in range(3)}
    assert wanted <= set(blends.files(run, "test"))


def test_members_that_cannot_be_averaged(ready: Tiny) -> None:
    trained(ready, "small", 0)
    trained(ready, "short", 1, folds=(0, 2))

    def said(**weights: float | None) -> str:
        with pytest.raises(PipelineError) as caught:
            driver.states(ensemble(ready, **weights), "decode")
        return str(caught.value)

    assert "ensemble is smal, and work/tiny/smal does not exist" in said(small=1, smal=1)
    assert "Trained so far: short, small." in said(small=1, smal=1)
    assert "which has no out-of-fold predictions of fold 1: finish" in said(small=None, short=None)
    assert "or continue with --folds 0,2." in said(small=None, short=None)
    assert driver.states(ensemble(ready, "train.folds=[0,2]", small=1, short=1), "train") == []
    assert driver.states(ensemble(ready, small=1, short=1), "predict") == []  # which needs no out-of-fold prediction
    test_alone = driver.states(ensemble(ready, small=1, short=1), "decode", subset="test")
    assert {state.step.subset for state in test_alone} == {"test"}
    write_text(ready.root / "work" / "salt" / "salty" / "recipe.yaml", "recipe: {}")
    assert "ensemble names salty, which is a run of salt, and both is a run of tiny" in said(small=1, salty=1)


def test_other_folds_are_never_averaged(ready: Tiny) -> None:
    trained(ready, "small", 0)
    imported(ready, "mine", folds=[number // 4 for number in range(12)])
    with pytest.raises(PipelineError, match="mine, which was not trained on the folds"):
        driver.states(ensemble(ready, small=1, mine=1), "tune")


def test_tune_and_encode_in_python(ready: Tiny) -> None:
    """Of some folds, with settings; the score is that of the decision on these images."""
    oof, test = predictions(ready)
    arguments: dict[str, Any] = {"oof": oof, "oof_ids": TRAIN_IDS, "test": test, "test_ids": TEST_IDS}
    settings = ["train.folds=[0,1]", "tune.method=fixed"]
    run = bring("mine", competition=str(ready.competition_path), assignments=settings, **arguments)
    result = tune(run)
    assert result["images"] == sum(len(read(run, "oof", fold)[1]) for fold in (0, 1)) < 12
    assert result["score"] > 0.9
    assert pd.read_csv(encode(run), keep_default_na=False)["mask"].tolist() == [""] * 4
