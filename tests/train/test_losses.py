"""Losses: by hand, beside torch's and smp's, and without a trace of ignored pixels."""

from math import e, log
from typing import Any, NamedTuple

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from pipeline.core.config.competition import Kind
from pipeline.core.config.losses import LossSettings
from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE
from pipeline.train.losses import WeightedLoss

Case = tuple[Kind, dict[str, Any]]

EVERY: list[dict[str, Any]] = [
    {"dice": 1},
    {"dice": {"per_image": True}},
    {"dice": {"per_image": True, "positives_only": True}},
    {"jaccard": 1},
    {"focal": 1},
    {"focal": {"gamma": 0.5, "alpha": 0.25}},
    {"tversky": {"alpha": 0.3, "beta": 0.7, "gamma": 0.75}},
    {"lovasz": 1},
    {"lovasz": {"per_image": False}},
]
BCE: list[dict[str, Any]] = [{"bce": 1}, {"bce": {"pos_weight": 3, "smoothing": 0.2}}]
ELU: list[dict[str, Any]] = [{"lovasz": {"kind": "elu"}}]


def cross_entropy(*weights: float) -> list[dict[str, Any]]:
    return [{"cross_entropy": 1}, {"cross_entropy": {"class_weights": list(weights), "smoothing": 0.2}}]


CASES: list[Case] = [
    *(("binary", one) for one in BCE + ELU + EVERY + cross_entropy(0.5, 2)),
    *(("multilabel", one) for one in BCE + ELU + EVERY),
    *(("multiclass", one) for one in EVERY + cross_entropy(0.5, 2, 1)),
]
SOFT = [BCE[0], cross_entropy()[0], *(one for one in EVERY if "lovasz" not in one)]
all_cases = pytest.mark.parametrize(("kind", "settings"), CASES, ids=[f"{kind}-{one}" for kind, one in CASES])


class Output(NamedTuple):
    mask: torch.Tensor
    presence: torch.Tensor | None = None
    deep: tuple[torch.Tensor, ...] = ()


