"""Where artefacts lie, how they are written, when they are up to date, and what the stage runner does about it."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import MANIFEST, SHAPE, TEST_IDS, Tiny, other_code

from pipeline import stages
from pipeline.core import driver, files, freshness, layout
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, read_json, write_json, write_text, writing
from pipeline.core.freshness import Reason, Step, stale
from pipeline.core.run import Run, describe, open_run
from pipeline.train import stage as train

REPOSITORY = Path(__file__).parents[2]
TORCH_SIDE = {"networks/models.py", "networks/loader.py", "networks/device.py", "networks/transforms.py"}
TRAINING = {"train/losses.py", "train/callbacks.py", "train/module.py", "train/batches/dataset.py"}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    return tmp_path


@pytest.fixture
def step(root: Path) -> Step:
    """A step that ran: one file and one folder in, one file out."""
    (root / "raw").mkdir()
    for name, text in (("table.csv", "a"), ("raw/1.png", "one"), ("raw/2.png", "two"), ("out.npy", "result")):
        (root / name).write_text(text)
    settings = {"train": {"epochs": 3, "folds": (0, 1)}, "augment": [{"Flip": {"p": 0.5}}], "metric": "dice"}
    inputs = (root / "table.csv", root / "raw")
    made = Step("tune", "tune", root / "manifest.json", inputs, (root / "out.npy",), settings)
    freshness.record(made, 1.234)
    return made


def changed(step: Step, **fields: Any) -> Step:
    return Step(**{**step.__dict__, **fields})


def later(path: Path) -> None:
    """Moves a file's time: two writes in a test may fall into one tick of the clock."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


# --- up to date? -----------------------------------------------------------------------------------------------------


def test_a_step_that_ran_is_up_to_date(step: Step) -> None:
    assert stale(step) == []
    manifest = read_json(step.manifest)
    assert manifest["seconds"] == 1.23
    assert set(manifest["inputs"]) == {"table.csv", "raw/1.png", "raw/2.png"}  # relative: the root may move
    assert set(manifest["outputs"]) == {"out.npy"}


def test_never_run(step: Step) -> None:
    step.manifest.unlink()
    assert stale(step) == [Reason("never", "not run yet")]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"inputs": {}}', "null", "\x00"])
def test_a_manifest_that_cannot_be_read_means_not_run(step: Step, text: str) -> None:
    step.manifest.write_text(text)
    assert stale(step) == [Reason("never", "manifest.json cannot be read")]


def test_missing_output(step: Step) -> None:
    step.outputs[0].unlink()
    assert stale(step) == [Reason("output", "out.npy is missing")]


@pytest.mark.parametrize("text", ["", "resul", "resulT"])
def test_an_output_that_differs_from_what_the_step_wrote(step: Step, text: str) -> None:
    step.outputs[0].write_text(text)
    later(step.outputs[0])
    assert stale(step) == [Reason("damaged", "out.npy is not what tune wrote")]
    assert stale(changed(step, editable=step.outputs)) == []


def test_a_touched_output_is_not_a_changed_one(step: Step) -> None:
    later(step.outputs[0])
    assert stale(step) == []


