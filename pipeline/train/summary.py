"""A table of the layers of a network: output shapes, parameters, operations, and the size of its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_summary import ModelSummary

from pipeline.core.files import shown, write_text
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.core.shortage import pass_on
from pipeline.networks import models

FILE = "model.txt"


class _Example(LightningModule):
    """A network with an example of its input, as Lightning's ModelSummary takes it. Nothing is computed: tensors on
    the device `meta` have shapes and no values."""

    def __init__(self, network: torch.nn.Module, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.network = network
        self.to("meta")
        self.example_input_array = None if shape is None else torch.zeros(shape, device="meta")

    def forward(self, pixels: torch.Tensor) -> Any:
        """Returns the outputs of the network."""
        return self.network(pixels)


def write_summary(run: Run, folders: Sequence[Path]) -> str:
    """Writes the layers of the recipe's network to model.txt in each of the folders, and returns one line about it.

    Lightning's summary is used because Lightning is installed anyway; the last release of the package torchinfo is of
    May 2023.
    """
    dtype = read_array(run.pixels / "train_images.npy").dtype
    model, (height, width) = run.recipe.model, run.recipe.image.size
    network = models.build_network(run, None, dtype)
    try:
        summary = ModelSummary(_Example(network, (1, run.recipe.image.channels, height, width)), max_depth=-1)
        operations = f", {summary.total_flops / 1e9:.3g} GFLOPs per {height}×{width} image"
    except Exception as error:  # a network of your own may need values, which `meta` tensors do not have
        pass_on(error)
        network = models.build_network(run, None, dtype)
        summary, operations = ModelSummary(_Example(network, None), max_depth=-1), ""
    encoder = "" if ":" in model.architecture else f", encoder {model.encoder}"
    text = (
        f"{model.architecture}{encoder}: {summary.total_parameters:,} parameters ({summary.model_size:.1f} MB in "
        f"float32){operations}"
    )
    layers = "\n".join(row.rstrip() for row in str(summary).splitlines())
    paths = [folder / FILE for folder in folders]
    for path in paths:
        write_text(path, f"{text}\n\n{layers}\n")
    return f"network: {text}; all layers: {shown(paths[0])}"
