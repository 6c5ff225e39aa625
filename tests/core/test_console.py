"""What is printed is what was written, whatever rich would read into it."""

from pathlib import Path

import pytest
from conftest import Tiny
from rich.table import Table

from pipeline.core import console
from pipeline.core.errors import did_you_mean, nearest
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
    assert rows["evaluate"] == "nothing to do: the YAML names no truth of the test images"
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