def test_content_behind_the_same_size_and_time(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (step.outputs[0], step.inputs[0]):
        stat = path.stat()
        path.write_text("x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    freshness._hash.cache_clear()  # another process
    assert stale(step) == []
    assert stale(changed(step, sealed=step.outputs)) == [Reason("damaged", "out.npy is not what tune wrote")]
    monkeypatch.setattr(freshness, "_by_content", False)
    freshness.compare_contents()  # --verify
    assert [reason.text for reason in stale(step)] == ["out.npy is not what tune wrote", "table.csv changed"]


@pytest.mark.parametrize("name", ["table.csv", "raw/1.png"])
def test_changed_content(step: Step, root: Path, name: str) -> None:
    (root / name).write_text("x" * len((root / name).read_text()))
    later(root / name)
    assert stale(step) == [Reason("input", f"{name} changed")]


def test_a_touched_file_is_not_a_changed_one(step: Step, root: Path) -> None:
    for name in ("table.csv", "raw/1.png"):
        later(root / name)
    assert stale(step) == []


def test_an_unchanged_file_is_not_read_again(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness, "hash_file", lambda path: pytest.fail(f"{path} was read again"))
    assert stale(step) == []


def test_files_that_come_and_go(step: Step, root: Path) -> None:
    (root / "raw" / "3.png").write_text("three")
    (root / "raw" / ".3.png.partial").write_text("half")
    (root / "table.csv").unlink()
    assert {reason.text for reason in stale(step)} == {"raw/3.png changed", "table.csv changed"}
    (root / "raw" / "3.png").unlink()
    (root / "table.csv").write_text("a")
    assert stale(step) == []


def test_files_behind_a_link_count(step: Step, root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "3.png").write_text("three")
    (root / "raw" / "linked").symlink_to(root / "elsewhere")
    (root / "raw" / "around").symlink_to(root / "raw")
    freshness.record(step, 0)
    assert stale(step) == []
    (root / "elsewhere" / "3.png").write_text("another")
    assert stale(step) == [Reason("input", "raw/linked/3.png changed")]


def test_a_reason_names_the_old_and_the_new_value_of_a_setting(step: Step) -> None:
    settings = {"train": {"epochs": 5, "folds": (0, 1)}, "augment": [], "new": True, "metric": "dice"}
    other = changed(step, settings=settings)
    assert {reason.kind for reason in stale(other)} == {"settings"}
    texts = [reason.text for reason in stale(other)]
    assert texts == ["augment: [{'Flip': {'p': 0.5}}] → []", "new: None → True", "train.epochs: 3 → 5"]


def test_a_new_setting_changes_nothing_while_it_has_its_default(step: Step) -> None:
    settings = step.settings | {"new": {"on": "loader", "sides": (1, 2)}}
    assert {reason.kind for reason in stale(changed(step, settings=settings))} == {"settings"}
    defaults = {"new": {"on": "loader", "sides": (1, 2)}, "metric": "other"}
    assert stale(changed(step, settings=settings, defaults=defaults)) == []
    texts = [reason.text for reason in stale(changed(step, settings=settings, defaults={"new": {"on": "device"}}))]
    assert texts == ["new.on: device → loader", "new.sides: None → [1, 2]"]


def test_changed_code_names_the_modules(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    now = freshness.code("tune")
    gone = {name: value for name, value in now.items() if name != "masks/rle.py"}
    other_code(monkeypatch, {**gone, "masks/metrics.py": "another", "extra.py": "new"})
    assert stale(step) == [Reason("code", "code changed: extra.py, masks/metrics.py, masks/rle.py")]
    other_code(monkeypatch, {f"{name}.py": name for name in "abcdef"})
    (reason,) = stale(step)
    assert reason.text.endswith(f" and {len(now) + len('abcdef') - freshness.NAMED} more")


def test_a_manifest_of_another_version_names_it(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_json(step.manifest)
    del record["version"], record["seal"]  # 0.1.0 wrote none
    write_json(step.manifest, record)
    assert stale(step) == []  # by the same code all the same
    other_code(monkeypatch, {})
    assert stale(step) == [Reason("code", "made by version 0.1.0")]


def test_every_reason_is_listed_at_once(step: Step, root: Path) -> None:
    (root / "out.npy").unlink()
    (root / "table.csv").write_text("bb")
    other = changed(step, settings={**step.settings, "metric": "iou_precision"})
    assert [reason.kind for reason in stale(other)] == ["output", "input", "settings"]
    freshness.record(other, 0)
    assert [reason.kind for reason in stale(other)] == ["output"]


def test_a_moved_root_stays_up_to_date(step: Step, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = root.rename(root.with_name(root.name + "_moved"))
    monkeypatch.setenv("PIPELINE_ROOT", str(new))
    inputs, outputs = (new / "table.csv", new / "raw"), (new / "out.npy",)
    assert stale(changed(step, manifest=new / "manifest.json", inputs=inputs, outputs=outputs)) == []


@pytest.mark.parametrize("stage", ["decode", "clean", "split", "tune", "encode", "report"])
def test_numpy_stages_do_not_depend_on_the_networks_code(stage: str) -> None:
    found = set(freshness.code(stage))
    assert not found & (TORCH_SIDE | TRAINING | {"train/stage.py", "validate/stage.py", "predict/stage.py"})
    assert {f"{stage}/stage.py", "core/files.py", "core/errors.py"} <= found


def test_torch_stages_depend_on_the_networks_code() -> None:
    train, validate, tune, predict = (set(freshness.code(stage)) for stage in ("train", "validate", "tune", "predict"))
    used = {"networks/weights.py", "masks/metrics.py", "masks/geometry.py", "split/folds.py"}
    assert train >= TORCH_SIDE | TRAINING | used
    assert not train & {"clean/stage.py", "split/stage.py", "clean/outliers.py", "masks/overlay.py"}
    assert {"validate/stage.py", "predictions/files.py"} | TORCH_SIDE <= validate
    assert {"predict/stage.py", "predictions/files.py"} | TORCH_SIDE <= predict
    assert not (predict | validate) & TRAINING
    decides = {name for name in predict | validate if name.startswith("tune/") or name == "masks/decision.py"}
    assert not decides  # another search or another decision map predicts nothing again
    assert {"tune/stage.py", "masks/metrics.py", "masks/decision.py", "masks/geometry.py"} <= tune


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the pipeline's name whose stage `tune` leads to each of its other modules in another way."""
    texts = {
        "__init__.py": "from pipeline.behind_the_root import handed_on",
        "behind_the_root.py": "handed_on = 1",
        "tune/__init__.py": "",
        "__main__.py": "not code at all",
        "tune/stage.py": "import pipeline.plain\nfrom pipeline.room import attribute\nfrom .sibling import x\n"
        "def f():\n    from .. import above\n    from pipeline.lazy.deep import y\n",
        "tune/sibling.py": "x = 1",
        "plain.py": '"""Docstring."""\nx = 1  # comment',
        "above.py": "from . import beside",
        "beside.py": "",
        "room/__init__.py": "from pipeline.room.inner import attribute",
        "room/inner.py": "from ..plain import x as attribute",
        "lazy/__init__.py": "",
        "lazy/deep.py": "y = 1",
        "apart.py": "from pipeline import handed_on",
    }
    folder = tmp_path / "pipeline"
    for name, text in texts.items():
        write_text(folder / name, text)
    monkeypatch.setattr(freshness, "PACKAGE", folder)
    clear_code()
    yield folder
    clear_code()


def clear_code() -> None:
    """What another process would not know."""
    freshness.code.cache_clear()
    freshness._hash_and_imports.cache_clear()
    freshness._bytes_hash.cache_clear()


def test_no_import_drops_out_of_the_code(package: Path) -> None:
    expected = {"tune/stage.py", "tune/sibling.py", "plain.py", "above.py", "beside.py"}
    expected |= {"tune/__init__.py", "room/__init__.py", "room/inner.py", "lazy/__init__.py", "lazy/deep.py"}
    assert set(freshness.code("tune")) == expected
    write_text(package / "tune" / "stage.py", "from pipeline import apart")
    clear_code()
    assert set(freshness.code("tune")) == {
        "tune/__init__.py", "tune/stage.py", "apart.py", "__init__.py", "behind_the_root.py"
    }  # fmt: skip


def test_only_code_counts(package: Path) -> None:
    before = freshness.code("tune")
    comments = '# why\n"""Another\ndocstring."""\n\nx = (\n    1\n)\n"""About x."""\n'
    write_text(package / "plain.py", comments)
    clear_code()
    assert freshness.code("tune") == before
    write_text(package / "tune" / "__init__.py", "# a comment")
    clear_code()
    assert freshness.code("tune") == before
    write_text(package / "plain.py", "x = 2")
    clear_code()
    assert freshness._differing(freshness.code("tune"), before) == ["plain.py"]


def test_a_step_asks_for_syntax_trees_only_where_bytes_changed(
    package: Path, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_code()
    freshness.record(step, 0)
    with monkeypatch.context() as patch:
        patch.setattr(freshness, "code", lambda stage: pytest.fail("a syntax tree was asked for"))
        assert stale(step) == []
    for text, reasons in (("x = 1  # another comment", []), ("x = 2", [Reason("code", "code changed: plain.py")])):
        write_text(package / "plain.py", text)
        clear_code()
        assert stale(step) == reasons
    (package / "plain.py").unlink()
    clear_code()
    (reason,) = stale(step)
    assert "plain.py" in reason.text


# --- the layout of work/ ---------------------------------------------------------------------------------------------


def test_a_new_work_folder_gets_the_number_of_its_layout(fake: "Fake", root: Path) -> None:
    driver.run_stage(open_run("sample"), "clean")
    assert read_json(root / "work" / "layout.json") == {"layout": layout.LAYOUT}


def test_a_work_folder_without_a_number_is_taken_over(
    fake: "Fake", root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(root / "work" / "sample" / "images.manifest.json", MANIFEST)
    driver.run_stage(open_run("sample"), "clean")
    assert "made by version 0.1.0 and is converted" in capsys.readouterr().err
    driver.run_stage(open_run("sample"), "clean")
    assert "taken over" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layout": 99}', r"work/ was made by a later version \(layout 99, this version knows \d+\)"),
        ("", r'work/layout\.json cannot be read; expected \{"layout": \d+\}'),
        ("[]", r"work/layout\.json cannot be read"),
        *(
            (f'{{"layout": {number}}}', r"work/layout\.json cannot be read")
            for number in ("Infinity", '"2"', "true", "0")
        ),
    ],
)
def test_a_layout_that_is_not_known_is_refused(fake: "Fake", root: Path, text: str, message: str) -> None:
    write_text(root / "work" / "layout.json", text)
    with pytest.raises(PipelineError, match=message):
        driver.run_stage(open_run("sample"), "clean")
    with pytest.raises(PipelineError, match=message):
        driver.states(open_run("sample"), "clean")
    assert (fake.done, (root / "work" / "layout.json").read_text()) == ([], text)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_writing_replaces_whole_files(root: Path) -> None:
    path = root / "new" / "folder" / "file.txt"
    write_text(path, "first")
    write_json(path, {"ü": [1]})
    assert read_json(path) == {"ü": [1]}
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FileNotFoundError])
@pytest.mark.parametrize("existing", [True, False])
def test_an_error_while_writing_changes_nothing(root: Path, error: type[BaseException], existing: bool) -> None:
    path = root / "file.txt"
    if existing:
        path.write_text("old")
    with pytest.raises(error), writing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [file.read_text() for file in root.iterdir()] == (["old"] if existing else [])


def test_an_unfinished_folder_goes_too(root: Path) -> None:
    with pytest.raises(ValueError, match="stop"), writing(root / "folder") as temporary:
        temporary.mkdir()
        (temporary / "inside").write_text("half")
        raise ValueError("stop")
    assert list(root.iterdir()) == []


def test_a_full_disk_is_a_sentence(root: Path) -> None:
    path = root / "file.txt"
    path.write_text("old")
    message = r"file\.txt could not be written: No space left on device\. Nothing was changed\."
    with pytest.raises(PipelineError, match=message), writing(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert [file.read_text() for file in root.iterdir()] == ["old"]


def test_a_kill_while_writing_changes_nothing(root: Path) -> None:
    path = root / "file.txt"
    path.write_text("old")
    script = (
        "import os, sys; from pathlib import Path; from pipeline.core.files import writing\n"
        "with writing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=REPOSITORY)
    assert killed.returncode == 9
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [file.read_text() for file in root.iterdir()] == ["new"]  # the next writer clears what the kill left


# --- places ----------------------------------------------------------------------------------------------------------


def test_paths_of_a_run(root: Path) -> None:
    run = open_run("sample", assignments=["image.size=[96,128]", "image.channels=3", "folds=mine"])
    work = root / "work" / "sample"
    assert run.input == root / "input" / "sample"
    assert (run.competition_folder, run.folder) == (work, work / "sample")
    assert (run.table, run.outliers) == (work / "images.parquet", work / "outliers.csv")
    assert run.folds_file == root / "folds" / "sample-mine.csv"
    assert run.pixels == work / "pixels_96x128_stretch_rgb"
    assert run.fold_folder(2) == work / "sample" / "fold_2"
    assert run.predictions("oof", 1) == work / "sample" / "predictions" / "oof_fold_1.npy"
    assert (run.postprocess, run.report) == (work / "sample" / "postprocess.json", work / "sample" / "report.html")
    assert (run.submission, run.record) == (root / "submissions" / "sample.csv", root / "submissions" / "sample.json")


def test_names_of_a_run() -> None:
    assert open_run("sample").name == "sample"
    assert open_run("sample", quick=True).name == "sample-quick"
    assert open_run("sample", quick=True, name="other").name == "other"
    assert open_run("sample").folds_file.name == "sample.csv"
    assert open_run("sample").pixels.name.endswith("_grey")


@pytest.mark.parametrize("name", ["a/b", "a b", "..", ".hidden", "a\\b"])
def test_names_that_are_no_file_names(name: str) -> None:
    with pytest.raises(PipelineError, match="expected a plain file name"):
        open_run("sample", name=name)


@pytest.mark.parametrize("name", ["outliers", "pixels_128x128_pad_grey"])
def test_names_of_other_folders(name: str) -> None:
    with pytest.raises(PipelineError, match="this name is reserved"):
        open_run("sample", name=name)


def test_the_submission_of_another_competition_is_not_taken_for_ones_own(root: Path) -> None:
    write_json(root / "submissions" / "mine.json", describe(open_run("tgs-salt")))
    assert open_run("tgs-salt", name="mine").name == "mine"
    with pytest.raises(
        PipelineError, match=r"submissions/mine.csv is a submission to tgs-salt, and mine is a run of sa"
    ):
        open_run("sample", name="mine")


def test_root_and_input_come_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert input_root() == root / "input"
    monkeypatch.setenv("PIPELINE_INPUT", str(root / "elsewhere"))
    assert open_run("sample").input == root / "elsewhere" / "sample"
    assert open_run("sample").folder == root / "work" / "sample" / "sample"
    monkeypatch.setenv("PIPELINE_ROOT", "")
    monkeypatch.delenv("PIPELINE_INPUT")
    assert (files.root(), input_root()) == (REPOSITORY, REPOSITORY / "input")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PIPELINE_ROOT", "relative")
    assert files.root() == root / "relative"


def test_paths_are_shown_relative_to_the_root(root: Path) -> None:
    assert files.shown(root / "work" / "x") == "work/x"
    assert files.shown(root.parent / "other") == str(root.parent / "other")


def test_trained_folds() -> None:
    assert open_run("sample").trained_folds() == [0, 1, 2, 3]
    assert open_run("sample", assignments=["train.folds=[2,0,2]"]).trained_folds() == [0, 2]


@pytest.mark.parametrize("folds", ["[4]", "[-1]", "[0,9]", "[]"])
def test_trained_folds_that_are_not_there(folds: str) -> None:
    with pytest.raises(PipelineError, match=r"train\.folds is \[.*\]; expected numbers from 0 to 3, at least one"):
        open_run("sample", assignments=[f"train.folds={folds}"]).trained_folds()


# --- the stage runner ------------------------------------------------------------------------------------------------


@dataclass
class Fake:
    """A stage of two steps, each copying one input to one output."""

    root: Path
    done: list[str]
    fail: bool = False

    def steps(self, run: Run) -> list[Step]:
        folder = self.root
        return [
            Step("clean", name, folder / f"{name}.json", (folder / f"{name}.in",), (folder / f"{name}.out",), {})
            for name in ("a", "b")
        ]

    def execute(self, run: Run, waiting: list[Step]) -> Iterator[Step]:
        for one in waiting:
            if self.fail and one.title == "b":
                raise PipelineError("b cannot be done")
            self.done.append(one.title)
            write_text(one.outputs[0], one.inputs[0].read_text())
            yield one


@pytest.fixture
def fake(root: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    for name in "ab":
        (root / f"{name}.in").write_text(name)
    stage = Fake(root, [])
    monkeypatch.setattr(driver.importlib, "import_module", lambda name: stage)
    return stage


def test_only_what_is_not_up_to_date_runs(fake: Fake, root: Path) -> None:
    run = open_run("sample")
    driver.run_stage(run, "clean")
    driver.run_stage(run, "clean")
    assert fake.done == ["a", "b"]
    (root / "b.in").write_text("changed")
    driver.run_stage(run, "clean")
    assert fake.done == ["a", "b", "b"]
    driver.run_stage(run, "clean", force=True)
    assert fake.done == ["a", "b", "b", "a", "b"]


def test_an_input_that_changes_while_a_stage_works_is_noticed(fake: Fake, root: Path) -> None:
    run, copy = open_run("sample"), fake.execute

    def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
        for one in copy(run, waiting):
            one.inputs[0].write_text("changed since")
            yield one

    fake.execute = execute  # type: ignore[method-assign]
    driver.run_stage(run, "clean")
    assert [state.reasons[0].text for state in driver.states(run, "clean")] == ["a.in changed", "b.in changed"]
    fake.execute = copy  # type: ignore[method-assign]
    driver.run_stage(run, "clean")
    assert not any(state.reasons for state in driver.states(run, "clean"))


def test_half_written_outputs_do_not_match_the_old_manifest(fake: Fake, root: Path) -> None:
    """An input is changed, the stage is killed when its output is in place, and the input is restored."""
    run, execute = open_run("sample"), fake.execute
    driver.run_stage(run, "clean")
    (root / "a.in").write_text("tried")

    def killed(run: Run, waiting: list[Step]) -> Iterator[Step]:
        next(execute(run, waiting))
        raise KeyboardInterrupt
        yield

    fake.execute = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        driver.run_stage(run, "clean")
    fake.execute = execute  # type: ignore[method-assign]
    (root / "a.in").write_text("a")
    driver.run_stage(run, "clean")
    assert (root / "a.out").read_text() == "a"


def test_a_run_from_a_later_stage_says_what_is_not_up_to_date(
    fake: Fake, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run("sample")
    driver.run_stage(run, "clean")  # all stages are the same one here
    stages.warn_of_stale(run, "tune")
    assert "not up to date" not in capsys.readouterr().err
    (root / "a.in").write_text("changed")
    stages.warn_of_stale(run, "split")
    said = capsys.readouterr().err
    assert "decode is not up to date (a.in changed). This run starts at split" in said
    assert "clean is not up to date" in said


def test_a_manifest_that_is_a_folder_stops_before_the_work(fake: Fake, root: Path) -> None:
    (root / "b.json").mkdir()
    with pytest.raises(
        PipelineError, match=r"b\.json is a folder, and clean writes a file of this name: move the folder away"
    ):
        driver.run_stage(open_run("sample"), "clean")
    assert fake.done == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "x"])
def test_a_damaged_record_of_a_submission_opens_the_run(root: Path, text: str) -> None:
    write_text(root / "submissions" / "sample.json", text)
    assert open_run("sample").name == "sample"


def test_steps_done_before_an_error_stay_done(fake: Fake) -> None:
    run = open_run("sample")
    fake.fail = True
    with pytest.raises(PipelineError, match="b cannot be done"):
        driver.run_stage(run, "clean")
    fake.fail = False
    driver.run_stage(run, "clean")
    assert fake.done == ["a", "b"]


def test_a_missing_input_names_the_command(fake: Fake, root: Path) -> None:
    (root / "b.in").unlink()
    with pytest.raises(PipelineError, match=r"clean reads b\.in, which does not exist; `python -m pipeline run sample"):
        driver.run_stage(open_run("sample"), "clean")
    assert fake.done == []


# --- training is never thrown away unasked ---------------------------------------------------------------------------


def train_inputs(run: Run) -> None:
    for path in train.steps(run)[0].inputs:
        write_text(path, "image_id,fold,use")


def pretend_trained(run: Run, finished: bool) -> None:
    """Fold 0 as training leaves it, finished or interrupted."""
    train_inputs(run)
    step, folder = train.steps(run)[0], run.fold_folder(0)
    names = [path.name for path in step.outputs] if finished else ["last.ckpt", "best.ckpt"]
    for name in names:
        write_text(folder / name, "weights")
    freshness.record(step, 60, folder / ("manifest.json" if finished else "started.json"))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int | None], dict[str, Any]]]:
    """What train was asked to do instead of training."""
    calls: list[tuple[list[int | None], dict[str, Any]]] = []

    def execute(run: Run, waiting: list[Step], **arguments: Any) -> Iterator[Step]:
        calls.append(
            ([step.fold for step in waiting], {name: value for name, value in arguments.items() if name == "force"})
        )
        return iter(())

    monkeypatch.setattr(train, "execute", execute)
    return calls


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("assignment", "said"),
    [("train.epochs=99", "train.epochs: 28 → 99"), ("model.encoder=resnet34", "model.encoder: resnet18 → resnet34")],
)
def test_other_settings_stop(finished: bool, assignment: str, said: str, executed: list[Any]) -> None:
    pretend_trained(open_run("sample"), finished)
    other = open_run("sample", assignments=[assignment])
    with pytest.raises(PipelineError) as caught:
        driver.run_stage(other, "train")
    for part in ("work/sample/sample/fold_0", said, "--name", "--force"):
        assert part in str(caught.value)
    assert executed == []
    assert any((other.fold_folder(0) / name).exists() for name in ("last.safetensors", "last.ckpt"))
    driver.run_stage(other, "train", force=True)
    assert executed == [([0, 1, 2, 3], {"force": True})]


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_stops(finished: bool, executed: list[Any]) -> None:
    run = open_run("sample")
    pretend_trained(run, finished)
    run.folds_file.write_text("image_id,fold,use,another split")
    with pytest.raises(PipelineError, match=r"folds/sample\.csv changed.*--name.*--force"):
        driver.run_stage(run, "train")
    assert executed == []


def test_a_mark_without_a_checkpoint_stops_nothing(executed: list[Any]) -> None:
    """What fails before the first epoch, as a name of no encoder does, leaves a mark and nothing to lose."""
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=False)
    for path in run.fold_folder(0).glob("*.ckpt"):
        path.unlink()
    assert (run.fold_folder(0) / "started.json").exists()
    driver.run_stage(open_run("sample", assignments=["train.folds=[0]", "model.encoder=resnet18"]), "train")
    assert executed == [([0], {})]


