"""Guards against submissions that are valid and wrong: what all their masks together look like, beside training masks.

A submission is read back from its texts, so it does not matter what wrote it. Nothing here says that a submission is
bad, only that it is unlike the training set by far more than the number of images explains: test images may differ.
"""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.verdict import LEVELS, Level, Reason
from pipeline.encode import numbering, submission
from pipeline.encode.submission import Expected
from pipeline.masks import statistics
from pipeline.masks.statistics import Statistics

CHANCE = 0.001
"""The chance of a false alarm that a comparison of shares or sizes may have, of all classes together."""
ERRORS = 4.0
"""Where masks lie and what they look like differs by noise up to this many standard errors."""
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
GRAVE = 4.0
"""A share or a size that is off by this factor is no matter of taste: the submission is not worth an upload."""
CONCEIVABLE = 0.05
"""The chance of nothing but empty masks from which on they may be right."""
LOOK = "notebooks/06_from_predictions_to_submission.ipynb"
"""Shows masks of the test images as they are submitted, and their figures beside those of training."""
ORDER = "rle.order in the competition's YAML"

Reading = Callable[[np.ndarray], np.ndarray]
"""From maps (N, C, 2, 16, 16) of Statistics to those of one reading (N, C, 16, 16)."""


def examine(
    path: Path,
    want: Expected,
    competition: Competition,
    never: Collection[str] = (),
    training: Path | None = None,
    prior: float | None = None,
    certainty: bool = False,
) -> tuple[list[str], list[Reason]]:
    """Returns the faults of a submission, each naming its row, and where it has none, what is odd in it.

    Args:
        path: the submission, a file of any kind or a folder of mask images.
        want: what it must hold.
        competition: its classes.
        never: classes that are left out of it on purpose.
        training: what tune wrote of the training masks; without it they are taken from the training table, where there
            is one.
        prior: see find_reasons.
        certainty: whether a note says how sure order, size and base are.

    Raises:
        PipelineError: no such file, or not a CSV.
    """
    names, exclusive = [competition.classes[number] for number in want.classes], want.settings.format == "labels"
    parts = [(name, one.image_id) for one in want.windows.values() for name in one.ids]
    parts += [(name, name) for name in want.ids if name not in want.windows]
    test = statistics.blank(names, exclusive, [group for _, group in parts])
    rows = {name: row for row, (name, _) in enumerate(parts)}
    columns = {number: column for column, number in enumerate(want.classes)}

    lines = numbering.Lines(want.convention.order)

    def measure(image_id: str, number: int, mask: np.ndarray) -> None:
        test.add(rows[image_id], columns[number], mask)
        if not exclusive and not want.windows:  # runs of a whole image do not follow each other by lines of a window
            lines.add(mask, image_id)

    faults, notes = submission.examine(path, want, measure)
    if faults:
        return faults, []
    if training is None:
        true = statistics.of_table(want.images, names, exclusive)
    else:
        true = statistics.load(training, names, exclusive)
    found = find_reasons(test, true, never, prior)
    if not exclusive and not want.windows and want.is_table:
        known, usual = {one.kind for one in found}, numbering.of_training(want)
        found += [one for one in numbering.find_reasons(lines, usual) if one.kind not in known]
        if certainty:
            found.append(Reason("note", "order, size and base", numbering.certainty(lines, usual)))
    return [], notes + _left_out(want, competition, never) + found


def format_note(want: Expected, competition: Competition) -> list[Reason]:
    """Returns that nothing but the YAML says what a submission looks like, where there is no sample submission."""
    if want.sample is not None or competition.reader != "rle_csv":
        return []
    shown = ", ".join(want.header[:4])
    written = f"columns ({shown}) and run lengths" if want.is_table else "mask images"
    text = f"No sample submission shows the format: {written} are as the YAML has them."
    return [Reason("note", "format", text, "submission and rle in the competition's YAML")]


def warnings_of(reasons: Iterable[Reason]) -> list[str]:
    """Returns the sentences of the reasons that are more than notes, the gravest first."""
    return [one.text for level in LEVELS[:2] for one in reasons if one.level == level]


def _left_out(want: Expected, competition: Competition, never: Collection[str]) -> list[Reason]:
    """Says which classes have no row because the sample submission has none of them."""
    names = {competition.classes[number] for number in want.classes}
    missing = [name for name in competition.foreground if name not in names and name not in never]
    if not missing or want.settings.format == "labels" or not want.settings.labelled:
        return []
    text = (
        f"The submission has no row of {', '.join(missing)}, because {want.sample} has none; where that file is a "
        "placeholder, the competition's YAML must not name it."
    )
    return [Reason("check", "classes without rows", text, "sample_submission: null in the competition's YAML")]


