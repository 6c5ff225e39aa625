"""A small stand-in for Kaggle: an HTTP server that answers the calls that the official client makes.

The shapes of requests and answers are those of kagglesdk 0.1.38 and kaggle 2.2.5.
"""

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

TOKEN, USER = "KGAT_a-secret-token", "ada"
Answer = dict[str, Any]


class Kaggle:
    """What the stand-in knows, and what it was asked."""

    def __init__(self) -> None:
        self.token, self.entered, self.port = TOKEN, True, 0
        self.files: dict[str, bytes] = {}
        """Archives of competitions, by slug."""
        self.cut: int | None = None
        """Bytes that downloads may have all together before they break off."""
        self.uploads: dict[str, bytes] = {}
        self.upload_status = 200
        self.submissions: list[Answer] = []
        self.scores: list[Answer] = []
        """What becomes of submissions, in their order; pending without."""
        self.allowed = 5
        self.datasets: dict[str, Answer] = {}
        self.busy = 0
        """How often a dataset's version, and a kernel, is not ready yet when it is asked for."""
        self.kernels: dict[str, Answer] = {}
        self.kernel_ends: Answer = {"status": "COMPLETE"}
        self.kernel_files: dict[str, bytes] = {}
        self.log = [{"stream_name": "stdout", "time": 1.0, "data": "canary: largest difference 0/255\n"}]
        self.invalid: Answer = {}
        self.fails: dict[str, tuple[int, str]] = {}
        """Status and message by method."""
        self.loses: set[str] = set()
        """Methods whose answers are lost: the connection is closed instead."""
        self.asked: list[tuple[str, Answer]] = []
        self.ranges: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def calls(self, method: str) -> list[Answer]:
        return [request for name, request in self.asked if name == method]

    def answer(self, method: str, request: Answer) -> Answer | str:
        """What a call gets: an object, or an address to go to."""
        known: dict[str, Callable[[Answer], Answer | str]] = {
            "IntrospectToken": lambda _: {"active": request["token"] == self.token, "username": USER},
            "GetCompetition": lambda _: {"ref": request["competitionName"], "userHasEntered": self.entered},
            "ListDataFiles": lambda _: {
                "files": [{"name": "all", "totalBytes": len(self.files[request["competitionName"]])}]
            },
            "DownloadDataFiles": lambda _: f"/files/{request['competitionName']}.zip?signed=1",
            "GetSubmissionLimits": lambda _: {"numAllowedNow": self.allowed, "numToday": 5 - self.allowed},
            "StartSubmissionUpload": self.start_upload,
            "StartBlobUpload": self.start_upload,
            "CreateSubmission": self.create_submission,
            "CreateCodeSubmission": self.create_submission,
            "ListSubmissions": lambda _: {"submissions": self.submissions},
            "GetSubmission": lambda _: next(one for one in self.submissions if one["ref"] == request["ref"]),
            "CreateDataset": lambda _: self.save_dataset(f"{USER}/{request['slug']}", request),
            "CreateDatasetVersion": lambda _: self.save_dataset(f"{USER}/{request['datasetSlug']}", request["body"]),
            "GetDatasetStatus": lambda _: self.dataset_status(self.dataset(request)),
            "GetDataset": lambda _: {"ref": "x", "currentVersionNumber": self.dataset(request)["shown"]},
            "DownloadDataset": lambda _: f"/dataset/{self.dataset(request)['files'][0]}/{request['fileName']}",
            "SaveKernel": self.save_kernel,
            "GetKernelSessionStatus": self.kernel_status,
            "ListKernelSessionOutput": lambda _: {
                "files": [{"fileName": name, "url": f"{self.address}/kernel/{name}"} for name in self.kernel_files],
                "log": json.dumps(self.log),
            },
        }
        return known[method](request)

    def start_upload(self, request: Answer) -> Answer:
        token = f"{len(self.uploads)}-{request.get('name') or request.get('fileName')}"
        self.uploads[token] = b""
        return {"token": token, "createUrl": f"{self.address}/upload/{token}"}

    def create_submission(self, request: Answer) -> Answer:
        number = len(self.submissions)
        said = {"status": "PENDING", **(self.scores[number] if number < len(self.scores) else {})}
        one = {"ref": 700 + number, "date": "2099-01-01T00:00:00Z", "description": request["submissionDescription"]}
        self.submissions.append(one | said)
        return {"message": "Successfully submitted", "ref": one["ref"]}

    def dataset(self, request: Answer) -> Answer:
        name = f"{request['ownerSlug']}/{request['datasetSlug']}"
        if name not in self.datasets:
            raise KeyError(name)
        return self.datasets[name]

    def save_dataset(self, name: str, request: Answer) -> Answer:
        version = self.datasets.get(name, {"version": 0, "shown": 0})
        files = [file["token"] for file in request["files"]]
        self.datasets[name] = version | {"version": version["version"] + 1, "files": files, "waits": self.busy}
        return {"ref": name, "status": "ok", "error": ""}

    def dataset_status(self, dataset: Answer) -> Answer:
        """The old version is ready until the new one is."""
        dataset["waits"] -= 1
        if dataset["waits"] < 0:
            dataset["shown"] = dataset["version"]
        return {"status": "READY"}

    def save_kernel(self, request: Answer) -> Answer:
        version = self.kernels.get(request["slug"], {"version": 0})["version"] + 1
        self.kernels[request["slug"]] = {"version": version, "waits": self.busy, "text": request["text"]}
        return {"ref": f"/code/{request['slug']}", "url": f"https://www.kaggle.com/code/{request['slug']}",
                "versionNumber": version, **self.invalid}  # fmt: skip

    def kernel_status(self, request: Answer) -> Answer:
        kernel = self.kernels[f"{request['userName']}/{request['kernelSlug']}"]
        assert request["versionLabel"] == f"v{kernel['version']}"
        kernel["waits"] -= 1
        return {"status": "RUNNING"} if kernel["waits"] >= 0 else self.kernel_ends


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for a stand-in."""

    kaggle: Kaggle

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        method = self.path.rpartition("/")[2]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.kaggle.asked.append((method, request))
        if method != "IntrospectToken" and self.headers.get("Authorization") != f"Bearer {self.kaggle.token}":
            return self.send(401, {"code": 401, "message": "Unauthenticated"})
        if method in self.kaggle.fails:
            status, message = self.kaggle.fails[method]
            return self.send(status, {"code": status, "message": message})
        try:
            answer = self.kaggle.answer(method, request)
        except KeyError as error:
            return self.send(404, {"code": 404, "message": f"Not found: {error}"})
        if method in self.kaggle.loses:
            self.close_connection = True
            return None
        if isinstance(answer, str):
            self.send_response(302)
            self.send_header("Location", answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self.send(200, answer)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.kaggle.upload_status == 200:
            self.kaggle.uploads[self.path.removeprefix("/upload/")] = body
        if self.kaggle.upload_status == 0:  # the connection is cut
            self.close_connection = True
            return
        self.send(self.kaggle.upload_status, {})

    def do_GET(self) -> None:
        folder, name = re.split(r"[/?]", self.path)[1:3]
        if folder == "kernel":
            content = self.kaggle.kernel_files[name]
        elif folder == "dataset":
            content = self.kaggle.uploads[name]
        else:
            content = self.kaggle.files[name.removesuffix(".zip")]
        first = 0
        if wanted := self.headers.get("Range"):
            self.kaggle.ranges.append(wanted)
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        for header, value in (("Content-Length", len(content) - first), ("Accept-Ranges", "bytes"), ("ETag", "one"),
                              ("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")):  # fmt: skip
            self.send_header(header, str(value))
        self.end_headers()
        part = content[first:] if self.kaggle.cut is None else content[first : first + self.kaggle.cut]
        self.wfile.write(part)
        if self.kaggle.cut is not None:
            self.kaggle.cut -= len(part)
            self.close_connection = True

    def send(self, status: int, answer: Answer) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(home: Path) -> Iterator[Kaggle]:
    """Yields a stand-in that the client finds, with a token for it."""
    import time

    with pytest.MonkeyPatch.context() as patch:  # importing it logs in: with no token, and to nobody
        for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        pytest.importorskip("kagglesdk", reason="Kaggle's client is not installed")
        pytest.importorskip("kaggle")
    from kagglesdk import kaggle_env

    known, wait = Kaggle(), time.sleep
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"kaggle": known}))
    known.port = server.server_port
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, known.address)
        patch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
        patch.setenv("KAGGLE_API_TOKEN", TOKEN)
        patch.setenv("HOME", str(home))
        patch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.001)))  # the client waits longer and longer
        yield known
    server.shutdown()
    server.server_close()
    thread.join()
