"""Guards against submissions that are valid but wrong, by comparing statistics of their masks with training masks.

A submission is read back from its file, so it does not matter which program wrote it. The guards do not prove that a
submission is bad. They only report that it differs from the training set by far more than chance explains; test images
may really differ.
"""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.verdict import LEVELS, Level, Reason
from pipeline.encode import numbering, submission
from pipeline.encode.chance import ERRORS, above_noise, means_differ, shares_differ
from pipeline.encode.submission import Expected
from pipeline.masks import statistics
from pipeline.masks.statistics import Statistics

CHANCE = 0.001
"""The probability of a false alarm in a comparison of shares or sizes, over all classes together."""
SHARE = 0.2
"""The largest acceptable difference of two shares; models are not perfect, and test sets differ."""
FACTOR = 3.0
"""The largest acceptable ratio of two shares."""
SIZE = 1.5
"""The largest acceptable ratio of mean sizes of masks."""
CORRELATION = 0.2
"""The difference of correlations by which another reading must fit the training masks better."""
FITS = 0.5
"""The smallest correlation of a reading that fits."""
EFFECT = 0.2
"""The smallest mean elongation of training masks, in standard deviations, that is used."""
SAME = 0.1
"""The acceptable increase, compared with training, of the share of non-empty masks that are identical."""
FEW = 5
"""The number of images below which nothing is concluded."""
GRAVE = 4.0
"""The ratio of shares or sizes from which on a submission should not be uploaded."""
CONCEIVABLE = 0.05
"""The probability of only empty masks above which they may be right."""
LOOK = "notebooks/06_from_predictions_to_submission.ipynb"
"""A notebook that shows the submitted masks of test images, and their statistics beside those of training."""
ORDER = "rle.order in the competition's YAML"

Reading = Callable[[np.ndarray], np.ndarray]
"""A function from the maps (N, C, 2, 16, 16) of Statistics to those of one reading (N, C, 16, 16)."""


def examine(
    path: Path,
    want: Expected,
    competition: Competition,
    never: Collection[str] = (),
    training: Path | None = None,
    prior: float | None = None,
    certainty: bool = False,
) -> tuple[list[str], list[Reason]]:
    """Returns the faults of a submission, each naming its row, or if it has none, reasons for doubt.

    Args:
        path: the submission, a file of any kind or a folder of mask images.
        want: the expected content of a submission.
        competition: the competition, for its classes.
        never: classes that are left out of it on purpose.
        training: the statistics of training masks that tune wrote; without this file they are computed from the
            training table, if it exists.
        prior: see find_reasons.
        certainty: whether to add a note on how certain order, size and base are.

    Raises:
        PipelineError: the file does not exist or cannot be read.
    """
    names, exclusive = [competition.classes[number] for number in want.classes], want.settings.format == "labels"
    parts = [(name, whole.image_id) for whole in want.windows.values() for name in whole.ids]
    parts += [(name, name) for name in want.ids if name not in want.windows]
    test = statistics.blank(names, exclusive, [group for _, group in parts])
    rows = {name: row for row, (name, _) in enumerate(parts)}
    columns = {number: column for column, number in enumerate(want.classes)}

    lines = numbering.Lines(want.convention.order)

    def measure(image_id: str, number: int, mask: np.ndarray) -> None:
        test.add(rows[image_id], columns[number], mask)
        # the runs of a large image do not have the distance of a window's lines
        if not exclusive and not want.windows:
            lines.add(mask, image_id)

    faults, notes = submission.examine(path, want, measure)
    if faults:
        return faults, []
    if training is None:
        true = statistics.of_table(want.images, names, exclusive)
    else:
        true = statistics.load(training, names, exclusive)
    reasons = find_reasons(test, true, never, prior)
    if not exclusive and not want.windows and want.is_table:
        known, usual = {reason.kind for reason in reasons}, numbering.of_training(want)
        reasons += [reason for reason in numbering.find_reasons(lines, usual) if reason.kind not in known]
        if certainty:
            reasons.append(Reason("note", "order, size and base", numbering.certainty(lines, usual)))
    return [], notes + _left_out(want, competition, never) + reasons


