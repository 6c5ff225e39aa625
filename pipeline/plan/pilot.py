"""Measures how long training steps and predictions take on this machine, with a network that is thrown away."""

import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import torch

from pipeline.core.plan import Costs
from pipeline.core.run import Member, Run
from pipeline.decode import table
from pipeline.networks import device, weights
from pipeline.networks.device import Compute, explain_memory
from pipeline.networks.tiles import predict_tiled
from pipeline.train.batches.targets import Chosen
from pipeline.train.fit import explain_batch, network_and_batches
from pipeline.train.losses import WeightedLoss
from pipeline.train.module import halved, split_parameters
from pipeline.train.optimization import build_optimizer

STEPS, SECONDS = 4, 6.0
"""The number of timed steps per size, and the seconds after which no further one is made."""


def measure(run: Run, member: Member, chosen: Chosen, sharing: int = 1) -> Costs:
    """Returns the measured costs of training one member on the chosen images.

    `sharing` is the number of trainings that may share the cores of a CPU. A step with the threads that each of them
    has then is measured, too, but only one at a time.

    Raises:
        PipelineError: weights are missing, a setting does not suit the data, or memory runs out.
    """
    compute, settings = device.detect(run.recipe.train.precision), run.recipe.train
    source = None if settings.start_from else weights.resolve(run.recipe.model)
    images = table.read_table(run.table, "train")
    tests = table.read_table(run.test_table) if settings.pseudo else images[:0]
    network, train, valid = network_and_batches(run, member, chosen, (images, tests), source, compute)
    network.to(compute.device)
    try:
        half, full = (_step(run, network, train, compute, at_half) for at_half in (True, False))
        image, slower = _prediction(run, network, valid, compute), 1.0
        if sharing > 1:
            slower = max(1.0, _with_fewer_threads(sharing, lambda: _step(run, network, train, compute, False)) / full)
        return Costs(half=half * settings.accumulate, full=full * settings.accumulate, image=image, side_by_side=slower)
    except RuntimeError as error:
        explain_memory(error, run.recipe, False)
        raise
    except ValueError as error:
        explain_batch(error, run.recipe)
        raise


def _step(run: Run, network: Any, train: Any, compute: Compute, at_half: bool) -> float:
    """Returns the seconds of a step with one batch, including its loading; the first step is not timed."""
    model = run.recipe.model
    loss = WeightedLoss(run.recipe.loss, run.competition.kind, model.presence, model.instances)
    optimizer = build_optimizer(run.recipe.train, *split_parameters(network))
    network.train()

    def step() -> None:
        batch = next(batches)
        batch = type(batch)(*(part.to(compute.device) for part in batch))
        batch = halved(batch) if at_half else batch
        with compute.autocast():
            value = loss(network(batch.pixels), batch.masks)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        value.item()  # waits for a GPU

    batches = chain.from_iterable(repeat(train))
    return _timed(step)


def _with_fewer_threads(sharing: int, work: Callable[[], float]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // sharing))
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def _prediction(run: Run, network: Any, valid: Any, compute: Compute) -> float:
    """Returns the seconds per predicted image."""
    network.eval()
    pixels = next(iter(valid))[0].to(compute.device)

    def predict() -> None:
        with torch.inference_mode(), compute.autocast():
            output = predict_tiled(network, pixels, run.recipe.image.size, run.recipe.predict.overlap)
            output.mask.float().sum().item()  # waits for a GPU

    return _timed(predict) / len(pixels)


def _timed(work: Any) -> float:
    """Returns the mean seconds of some calls of `work` after a first one."""
    work()
    return _mean(islice(_durations(work), STEPS))


def _durations(work: Any) -> Iterator[float]:
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        work()
        yield time.perf_counter() - started


def _mean(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
