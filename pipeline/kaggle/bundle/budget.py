"""What is left out where the time is short: views first, then seeds, then folds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.core.console import duration

VIEWS = {"none": 1, "hflip": 2, "flips": 4, "d4": 8}
"""How many views of an image each test-time augmentation has."""
SURE = 1.15
"""Predictions are planned to take this much longer than measured on the first images."""


@dataclass(frozen=True)
class Work:
    """What one run of the bundle predicts with."""

    name: str
    views: str
    """Test-time augmentation, as in predict.tta, that tune kept."""
    seeds: int
    folds: int
    networks: int = 1
    """Snapshots of each training."""
    seconds: float = 0.0
    """Of one network, one view, one image, on one device."""

    @property
    def per_image(self) -> float:
        """Seconds on one device."""
        return self.seconds * VIEWS[self.views] * self.seeds * self.folds * self.networks


def needed(works: Sequence[Work], images: int, devices: int) -> float:
    """Returns how many seconds predicting so many images takes."""
    return SURE * images * sum(work.per_image for work in works) / max(1, devices)


def reductions(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Yields the work as it is, then with less and less of it: fewer views, then fewer seeds, then fewer folds."""
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
    """Returns the most work that can be done in time, and what is left out, as a sentence; empty where nothing is.

    Args:
        works: what each run would predict with.
        images: how many there are.
        devices: how many predict at once.
        available: seconds that predicting may take.
    """
    chosen = list(works)
    for chosen in reductions(works):
        if needed(chosen, images, devices) <= available:
            break
    short = needed(chosen, images, devices) > available
    if list(works) == chosen and not short:
        return chosen, ""
    full, left = (duration(needed(one, images, devices)) for one in (works, chosen))
    parts = [said for before, after in zip(works, chosen, strict=True) if (said := _difference(before, after))]
    reduced = "; ".join(parts) or "nothing can be left out"
    text = f"all of it would take {full}, and {duration(max(0.0, available))} are left: {reduced}"
    if short:
        return chosen, f"{text}; even so it takes {left}: images that are not reached in time get the usual answer"
    return chosen, f"{text}; so it takes {left}"


def _difference(before: Work, after: Work) -> str:
    parts = []
    if before.views != after.views:
        parts.append(f"test-time augmentation {after.views} instead of {before.views}")
    for setting in ("seeds", "folds"):
        had, has = getattr(before, setting), getattr(after, setting)
        if had != has:
            parts.append(f"{has} of {had} {setting}")
    return f"{before.name} with {', '.join(parts)}" if parts else ""