def format_note(want: Expected, competition: Competition) -> list[Reason]:
    """Returns a note if there is no sample submission, so that only the YAML describes the format."""
    if want.sample is not None or competition.reader != "rle_csv":
        return []
    shown = ", ".join(want.header[:4])
    written = f"columns ({shown}) and run lengths" if want.is_table else "mask images"
    text = f"There is no sample submission that shows the format: {written} follow the YAML."
    return [Reason("note", "format", text, "submission and rle in the competition's YAML")]


def warnings_of(reasons: Iterable[Reason]) -> list[str]:
    """Returns the sentences of the reasons that are more than notes, the most serious first."""
    return [reason.text for level in LEVELS[:2] for reason in reasons if reason.level == level]


def _left_out(want: Expected, competition: Competition, never: Collection[str]) -> list[Reason]:
    """Returns a reason if classes have no row because the sample submission has no row for them."""
    names = {competition.classes[number] for number in want.classes}
    missing = [name for name in competition.foreground if name not in names and name not in never]
    if not missing or want.settings.format == "labels" or not want.settings.labelled:
        return []
    text = (
        f"The submission has no row of {', '.join(missing)}, because {want.sample} has none. If that file is only a "
        "placeholder, remove it from the competition's YAML."
    )
    return [Reason("check", "classes without rows", text, "sample_submission: null in the competition's YAML")]


def find_reasons(
    test: Statistics, training: Statistics, never: Collection[str] = (), prior: float | None = None
) -> list[Reason]:
    """Returns how the masks of a submission differ from training masks; nothing if all differences could be chance.

    Chance is judged by standard errors that account for groups, because images of few patients carry less information.
    In addition, a difference must be large.

    Args:
        test: the statistics of a submission.
        training: the statistics of the true training masks, for the same classes.
        never: classes that are not predicted on purpose and are left out of the comparison.
        prior: the known share of test images that have each class, if it differs from the training images
            (`tune.presence_prior`).
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
    by_class = [reason for column in range(len(test.names)) for reason in judge(test, training, column)]
    return [*filled, *by_class, *_same(test, training), *_turned(test, training)]


# --- comparisons -----------------------------------------------------------------------------------------------------


def _all_empty(test: Statistics, training: Statistics, prior: float | None) -> Reason:
    """Returns the reason that no image has a mask; it is less serious if few training images have one."""
    share = float((training.area == 0).all(1).mean()) if prior is None else 1 - prior
    level: Level = "check" if share**test.images > CONCEIVABLE else "stop"
    text = (
        f"All masks are empty: {test.images} of {test.images} test images, compared with {_percent(share)} of the "
        "training images."
    )
    return Reason(level, "all masks empty", text, LOOK)


def _filled(test: Statistics, training: Statistics) -> tuple[list[Reason], bool]:
    """Returns a reason if many images are filled by one mask or class, and whether nearly all are, in which case the
    other comparisons are left out."""
    full, true = (((part.share if part.exclusive else part.area) == 1).any(1) for part in (test, training))
    differ = full.all() or shares_differ(full, true, training.groups, CHANCE)
    if full.mean() - true.mean() <= SHARE or not differ:
        return [], False
    many = "All" if full.all() else "Many"
    counts = f"{full.sum()} of {test.images} test images"
    usual = f"compared with {_percent(true.mean())} of the training images."
    reason = Reason("stop", "full masks", f"{many} masks are full: {counts} are filled, {usual}", LOOK)
    if test.exclusive:
        text = f"One class is everywhere: {counts} contain only one class, {usual}"
        reason = Reason("stop", "one class everywhere", text, LOOK)
    return [reason], bool(full.mean() > 1 - SHARE)


def _mask_statistics(test: Statistics, training: Statistics, column: int, prior: float | None = None) -> list[Reason]:
    """Compares the shares of empty masks, and the sizes of the others."""
    name = "" if len(test.names) == 1 else f" of {test.names[column]}"
    submitted, true, chance = test.area[:, column], training.area[:, column], CHANCE / len(test.names)
    reasons = []
    present, true_present = submitted > 0, true > 0
    usual, groups = (true_present, training.groups) if prior is None else _simulated(prior, training.images)
    if _large(present, usual) and shares_differ(present, usual, groups, chance):
        reasons.append(_share_of_empty(1 - present.mean(), 1 - usual.mean(), name))
    if present.sum() >= FEW and true_present.sum() >= FEW:
        size, typical = submitted[present].mean(), true[true_present].mean()
        logs = np.log(submitted[present]), np.log(true[true_present])
        gap = logs[0].mean() - logs[1].mean()
        both = min(size / typical, np.exp(gap)) > 1 or max(size / typical, np.exp(gap)) < 1
        if both and _factor(size, typical) > SIZE and means_differ(*logs, training.groups[true_present], chance):
            reasons.append(_size(size, typical, name))
    return reasons


def _simulated(share: float, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns presence (n,) bool for `images` images of which this share has a mask, each in its own group."""
    return np.arange(images) < round(share * images), np.arange(images)


