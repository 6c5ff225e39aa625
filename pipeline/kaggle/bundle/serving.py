"""Answers for one image at a time, for competitions whose gateway asks an inference server.

    from pipeline.kaggle.bundle.serving import open_bundle

    predictor = open_bundle(Path("/kaggle/input/my-bundle"))
    texts = predictor.texts("image id", image)       # one run-length text per row of the submission

The decision is the one that encode makes; probabilities are those of batches of one image, which differ from larger
batches in their last digits.
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
    """The networks of a bundle, all of them in memory, and its decision."""

    run: Run
    networks: list[tuple[Run, list[Predictor]]]
    """Of every run that predicts, a predictor for each fold."""
    weights: tuple[float, ...]
    decision: Decision
    usual: int | None
    scratch: Any
    """Keeps what was laid out as long as this lives."""

    def masks(self, image: np.ndarray) -> np.ndarray:
        """Returns the masks (C, h, w) uint8 of 0 and 1 of an image (h, w, channels) uint8 or uint16; where the
        decision separates its objects, label maps int32 of them."""
        parts = []
        for run, predictors in self.networks:
            geometry, preprocess = geometry_of(run.recipe.image), preprocess_of(run)
            fitted = image_to_network(image, geometry)
            pixels = to_tensor(preprocess(fitted) if preprocess else fitted)[None]
            found = [predictor(pixels.to(predictor.compute.device))[0][0] for predictor in predictors]
            heads = tuple(presence for _, presence in found if presence is not None) or None
            classes = len(self.run.competition.classes)
            parts.append(blends.RunPredictions.of([mask for mask, _ in found], geometry, heads, classes))
        first = self.networks[0][0].test_folds()
        names = tuple(None if fold is None else str(fold) for fold in first)
        scale = scale_of(self.run.competition)
        blend = blends.Blend(["image"], tuple(parts), self.weights, True, scale, names)
        height, width = image.shape[:2]
        shape = self.run.competition.scored_shape((height, width))
        return blend.objects(0, blend.native(0, shape), self.decision)

    def texts(self, image_id: str, image: np.ndarray | None, shape: tuple[int, int] = (1, 1)) -> list[str]:
        """Returns what the rows of an image hold, in the order of the competition's classes.

        Args:
            image_id: its id, for messages alone.
            image: its pixels (h, w, channels); None where it cannot be read: the usual answer is returned.
            shape: of an image that cannot be read, where rows are class maps.
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
        PipelineError: it is no bundle, or its weights are missing or damaged.
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
