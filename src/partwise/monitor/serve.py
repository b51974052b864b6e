"""The page on a port of this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection
from pathlib import Path

from partwise.monitor.follow import Follower

__all__ = ["listen", "serve"]

_VIEWERS = 64  # connections at once; more are told to come back


def serve(
    folder: Path, *, host: str = "127.0.0.1", port: int = 8765, names: Collection[str] = (), say: Callable[[str], None]
) -> None:
    """Show a run as a page, until Ctrl-C.

    Args:
        folder: of the run.
        host: the address of this machine under which it can be reached; the default is for its own browsers only.
        port: 0 takes any that is free.
        names: of the host, under which it may be asked for besides `localhost` and addresses.
        say: is told the page's address once it can be opened.

    Raises:
        CheckpointError: the folder holds no run, or its record is damaged.
        ImportError: fastapi or uvicorn is missing.
        ValueError: the host or the port cannot be had.
    """
    try:
        import uvicorn

        from partwise.monitor.app import page_app
    except ImportError as error:
        raise ImportError(
            f"page: needs the packages fastapi and uvicorn, got none: {error}. Install them: pip install "
            "'partwise[page]'. Without them: partwise status"
        ) from error
    with listen(host, port) as place:
        follower = Follower(folder)
        app = page_app(follower, names=names, is_over=lambda: server.should_exit)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                limit_concurrency=_VIEWERS,
                proxy_headers=False,  # nobody in front of it is believed
                server_header=False,
                timeout_graceful_shutdown=2,
                ws="none",
            )
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{place.getsockname()[1]}/")
        with contextlib.suppress(KeyboardInterrupt):  # is how it ends
            server.run(sockets=[place])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        ValueError: the host or the port cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"page(port={port}): must be from 0 to 65535, got {port}. 0 takes any that is free.")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"page(host={host!r}, port={port}): needs an address of this machine and a port that is free there, got: "
            f"{error.strerror}. Name another; --port 0 takes any that is free."
        ) from error