def _share_of_empty(empty: float, usual: float, name: str) -> Reason:
    """Returns the reason for a share of empty masks that differs from the usual share."""
    how = "All" if empty == 1 else "Too many" if empty > usual else "Too few"
    lost = _factor(1 - empty, 1 - usual) >= GRAVE or (abs(empty - usual) > 2 * SHARE and _factor(empty, usual) >= GRAVE)
    text = (
        f"{how} masks{name} are empty: {_percent(empty)} of the test images, compared with {_percent(usual)} of the "
        "training images."
    )
    return Reason("stop" if lost else "check", "share of empty masks", text, LOOK)


def _size(size: float, usual: float, name: str) -> Reason:
    """Returns the reason for a mean size of masks that differs from the usual one; both as shares of an image."""
    how, factor = "large" if size > usual else "small", _factor(size, usual)
    text = (
        f"The test masks{name} are too {how}, by a factor of {factor:.1f}: a non-empty mask covers {_percent(size)} of "
        f"the image on average, compared with {_percent(usual)} in training."
    )
    return Reason("stop" if factor >= GRAVE else "check", "size of masks", text, LOOK)


def _class_share(test: Statistics, training: Statistics, column: int) -> list[Reason]:
    """Compares the share of a class among the pixels of class maps."""
    submitted, true, name = test.share[:, column], training.share[:, column], test.names[column]
    if not _large(submitted, true) or not means_differ(submitted, true, training.groups, CHANCE / len(test.names)):
        return []
    share, usual = submitted.mean(), true.mean()
    how = "There is no" if not submitted.any() else "Too much" if share > usual else "Too little"
    text = (
        f"{how} {name}: {_percent(share)} of the test pixels, compared with {_percent(usual)} of the training pixels."
    )
    lost = _factor(share, usual) >= GRAVE and abs(share - usual) > SHARE / 2
    return [Reason("stop" if lost else "check", "share of a class", text, LOOK)]


def _same(test: Statistics, training: Statistics) -> list[Reason]:
    """Returns a reason if many images have the same mask, which is neither empty nor full."""
    present = np.maximum((test.area > 0).sum(0), 1)
    usual = training.most_common / np.maximum((training.area > 0).sum(0), 1)
    column = int(np.argmax(test.most_common / present - usual))
    count, share = int(test.most_common[column]), test.most_common[column] / present[column]
    noise = np.sqrt(usual[column] * (1 - usual[column]) / present[column])
    if count < FEW or share <= usual[column] + max(SAME, ERRORS * noise):
        return []
    name = "" if len(test.names) == 1 else f" of {test.names[column]}"
    text = (
        f"Many images have the same mask: {count} of {present[column]} non-empty masks{name} are equal, compared with "
        f"{_percent(usual[column])} in training."
    )
    return [Reason("stop", "the same mask for many images", text, LOOK)]


