"""The page as an application: what it answers, to whom, and what a browser may do with it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse

from partwise.core.errors import CheckpointError
from partwise.monitor.clients import Order
from partwise.monitor.follow import Follower
from partwise.monitor.snapshot import snapshot

__all__ = ["is_known", "page", "page_app"]

_LOOK_SECONDS = 1.0  # between two looks at the run, however many look at the page
_SILENT_SECONDS = 15.0  # after which a stream says that it is still there
_SLICE_SECONDS = 0.25  # in which a stream notices that the server ends
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Newer releases of FastAPI hand what happens to OpenTelemetry unless they are told not to; older ones ignore the word.
_UNTOLD: dict[str, Any] = {
    "telemetry": {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
}

Text = Annotated[str, Query(max_length=200)]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def page_app(
    follower: Follower, *, names: Collection[str] = (), is_over: Callable[[], bool] = lambda: False
) -> FastAPI:
    """The application: `/` is the page, `/run` the run at this moment, `/events` the same whenever it changes.

    It only reads. The page holds nothing of the run; its script writes what it is told as text, never as markup.

    Args:
        follower: of the run; nobody else may use it meanwhile.
        names: of the host, under which it may be asked for besides `localhost` and addresses.
        is_over: whether streams should end, so that the server can.
    """
    window = _Window(follower)
    app = FastAPI(title="Partwise", docs_url=None, redoc_url=None, openapi_url=None, **_UNTOLD)
    html, policy = page()
    app.add_middleware(_Guard, names=frozenset(n.lower() for n in names), headers={**_HEADERS, **policy})

    @app.get("/")
    def whole() -> HTMLResponse:
        return HTMLResponse(html)

    @app.get("/run")
    def run(metric: Text = "", order: Order = "recent", find: Text = "") -> JSONResponse:
        window.look()
        return JSONResponse(window.shown(metric, order, find))

    @app.get("/events")
    async def events(metric: Text = "", order: Order = "recent", find: Text = "") -> StreamingResponse:
        stream = _events(window, (metric, order, find), is_over)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return app


class _Window:
    """One look at the run a second, for all who watch."""

    def __init__(self, follower: Follower) -> None:
        self._follower, self._lock = follower, threading.Lock()
        self._looked_at, self._fault = time.monotonic(), ""

    def look(self) -> tuple[int, str]:
        """How often something new was found, and why nothing can be found now."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                try:
                    self._follower.refresh()
                    self._fault = ""
                except CheckpointError as error:  # the folder is gone, or damaged; it may come back
                    self._fault = str(error)
                self._looked_at = time.monotonic()
            return self._follower.changes, self._fault

    def shown(self, metric: str, order: Order, find: str) -> dict[str, Any]:
        """What the page shows."""
        with self._lock:
            found = snapshot(self._follower, metric=metric, order=order, find=find)
            return {**found, "fault": self._fault}


async def _events(window: _Window, asked: tuple[str, Order, str], is_over: Callable[[], bool]) -> AsyncIterator[str]:
    told, silent = None, 0.0
    while not is_over():
        found = await run_in_threadpool(window.look)
        if found != told or silent >= _SILENT_SECONDS:
            told, silent = found, 0.0
            shown = await run_in_threadpool(window.shown, *asked)
            yield f"data: {json.dumps(shown, allow_nan=False)}\n\n"
        for _ in range(round(_LOOK_SECONDS / _SLICE_SECONDS)):
            if not is_over():
                await asyncio.sleep(_SLICE_SECONDS)
        silent += _LOOK_SECONDS


class _Guard:
    """Answers only where it is asked for by a known name, and says what a browser may do with the answer.

    A page of somebody else cannot read another host's answers, unless its own name is made to point here; then the
    request still carries that name.
    """

    def __init__(self, app: Any, *, names: Collection[str], headers: dict[str, str]) -> None:
        self._app, self._names = app, names
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if len(hosts) == 1 and is_known(hosts[0], self._names):
            await self._app(scope, receive, guarded)
            return
        refusal = "This page is not known by that name. Ask for it by its address, or allow the name: --allow-host.\n"
        await PlainTextResponse(refusal, status_code=421)(scope, receive, guarded)


def is_known(host: str, names: Collection[str] = ()) -> bool:
    """Whether a request's Host is `localhost`, an address, or one of these names: nobody can make others point here.

    Example:
        >>> is_known("127.0.0.1:8765"), is_known("[::1]"), is_known("evil.example:8765"), is_known("lab", {"lab"})
        (True, True, False, True)
    """
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d{1,5})?", host, re.ASCII)
    if not found:
        return False
    name = (found[1] or found[2]).lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return not found[1] and (name == "localhost" or name in names)
    return True


def page() -> tuple[str, dict[str, str]]:
    """The page with its looks and its script in it, and the policy that allows these two and nothing else."""
    folder = resources.files("partwise.monitor") / "page"
    html, css, js = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    html = html.replace('<link rel="stylesheet" href="page.css">', f"<style>{css}</style>")
    html = html.replace('<script src="page.js"></script>', f"<script>{js}</script>")
    policy = (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(js)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {"Content-Security-Policy": policy}


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
