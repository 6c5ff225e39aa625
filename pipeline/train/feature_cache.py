"""Stores the features of a frozen encoder, so that each distinct image is encoded once per training
(`model.cache_features`).

An image is recognised by a hash of its normalised pixels. Without random augmentation other than flips and quarter
turns, there are few distinct images, and after the first epochs only the decoder is computed. The features lie as
float16 in the training's folder, in a file that only grows and whose name depends on the encoder's weights: a killed
training continues with what it has stored.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError
from pipeline.core.files import make_folder, require_space
from pipeline.core.run import Member, Run
from pipeline.networks.models import SegmentationNetwork, encoder_of, padded

KEY = 16
"""Bytes of a hash."""
VARIANTS = {"HorizontalFlip": 2, "VerticalFlip": 2, "Transpose": 2, "RandomRotate90": 4, "D4": 8}
"""The transforms that make few distinct images, with the number that each makes of one."""
INPUT = object()
MOST = 8
"""The number of symmetries of a square."""


def check(recipe: Recipe) -> None:
    """Checks that a recipe with `model.cache_features` has a frozen encoder and few distinct images.

    Raises:
        PipelineError: it has not.
    """
    if not recipe.model.cache_features:
        return
    train, image = recipe.train, recipe.image
    other = [name for entry in recipe.augment for name in entry if name not in VARIANTS]
    mixed = train.mix.cutmix or train.mix.mixup or train.mix.paste
    needed = {
        f"model.freeze=all (it is {recipe.model.freeze})": recipe.model.freeze == "all",
        f"only flips and quarter turns in `augment` (it has {', '.join(other)})": not other,
        "image.position=fixed": image.position == "fixed",
        "image.store=null": image.store is None,
        "train.half_size=0": not train.half_size,
        "no train.mix": not mixed,
        "train.compile=false": not train.compile,
        "one device": train.devices * train.num_nodes == 1,
    }
    if missing := [what for what, given in needed.items() if not given]:
        raise PipelineError(
            f"model.cache_features stores the features of every distinct image, so it needs {'; '.join(missing)}."
        )


def install(network: SegmentationNetwork, run: Run, member: Member, images: int) -> None:
    """Makes the encoder of a network use stored features if the recipe asks for it.

    Args:
        network: the network, with a frozen encoder.
        run: the run.
        member: the member that is trained.
        images: the number of images that it trains on and predicts.
    """
    encoder = encoder_of(network)
    if not run.recipe.model.cache_features or encoder is None:
        return
    variants = np.prod([VARIANTS[name] for entry in run.recipe.augment for name in entry], dtype=int)
    height, width = (padded(side, network.stride, network.smallest) for side in run.recipe.image.size)
    folder, distinct = run.fold_folder(member.fold, member.seed), images * min(MOST, int(variants))
    cache = FeatureCache(encoder, folder, (height, width), distinct)
    encoder.forward = lambda pixels: cache(pixels)  # a function, because copies of the network share it


class FeatureCache:
    """The features of an encoder, read from a file or computed and added to it.

    Features are rounded to float16 also when they have just been computed, so that a resumed training sees the same
    ones. A feature that is the input itself is not stored.
    """

    def __init__(self, encoder: Module, folder: Path, size: tuple[int, int], expected: int) -> None:
        """Takes a frozen encoder, the folder of the files, and the size and expected number of distinct images."""
        self.compute, self.folder, self.size, self.expected = encoder.forward, folder, size, expected
        self.name = f"features_{size[0]}x{size[1]}_{_fingerprint(encoder)}"
        self.rows: dict[bytes, int] = {}
        self.layout: Layout | None = None
        make_folder(folder)

    def __call__(self, images: Tensor) -> Any:
        """Returns the features of images (N, C, H, W), structured as the encoder returns them. Nothing is stored for
        images of another size, nor in torch.jit.trace."""
        if images.shape[2:] != self.size or torch.jit.is_tracing():
            return self.compute(images)
        with torch.no_grad():
            if self.layout is None:
                self.layout = Layout.of(self.compute(images[:1]), images)
                self._open(self.layout.values * 2)
            return self.layout.features(self._read(self._rows_of(images), self.layout.values), images)

    def _open(self, size: int) -> None:
        """Reads which images are stored, and drops a last one whose writing was interrupted."""
        require_space(self.folder, size * self.expected, "stored features", "image.size, or model.cache_features=false")
        features, keys = (self.folder / f"{self.name}.{kind}" for kind in ("bin", "keys"))
        known = keys.read_bytes() if keys.exists() else b""
        whole = min(len(known) // KEY, features.stat().st_size // size if features.exists() else 0)
        self.rows = {known[KEY * row : KEY * (row + 1)]: row for row in range(whole)}
        self.reader = features.open("a+b", buffering=0)
        self.writer = keys.open("ab", buffering=0)
        self.reader.truncate(whole * size)
        self.writer.truncate(whole * KEY)

    def _rows_of(self, images: Tensor) -> list[int]:
        """Returns the row of each image in the file, after adding those that are new."""
        pixels = images.detach().float().cpu().contiguous().numpy()
        names = [hashlib.blake2b(image.tobytes(), digest_size=KEY).digest() for image in pixels]
        new = {name: number for number, name in enumerate(names) if name not in self.rows}
        if new:
            outputs, _ = pytree.tree_flatten(self.compute(images[list(new.values())]))
            features = [value.flatten(1).float().cpu().numpy() for value in outputs if _is_stored(value, images)]
            largest = float(np.finfo(np.float16).max)
            self.reader.seek(0, 2)
            self.reader.write(np.concatenate(features, 1).clip(-largest, largest).astype(np.float16).tobytes())
            self.writer.write(b"".join(new))
            self.rows |= {name: len(self.rows) + number for number, name in enumerate(new)}
        return [self.rows[name] for name in names]

    def _read(self, rows: list[int], values: int) -> Tensor:
        """Returns the features (N, values) float16 of rows of the file."""
        flat = np.empty((len(rows), values), np.float16)
        for place, row in zip(flat, rows, strict=True):
            self.reader.seek(row * 2 * values)
            self.reader.readinto(place.view(np.uint8))  # type: ignore[arg-type]
        return torch.from_numpy(flat)


@dataclass(frozen=True)
class Layout:
    """How the outputs of an encoder lie in one row of values."""

    structure: Any
    outputs: list[Any]
    """The outputs for one image; INPUT for the input itself."""
    values: int
    """The number of stored values per image."""

    @classmethod
    def of(cls, outputs: Any, images: Tensor) -> "Layout":
        """Returns the layout of the outputs for the first of the images."""
        flat, structure = pytree.tree_flatten(outputs)
        kept = [INPUT if isinstance(value, Tensor) and not _is_stored(value, images) else value for value in flat]
        return cls(structure, kept, sum(value[0].numel() for value in kept if isinstance(value, Tensor)))

    def features(self, flat: Tensor, images: Tensor) -> Any:
        """Returns the outputs for images (N, C, H, W) from their stored values (N, values)."""
        outputs, first = [], 0
        for like in self.outputs:
            if not isinstance(like, Tensor):
                outputs.append(images if like is INPUT else like)
                continue
            last = first + like[0].numel()
            values = flat[:, first:last].reshape(len(images), *like.shape[1:]).to(images.device, like.dtype)
            outputs.append(values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values)
            first = last
        return pytree.tree_unflatten(outputs, self.structure)


def _fingerprint(encoder: Module) -> str:
    """Returns a hash of the weights of an encoder, as 16 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=8)
    for value in encoder.state_dict().values():
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _is_stored(value: Any, images: Tensor) -> bool:
    """Returns whether an output of the encoder is a tensor other than its input."""
    return isinstance(value, Tensor) and value.shape[1:] != images.shape[1:]
