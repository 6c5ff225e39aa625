"""Predicts with trained networks: prepares them for speed and averages them over several views of an image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.freshness import Step
from pipeline.core.intact import read_array
from pipeline.core.run import Member, Run
from pipeline.core.shortage import pass_on
from pipeline.core.trainings import Weights, read_training
from pipeline.masks.scale import scale_of
from pipeline.networks import device, loader
from pipeline.networks.device import Compute
from pipeline.networks.models import SegmentationNetwork, build_network
from pipeline.networks.openvino_network import OpenvinoNetwork
from pipeline.networks.ready import ready
from pipeline.networks.tiles import predict_tiled
from pipeline.networks.views import View, views
from pipeline.networks.weights import read_trained
from pipeline.predictions.files import Predicted, write_resumable
from pipeline.predictions.steps import fingerprint

# --- one network -----------------------------------------------------------------------------------------------------


def load(run: Run, path: Path, compute: Compute, dtype: np.dtype) -> Module:
    """Returns the network with these weights, ready to predict images of a dtype, uint8 or uint16, on the device.

    Raises:
        PipelineError: as `trained`; or predict.backend is not available on this machine.
    """
    network = trained(run, path, dtype)
    if run.recipe.predict.backend == "openvino":
        return OpenvinoNetwork(network, compute)
    return ready(network, run.recipe.image.channels, compute)


def trained(run: Run, path: Path, dtype: np.dtype) -> SegmentationNetwork:
    """Returns the network with these weights, on the CPU.

    Raises:
        PipelineError: the weights are missing or damaged, belong to another network, or were trained on another dtype.
    """
    state = read_trained(path)
    _check_type(path, dtype)
    network = build_network(run, None, dtype)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        pass_on(error)
        summary = " ".join(str(error).split())[:300]
        raise PipelineError(
            f"{shown(path)} does not fit this recipe's network: {summary}. If `model` or `image` changed after "
            "training, restore them, or train another run with --name NAME."
        ) from None
    return network


def _check_type(path: Path, dtype: np.dtype) -> None:
    """Checks that images have the dtype of the training images, if fold.json records it."""
    summary = path.with_name("fold.json")
    trained = read_training(summary, Weights).get("pixels", {}).get("type") if summary.exists() else None
    if trained not in (None, str(dtype)):
        raise PipelineError(
            f"{shown(path)} was trained on {trained} images, but those to predict are {dtype}: convert the image files."
        )


# --- several networks and views --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """Networks whose probabilities are averaged, with the views and tiles in which they see an image."""

    networks: Sequence[Module]
    compute: Compute
    views: Sequence[View]
    """The test-time augmentation; the unchanged image comes first."""
    size: tuple[int, int]
    """The tile that a network sees at once, rows × columns."""
    overlap: float
    never: tuple[int, ...] | None
    """For multiclass competitions, the classes that are never predicted; None if classes are independent."""
    plain: bool = False
    """Whether to return the mean over the unchanged image too, which needs no further forward pass."""

    def __call__(self, pixels: Tensor) -> tuple[list[Predicted], np.ndarray]:
        """Returns the mean over networks and views, followed by the plain mean if `plain` is set, and flags of faults.

        Masks are (n, C, H, W), uint8 (p·255) or float16 for a multiclass competition; with model.instances they are
        followed by as many planes of separators. Presence is (n, C) float32. The flags (networks, n) bool are true
        where a network's probabilities for an image are not finite.

        Memory grows with the batch but not with the number of networks or views, because only sums are kept.
        """
        everything, plain, wrong = _Sum(), _Sum(), []
        with torch.inference_mode(), self.compute.autocast():
            for network in self.networks:
                bad = []
                for number, view in enumerate(self.views):
                    mask, presence = self._probabilities(network, view.forward(pixels), view.size(self.size))
                    mask = view.inverse(mask)
                    bad.append(~torch.isfinite(mask.sum((1, 2, 3)) + (0 if presence is None else presence.sum(1))))
                    everything.add(mask, presence)
                    if self.plain and number == 0:
                        plain.add(mask, presence)
                wrong.append(torch.stack(bad).any(0))
            flags = torch.stack(wrong).cpu().numpy()
            return [total.predicted(self.never is not None) for total in (everything, plain)[: 1 + self.plain]], flags

    def _probabilities(self, network: Module, pixels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        output = predict_tiled(network, pixels, size, self.overlap)
        presence = None if output.presence is None else output.presence.sigmoid()
        if self.never is None:
            return output.mask.sigmoid(), presence
        output.mask[
            :, list(self.never)
        ] = -torch.inf  # before the softmax, so that the other classes keep their precision
        return output.mask.softmax(1), presence


class _Sum:
    """A sum of probabilities."""

    def __init__(self) -> None:
        self.count = 0
        self.mask: Tensor | None = None
        self.presence: Tensor | None = None

    def add(self, mask: Tensor, presence: Tensor | None) -> None:
        self.count += 1
        self.mask = mask if self.mask is None else self.mask + mask
        if presence is not None:
            self.presence = presence if self.presence is None else self.presence + presence

    def predicted(self, multiclass: bool) -> Predicted:
        assert self.mask is not None  # there is at least one network with one view
        mean = self.mask / self.count
        mask = mean.half() if multiclass else (mean * 255).round().to(torch.uint8)
        presence = None if self.presence is None else (self.presence / self.count).cpu().numpy()
        return mask.cpu().numpy(), presence


# --- images of a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """The images of a run that a step predicts, and the members that predict them."""

    step: Step
    """The step from `prediction_step`. If it has two files of probabilities, the second is the plain prediction."""
    members: list[Member]
    """The members whose networks predict."""
    subset: str
    """train or test."""
    rows: np.ndarray
    """The images (N,), as positions in the pixel arrays of the subset."""
    ids: list[str]
    """The ids of the images."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of probabilities."""
        return tuple(path for path in self.step.outputs if path.suffix == ".npy")

    def cut(self, start: int, stop: int) -> "Wanted":
        """Returns the same for the images from `start` to `stop`."""
        return replace(self, rows=self.rows[start:stop], ids=self.ids[start:stop])


