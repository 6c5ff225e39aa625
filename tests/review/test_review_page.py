"""A real browser goes through findings: it decides by keys, reloads, undoes, and outliers.csv says the same."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Tiny
from reviewed import reviewed
from starlette.requests import Request

from pipeline.core.run import Run
from pipeline.report import page
from pipeline.review import command, server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
addEventListener("load", async () => {
  const text = id => document.getElementById(id).textContent
  const seen = JSON.parse(sessionStorage.seen || "{}")
  const press = async (key, shiftKey = false) => {
    document.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }))
    await review.waiting
    return [text("title"), text("progress"), document.querySelector("#list tr[aria-current]").cells[3].textContent]
  }
  await review.waiting
  if (!seen.start) {
    seen.start = text("title")
    seen.other = await press("R", true)
    seen.first = await press("k")
    seen.second = await press("d")
    await press("p"); await press("h")
    const images = [...document.querySelectorAll("#pair img")]
    await Promise.all(images.map(one => one.complete || new Promise(done => one.addEventListener("load", done))))
    seen.sizes = images.map(one => [one.naturalWidth, one.naturalHeight].join("x"))
    sessionStorage.seen = JSON.stringify(seen)
    location.reload()
    return
  }
  seen.reloaded = [text("title"), text("progress")]
  seen.undone = await press("u")
  seen.said = text("said")
  seen.refused = await press("s")
  document.querySelector("#list tbody tr").click()
  await review.waiting
  seen.clicked = text("title")
  document.querySelector("#pair [data-action=soft]").click()
  await review.waiting
  seen.caption = document.querySelector("#pair figcaption").textContent
  seen.width = [document.documentElement.scrollWidth, innerWidth]
  navigator.sendBeacon("/found", JSON.stringify(seen))
})
</script>"""


@pytest.fixture
def run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Run:
    return reviewed(tiny, monkeypatch)


class Visit:
    """A server whose page probes itself, and what it found."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, Any] = {}
        self.done = threading.Event()
        drawn, application = page.render, server.application
        monkeypatch.setattr(page, "render", lambda *given, **values: drawn(*given, **values) + PROBE)

        def listening(*given: Any) -> Any:
            app = application(*given)

            async def answer(scope: Any, receive: Any, send: Any) -> None:
                if scope["path"] == "/found":
                    self.found = await Request(scope, receive).json()
                    self.done.set()
                await app(scope, receive, send)

            return answer

        monkeypatch.setattr(server, "application", listening)

    def browse(self, address: str, folder: Path) -> dict[str, Any]:
        """Opens the page, and returns what it found; an error in the console fails."""
        assert CHROMIUM
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,900"]
        options += [f"--user-data-dir={folder / 'profile'}"]
        with (folder / "stderr").open("w+") as errors:
            browser = subprocess.Popen([CHROMIUM, *options, address], stdout=errors, stderr=errors)
            try:
                there = self.done.wait(60)
            finally:
                browser.terminate()
                browser.wait(20)
            errors.seek(0)
            said = errors.read()
        assert there and "CONSOLE" not in said, said[-3000:]
        return self.found


@pytest.fixture
def visit(run: Run, monkeypatch: pytest.MonkeyPatch) -> Visit:
    return Visit(run, monkeypatch)


@pytest.fixture
def address(run: Run, visit: Visit) -> Iterator[str]:
    with command._listening(0) as listener:
        served = command._server(run, "t0ken", listener.getsockname()[1])
        thread = threading.Thread(target=served.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/t0ken/"
        served.should_exit = True
        thread.join(10)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_person_decides_reloads_and_undoes(run: Run, visit: Visit, address: str, tmp_path: Path) -> None:
    seen = visit.browse(address, tmp_path)
    assert seen["start"] == "contradiction: a01 and a02"
    empty = "a02 trained with the mask of a01, which is empty"
    assert seen["other"] == ["contradiction: a01 and a02", "2 of 5 decided", empty]  # the same pair is a duplicate too
    assert seen["first"] == ["suspected label: a12", "2 of 5 decided", "–"]
    assert seen["second"][:2] == ["pixel outlier: a06", "3 of 5 decided"]
    assert seen["sizes"] == ["60x40"] * 4  # the image and its three layers
    assert seen["reloaded"] == ["pixel outlier: a06", "3 of 5 decided"]
    assert seen["undone"] == ["suspected label: a12", "2 of 5 decided", "–"]
    assert seen["said"] == "Undone: the last decision on a12."
    assert seen["refused"][1] == "2 of 5 decided"  # a suspect has no partner whose mask it could share
    assert seen["clicked"] == seen["start"]
    assert (
        seen["caption"] == "a01, empty mask. Decided: trained with its own mask."
    )  # a02 learns its mask, so it cannot be soft
    assert seen["width"][0] <= seen["width"][1]
    found = pd.read_csv(run.outliers, dtype=str, keep_default_na=False)
    actions = {(row.image_id, row.reason): row.action for row in found.itertuples()}
    assert actions["a02", "contradiction"] == "relabel" and actions["a01", "contradiction"] == "keep"
    assert ("a12", "suspected label") not in actions
