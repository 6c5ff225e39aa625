"""`make-competition`: what it writes, its splits, scores that agree, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TRAIN_IDS, Tiny, encoded
from made_competitions import decoded, folder_of_masks, grouped, made, random_masks, refused
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.encode import scoring
from pipeline.encode.submission import expected_by_name
from pipeline.masks import rle
from pipeline.teach import make_competition
from pipeline.teach.competition_metric import check_metric, metric_text
from pipeline.teach.competition_split import plan, together
from pipeline.teach.examples import Source, read_examples


def test_what_is_written(tiny: Tiny) -> None:
    grouped(tiny)
    folder = made(tiny, "--seed", "3")
    key = pd.read_csv(folder / "teacher" / "key.csv", dtype=str, keep_default_na=False)
    assert sorted(key["source_id"]) == TRAIN_IDS and key["id"].str.fullmatch("[bcdfghjkmnpqrstvwxz]{8}").all()
    sides = key.groupby("source_group")[["subset", "Usage"]].nunique()
    assert (sides == 1).all(axis=None) and set(key["Usage"]) == {"", "Public", "Private"}
    students = folder / "students"
    for row in key.itertuples():
        stored = cv2.imread(str(students / str(row.subset) / f"{row.id}.png"), cv2.IMREAD_UNCHANGED)
        assert (stored == tiny.images[str(row.source_id)]).all()
    train = pd.read_csv(students / "train.csv", keep_default_na=False).set_index("id")["rle"]
    solution = pd.read_csv(folder / "teacher" / "solution.csv", keep_default_na=False).set_index("id")
    for row in key.itertuples():
        text = train[row.id] if row.subset == "train" else solution["rle"][row.id]
        assert (rle.decode(text, (40, 60)) == tiny.masks[str(row.source_id)]).all()
    assert list(solution.columns) == ["rle", "height", "width", "Usage"]
    sample = pd.read_csv(students / "sample_submission.csv")
    assert sample["id"].tolist() == solution.index.tolist() == sorted(solution.index) and set(sample["rle"]) == {"1 1"}
    settings = load_competition(str(students / "competitions" / "course.yaml"))
    assert (settings.group, settings.shape, settings.metric, settings.classes) == ("group", (40, 60), "dice", ["thing"])
    page = (students / "DATA.md").read_text()
    assert "![Training images with their true masks](data.png)" in page and "images are of" in page
    assert cv2.imread(str(students / "data.png")).shape[1] > 500


def test_the_metric_and_the_leaderboard_agree(tiny: Tiny) -> None:
    folder = made(tiny, "--seed", "1", "--test", "0.5", "--public", "0.4")
    path = decoded(folder, tiny)
    truth = folder / "teacher" / "solution.csv"
    submissions = tiny.root / "subs"
    submissions.mkdir()
    solution = pd.read_csv(truth, keep_default_na=False)
    solution[["id", "rle"]].to_csv(submissions / "perfect.csv", index=False)
    shifted = [rle.encode(np.roll(rle.decode(text, (40, 60)), 3, 1)) for text in solution["rle"]]
    solution[["id"]].assign(rle=shifted).to_csv(submissions / "shifted.csv", index=False)
    done = CliRunner().invoke(app, ["leaderboard", str(submissions), str(truth), "--competition", path])
    assert done.exit_code == 0, done.exception
    board = pd.read_csv(tiny.root / "work" / "course" / "leaderboard.csv").set_index("name")
    assert board.loc["perfect", ["public", "private"]].tolist() == [1, 1]
    parts = {name: solution["Usage"].eq(name.capitalize()) for name in ("public", "private")}
    space: dict[str, Any] = {}
    exec((folder / "students" / "metric.py").read_text(), space)
    predicted = pd.read_csv(submissions / "shifted.csv")
    true = pd.read_csv(truth)
    for name, chosen in parts.items():
        assert 0 < chosen.sum() < len(chosen) and f"{chosen.sum()} images public" in done.output or name == "private"
        score = space["score"](true[chosen], predicted[chosen], "id")
        assert score == pytest.approx(board.loc["shifted", name], abs=1e-6) and 0 < score < 1
    again = CliRunner().invoke(
        app, ["leaderboard", str(submissions), str(truth), "--competition", path, "--public", "0.3"]
    )
    assert "the column Usage of" in str(again.exception) and "omit --public" in str(again.exception)
    solution.assign(Usage=["Public"] * (len(solution) - 1) + ["Secret"]).to_csv(tiny.root / "odd.csv", index=False)
    wrong = CliRunner().invoke(
        app, ["leaderboard", str(submissions), str(tiny.root / "odd.csv"), "--competition", path]
    )
    assert f"row {len(solution) + 1}: Usage is 'Secret'; expected Public, Private or Ignored" in str(wrong.exception)


def test_which_rows_are_used_for_what(tiny: Tiny) -> None:
    tiny.run("decode")
    _, want = expected_by_name(str(tiny.competition_path))
    truth = tiny.root / "solution.csv"
    table = pd.DataFrame({"id": ["t1", "t2", "t3", "t4"], "mask": ""})
    table.to_csv(truth, index=False)
    assert scoring.truth_usage(truth, want) is None
    table.assign(Usage=["Public", "private", " Private", "Ignored"]).to_csv(truth, index=False)
    assert scoring.truth_usage(truth, want) == {"t1": "Public", "t2": "Private", "t3": "Private"}
    for column in ("usage", " USAGE "):
        table.assign(**{column: ["Public", "Private", "Ignored", "Public"]}).to_csv(truth, index=False)
        assert scoring.truth_usage(truth, want) == {"t1": "Public", "t2": "Private", "t4": "Public"}
    table.assign(Usage="Private").to_csv(truth, index=False)
    with pytest.raises(PipelineError, match="no image is Public in the column Usage"):
        scoring.truth_usage(truth, want)
    table.assign(id=["t1", "t1", "t3", "t4"], Usage=["Public", "Private"] * 2).to_csv(truth, index=False)
    with pytest.raises(PipelineError, match="row 3: image t1 is Private here and Public before"):
        scoring.truth_usage(truth, want)


@pytest.mark.parametrize(
    "metric", ["dice", "iou", "iou_precision", "f_beta(beta=2)", "dice(over=data_set)", "mean_iou"]
)
def test_metric_py_is_the_built_in_metric(metric: str, tiny: Tiny) -> None:
    maps = metric == "mean_iou"
    tiny.settings |= {"train": {"images": "images/{id}.png", "masks": "masks/{id}.png"}, "test": None, "metric": metric}
    tiny.settings |= {"classes": {"ground": 0, "cell": 1, "nerve cell": 2} if maps else ["cell"], "shape": None}
    tiny.settings |= {"kind": "multiclass"} if maps else {}
    for name in ("sample_submission", "columns"):
        del tiny.settings[name]
    tiny.save()
    folder_of_masks(tiny, 2, maps).rename(tiny.root / "input" / "raw")
    tiny.settings["input"] = "raw"
    tiny.save()
    folder = made(tiny, "--seed", "1", "--masks", "png" if maps or metric == "iou" else "csv")
    path = decoded(folder, tiny)
    competition, want = expected_by_name(path)
    truth = folder / "teacher" / "solution.csv"
    solution = pd.read_csv(truth, keep_default_na=False)
    if maps:
        assert solution["id"].str.contains("_[12]$").all()
    texts = [rle.encode(np.roll(rle.decode(text, (20, 30)), 1, 1)) for text in solution["rle"]]
    submission = tiny.root / "s.csv"
    solution[["id"]].assign(rle=texts).to_csv(submission, index=False)
    built_in, _ = scoring.score(submission, truth, competition, want)
    data = yaml.safe_load(Path(path).read_text())
    data["metric"] = {"file": "metric.py", "tune": metric, "solution": {"height": "{height}", "width": "{width}"}}
    other = Path(path).with_name("course.yaml")
    other.write_text(yaml.safe_dump(data))
    competition, want = expected_by_name(str(other))
    published, _ = scoring.score(submission, truth, competition, want)
    assert published == pytest.approx(built_in, abs=1e-12) and 0 < built_in < 1


def test_metric_py_refuses(tiny: Tiny) -> None:
    space: dict[str, Any] = {}
    exec(metric_text("Cells", check_metric("dice", False), ["cell"], False), space)
    solution = pd.DataFrame({"id": ["a", "b"], "rle": ["1 2", None], "height": 2, "width": 3})
    for rows, message in (
        ({"id": ["a"], "rle": ["1 2"]}, "The ids differ .* for instance b"),
        ({"id": ["a", "c"], "rle": ["1 2", ""]}, "The ids differ"),
        ({"id": ["a", "a"], "rle": ["1 2", ""]}, "The id a is repeated"),
        ({"id": ["a", "b"], "mask": ["1 2", ""]}, "needs the columns id and rle"),
        ({"id": ["a", "b"], "rle": ["1 x", ""]}, "mask of a holds something else than whole numbers"),
        ({"id": ["a", "b"], "rle": ["1 2 3", ""]}, "mask of a is no list"),
        ({"id": ["a", "b"], "rle": ["0 2", ""]}, "mask of a is no list"),
        ({"id": ["a", "b"], "rle": ["1 7", ""]}, "mask of a is no list .* between 1 and 6"),
        ({"id": ["a", "b"], "rle": ["6 2", ""]}, "end behind pixel 6"),
        ({"id": ["a", "b"], "rle": ["1 3 2 1", ""]}, "The runs of a overlap"),
        ({"id": ["a", "b"], "rle": [f"1 {2**62} {2**62} {2**62}", ""]}, "mask of a is no list"),
    ):
        with pytest.raises(space["ParticipantVisibleError"], match=message):
            space["score"](solution, pd.DataFrame(rows), "id")
    assert space["score"](solution, pd.DataFrame({"id": ["b", "a"], "rle": [None, "1 2"]}), "id") == 1


def test_near_duplicates_stay_on_one_side(tiny: Tiny) -> None:
    grouped(tiny)
    tiny.path("a05").write_bytes(encoded(np.clip(tiny.images["a01"].astype(int) + 1, 0, 255).astype(np.uint8)))
    source = Source(load_competition(str(tiny.competition_path)), tiny.input)
    examples = read_examples(source)
    settings = source.competition.clean.duplicates
    names = [one.item.image_id for one in examples]
    alone, joined = together(examples, None), together(examples, settings)
    first, copy, same_patient = (names.index(name) for name in ("a01", "a05", "a06"))
    assert alone[first] != alone[copy] == alone[same_patient] and joined[first] == joined[copy] == joined[same_patient]
    for seed in range(20):
        planned = plan(examples, 0.4, 0.5, seed, settings)
        assert len({(planned.test[place], planned.public[place]) for place in (first, copy, same_patient)}) == 1


def test_shares_and_seeds(tiny: Tiny) -> None:
    first, again = made(tiny, "--seed", "4", name="one"), made(tiny, "--seed", "4", "--name", "one", name="two")
    assert (first / "one.zip").read_bytes() == (again / "one.zip").read_bytes()
    third, fourth = made(tiny, name="three"), made(tiny, name="four")
    seeds = [json.loads((folder / "teacher" / "made.json").read_text())["seed"] for folder in (third, fourth)]
    assert seeds[0] != seeds[1]
    counts = json.loads((first / "teacher" / "made.json").read_text())["counts"]
    assert counts == {"train": 8, "test": 4, "public": 1, "private": 3, "sets": 12}
    key = pd.read_csv(first / "teacher" / "key.csv", keep_default_na=False)
    empty = key["source_id"].map({name: not mask.any() for name, mask in tiny.masks.items()})
    assert empty[key["subset"] == "test"].sum() == 1  # of three empty masks among twelve


def test_few_groups(tiny: Tiny) -> None:
    for place, row in enumerate(tiny.rows):
        row["patient"] = "p0" if place < 6 else "p1"
    grouped(tiny)
    assert "--public 0.3: all 6 images must stay together" in refused(tiny)
    for place, row in enumerate(tiny.rows):
        row["patient"] = f"p{place // 4}"
    tiny.save()
    assert "--public 0.3: all 4 images must stay together" in refused(tiny)
    tiny.settings["group"] = None
    tiny.save()
    folder = made(tiny, "--group", "age", name="by-age")
    assert "group" in pd.read_csv(folder / "students" / "train.csv")


def test_a_folder_of_images_and_masks(tiny: Tiny) -> None:
    folder = made(tiny, "--set", "metric=iou", "--masks", "png", source=folder_of_masks(tiny, 1, False))
    students = folder / "students"
    settings = load_competition(str(students / "competitions" / "course.yaml"))
    assert settings.metric == "iou" and not (students / "train.csv").exists()
    assert len(list((students / "train_masks").glob("*.png"))) == len(list((students / "train").glob("*.png"))) == 11
    decoded(folder, tiny)


@pytest.mark.parametrize(
    ("dtype", "channels", "suffix"), [(np.uint16, 1, "png"), (np.uint8, 4, "npy"), (float, 2, "npy")]
)
def test_other_images(dtype: type, channels: int, suffix: str, tiny: Tiny) -> None:
    """16 bits, many channels, and floats, which become 16 bits."""
    rng = np.random.default_rng(2)
    images = rng.random((16, 20, 30, channels))
    images = (images * np.iinfo(dtype).max).astype(dtype) if dtype is not float else images.astype(np.float32)
    masks = np.stack([random_masks(rng, 1)[0] for _ in images])
    np.save(tiny.input / "x.npy", images)
    np.save(tiny.input / "y.npy", masks)
    settings = {"title": "Arrays", "reader": "arrays", "train": {"images": "x.npy", "masks": "y.npy"}, "test": None}
    settings |= {"classes": ["cell"], "metric": "dice", "channels": channels, "input": "tiny"}
    settings |= {"value_range": [0, 1]} if dtype is float else {}
    source = tiny.root / "arrays.yaml"
    source.write_text(yaml.safe_dump(settings))
    folder = made(tiny, source=source)
    decoded(folder, tiny)
    key = pd.read_csv(folder / "teacher" / "key.csv", dtype=str, keep_default_na=False)
    row = key.iloc[0]
    path = folder / "students" / row["subset"] / f"{row['id']}.{suffix}"
    stored = np.load(path) if suffix == "npy" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., None]
    expected = images[int(row["source_id"])]
    expected = np.rint(expected.astype(np.float16).astype(float) * 65535) if dtype is float else expected
    assert stored.dtype == (np.uint8 if dtype is np.uint8 else np.uint16)
    assert (stored == expected).all()


def test_several_classes_that_overlap(tiny: Tiny) -> None:
    tiny.settings |= {"classes": ["big cell", "small/cell"], "columns": {"id": "id", "label": "class", "rle": "mask"}}
    rows = [{**row, "class": name} for row in tiny.rows for name in tiny.settings["classes"]]
    tiny.rows = [{**row, "mask": "" if row["class"] == "small/cell" else row["mask"]} for row in rows]
    del tiny.settings["sample_submission"]
    tiny.save()
    folder = made(tiny)
    solution = pd.read_csv(folder / "teacher" / "solution.csv", keep_default_na=False)
    assert solution["id"].str.fullmatch("[a-z]{8}_(big-cell|small-cell)").all() and len(solution) == 8
    path = decoded(folder, tiny)
    competition, want = expected_by_name(path)
    solution[["id", "rle"]].to_csv(tiny.root / "s.csv", index=False)
    assert scoring.score(tiny.root / "s.csv", folder / "teacher" / "solution.csv", competition, want) == (1.0, 8)


def test_bad_input(tiny: Tiny) -> None:
    for name in ("nowhere/raw", "tinyy"):
        assert f"--from {name}: there is neither a folder nor a competition of this name" in refused(tiny, source=name)
    assert "nowhere.yaml does not exist" in refused(tiny, source="nowhere.yaml")
    assert "--set can only be used with --from FOLDER" in refused(tiny, "--set", "metric=dice")
    assert "--metric hausdorff: metric.py can hold dice, iou" in refused(tiny, "--metric", "hausdorff")
    assert "--metric dise: there is no metric `dise`" in refused(tiny, "--metric", "dise")
    assert "--masks tiff: expected csv or png" in refused(tiny, "--masks", "tiff")
    assert "--test 1: expected a share between 0 and 1" in refused(tiny, "--test", "1")
    assert "'My Course' is no name for a competition" in refused(tiny, name="My Course")
    assert "--seed -1: expected 0 or more" in refused(tiny, "--seed", "-1")
    tiny.path("a03").write_bytes(b"II*\x00")
    assert "a03.tif" in refused(tiny)
    tiny.path("a03").unlink()
    assert "a03" in refused(tiny) and not (tiny.root / "course").exists()
    (tiny.root / "notes").mkdir()
    (tiny.root / "notes" / "a.txt").write_text("mine")
    assert "holds something else than a competition made before" in refused(tiny, name="notes")


def test_titles_and_names(tiny: Tiny) -> None:
    for place, title in enumerate(['a """ b', "back\\slash \\u12", 'it\'s "x"', "{{ 7 * 7 }} ü # :"]):
        folder = made(tiny, "--title", title, name=f"title{place}")
        space: dict[str, Any] = {}
        exec((folder / "students" / "metric.py").read_text(), space)
        assert space["__doc__"].startswith(f"The metric of {title}: dice.")
        data = yaml.safe_load((folder / "students" / "competitions" / f"title{place}.yaml").read_text())
        assert data["title"] == title
    for title in ("two\nlines", "lone \udcff"):
        assert "expected one line of text without control characters" in refused(tiny, "--title", title)
    assert "the name of a competition that the pipeline knows already" in refused(tiny, "--name", "tgs-salt")