def test_a_new_name_trains_beside(executed: list[Any]) -> None:
    pretend_trained(open_run("sample"), finished=True)
    driver.run_stage(open_run("sample", name="other", assignments=["train.epochs=99"]), "train")
    assert executed == [([0, 1, 2, 3], {})]


@pytest.mark.parametrize("finished", [True, False])
def test_the_same_settings_go_on(finished: bool, executed: list[Any]) -> None:
    run = open_run("sample", assignments=["train.workers=3", "train.folds=[0,1]", "predict.tta=hflip"])
    pretend_trained(open_run("sample"), finished)
    driver.run_stage(run, "train")  # what does not shape a fold may change
    assert executed == [([1] if finished else [0, 1], {})]


def test_other_code_keeps_finished_folds(executed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=True)
    other_code(monkeypatch, {"models.py": "another"})
    (state,) = driver.states(run, "train")
    assert state.kept
    assert {reason.kind for reason in state.reasons} == {"code"}
    driver.run_stage(run, "train")
    assert executed == []
    driver.run_stage(run, "train", force=True)
    assert executed == [([0], {"force": True})]


def test_other_code_goes_on_with_an_unfinished_fold(executed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=False)
    other_code(monkeypatch, {"models.py": "another"})
    driver.run_stage(run, "train")
    assert executed == [([0], {})]


