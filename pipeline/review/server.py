"""The web server of `review`: the pages, the images, and two requests that change outliers.csv.

A request is accepted only if it knows the token (the first part of every address), addresses the server by its own name
(which prevents DNS rebinding), and does not come from a page of another site.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.report import page
from pipeline.report.explorer import MISSING
from pipeline.review import decisions, following
from pipeline.review.items import Item, Listing, is_open
from pipeline.review.pictures import LAYERS, Pictures

FOLDER = Path(__file__).with_name("pages")
PAGE = 50
"""Number of items that the page loads at a time."""
LARGEST_REQUEST = 10_000
"""Maximum size of a request that sends a decision, in bytes."""
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Cache-Control": "no-store", "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}  # fmt: skip
FULL_SIZE = """<script>
globalThis.fullSize = async id => {
  const answer = await fetch(`enlarged?id=${encodeURIComponent(id)}`)
  return answer.ok ? answer.json() : null
}
</script>
"""
"""Script that lets the report's viewer request an image at its original size."""


class Guard:
    """Accepts only requests with the token, to the server's own name, and from its own pages."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        """Creates a guard.

        Args:
            app: the application to protect.
            token: the secret first part of every address.
            hosts: names of the server with its port, such as 127.0.0.1:8000.
        """
        self.app, self.token, self.hosts = app, token.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request or refuses it."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return
        refused = self.refusal(scope)
        app = PlainTextResponse(refused, 403) if refused else self.app
        await app(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> str:
        """Returns the reason why a request is refused; "" if it is accepted."""
        headers = Headers(scope=scope)
        origins = {f"http://{host}" for host in self.hosts}
        if headers.get("host", "") not in self.hosts:
            return "Refused: address this server as 127.0.0.1 or localhost."
        if headers.get("origin") not in (None, *origins):
            return "Refused: the request comes from a page of another origin."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "Refused: the request comes from a page of another site."
        given = scope["path"].removeprefix("/").partition("/")[0].encode(errors="replace")
        if not secrets.compare_digest(given, self.token):
            return "Refused: open the complete address that `review` printed, including its token."
        return ""


def application(run: Run, token: str, hosts: frozenset[str]) -> ASGIApp:
    """Returns the web application that reviews a run. Every address begins with the token."""
    review = _Review(run)
    routes = [
        Route("/", review.page), Route("/report", review.report), Route("/enlarged", review.enlarged),
        Route("/items", review.items), Route("/image/{number:int}", review.image),
        Route("/{layer}/{number:int}", review.layer),
        Route("/decide", review.decide, methods=["POST"]), Route("/undo", review.undo, methods=["POST"]),
    ]  # fmt: skip
    handlers: dict[Any, Any] = {PipelineError: _told}
    return Guard(Starlette(routes=[Mount(f"/{token}", routes=routes)], exception_handlers=handlers), token, hosts)


async def _told(_request: Request, error: PipelineError) -> Response:
    return JSONResponse({"error": str(error)}, 409)


class _Review:
    """Answers requests about one run."""

    def __init__(self, run: Run) -> None:
        self.run, self.listing = run, Listing(run)
        self.pictures = Pictures(run, self.listing.images)

    def page(self, _request: Request) -> Response:
        title = f"Review of {self.run.name}"
        return HTMLResponse(page.render("review.html.jinja", FOLDER, title=title, run=self.run, policy=POLICY))

    def report(self, _request: Request) -> Response:
        if not self.run.report.exists():
            raise PipelineError(f"There is no report yet: `{self.run.command()}` writes it.")
        text = self.run.report.read_text(encoding="utf-8").replace(page.POLICY, POLICY, 1)
        return HTMLResponse(text.replace("</html>", f"{FULL_SIZE}</html>"))

    # --- the list ---

    def items(self, request: Request) -> Response:
        found, items = self.listing.read()
        return JSONResponse(self.told(found, items, request.query_params.get("reason", ""), _start(request)))

    def told(self, found: pd.DataFrame, items: dict[str, Item], reason: str, start: int) -> dict[str, Any]:
        """A page of the list of items, and the number of decisions so far."""
        done, reasons = decisions.decided(found), dict[str, list[int]]()
        for item in items.values():
            count = reasons.setdefault(item.reason, [0, 0])
            count[0] += 1
            count[1] += is_open(item, done)
        listed = [item for item in items.values() if reason in ("", item.reason)]
        undecided = [position for position, item in enumerate(listed) if is_open(item, done)]
        return {
            "reasons": reasons, "start": start, "total": len(listed), "open": len(undecided), "page": PAGE,
            "next_open": next((at for at in undecided if at >= start), undecided[0] if undecided else None),
            "items": self.listing.shown(found, listed[start : start + PAGE]),
            "command": following.command(self.run, found),
        }  # fmt: skip

    # --- decisions ---

    async def decide(self, request: Request) -> Response:
        asked = await _json(request)
        return JSONResponse(await run_in_threadpool(self._decide, asked))

    def _decide(self, asked: dict[str, Any]) -> dict[str, Any]:
        _, items = self.listing.read()
        item, place, action = items.get(str(asked.get("key"))), int(asked.get("place") == 1), str(asked.get("action"))
        if item is None:
            raise PipelineError("This finding is no longer in the list: reload the page.")
        if place >= len(item.images) or action not in self.listing.actions(item):
            allowed = ", ".join(self.listing.actions(item))
            raise PipelineError(f"{action!r} is not possible for this finding; expected {allowed}.")
        decision = item.decision(place, action)
        decisions.change(self.run, lambda found: decisions.decide(found, decision))
        return {"decided": decision.image_id}

    async def undo(self, _request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._undo))

    def _undo(self) -> dict[str, Any]:
        undone = ""

        def edit(found: pd.DataFrame) -> pd.DataFrame:
            nonlocal undone
            found, undone = decisions.undo(found)
            if not undone:
                raise PipelineError("There is no decision to undo.")
            return found

        decisions.change(self.run, edit)
        _, items = self.listing.read()
        places = [number for number, item in enumerate(items.values()) if undone in item.images]
        return {"undone": undone, "place": places[0] if places else None}

    # --- pictures ---

    def image(self, request: Request) -> Response:
        return self._png(request, self.pictures.image)

    def layer(self, request: Request) -> Response:
        name = request.path_params["layer"]
        if name not in LAYERS:
            raise HTTPException(404)
        return self._png(request, lambda number: self.pictures.layer(number, name))

    def _png(self, request: Request, draw: Callable[[int], bytes]) -> Response:
        number = request.path_params["number"]
        if number >= len(self.listing.images):
            raise HTTPException(404)
        try:
            return Response(draw(number), media_type="image/png")
        except MISSING as error:
            known = isinstance(error, PipelineError)
            return PlainTextResponse(str(error) if known else "there is no held-out prediction for this image", 404)

    def enlarged(self, request: Request) -> Response:
        image_id = request.query_params.get("id", "")
        found = self.pictures.enlarged(image_id) if image_id in self.listing.numbers else None
        return PlainTextResponse("cannot be read", 404) if found is None else JSONResponse(found)


def _start(request: Request) -> int:
    text = request.query_params.get("start", "0")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


async def _json(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST_REQUEST:
        raise HTTPException(413)
    try:
        asked = await request.json()
    except ValueError:
        raise HTTPException(400) from None
    if not isinstance(asked, dict):
        raise HTTPException(400)
    return asked
