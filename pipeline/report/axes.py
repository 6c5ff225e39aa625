"""Axes of charts: the mapping from values to positions, ticks at round values, and the formatting of numbers."""

import math
from dataclasses import dataclass

import numpy as np

STEPS = (1, 2, 5, 10)
"""Round values within a decade."""


@dataclass(frozen=True)
class Axis:
    """Maps values between `low` and `high` to positions between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float = 1.0
    """On a logarithmic axis, the value at whose position 0 is drawn."""

    @classmethod
    def over(
        cls, values: np.ndarray, start: float, end: float, log: bool = False, least: float = 0.0,
        margin: float = 0.02, floor: bool = False,
    ) -> "Axis":  # fmt: skip
        """Returns an axis that covers all values.

        Args:
            values: (n,); values that are not finite are ignored.
            start: position of the lowest value.
            end: position of the highest value.
            log: whether the axis is logarithmic.
            least: minimum difference between the two ends of the axis.
            margin: room to add at both ends, as a fraction of the difference.
            floor: whether the lower end gets no room.
        """
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(0.0, 1.0, start, end)
        low, high = float(values.min()), float(values.max())
        positive = values[values > 0]
        if log and len(positive) and low >= 0:
            zero = float(positive.min()) / 2
            low = low or zero
            return cls(low / 1.05, max(high, low * 1.5) * 1.05, start, end, True, zero)
        missing = max(0.0, least - (high - low), 0.0 if high > low else max(1e-3, abs(high) * 0.1)) / 2
        low, high = low - (0 if floor else missing), high + (2 * missing if floor else missing)
        room = margin * (high - low)
        return cls(low - (0 if floor else room), high + max(room, 0.04 * (high - low) if floor else 0), start, end)

    def places(self, values: object) -> np.ndarray:
        """Returns the positions (n,) of values (n,)."""
        scaled = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.log:
            scaled = np.log10(np.maximum(scaled, self.zero))
            low, high = math.log10(low), math.log10(high)
        return self.start + (scaled - low) / (high - low) * (self.end - self.start)

    def at(self, value: float) -> float:
        """Returns the position of a value."""
        return float(self.places(np.array([value]))[0])

    def ticks(self, most: int) -> list[float]:
        """Returns about `most` round values or fewer, in ascending order."""
        if not self.log:
            return _linear_ticks(self.low, self.high, most)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in (STEPS[:3], (1, 3), (1,)):
            ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            ticks = [value for value in ticks if self.low <= value <= self.high]
            if len(ticks) <= most:
                break
        else:
            ticks = ticks[:: -(-len(ticks) // most)]
        if len(ticks) < 3:
            ticks = _linear_ticks(self.low, self.high, most)
        starts_at_zero = self.low < self.zero * 1.01
        return [0.0, *(value for value in ticks if value >= 1.4 * self.zero)] if starts_at_zero else ticks


def linear(low: float, high: float, start: float, end: float) -> Axis:
    """Returns an axis between exactly two values; `low` may be larger than `high`."""
    return Axis(low, high, start, end)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in STEPS if factor * power >= rough * 0.999)
    return [
        round(index * step, 12) for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def number(value: float) -> str:
    """Returns a number formatted for a tick or caption: 0.025, 12, 5,000, 2.5 M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:,.4g} M"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-4:
        return f"{value:.0e}"
    return f"{value:.4g}"


def share(part: float) -> str:
    """Returns a fraction as a percentage in which small values are not rounded to 0: `none`, `0.04 %`, `12 %`."""
    if part <= 0:
        return "none"
    percent = 100 * part
    if percent < 0.01:
        return "under 0.01 %"
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"