@pytest.mark.parametrize("name", ["last.safetensors", "fold.json"])
def test_damaged_training_stops(name: str, executed: list[Any]) -> None:
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=True)
    stat = (run.fold_folder(0) / name).stat()
    (run.fold_folder(0) / name).write_text("flipped"[: stat.st_size])
    os.utime(run.fold_folder(0) / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + (name == "fold.json")))
    freshness._hash.cache_clear()  # another process
    with pytest.raises(PipelineError, match=rf"fold_0 holds finished training that is damaged: .*{name} is not what"):
        driver.run_stage(run, "train")
    assert executed == []
    driver.run_stage(run, "train", force=True)
    assert executed == [([0], {"force": True})]


@pytest.mark.parametrize("name", ["fold.json", "history.json"])
def test_finished_training_without_its_record_stops(name: str, executed: list[Any]) -> None:
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=True)
    (run.fold_folder(0) / name).unlink()
    with pytest.raises(PipelineError, match=rf"fold_0 holds finished training that is damaged: .*{name} is missing"):
        driver.run_stage(run, "train")
    (run.fold_folder(0) / "manifest.json").unlink()
    (run.fold_folder(0) / "started.json").touch()  # of no training that was under way
    with pytest.raises(PipelineError, match=r"fold_0 holds finished training, but .*manifest\.json"):
        driver.run_stage(run, "train")
    assert executed == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_finished_training_without_its_manifest_stops(damage: Any, executed: list[Any]) -> None:
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=True)
    damage(run.fold_folder(0) / "manifest.json")
    with pytest.raises(
        PipelineError, match=r"fold_0/manifest\.json, which records its inputs and settings, is missing or"
    ):
        driver.run_stage(run, "train")
    assert executed == []


