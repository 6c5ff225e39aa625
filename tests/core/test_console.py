"""What is printed is what was written, whatever rich would read into it."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Tiny
from rich.color import ColorSystem
from rich.table import Table

from pipeline.core import console
from pipeline.core.errors import did_you_mean, nearest
from pipeline.core.verdict import step_lines
from pipeline.status import status_table

STRANGE = "[/b] a :smile: [red]"


def test_texts_stand_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_verbose", True)
    with console.console.capture() as captured:
        console.say(STRANGE)
        console.detail(STRANGE)
    assert captured.get().count(STRANGE) == 2


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_names_of_classes_may_look_like_markup(tiny: Tiny, kind: str) -> None:
    tiny.settings |= {"classes": ["[/b]"], "title": STRANGE}
    if kind == "multilabel":
        tiny.settings |= {
            "classes": ["[/b]", "[red]"],
            "kind": kind,
            "columns": {"id": "id", "label": "c", "rle": "mask"},
        }
        tiny.rows = [row | {"c": name} for row in tiny.rows for name in ("[/b]", "[red]")]
        tiny.settings["sample_submission"] = None
    tiny.save()
    with console.console.capture() as captured:
        tiny.run("decode", "clean", "split")
    assert "decode" in captured.get()
    assert ("[/b] pixels" in captured.get()) == (kind == "multilabel")


def rows_of(table: Table) -> dict[str, str]:
    stages, states = (list(column.cells) for column in table.columns[:2])
    return dict(zip(map(str, stages), map(str, states), strict=True))


def test_status_lists_every_stage_of_the_chain(tiny: Tiny) -> None:
    rows = rows_of(status_table(tiny.run())[0])
    assert rows["evaluate"] == "nothing to do: the YAML names no true masks of the test images"
    folder: Path = tiny.input / "truth.csv"
    folder.write_text("id,mask\nt1,\n")
    tiny.settings["test"] |= {"masks": "truth.csv", "evaluate": True}
    tiny.save()
    assert "nothing to do" not in rows_of(status_table(tiny.run())[0])["evaluate"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (29, "29 s"), (99, "99 s"), (101, "2 min"), (5400, "90 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert console.duration(seconds) == words


def test_nearest_names() -> None:
    known = ["resnet50", "resnet18", "resnet34", "resnet101", "vgg16"]
    assert nearest("resnet35", known, 2) == ["resnet34", "resnet50"]
    assert did_you_mean("resnet35", known) == "; did you mean `resnet34`?"
    assert did_you_mean("resnet35", known, 2) == "; did you mean `resnet34` or `resnet50`?"
    assert did_you_mean("zzz", known) == "."


# --- on a terminal ---------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], io.StringIO]:
    """Makes standard output and standard error terminals of so many columns, and gives what is written to both."""

    def make(width: int) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setenv("TERM", "xterm")
        for one in (console.console, console.results):
            monkeypatch.setattr(one, "_file", written)
            monkeypatch.setattr(one, "_force_terminal", True)
            monkeypatch.setattr(one, "_width", width)
            monkeypatch.setattr(one, "_color_system", ColorSystem.STANDARD)
        return written

    return make


@pytest.mark.parametrize("width", [100, 80, 60])
def test_lines_break_between_words(terminal: Callable[[int], io.StringIO], width: int) -> None:
    written = terminal(width)
    text = "  fold 0: " + "a number of words " * 9 + "→ work/" + "a" * 120 + ".csv and more [red]"
    console.say(text)
    lines = written.getvalue().splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert all(len(line) <= width for line in lines if "aaa" not in line) and len(lines) > 3
    assert lines[0].startswith("  fold 0") and all(line.startswith("    ") for line in lines[1:])


def test_a_log_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    text = "  " + "a number of words " * 20
    console.say(text)
    console.show(f"[bold]{text}[/bold]")
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")


def test_a_long_command_can_be_copied(terminal: Callable[[int], io.StringIO]) -> None:
    written = terminal(60)
    command = "python -m pipeline score submissions/sample.csv input/sample/truth.csv --competition sample"
    for line in step_lines("  next            ", command):
        console.show(line)
    first, *more = written.getvalue().splitlines()
    assert first == "  next            python -m pipeline score \\" and all(len(line) <= 60 for line in more)
    assert "".join([first[18:], *more]).replace("\\", " ").split() == command.split()


def test_a_path_is_a_link(terminal: Callable[[int], io.StringIO], tmp_path: Path) -> None:
    written = terminal(80)
    console.show(console.link(tmp_path / "a [1].csv", "a [1].csv"))
    text = written.getvalue()
    assert f";{(tmp_path / 'a [1].csv').as_uri()}\x1b\\" in text and "a [1].csv" in text


def test_something_moves_only_on_a_terminal(
    terminal: Callable[[int], io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    with console.busy("loading"):
        pass
    assert capsys.readouterr() == ("", "")
    written = terminal(80)
    with console.busy("loading"):
        pass
    assert written.getvalue()  # the cursor is hidden and shown again; when it is drawn is a thread's choice
