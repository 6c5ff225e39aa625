"""The connection to Kaggle, by its official client package `kaggle` (the extra `kaggle`), whose errors become
sentences. The package is imported late, as importing it logs in.
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
"""Seconds that a connection, and each answer, may take."""
RETRIES = 3
"""How often a download, or an upload, that broke off is taken up again by the same command."""
UPLOAD_TIMEOUT = (10.0, 60.0)
"""As TIMEOUT, of an upload."""
POLL = 10.0
"""Seconds between two questions about something that Kaggle works on."""


def connect() -> Any:
    """Returns Kaggle's client (a `kaggle.api.kaggle_api_extended.KaggleApi`), logged in.

    Raises:
        PipelineError: the package is not installed, there is no token, Kaggle does not accept it, or there is no
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
    """Turns what the client raises into one sentence and what to do; what it prints goes to standard error.

    Args:
        doing: what was tried, as the end of `could not …`.
        competition: its name on Kaggle, for the pages to open.
        after: what to know or to do besides, a sentence; e.g. that a submission was sent already.

    Raises:
        PipelineError: one of the errors below.
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
        raise failed("the connection to Kaggle broke off; try again") from None
    except (requests.ConnectionError, requests.Timeout):
        raise failed("there is no connection to Kaggle; try again with a network") from None
    except requests.RequestException as error:
        raise failed(f"the answer cannot be read ({type(error).__name__}); try again") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise failed("the disk is full; make room, and the same command goes on") from None
        raise failed(f"{error.strerror or first_line(error)}") from None
    except (ValueError, KeyError) as error:  # how the client says what it does not accept
        raise failed(first_line(error).rstrip(".")) from None
    except SystemExit:
        raise failed(f"the client gave up; {LOG_IN}") from None


def status_of(error: Exception) -> int | None:
    """Returns the HTTP status of an error of the client, where it has one."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def wait_for(ask: Callable[[], Found | None], what: str, seconds: float, poll: float | None = None) -> Found | None:
    """Returns the first answer that is not None, asking again and again; None when the time is over.

    Args:
        ask: the question.
        what: what is waited for, for a person.
        seconds: how long.
        poll: seconds between two questions.
    """
    ends = time.monotonic() + seconds
    interactive = console.is_terminal and not console.quiet
    if not interactive:
        say(f"  waiting for {what}, {duration(seconds)} at most")
    with console.status(f"waiting for {what}") if interactive else nullcontext():
        while True:
            if (answer := ask()) is not None:
                return answer
            if time.monotonic() >= ends:
                return None
            time.sleep(min(POLL if poll is None else poll, max(0.0, ends - time.monotonic())))


def confirm(question: str, yes: bool) -> bool:
    """Returns whether a person agrees; asks on a terminal alone.

    Raises:
        PipelineError: nobody can be asked.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise PipelineError(f"{question} Nobody can be asked here: add --yes.")
    import typer

    return bool(typer.confirm(question))


# --- the client ------------------------------------------------------------------------------------------------------


@contextmanager
def _stdin_stays_open() -> Iterator[None]:
    """Replaces the builtin exit(), which closes standard input before it raises SystemExit, by sys.exit: the client
    calls it, and a person must be able to answer questions afterwards."""
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
    """A class of connections with time limits, which takes nothing up again by itself: the client's own ten silent
    attempts take minutes."""
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def send(self, *arguments: Any, **options: Any) -> Any:
            return super().send(*arguments, **options | {"timeout": options.get("timeout") or timeout})

    return Patient


@cache
def _client_class() -> type:
    """The client of the installed package, with time limits, silent about new versions, and never telling what it
    sends: that holds the token."""
    try:
        # importing it asks Kaggle about the token, without a time limit: it finds an empty one
        empty = environment({"KAGGLE_API_TOKEN": os.devnull})
        with empty, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _stdin_stays_open():
            from kaggle.api import kaggle_api_extended as extended
            from kaggle.api.kaggle_api_extended import KaggleApi
            from kagglesdk import KaggleClient
    except ModuleNotFoundError as error:
        raise PipelineError(f"Kaggle's client is not installed ({error.name} is missing): {INSTALL}.") from None
    except SystemExit:  # of older versions, without a token
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
                say(f"  the upload of {name} broke off")
                if attempts == RETRIES:  # the client would go on as if the file were there
                    raise PipelineError(f"The upload of {name} broke off {RETRIES} times: try again later.")
            return result

        def build_kaggle_client(self) -> Any:
            # no environment: that of KAGGLE_API_ENVIRONMENT, by default Kaggle's
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
            # the client tries again after every error, a full disk among them, and waits twice as long each time
            return super().download_file(*arguments, **{"max_retries": RETRIES} | options)

    return Client


def _no_login() -> str:
    """What to do where the client found no way to log in."""
    from kagglesdk import get_access_token_from_env

    if get_access_token_from_env()[0]:
        return f"Kaggle does not accept the token that is set here (it is wrong, or has expired): {LOG_IN}."
    return f"There is no Kaggle token here: {LOG_IN}."


def _http_reason(error: Any, competition: str | None) -> str:
    """The sentence for an HTTP error."""
    status, message = status_of(error), _message(error)
    page = f"https://www.kaggle.com/competitions/{competition}"
    if status == 401:
        return f"Kaggle does not accept the token (401): it is wrong, or has expired; {LOG_IN}"
    if status == 403 and competition:
        return f"Kaggle refuses (403{message}): accept the rules at {page}/rules, where the account may take part"
    if status == 403:
        return f"Kaggle refuses (403{message}): the account that is logged in has no access to it"
    if status == 404:
        where = f"; look at {page}, whose last part is the name" if competition else ""
        return f"Kaggle does not know it (404{message}){where}"
    if status == 429:
        return "Kaggle asks to wait (429, too many requests); try again in some minutes"
    if status is not None and status >= 500:
        return f"Kaggle has a fault of its own ({status}{message}); try again later"
    return f"Kaggle answers {status}{message}"


def _message(error: Any) -> str:
    """What Kaggle itself says of an error, shortened; without the address, which may be a signed one."""
    try:
        text = " ".join(str(error.response.json()["message"]).split())
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f": {text[:200].rstrip('.')}" if text else ""
