"""Time to read images as a viewer shows them, relative to the plain call of the library.

    python -m benchmarks.read_speed [--images 2000] [--rounds 5]

Draws photographs (96 × 128 RGB, noise on a gradient) as PNG, JPEG and TIFF, uncompressed and with LZW. Reads all of
them in turn with `read_image` and with the library's own function (cv2.imdecode and cvtColor, tifffile.imread). The
figure is the median over rounds of the ratio of both times.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile

from pipeline.decode.readers.files import read_image

SHAPE = 96, 128, 3


def main() -> None:
    """Prints one row per format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| format | µs per image, library | µs, read_image | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, write, read in (
            ("png", _with_opencv, _opencv),
            ("jpg", _with_opencv, _opencv),
            ("tif", tifffile.imwrite, tifffile.imread),
            ("LZW tif", _lzw, tifffile.imread),
        ):
            paths = _draw(Path(folder), name, write, options.images)
            plain, ours = _times(paths, [read, read_image], options.rounds)
            each = [1e6 * float(np.median(times)) / len(paths) for times in (plain, ours)]
            print(f"| {name} | {each[0]:.0f} | {each[1]:.0f} | {float(np.median(ours / plain)):.2f} |")


def _draw(folder: Path, name: str, write: Callable[[Path, np.ndarray], object], count: int) -> list[Path]:
    rng, paths = np.random.default_rng(0), []
    gradient = np.linspace(0, 200, SHAPE[1])[None, :, None]
    for number in range(count):
        path = folder / name.replace(" ", "_") / f"{number}.{name.split()[-1]}"
        path.parent.mkdir(exist_ok=True)
        write(path, (gradient + rng.integers(0, 56, SHAPE)).astype(np.uint8))
        paths.append(path)
    return paths


def _times(paths: list[Path], readers: list[Callable[[Path], object]], rounds: int) -> np.ndarray:
    """Returns the seconds (readers, rounds) of every reader and round, after a warm-up round."""
    seconds = np.zeros((len(readers), rounds + 1))
    for turn in range(rounds + 1):
        for number, read in enumerate(readers):
            started = time.perf_counter()
            for path in paths:
                read(path)
            seconds[number, turn] = time.perf_counter() - started
    return seconds[:, 1:]


def _with_opencv(path: Path, image: np.ndarray) -> object:
    return cv2.imwrite(str(path), image)


def _opencv(path: Path) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _lzw(path: Path, image: np.ndarray) -> object:
    return tifffile.imwrite(path, image, compression="lzw")


if __name__ == "__main__":
    main()
