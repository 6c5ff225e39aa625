"""Moments that processes on several machines agree on."""

import pickle
import time
from dataclasses import replace

import pytest

from pipeline.core.moments import Moment


def test_a_clock_that_is_set_does_not_move_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = pickle.loads(pickle.dumps(Moment.after(100)))
    now = time.time()
    for jump in (-3600, 3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        assert moment.seconds_left == pytest.approx(100, abs=1)


def test_another_machine_uses_the_time_of_day() -> None:
    elsewhere = replace(Moment.after(100), steady=5.0, machine="another")
    assert elsewhere.seconds_left == pytest.approx(100, abs=1)
    assert Moment.after(-1).seconds_left < 0
