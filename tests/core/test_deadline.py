"""Lengths of time, and the limit of `--stop-after`."""

import pytest
from conftest import Tiny

from pipeline.core import deadline
from pipeline.core.errors import PipelineError


@pytest.mark.parametrize(("text", "seconds"), [("8.5h", 30600), ("90min", 5400), ("30m", 1800), ("45s", 45)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert deadline.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["8", "h", "-1h", "1 day", ""])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(PipelineError, match="expected a number and a unit, for instance 8.5h"):
        deadline.seconds_of(text)


def test_no_limit_and_none_at_all() -> None:
    assert deadline.limit_of("none") is None and deadline.limit_of("8h") == 28800
    for text in ("0s", "0h"):
        with pytest.raises(PipelineError, match=f"--time {text}: expected more than 0; for instance 8.5h"):
            deadline.limit_of(text)


def test_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(deadline.VARIABLE, raising=False)
    deadline.check("tune")
    assert deadline.seconds_left() is None
    monkeypatch.setenv(deadline.VARIABLE, "0")
    with pytest.raises(deadline.TimeIsUp, match="tune was not started: the time of --stop-after is up."):
        deadline.check("tune")
    assert "`python -m pipeline save" not in deadline.how_to_go_on()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "save NAME` saves the work; `restore NAME` restores it in the next session." in deadline.how_to_go_on()


def test_a_run_without_time_ends_with_its_own_exit_code(tiny: Tiny) -> None:
    done = tiny.cli("run", tiny.recipe_path, "--to", "clean", "--stop-after", "0.001s")
    assert done.returncode == 4
    said = (
        "decode was not started: the time of --stop-after is up. Finished work is kept: the same command continues from"
    )
    assert done.stderr.endswith(f"{said} there.\n")


@pytest.mark.parametrize("text", ["45m", "0.7h", "2.3h", "100000.5s", "90.25min", "0.001s"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    seconds = deadline.seconds_of(text)
    assert deadline.seconds_of(deadline.text_of(seconds)) == seconds and deadline.is_duration(text)
