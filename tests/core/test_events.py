"""What scripts read: every event has the fields that the documentation names, whichever process sends it."""

import io
import json
import re
from dataclasses import fields

import pytest
from json_events import PAGE, documented

from pipeline.core import events
from pipeline.core.console import console

EPOCH = events.Epoch("r", 0, 0, 1, 2, 0.5, None, None, False, 1.0, 1.0)


def test_the_page_names_every_field_of_every_event() -> None:
    assert documented() == {name: {one.name for one in fields(event)} for event, name in events.NAMES.items()}


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_enabled", True)


def test_events_of_worker_processes_arrive_among_their_text(
    enabled: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Worker(io.StringIO):
        relays = True

    sent = Worker()
    monkeypatch.setattr(console, "_file", sent)
    events.emit(EPOCH)
    between = Worker()  # a worker whose own processes train a fold together passes on what they say
    monkeypatch.setattr(console, "_file", between)
    events.relay(sent.getvalue())
    assert between.getvalue() == sent.getvalue() and sent.getvalue().startswith(events.MARK)
    monkeypatch.setattr(console, "_file", None)
    events.relay(between.getvalue())
    events.relay("[red] is text\n")
    out, err = capsys.readouterr()
    assert json.loads(out)["epochs"] == 2 and err == "[red] is text\n"


def test_no_event_is_written_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    events.emit(EPOCH)
    assert capsys.readouterr().out == ""


def test_the_example_of_the_page_is_an_event() -> None:
    (example,) = re.findall(r'^\{"event".*$', PAGE, re.M)
    assert json.loads(example.replace(", …}", "}"))["event"] == "epoch"
