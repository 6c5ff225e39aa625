"""Writes the separators of touching objects (see model.instances) from the instances in the table of training images.

No raw file is read, so that a recipe that needs separators does not decode the images again.
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
    """Checks that the separators that a network would learn can be used.

    Raises:
        PipelineError: the competition's metric does not distinguish instances, so that tune could not choose anything
            by it.
    """
    instances, competition = run.recipe.model.instances, run.competition
    if run.recipe.trains and instances != "none" and not metric_of(competition).instances:
        raise PipelineError(
            f"model.instances is {instances}, and the metric of {competition.name}, {competition.metric}, does not "
            "distinguish instances, so that tune could not choose anything by it. Expected instance_precision, "
            "instance_f_beta or instance_f1, alone or in a sum; otherwise set model.instances=none."
        )


def write(run: Run) -> None:
    """Writes the separators of all training images (N, classes, H, W) uint8 beside the pixel arrays; see
    masks/separators.py.

    Raises:
        PipelineError: the raw files do not distinguish instances.
    """
    assert run.separators is not None  # otherwise there is no such step
    images, classes = table.read_table(run.table, "train"), run.competition.classes
    instances, geometry = run.recipe.model.instances, geometry_of(run.recipe.image)
    if not any(f"instances_{name}" in images for name in classes):
        raise PipelineError(
            f"model.instances is {instances}, and the raw files of {run.competition.name} do not distinguish "
            f"instances. Expected a row, a mask file or a number per object (`columns: {{rows: instance}}`, a `*` in "
            "train.masks, or `instances: true` beside it); otherwise set model.instances=none."
        )
    shape = (len(images), len(classes), *geometry.size)
    require_space(run.separators.parent, int(np.prod(shape)), f"{instances}s of {len(images)} images")

    def draw(row: pd.Series) -> np.ndarray:
        labels = instances_to_network(table.true_instances(row, classes), geometry)
        return targets_of(labels, "border" if instances == "border" else "distance")

    with writing(run.separators) as temporary, ThreadPoolExecutor() as pool:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        rows = (row for _, row in images.iterrows())
        for number, planes in enumerate(track(pool.map(draw, rows), f"draw {instances}s", len(images))):
            array[number] = planes
        array.flush()
    say(f"  {instances}s of {len(images)} training images → {shown(run.separators)}")
