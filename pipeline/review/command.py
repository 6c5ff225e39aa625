"""Lets a person decide on findings and suspected labels in a browser, and saves the decisions.

    python -m pipeline review RECIPE

reads   work/<competition>/images.parquet, outliers.csv, work/<competition>/<run>/suspects.csv, oof_scores.csv,
        predictions/ and report.html; input/<competition>/
writes  work/<competition>/outliers.csv, after every decision
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

from pipeline.core import driver, editable
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
"""Seconds until the browser opens; by then the server usually answers."""


def review(run: Run, port: int, browser: bool) -> None:
    """Serves the review pages until Ctrl-C is pressed, then prints the next command.

    Args:
        run: the run whose findings and suspected labels are reviewed.
        port: port, reachable from this machine only; 0 takes any free port.
        browser: whether to open the page in a browser.

    Raises:
        PipelineError: a package is missing, clean has not run, decisions would have no effect, or the port is in use.
    """
    if lacking := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise PipelineError(f"review needs {' and '.join(lacking)}, not installed here: {INSTALL}.")
    look.findings(run)  # raises an error with the command to run if clean has not run
    _check_folds(run)
    with _listening(port) as listener:
        token, number = secrets.token_urlsafe(24), listener.getsockname()[1]
        address = f"http://{LOOPBACK}:{number}/{token}/"
        server = _server(run, token, number)
        show(f"review: {address}")
        say(f"  Each decision is saved at once in {shown(run.outliers)}; Ctrl-C ends the review.")
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
            """Leaves signals to the command line: uvicorn would raise them again at its end."""
            yield

    return Server(config)


@contextmanager
def _ended_by_interrupt(server: Any) -> Iterator[None]:
    """Lets Ctrl-C shut a server down cleanly: this is the normal end of a review."""

    def end(_number: int, _frame: Any) -> None:
        server.force_exit = server.should_exit  # a second Ctrl-C does not wait for open requests
        server.should_exit = True

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_folds(run: Run) -> None:
    """Checks that training will use the decisions: the column `use` of a user's own folds file would override them."""
    (split, *_) = driver.Stage("split").module.steps(run)
    if editable.is_user_edited(split, run.folds_file) and "use" in read_header(run.folds_file):
        raise PipelineError(
            f"{shown(run.folds_file)} is your own file, and its column `use` overrides all decisions of a review: "
            "remove that column, so that the actions in outliers.csv are used."
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
            f"--port {port} cannot be used ({getattr(error, 'strerror', None) or error}): choose another port, or "
            "leave the option out to take a free one."
        ) from None
    return listener


def _open(address: str) -> None:
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(address)


def _conclude(run: Run) -> None:
    outliers = decisions.read(run)
    count = len(decisions.decided(outliers))
    show(f"\nreview: decisions on {count} image{'' if count == 1 else 's'} in {escape(shown(run.outliers))}")
    next_command = following.command(run, outliers)
    show(f"  next  {escape(next_command)}" if next_command else "  Training would use the same data as before.")