def test_a_finished_fold_without_its_weights_is_not_kept(executed: list[Any]) -> None:
    run = open_run("sample", assignments=["train.folds=[0]"])
    pretend_trained(run, finished=True)
    (run.fold_folder(0) / "last.safetensors").unlink()
    driver.run_stage(run, "train")
    assert executed == [([0], {})]


def test_train_needs_what_comes_before(executed: list[Any]) -> None:
    with pytest.raises(PipelineError, match=r"train reads folds/sample\.csv, which does not exist; .*--to train"):
        driver.run_stage(open_run("sample"), "train")
    assert executed == []


def test_the_weights_file_is_an_input(root: Path) -> None:
    file = root / "encoder.safetensors"
    run = open_run("sample", assignments=[f"model.weights={file}"])
    assert file in train.steps(run)[0].inputs
    assert all("imagenet" not in str(path) for path in train.steps(open_run("sample"))[0].inputs)


def test_guard_looks_at_every_fold() -> None:
    run = open_run("sample")
    pretend_trained(run, finished=True)
    states = driver.states(run, "train")
    train.guard(run, states[1:])
    other = SimpleNamespace(step=states[0].step, reasons=[Reason("settings", "loss.dice: 1 → 2")])
    with pytest.raises(PipelineError, match=r"fold_0 .*loss\.dice: 1 → 2"):
        train.guard(run, [*states[1:], other])


