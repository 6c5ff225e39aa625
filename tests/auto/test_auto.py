"""`auto` looks at the data, chooses a recipe once, and opens it at every call; `new` writes the same choice."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from pipeline.__main__ import main
from pipeline.auto import machine
from pipeline.auto.fingerprint import measure
from pipeline.auto.machine import Machine, this_machine
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run, open_run
from pipeline.decode.readers.base import Listing
from pipeline.masks import rle
from pipeline.new.wizard import write_new
from pipeline.options import RunOptions

SHAPE = (48, 64)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    monkeypatch.setattr("pipeline.auto.record.this_machine", lambda: Machine(cores=2))
    monkeypatch.setattr("pipeline.new.wizard.this_machine", lambda: Machine(cores=2))
    return tmp_path


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def draw(folder: Path, count: int = 12, empty: int = 3) -> None:
    """Grey images with two squares that touch each other at a corner, and a mask file per square."""
    for number in range(count):
        random = np.random.default_rng(number)
        image = cv2.resize(random.integers(0, 160, (6, 8), np.uint8), SHAPE[::-1])
        for position in range(2) if number >= empty else ():
            mask = np.zeros(SHAPE, np.uint8)
            start = 8 + 8 * position
            mask[start : start + 8, start : start + 8] = 255
            image[mask > 0] = 200
            write(folder / "masks" / f"i{number}_{position}.png", mask)
        write(folder / "train" / f"i{number}.png", image)
        write(folder / "test" / f"t{number}.png", cv2.resize(random.integers(0, 160, (6, 8), np.uint8), SHAPE[::-1]))


@pytest.fixture
def cells(root: Path) -> Path:
    """The YAML of a competition of twelve images, three of them without objects."""
    draw(root / "input" / "cells")
    settings = {
        "title": "Cells", "train": {"images": "train/{id}.png", "masks": "masks/{id}_*.png"},
        "test": {"images": "test/{id}.png"}, "classes": ["cell"], "shape": [*SHAPE], "metric": "dice",
        "columns": {"absent": "empty"}, "split": {"folds": 3},
    }  # fmt: skip
    path = root / "competitions" / "cells.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(settings))
    return path


def draw_table(folder: Path) -> None:
    """The same images with run lengths, one row per object, in place of mask files."""
    draw(folder)
    rows = ["id,rle", *(f"i{number}," for number in range(3))]
    for path in sorted((folder / "masks").iterdir()):
        rows.append(f"{path.stem.split('_')[0]},{rle.encode(cv2.imread(str(path), 0) // 255)}")
    shutil.rmtree(folder / "masks")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")


def change(path: Path, **settings: object) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pipeline", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def opened(**options: object) -> Run:
    return RunOptions(competition="cells", **options).open("auto")  # type: ignore[arg-type]


# --- the fingerprint -------------------------------------------------------------------------------------------------


def test_fingerprint(root: Path, cells: Path) -> None:
    found = measure(load_competition("cells"), root / "input/cells", Machine())
    assert (found.images, found.sampled, found.groups, found.size, found.one_size) == (12, 12, None, SHAPE, True)
    assert (found.channels, found.photographs, found.eight_bits, found.windows) == (1, False, True, False)
    assert (found.empty_share, found.regions, found.instances, found.touching) == (0.25, 1, True, 0.5)
    assert found.mask_share == pytest.approx(128 / 3072, abs=1e-4)
    assert found.object_share == pytest.approx((128 / 3072) ** 0.5, abs=1e-4)
    assert found.class_images == {"cell": 0.75}
    assert found.class_pixels == {"cell": pytest.approx(0.75 * 128 / 3072, abs=1e-4)}
    assert json.loads(json.dumps(found.to_json()))["machine"]["cores"] == 1
    assert list(found.lines())[:2] == [
        "12 training images, 48×64, 1 channel",
        "1 class (binary); 25 % of the masks are empty; the others cover 4 % of the image (median), in 1 region",
    ]
    lines = list(replace(found, images=1, empty_share=1.0).lines())
    assert lines[:2] == ["1 training image, 48×64, 1 channel", "1 class (binary); all masks are empty"]


def test_fingerprint_of_photographs_and_of_a_sample(root: Path, cells: Path) -> None:
    write(root / "input/cells/train/i5.png", np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), np.uint8))
    found = measure(load_competition("cells"), root / "input/cells", Machine())
    assert (found.channels, found.photographs) == (3, True)
    assert measure(load_competition("cells"), root / "input/cells", Machine(), sample=4).sampled == 4


def test_unreadable_files(root: Path, cells: Path) -> None:
    (root / "input/cells/train/i5.png").write_text("no picture")
    assert measure(load_competition("cells"), root / "input/cells", Machine()).sampled == 11
    with pytest.raises(PipelineError, match="No training image of cells can be read"):
        measure(load_competition("cells"), root / "input/cells", Machine(), Listing([], []))


def test_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().gpu == "" and "CPU core" in this_machine().title
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\necho 'NVIDIA L4, 23034, 8.9'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert (this_machine().title, this_machine().gpu_memory, this_machine().bf16) == ("2 × Tesla T4", 15.0, False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (this_machine().title, this_machine().bf16) == ("NVIDIA L4", True)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine._gpus() == []


# --- auto ------------------------------------------------------------------------------------------------------------


def test_auto_chooses_once(root: Path, cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened()
    assert (run.name, run.recipe.model.encoder, run.recipe.model.presence) == ("cells-auto", "resnet34", True)
    assert (run.recipe.image.size, run.recipe.image.fit) == ((64, 64), "pad")
    assert run.command() == "python -m pipeline run auto --competition cells"
    told = capsys.readouterr().err
    assert "portfolio/masks-scratch: one mask per class and image" in told
    assert "model.presence true: 25 % of the masks are empty" in told
    assert "recorded in work/cells/auto.json" in told
    record = json.loads((root / "work/cells/auto.json").read_text())
    assert record["fingerprint"]["images"] == 12
    assert {"settings": {"model.presence": True}, "reason": "25 % of the masks are empty"} in record["reasons"]

    quick = opened(quick=True)
    assert (quick.name, quick.recipe.train.epochs, quick.recipe.image.fit) == ("cells-auto-quick", 3, "stretch")
    assert opened(name="mine", assignments=["train.epochs=5"]).recipe.train.epochs == 5
    assert capsys.readouterr().err == ""

    draw(root / "input" / "cells", 12, 0)  # now no mask is empty
    assert opened().recipe.model.presence
    warning = " ".join(capsys.readouterr().err.split())
    assert "auto: the data changed since the recipe for cells was chosen. It is kept; now the choice would" in warning
    assert "model.presence null instead of true" in warning and "delete work/cells/auto.json" in warning
    (root / "work/cells/auto.json").unlink()
    assert not opened().recipe.model.presence


def test_a_damaged_choice(root: Path, cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened()
    path = root / "work/cells/auto.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"state": []}))
    assert opened().recipe.model.presence
    path.write_text(json.dumps(record | {"recipe": "portfolio/unknown"}))
    with pytest.raises(
        PipelineError, match=r"auto.json \(you can delete it .*: There is no recipe named `portfolio/unk"
    ):
        opened()
    capsys.readouterr()
    path.write_text("{")
    assert opened().recipe.model.presence and json.loads(path.read_text())["recipe"] == record["recipe"]
    assert "work/cells/auto.json is damaged. A recipe for cells is chosen again." in capsys.readouterr().err


def test_weights_that_are_installed_later_are_mentioned(
    cells: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened()
    capsys.readouterr()
    monkeypatch.setattr("pipeline.auto.record.this_machine", lambda: Machine(cores=2, has_weights=True))
    assert opened().recipe.model.encoder == "resnet34"
    warning = " ".join(capsys.readouterr().err.split())
    assert "the GPU or the installed weights changed" in warning and "would be portfolio/masks." in warning


def test_a_change_without_effect_is_not_mentioned(root: Path, cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened()
    capsys.readouterr()
    draw(root / "input" / "cells", 13, 3)
    (root / "input/cells/train/i12.png").write_bytes(b"")
    change(cells, metric="iou")
    opened()
    assert "the data" not in capsys.readouterr().err
    (root / "input/cells").rename(root / "input/elsewhere")
    assert opened().recipe.model.presence  # e.g. on a machine that only predicts


def test_the_competitions_own_settings_win(root: Path, cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(cells, baseline={"train": {"epochs": 7}, "base": "portfolio/instances-scratch"})
    run = opened()
    assert (run.recipe.train.epochs, run.recipe.model.instances, run.recipe.image.size) == (7, "border", (64, 64))
    assert "train.epochs 7: as the competition's YAML says" in capsys.readouterr().err
    (root / "work/cells/auto.json").unlink()
    change(cells, baseline={"base": "portfolio/tiles-scratch", "image": {"size": [32, 600]}})
    assert (opened().recipe.image.stored, opened().recipe.image.fit) == ((32, 600), "stretch")
    assert opened(quick=True).recipe.image.stored == (32, 32)
    change(cells, baseline={"base": "tgs-salt", "model": {"weights": "none"}})
    assert open_run("cells").recipe.train.epochs == 42


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"base": "portfolio/mask"}, "There is no recipe named `portfolio/mask`"),
        ({"base": "auto"}, "There is no recipe named `auto`"),
        ({"image": {"size": 7}}, "competition cells.yaml, baseline.image: `size` is 7: expected a list"),
        ({"image": 5}, "work/cells/auto.json and `baseline` of competition cells: `image` is 5: expected a mapping"),
        ({"quick": 5}, "`baseline` of competition cells: `quick` is 5: expected a mapping"),
    ],
)
def test_faults_in_the_competitions_own_settings(
    root: Path, cells: Path, baseline: dict[str, object], message: str
) -> None:
    change(cells, baseline=baseline)
    with pytest.raises(PipelineError, match=message):
        opened()
    with pytest.raises(PipelineError):
        open_run("cells")
    change(cells, baseline={"base": None})
    assert opened().recipe.model.presence  # no choice by a faulty setting was recorded


def test_what_is_missing_is_said(root: Path, cells: Path) -> None:
    with pytest.raises(PipelineError, match="auto chooses a recipe for a competition: add --competition NAME"):
        RunOptions().open("auto")
    with pytest.raises(PipelineError, match="no recipe was chosen for cells yet: `python -m pipeline run auto"):
        open_run("auto", competition="cells")
    with pytest.raises(PipelineError, match="recipe masks.yaml: `competition` is missing; write it"):
        open_run("portfolio/masks")
    (root / "input/cells").rename(root / "input/elsewhere")
    with pytest.raises(PipelineError, match="input/cells"):
        opened()
    assert not (root / "work/cells/auto.json").exists()


def test_a_recipe_on_another_competition(root: Path, cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run("sample", quick=True, competition="cells")
    assert (run.name, run.competition.name, run.recipe.train.epochs) == ("cells-sample-quick", "cells", 4)
    assert run.recipe.takes is None
    monkeypatch.chdir(root / "competitions")
    assert open_run("sample", competition="cells.yaml").folder == root / "work/cells/cells-sample"
    assert open_run("cells.yaml").name == "cells"
    assert open_run("sample", competition="sample").name == "sample"


def test_a_recipe_based_on_a_competition(root: Path, cells: Path) -> None:
    change(cells, baseline={"base": "portfolio/masks-scratch", "train": {"epochs": 7}})
    for name, base in (("by_name", "cells"), ("by_path", "../competitions/cells.yaml")):
        (root / "recipes").mkdir(exist_ok=True)
        (root / f"recipes/{name}.yaml").write_text(f"base: {base}\nimage: {{channels: 1}}\n")
        run = open_run(name)
        assert (run.name, run.competition.name, run.recipe.train.epochs) == (name, "cells", 7)
        assert run.recipe.model.encoder == "resnet34" and run.recipe.loss.dice.per_image  # type: ignore[union-attr]


def test_commands_take_auto(
    root: Path, cells: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "run", "auto", "--competition", "cells", "--to", "split") == 0
    assert (root / "folds/cells.csv").exists()
    assert command(monkeypatch, "decode", "auto", "--competition", "cells") == 0
    capsys.readouterr()
    assert command(monkeypatch, "status", "auto", "--competition", "cells") == 0
    assert "next: python -m pipeline run auto --competition cells" in capsys.readouterr().out


# --- new -------------------------------------------------------------------------------------------------------------


def test_new_and_auto_agree(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_table(root / "raw")
    written = write_new("found", root / "raw", root, assignments=["metric=dice"])
    text = written.competition.read_text()
    assert "  base: portfolio/masks-scratch             # one mask per class and image; from scratch" in text
    assert "    presence: true                          # 25 % of the masks are empty" in text
    assert "recipe      portfolio/masks-scratch: one mask per class and image" in written.lines()
    ours, theirs = open_run("found").recipe, RunOptions(competition="found").open("auto").recipe
    assert ours.model_dump(exclude={"name"}) == theirs.model_dump(exclude={"name"})
    assert (ours.name, theirs.name) == ("found", "found-auto")
    assert RunOptions(competition="found", quick=True).open("auto").recipe.image == open_run("found", True).recipe.image


def test_new_names_the_recipe_for_metrics_of_objects(root: Path) -> None:
    draw_table(root / "raw")
    written = write_new("found", root / "raw", root, assignments=["metric=null"])
    note = (
        "if the metric scores objects one by one, set `base: portfolio/instances-scratch`, because 50 % of them touch"
    )
    assert any(line.startswith(note) for line in written.draft.notes)
    scored = write_new("scored", root / "raw", root, assignments=["metric=instance_precision"])
    assert scored.choice and scored.choice.recipe == "portfolio/instances-scratch"
    assert open_run("scored").recipe.model.instances == "border"


def test_new_does_not_shadow_a_recipe(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.core.config.raw_layouts.FOLDER", root / "competitions")
    draw(root / "raw")
    with pytest.raises(PipelineError, match="there is a recipe of this name, .*baseline.yaml"):
        write_new("baseline", root / "raw")
    with pytest.raises(PipelineError, match="no competition can have this name"):
        write_new("auto", root / "raw")


def test_new_leaves_the_metric_of_class_maps_to_be_filled_in(root: Path) -> None:
    for number in range(6):
        random = np.random.default_rng(number)
        write(root / "raw" / "train" / f"i{number}.png", random.integers(0, 255, SHAPE, np.uint8))
        write(root / "raw" / "masks" / f"i{number}.png", random.integers(0, 5, SHAPE, np.uint8))
    written = write_new("maps", root / "raw", root, assignments=["metric=null"])
    assert written.choice and written.choice.recipe == "portfolio/classes-scratch"