def find_reasons(
    test: Statistics, training: Statistics, never: Collection[str] = (), prior: float | None = None
) -> list[Reason]:
    """Returns what in the masks of a submission is unlike the training masks; nothing where all differences could be
    chance.

    Chance is judged by standard errors that know groups: as many images of few patients say less. On top of them a
    difference must be large.

    Args:
        test: of a submission.
        training: of the true masks, the same classes.
        never: classes that are not predicted on purpose, and left out of the comparison.
        prior: the share of the test images that are known to have each class, where it is not that of the training
            images (`tune.presence_prior`).
    """
    test, training = test.without(never), training.without(never)
    if not test.area.size or not training.area.size:
        return []
    if not test.area.any():
        return [_all_empty(test, training, prior)]
    filled, alike = _filled(test, training)
    if alike:
        return filled
    judge = _class_share if test.exclusive else partial(_mask_statistics, prior=prior)
    found = [one for column in range(len(test.names)) for one in judge(test, training, column)]
    return [*filled, *found, *_same(test, training), *_turned(test, training)]


# --- what is compared ------------------------------------------------------------------------------------------------


def _all_empty(test: Statistics, training: Statistics, prior: float | None) -> Reason:
    """That no image has a mask; a matter to look at where few training images have one."""
    share = float((training.area == 0).all(1).mean()) if prior is None else 1 - prior
    level: Level = "check" if share**test.images > CONCEIVABLE else "stop"
    text = f"All masks are empty: {test.images} of {test.images} test images; of the training images {_percent(share)}."
    return Reason(level, "all masks empty", text, LOOK)


def _filled(test: Statistics, training: Statistics) -> tuple[list[Reason], bool]:
    """Images that one mask or class fills, and whether nearly all are, so that nothing else needs to be said."""
    full, true = (((one.share if one.exclusive else one.area) == 1).any(1) for one in (test, training))
    differ = full.all() or _shares_differ(full, true, training.groups, CHANCE)
    if full.mean() - true.mean() <= SHARE or not differ:
        return [], False
    many = "All" if full.all() else "Many"
    counts, usual = f"{full.sum()} of {test.images} test images", f"of the training images {_percent(true.mean())}."
    reason = Reason("stop", "full masks", f"{many} masks are full: {counts} are filled; {usual}", LOOK)
    if test.exclusive:
        text = f"One class is everywhere: {counts} hold one class alone; {usual}"
        reason = Reason("stop", "one class everywhere", text, LOOK)
    return [reason], bool(full.mean() > 1 - SHARE)


def _mask_statistics(test: Statistics, training: Statistics, column: int, prior: float | None = None) -> list[Reason]:
    """Shares of empty masks, and the size of the others."""
    name = "" if len(test.names) == 1 else f" of {test.names[column]}"
    mine, true, chance = test.area[:, column], training.area[:, column], CHANCE / len(test.names)
    found = []
    present, among = mine > 0, true > 0
    usual, groups = (among, training.groups) if prior is None else _told(prior, training.images)
    if _large(present, usual) and _shares_differ(present, usual, groups, chance):
        found.append(_share_of_empty(1 - present.mean(), 1 - usual.mean(), name))
    if present.sum() >= FEW and among.sum() >= FEW:
        size, typical = mine[present].mean(), true[among].mean()
        logs = np.log(mine[present]), np.log(true[among])
        gap = logs[0].mean() - logs[1].mean()
        both = min(size / typical, np.exp(gap)) > 1 or max(size / typical, np.exp(gap)) < 1
        if both and _factor(size, typical) > SIZE and _means_differ(*logs, training.groups[among], chance):
            found.append(_size(size, typical, name))
    return found


