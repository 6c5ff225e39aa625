"""The presence head's probability, averaged over near-duplicate images: frames of one video agree on what is there."""

import numpy as np
import pandas as pd

from pipeline.clean.duplicates import near_pairs
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.decode import table


def averaged(presence: np.ndarray, run: Run, ids: list[str], of_test: bool) -> np.ndarray:
    """Returns presence probabilities (N, C) of training images, or with `of_test` of test images, each the mean of its
    own and its near-duplicates' among them.

    What is near follows `clean.duplicates` of the competition, on the descriptors that decode wrote.

    Raises:
        PipelineError: an image was predicted that decode does not list.
    """
    listed, *paths = (run.table, run.histograms, run.thumbnails)
    if of_test:
        listed, *paths = (run.test_table, run.test_histograms, run.test_thumbnails)
    rows = pd.Index(table.read_table(listed)["image_id"]).get_indexer(pd.Index(ids))
    if (rows < 0).any():
        raise PipelineError(
            f"{shown(listed)} does not list image {ids[int(np.argmin(rows))]}, which was predicted; put its file "
            "back and decode again, or predict again without it."
        )
    histograms, thumbnails = (read_array(path)[rows] for path in paths)
    pairs = near_pairs(histograms, thumbnails, run.competition.clean.duplicates)
    total, count = presence.astype(np.float64), np.ones((len(presence), 1))
    for one, other in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
        np.add.at(total, one, presence[other])
        np.add.at(count, one, 1)
    return total / count
