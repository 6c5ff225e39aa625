"""What the server of `review` refuses, shows and writes."""

import io
import json
import os
import signal
import socket
import urllib.request
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny
from PIL import Image
from reviewed import CONTRADICTION, reviewed
from starlette.testclient import TestClient

from pipeline.clean.outliers import findings
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.core.tables import write_for_people
from pipeline.report import page
from pipeline.review import command, server

TOKEN, HOST = "t0ken", "127.0.0.1:8000"
HOME = f"http://{HOST}/{TOKEN}/"


@pytest.fixture
def run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Run:
    return reviewed(tiny, monkeypatch)


@pytest.fixture
def client(run: Run) -> TestClient:
    return opened(run)


def opened(run: Run) -> TestClient:
    return TestClient(server.application(run, TOKEN, frozenset({HOST})), base_url=HOME)


def items(client: TestClient, **query: Any) -> dict[str, Any]:
    return client.get("items", params=query).json()


def keys(client: TestClient) -> dict[str, str]:
    return {f"{one['reason']} {one['images'][0]['id']}": one["key"] for one in items(client)["items"]}


def decide(client: TestClient, item: str, action: str, place: int = 0) -> Any:
    return client.post("decide", json={"key": keys(client)[item], "place": place, "action": action})


def actions(run: Run) -> dict[tuple[str, str], str]:
    found = pd.read_csv(run.outliers, dtype=str, keep_default_na=False)
    return {(row.image_id, row.reason): row.action for row in found.itertuples()}


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


STRANGERS: list[tuple[str, dict[str, str]]] = [
    ("/", {}),
    ("/wrong/", {}),
    ("/wrong/decide", {}),
    (f"/{TOKEN}x/", {}),
    ("/\u0441\u0442", {}),
    ("", {"host": "evil.example"}),  # a name that was pointed at this machine
    ("", {"host": "127.0.0.1:9999"}),
    ("", {"origin": "http://evil.example"}),
    ("decide", {"origin": "null"}),
    ("image/0", {"sec-fetch-site": "cross-site"}),
]


