"""What clean finds: planted faults of the sample competition, and every detector on rows and arrays made for it."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Tiny, encoded, other_code

from pipeline.clean import outliers
from pipeline.clean.duplicates import Pairs, near_pairs
from pipeline.clean.stage import _seen
from pipeline.core import driver
from pipeline.core.config.cleaning import (
    BrokenSettings,
    ContradictionSettings,
    DuplicateSettings,
    IdenticalMaskSettings,
    PixelOutlierSettings,
)
from pipeline.core.run import open_run
from pipeline.decode import descriptors
from pipeline.masks import rle
from pipeline.new.sample import plan_frames, write_sample
from pipeline.split import stage as split
from pipeline.split.folds import read_outliers, uses_of

SHAPE, GRID = (120, 160), (6, 8)


# --- the sample, judged by what was planted --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1, 2])
def cleaned_sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Findings on a sample drawn from a seed, and what was planted there, which no stage reads."""
    root = tmp_path_factory.mktemp(f"sample{request.param}")
    write_sample(root / "input" / "sample", 240, 5, request.param)
    planted = pd.read_csv(root / "input" / "sample" / "planted.csv", dtype=str)
    (root / "input" / "sample" / "planted.csv").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        run = open_run("sample")
        for stage in ("decode", "clean"):
            driver.run_stage(run, stage)
        yield read_outliers(run), planted, request.param


def test_planted_faults_are_found_and_nothing_else(cleaned_sample: Any) -> None:
    found, planted, _ = cleaned_sample
    for kind in ("contradiction", "broken"):
        there = set(planted["image_id"][planted["kind"] == kind])
        rows = found[found["reason"] == kind]
        hits = there & set(rows["image_id"])
        assert len(hits) / len(there) >= 0.95
        assert len(hits) / len(rows) >= 0.95
        assert set(rows["action"]) == {"drop"}


def test_a_target_that_leaves_the_picture_is_no_contradiction(cleaned_sample: Any) -> None:
    found, _, seed = cleaned_sample
    frames = [frame for frame in plan_frames(240, 5, seed)[0] if not frame.kind]
    exits = {f"{frame.subject}_{frame.number}" for frame in frames if frame.strength == 0}
    assert len(exits) > 50
    assert not exits & set(found["image_id"][found["reason"] == "contradiction"])


def test_a_planted_contradiction_names_an_image_of_the_same_frame(cleaned_sample: Any) -> None:
    found, planted, _ = cleaned_sample
    rows = found[found["reason"] == "contradiction"].set_index("image_id")["partner_id"]
    named = planted[planted["kind"] == "contradiction"].set_index("image_id")["partner_id"]
    assert (rows == named.reindex(rows.index)).mean() > 0.9


# --- single images ---------------------------------------------------------------------------------------------------


