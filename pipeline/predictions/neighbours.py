"""Averages the presence head's probability over near-duplicate images, such as frames of one video."""

import numpy as np
import pandas as pd

from pipeline.clean.duplicates import near_pairs
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.decode import table


def averaged(presence: np.ndarray, run: Run, ids: list[str], of_test: bool) -> np.ndarray:
    """Returns presence probabilities (N, C) in which each image has the mean over itself and its near-duplicates.

    Near-duplicates are found with the competition's `clean.duplicates`, on the descriptors that decode wrote.

    Args:
        presence: the probabilities (N, C).
        run: the run.
        ids: the N image ids.
        of_test: whether these are test images instead of training images.

    Raises:
        PipelineError: an image was predicted that decode does not list.
    """
    listed, *paths = (run.table, run.histograms, run.thumbnails)
    if of_test:
        listed, *paths = (run.test_table, run.test_histograms, run.test_thumbnails)
    rows = pd.Index(table.read_table(listed)["image_id"]).get_indexer(pd.Index(ids))
    if (rows < 0).any():
        raise PipelineError(
            f"{shown(listed)} does not list image {ids[int(np.argmin(rows))]}, for which there is a prediction; put "
            "its file back and decode again, or predict again without it."
        )
    histograms, thumbnails = (read_array(path)[rows] for path in paths)
    pairs = near_pairs(histograms, thumbnails, run.competition.clean.duplicates)
    total, count = presence.astype(np.float64), np.ones((len(presence), 1))
    for image, neighbour in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
        np.add.at(total, image, presence[neighbour])
        np.add.at(count, image, 1)
    return total / count
