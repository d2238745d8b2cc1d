"""The files of the web page, served from memory on the port of the WebSocket."""

from http import HTTPStatus
from importlib.resources import files

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

STREAM_PATH = "/stream"  # where the WebSocket is; all else is the page
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SECURITY = {
    # Nothing from elsewhere, nothing inline, and in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _read() -> dict[str, tuple[str, bytes]]:
    """Return path -> (content type, content)."""
    found = {}
    for file in files("asrkit.serve").joinpath("page").iterdir():
        if kind := TYPES.get(file.name.rpartition(".")[2]):
            found["/" if file.name == "index.html" else f"/{file.name}"] = (kind, file.read_bytes())
    return found


PAGES = _read()


def respond(request: Request) -> Response | None:
    """Return a file of the page or an error; None lets a WebSocket open.

    A browser opens WebSockets to any host for any page and tells whose page it is: only ours may.
    """
    path = request.path.partition("?")[0]
    if path == STREAM_PATH:
        origin = request.headers.get("Origin")
        if origin is None or origin.partition("://")[2] == request.headers.get("Host"):
            return None
        return _response(HTTPStatus.FORBIDDEN, "text/plain", b"a page from elsewhere\n")
    if path not in PAGES:
        return _response(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")
    return _response(HTTPStatus.OK, *PAGES[path])


def _response(status: HTTPStatus, kind: str, body: bytes) -> Response:
    headers = Headers(SECURITY)
    headers["Content-Type"] = f"{kind}; charset=utf-8"
    headers["Content-Length"] = str(len(body))
    headers["Cache-Control"] = "no-cache"
    headers["Connection"] = "close"
    return Response(status.value, status.phrase, headers, body)
