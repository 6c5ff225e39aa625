"""Goes through findings and suspected labels in a browser, and writes what is decided.

    python -m pipeline review RECIPE

reads   work/<competition>/images.parquet, outliers.csv, work/<competition>/<run>/suspects.csv, oof_scores.csv,
        predictions/ and report.html; input/<competition>/
writes  work/<competition>/outliers.csv, at every decision
"""

import secrets
import signal
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from threading import Timer
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipeline.core import driver, freshness
from pipeline.core.console import say, show
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.run import Run
from pipeline.core.tables import read_header
from pipeline.report import look
from pipeline.review import decisions, following

if TYPE_CHECKING:
    import uvicorn

INSTALL = "pip install starlette uvicorn, or, in a clone, pip install '.[review]'"
LOOPBACK = "127.0.0.1"
SOON = 0.3
"""Seconds after which the browser opens: the server answers by then, or a moment later."""


def review(run: Run, port: int, browser: bool) -> None:
    """Serves the pages until Ctrl-C is pressed, then says the command that comes next.

    Args:
        run: whose findings and suspects.
        port: on this machine alone; 0 takes a free one.
        browser: whether to open the page.

    Raises:
        PipelineError: a package is missing, clean has not run, decisions would have no effect, or the port is taken.
    """
    if lacking := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise PipelineError(f"review needs {' and '.join(lacking)}, which is not installed: {INSTALL}.")
    look.findings(run)  # else it says what makes them
    _check_folds(run)
    with _listening(port) as listener:
        token, number = secrets.token_urlsafe(24), listener.getsockname()[1]
        address = f"http://{LOOPBACK}:{number}/{token}/"
        server = _server(run, token, number)
        show(f"review: {address}")
        say(f"  Each decision is written at once to {shown(run.outliers)}; Ctrl-C ends the review.")
        if browser:
            opening = Timer(SOON, _open, [address])
            opening.daemon = True
            opening.start()
        with _ended_by_interrupt(server):
            server.run(sockets=[listener])
    _conclude(run)


def _server(run: Run, token: str, port: int) -> "uvicorn.Server":
    import uvicorn

    from pipeline.review.server import application

    hosts = frozenset({f"{LOOPBACK}:{port}", f"localhost:{port}"})
    config = uvicorn.Config(
        application(run, token, hosts), log_config=None, access_log=False, ws="none", http="h11", loop="asyncio",
        lifespan="off", server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
    )  # fmt: skip

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leaves signals to the command line, which uvicorn would send again when it has ended."""
            yield

    return Server(config)


@contextmanager
def _ended_by_interrupt(server: Any) -> Iterator[None]:
    """Lets Ctrl-C end a server in peace: that is how a review ends."""

    def end(_number: int, _frame: Any) -> None:
        server.force_exit = server.should_exit  # a second one does not wait
        server.should_exit = True

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_folds(run: Run) -> None:
    """Checks that training will see the decisions: a folds file of the user's own with a column `use` hides them."""
    (split, *_) = driver.Stage("split").module.steps(run)
    if freshness.is_user_edited(split, run.folds_file) and "use" in read_header(run.folds_file):
        raise PipelineError(
            f"{shown(run.folds_file)} is your own, and its column `use` says what is trained, whatever is decided "
            "here: remove that column, so that outliers.csv says it."
        )


def _listening(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise PipelineError(
            f"--port {port} cannot be had ({getattr(error, 'strerror', None) or error}): choose another, or leave it "
            "out to take a free one."
        ) from None
    return listener


def _open(address: str) -> None:
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(address)


def _conclude(run: Run) -> None:
    found = decisions.read(run)
    count = len(decisions.decided(found))
    show(f"\nreview: {count} image{'' if count == 1 else 's'} decided, in {escape(shown(run.outliers))}")
    after = following.command(run, found)
    show(f"  next  {escape(after)}" if after else "  Training would see the same images as before.")
