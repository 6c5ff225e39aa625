"""Multiclass competitions: biases and classes that are never predicted, as a problem for selection.py.

Steps are fitted on pixels drawn from the images; what postprocess.json says of the final decisions is counted on all.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline import biases, table
from pipeline.competition import Competition
from pipeline.estimates import Score
from pipeline.geometry import IGNORE
from pipeline.held_out import HeldOut, Mix
from pipeline.metrics import confusion, pooled_score
from pipeline.postprocess import Biases

STEPS = ("bias", "never")
PIXELS = 10_000_000
"""How many pixels final biases are searched on; of more, an equal number is drawn from every image."""
JUDGED = 1_000_000
"""How many of them a step is judged on, by decisions that are not used."""


class LabelProblem:
    """Biases of classes, on pixels of out-of-fold images."""

    def __init__(self, pixels: np.ndarray, true: np.ndarray, owner: np.ndarray, images: int, competition: Competition,
                 never: tuple[int, ...]) -> None:  # fmt: skip
        """Probabilities (M, C) float32, true classes (M,) uint8 and image numbers (M,) of pixels that count."""
        self.score: Score = pooled_score(competition)
        self._images = images
        self.untuned = Biases((0.0,) * len(competition.classes), never)
        self._all = pixels, true, owner
        every = max(1, len(true) // JUDGED)
        self._few = pixels[::every], true[::every], owner[::every]

    def prepare(self, step: str, decisions: Sequence[Biases]) -> None:
        """Does nothing: pixels are at hand."""

    def fit(self, step: str, decision: Biases, rows: np.ndarray, final: bool) -> Biases:
        """Returns the decision with the best biases, or with the class that it is best never to predict."""
        pixels, true, owner = self._all if final else self._few
        mine = self._marks(rows)[owner]
        if step == "bias":
            return Biases(biases.search(pixels[mine], true[mine], self.score, decision.never), decision.never)
        spared = [index for index in range(len(decision.bias)) if index not in decision.never]
        if len(spared) < 3:
            return decision
        wider = [replace(decision, never=tuple(sorted({*decision.never, index}))) for index in spared]
        pixels, true, _ = self._few
        mine = self._marks(rows)[self._few[2]]
        scores = [float(self.score(self._confusion(one, pixels[mine], true[mine]))) for one in (decision, *wider)]
        best = int(np.argmax(scores))
        return decision if best == 0 else wider[best - 1]

    def counts(self, decision: Biases, rows: np.ndarray) -> np.ndarray:
        """Returns the confusion matrices (n, C, C) of the images' drawn pixels."""
        pixels, true, owner = self._few
        place = np.full(self._images, -1)
        place[rows] = np.arange(len(rows))
        mine = place[owner] >= 0
        predicted = biases.labels(pixels[mine].T, decision.bias, decision.never)
        classes = len(decision.bias)
        cells = (place[owner[mine]] * classes + true[mine]) * classes + predicted
        return np.bincount(cells, minlength=len(rows) * classes**2).reshape(len(rows), classes, classes)

    def _marks(self, rows: np.ndarray) -> np.ndarray:
        marks = np.zeros(self._images, bool)
        marks[rows] = True
        return marks

    def _confusion(self, decision: Biases, pixels: np.ndarray, true: np.ndarray) -> np.ndarray:
        return confusion(biases.labels(pixels.T, decision.bias, decision.never), true, len(decision.bias))


def draw_pixels(
    held: HeldOut, mixes: Sequence[Mix], counted: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns, for each mix, probabilities (M, C) float32, true classes (M,) uint8 and image numbers (M,) of pixels
    that count, in the images at `counted` (positions); M is at most PIXELS."""
    largest, ignored = max(64, PIXELS // max(1, len(counted))), held.run.competition.ignored

    def draw(number: int, probabilities: list[np.ndarray], masks: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        true = table.true_labels(masks)
        pixels = np.flatnonzero((true != IGNORE) & (true != (IGNORE if ignored is None else ignored)))
        if len(pixels) > largest:
            pixels = np.random.default_rng([0, number]).choice(pixels, largest, replace=False)
        return [one.reshape(len(one), -1)[:, pixels].T for one in probabilities], true.ravel()[pixels]

    drawn = held.each(mixes, draw, "draw pixels", counted.tolist())
    true = np.concatenate([one for _, one in drawn])
    owner = np.repeat(counted, [len(one) for _, one in drawn])
    return [(np.concatenate([found[place] for found, _ in drawn]), true, owner) for place in range(len(mixes))]


def confusions(held: HeldOut, mixes: Sequence[Mix], decisions: Sequence[Sequence[Biases]]) -> np.ndarray:
    """Returns confusion matrices (decisions, N, C, C) of every image under each of its decisions (N, decisions), all
    pixels counted; the d-th decision is under the d-th mix."""

    def count(number: int, probabilities: list[np.ndarray], masks: np.ndarray) -> list[np.ndarray]:
        true = table.true_labels(masks)
        pairs = zip(probabilities, decisions[number], strict=True)
        return [confusion(biases.labels(one, own.bias, own.never), true, len(masks)) for one, own in pairs]

    return np.array(held.each(mixes, count, "score")).swapaxes(0, 1)
