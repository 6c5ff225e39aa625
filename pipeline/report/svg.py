"""Charts as self-contained SVG, for notebooks, print and HTML pages, whose script adds the values under the pointer.

A `Chart` draws lines, points or bars over two axes. `Dots` draws one row per name, with intervals. Colours are CSS
variables with a default, so that a page can use lighter ones on a dark background. Text has the page's colour.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np

from pipeline.report.axes import Axis, linear, number

WIDTH, HEIGHT = 420, 220
"""Size of a chart without its legend, in SVG units (about one pixel each on a page)."""
FONT = 12
LETTER = 7.2
"""Estimated mean width of a letter of this font size, rather too large than too small."""
LEFT, RIGHT, TOP, BOTTOM = 64, 10, 12, 42
"""Room around the axes."""
LINE = 18
"""Height of a line of the legend, and of a row of `Dots`."""
COLOURS = ("#005f9e", "#d55e00", "#45a8e6", "#e09a00", "#444444", "#a8487f")
"""Dark and light blue and orange, grey and purple. They also differ in lightness, so that colour-blind readers can tell
them apart (unlike the green and purple of Okabe and Ito's palette)."""
DASHES = ("", "7 3", "2 3")
"""Line styles for successive rounds through the colours: solid, dashed, dotted."""
Shape = Literal["line", "points", "cloud", "bars"]


@dataclass(frozen=True)
class Series:
    """One series of values: a line, points or bars."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    shape: Shape = "line"
    """`cloud`: many faint points; `bars`: bars from 0 to y, centred at x."""
    number: int = 0
    """Selects the colour, and the line style once the colours are used up."""
    dashed: bool = False
    key: str = ""
    """Series with the same key are highlighted together in all charts of a page."""
    listed: bool = True
    """Whether the legend lists the series."""
    ids: Sequence[str] = ()
    """A name per point, shown under the pointer."""
    colour: str = ""
    """A CSS colour that replaces the one selected by `number`."""


@dataclass(frozen=True)
class Mark:
    """A dashed line across the chart at one value."""

    value: float
    name: str
    vertical: bool = True
    number: int = 0


@dataclass(frozen=True)
class Chart:
    """Series over two axes."""

    title: str
    """One sentence that says what the chart shows."""
    across: str
    up: str
    series: Sequence[Series] = ()
    marks: Sequence[Mark] = ()
    log: bool = False
    """Whether the horizontal axis is logarithmic; then 0 is drawn at its left end."""
    least_span: float = 0.0
    """Minimum length of the vertical axis, so that smaller differences look small."""
    diagonal: bool = False
    """Whether to draw the line on which both values are equal."""
    from_zero: bool = False

    def svg(self) -> str:
        """Returns an <svg> element."""
        shown = [_finite(series) for series in self.series]
        x, y = self._axes(shown)
        entries = [series for series in shown if series.listed and series.name]
        entries = entries if len(shown) + len(self.marks) > 1 else []
        legend, lines = _legend(entries, [mark for mark in self.marks if mark.name])
        parts = [_frame(x, y, self.across, self.up)]
        if self.diagonal:
            low, high = max(x.low, y.low), min(x.high, y.high)
            ends = [f"{x.at(value):.1f} {y.at(value):.1f}" for value in (low, high)]
            look = 'stroke="currentColor" stroke-opacity=".6" stroke-dasharray="6 4" fill="none"'
            parts.append(f'<path d="M{" L".join(ends)}" {look}/>')
        parts += [_mark(mark, x, y) for mark in self.marks]
        parts += [_drawn(series, x, y) for series in shown]
        data = {"x": _for_script(x), "y": _for_script(y), "across": self.across, "up": self.up}
        return _element(HEIGHT + lines * LINE, self.title, parts + [legend], data)

    def _repr_svg_(self) -> str:
        """Lets a notebook display the chart."""
        return self.svg()

    def _axes(self, shown: list[Series]) -> tuple[Axis, Axis]:
        across = [mark.value for mark in self.marks if mark.vertical]
        up = [mark.value for mark in self.marks if not mark.vertical]
        bars = [series for series in shown if series.shape == "bars"]
        xs = np.concatenate([*(series.x for series in shown), across, np.zeros(0)]).astype(np.float64)
        ys = np.concatenate([*(series.y for series in shown), up, [0.0] if bars or self.from_zero else []])
        half = max((_step(series.x) / 2 for series in bars), default=0.0)
        if half and len(xs):
            xs = np.array([xs.min() - half, xs.max() + half])
        if self.diagonal:
            xs = ys = np.concatenate([xs, ys])
        x = Axis.over(xs, LEFT, WIDTH - RIGHT, self.log, margin=0.0 if half else 0.02)
        y = Axis.over(ys, HEIGHT - BOTTOM, TOP, least=self.least_span, margin=0.0 if bars else 0.04, floor=bool(bars))
        return x, y


@dataclass(frozen=True)
class Row:
    """A value, with its interval if it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    key: str = ""
    number: int = 0


@dataclass(frozen=True)
class Dots:
    """A chart with one row per name, the first on top: a dot at the value and a bar over its interval."""

    title: str
    across: str
    rows: Sequence[Row] = ()
    marks: Sequence[Mark] = field(default_factory=tuple)

    def svg(self) -> str:
        """Returns an <svg> element."""
        rows = [row for row in self.rows if np.isfinite(row.value)]
        room = min(190, 15 + math.ceil(LETTER * max((len(row.name) for row in rows), default=0)))
        ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
        values = np.array([*ends, *(mark.value for mark in self.marks)], np.float64)
        x = Axis.over(values, room, WIDTH - RIGHT, least=0.02, margin=0.04)
        bottom = TOP + LINE * max(1, len(rows))
        y = linear(len(rows) - 0.5, -0.5, bottom, TOP)
        legend, lines = _legend([], [mark for mark in self.marks if mark.name], bottom + BOTTOM)
        parts = [_frame(x, y, self.across, "", bottom, room, up=False)]
        parts += [_mark(mark, x, y) for mark in self.marks]
        parts += [_row(row, x, y.at(index), room) for index, row in enumerate(rows)]
        data = {"x": _for_script(x), "y": _for_script(y), "across": self.across, "up": ""}
        return _element(bottom + BOTTOM + lines * LINE, self.title, parts + [legend], data)

    def _repr_svg_(self) -> str:
        """Lets a notebook display the chart."""
        return self.svg()


Drawing = Chart | Dots


# --- parts -----------------------------------------------------------------------------------------------------------


def _element(height: int, title: str, parts: list[str], data: Mapping[str, object]) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="{FONT}" '
        f'fill="currentColor" data-chart="{escape(json.dumps(data))}">{"".join(parts)}</svg>'
    )