def table_of(images: list[np.ndarray], masks: list[np.ndarray] | None = None) -> pd.DataFrame:
    """Rows of images.parquet, as decode would write them, for grey images and masks of one class."""
    rows = []
    for number, image in enumerate(images):
        values = descriptors.grey(image[..., None])
        mask = masks[number] if masks else np.zeros(image.shape, np.uint8)
        rows.append({
            "image_id": f"i{number}", "subset": "train", "fault": "", "group": "", "dtype": str(image.dtype),
            "height": image.shape[0], "width": image.shape[1], "mean": float(image.mean()),
            "standard_deviation": float(image.std()), "minimum": int(image.min()), "maximum": int(image.max()),
            "entropy": descriptors.entropy(values), "smoothness": descriptors.smoothness(values),
            "pixel_hash": str(hash(image.tobytes())), "rle_thing": rle.encode(mask), "area_thing": int(mask.sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def picture(seed: int, mean: float = 110, contrast: float = 40) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((12, 16)).astype(np.float32)
    smooth = cv2.resize(noise, SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(mean + contrast * smooth, 0, 255).astype(np.uint8)


def described(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values = [descriptors.grey(image[..., None]) for image in images]
    histograms = np.stack([descriptors.block_histograms(one, GRID) for one in values])
    return histograms, np.stack([descriptors.thumbnail(one) for one in values])


def ellipse(column: int = 70, row: int = 60, radius: int = 25) -> np.ndarray:
    return cv2.circle(np.zeros(SHAPE, np.uint8), (column, row), radius, 1, -1)


def test_broken_images_are_named_with_what_is_wrong() -> None:
    noise = np.random.default_rng(9).integers(0, 256, SHAPE, np.uint8)
    odd = [np.full(SHAPE, 90, np.uint8), picture(1, 8, 3), picture(2, 250, 3), noise]
    images = table_of([picture(seed) for seed in range(30)] + odd)
    found = outliers.find_broken(images, BrokenSettings()).set_index("image_id")
    assert [note.split(":")[0] for note in found["note"]] == ["constant", "nearly black", "nearly white", "noise"]
    assert found.index.tolist() == ["i30", "i31", "i32", "i33"]
    only = outliers.find_broken(images, BrokenSettings(action="keep", constant=False, extreme=0))
    assert only[["image_id", "action"]].to_numpy().tolist() == [["i33", "keep"]]


def test_where_most_images_are_dark_dark_is_not_broken() -> None:
    images = table_of([picture(seed, 10, 6) for seed in range(30)])
    assert outliers.find_broken(images, BrokenSettings()).empty


def test_pixel_outliers_are_listed_with_the_statistic_that_stands_out() -> None:
    images = table_of([picture(seed) for seed in range(60)] + [picture(1, 110, 1)])
    found = outliers.find_pixel_outliers(images, PixelOutlierSettings(isolation=None))
    assert found[["image_id", "action"]].to_numpy().tolist() == [["i60", "keep"]]
    assert found["note"].iat[0].startswith(("contrast", "entropy"))
    assert outliers.find_pixel_outliers(images[:10], PixelOutlierSettings()).empty  # too few to say what is usual
    forest = outliers.find_pixel_outliers(images, PixelOutlierSettings(z=1e6, isolation=0.7))
    assert forest["image_id"].tolist() == ["i60"]


def test_robust_z_is_not_moved_by_the_outlier_itself() -> None:
    values = np.array([9.0, 10, 11, 10, 9, 11, 1000])
    scores = outliers.robust_z(values, np.ones(7, bool))
    assert abs(scores[:6]).max() < 1
    assert scores[6] == pytest.approx(990 / 1.4826)
    assert outliers.robust_z(values, np.zeros(7, bool)).tolist() == [0] * 7


# --- images beside images --------------------------------------------------------------------------------------------


def test_duplicates_hold_their_clusters_together() -> None:
    first, second = picture(0), picture(1)
    images = [first, second, first.copy(), np.clip(first + 1, 0, 255).astype(np.uint8), picture(2)]
    rows, (histograms, thumbnails) = table_of(images), described(images)
    near = near_pairs(histograms, thumbnails, DuplicateSettings(distance=0.02))
    exact = outliers.exact_pairs(rows)
    assert (exact.left.tolist(), exact.right.tolist()) == ([0], [2])
    found = outliers.find_duplicates(rows, near).set_index("image_id")
    assert found.index.tolist() == ["i2", "i3"]
    assert found["partner_id"]["i2"] == "i0"
    assert found["note"]["i2"] == "the same pixels; cluster of 3 images"
    assert set(found["action"]) == {"keep"}
    assert found["score"]["i2"] == 0 < found["score"]["i3"] < 0.02


def masks_of(texts: list[str]) -> pd.DataFrame:
    """Rows of the table with these masks, 10 × 10."""
    area = [sum(map(int, text.split()[1::2])) for text in texts]
    ids = [f"i{number}" for number in range(len(texts))]
    return pd.DataFrame({"image_id": ids, "height": 10, "width": 10, "rle_thing": texts, "area_thing": area})


@pytest.mark.parametrize(("images", "action"), [(3, "drop"), (4, "keep")])
def test_one_mask_on_different_images(images: int, action: str) -> None:
    # i0 and i1 look the same, so their common mask says nothing; the empty and the full mask say nothing either
    rows = masks_of(["5 3", "5 3", "7 2", "7 2", "7 2", "7 2", "", "", "1 100", "1 100"])
    clusters = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    settings = IdenticalMaskSettings(images=images)
    found = outliers.find_identical_masks(rows, clusters, ["thing"], settings).set_index("image_id")
    assert found.index.tolist() == ["i2", "i3", "i4", "i5"]
    assert found["partner_id"].tolist() == ["i4", "i4", "i2", "i2"]  # never one that looks the same
    assert set(found["action"]) == {action}
    assert set(found["score"]) == {4.0}


def test_near_duplicates_in_the_test_set_are_reported() -> None:
    train, test = masks_of(["", "", ""]), masks_of(["", ""])
    pairs = Pairs(np.array([1, 1]), np.array([0, 1]), np.array([0.004, 0.001]), np.array([0.95, 0.99]))
    found = outliers.find_test_duplicates(train, test, pairs)
    assert found[["image_id", "partner_id", "score", "action"]].to_numpy().tolist() == [["i1", "i1", 0.001, "keep"]]


# --- contradictions --------------------------------------------------------------------------------------------------


def contradictions(masks: list[np.ndarray], images: list[np.ndarray] | None = None, **settings: Any) -> pd.DataFrame:
    """Findings among images that look the same, unless `images` are given."""
    images = images or [picture(0)] * len(masks)
    rows, (histograms, thumbnails) = table_of(images, masks), described(images)
    pairs = near_pairs(histograms, thumbnails, DuplicateSettings(distance=0.2, correlation=0.5))
    wanted = ContradictionSettings(**settings)
    return outliers.find_contradictions(rows, histograms, pairs, ["thing"], wanted, GRID).set_index("image_id")


EMPTY = np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("policy", "actions"),
    [
        ("drop_empty", {"i1": "drop"}),
        ("drop_both", {"i0": "drop", "i1": "drop", "i2": "drop"}),
        ("relabel", {"i1": "relabel"}),
        ("soft", {"i0": "soft", "i1": "soft", "i2": "soft"}),
        ("keep", {"i1": "keep"}),
    ],
)
def test_what_follows_from_an_empty_mask_beside_two_others(policy: str, actions: dict[str, str]) -> None:
    found = contradictions([ellipse(), EMPTY, ellipse(72)], policy=policy)
    assert found["action"].sort_index().to_dict() == actions
    assert found["partner_id"]["i1"] in ("i0", "i2")
    assert found["note"]["i1"].startswith("mask of 0 px, that of i")


@pytest.mark.parametrize(
    ("column", "dice", "disagree"), [(70, 0.3, False), (74, 0.3, False), (130, 0.3, True), (80, 0.9, True)]
)
def test_masks_in_different_places_disagree(column: int, dice: float, disagree: bool) -> None:
    found = contradictions([ellipse(), ellipse(column)], policy="drop_empty", dice=dice)
    assert bool(len(found)) == disagree
    assert set(found["action"]) <= {"keep"}  # neither of them is empty


def test_an_object_that_comes_into_view_is_no_contradiction() -> None:
    with_object = picture(0)
    with_object[ellipse() == 1] = 255 - with_object[ellipse() == 1]
    images, masks = [picture(0), with_object], [EMPTY, ellipse()]
    assert contradictions(masks, images, policy="drop_empty").empty
    assert contradictions(masks, images, policy="drop_empty", under_mask=None)["action"].to_dict() == {"i0": "drop"}


def test_overlap_and_local_distance() -> None:
    one, other = ellipse() == 1, ellipse(300) == 1
    assert outliers.overlap(one[None], one[None]) == 1
    assert outliers.overlap(one[None], other[None]) == 0
    assert outliers.overlap(other[None], other[None]) == 1  # nothing on both
    first, second = described([picture(0), picture(1)])[0]
    assert outliers.local_distance(first, first, one, GRID) == pytest.approx(0)
    assert outliers.local_distance(first, second, one, GRID) > 0.1


def test_of_several_actions_the_strongest_holds() -> None:
    found = pd.DataFrame({"image_id": ["a", "a", "b", "b", "c"], "action": ["soft", "drop", "soft", "relabel", "keep"]})
    assert uses_of(found, pd.Series(["a", "b", "c", "d"])).tolist() == ["drop", "relabel", "train", "train"]


# --- the stage -------------------------------------------------------------------------------------------------------


def duplicate_pictures(tiny: Tiny) -> None:
    """Makes a06 look like a02, which has a mask, but without one; every image a smooth picture."""
    for number, name in enumerate(tiny.images):
        tiny.images[name] = cv2.resize(picture(number), (60, 40))
    tiny.images["a06"] = tiny.images["a02"]
    tiny.row("a06")["mask"] = ""
    for name, image in tiny.images.items():
        tiny.path(name).write_bytes(encoded(image))


def test_the_stage_writes_findings_and_pictures(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    duplicate_pictures(tiny)
    tiny.settings["clean"] = {"contradictions": {"policy": "drop_empty"}}
    tiny.save()
    raw = {path: path.read_bytes() for path in tiny.input.rglob("*") if path.is_file()}
    run = tiny.run("decode", "clean")
    found = read_outliers(run).set_index("reason")
    assert found.loc["contradiction", ["image_id", "partner_id", "action"]].tolist() == ["a06", "a02", "drop"]
    assert found.loc["duplicate", "note"] == "the same pixels; cluster of 2 images"
    assert sorted(path.stem for path in run.outlier_pictures.glob("*.png")) == ["contradiction", "duplicate"]
    drawn = cv2.imread(str(run.outlier_pictures / "contradiction.png"))
    assert drawn.std() > 10
    assert "contradiction" in capsys.readouterr().err
    assert raw == {path: path.read_bytes() for path in tiny.input.rglob("*") if path.is_file()}


def test_a_pair_is_drawn_once() -> None:
    pairs = pd.DataFrame([("a", "b"), ("b", "a"), ("a", ""), ("b", ""), ("b", "c")], columns=["image_id", "partner_id"])
    assert _seen(pairs).tolist() == [False, True, False, False, False]
    assert _seen(pairs.head(0)).empty


def test_every_detector_can_be_switched_off(tiny: Tiny) -> None:
    duplicate_pictures(tiny)
    tiny.path("a05").write_bytes(encoded(np.full((40, 60), 7, np.uint8)))
    tiny.settings["clean"] = yaml.safe_load(
        "{broken: {action: off}, identical_masks: {action: off}, duplicates: {search: false}, "
        "contradictions: {policy: off}, pixel_outliers: {action: off}}"  # which YAML reads as false
    )
    tiny.save()
    assert read_outliers(tiny.run("decode", "clean")).empty


def test_duplicates_are_searched_inside_groups_but_equal_pixels_everywhere(tiny: Tiny) -> None:
    duplicate_pictures(tiny)
    nearly = np.clip(tiny.images["a02"].astype(int) + 1, 0, 255).astype(np.uint8)
    tiny.path("a11").write_bytes(encoded(nearly))
    tiny.settings |= {"group": "patient", "clean": {"duplicates": {"distance": 0.05}}}
    tiny.save()
    edges = read_outliers(tiny.run("decode", "clean")).query("reason == 'duplicate'")["image_id"].tolist()
    assert edges == ["a06"]
    tiny.settings["clean"]["duplicates"]["within_groups"] = False
    tiny.save()
    assert read_outliers(tiny.run("clean")).query("reason == 'duplicate'")["image_id"].tolist() == ["a06", "a11"]


def test_an_edited_list_is_kept_and_followed(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    duplicate_pictures(tiny)
    run = tiny.run("decode", "clean")
    edited = read_outliers(run).assign(action="drop")
    edited.to_csv(run.outliers, index=False)
    tiny.settings["clean"] = {"pixel_outliers": {"z": 7}}
    tiny.save()
    tiny.run("clean", "split")
    assert "clean: kept although" in capsys.readouterr().err
    assert read_outliers(run).equals(edited)
    folds = pd.read_csv(run.folds_file)
    assert folds["image_id"][folds["use"] == "drop"].tolist() == sorted(edited["image_id"].unique())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action": "remove"}, "work/tiny/outliers.csv row 2: action is 'remove'; expected keep, drop, relabel, soft."),
        ({"action": None}, "work/tiny/outliers.csv lacks action; found image_id, reason, score, partner_id, note."),
    ],
)
def test_an_edited_list_that_cannot_be_read(tiny: Tiny, change: dict[str, Any], words: str) -> None:
    duplicate_pictures(tiny)
    run = tiny.run("decode", "clean")
    found = read_outliers(run).assign(**change)
    found.dropna(axis=1).to_csv(run.outliers, index=False)
    assert tiny.refused("split") == words


def test_other_code_keeps_the_folds_and_audits_them_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.run("decode", "clean", "split")
    before, said = run.folds_file.read_bytes(), run.audit.read_text()
    other_code(monkeypatch, {"audit.py": "another"})
    run.audit.write_text(said.replace('"leaks": false', '"leaks": true'))
    assert [(state.step.title, state.kept) for state in driver.states(run, "split")] == [
        ("split", True),
        ("audit", False),
    ]
    monkeypatch.setattr(split, "best_balanced", None)  # which would fail
    tiny.run("split")
    assert (run.folds_file.read_bytes(), run.audit.read_text()) == (before, said)