def test_strangers_are_refused(run: Run, client: TestClient) -> None:
    before = run.outliers.read_bytes()
    body = {"key": keys(client)["contradiction a01"], "place": 0, "action": "drop"}
    for path, headers in STRANGERS:
        address = f"http://{HOST}{path}" if path.startswith("/") else HOME + path
        for method in ("GET", "POST"):
            answer = client.request(method, address, headers=headers, json=body)
            assert answer.status_code == 403 and answer.text.startswith("Refused: "), (path, headers)
            assert answer.headers["cache-control"] == "no-store" and "a01" not in answer.text
    assert run.outliers.read_bytes() == before
    own = {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
    assert client.post("decide", json=body, headers=own).status_code == 200


def test_nothing_but_images_of_the_table_is_read(client: TestClient) -> None:
    paths = ["image/../../../etc/passwd", "image/..%2F..%2Fsmall.yaml", "image/a01", "truth/-1", "image/99999999999"]
    for path in [*paths, "work/0", "enlarged?id=../../small.yaml", "enlarged?id=", "pages/review.js"]:
        assert client.get(path).status_code in (403, 404), path  # where `..` was shortened, the token is gone


def test_only_post_changes(run: Run, client: TestClient) -> None:
    before = run.outliers.read_bytes()
    key = keys(client)["contradiction a01"]
    for path in ("decide", "undo", f"decide?key={key}&place=0&action=drop"):
        assert client.get(path).status_code == 405
    for content in (b"[]", b"{", b"x" * 20_000):
        assert client.post("decide", content=content).status_code in (400, 413)
    assert run.outliers.read_bytes() == before


def test_decisions_are_written_at_once_and_shown_by_a_second_review(run: Run, client: TestClient) -> None:
    assert decide(client, "contradiction a01", "relabel").json() == {"decided": "a01"}
    assert actions(run)["a01", "contradiction"] == "relabel"
    another = opened(run)  # a second tab, or a server after a kill
    assert decide(another, "suspected label a12", "drop").status_code == 200
    assert decide(client, "contradiction a01", "drop", place=1).status_code == 200
    assert actions(run)["a12", "suspected label"] == actions(run)["a02", "contradiction"] == "drop"
    first = items(another)["items"][0]
    assert [(one["id"], one["use"], one["decided"], one["alone"]) for one in first["images"]] == [
        ("a01", "relabel", True, True), ("a02", "drop", True, False)]  # fmt: skip
    assert items(client)["open"] == 2 and items(client)["total"] == 5  # a12 is not listed twice, a02 has no item more
    assert [client.post("undo", json={}).json()["undone"] for _ in range(3)] == ["a02", "a12", "a01"]
    answer = another.post("undo", json={})
    assert answer.status_code == 409 and answer.json()["error"] == "There is no decision to undo."
    assert actions(run)["a01", "contradiction"] == "keep" and ("a12", "suspected label") not in actions(run)


def test_what_has_no_meaning_is_not_offered(run: Run, client: TestClient) -> None:
    offered = {one["reason"]: one["actions"] for one in items(client)["items"]}
    assert offered["contradiction"] == offered["duplicate"] == ["keep", "drop", "relabel", "soft"]
    assert offered["pixel outlier"] == offered["suspected label"] == ["keep", "drop"]
    answer = decide(client, "suspected label a12", "relabel")
    assert answer.status_code == 409 and "expected keep, drop" in answer.json()["error"]
    assert decide(client, "pixel outlier a06", "drop", place=1).status_code == 409
    gone = client.post("decide", json={"key": "none", "place": 0, "action": "drop"})
    assert gone.status_code == 409 and "reload the page" in gone.json()["error"]


def test_a_long_list_comes_page_by_page(run: Run) -> None:
    rows = [(f"a{1 + number % 12:02}", f"reason {number}", 1.0, "", "keep", "") for number in range(130)]
    write_for_people(run.outliers, findings([*rows, CONTRADICTION]))
    client = opened(run)
    first, third = items(client), items(client, start=100)
    assert first["total"] == third["total"] == 132 and len(first["items"]) == 50 and len(third["items"]) == 32
    assert first["items"][0]["reason"] == "contradiction"
    decide(client, "contradiction a01", "keep")
    assert items(client)["next_open"] == 1
    assert items(client, reason="contradiction")["total"] == 1
    assert items(client, start="x")["start"] == 0


def test_pictures_are_of_full_size(run: Run, client: TestClient, tiny: Tiny) -> None:
    picture = pixels(client.get("image/1").content)
    assert np.array_equal(picture, np.repeat(tiny.images["a02"][:, :, None], 3, axis=2))
    truth, predicted, heat = (pixels(client.get(f"{name}/1").content) for name in server.LAYERS)
    mask = tiny.masks["a02"] == 1
    assert truth.shape == predicted.shape == heat.shape == (*mask.shape, 4)
    assert (truth[..., 3] > 0)[mask].all() and not truth[..., 3][:, -5:].any()
    assert np.array_equal(heat[..., 3] > 0, np.roll(mask, 3, axis=1))
    large = client.get("enlarged", params={"id": "a02"}).json()
    assert large["shape"] == large["inner"] == [*mask.shape] and len(large["scores"][0]) == 16


def test_the_report_is_served_with_every_image_at_its_own_size(run: Run, client: TestClient) -> None:
    assert client.get("report").status_code == 409
    page.write(run.report, "page.html.jinja", title="small")
    served = client.get("report").text
    assert "connect-src" not in run.report.read_text() and "connect-src 'self'" in served and "fullSize" in served


# --- the command ---


def test_ctrl_c_ends_with_the_next_command(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[Any] = []

    def visit(address: str) -> bool:
        try:
            with urllib.request.urlopen(f"{address}items") as answer:
                key = json.loads(answer.read())["items"][0]["key"]
            data = json.dumps({"key": key, "place": 0, "action": "drop"}).encode()
            with urllib.request.urlopen(urllib.request.Request(f"{address}decide", data)) as answer:
                answered.append(json.loads(answer.read()))
        finally:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(command.webbrowser, "open", visit)
    before = signal.getsignal(signal.SIGINT)
    command.review(run, 0, browser=True)
    assert answered == [{"decided": "a01"}] and signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr().out
    assert "http://127.0.0.1:" in said and "decisions on 1 image in" in said and "next  python -m pipeline run " in said
    assert actions(run)["a01", "contradiction"] == "drop"


def test_what_stands_in_the_way_is_said_in_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PipelineError, match=f"--port {port} cannot be used"):
            command.review(run, port, browser=False)
    run.folds_file.parent.mkdir(exist_ok=True)
    run.folds_file.write_text("image_id,fold,use\na01,0,train\n")
    with pytest.raises(
        PipelineError, match="folds/tiny.csv is your own file, and its column `use` overrides all decisions"
    ):
        command.review(run, 0, browser=False)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="review needs starlette and uvicorn.*pip install"):
        command.review(run, 0, browser=False)
