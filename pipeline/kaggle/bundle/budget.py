"""Plans an inference for the available time: if it is too short, views are left out first, then seeds, then folds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.core.console import duration

VIEWS = {"none": 1, "hflip": 2, "flips": 4, "d4": 8}
"""Number of views per image of each test-time augmentation."""
SURE = 1.15
"""Safety factor on the prediction time that was measured on the first images."""


@dataclass(frozen=True)
class Work:
    """The models and views with which one run of the bundle predicts."""

    name: str
    views: str
    """The test-time augmentation that tune kept, as in predict.tta."""
    seeds: int
    folds: int
    networks: int = 1
    """Number of snapshots per training."""
    seconds: float = 0.0
    """Seconds per network, view and image on one device."""

    @property
    def per_image(self) -> float:
        """Seconds per image on one device."""
        return self.seconds * VIEWS[self.views] * self.seeds * self.folds * self.networks


def needed(works: Sequence[Work], images: int, devices: int) -> float:
    """Returns the planned time in seconds for predicting a number of images on a number of devices."""
    return SURE * images * sum(work.per_image for work in works) / max(1, devices)


def reductions(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Yields the full work, and then less and less work: fewer views, then fewer seeds, then fewer folds."""
    now = list(works)
    yield now
    for views in reversed(list(VIEWS)[:-1]):
        less = [replace(work, views=views) if VIEWS[work.views] > VIEWS[views] else work for work in now]
        if less != now:
            now = less
            yield now
    for setting in ("seeds", "folds"):
        for most in range(max(getattr(work, setting) for work in now) - 1, 0, -1):
            now = [replace(work, **{setting: min(getattr(work, setting), most)}) for work in now]
            yield now


def plan(works: Sequence[Work], images: int, devices: int, available: float) -> tuple[list[Work], str]:
    """Returns the most work that fits into the available time, and a sentence about what is left out ("" if nothing).

    Args:
        works: the full work of each run.
        images: number of images.
        devices: number of devices that predict in parallel.
        available: available time in seconds.
    """
    chosen = list(works)
    for chosen in reductions(works):
        if needed(chosen, images, devices) <= available:
            break
    short = needed(chosen, images, devices) > available
    if list(works) == chosen and not short:
        return chosen, ""
    full, reduced = (duration(needed(each, images, devices)) for each in (works, chosen))
    parts = [text for before, after in zip(works, chosen, strict=True) if (text := _difference(before, after))]
    changes = "; ".join(parts) or "nothing can be left out"
    text = f"all of it would take {full}, and {duration(max(0.0, available))} are left: {changes}"
    if short:
        return chosen, f"{text}; it still takes {reduced}: images that are not reached in time get the usual answer"
    return chosen, f"{text}; so it takes {reduced}"


def _difference(before: Work, after: Work) -> str:
    parts = []
    if before.views != after.views:
        parts.append(f"test-time augmentation {after.views} instead of {before.views}")
    for setting in ("seeds", "folds"):
        had, has = getattr(before, setting), getattr(after, setting)
        if had != has:
            parts.append(f"{has} of {had} {setting}")
    return f"{before.name} with {', '.join(parts)}" if parts else ""
