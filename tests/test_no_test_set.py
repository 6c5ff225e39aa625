"""A competition without a test set: what runs, what is said, and that any folder can be predicted later."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import Tiny
from predicted import RECIPE, with_weights
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.predict_folder import _images_in


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """A run of two folds that nobody trained, of a competition of training images alone."""
    root = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        tiny.settings |= {"test": None, "sample_submission": None}
        tiny.recipe = {"competition": str(tiny.competition_path), **RECIPE, "predict": {"batch_size": 3}}
        tiny.save()
        with_weights(tiny.run("decode", "clean", "split"))
        yield tiny


def command(tiny: Tiny, *arguments: str | Path) -> tuple[int, str]:
    """The exit code and the output of a command on the recipe."""
    first, *others = map(str, arguments)
    result = CliRunner().invoke(app, [first, str(tiny.recipe_path), *others])
    if isinstance(result.exception, Exception):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_a_run_ends_with_the_report(tiny: Tiny) -> None:
    code, told = command(tiny, "run", "--from", "validate")
    assert code == 0
    assert "(of the held-out images: there is no test set)" in told
    assert "submission      none: there is no test set (`test: null`); expect the honest score on new images" in told
    page = (tiny.root / "work/tiny/small/report.html").read_text()
    assert "There is no submission: the competition has no test set." in page
    assert not (tiny.root / "submissions").exists() and not (tiny.root / "work/tiny/test_images.parquet").exists()
    code, told = command(tiny, "status")
    assert told.count("the competition has no test set") == 3


@pytest.mark.parametrize("stage", ["predict", "encode", "evaluate"])
def test_stages_of_test_images(tiny: Tiny, stage: str) -> None:
    for arguments in ((stage,), ("run", "--to", stage)):
        code, told = command(tiny, *arguments)
        assert code == 2
        assert told.startswith(f"{stage} needs a test set, but the competition tiny has none (`test: null`). ")
        assert "Name a test set in the YAML, or predict any folder of images: `" in told
        assert "--images FOLDER`." in told


def test_any_folder_is_predicted(tiny: Tiny, tmp_path: Path) -> None:
    command(tiny, "run", "--from", "validate")
    shutil.copytree(tiny.input / "test", tmp_path / "new")
    code, _ = command(tiny, "predict", "--images", tmp_path / "new", "--to", tmp_path / "new.csv")
    assert code == 0
    assert pd.read_csv(tmp_path / "new.csv")["id"].tolist() == ["t1", "t2", "t3", "t4"]
    result = CliRunner().invoke(app, ["check", str(tmp_path / "new.csv"), "--competition", str(tiny.competition_path)])
    assert str(result.exception).startswith("the competition tiny has no test set (`test: null`) and therefore no ")


def test_submit_and_score_say_that_there_is_no_test_set(tiny: Tiny) -> None:
    code, told = command(tiny, "submit")
    assert code == 2 and "has no test set (`test: null`), so there is no submission" in told
    some = tiny.root / "some.csv"
    result = CliRunner().invoke(app, ["score", str(some), str(some), "--competition", str(tiny.competition_path)])
    assert "has no test set (`test: null`) and therefore no submissions" in str(result.exception)


def test_ids_of_a_folder_are_made_as_those_of_training(tmp_path: Path) -> None:
    train = {"images": "train/{case}/scans/{slice}.png", "id": "{case}_{slice}", "masks": "train.csv"}
    settings = {"name": "a", "title": "A", "train": train, "test": None, "classes": ["a"], "metric": "dice"}
    competition = RleCsv.model_validate(settings)
    for case in ("c1", "c2"):
        for name in ("s1", "s2"):
            path = tmp_path / "hidden" / case / "scans" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    ids = ["c1_s1", "c1_s2", "c2_s1", "c2_s2"]
    assert list(_images_in(tmp_path / "hidden", competition)) == ids
    (tmp_path / "hidden").rename(tmp_path / "train")
    assert list(_images_in(tmp_path, competition)) == ids
    (tmp_path / "other.png").write_bytes(b"")
    assert "train/c1/scans/s1" in _images_in(tmp_path, competition)
