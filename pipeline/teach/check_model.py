"""Checks a network before it is trained: the checks in order, their table, and their JSON.

    python -m pipeline check-model my_unet:UNet --size 64 --channels 1 --classes 1

Nothing is written. The network comes from scratch, by the loader that recipes use (`model.architecture`).
"""

import contextlib
import io
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.core.shortage import pass_on
from pipeline.networks.models import STRIDE, SegmentationNetwork, build, construct, padded, smallest, stride
from pipeline.teach import model_checks as checks
from pipeline.teach import model_training as training
from pipeline.teach.drawn_images import draw
from pipeline.teach.model_probe import Probe, Result, UnusableOutput, described

SHOWN = {
    "pass": "[green]pass[/green]",
    "note": "[yellow]note[/yellow]",
    "fail": "[bold red]FAIL[/bold red]",
    "not run": "[dim]not run[/dim]",
}
SMALLEST, LARGEST = 32, 1024
"""Sides of the images that may be asked for."""


@dataclass(frozen=True)
class Request:
    """Which network is checked, on which images, and for how long."""

    model: ModelSettings
    size: tuple[int, int] = (64, 64)
    channels: int = 1
    classes: int = 1
    minutes: float = 1.0
    """For training on the eight images; the other checks take seconds."""
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """What the checks found."""

    network: str
    results: list[Result]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.status in ("pass", "note") for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as a mapping for JSON."""
        results = [asdict(result) for result in self.results]
        return {"network": self.network, "passed": self.passed, "seconds": round(self.seconds, 2), "checks": results}

    def table(self) -> Table:
        """Returns the table of all checks."""
        table = Table(title=escape(self.network), title_justify="left", show_lines=True)
        for column, width in (("check", 12), ("result", 7)):
            table.add_column(column, min_width=width, no_wrap=True)
        remedies = any(result.remedy for result in self.results)
        for column in ("what was found", "what to do")[: 1 + remedies]:
            table.add_column(column, ratio=1, overflow="fold")
        for result in self.results:
            cells = [result.check, SHOWN[result.status], escape(result.finding), escape(result.remedy)]
            table.add_row(*cells[: 3 + remedies])
        return table

    def last_line(self) -> str:
        """Returns the sentence under the table."""
        failed = [result.check for result in self.results if result.status == "fail"]
        if not failed:
            return f"{self.network} passes: the pipeline can train it."
        return f"{self.network} fails: {', '.join(failed)}."


def model_settings(name: str, encoder: str, options: list[str]) -> ModelSettings:
    """Returns the settings of a network by its name, as a recipe's `model` would give them.

    Args:
        name: `module:Class`, or an architecture of segmentation-models-pytorch.
        encoder: of an architecture.
        options: `key=value` each, values are YAML.

    Raises:
        PipelineError: an option is not written so, or the name is that of a file.
    """
    from pipeline.core.config.settings import override, validate

    module, colon, class_name = name.partition(":")
    if module.endswith(".py") or "/" in module or (colon and not (class_name and module)):
        meant = module.removesuffix(".py").split("/")[-1] or "my_unet"
        raise PipelineError(
            f"{name} is no network: expected module:Class, for instance {meant}:{class_name or 'UNet'}, where "
            f"{meant}.py lies in the folder that holds input/ and work/."
        )
    values: dict[str, Any] = {}
    for option in options:
        if not re.match(r"[^=\s]+=", option):
            raise PipelineError(f"--option {option}: expected key=value, for instance width=32.")
        values = override(values, [option])
    return validate(ModelSettings, {"architecture": name, "encoder": encoder, "options": values}, "check-model")


def check_model(request: Request) -> Report:
    """Returns the report of a network.

    Raises:
        PipelineError: there is no such network, it cannot be constructed, or an option is wrong.
    """
    _check_request(request)
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            network = construct(request.model, request.channels, request.classes)
        probe = Probe(network, request.channels, request.classes, ":" in request.model.architecture)
        probe.printed = text.getvalue()
        results = _results(probe, request)
    return Report(request.model.architecture, results, time.monotonic() - started)


def _check_request(request: Request) -> None:
    if not all(SMALLEST <= side <= LARGEST for side in request.size):
        raise PipelineError(f"--size {request.size[0]}x{request.size[1]}: expected sides of {SMALLEST} to {LARGEST}.")
    if not (1 <= request.channels <= 32 and 1 <= request.classes <= 50):
        raise PipelineError(
            f"--channels {request.channels} --classes {request.classes}: expected 1 to 32 channels and 1 to 50 classes."
        )
    if not 0 < request.minutes <= 60:
        raise PipelineError(f"--minutes {request.minutes:g}: expected more than 0, and at most 60.")


def _results(probe: Probe, request: Request) -> list[Result]:
    _initialize_lazy_layers(probe, request.size)
    parameters = _guarded("parameters", checks.check_parameters, probe)
    shapes = _guarded("shapes", checks.check_shapes, probe, request.size)
    results = [parameters, shapes]
    if shapes.status == "fail" or "requires_grad" in parameters.remedy:
        names = ("evaluation", "dropout", "gradients", "logits", "batch norm", "overfitting", "in the pipeline")
        why = "It needs the checks above to pass."
        return [*results, *_printing(probe), *(Result(name, "not run", why) for name in names)]
    images, masks = _drawn(probe, request)
    results.append(_guarded("one image", checks.check_one_image, probe, request.size))
    results.append(_guarded("evaluation", checks.check_evaluation, probe, images))
    results.append(_guarded("dropout", checks.check_dropout, probe, images, request.model.options))
    results += _trained(probe, images, masks, request)
    results.append(_guarded("in the pipeline", _in_pipeline, request))
    return [*results, *_printing(probe)]


def _guarded(name: str, check: Callable[..., Result], *arguments: Any) -> Result:
    """Returns the result of a check, which fails if the user's code raises an error in it."""
    try:
        return check(*arguments)
    except UnusableOutput as problem:
        return Result(name, "fail", problem.reason, problem.remedy)
    except (Exception, SystemExit) as error:  # methods and properties of the class are the user's code
        pass_on(error)
        return Result(name, "fail", f"This check ended with an error: {described(error)}.", "Correct the class.")


