"""What a fold trains on when outliers.csv or train.exclude says so, from the rows to the loss."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TRAIN_IDS, Tiny

from pipeline.core import driver
from pipeline.core.config.recipe import LossSettings
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.masks.geometry import IGNORE
from pipeline.train.batches import loaders
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import TrainDataset, train_loader
from pipeline.train.batches.targets import Chosen, assign_rows, mask_origins, mean_mask, restrict
from pipeline.train.losses import WeightedLoss
from pipeline.train.stage import _require_masks, rows_of

IDS = pd.Series(list("abcdefgh"))
ROWS = [
    ("a", "contradiction", "b", "relabel"),
    ("b", "contradiction", "a", "keep"),
    ("c", "contradiction", "d", "soft"),
    ("e", "contradiction", "d", "soft"),
    ("f", "pixel", "", "keep"),
    ("g", "duplicate", "h", "soft"),
]
FOUND = pd.DataFrame(ROWS, columns=["image_id", "reason", "partner_id", "action"])
USE = np.array(["relabel", "train", "soft", "soft", "soft", "train", "drop", "train"], dtype=object)
MADE_FROM = {0: [1], 2: [2, 3, 4], 3: [2, 3, 4], 4: [2, 3, 4]}


def chosen(fold: list[int], excluded: str = "", use: np.ndarray = USE) -> Chosen:
    """What fold 0 trains on."""
    folds = pd.DataFrame({"image_id": IDS, "fold": fold, "use": use})
    made_from = {row: rows for row, rows in MADE_FROM.items() if use[row] in ("relabel", "soft")}
    return assign_rows(0, folds, IDS.isin(list(excluded)).to_numpy(), made_from)


def as_lists(targets: dict[int, np.ndarray]) -> dict[int, list[int]]:
    return {row: rows.tolist() for row, rows in targets.items()}


# --- which rows ------------------------------------------------------------------------------------------------------


def test_partners_and_clusters() -> None:
    assert mask_origins(FOUND, IDS, USE) == MADE_FROM
    assert mask_origins(FOUND, IDS, np.full(8, "train", dtype=object)) == {}
    twice = pd.concat([FOUND, pd.DataFrame([{"image_id": "a", "partner_id": "h", "action": "relabel"}])])
    assert mask_origins(twice, IDS, USE)[0] == [1, 7]


@pytest.mark.parametrize("partner", ["", "zz", "a"])
@pytest.mark.parametrize("action", ["relabel", "soft"])
def test_a_partner_is_needed(action: str, partner: str) -> None:
    found = pd.DataFrame([{"image_id": "a", "partner_id": partner, "action": action}])
    use = np.where(IDS == "a", action, "train")
    with pytest.raises(PipelineError, match=rf"1 images .* partner_id: a \({action}\); change their `use`"):
        mask_origins(found, IDS, use)


def test_only_what_is_available_makes_a_target() -> None:
    available = np.array([True, True, False, True, True, True, True, True])
    assert as_lists(restrict(MADE_FROM, available, USE)) == {0: [1], 2: [3, 4], 3: [3, 4], 4: [3, 4]}
    assert as_lists(restrict({0: [2, 7, 1]}, available, USE)) == {0: [7]}  # one partner, the first
    assert restrict({0: [2]}, available, USE) == {}


def test_a_fold_trains_on_all_but_the_dropped() -> None:
    found = chosen([1, 1, 1, 1, 1, 0, 1, 1])
    assert (found.train.tolist(), found.valid.tolist()) == ([0, 1, 2, 3, 4, 7], [5])
    assert as_lists(found.targets) == MADE_FROM
    assert found.note == "6 images to train on (1 dropped, 1 relabelled, 3 soft), 1 held out"


def test_nobody_is_held_against_a_doubtful_mask() -> None:
    found = chosen([0, 0, 0, 0, 0, 1, 0, 1])
    assert (found.train.tolist(), found.valid.tolist(), found.targets) == ([5, 7], [1], {})


def test_no_held_out_mask_is_part_of_a_target() -> None:
    found = chosen([1, 0, 1, 0, 1, 1, 1, 0])
    assert (found.train.tolist(), found.valid.tolist()) == ([2, 4, 5], [1, 7])  # 0 has lost its partner
    assert as_lists(found.targets) == {2: [2, 4], 4: [2, 4]}
    assert "(1 dropped, 2 soft, 1 left out because no partner is available), 2 held out" in found.note


def test_what_is_left_out_comes_in_by_no_other_image() -> None:
    found = chosen([1, 1, 1, 1, 1, 1, 0, 0], excluded="bdh")
    assert (found.train.tolist(), found.valid.tolist()) == ([2, 4, 5], [])
    assert as_lists(found.targets) == {2: [2, 4], 4: [2, 4]}
    assert "(2 excluded, 2 soft, 1 left out" in found.note
    use = USE.copy()
    use[[1, 3]] = "relabel", "drop"
    assert as_lists(chosen([1] * 7 + [0], use=use).targets) == {2: [2, 4], 4: [2, 4]}


def test_without_such_images_the_rows_are_as_ever() -> None:
    found = chosen([1, 0, 2, 1, 0, 1, 0, 2], use=np.where(USE == "drop", "drop", "train"))
    assert (found.train.tolist(), found.valid.tolist(), found.targets) == ([0, 2, 3, 5, 7], [1, 4], {})


# --- which masks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "train_images.npy", rng.integers(0, 256, (6, 12, 16, 1), dtype=np.uint8))
    masks = rng.choice(np.array([0, 1, IGNORE], np.uint8), (6, 2, 12, 16), p=[0.5, 0.4, 0.1])
    np.save(tmp_path / "train_masks.npy", masks)
    return tmp_path


TARGETS = {1: np.array([4]), 2: np.array([2, 3, 5])}


def dataset(pixels: Path, targets: dict[int, np.ndarray] | None, **options: Any) -> TrainDataset:
    return TrainDataset(pixels, np.array([0, 1, 2]), Augmentation([]), 4, targets=targets, **options)


def test_the_mean_of_masks_by_hand() -> None:
    masks = np.array([[0, 1, 1, 255, 0], [0, 0, 1, 0, 1], [0, 1, 1, 1, 255]], np.uint8)
    mean = mean_mask(masks[:, None, None])
    np.testing.assert_array_equal(mean[0, 0], np.array([0, 2 / 3, 1, 255, 255], np.float32), strict=True)


def test_each_image_gets_its_target(pixels: Path) -> None:
    masks, found = np.load(pixels / "train_masks.npy"), dataset(pixels, TARGETS)
    for index, expected in enumerate([masks[0], masks[4], mean_mask(masks[[2, 3, 5]])]):
        image, target, *_ = found[(0, index)]
        assert target.dtype == torch.float32
        np.testing.assert_array_equal(target, expected.astype(np.float32))
        np.testing.assert_array_equal(image, np.load(pixels / "train_images.npy")[index].transpose(2, 0, 1))
    (batch,) = train_loader(found, 3, 0)  # of one type, though one mask of three is a mean
    assert batch.masks.shape == (3, 2, 12, 16)


@pytest.mark.parametrize("targets", [None, {}, {1: np.array([4])}])
def test_without_means_masks_stay_bytes(pixels: Path, targets: dict[int, np.ndarray] | None) -> None:
    masks, found = np.load(pixels / "train_masks.npy"), dataset(pixels, targets)
    assert found[(0, 1)].masks.dtype == torch.uint8
    np.testing.assert_array_equal(found[(0, 1)].masks, masks[4 if targets else 1])


def test_the_crop_is_that_of_the_image(pixels: Path) -> None:
    image_of = np.broadcast_to(np.arange(192, dtype=np.uint8).reshape(1, 12, 16, 1), (6, 12, 16, 1))
    np.save(pixels / "train_images.npy", image_of)  # a pixel says where it is
    whole = mean_mask(np.load(pixels / "train_masks.npy")[[2, 3, 5]]).reshape(2, -1)
    found, places = dataset(pixels, TARGETS, crop=(5, 7), crops=2), set()
    for epoch in range(6):
        for position in (2, 5):
            image, target, *_ = found[(epoch, position)]
            np.testing.assert_array_equal(target, whole[:, image[0].numpy().ravel()].reshape(2, 5, 7))
            places.add(int(image[0, 0, 0]))
    assert len(places) > 5


GEOMETRIC = ("HorizontalFlip", "Affine", "ElasticTransform", "GridDistortion", "Perspective", "RandomRotate90", "D4")


@pytest.mark.parametrize("name", [*GEOMETRIC, "CoarseDropout", "RandomBrightnessContrast"])
def test_augmentation_mixes_no_values(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 32, 32)).astype(np.uint8)
    values = np.array([0, 1 / 3, 1, IGNORE], np.float32)
    augmentation, image = Augmentation([{name: {"p": 1}}]), rng.integers(0, 256, (32, 32, 1), dtype=np.uint8)
    for seed in range(4):
        moved = augmentation(image.copy(), labels.copy(), seed)[1]
        target = augmentation(image.copy(), values[labels], seed)[1]
        assert target.dtype == np.float32
        np.testing.assert_array_equal(target, values[moved])


# --- losses ----------------------------------------------------------------------------------------------------------


def loss_of(logits: torch.Tensor, target: torch.Tensor, **settings: Any) -> float:
    output: Any = SimpleNamespace(mask=logits, presence=None, deep=())
    return float(WeightedLoss(LossSettings(**settings))(output, target))


def test_losses_of_a_mean_by_hand() -> None:
    logits, target = torch.tensor([[[[0.5, -1.0, 2.0]]]]), torch.tensor([[[[0.25, 1.0, 255.0]]]])
    p, t = np.array([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(1.0))]), np.array([0.25, 1.0])
    entropy = (-t * np.log(p) - (1 - t) * np.log(1 - p)).mean()
    assert loss_of(logits, target, bce=1) == pytest.approx(entropy, rel=1e-6)
    total = p.sum() + t.sum()
    dice = (total - abs(p - t).sum()) / total  # 2·|A∩B| is |A| + |B| - |A - B|, as for masks
    assert loss_of(logits, target, dice=1) == pytest.approx(1 - dice, rel=1e-6)
    changed = torch.where(target == IGNORE, -9, logits)
    assert loss_of(changed, target, dice=1) == loss_of(logits, target, dice=1)


@pytest.mark.parametrize("settings", [{"bce": 1}, {"dice": 1}, {}])
def test_losses_are_least_at_the_mean(settings: dict[str, float]) -> None:
    target = torch.tensor([[[[0.25, 0.5, 0.75, 1.0, 0.0]]]])
    at_mean = loss_of(torch.logit(target, 1e-6), target, **settings)
    for step in torch.eye(5).reshape(5, 1, 1, 1, 5) * 0.2:
        for other in ((target + step).clamp(0, 1), (target - step).clamp(0, 1)):
            assert loss_of(torch.logit(other, 1e-6), target, **settings) >= at_mean
    same = target.round()
    ones = torch.ones_like(same)
    assert loss_of(ones, same, **settings) == loss_of(ones, same.to(torch.uint8), **settings)


# --- the stage -------------------------------------------------------------------------------------------------------

FOLDS = dict(zip(TRAIN_IDS, [0, 0, 0, 0, *[1] * 8], strict=True))
USES = {"a05": "relabel", "a07": "soft", "a08": "soft", "a12": "drop", "a04": "relabel"}
FINDINGS = """image_id,reason,score,partner_id,action,note
a05,contradiction,1,a06,relabel,
a04,contradiction,1,a03,relabel,
a07,contradiction,1,a08,soft,
"""


@pytest.fixture
def prepared(tiny: Tiny) -> Tiny:
    """A tiny competition, ready to train, with images to relabel and soften."""
    tiny.settings["split"] = {"folds": 2}
    model = {"encoder": "mobilenet_v2", "options": {"decoder_channels": [32, 16, 8, 8, 8]}}
    tiny.recipe |= {"model": model, "train": {"epochs": 1, "batch_size": 4, "folds": [0]}}
    tiny.save()
    tiny.run("decode", "clean").outliers.write_text(FINDINGS)
    split(tiny)
    return tiny


def split(tiny: Tiny, uses: dict[str, str] = USES, folds: dict[str, int] = FOLDS) -> None:
    rows = [{"image_id": name, "fold": folds[name], "use": uses.get(name, "train")} for name in TRAIN_IDS]
    (tiny.root / "folds").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(tiny.root / "folds" / "tiny.csv", index=False)


def names(rows: np.ndarray) -> list[str]:
    return [TRAIN_IDS[row] for row in rows]


def test_a_fold_trains(prepared: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    listed, build = prepared.root / "folds" / "wrong.csv", loaders.loaders
    listed.write_text("reason,image_id\nx,a09\ny,a02\n")
    prepared.recipe["train"]["exclude"] = "folds/wrong.csv"
    prepared.save()
    seen: list[Any] = []

    def watched(*arguments: Any) -> list[Any]:
        seen.extend(build(*arguments))
        return seen

    monkeypatch.setattr(loaders, "loaders", watched)
    before = (prepared.root / "folds" / "tiny.csv").read_bytes()
    run = prepared.run("train", "validate")
    learnt, held_out = (loader.dataset for loader in seen)
    assert names(learnt.rows) == ["a05", "a06", "a07", "a08", "a10", "a11"]
    assert names(held_out.rows) == ["a01", "a03"]  # a02 is excluded, a04 has a doubtful mask
    masks, whole = np.load(run.pixels / "train_masks.npy"), slice(None)
    assert as_lists(learnt.targets) == {4: [5], 6: [6, 7], 7: [6, 7]}
    np.testing.assert_array_equal(learnt._masks(4, whole, whole), masks[5])
    np.testing.assert_array_equal(learnt._masks(6, whole, whole), mean_mask(masks[[6, 7]]))
    said = "fold 0: 6 images to train on (1 dropped, 1 excluded, 1 relabelled, 2 soft), 2 held out"
    assert said in capsys.readouterr().err
    assert run.folds_file.read_bytes() == before
    assert pd.read_csv(run.predictions("oof", 0).with_suffix(".csv"))["image_id"].tolist() == TRAIN_IDS[:4]
    (state,) = driver.states(run, "train")
    assert state.reasons == []
    assert {listed, run.outliers} <= set(state.step.inputs)
    listed.write_text("image_id\na09\n")
    assert "folds/wrong.csv changed" in prepared.refused("train")
    del prepared.recipe["train"]["exclude"]
    prepared.save()
    assert "train.exclude: folds/wrong.csv → None" in prepared.refused("train")


def test_class_maps_have_no_mean(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(
        competition=SimpleNamespace(kind="multiclass", name="mars"), folds_file=tmp_path / "mars.csv"
    )
    with pytest.raises(PipelineError, match="`clean.contradictions.policy: soft` needs masks of 0 and 1"):
        _require_masks(run)


def test_a_doubtful_image_without_a_finding(prepared: Tiny) -> None:
    split(prepared, {**USES, "a01": "relabel", "a02": "soft"})
    assert "a01 (relabel), a02 (soft)" in prepared.refused("train")


def test_a_partner_that_is_held_out(prepared: Tiny) -> None:
    split(prepared, USES, {**FOLDS, "a06": 0, "a08": 0})
    found = rows_of(open_run(str(prepared.recipe_path)), 0)
    assert names(found.train) == ["a07", "a09", "a10", "a11"]
    assert as_lists(found.targets) == {6: [6]}
