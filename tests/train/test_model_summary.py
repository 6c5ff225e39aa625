"""The summary of a network: what model.txt and its one line say."""

from dataclasses import replace

import torch
from conftest import Tiny
from trainings import prepare

from pipeline.networks import models
from pipeline.report import look
from pipeline.train.summary import write_summary


class Peeks(torch.nn.Module):
    """A network that looks at a value."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (2 if float(x.detach().max()) > 0 else 1)


def test_the_layers_of_a_network(tiny: Tiny) -> None:
    run = prepare(tiny, {"image": {"size": [48, 64]}})
    folders = [run.fold_folder(fold) for fold in (0, 1)]
    line = write_summary(run, folders)
    network = models.build(run.recipe.model, 1, 1, None)
    count = sum(one.numel() for one in network.parameters())
    assert line.startswith(
        f"network: ConfigurableUnet, encoder plain: {count:,} parameters ({4e-6 * count:.1f} MB in float32), "
    )
    assert " GFLOPs per 48×64 image; all layers: " in line and line.endswith("/fold_0/model.txt")
    text, other = ((folder / "model.txt").read_text(encoding="utf-8") for folder in folders)
    assert text == other == look.network(run)
    assert text.startswith(line.removeprefix("network: ").partition(";")[0])
    rows = [row.split("|") for row in text.splitlines() if "network.network.encoder.levels.2.0" in row]
    assert [cell.strip() for cell in rows[0][2:4]] == ["Conv2d", "2.3 K"]
    assert rows[0][-1].strip() == "[1, 16, 16, 16]"  # padded to 64×64, and pooled twice
    # a network that needs values has no operations
    model = run.recipe.model.model_copy(update={"architecture": f"{__name__}:Peeks", "options": {}})
    line = write_summary(replace(run, recipe=run.recipe.model_copy(update={"model": model})), [run.folder])
    assert line.startswith(f"network: {__name__}:Peeks: 2 parameters (0.0 MB in float32); all layers: ")