def _told(share: float, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Stand-ins (n,) bool for `images` images of which this share has a mask, and a group of its own for each."""
    return np.arange(images) < round(share * images), np.arange(images)


def _share_of_empty(empty: float, usual: float, name: str) -> Reason:
    """What to say of a share of empty masks, beside the usual one."""
    how = "All" if empty == 1 else "Too many" if empty > usual else "Too few"
    lost = _factor(1 - empty, 1 - usual) >= GRAVE or (abs(empty - usual) > 2 * SHARE and _factor(empty, usual) >= GRAVE)
    text = f"{how} masks{name} are empty: {_percent(empty)} of the test images; of the training images "
    return Reason("stop" if lost else "check", "share of empty masks", f"{text}{_percent(usual)}.", LOOK)


def _size(size: float, usual: float, name: str) -> Reason:
    """What to say of a mean size of masks, beside the usual one; both as shares of an image."""
    how, factor = "large" if size > usual else "small", _factor(size, usual)
    text = (
        f"The test masks{name} are too {how}, by a factor of {factor:.1f}: where there is one, it covers "
        f"{_percent(size)} of the image on average; in training {_percent(usual)}."
    )
    return Reason("stop" if factor >= GRAVE else "check", "size of masks", text, LOOK)


def _class_share(test: Statistics, training: Statistics, column: int) -> list[Reason]:
    """The share of a class among the pixels of class maps."""
    mine, true, name = test.share[:, column], training.share[:, column], test.names[column]
    if not _large(mine, true) or not _means_differ(mine, true, training.groups, CHANCE / len(test.names)):
        return []
    share, usual = mine.mean(), true.mean()
    how = "There is no" if not mine.any() else "Too much" if share > usual else "Too little"
    text = f"{how} {name}: {_percent(share)} of the test pixels; of the training pixels {_percent(usual)}."
    lost = _factor(share, usual) >= GRAVE and abs(share - usual) > SHARE / 2
    return [Reason("stop" if lost else "check", "share of a class", text, LOOK)]


def _same(test: Statistics, training: Statistics) -> list[Reason]:
    """One mask, neither empty nor full, for many images."""
    present = np.maximum((test.area > 0).sum(0), 1)
    usual = training.most_common / np.maximum((training.area > 0).sum(0), 1)
    column = int(np.argmax(test.most_common / present - usual))
    count, share = int(test.most_common[column]), test.most_common[column] / present[column]
    noise = np.sqrt(usual[column] * (1 - usual[column]) / present[column])
    if count < FEW or share <= usual[column] + max(SAME, ERRORS * noise):
        return []
    name = "" if len(test.names) == 1 else f" of {test.names[column]}"
    text = (
        f"Many images have the same mask: {count} of {present[column]} non-empty masks{name} are equal; in training "
        f"{_percent(usual[column])}."
    )
    return [Reason("stop", "the same mask for many images", text, LOOK)]


def _turned(test: Statistics, training: Statistics) -> list[Reason]:
    """Masks that lie where training masks do, or are elongated as those are, only when read otherwise."""
    if np.count_nonzero(test.area) < 2 * FEW:
        return []
    readings = {"with rows and columns exchanged": _transposed, "with pixels numbered in the other order": _renumbered}
    for how, read in readings.items():
        for compare in (_positions, _directions):
            found = compare(test, training, read)
            if found:
                return [Reason("stop", "transposed masks", f"Masks look transposed: {how} {found}.", ORDER)]
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


def _factor(one: float, other: float) -> float:
    """By how much the larger of two shares is larger; endless beside 0."""
    low, high = sorted((float(one), float(other)))
    return high / low if low > 0 else np.inf if high > 0 else 1.0


def _large(test: np.ndarray, training: np.ndarray) -> bool:
    """Whether the means of two samples of shares, (n,) and (m,), are further apart than models and test sets are."""
    mine, usual = float(test.mean()), float(training.mean())
    return abs(mine - usual) > SHARE or _factor(mine, usual) > FACTOR


def _shares_differ(test: np.ndarray, training: np.ndarray, groups: np.ndarray, chance: float) -> bool:
    """Whether two samples of booleans, (n,) and (m,), differ by more than chance explains.

    One yes and one no are added to each sample (Agresti and Caffo 2000), as a sample without spread would know no
    error. Groups (m,) of training images that are alike leave fewer independent ones, of the test images, whose groups
    nobody knows, by as much.
    """
    crowding = _crowding(training.astype(np.float64), groups)
    counts = [max(len(sample) / crowding, 1) for sample in (test, training)]
    means = [(sample.mean() * count + 1) / (count + 2) for sample, count in zip((test, training), counts, strict=True)]
    error = np.sqrt(sum(mean * (1 - mean) / (count + 2) for mean, count in zip(means, counts, strict=True)))
    return bool(abs(means[0] - means[1]) > _errors(chance, sum(counts)) * error)


def _means_differ(test: np.ndarray, training: np.ndarray, groups: np.ndarray, chance: float) -> bool:
    """Whether the means of two samples, (n,) and (m,), differ by more than chance explains; groups as in
    _shares_differ.

    The error is that of the sample with the larger spread, for both: the other may have none, as where no test image
    has a rare class. What lies between the two means is no part of the spread.
    """
    crowding = _crowding(training, groups)
    counts = [max(len(sample) / crowding, 1) for sample in (test, training)]
    spread = max(float(sample.var(ddof=1)) for sample in (test, training) if len(sample) > 1)
    error = np.sqrt(spread * sum(1 / count for count in counts))
    return bool(abs(test.mean() - training.mean()) > _errors(chance, sum(counts)) * error)


def _errors(chance: float, count: float) -> float:
    """How many standard errors a difference may have by chance, in either direction, where so many independent images
    have told the error (Student)."""
    from scipy.special import stdtrit

    return float(stdtrit(max(count - 2, 1), 1 - chance / 2))


def _above_noise(gains: np.ndarray, training: np.ndarray, groups: np.ndarray) -> bool:
    """Whether the mean of (n,) is above 0 by more than its standard error explains; groups as in _shares_differ."""
    error = gains.std() * np.sqrt(_crowding(training, groups) / len(gains))
    return bool(gains.mean() > ERRORS * error)


def _crowding(values: np.ndarray, groups: np.ndarray) -> float:
    """How much larger the variance of the mean of values (n,) is than of as many independent ones (the design effect of
    cluster sampling, estimated by the sums over groups); at least 1."""
    centred = values - values.mean()
    _, group = np.unique(groups, return_inverse=True)
    total, count, among = (centred**2).sum(), len(values), group.max(initial=0) + 1
    if total <= 0 or among < 2:
        return 1.0
    sums = np.bincount(group, weights=centred)
    return max(1.0, float((sums**2).sum() / total * among / (among - 1) * (count - 1) / count))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two position maps (C, 16, 16), after each class's mean is taken away."""
    first, second = (maps - maps.mean((1, 2), keepdims=True) for maps in (one, other))
    product = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / product) if product > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