def batch(kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks of three images, 5 × 6, without ignored pixels; every class occurs in every image."""
    generator, classes = torch.Generator().manual_seed(0), 1 if kind == "binary" else 3
    logits = torch.randn((3, classes, 5, 6), generator=generator)
    if kind == "multiclass":
        return logits, torch.randint(0, 3, (3, 1, 5, 6), generator=generator, dtype=torch.uint8)
    return logits, (torch.rand((3, classes, 5, 6), generator=generator) < 0.4).to(torch.uint8)


def value(settings: dict[str, Any], kind: Kind, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return WeightedLoss(LossSettings(**settings), kind)(Output(logits), masks)


def loss_and_gradient(settings: dict[str, Any], kind: Kind, logits: torch.Tensor, masks: torch.Tensor) -> Any:
    leaf = logits.clone().requires_grad_()
    loss = value(settings, kind, leaf, masks)
    loss.backward()
    assert leaf.grad is not None and loss.dtype == torch.float32 and loss.shape == ()
    return loss.item(), leaf.grad


# --- ignored pixels --------------------------------------------------------------------------------------------------


ALL = slice(None)
CUTS: dict[str, tuple[Any, Any]] = {
    "rows": ((ALL, ALL, slice(0, 3)), (ALL, ALL, slice(3, None))),
    "image": ([0, 2], [1]),
    "class": ((ALL, [0, 2]), (ALL, [1])),
}
PARTS = [(part, *case) for part in CUTS for case in CASES if part != "class" or case[0] == "multilabel"]


@pytest.mark.parametrize(("part", "kind", "settings"), PARTS, ids=["-".join(map(str, one)) for one in PARTS])
def test_what_is_ignored_changes_nothing(part: str, kind: Kind, settings: dict[str, Any]) -> None:
    (logits, masks), (cut, ignored) = batch(kind), CUTS[part]
    masks[ignored] = IGNORE
    loss, gradient = loss_and_gradient(settings, kind, logits, masks)
    assert gradient[ignored].abs().max() == 0 < gradient[cut].abs().max()
    for other in (-7.0, torch.inf, torch.nan):
        changed = logits.clone()
        changed[ignored] = other
        other_loss, other_gradient = loss_and_gradient(settings, kind, changed, masks)
        assert other_loss == loss
        assert torch.equal(other_gradient, gradient)
    cut_loss, cut_gradient = loss_and_gradient(settings, kind, logits[cut], masks[cut])
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(cut_gradient, gradient[cut])


@all_cases
def test_a_batch_of_ignored_pixels_teaches_nothing(kind: Kind, settings: dict[str, Any]) -> None:
    logits, masks = batch(kind)
    loss, gradient = loss_and_gradient(settings, kind, logits, masks.fill_(IGNORE))
    assert (loss, gradient.abs().max()) == (0, 0)


# --- any input -------------------------------------------------------------------------------------------------------


@all_cases
def test_a_batch_without_foreground(kind: Kind, settings: dict[str, Any]) -> None:
    logits, masks = batch(kind)
    masks, logits = torch.zeros_like(masks), -logits.abs()
    loss, gradient = loss_and_gradient(settings, kind, logits, masks)
    assert 0 <= loss < torch.inf and gradient.isfinite().all()
    ignored = masks.index_fill(2, torch.tensor([0, 4]), IGNORE)
    cut = value(settings, kind, logits[:, :, 1:4], masks[:, :, 1:4]).item()
    assert value(settings, kind, logits, ignored).item() == pytest.approx(cut, rel=1e-5)


@all_cases
@pytest.mark.parametrize("size", [50.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(dtype: torch.dtype, size: float, kind: Kind, settings: dict[str, Any]) -> None:
    logits, masks = batch(kind)
    truth = masks == torch.arange(3)[:, None, None] if kind == "multiclass" else masks == 1
    right = torch.where(truth, size, -size).to(dtype)
    for extreme in (right, -right, logits.sign().to(dtype) * size):
        loss, gradient = loss_and_gradient(settings, kind, extreme, masks)
        assert 0 <= loss < torch.inf
        assert gradient.dtype == dtype and gradient.isfinite().all()
    if not any(isinstance(term, dict) and "smoothing" in term for term in settings.values()):
        assert value(settings, kind, right, masks) == pytest.approx(0, abs=1e-3)


@all_cases
def test_half_precision_is_computed_in_full(kind: Kind, settings: dict[str, Any]) -> None:
    logits, masks = batch(kind)
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert value(settings, kind, half, masks) == value(settings, kind, half.float(), masks)


# --- by hand ---------------------------------------------------------------------------------------------------------

A, B = log(4 / 3), log(4)  # of the probability 3/4: the losses of a pixel of the class and of one of the background
BY_HAND: list[tuple[dict[str, Any], float]] = [
    ({"bce": 1}, (A + 3 * B) / 4),
    ({"bce": {"pos_weight": 2}}, (2 * A + 3 * B) / 4),
    ({"bce": {"smoothing": 0.2}}, (0.9 * A + 0.1 * B + 3 * (0.1 * A + 0.9 * B)) / 4),
    ({"cross_entropy": 1}, (A + 3 * B) / 4),
    ({"cross_entropy": {"class_weights": [1, 3]}}, (3 * A + 3 * B) / 6),
    ({"dice": 1}, 1 - 1.5 / 4),
    ({"dice": {"per_image": True}}, 1 - 2.5 / 5),
    ({"jaccard": 1}, 1 - 0.75 / 3.25),
    ({"focal": 1}, (A / 16 + 3 * B * 9 / 16) / 4),
    ({"focal": {"gamma": 1, "alpha": 0.2}}, (0.2 * A / 4 + 0.8 * 3 * B * 3 / 4) / 4),
    ({"tversky": {"alpha": 0.3, "beta": 0.7}}, 1 - 0.75 / (0.75 + 0.3 * 2.25 + 0.7 * 0.25)),
    ({"tversky": {"gamma": 0.75}}, (1 - 1.5 / 4) ** 0.75),
    ({"lovasz": 1}, 0.75 * (1 + log(3))),  # the errors of the background come first, then IoU is 1/4
    ({"lovasz": {"kind": "elu"}}, 0.75 * (2 + log(3)) + 0.25 * e / 3),
]


@pytest.mark.parametrize(("settings", "expected"), BY_HAND, ids=[str(one) for one, _ in BY_HAND])
def test_losses_by_hand(settings: dict[str, Any], expected: float) -> None:
    logits, masks = torch.full((1, 1, 2, 2), log(3)), torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
    assert value(settings, "binary", logits, masks).item() == pytest.approx(expected, rel=1e-6)


C, D = log(2), log(4)  # of the probabilities 1/2, 1/4, 1/4: the losses of a pixel of class 0 and of one of class 2
OF_CLASSES: list[tuple[dict[str, Any], float]] = [
    ({"cross_entropy": 1}, (C + D) / 2),
    ({"cross_entropy": {"class_weights": [1, 1, 2]}}, (C + 2 * D) / 3),
    ({"cross_entropy": {"smoothing": 0.3}}, 0.7 * (C + D) / 2 + 0.1 * (C + 2 * D)),
    ({"dice": 1}, (1 / 2 + 0 + 2 / 3) / 3),
    ({"dice": {"per_image": True}}, (1 / 3 + 1 / 3 + 0.4) / 3),
    ({"dice": {"per_image": True, "positives_only": True}}, (1 / 3 + 0.4) / 2),
    ({"jaccard": 1}, (2 / 3 + 0 + 0.8) / 3),
    ({"focal": 1}, (C / 4 + D * 9 / 16) / 2),
    ({"focal": {"alpha": 0.2}}, (0.8 * C / 4 + 0.2 * D * 9 / 16) / 2),
    ({"tversky": {"alpha": 0.3, "beta": 0.7}}, (0.5 + 0 + 0.6 / 0.85) / 3),
    ({"tversky": {"alpha": 0.3, "beta": 0.7, "gamma": 2}}, (0.25 + 0 + (0.6 / 0.85) ** 2) / 3),
    ({"lovasz": 1}, (0.5 + 0.75) / 2),
]


@pytest.mark.parametrize(("settings", "expected"), OF_CLASSES, ids=[str(one) for one, _ in OF_CLASSES])
def test_losses_of_classes_by_hand(settings: dict[str, Any], expected: float) -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log()[None, :, None, None].expand(1, 3, 1, 3)
    masks = torch.tensor([[[[0, 2, IGNORE]]]], dtype=torch.uint8)
    assert value(settings, "multiclass", logits, masks).item() == pytest.approx(expected, rel=1e-6)


def test_dice_of_images_is_their_mean() -> None:
    logits, masks = torch.full((3, 1, 2, 2), log(3)), torch.zeros((3, 1, 2, 2), dtype=torch.uint8)
    masks[0, 0, 0, 0], masks[1] = 1, IGNORE
    assert value({"dice": {"per_image": True}}, "binary", logits, masks) == pytest.approx((0.5 + 1 - 1 / 4) / 2)
    positives = {"dice": {"per_image": True, "positives_only": True}}
    assert value(positives, "binary", logits, masks) == pytest.approx(0.5)
    assert loss_and_gradient(positives, "binary", logits, masks)[1][1:].abs().max() == 0


def test_only_dice_of_images_learns_from_empty_masks() -> None:
    logits, masks = batch("multilabel")
    options = [{"per_image": True}, {"per_image": True, "positives_only": True}, {}]
    losses = [loss_and_gradient({"dice": one}, "multilabel", logits, torch.zeros_like(masks)) for one in options]
    assert losses[0][1].min() > 0
    assert all((loss, gradient.abs().max()) == (0, 0) for loss, gradient in losses[1:])


def test_elu_teaches_pixels_that_are_right() -> None:
    _, masks = batch("binary")
    right = torch.where(masks == 1, 3.0, -3.0)
    assert loss_and_gradient({"lovasz": 1}, "binary", right, masks)[1].abs().max() == 0
    gradient = loss_and_gradient({"lovasz": {"kind": "elu"}}, "binary", right, masks)[1]
    assert (gradient * right <= 0).all() and gradient[masks == 1].abs().min() > 0


# --- references ------------------------------------------------------------------------------------------------------


def with_ignored(kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    logits, masks = batch(kind)
    masks[:, :, 1, 2:] = IGNORE
    return logits, masks


def test_cross_entropy_and_dice_as_ever() -> None:
    logits, masks = with_ignored("multilabel")
    valid = (masks != IGNORE).float()
    losses = functional.binary_cross_entropy_with_logits(logits, masks.float() * valid, reduction="none")
    bce = (losses * valid).sum() / valid.sum().clamp(min=1)
    dice = smp.losses.DiceLoss("multilabel", ignore_index=IGNORE)(logits, masks.float())
    assert torch.equal(value({"bce": 1}, "multilabel", logits, masks), bce)
    assert torch.equal(value({}, "multilabel", logits, masks), bce + dice)
    logits, masks = with_ignored("multiclass")
    loss = functional.cross_entropy(logits, masks[:, 0].long(), ignore_index=IGNORE, reduction="sum")
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)(logits, masks[:, 0].long())
    assert torch.equal(value({}, "multiclass", logits, masks), loss / (masks != IGNORE).sum() + dice)


def test_as_in_torch() -> None:
    logits, masks = with_ignored("multiclass")
    options: dict[str, Any] = {"weight": torch.tensor([0.5, 2, 1]), "label_smoothing": 0.2}
    expected = functional.cross_entropy(logits, masks[:, 0].long(), ignore_index=IGNORE, **options)
    assert value(cross_entropy(0.5, 2, 1)[1], "multiclass", logits, masks) == pytest.approx(expected.item())
    logits, masks = batch("binary")
    expected = functional.binary_cross_entropy_with_logits(logits, masks * 0.8 + 0.1, pos_weight=torch.tensor(3.0))
    assert value(BCE[1], "binary", logits, masks) == pytest.approx(expected.item())


REFERENCES = [
    ({"jaccard": 1}, "multilabel", smp.losses.JaccardLoss("multilabel", ignore_index=IGNORE)),
    ({"jaccard": 1}, "multiclass", smp.losses.JaccardLoss("multiclass", ignore_index=IGNORE)),
    ({"tversky": {"alpha": 0.3}}, "multilabel", smp.losses.TverskyLoss("multilabel", ignore_index=IGNORE, alpha=0.3)),
    ({"tversky": {"alpha": 0.3}}, "multiclass", smp.losses.TverskyLoss("multiclass", ignore_index=IGNORE, alpha=0.3)),
    ({"focal": {"alpha": 0.3}}, "multilabel", smp.losses.FocalLoss("binary", ignore_index=IGNORE, alpha=0.3)),
    ({"lovasz": 1}, "binary", smp.losses.LovaszLoss("binary", per_image=True, ignore_index=IGNORE)),
    ({"lovasz": {"per_image": False}}, "binary", smp.losses.LovaszLoss("binary", ignore_index=IGNORE)),
    ({"lovasz": 1}, "multiclass", smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=IGNORE)),
    ({"lovasz": {"per_image": False}}, "multiclass", smp.losses.LovaszLoss("multiclass", ignore_index=IGNORE)),
]


@pytest.mark.parametrize(("settings", "kind", "reference"), REFERENCES)
def test_as_in_smp(settings: dict[str, Any], kind: Kind, reference: torch.nn.Module) -> None:
    logits, masks = with_ignored(kind)
    if kind == "multiclass":
        masks[0][masks[0] == 2] = 1  # a class is absent from an image
    loss, gradient = loss_and_gradient(settings, kind, logits, masks)
    leaf, labels = logits.clone().requires_grad_(), masks[:, 0].long() if kind == "multiclass" else masks.float()
    expected = reference(leaf, labels)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, leaf.grad)


def test_lovasz_of_several_classes_is_their_mean() -> None:
    logits, masks = with_ignored("multilabel")
    alone = [value({"lovasz": 1}, "binary", logits[:, [one]], masks[:, [one]]).item() for one in range(3)]
    assert value({"lovasz": 1}, "multilabel", logits, masks) == pytest.approx(sum(alone) / 3)


@pytest.mark.parametrize("settings", [*cross_entropy(0.5, 2), {"focal": {"gamma": 1.5, "alpha": 0.3}}])
def test_one_class_is_background_and_class(settings: dict[str, Any]) -> None:
    logits, masks = with_ignored("binary")
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(value(settings, "binary", logits, masks), value(settings, "multiclass", both, masks))


def test_cross_entropy_of_one_class_is_bce() -> None:
    logits, masks = with_ignored("binary")
    soft = torch.where(masks == IGNORE, 255.0, torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)))
    for target, smoothing in ((masks, 0), (soft, 0), (masks, 0.2), (soft, 0.2)):
        loss = loss_and_gradient({"cross_entropy": {"smoothing": smoothing}}, "binary", logits, target)
        torch.testing.assert_close(loss, loss_and_gradient({"bce": {"smoothing": smoothing}}, "binary", logits, target))


# --- soft labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SOFT, ids=str)
def test_losses_are_least_at_the_soft_label(settings: dict[str, Any]) -> None:
    labels = torch.tensor([[[[0.25, 0.5, 0.75, 1.0, 0.0, IGNORE]]]])
    mean = torch.where(labels == IGNORE, 0.5, labels)
    at_mean = value(settings, "binary", torch.logit(mean, 1e-6), labels)
    for step in torch.eye(6)[:5].reshape(5, 1, 1, 1, 6) * 0.2:
        for other in ((mean + step).clamp(0, 1), (mean - step).clamp(0, 1)):
            if not torch.equal(other, mean):
                assert value(settings, "binary", torch.logit(other, 1e-6), labels) > at_mean


@pytest.mark.parametrize("settings", [*SOFT, *BCE, *ELU, {"lovasz": 1}], ids=str)
def test_float_masks_are_masks(settings: dict[str, Any]) -> None:
    logits, masks = with_ignored("binary")
    assert torch.equal(value(settings, "binary", logits, masks.float()), value(settings, "binary", logits, masks))
    soft = torch.where(masks == 1, 0.5, torch.where(masks == 0, 0.4, 255.0))
    same = torch.equal(value(settings, "binary", logits, soft), value(settings, "binary", logits, masks))
    assert same == ("lovasz" in settings)


# --- the sum ---------------------------------------------------------------------------------------------------------


def test_weights_and_deep_outputs_add_up() -> None:
    logits, masks = with_ignored("multilabel")
    bce, focal = (value({name: 1}, "multilabel", logits, masks).item() for name in ("bce", "focal"))
    settings = {"bce": 0.5, "focal": 2, "dice": 0, "deep": 0.3}
    assert WeightedLoss(LossSettings(**settings), "multilabel").weights == {"bce": 0.5, "focal": 2}
    assert value(settings, "multilabel", logits, masks) == pytest.approx(0.5 * bce + 2 * focal)
    deep = (logits, -logits, 2 * logits)
    parts = [value(settings, "multilabel", one, masks).item() for one in deep]
    for weight in (0.3, 0):
        loss = WeightedLoss(LossSettings(**{**settings, "deep": weight}), "multilabel")
        assert loss(Output(logits, None, deep), masks) == pytest.approx(parts[0] + weight * sum(parts) / 3)


def presence_loss(kind: Kind, presence: torch.Tensor, masks: torch.Tensor) -> tuple[float, torch.Tensor]:
    logits, leaf = torch.zeros((*presence.shape, 1, 2)), presence.clone().requires_grad_()
    settings = LossSettings(**{"dice": 1, "presence": 2})
    total = WeightedLoss(settings, kind, presence=True)(Output(logits, leaf), masks)
    total.backward()
    assert leaf.grad is not None
    return (total - value({"dice": 1}, kind, logits, masks)).item() / 2, leaf.grad


def test_presence() -> None:
    presence = torch.tensor([[log(3), log(3)], [log(3), -500.0]])
    masks = torch.tensor([[[0, 1], [0, IGNORE]], [[0.5, 0], [IGNORE, IGNORE]]])[:, :, None]
    loss, gradient = presence_loss("multilabel", presence, masks)
    assert loss == pytest.approx((A + B + A) / 3, rel=1e-5)
    assert gradient[1, 1] == 0
    masks[1, 0, 0, 0] = 0.49
    assert presence_loss("multilabel", presence, masks)[0] == pytest.approx((A + B + B) / 3, rel=1e-5)
    loss, gradient = presence_loss("multilabel", presence, torch.full_like(masks, IGNORE))
    assert (loss, gradient.abs().max()) == (0, 0)


def test_presence_of_classes() -> None:
    masks = torch.tensor([[[[2, IGNORE]]], [[[IGNORE, IGNORE]]]], dtype=torch.uint8)
    presence = torch.full((2, 3), log(3))
    loss, gradient = presence_loss("multiclass", presence, masks)
    assert loss == pytest.approx((2 * B + A) / 3, rel=1e-5)
    assert gradient[1].abs().max() == 0
    halves = (presence.bfloat16(), presence.bfloat16().float())
    assert len({presence_loss("multiclass", half, masks)[0] for half in halves}) == 1


def test_presence_needs_its_output() -> None:
    loss = WeightedLoss(LossSettings(), presence=True)
    assert loss.weights == {"bce": 1, "dice": 1, "presence": 0.1}
    with pytest.raises(PipelineError, match="loss.presence needs logits of presence"):
        loss(Output(torch.zeros(1, 1, 2, 2)), torch.zeros((1, 1, 2, 2), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("binary", {"dice": {"positives_only": True}}, "loss.dice.positives_only .* set loss.dice.per_image=true"),
        ("multiclass", ELU[0], "loss.lovasz.kind=elu cannot be used in a multiclass"),
        ("binary", cross_entropy(1, 2, 3)[1], r"class_weights is \[1.0, 2.0, 3.0\]; expected 2 numbers"),
        ("multiclass", cross_entropy(1, 2)[1], r"loss.cross_entropy.class_weights is \[1.0, 2.0\]; expected 3"),
        ("multiclass", cross_entropy(1, 2, -1)[1], "expected 3 numbers of at least 0"),
    ],
)
def test_wrong_settings(kind: Kind, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        value(settings, kind, *batch(kind))
