"""The verdict on a run: whether its submission can be trusted as it is, and the reasons, each one sentence.

tune writes the reasons that the held-out images give into postprocess.json; encode adds those of the test set and
writes all of them, with the verdict, into submissions/<run>.json.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["stop", "check", "note"]
Verdict = Literal["fine", "check first", "do not submit"]
LEVELS: tuple[Level, ...] = ("stop", "check", "note")
"""The gravest first. `stop`: the submission is not worth an upload; `check`: somebody should look before it is;
`note`: worth knowing, and no reason against it."""


@dataclass(frozen=True)
class Reason:
    """Something that was found about a run."""

    level: Level
    kind: str
    """A short, fixed name, e.g. `weak group`; what programs and tests look for."""
    text: str
    """One sentence with the figures, ending in a full stop."""
    command: str = ""
    """The command, or the file to open, that helps; empty where there is none."""
    images: list[str] = field(default_factory=list)
    """Ids of training images that show it, the clearest first."""


def verdict_of(reasons: Iterable[Reason]) -> Verdict:
    """Returns what the gravest of the reasons amounts to."""
    levels = {reason.level for reason in reasons}
    if "stop" in levels:
        return "do not submit"
    return "check first" if "check" in levels else "fine"


def to_json(reasons: Iterable[Reason]) -> list[dict[str, Any]]:
    """Returns reasons as JSON holds them, the gravest first."""
    return [asdict(reason) for reason in sorted(reasons, key=lambda one: LEVELS.index(one.level))]


def from_json(content: Mapping[str, Any]) -> list[Reason]:
    """Returns the reasons that `to_json` wrote into postprocess.json or a submission's record; none of older files."""
    return [Reason(**one) for one in content.get("reasons", [])]
