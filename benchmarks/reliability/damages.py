"""Damages to the files of a finished run, and what is expected of the next command.

A damaged file must be made again by the stage that writes it, or be named in one sentence with exit code 2. It is never
used silently, and no damage ends in a traceback. A file whose size and modification time are kept is found with
`--verify`; trained weights are always compared by content.
"""

import io
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

HOWS = (
    *("emptied", "cut", "flipped", "kept time", "garbage", "other content", "deleted"),
    *("swapped", "forbidden", "a link to itself"),
)
"""Kinds of damage. `kept time`: a flipped byte under an unchanged size and modification time; `swapped`: the content of
another file of the run with the same ending, of the same size where there is one; `forbidden`: nobody may read it."""
NOT_JUDGED = (".lock", ".partial")
"""Endings of files that hold nothing."""


@dataclass(frozen=True)
class Damage:
    """One damage to one file."""

    file: str
    """Relative to the root of the run."""
    how: str
    seed: int = 0

    @property
    def needs_verify(self) -> bool:
        """Whether only `--verify` must find it: size and time are kept, and the file is not one of weights."""
        return self.how == "kept time" and not self.file.endswith(".safetensors")


def artefacts(root: Path) -> list[str]:
    """Returns the files of a finished run that hold something: all in work/, folds/ and submissions/."""
    found = [path for name in ("work", "folds", "submissions") for path in sorted((root / name).rglob("*"))]
    return [
        str(path.relative_to(root))
        for path in found
        if path.is_file() and not path.name.endswith(NOT_JUDGED) and "tensorboard" not in path.parts
    ]


def damages(files: list[str], count: int, seed: int = 0) -> Iterator[Damage]:
    """Yields so many different damages: every kind to every file once, in a random order, then at other places."""
    draw, place = random.Random(seed), 0
    while count > 0 and files:
        jobs = [Damage(file, how, seed + place) for file in files for how in HOWS]
        draw.shuffle(jobs)
        yield from jobs[:count]
        count, place = count - len(jobs), place + 1


def apply(root: Path, damage: Damage) -> None:
    """Damages a file."""
    path = root / damage.file
    stat, draw = path.stat(), random.Random(f"{damage.seed} {damage.file} {damage.how}")
    if damage.how in ("deleted", "a link to itself"):
        path.unlink()
        if damage.how != "deleted":
            path.symlink_to(path.name)
        return
    if damage.how == "forbidden":
        path.chmod(0)
        return
    if damage.how == "swapped":
        path.write_bytes(_of_another(root, damage.file))
        return
    path.write_bytes(_damaged(path, damage.how, draw))
    if damage.how == "kept time":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _of_another(root: Path, file: str) -> bytes:
    """The content of a file with the same ending, the nearest in size that has another content."""
    own = (root / file).read_bytes()
    others = [root / name for name in artefacts(root) if Path(name).suffix == Path(file).suffix and name != file]
    contents = [content for content in (path.read_bytes() for path in others) if content != own]
    return min(contents, key=lambda content: abs(len(content) - len(own)), default=b"")


def _damaged(path: Path, how: str, draw: random.Random) -> bytes:
    data = bytearray(path.read_bytes())
    if how == "emptied":
        return b""
    if how == "cut":
        return bytes(data[: draw.randrange(1, max(2, len(data)))])
    if how == "garbage":
        return draw.randbytes(max(1, len(data)))
    if how == "other content":
        return other_content(path.suffix)
    digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
    if path.suffix in (".csv", ".json", ".yaml") and digits:  # one digit becomes another, so that it is still read
        place = draw.choice(digits)
        data[place] = 48 + (data[place] - 48 + 1) % 10
    elif data:
        # a header is where a fault does most harm
        place = draw.randrange(min(128, len(data))) if draw.random() < 0.3 else draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
    return bytes(data)


def other_content(suffix: str) -> bytes:
    """Returns a sound file of a format that holds something else than a stage writes."""
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, np.zeros((3, 2), np.float32))
    elif suffix == ".npz":
        np.savez(buffer, other=np.zeros(3))
    elif suffix == ".parquet":
        pd.DataFrame({"other": ["a", "b"]}).to_parquet(buffer)
    elif suffix == ".safetensors":
        from safetensors.numpy import save

        return save({"other": np.zeros(3, np.float32)})
    elif suffix == ".png":
        import cv2

        return cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    else:
        texts = {".json": json.dumps([1]), ".csv": "other\n1\n", ".yaml": "- 1\n", ".html": "<html></html>"}
        return texts.get(suffix, "other\n").encode()
    return buffer.getvalue()


def fault(damage: Damage, returned: int | None, said: str, before: bytes | None, after: bytes | None) -> str:
    """Returns what is wrong with how a whole `run` took a damage; "" where nothing is.

    Args:
        damage: to one file.
        returned: the exit code; None where it did not end in time.
        said: all that it printed.
        before: the damaged content; None where the file was deleted.
        after: the content now.
    """
    if returned is None:
        return "hangs"
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if returned == 2:
        named = any(name in said for name in _names(damage.file))
        return "" if "error: " in said and named else "refused, and the file is not named"
    if returned:
        return f"exit code {returned}"
    if damage.how == "forbidden" or before is None:  # what is up to date is not read again
        return ""
    own = any(name in said for name in _of_a_persons_own(damage.file))
    return "silent: the damaged file is still there" if after == before and not own else ""


def _of_a_persons_own(file: str) -> tuple[str, ...]:
    """What a message names where a damage cannot be told from an edit: two lists that a person may change, and use
    without a manifest."""
    path = Path(file)
    name = f"{path.name.removesuffix('.manifest.json').removesuffix('.csv')}.csv"
    return (f"{path.parent}/{name}",) if path.parent.name == "folds" or name == "outliers.csv" else ()


def _names(file: str) -> tuple[str, ...]:
    """The names by which a message may call a file: an array is named for its index too."""
    path = Path(file)
    return path.name, path.with_suffix(".npy").name, path.with_suffix(".csv").name, path.parent.name
