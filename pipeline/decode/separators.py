"""What separates touching objects of the training images, from the instances in their table: see model.instances.

It reads no raw file: a recipe that asks for borders after one that does not decodes no image again.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from pipeline.core.console import say, track
from pipeline.core.errors import PipelineError
from pipeline.core.files import require_space, shown, writing
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks.geometry import geometry_of, instances_to_network
from pipeline.masks.metrics import metric_of
from pipeline.masks.separators import targets_of


def check(run: Run) -> None:
    """Checks that what a network would learn of objects can be used.

    Raises:
        PipelineError: the competition's metric tells no instances apart, so that tune could choose nothing.
    """
    instances, competition = run.recipe.model.instances, run.competition
    if run.recipe.trains and instances != "none" and not metric_of(competition).instances:
        raise PipelineError(
            f"model.instances is {instances}, and the metric of {competition.name}, {competition.metric}, tells no "
            "instances apart, so that tune could choose nothing by it; expected instance_precision, "
            "instance_f_beta or instance_f1, alone or in a sum: set model.instances=none."
        )


def write(run: Run) -> None:
    """Writes what the network learns of every training image beside the pixel arrays (N, classes, H, W) uint8; see
    masks/separators.py.

    Raises:
        PipelineError: the raw files tell no instances apart.
    """
    assert run.separators is not None  # or there would be no step
    images, classes = table.read_table(run.table, "train"), run.competition.classes
    instances, geometry = run.recipe.model.instances, geometry_of(run.recipe.image)
    if not any(f"instances_{name}" in images for name in classes):
        raise PipelineError(
            f"model.instances is {instances}, and the raw files of {run.competition.name} tell no instances apart; "
            "expected a row, a mask file or a number per object (`columns: {rows: instance}`, a `*` in train.masks, or "
            "`instances: true` beside it): set model.instances=none."
        )
    shape = (len(images), len(classes), *geometry.size)
    require_space(run.separators.parent, int(np.prod(shape)), f"{instances}s of {len(images)} images")

    def draw(row: pd.Series) -> np.ndarray:
        labels = instances_to_network(table.true_instances(row, classes), geometry)
        return targets_of(labels, "border" if instances == "border" else "distance")

    with writing(run.separators) as temporary, ThreadPoolExecutor() as pool:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        rows = (row for _, row in images.iterrows())
        for number, found in enumerate(track(pool.map(draw, rows), f"draw {instances}s", len(images))):
            array[number] = found
        array.flush()
    say(f"  {instances}s of {len(images)} training images → {shown(run.separators)}")
