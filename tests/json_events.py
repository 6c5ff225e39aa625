"""What the events of `--json` hold, as docs/events.md says it, and the events that a command has printed."""

import json
import re
from typing import Any

from conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "events.md").read_text(encoding="utf-8")
COMMON = {"event", "time"}


def documented() -> dict[str, set[str]]:
    """The fields of each event in the table of the page; what stands in brackets says what a field holds."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", PAGE, re.M)
    return {name: set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", text))) for name, text in rows}


def read_events(printed: str) -> list[dict[str, Any]]:
    """The events that a command printed, each checked to have the fields of the page."""
    found = [json.loads(line) for line in printed.splitlines()]
    for event in found:
        assert set(event) - COMMON == documented()[event["event"]], event
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event["time"])
    return found
