"""Predicts one image at a time, for competitions that require an inference server.

    from pipeline.kaggle.bundle.serving import open_bundle

    predictor = open_bundle(Path("/kaggle/input/my-bundle"))
    texts = predictor.texts("image id", image)       # one run-length text per row of the submission

The decision rule is the same as in encode. Images are predicted in batches of one, whose probabilities differ from
those of larger batches in the last digits.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record
from pipeline.core.other_runs import runs_of
from pipeline.core.results import read_tuned
from pipeline.core.run import Run
from pipeline.encode import submission
from pipeline.kaggle.bundle import project
from pipeline.masks.decision import Decision, decision_of
from pipeline.masks.geometry import geometry_of, image_to_network
from pipeline.masks.scale import scale_of
from pipeline.networks.loader import to_tensor
from pipeline.networks.predictor import Predictor, open_predictor, preprocess_of
from pipeline.networks.views import views
from pipeline.predictions import blends, kept_views


@dataclass(frozen=True)
class ImagePredictor:
    """All networks of a bundle, in memory, with its decision rule."""

    run: Run
    networks: list[tuple[Run, list[Predictor]]]
    """Each run that predicts, with one predictor per fold."""
    weights: tuple[float, ...]
    decision: Decision
    usual: int | None
    scratch: Any
    """The temporary folder of the bundle's files, which is removed together with this object."""

    def masks(self, image: np.ndarray) -> np.ndarray:
        """Returns the masks (C, H, W) uint8 of 0 and 1 of an image (H, W, channels) uint8 or uint16.

        If the decision rule separates touching objects, label maps (C, H, W) int32 are returned instead.
        """
        parts = []
        for run, predictors in self.networks:
            geometry, preprocess = geometry_of(run.recipe.image), preprocess_of(run)
            fitted = image_to_network(image, geometry)
            pixels = to_tensor(preprocess(fitted) if preprocess else fitted)[None]
            predicted = [predictor(pixels.to(predictor.compute.device))[0][0] for predictor in predictors]
            heads = tuple(presence for _, presence in predicted if presence is not None) or None
            classes = len(self.run.competition.classes)
            parts.append(blends.RunPredictions.of([mask for mask, _ in predicted], geometry, heads, classes))
        first = self.networks[0][0].test_folds()
        names = tuple(None if fold is None else str(fold) for fold in first)
        scale = scale_of(self.run.competition)
        blend = blends.Blend(["image"], tuple(parts), self.weights, True, scale, names)
        height, width = image.shape[:2]
        shape = self.run.competition.scored_shape((height, width))
        return blend.objects(0, blend.native(0, shape), self.decision)

    def texts(self, image_id: str, image: np.ndarray | None, shape: tuple[int, int] = (1, 1)) -> list[str]:
        """Returns the texts of an image's rows in the submission, in the order of the competition's classes.

        Args:
            image_id: id of the image, for messages.
            image: pixels (H, W, channels); None for an image that cannot be read, which gets the usual answer.
            shape: rows and columns of an image that cannot be read, needed if rows are class maps.
        """
        competition = self.run.competition
        masks = self.masks(image) if image is not None else self._usual(shape)
        want = submission.format_of(competition)
        return submission.cells_of(image_id, masks, want)

    def _usual(self, shape: tuple[int, int]) -> np.ndarray:
        masks = np.zeros((len(self.run.competition.classes), *shape), np.uint8)
        if self.usual is not None:
            masks[self.usual] = 1
        return masks


def open_bundle(bundle: Path) -> ImagePredictor:
    """Returns the networks of a bundle, ready to predict.

    Raises:
        PipelineError: the folder is not a bundle, or its weights are missing or damaged.
    """
    about = read_record(bundle / "bundle.json")
    if about.get("format") != 1:
        raise PipelineError(f"{bundle / 'bundle.json'} is missing, damaged or of another version.")
    scratch = tempfile.TemporaryDirectory(prefix="bundle-", ignore_cleanup_errors=True)
    run = project.lay_out(bundle, about["run"], Path(scratch.name).resolve())
    networks = []
    for other in runs_of(run):
        with np.load(bundle / "runs" / other.name / "canary.npz", allow_pickle=False) as canary:
            dtype = canary["images"].dtype
        seen_as = views(kept_views.views_of(other))
        folds = other.test_folds()
        networks.append(
            (other, [open_predictor(other, other.members(fold), seen_as, False, dtype)[0] for fold in folds])
        )
    result = read_tuned(run)
    usual, weights = submission.usual_class(result), blends.weights_of(run, result)
    return ImagePredictor(run, networks, weights, decision_of(result), usual, scratch)