def _turned(test: Statistics, training: Statistics) -> list[Reason]:
    """Returns a reason if masks have the positions or elongations of training masks only in another reading."""
    if np.count_nonzero(test.area) < 2 * FEW:
        return []
    readings = {"with rows and columns exchanged": _transposed, "with pixels numbered in the other order": _renumbered}
    for how, read in readings.items():
        for compare in (_positions, _directions):
            finding = compare(test, training, read)
            if finding:
                return [Reason("stop", "transposed masks", f"Masks look transposed: {how}, {finding}.", ORDER)]
    return []


def _positions(test: Statistics, training: Statistics, read: Reading) -> str:
    """Returns a phrase if a reading gives masks the positions of the training masks and the file itself does not."""
    target = training.position - training.position.mean((1, 2), keepdims=True)
    plain, other = (_correlation(maps.mean(0), target) for maps in (_as_written(test.maps), read(test.maps)))
    if other <= max(plain + CORRELATION, FITS):
        return ""
    gains = [((read(part.maps) * 1.0 - _as_written(part.maps)) * target).sum((1, 2, 3)) for part in (test, training)]
    if not above_noise(gains[0], gains[1], training.groups):
        return ""
    return f"they are where the training masks are (correlation {other:.2f}, as submitted {plain:.2f})"


def _directions(test: Statistics, training: Statistics, read: Reading) -> str:
    """Returns a phrase if a reading gives masks the elongation of training masks and the file itself does not."""
    true = _elongation(_as_written(training.maps))
    usual = true.mean(0)
    whole, spread = usual @ usual, (true @ usual).std()
    plain, other = (_elongation(maps) @ usual for maps in (_as_written(test.maps), read(test.maps)))
    near, far = abs(other.mean() - whole), abs(plain.mean() - whole)
    if whole < EFFECT * spread or near > far / 3:  # a transposed mean has changed its sign by more than half
        return ""
    if not above_noise(other - plain, true @ usual, training.groups):
        return ""
    return (
        f"they are elongated like the training masks ({other.mean() / whole:.2f} times as much, as submitted "
        f"{plain.mean() / whole:.2f} times)"
    )


# --- statistics ------------------------------------------------------------------------------------------------------


def _as_written(maps: np.ndarray) -> np.ndarray:
    return maps[:, :, 0]


def _transposed(maps: np.ndarray) -> np.ndarray:
    return maps[:, :, 0].swapaxes(2, 3)


def _renumbered(maps: np.ndarray) -> np.ndarray:
    return maps[:, :, 1]


def _elongation(maps: np.ndarray) -> np.ndarray:
    """Returns how much longer masks are down than across (N, C) float64, from -1 to 1, from position maps (N, C, 16,
    16).

    It is the sum of changes between neighbouring cells across minus the sum down, divided by both; 0 for an empty mask.
    """
    signed = maps.astype(np.int16)
    down, across = (np.abs(np.diff(signed, axis=axis)).sum((2, 3)) for axis in (2, 3))
    return (across - down) / np.maximum(across + down, 1)


def _factor(first: float, second: float) -> float:
    """Returns the ratio of the larger to the smaller of two shares; infinite if the smaller one is 0."""
    low, high = sorted((float(first), float(second)))
    return high / low if low > 0 else np.inf if high > 0 else 1.0


def _large(test: np.ndarray, training: np.ndarray) -> bool:
    """Returns whether the means of two samples of shares, (n,) and (m,), differ by more than is acceptable."""
    submitted, usual = float(test.mean()), float(training.mean())
    return abs(submitted - usual) > SHARE or _factor(submitted, usual) > FACTOR


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Returns the correlation of two position maps (C, 16, 16), after subtracting the mean of each class."""
    first, second = (maps - maps.mean((1, 2), keepdims=True) for maps in (left, right))
    product = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / product) if product > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