# --- a light start ---------------------------------------------------------------------------------------------------


def test_the_numpy_side_never_imports_torch() -> None:
    names = ["__main__", *(f"{stage}.stage" for stage in stages.STAGES), "status", "new.sample", "new.wizard"]
    script = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(f'pipeline.{{name}}')\n"
        "print(json.dumps([name for name in ('torch', 'lightning', 'albumentations') if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    assert json.loads(result.stdout) == []


HEAVY = (
    "torch",
    "lightning",
    "albumentations",
    "pandas",
    "numpy",
    "pyarrow",
    "matplotlib",
    "sklearn",
    "cv2",
    "yaml",
)


def imported_by(*words: str) -> tuple[int, set[str]]:
    """The exit code of a command, and which heavy packages were imported for it."""
    script = (
        "import json, sys\n"
        "from pipeline.__main__ import main\n"
        f"sys.argv = ['pipeline', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit as ended: code = ended.code or 0\n"
        f"print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, text=True, capture_output=True, check=True)
    code, names = json.loads(result.stdout.splitlines()[-1])
    return code, set(names)


def test_help_and_version_import_nothing_heavy() -> None:
    for words in (["--help"], ["run", "--help"], ["--version"]):
        assert imported_by(*words) == (0, set()), words


@pytest.mark.parametrize("words", [["status", "sample"], ["check", "none.csv", "--competition", "sample"],
                                   ["score", "none.csv", "none.csv", "--competition", "sample"]])  # fmt: skip
def test_status_check_and_score_do_without_torch(words: list[str]) -> None:
    code, imported = imported_by(*words)
    assert code == (0 if words[0] == "status" else 2)
    assert not imported & {"torch", "lightning", "albumentations"}


def test_a_split_without_use_makes_training_depend_on_the_outliers() -> None:
    run = open_run("sample")
    write_text(run.folds_file, "image_id,fold\n")
    assert run.outliers in train.steps(run)[0].inputs
    write_text(run.folds_file, "image_id,fold,use\n")
    assert run.outliers not in train.steps(run)[0].inputs


# --- a run of an earlier version -------------------------------------------------------------------------------------

EARLIER = REPOSITORY / "tests" / "data" / "run-0.1.0.tar.gz"
"""work/, folds/ and submissions/ of a run of version 0.1.0 on the competition `tiny`: two folds of two epochs."""


def test_finished_training_of_version_0_1_0_is_taken_over(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(EARLIER) as archive:
        archive.extractall(tiny.root, filter="data")
    model = {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [4, 8]}, "weights": "none"}
    training: dict[str, Any] = {"epochs": 2, "batch_size": 4, "folds": [0, 1], "workers": 0}
    # what were defaults then
    training |= {"keep": "best", "monitor": "score", "early_stopping": 10, "schedule": {"name": "plateau"}}
    # the images' own size: nothing is resized, so the pixel arrays are the same on every CPU
    tiny.recipe |= {"image": {"size": list(SHAPE)}, "model": model, "train": training, "predict": {"tta": "none"}}
    tiny.save()
    folders = [tiny.root / "work" / "tiny" / "small" / f"fold_{fold}" for fold in (0, 1)]
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    folds = (tiny.root / "folds" / "tiny.csv").read_bytes()
    run = tiny.run(*stages.STAGES)
    said = capsys.readouterr().err
    assert "work/ was made by version 0.1.0 and is converted" in said
    assert "train fold 0: kept although made by version 0.1.0" in said
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before
    assert (tiny.root / "folds" / "tiny.csv").read_bytes() == folds
    unfinished = {stage: driver.unfinished(run, stage) for stage in stages.STAGES}
    assert not any(unfinished.values())
    assert len(pd.read_csv(run.submission)) == len(TEST_IDS)