def _initialize_lazy_layers(probe: Probe, size: tuple[int, int]) -> None:
    """Calls a network once if it has lazy layers, which have no parameters before."""
    if any(isinstance(parameter, UninitializedParameter) for parameter in probe.network.parameters()):
        with contextlib.suppress(UnusableOutput):  # check_shapes reports it
            probe.network.eval()
            probe.logits(torch.zeros(2, probe.channels, *(padded(side, STRIDE, 1) for side in size)))


def _drawn(probe: Probe, request: Request) -> tuple[Tensor, Tensor]:
    """The eight images and masks, at the size that the network sees."""
    rows, columns = (padded(side, stride(probe.network), smallest(probe.network)) for side in request.size)
    images, masks = draw((rows, columns), request.channels, request.classes, request.seed)
    return torch.from_numpy(images), torch.from_numpy(masks)


def _trained(probe: Probe, images: Tensor, masks: Tensor, request: Request) -> list[Result]:
    deadline = time.monotonic() + 60 * request.minutes
    before = checks.norm_statistics(probe.network)
    learner = training.Learner(probe, images, masks)
    gradients = _guarded("gradients", training.check_gradients, learner, deadline)
    results = [gradients, _guarded("logits", training.check_range, learner)]
    if not learner.steps:
        why = "No step of training succeeded."
        return [*results, *(Result(name, "not run", why) for name in ("batch norm", "overfitting"))]
    results.append(_guarded("batch norm", checks.check_norm, probe, before))
    return [*results, _guarded("overfitting", training.check_overfit, learner, deadline)]


def _in_pipeline(request: Request) -> Result:
    """Whether the pipeline builds the network, and predicts an image of odd sides with it."""
    rows, columns = checks.ODD
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            inner = build(request.model, request.channels, request.classes, None)
            network = SegmentationNetwork(inner, request.channels, "unit", 255).eval()
            pixels = np.random.default_rng(0).integers(0, 256, (1, request.channels, rows, columns), np.uint8)
            mask = network(torch.from_numpy(pixels)).mask
    except PipelineError as error:
        return Result("in the pipeline", "fail", str(error), "Correct what the message names.")
    text = f"The pipeline takes the network; an image of {rows}×{columns} gives logits {tuple(mask.shape)}."
    return Result("in the pipeline", "pass", text)


def _printing(probe: Probe) -> list[Result]:
    if not probe.printed.strip():
        return []
    first = probe.printed.strip().splitlines()[0]
    return [
        Result(
            "printing", "note", f"The network prints, for instance {first[:60]!r}.",
            "Remove print from the class: it is called once per batch.",
        )
    ]  # fmt: skip
