"""Damages one file of a finished run at a time, and looks how the next `run` takes it: see `damages`, which says which
damages there are and what is expected."""

import importlib
import time
from pathlib import Path

from benchmarks.reliability.starved import with_few_rights
from benchmarks.reliability.warm import Place, Tally, command, differing, results


def run(place: Place, seed: int, until: float) -> Tally:
    """Damages files until the time (of time.monotonic) is up."""
    damages = importlib.import_module("benchmarks.reliability.damages")
    tally = Tally("Damages", logs=place.folder / "faults")
    expected = results(place.base)
    for number, damage in enumerate(damages.damages(damages.artefacts(place.base), 10**6, seed)):
        if number >= 3 and time.monotonic() > until:
            break
        root = place.fresh("damaged", finished=True)
        damages.apply(root, damage)
        path = root / damage.file
        before = path.read_bytes() if path.exists() else None
        setup = with_few_rights if damage.how == "forbidden" else None
        ended = command(["run", place.recipe, *["--verify"] * damage.needs_verify], root, setup=setup)
        after = path.read_bytes() if path.exists() else None
        wrong = damages.fault(damage, ended.code, ended.text, before, after)
        if not wrong and ended.code == 0 and after != before and (other := _others(root, expected, before)):
            wrong = f"made again differently: {', '.join(other[:3])}"
        kind = f"{path.suffix.removeprefix('.') or path.name} {damage.how}"
        tally.add(kind, "faulty" if wrong else "named" if ended.code == 2 else "made again",
                  f"{damage.file} {damage.how}: {wrong}" if wrong else "", ended.text)  # fmt: skip
    return tally


def _others(root: Path, expected: dict[str, str], damaged: bytes | None) -> list[str]:
    """Returns the files that differ from the undisturbed run, except submissions of others kept under a dated name."""
    found = differing(results(root), expected)
    return [
        name
        for name in found
        if not (name.startswith("submissions/") and name not in expected and (root / name).read_bytes() == damaged)
    ]