def test_raw_files_and_the_competition_lie_apart(tiny: Tiny) -> None:
    source = folder_of_masks(tiny, 1, False)
    for name in ("raw/made", "raw"):
        assert "lie in one another" in refused(tiny, "--name", "course", source=source, name=name)
    assert not (source / "made").exists()
    (tiny.root / "link").symlink_to(made(tiny))
    made(tiny, "--force", "--name", "course", name="link")
    assert (tiny.root / "link").is_symlink() and not list(tiny.root.glob(".*.partial"))


def test_what_the_shares_became(tiny: Tiny) -> None:
    arguments = ["make-competition", str(tiny.root / "shares"), "--from", str(tiny.competition_path)]
    lines = CliRunner().invoke(app, [*arguments, "--public", "0.01"]).stdout
    assert "note      --public 0.01 became 1 of 4 images: each part needs an image." in lines and "--test" not in lines
    assert "there is one test image only" in refused(tiny, "--test", "0.01")


def test_it_is_made_anew_and_whole_or_not_at_all(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tiny, "--seed", "1")
    before = (folder / "course.zip").read_bytes()
    assert "is there already; name another folder, or make it anew with --force" in refused(tiny)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(make_competition.files, "write_archive", full)
        assert "could not be written: No space left on device. Nothing was changed." in refused(tiny, "--force")
    assert (folder / "course.zip").read_bytes() == before
    folder.rename(tiny.root / ".course.before.partial")  # as a kill between two renames leaves it
    assert "is there already" in refused(tiny) and (folder / "course.zip").read_bytes() == before
    made(tiny, "--seed", "2", "--force")
    assert (folder / "course.zip").read_bytes() != before and not list(tiny.root.glob(".*.partial"))
