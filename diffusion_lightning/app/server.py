"""The server of `app`: an address of this machine alone, pages that ask no other host, and an end that waits for none.

It is uvicorn with Gradio's page in it, on a socket that is bound here, so that a port is taken or refused before the
page is made. Nothing is asked of the network: neither a version, nor a share link, nor through a proxy.
"""

import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

PORT = 7860
TRIED = 50  # ports from PORT on, if none is asked for
BEGINNING = 30.0  # seconds in which the server answers
LOCAL = ("127.0.0.1", "localhost", "::1")
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OTEL_SDK_DISABLED": "true",  # FastAPI's, which a cluster's environment may turn on: prompts are their writer's
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}
# What the page may load and connect to: this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'none'; form-action 'self'"
)


def bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens at an address; if no port is asked for, at the first free one from PORT on.

    Raises:
        ValueError: if it is no address of this machine, or the port is taken or out of range.
    """
    host = host.removeprefix("[").removesuffix("]")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"--port is {port}, but ports run from 1 to 65535: give one of these, such as {PORT}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or PORT, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"--host is {host}, which is no address of this machine ({_reason(error)}): give one, such as 127.0.0.1, "
            "or leave --host out"
        ) from error
    for number in [port] if port is not None else range(PORT, PORT + TRIED):
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listening.bind((address[0], number, *address[2:]))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if isinstance(error, PermissionError):
                raise ValueError(
                    f"port {number} needs the system's permission ({_reason(error)}): give a --port from 1024 on"
                ) from error
            if error.errno != 98 and "in use" not in str(error):  # EADDRINUSE, whose number differs by system
                raise ValueError(
                    f"--host is {host}, which is no address of this machine ({_reason(error)}): give one, such as "
                    "127.0.0.1, or leave --host out"
                ) from error
            continue
        return listening
    if port is not None:
        raise ValueError(f"port {port} is taken by another program: give another --port, or leave it out")
    raise ValueError(f"all ports from {PORT} to {PORT + TRIED - 1} are taken: give a free one by --port")


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(listening: socket.socket) -> str:
    """The page's address in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def settle() -> None:
    """Writes into the environment, before Gradio is imported, that it asks nothing of the network."""
    os.environ.update(ENVIRONMENT)
    for name in ("NO_PROXY", "no_proxy"):
        own = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*own, *LOCAL]))
    for name in ("httpx", "uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Guard:
    """What stands before the page: refuses requests that other sites make, and has the browser load nothing of theirs.

    Args:
        app: the page, an ASGI application.
        local: whether only this machine reaches it, by a name for this machine; another name is a site's that leads to
            this address (DNS rebinding).
    """

    def __init__(self, app: Any, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        named = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        stranger = self.local and named.strip("[]") not in LOCAL and not is_local(named.strip("[]"))
        crossed = origin is not None and origin.partition("://")[2] != host
        if scope["type"] == "websocket" or stranger or crossed:
            await _refuse(scope, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = {
                    b"content-security-policy": POLICY.encode(),
                    b"x-content-type-options": b"nosniff",
                    b"referrer-policy": b"no-referrer",
                    b"cross-origin-resource-policy": b"same-origin",
                }
                kept = [pair for pair in message["headers"] if pair[0].lower() not in more]
                message = {**message, "headers": [*kept, *more.items()]}
            await send(message)

        await self.app(scope, receive, guarded)


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = b"this page answers its own address alone"
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text})


@contextlib.contextmanager
def serving(page: Any, listening: socket.socket) -> Iterator[None]:
    """Answers at a socket, in a thread of its own, as long as the block lasts.

    Args:
        page: an ASGI application.
        listening: of `bound`.
    """
    import uvicorn

    guarded = Guard(page, is_local(listening.getsockname()[0]))
    config = uvicorn.Config(guarded, log_level="critical", timeout_graceful_shutdown=1, ws="none", proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server", daemon=True)
    thread.start()
    try:
        end = time.monotonic() + BEGINNING
        while not server.started and thread.is_alive() and time.monotonic() < end:
            time.sleep(0.02)
        if not server.started:
            raise ValueError(f"the page could not be served at {address(listening)}: give another --port")
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join(5)
        listening.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
