"""The connection to Kaggle through its official client package `kaggle` (the extra `kaggle`).

Errors of the client become one clear sentence. The package is imported late, because importing it logs in.
"""

import builtins
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from functools import cache
from typing import Any, TypeVar

from pipeline.core.console import console, duration, say
from pipeline.core.engine import environment
from pipeline.core.errors import PipelineError, first_line

Found = TypeVar("Found")
INSTALL = "pip install 'kaggle>=2.2' six, or, in a clone, pip install '.[kaggle]'"
TOKEN_PAGE = "https://www.kaggle.com/settings/api"
LOG_IN = (
    f"make a token at {TOKEN_PAGE} and save it as ~/.kaggle/access_token (or set KAGGLE_API_TOKEN), or run "
    "`kaggle auth login`"
)
TIMEOUT = (10.0, 120.0)
"""Time limits in seconds for connecting, and for each answer."""
RETRIES = 3
"""How often one command resumes an interrupted download or upload."""
UPLOAD_TIMEOUT = (10.0, 60.0)
"""Like TIMEOUT, for uploads."""
POLL = 10.0
"""Seconds between two requests for the status of something that Kaggle is working on."""


def connect() -> Any:
    """Returns Kaggle's client (a `kaggle.api.kaggle_api_extended.KaggleApi`), logged in.

    Raises:
        PipelineError: the package is not installed, there is no token, Kaggle rejects the token, or there is no
            network.
    """
    api = _client_class()()
    with explained("log in to Kaggle"):
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _stdin_stays_open():
                api.authenticate()
        except SystemExit:
            raise PipelineError(_no_login()) from None
    return api


def user_of(api: Any) -> str:
    """Returns the name of the account that is logged in."""
    return str(api.config_values[api.CONFIG_NAME_USER])


@contextmanager
def explained(doing: str, competition: str | None = None, after: str = "") -> Iterator[None]:
    """Turns exceptions of the client into one sentence with a remedy. The client's output goes to standard error.

    Args:
        doing: the attempted action, as the end of the sentence `Could not …`.
        competition: name of the competition on Kaggle, for the pages to open.
        after: a sentence to add, for example that a submission was already sent.

    Raises:
        PipelineError: the client raised an exception.
    """
    import requests

    def failed(why: str) -> PipelineError:
        return PipelineError(f"Could not {doing}: {why}.{f' {after}' if after else ''}")

    try:
        with redirect_stdout(sys.stderr), _stdin_stays_open():
            yield
    except requests.HTTPError as error:
        raise failed(_http_reason(error, competition)) from None
    except requests.exceptions.ChunkedEncodingError:
        raise failed("the connection to Kaggle was interrupted; try again") from None
    except (requests.ConnectionError, requests.Timeout):
        raise failed("there is no connection to Kaggle; check the network and try again") from None
    except requests.RequestException as error:
        raise failed(f"the answer cannot be read ({type(error).__name__}); try again") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise failed("the disk is full; make room, and run the same command again to continue") from None
        raise failed(f"{error.strerror or first_line(error)}") from None
    except (ValueError, KeyError) as error:  # the client raises these for values that it rejects
        raise failed(first_line(error).rstrip(".")) from None
    except SystemExit:
        raise failed(f"the client gave up; {LOG_IN}") from None


def status_of(error: Exception) -> int | None:
    """Returns the HTTP status of an error of the client; None if it has none."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def wait_for(ask: Callable[[], Found | None], what: str, seconds: float, poll: float | None = None) -> Found | None:
    """Calls `ask` repeatedly and returns its first result that is not None; None when the time is over.

    Args:
        ask: function to call.
        what: the thing to wait for, as shown on the console.
        seconds: maximum time to wait.
        poll: seconds between two calls.
    """
    ends = time.monotonic() + seconds
    interactive = console.is_terminal and not console.quiet
    if not interactive:
        say(f"  waiting for {what}, at most {duration(seconds)}")
    with console.status(f"waiting for {what}") if interactive else nullcontext():
        while True:
            if (answer := ask()) is not None:
                return answer
            if time.monotonic() >= ends:
                return None
            time.sleep(min(POLL if poll is None else poll, max(0.0, ends - time.monotonic())))


def confirm(question: str, yes: bool) -> bool:
    """Returns whether the user agrees. The question is only asked on a terminal.

    Args:
        question: the question.
        yes: whether the user has already agreed.

    Raises:
        PipelineError: there is no terminal.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise PipelineError(f"{question} There is no terminal to ask on: add --yes to agree.")
    import typer

    return bool(typer.confirm(question))


# --- the client ------------------------------------------------------------------------------------------------------


