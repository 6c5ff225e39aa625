"""Draws the synthetic sample competition, in the layout of Kaggle's Ultrasound Nerve Segmentation.

Every pixel is determined by the seed. A subject is a tissue map, a sweep is a smooth path of the probe over it, and a
frame is one position on that path. Labelling errors and broken frames are planted at known places, so that the stages
that search for them can be evaluated.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile

from pipeline.core.errors import PipelineError
from pipeline.masks import rle

Progress = Callable[[int, int], None]
ROWS, COLUMNS = 420, 580
MARGIN = 60  # tissue beyond each edge of the picture, in pixels: the probe may move this far
TISSUE = (ROWS + 2 * MARGIN, COLUMNS + 2 * MARGIN)
EMPTY_SHARE, CONTRADICTION_SHARE, BROKEN_SHARE = 0.55, 0.085, 0.042
BROKEN_KINDS = ("constant", "dark", "bright", "noise")
PATCH = 192  # side of the square the target is painted on, in pixels
REACH = 1.5  # the square spans -1.5 to 1.5 radii of the target


@dataclass(frozen=True)
class Frame:
    """One image to draw."""

    subject: int
    sweep: int
    time: float  # position on the path of the sweep, 0 to about 1
    strength: float  # visibility of the target: 0 absent, 1 fully visible
    key: int  # unique within the training or the test images; seeds the noise
    kind: str = ""  # "", "contradiction" or one of BROKEN_KINDS
    partner: int = -1  # key of the frame that a contradiction repeats
    number: int = 0  # the number `img` in the file name


@dataclass(frozen=True)
class Subject:
    """The maps that all frames of a subject share, float32."""

    tissue: np.ndarray  # log brightness, TISSUE pixels
    target: np.ndarray  # (*TISSUE, 2): radius, which is 1 on the outline and less inside; log brightness
    shade: np.ndarray  # log brightness lost to depth and shadows, (ROWS, COLUMNS)


@dataclass(frozen=True)
class Sweep:
    """The path of the probe and the speckle along it."""

    start: np.ndarray  # column and row offset, in pixels
    travel: np.ndarray  # offset gained over the sweep, in pixels
    bend: np.ndarray  # deformation, of which the sweep gains about half, in pixels, float32 (2, ROWS, COLUMNS)
    speckle: np.ndarray  # white noise, float32 (4, *TISSUE): two complex fields to rotate between
    gain: float  # log brightness gained over the sweep


def write_sample(
    folder: Path, train: int = 240, test: int = 120, seed: int = 0, on_progress: Progress | None = None
) -> None:
    """Writes the sample competition (8-bit TIFF images, 420×580) to a folder, replacing an earlier sample.

    Args:
        folder: folder to write.
        train: number of training images, at least 20.
        test: number of test images, at least 5.
        seed: random seed; the same seed gives the same bytes.
        on_progress: function that is called with the number of frames written so far and their total number.

    Raises:
        PipelineError: a number is too small, or the folder exists and is not an earlier sample.
    """
    if train < 20 or test < 5:
        raise PipelineError(f"A sample needs at least 20 training and 5 test images, but got {train} and {test}.")
    if folder.exists() and not (folder / "planted.csv").is_file():
        raise PipelineError(f"{folder} is not an earlier sample (it has no planted.csv): move it away.")
    unfinished = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "train").mkdir(parents=True)
    (unfinished / "test").mkdir()
    for is_test, frames in enumerate(plan_frames(train, test, seed)):
        rows = []
        for row in _write_frames(unfinished, frames, bool(is_test), seed):
            rows.append(row)
            if on_progress is not None:
                on_progress(is_test * train + len(rows), train + test)
        _write_tables(unfinished, frames, rows, bool(is_test))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def plan_frames(train: int, test: int, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Returns the planned training and test frames. No subject is in both; the numbers in file names are shuffled."""
    train_subjects = min(max(train // 20, 8), train // 5)
    test_subjects = min(max(test // 20, 2), test // 5)
    train_frames = _plan_part(train, range(1, train_subjects + 1), seed)
    test_frames = _plan_part(test, range(train_subjects + 1, train_subjects + test_subjects + 1), seed)
    return _number(train_frames, seed, by_subject=True), _number(test_frames, seed, by_subject=False)


def _number(frames: list[Frame], seed: int, by_subject: bool) -> list[Frame]:
    last: Counter[int] = Counter()
    numbered = []
    for index in np.random.default_rng([seed, 2, by_subject]).permutation(len(frames)):
        group = frames[index].subject if by_subject else 0
        last[group] += 1
        numbered.append(replace(frames[index], number=last[group]))
    return numbered


def _plan_part(count: int, subjects: range, seed: int) -> list[Frame]:
    """Plans `count` frames: sweeps first, then contradictions of frames with a target, then broken frames."""
    rng = np.random.default_rng([seed, 1, subjects.start])
    contradictions = max(1, round(CONTRADICTION_SHARE * count))
    broken = max(1, round(BROKEN_SHARE * count))
    in_sweeps = count - contradictions - broken
    share = (1 - EMPTY_SHARE) * count / in_sweeps
    frames: list[Frame] = []
    for subject, length in zip(subjects, _split(in_sweeps, len(subjects)), strict=True):
        for sweep, stops in enumerate(_split(length, int(rng.integers(2, 4)) if length >= 9 else 2)):
            # Rounding errors are carried over to the next sweep, so that the overall share is right.
            owed = share * (len(frames) + stops) - sum(frame.strength > 0 for frame in frames)
            strengths = _plan_strengths(stops, int(np.clip(round(owed), 0, stops)), rng)
            for index, strength in enumerate(strengths):
                frames.append(Frame(subject, sweep, index / 8, strength, len(frames)))
    shown = [frame for frame in frames if frame.strength > 0]
    for index in rng.choice(len(shown), contradictions, replace=False):
        frames.append(replace(shown[index], key=len(frames), kind="contradiction", partner=shown[index].key))
    for index, subject in zip(range(broken), rng.choice(subjects, broken), strict=True):
        frames.append(Frame(int(subject), 0, 0.5, 0.0, len(frames), BROKEN_KINDS[index % len(BROKEN_KINDS)]))
    return frames


def _split(total: int, parts: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(total), parts)]


def _plan_strengths(stops: int, shown: int, rng: np.random.Generator) -> list[float]:
    """The target's strength at each position: visible at `shown` consecutive positions, fainter at both ends."""
    before = int(rng.integers(0, stops - shown + 1))
    after = stops - shown - before
    run = [1.0] * shown
    if shown > 2:
        run[0], run[-1] = (0.8 if before else 1.0), (0.8 if after else 1.0)
    return [0.0] * before + run + [0.0] * after


def _noise(rng: np.random.Generator, shape: tuple[int, int], across: float, down: float) -> np.ndarray:
    """Unit-variance float32 noise of `shape`, smooth over `across` columns and `down` rows (standard deviations)."""
    # Smooth noise has no detail, so it is drawn small and enlarged, which is much cheaper than a wide blur.
    step_across, step_down = max(1, int(across // 3)), max(1, int(down // 3))
    small = (shape[0] // step_down + 8, shape[1] // step_across + 8)
    field: np.ndarray = rng.standard_normal(small, dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), across / step_across, sigmaY=down / step_down)
    field = cv2.resize(field, (small[1] * step_across, small[0] * step_down), interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)[: shape[0], : shape[1]]


def _grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32))
    return columns, rows


def _step(distance: np.ndarray) -> np.ndarray:
    """A soft step from 0 to 1, float32."""
    return (0.5 + 0.5 * np.tanh(distance / 2)).astype(np.float32)


def make_subject(seed: int, number: int) -> Subject:
    """Returns the tissue, the target and the shading of one subject."""
    rng = np.random.default_rng([seed, 4, number])
    tissue = _make_tissue(rng)
    return Subject(tissue, _make_target(rng), _make_shade(rng))


def _make_tissue(rng: np.random.Generator) -> np.ndarray:
    columns, rows = _grid(TISSUE)
    # Layers are flat under the skin and bend more with depth.
    depth = np.clip((rows - MARGIN - 12) / 130, 0.03, 1)
    slope = rng.uniform(-0.12, 0.12) * (columns - TISSUE[1] / 2)
    bend = depth * (slope + 17 * _noise(rng, TISSUE, 100, 60) + 7 * _noise(rng, TISSUE, 36, 24))
    tissue = _make_layers(rng) + 0.32 * _noise(rng, TISSUE, 55, 22) + _make_streaks(rng)
    tissue = cv2.remap(tissue, columns, rows + bend, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    steep = bend + depth * float(rng.choice([-1, 1]) * rng.uniform(0.35, 0.6)) * (columns - TISSUE[1] / 2)
    oblique = cv2.remap(_make_streaks(rng), columns, rows + steep, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    tissue += depth * _step(5 * (_noise(rng, TISSUE, 60, 40) - 0.7)) * (oblique - 0.4 * tissue)
    for _ in range(int(rng.integers(2, 4))):
        tissue = _add_vessel(tissue, rng)
    return np.asarray(tissue, dtype=np.float32)


def _make_layers(rng: np.random.Generator) -> np.ndarray:
    """Flat layers of different brightness, separated by bright, broken fascia lines."""
    rows = np.arange(TISSUE[0], dtype=np.float32)[:, None]
    layers = np.zeros(TISSUE, np.float32)
    edge, level = MARGIN + 4.0, 0.3
    while edge < TISSUE[0]:
        thickness = rng.uniform(8, 20) if edge < MARGIN + 45 else rng.uniform(25, 80)
        layers += level * (_step((rows - edge) / 2) - _step((rows - edge - thickness) / 2))
        strength = np.clip(0.7 + 1.1 * _noise(rng, (1, TISSUE[1]), 60, 1), 0, 2.2)
        layers += np.exp(-(((rows - edge) / rng.uniform(1.8, 3.8)) ** 2)) * strength
        edge += thickness
        level = rng.uniform(-0.6, 0.35)
    return layers


def _make_streaks(rng: np.random.Generator) -> np.ndarray:
    """Fibres along the layers: grain everywhere, and bright streaks in patches."""
    patches = np.clip(0.5 + 0.7 * _noise(rng, TISSUE, 55, 30), 0, 1.8)
    bright = np.clip(_noise(rng, TISSUE, 14, 2.6) - 0.8, 0, None)
    grain = 0.22 * _noise(rng, TISSUE, 5, 1.6) + 0.25 * _noise(rng, TISSUE, 12, 3.5)
    return np.asarray(grain + (0.2 + 1.3 * patches) * bright, dtype=np.float32)


def _add_vessel(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds a dark, uniform ellipse without the target's rim and mesh: a distractor that resembles the target."""
    columns, rows = _grid(TISSUE)
    column, row = rng.uniform(MARGIN + 40, MARGIN + COLUMNS - 40), rng.uniform(MARGIN + 110, MARGIN + ROWS - 60)
    wide, high = rng.uniform(22, 52), rng.uniform(15, 30)
    distance = np.hypot((columns - column) / wide, (rows - row) / high) + 0.13 * _noise(rng, TISSUE, 18, 12)
    inside = _step((1 - distance) * rng.uniform(7, 13))
    return tissue * (1 - 0.9 * inside) - rng.uniform(0.7, 1.3) * inside


def _make_target(rng: np.random.Generator) -> np.ndarray:
    """A nerve, float32 (*TISSUE, 2) with radius and log brightness: dark cells in a bright mesh with a bright rim."""
    shape = (PATCH, PATCH)
    x, y = (REACH * (2 * place / (PATCH - 1) - 1) for place in _grid(shape))
    wobble = sum(rng.normal(0, 0.05) * np.cos(n * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)) for n in (2, 3))
    radius = np.hypot(x, y) * (1 + wobble)
    x, y = x + 0.06 * _noise(rng, shape, 14, 14), y + 0.06 * _noise(rng, shape, 14, 14)
    cells = np.mgrid[-4:5, -4:5].reshape(2, -1).T * rng.uniform(0.46, 0.58)
    cells[:, 0] += 0.5 * cells[:, 1]
    cells += rng.normal(0, 0.08, cells.shape)
    nearest = np.partition(np.hypot(x[..., None] - cells[:, 0], y[..., None] - cells[:, 1]), 1, axis=2)
    mesh = np.exp(-(((nearest[..., 1] - nearest[..., 0]) / 0.17) ** 2)) * (0.9 + 0.25 * _noise(rng, shape, 12, 12))
    rim = np.exp(-(((radius - 0.89) / 0.11) ** 2)) * (1.4 + 0.2 * _noise(rng, shape, 20, 20))
    ground = -0.6 - 0.5 * _step((radius - 1.02) * 60)  # a dark sheath separates it from the surrounding tissue
    texture = ground + 1.9 * np.maximum(mesh * (radius < 1), rim) + 0.12 * _noise(rng, shape, 3, 3)
    area, aspect, angle = np.exp(rng.uniform(8.4, 9.15)), rng.uniform(1.15, 1.8), rng.uniform(-1.2, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn * np.sqrt(area / np.pi * np.array([aspect, 1 / aspect])) * 2 * REACH / PATCH
    centre = rng.uniform((MARGIN + 150, MARGIN + 100), (MARGIN + 430, MARGIN + 270))
    matrix = np.column_stack([linear, centre - linear @ np.full(2, PATCH / 2)])
    painted = np.dstack([radius, cv2.GaussianBlur(texture, (0, 0), 2.2)])
    target = cv2.warpAffine(painted, matrix, TISSUE[::-1], borderValue=(9.0, 0.0))
    return np.asarray(target, dtype=np.float32)


def _make_shade(rng: np.random.Generator) -> np.ndarray:
    columns, rows = _grid((ROWS, COLUMNS))
    shade = -0.45 * (rows / ROWS) ** 2 - 0.2 * (2 * columns / COLUMNS - 1) ** 2
    for _ in range(int(rng.integers(1, 4))):
        column, wide, top = rng.uniform(0, COLUMNS), rng.uniform(18, 50), rng.uniform(20, 200)
        shade -= rng.uniform(0.2, 0.55) * _step((rows - top) / 30) * np.exp(-(((columns - column) / wide) ** 2))
    return np.asarray(shade, dtype=np.float32)


def make_sweep(seed: int, subject: int, number: int) -> Sweep:
    """Returns the path and the speckle of one sweep of a subject."""
    rng = np.random.default_rng([seed, 5, subject, number])
    return Sweep(
        start=rng.uniform((-20, -10), (20, 4)),
        travel=rng.uniform((-22, -5), (22, 5)),
        bend=np.stack([amount * _noise(rng, (ROWS, COLUMNS), 80, 60) for amount in (4, 6)]),
        speckle=rng.standard_normal((4, *TISSUE), dtype=np.float32),
        gain=float(rng.uniform(-0.15, 0.15)),
    )


def render(frame: Frame, subject: Subject, sweep: Sweep, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image (0 to 255) and the true mask (0 or 255) of a frame, both uint8 (ROWS, COLUMNS)."""
    rng = np.random.default_rng([seed, 6, frame.subject, frame.key])
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    if frame.kind == "constant":
        return np.full_like(mask, rng.integers(0, 256)), mask
    if frame.kind == "noise":
        return rng.integers(0, 256, mask.shape, dtype=np.uint8), mask
    columns, rows = _grid((ROWS, COLUMNS))
    offset = (MARGIN + sweep.start + frame.time * sweep.travel).astype(np.float32)
    bend = np.float32(0.5 + frame.time) * sweep.bend
    across, down = columns + bend[0] + offset[0], rows + bend[1] + offset[1]
    brightness = cv2.remap(subject.tissue, across, down, cv2.INTER_LINEAR)
    if frame.strength > 0:
        radius, texture = cv2.split(cv2.remap(subject.target, across, down, cv2.INTER_LINEAR))
        brightness = brightness + frame.strength * _step((1.12 - radius) * 25) * (texture - 0.95 * brightness)
        mask[radius < 1] = 255
    brightness = brightness + subject.shade + 0.45 * _speckle(frame, sweep)
    return _expose(brightness, frame, frame.time * sweep.gain, rng), mask


def _speckle(frame: Frame, sweep: Sweep) -> np.ndarray:
    """Log of the speckle amplitude, float32 (ROWS, COLUMNS). It moves with the tissue and changes along the path."""
    phase = 0.45 * np.pi * frame.time + (0.03 if frame.kind == "contradiction" else 0)
    column, row = np.round(MARGIN + sweep.start + frame.time * sweep.travel).astype(int)
    fields = sweep.speckle[:, row : row + ROWS, column : column + COLUMNS]
    mixed = np.float32(np.cos(phase)) * fields[:2] + np.float32(np.sin(phase)) * fields[2:]
    # Ultrasound has a finer resolution in depth than in width, so the grains are flat.
    real, imaginary = (cv2.GaussianBlur(field, (0, 0), 2.4, sigmaY=1.1) for field in mixed)
    return np.log(np.hypot(real, imaginary) * 5.5 + np.float32(0.35))


def _expose(brightness: np.ndarray, frame: Frame, gain: float, rng: np.random.Generator) -> np.ndarray:
    total = np.float32(gain + rng.normal(0, 0.015) + {"dark": -3.2, "bright": 3.2}.get(frame.kind, 0))
    # A soft floor: a scanner compresses faint echoes instead of cutting them off.
    grey = 10 + 42 * np.log(1 + np.exp(2 * (brightness + total) + np.float32(1.7)))
    return np.clip(np.round(grey + rng.standard_normal(grey.shape, dtype=np.float32)), 0, 255).astype(np.uint8)


def _write_frames(root: Path, frames: list[Frame], is_test: bool, seed: int) -> Iterator[dict[str, object]]:
    """Writes the TIFF files of the training or test images, and yields one table row per frame."""
    with ThreadPoolExecutor() as pool:
        for number in sorted({frame.subject for frame in frames}):
            of_subject = [frame for frame in frames if frame.subject == number]
            sweeps = {sweep: make_sweep(seed, number, sweep) for sweep in {frame.sweep for frame in of_subject}}
            draw = partial(_write_frame, root, make_subject(seed, number), sweeps, is_test, seed)
            yield from pool.map(draw, of_subject)


def _write_frame(
    root: Path, subject: Subject, sweeps: dict[int, Sweep], is_test: bool, seed: int, frame: Frame
) -> dict[str, object]:
    image, mask = render(frame, subject, sweeps[frame.sweep], seed)
    if frame.kind == "contradiction":
        mask[:] = 0
    stem = f"train/{frame.subject}_{frame.number}"
    images = {f"test/{frame.number}.tif": image} if is_test else {f"{stem}.tif": image, f"{stem}_mask.tif": mask}
    for name, grey in images.items():
        tifffile.imwrite(root / name, grey, compression="lzw", photometric="minisblack", metadata=None, software=False)
    return {"subject": frame.subject, "img": frame.number, "pixels": rle.encode(mask)}


def _write_tables(root: Path, frames: list[Frame], rows: list[dict[str, object]], is_test: bool) -> None:
    masks = pd.DataFrame(rows).sort_values(["img"] if is_test else ["subject", "img"])
    if is_test:
        masks[["img", "pixels", "subject"]].to_csv(root / "truth.csv", index=False)
        masks[["img"]].assign(pixels="1 1").to_csv(root / "sample_submission.csv", index=False)
        return
    masks.to_csv(root / "train_masks.csv", index=False)
    names = {frame.key: f"{frame.subject}_{frame.number}" for frame in frames}
    planted = [
        (names[frame.key], "broken" if frame.kind in BROKEN_KINDS else frame.kind, names.get(frame.partner, ""))
        for frame in frames
        if frame.kind
    ]
    pd.DataFrame(planted, columns=["image_id", "kind", "partner_id"]).to_csv(root / "planted.csv", index=False)
