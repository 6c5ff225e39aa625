"""Guards against submissions that are valid and wrong: what all their masks together look like, beside training masks.

A submission is read back from its texts, so it does not matter what wrote it. Nothing here says that a submission is
bad, only that it is unlike the training set by far more than the number of images explains: test images may differ.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.encode import submission
from pipeline.encode.submission import Expected
from pipeline.masks import statistics
from pipeline.masks.statistics import Statistics

ERRORS = 4.0
"""A difference is noise up to this many of its standard errors."""
SHARE = 0.2
"""Two shares may differ by this much: models are not perfect, and test sets differ."""
FACTOR = 3.0
"""Shares may also differ by this factor."""
SIZE = 1.5
"""The mean size of masks may differ by this factor."""
CORRELATION = 0.2
"""How much better another reading must fit the training masks, as a difference of correlations."""
FITS = 0.5
"""The least correlation of a reading that fits."""
EFFECT = 0.2
"""The least mean elongation of training masks, in standard deviations, that says anything."""
SAME = 0.1
"""This many more of the non-empty masks than in training may be one and the same."""
FEW = 5
"""Images that say nothing together."""

Reading = Callable[[np.ndarray], np.ndarray]
"""From maps (N, C, 2, 16, 16) of Statistics to those of one reading (N, C, 16, 16)."""


def examine(
    path: Path, want: Expected, competition: Competition, never: Collection[str] = (), training: Path | None = None
) -> tuple[list[str], list[str]]:
    """Returns the faults of a submission, each naming its row, and where it has none, warnings of what is odd in it.

    Args:
        path: the submission.
        want: what it must hold.
        competition: its classes.
        never: classes that are left out of it on purpose.
        training: what tune wrote of the training masks; without it they are taken from the training table, where there
            is one.

    Raises:
        PipelineError: no such file, or not a CSV.
    """
    names, exclusive = [competition.classes[number] for number in want.classes], want.settings.format == "labels"
    test = statistics.blank(names, exclusive, want.ids)
    rows = {image_id: row for row, image_id in enumerate(want.ids)}
    columns = {number: column for column, number in enumerate(want.classes)}

    def measure(image_id: str, number: int, mask: np.ndarray) -> None:
        test.add(rows[image_id], columns[number], mask)

    faults, remarks = submission.examine(path, want, measure)
    if faults:
        return faults, []
    if training is None:
        true = statistics.of_table(want.images, names, exclusive)
    else:
        true = statistics.load(training, names, exclusive)
    found = find_warnings(test, true, never)
    return [], remarks + _left_out(want, competition, never) + found


def _left_out(want: Expected, competition: Competition, never: Collection[str]) -> list[str]:
    """Says which classes have no row because the sample submission has none of them."""
    names = {competition.classes[number] for number in want.classes}
    missing = [name for name in competition.foreground if name not in names and name not in never]
    if not missing or want.settings.format == "labels" or not want.settings.labelled:
        return []
    remedy = "where that file is a placeholder, set `sample_submission: null` in the competition's YAML"
    return [f"NO ROW OF {', '.join(missing)}: {want.sample} has none; {remedy}"]


def find_warnings(test: Statistics, training: Statistics, never: Collection[str] = ()) -> list[str]:
    """Returns what in the masks of a submission is unlike the training masks, a sentence each, its first words in
    capitals; none where all differences could be chance.

    Chance is judged by standard errors that know groups: as many images of few patients say less. On top of them a
    difference must be large.

    Args:
        test: of a submission.
        training: of the true masks, the same classes.
        never: classes that are not predicted on purpose, and left out of the comparison.
    """
    test, training = test.without(never), training.without(never)
    if not test.area.size or not training.area.size:
        return []
    if not test.area.any():
        share = (training.area == 0).all(1).mean()
        return [f"ALL MASKS ARE EMPTY: {test.images} of {test.images} images; in training {_percent(share)}"]
    filled, alike = _filled(test, training)
    if alike:
        return filled
    judge = _class_share if test.exclusive else _mask_statistics
    found = [one for column in range(len(test.names)) for one in judge(test, training, column)]
    return [*filled, *found, *_same(test, training), *_turned(test, training)]


# --- what is compared ------------------------------------------------------------------------------------------------


def _filled(test: Statistics, training: Statistics) -> tuple[list[str], bool]:
    """Images that one mask or class fills, and whether nearly all are, so that nothing else needs to be said."""
    full, true = (((one.share if one.exclusive else one.area) == 1).any(1) for one in (test, training))
    if full.mean() - true.mean() <= SHARE or not (full.all() or _beyond_noise(full, true, training.groups)):
        return [], False
    what = "ONE CLASS EVERYWHERE" if test.exclusive else f"{'ALL' if full.all() else 'MANY'} MASKS ARE FULL"
    how = "hold one class alone" if test.exclusive else "are filled"
    text = f"{what}: {full.sum()} of {test.images} images {how}; in training {_percent(true.mean())}"
    return [text], bool(full.mean() > 1 - SHARE)


def _mask_statistics(test: Statistics, training: Statistics, column: int) -> list[str]:
    """Shares of empty masks, and the size of the others."""
    masks = "MASKS" if len(test.names) == 1 else f"MASKS OF {test.names[column]}"
    mine, true = test.area[:, column], training.area[:, column]
    found = []
    if _far(mine > 0, true > 0, training.groups):
        empty, usual = (mine == 0).mean(), (true == 0).mean()
        how = "ALL" if empty == 1 else "TOO MANY" if empty > usual else "TOO FEW"
        found.append(f"{how} {masks} ARE EMPTY: {_percent(empty)}; in training {_percent(usual)}")
    present, among = mine[mine > 0], true > 0
    if len(present) >= FEW and among.sum() >= FEW:
        ratio = present.mean() / true[among].mean()
        if max(ratio, 1 / ratio) > SIZE and _beyond_noise(present, true[among], training.groups[among]):
            how, usual = "LARGE" if ratio > 1 else "SMALL", true[among].mean()
            found.append(
                f"{masks} ARE TOO {how}: where there is one, it covers {_percent(present.mean())} of the image on "
                f"average; in training {_percent(usual)}"
            )
    return found


def _class_share(test: Statistics, training: Statistics, column: int) -> list[str]:
    """The share of a class among the pixels of class maps."""
    mine, true = test.share[:, column], training.share[:, column]
    if not _far(mine, true, training.groups):
        return []
    how = "NO" if not mine.any() else "TOO MUCH" if mine.mean() > true.mean() else "TOO LITTLE"
    return [f"{how} {test.names[column]}: {_percent(mine.mean())} of the pixels; in training {_percent(true.mean())}"]


def _same(test: Statistics, training: Statistics) -> list[str]:
    """One mask, neither empty nor full, for many images."""
    present = np.maximum((test.area > 0).sum(0), 1)
    usual = training.most_common / np.maximum((training.area > 0).sum(0), 1)
    column = int(np.argmax(test.most_common / present - usual))
    count, share = int(test.most_common[column]), test.most_common[column] / present[column]
    noise = np.sqrt(usual[column] * (1 - usual[column]) / present[column])
    if count < FEW or share <= usual[column] + max(SAME, ERRORS * noise):
        return []
    masks = "" if len(test.names) == 1 else f" of {test.names[column]}"
    return [
        f"THE SAME MASK FOR MANY IMAGES: {count} of {present[column]} non-empty masks{masks} are equal; in training "
        f"{_percent(usual[column])}"
    ]


def _turned(test: Statistics, training: Statistics) -> list[str]:
    """Masks that lie where training masks do, or are elongated as those are, only when read otherwise."""
    if np.count_nonzero(test.area) < 2 * FEW:
        return []
    readings = {"with rows and columns exchanged": _transposed, "with pixels numbered in the other order": _renumbered}
    for how, read in readings.items():
        for compare in (_positions, _directions):
            found = compare(test, training, read)
            if found:
                return [f"MASKS LOOK TRANSPOSED: {how} {found}"]
    return []


def _positions(test: Statistics, training: Statistics, read: Reading) -> str:
    """Whether a reading puts masks where the training masks are, and they are not there as they stand: what to say."""
    target = training.position - training.position.mean((1, 2), keepdims=True)
    plain, other = (_correlation(maps.mean(0), target) for maps in (_as_written(test.maps), read(test.maps)))
    if other <= max(plain + CORRELATION, FITS):
        return ""
    gains = [((read(one.maps) * 1.0 - _as_written(one.maps)) * target).sum((1, 2, 3)) for one in (test, training)]
    if not _above_noise(gains[0], gains[1], training.groups):
        return ""
    return f"they lie where the training masks do (correlation {other:.2f}, as they are {plain:.2f})"


def _directions(test: Statistics, training: Statistics, read: Reading) -> str:
    """Whether a reading elongates masks as the training masks are, and they are not so as they stand: what to say."""
    true = _elongation(_as_written(training.maps))
    usual = true.mean(0)
    whole, spread = usual @ usual, (true @ usual).std()
    plain, other = (_elongation(maps) @ usual for maps in (_as_written(test.maps), read(test.maps)))
    near, far = abs(other.mean() - whole), abs(plain.mean() - whole)
    if whole < EFFECT * spread or near > far / 3:  # of a transposed mean: more than half of it has turned its sign
        return ""
    if not _above_noise(other - plain, true @ usual, training.groups):
        return ""
    return (
        f"they are elongated as the training masks are ({other.mean() / whole:.2f} times as much, as they are "
        f"{plain.mean() / whole:.2f} times)"
    )


# --- figures ---------------------------------------------------------------------------------------------------------


def _as_written(maps: np.ndarray) -> np.ndarray:
    return maps[:, :, 0]


def _transposed(maps: np.ndarray) -> np.ndarray:
    return maps[:, :, 0].swapaxes(2, 3)


def _renumbered(maps: np.ndarray) -> np.ndarray:
    return maps[:, :, 1]


def _elongation(maps: np.ndarray) -> np.ndarray:
    """How much longer masks are down than across (N, C) float64, from -1 to 1, of position maps (N, C, 16, 16): what
    changes from cell to cell across, less what changes down, of all changes; 0 of an empty mask."""
    signed = maps.astype(np.int16)
    down, across = (np.abs(np.diff(signed, axis=axis)).sum((2, 3)) for axis in (2, 3))
    return (across - down) / np.maximum(across + down, 1)


def _far(test: np.ndarray, training: np.ndarray, groups: np.ndarray) -> bool:
    """Whether the means of two samples of shares, (n,) and (m,), differ by much more than chance."""
    mine, usual = test.mean(), training.mean()
    large = abs(mine - usual) > SHARE or max(mine, usual) > FACTOR * min(mine, usual)
    return bool(large and _beyond_noise(test, training, groups))


def _beyond_noise(test: np.ndarray, training: np.ndarray, groups: np.ndarray) -> bool:
    """Whether the means of two samples, (n,) and (m,), differ by more than their standard errors explain.

    The spread is that of both together, since a sample without spread would know no error; groups (m,) of training
    images that are alike make errors larger, by as much for the test images, whose groups nobody knows.
    """
    test, training = test.astype(np.float64), training.astype(np.float64)
    spread = np.concatenate([test, training]).var()
    error = np.sqrt(spread * _crowding(training, groups) * (1 / len(test) + 1 / len(training)))
    return bool(abs(test.mean() - training.mean()) > ERRORS * error)


def _above_noise(gains: np.ndarray, training: np.ndarray, groups: np.ndarray) -> bool:
    """Whether the mean of (n,) is above 0 by more than its standard error explains; groups as in _beyond_noise."""
    error = gains.std() * np.sqrt(_crowding(training, groups) / len(gains))
    return bool(gains.mean() > ERRORS * error)


def _crowding(values: np.ndarray, groups: np.ndarray) -> float:
    """How much larger the variance of the mean of values (n,) is than of as many independent ones (the design effect of
    cluster sampling, estimated by the sums over groups); at least 1."""
    centred = values - values.mean()
    _, group = np.unique(groups, return_inverse=True)
    total = (centred**2).sum()
    return max(1.0, float((np.bincount(group, weights=centred) ** 2).sum() / total)) if total > 0 else 1.0


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two position maps (C, 16, 16), after each class's mean is taken away."""
    first, second = (maps - maps.mean((1, 2), keepdims=True) for maps in (one, other))
    product = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / product) if product > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