def predict_step(run: Run, wanted: Wanted, advance: Callable[[int], None]) -> None:
    """Predicts all images of a step into its files; see predict_into."""
    predict_into(run, wanted, wanted.paths, wanted.step.title, advance, fingerprint(run, wanted.step))
    mention(run, wanted)


def predict_into(
    run: Run, wanted: Wanted, paths: Sequence[Path], title: str, advance: Callable[[int], None], known_by: str
) -> None:
    """Predicts images of a run into files; resumes an interrupted attempt with the same fingerprint.

    Args:
        run: the run.
        wanted: the images.
        paths: the files of probabilities, as many as the step has.
        title: the name of the step in messages.
        advance: called with the number of images that were predicted since the last call.
        known_by: the fingerprint, which identifies everything that the result depends on.

    Raises:
        PipelineError: weights are missing, damaged or of another network, their probabilities are not finite, or the
            disk is full.
    """
    rows, ids = wanted.rows, wanted.ids

    def predict(first: int) -> Iterator[list[Predicted]]:
        if first:
            say(f"  {title}: resuming after {first} of {len(ids)} images")
        seen_as = views(wanted.step.settings["tta"])
        return batches(run, wanted.members, seen_as, len(paths) > 1, wanted.subset, rows[first:], ids[first:])

    classes, size = run.competition.classes, run.recipe.predict.batch_size
    shape, dtype = written_into(run, wanted), scale_of(run.competition).dtype
    write_resumable(paths, shape, dtype, predict, ids, classes, advance, known_by, size)


def written_into(run: Run, wanted: Wanted) -> tuple[int, ...]:
    """Returns the shape of one prediction file, (N, C, H, W); with model.instances (N, 2·C, H, W)."""
    return (len(wanted.ids), run.planes, *run.recipe.image.stored)


def mention(run: Run, wanted: Wanted) -> None:
    """Prints a line on what was predicted, and how."""
    models, tta = sum(len(run.weights(member)) for member in wanted.members), wanted.step.settings["tta"]
    notes = [f"mean of {models} models"] * (models > 1) + [f"test-time augmentation {tta}"] * (tta != "none")
    backend = run.recipe.predict.backend
    notes += [f"computed by {backend}"] * (backend != "torch")
    summary = ", ".join([f"{len(wanted.ids)} images", *notes])
    say(f"  {wanted.step.title}: {summary} → {shown(wanted.paths[0])}")


def batches(
    run: Run,
    members: Sequence[Member],
    seen_as: Sequence[View],
    plain: bool,
    subset: str,
    rows: np.ndarray,
    ids: Sequence[str],
) -> Iterator[list[Predicted]]:
    """Yields, batch by batch, the mean prediction over the networks of some members with all their snapshots.

    Args:
        run: the run.
        members: the members whose networks predict.
        seen_as: the views of each image; see Predictor.
        plain: whether each batch also has the mean over the first view only.
        subset: train or test.
        rows: the images, as positions in the pixel arrays of the subset.
        ids: the ids of the images.

    Raises:
        PipelineError: weights are missing or of another network, or their probabilities are not finite.
    """
    dtype = read_array(run.pixels / f"{subset}_images.npy").dtype
    predictor, paths = open_predictor(run, members, seen_as, plain, dtype)
    compute = predictor.compute
    dataset = loader.PlainDataset(run.pixels, subset, rows, with_masks=False, preprocess=preprocess_of(run))
    done = 0
    try:
        workers = loader.loader_workers(run, compute)
        for (pixels,) in loader.plain_loader(dataset, run.recipe.predict.batch_size, workers):
            predicted, wrong = predictor(pixels.to(compute.device, non_blocking=True))
            if wrong.any():
                network, image = np.argwhere(wrong)[0]
                member, path = paths[network]
                raise PipelineError(_not_numbers(member, path, ids[done + image]))
            done += len(pixels)
            yield predicted
    except RuntimeError as error:
        device.explain_memory(error, run.recipe, predicting=True)
        raise


def open_predictor(
    run: Run, members: Sequence[Member], seen_as: Sequence[View], plain: bool, dtype: np.dtype
) -> tuple[Predictor, list[tuple[Member, Path]]]:
    """Returns a predictor with the networks of some members, including all snapshots, and the member and file of each
    network; see `batches`."""
    compute = device.detect(run.recipe.train.precision)
    paths = [(member, path) for member in members for path in run.weights(member)]
    networks = [load(run, path, compute, dtype) for _, path in paths]
    never = run.never if run.competition.kind == "multiclass" else None
    size, overlap = run.recipe.image.size, run.recipe.predict.overlap
    return Predictor(networks, compute, seen_as, size, overlap, never, plain), paths


def preprocess_of(run: Run) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns the recipe's image.preprocess, or None without it. Prediction imports albumentations only for this."""
    if not run.recipe.image.preprocess:
        return None
    from pipeline.networks.transforms import Preprocess

    return Preprocess(run.recipe.image.preprocess)


def _not_numbers(member: Member, path: Path, image_id: str) -> str:
    fold = "the final model" if member.fold is None else f"fold {member.fold}"
    return (
        f"{fold}, seed {member.seed} ({shown(path)}) predicts NaN or infinite values for image {image_id}. Nothing was "
        "written; train it again with a smaller train.learning_rate or train.precision=32."
    )