def _frame(
    x: Axis, y: Axis, across: str, name: str, bottom: int = HEIGHT - BOTTOM, left: int = LEFT, up: bool = True
) -> str:
    """The grid, the ticks and the names of the axes."""
    grid, texts = [], []
    for value in x.ticks(max(3, (WIDTH - left) // 70)):
        place = f"{x.at(value):.1f}"
        grid.append(f"M{place} {TOP}V{bottom}")
        anchor = "end" if x.at(value) > WIDTH - RIGHT - 12 else "middle"  # centred, the last label would be cut off
        texts.append(f'<text x="{place}" y="{bottom + 16}" text-anchor="{anchor}">{number(value)}</text>')
    for value in y.ticks(5) if up else []:
        height = y.at(value)
        grid.append(f"M{left} {height:.1f}H{WIDTH - RIGHT}")
        texts.append(f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">{number(value)}</text>')
    centre = (left + WIDTH - RIGHT) / 2
    texts.append(f'<text x="{centre}" y="{bottom + 34}" text-anchor="middle">{escape(across)}</text>')
    if name:
        middle = (TOP + bottom) / 2
        texts.append(f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(name)}</text>')
    lines = f'<path d="{"".join(grid)}" stroke="currentColor" stroke-opacity=".15" fill="none"/>'
    axis = f'<path d="M{left} {bottom}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".6" fill="none"/>'
    return f"{lines}{axis}{''.join(texts)}"


def _drawn(series: Series, x: Axis, y: Axis) -> str:
    paint = series.colour or series.number
    across, up = np.round(x.places(series.x), 1), np.round(y.places(series.y), 1)
    pairs = list(zip(across.tolist(), up.tolist(), strict=True))
    dots = "".join(f"M{one:g} {other:g}h0" for one, other in pairs)
    if series.shape == "bars":
        width = max(1.0, abs(x.at(_step(series.x)) - x.at(0)) - 1)
        base = y.at(0)
        bars = "".join(f"M{one - width / 2:.1f} {base:.1f}V{other:g}h{width:.1f}V{base:.1f}z" for one, other in pairs)
        shape = f'<path d="{bars}" fill="{colour(paint)}" fill-opacity=".75"/>'
    elif series.shape == "cloud":
        shape = _path(dots, paint, 4, ' stroke-linecap="round" stroke-opacity=".6"')
    elif series.shape == "points":
        shape = _path(dots, paint, 8, ' stroke-linecap="round"')
    else:
        line = "L".join(f"{one:g} {other:g}" for one, other in pairs)
        dash = ' stroke-dasharray="4 3" stroke-opacity=".7"' if series.dashed else _dash(series.number)
        shape = _path(f"M{line}" if pairs else "", paint, 2, dash + ' stroke-linejoin="round"')
    ids = f' data-ids="{escape(json.dumps(list(series.ids), ensure_ascii=False))}"' if len(series.ids) else ""
    return (
        f'<g class="series" data-name="{escape(series.name)}" data-key="{escape(series.key)}"{ids} '
        f'data-x="{_listed(series.x)}" data-y="{_listed(series.y)}">{shape}</g>'
    )


def _row(row: Row, x: Axis, y: float, room: int) -> str:
    """A name, an interval and a dot."""
    place, most = x.at(row.value), int((room - 14) / LETTER)
    text = row.name if len(row.name) <= most else row.name[: most - 1] + "…"
    name = f'<text x="{room - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    interval, caption = "", ""
    if row.low is not None and row.high is not None:
        low, high = x.at(row.low), x.at(row.high)
        bar = f"M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 4:.1f}v8"
        interval = _path(bar, row.number, 2)
        caption = f", 95 % interval {row.low:.4f} to {row.high:.4f}"
    dot = f'<circle cx="{place:.1f}" cy="{y:.1f}" r="5" fill="{colour(row.number)}"/>'
    return (
        f'<g class="series" data-name="{escape(row.name + caption)}" data-key="{escape(row.key)}" '
        f'data-x="{row.value:.5g}" data-y="" data-place="{y:.1f}">{name}{interval}{dot}</g>'
    )


def _mark(mark: Mark, x: Axis, y: Axis) -> str:
    if mark.vertical:
        place = f"M{x.at(mark.value):.1f} {min(y.start, y.end):.1f}V{max(y.start, y.end):.1f}"
    else:
        place = f"M{x.start:.1f} {y.at(mark.value):.1f}H{x.end:.1f}"
    return f'<path d="{place}" stroke="{colour(mark.number)}" stroke-dasharray="6 4" fill="none"/>'


def _legend(series: list[Series], marks: list[Mark], top: int = HEIGHT) -> tuple[str, int]:
    """The legend below the axes, with as many entries per row as fit, and its number of rows."""
    entries = [(entry.name, _sample(entry), entry.key) for entry in series]
    entries += [(mark.name, _path("M0 -4h22", mark.number, 1.5, ' stroke-dasharray="6 4"'), "") for mark in marks]
    parts, column, line = [], 0.0, 0
    for name, sample, key in entries:
        most = int((WIDTH - 34) / LETTER)
        text = name if len(name) <= most else name[: most - 1] + "…"
        width = 30 + LETTER * len(text) + 12
        if column and column + width > WIDTH:
            column, line = 0.0, line + 1
        place = f"translate({column + 4:.0f} {top + line * LINE + 8})"
        key_text = f' class="series key" data-key="{escape(key)}"' if key else ""
        parts.append(f'<g transform="{place}"{key_text}>{sample}<text x="28">{escape(text)}</text></g>')
        column += width
    return "".join(parts), (line + 1 if entries else 0)


def _sample(series: Series) -> str:
    paint = series.colour or series.number
    if series.shape == "bars":
        return f'<path d="M2 -9h18v10h-18z" fill="{colour(paint)}" fill-opacity=".75"/>'
    if series.shape in ("cloud", "points"):
        return _path("M11 -4h0", paint, 7, ' stroke-linecap="round"')
    dash = ' stroke-dasharray="4 3"' if series.dashed else _dash(series.number)
    return _path("M0 -4h22", paint, 2, dash)


def _path(d: str, colour_number: int | str, width: float, more: str = "") -> str:
    return f'<path d="{d}" stroke="{colour(colour_number)}" stroke-width="{width:g}" fill="none"{more}/>'


def colour(number: int | str) -> str:
    """Returns the CSS colour for a number: a variable of the page, with the colour on a light background as default. A
    colour given as text is returned unchanged."""
    if isinstance(number, str):
        return number
    place = number % len(COLOURS)
    return f"var(--c{place}, {COLOURS[place]})"


def _dash(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _finite(series: Series) -> Series:
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    ids = [name for name, kept in zip(series.ids, finite, strict=True) if kept] if len(series.ids) else ()
    return Series(series.name, x[finite], y[finite], series.shape, series.number, series.dashed, series.key,
                  series.listed, ids, series.colour)  # fmt: skip


def _step(x: Sequence[float] | np.ndarray) -> float:
    return float(x[1] - x[0]) if len(x) > 1 else 1.0


def _listed(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in values)


def _for_script(axis: Axis) -> list[float]:
    """The values and positions of both ends of an axis, and the value at whose position 0 is drawn (linear axis: 0)."""
    return [axis.low, axis.high, axis.start, axis.end, axis.zero if axis.log else 0]