@contextmanager
def _stdin_stays_open() -> Iterator[None]:
    """Replaces the builtin exit(), which the client calls, by sys.exit(). The builtin closes standard input, and the
    user could then not answer later questions."""
    before = getattr(builtins, "exit", None)  # `python -S` has none
    builtins.exit = sys.exit  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del builtins.exit
        else:
            builtins.exit = before


def _patient(timeout: tuple[float, float]) -> type:
    """A class of HTTP adapters with time limits and without retries: the client's ten silent retries take minutes."""
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def send(self, *arguments: Any, **options: Any) -> Any:
            return super().send(*arguments, **options | {"timeout": options.get("timeout") or timeout})

    return Patient


@cache
def _client_class() -> type:
    """The client class of the installed package, with time limits, without notices of new versions, and without logging
    of requests, which contain the token."""
    try:
        # importing the package checks the token at Kaggle without a time limit: let it find an empty token
        empty = environment({"KAGGLE_API_TOKEN": os.devnull})
        with empty, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _stdin_stays_open():
            from kaggle.api import kaggle_api_extended as extended
            from kaggle.api.kaggle_api_extended import KaggleApi
            from kagglesdk import KaggleClient
    except ModuleNotFoundError as error:
        raise PipelineError(f"Kaggle's client is not installed ({error.name} is missing): {INSTALL}.") from None
    except SystemExit:  # raised by older versions without a token
        raise PipelineError(_no_login()) from None
    patient, extended.HTTPAdapter = _patient(TIMEOUT), _patient(UPLOAD_TIMEOUT)
    broken_off: dict[str, int] = {}

    class Client(KaggleApi):
        MAX_UPLOAD_RESUME_ATTEMPTS = RETRIES

        def upload_complete(self, path: Any, url: Any, quiet: Any, resume: bool = False) -> Any:
            result = super().upload_complete(path, url, quiet, resume)
            if result == extended.ResumableUploadResult.INCOMPLETE:
                name, attempts = os.path.basename(path), broken_off.get(path, 0) + 1
                broken_off[path] = attempts
                say(f"  the upload of {name} was interrupted")
                if attempts == RETRIES:  # the client would continue as if the file had been uploaded
                    raise PipelineError(f"The upload of {name} was interrupted {RETRIES} times: try again later.")
            return result

        def build_kaggle_client(self) -> Any:
            # without the argument `environment`, KAGGLE_API_ENVIRONMENT selects the server; the default is Kaggle
            known = self.config_values.get
            names = (self.CONFIG_NAME_USER, self.CONFIG_NAME_KEY, self.CONFIG_NAME_TOKEN)
            user, key, token = map(known, names)
            client = KaggleClient(verbose=False, username=user, password=key, api_token=token)
            http = client.http_client()
            with suppress(AttributeError):
                http._init_session()
                for scheme in ("https://", "http://"):
                    http._session.mount(scheme, patient())
            return client

        def download_file(self, *arguments: Any, **options: Any) -> Any:
            # the client retries after every error, even a full disk, and doubles the waiting time each time
            return super().download_file(*arguments, **{"max_retries": RETRIES} | options)

    return Client


def _no_login() -> str:
    """The error message for a failed login."""
    from kagglesdk import get_access_token_from_env

    if get_access_token_from_env()[0]:
        return f"Kaggle rejects the token that is set here (it is wrong or has expired): {LOG_IN}."
    return f"No Kaggle token was found: {LOG_IN}."


def _http_reason(error: Any, competition: str | None) -> str:
    """The error message for an HTTP error."""
    status, message = status_of(error), _message(error)
    page = f"https://www.kaggle.com/competitions/{competition}"
    if status == 401:
        return f"Kaggle rejects the token (401): it is wrong or has expired; {LOG_IN}"
    if status == 403 and competition:
        return f"Kaggle denies access (403{message}): join the competition and accept its rules at {page}/rules"
    if status == 403:
        return f"Kaggle denies access (403{message}): your account has no permission for it"
    if status == 404:
        where = f"; check the name, which is the last part of the address {page}" if competition else ""
        return f"Kaggle does not find it (404{message}){where}"
    if status == 429:
        return "Kaggle received too many requests (429); try again in a few minutes"
    if status is not None and status >= 500:
        return f"Kaggle reports an internal error ({status}{message}); try again later"
    return f"Kaggle answers with status {status}{message}"


def _message(error: Any) -> str:
    """Kaggle's own text for an error, shortened, and without the address, which may contain a signature."""
    try:
        text = " ".join(str(error.response.json()["message"]).split())
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f": {text[:200].rstrip('.')}" if text else ""
