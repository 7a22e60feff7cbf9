"""``jaxablate serve``: the explorer of runs that may still be training, with texts that are typed and read at once.

The program answers on this machine alone (127.0.0.1), and only who has the address that it prints: that holds a token.
"""

import dataclasses
import secrets
import socket
import webbrowser
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import tyro
from rich.console import Console

from jaxablate.commands import base
from jaxablate.errors import ConfigError, JaxablateError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from jaxablate.commands.live import LiveRuns

HOST = "127.0.0.1"
LONGEST_REQUEST = 1 << 16
"""Bytes of a request, at most."""
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
           "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin"}
"""Headers of every answer. The address holds the token, so no other site may be told it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings(base.Settings):
    """Show runs in a browser while they train, and let their models read what is typed."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Working directories; they need not be scored yet."""
    port: int = 8300
    """Port on this machine; 0 takes any that is free."""
    browser: bool = True
    """Open the page in a browser."""
    seed: int = 0
    """Seed of what is drawn where texts are read."""

    def __post_init__(self):
        super().__post_init__()
        if not self.runs:
            raise ConfigError("no run to show; give working directories: jaxablate serve runs/mine")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port={self.port} must be in 0..65535; 0 takes a free one")
        base.require_at_least(self, 0, "seed")

    def run(self, console: Console) -> None:
        """Serves until Ctrl-C."""
        uvicorn = _uvicorn()
        from jaxablate.commands.live import LiveRuns

        live, token = LiveRuns(self.runs, seed=self.seed), secrets.token_urlsafe(32)
        with _listening(self.port) as listener:
            address = f"http://{HOST}:{listener.getsockname()[1]}/?token={token}"
            base.say(console, "serving on this machine alone, until Ctrl-C; the address is a key, keep it to yourself")
            base.say_paths(console, [address])
            if self.browser:
                webbrowser.open(address)
            config = uvicorn.Config(application(live, token), access_log=False, log_level="warning", lifespan="off",
                                    server_header=False, ws="none")
            with base.terminable("stopped serving"):
                uvicorn.Server(config).run(sockets=[listener])


parse = partial(base.parse, ServeSettings)


def application(live: "LiveRuns", token: str) -> "Starlette":
    """The program's answers.

    ==========  =====================  ===================================================================
    GET         ``/``                  the explorer
    GET         ``/BUILD/blobs/N``     a part of its data
    GET         ``/state``             steps and logs of all runs, from given steps on
    POST        ``/read``              {run, text, off, replaced_by} -> the text as the model reads it
    ==========  =====================  ===================================================================

    All take the token as ``?token=``; without it, or by another name than this machine's, the answer is 403.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Route

    from jaxablate.commands.live import ReadRequest

    async def guard(request: "Request", answer: Callable[["Request"], Awaitable["Response"]]) -> "Response":
        given = request.query_params.get("token", "")
        if not secrets.compare_digest(given.encode(), token.encode()):
            response = PlainTextResponse("This page needs the whole address that jaxablate serve printed.\n", 403)
        elif request.headers.get("host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            response = PlainTextResponse("This page is for this machine alone.\n", 403)
        else:
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    def page(_request: "Request") -> "Response":
        return _answered(lambda: HTMLResponse(live.page()))

    def blob(request: "Request") -> "Response":
        return _answered(lambda: _json(live.blob(request.path_params["build"], request.path_params["number"])))

    def state(request: "Request") -> "Response":
        return _answered(lambda: _json(msgspec.json.encode(live.state(request.query_params.get("after", "")))))

    async def read(request: "Request") -> "Response":
        from starlette.concurrency import run_in_threadpool

        content = b""
        async for part in request.stream():
            content += part
            if len(content) > LONGEST_REQUEST:
                return PlainTextResponse(f"a request has at most {LONGEST_REQUEST:,} bytes; shorten the text", 413)
        try:
            asked = msgspec.json.decode(content, type=ReadRequest)
        except msgspec.MsgspecError as error:
            return PlainTextResponse(str(error), 400)
        return await run_in_threadpool(_answered, lambda: _json(live.read(asked)))

    return Starlette(routes=[Route("/", page), Route("/{build}/blobs/{number:int}", blob), Route("/state", state),
                             Route("/read", read, methods=["POST"])],
                     middleware=[Middleware(GZipMiddleware, compresslevel=1),
                                 Middleware(BaseHTTPMiddleware, dispatch=guard)])


def _answered(make: Callable[[], "Response"]) -> "Response":
    """What a function gives; an error of the user or of the run's files in one line."""
    from starlette.responses import PlainTextResponse

    try:
        return make()
    except KeyError:
        return PlainTextResponse("this part is not there any more; load the page again", 410)
    except JaxablateError as error:
        return PlainTextResponse(str(error), 400)


def _json(content: bytes) -> "Response":
    from starlette.responses import Response

    return Response(content, media_type="application/json")


def _listening(port: int) -> socket.socket:
    """A socket of this machine alone.

    Raises:
      ConfigError: the port cannot be taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"port={port} cannot be taken ({error.strerror}); give another --port, or 0 for a free one"
                          ) from error
    return listener


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401  (both come with the same extra)
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}; install it: pip install 'jaxablate[serve]'") from error
    return uvicorn
