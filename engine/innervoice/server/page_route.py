"""The page: a browser's client of the Realtime protocol, served as the files of the package that it consists of."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from innervoice.files import packaged_questions
from innervoice.server.errors import ApiError

TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".flac": "audio/flac",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageFiles:
    """Serves the page's own files, and the recordings that it can ask as questions; no key is needed for them."""

    def __init__(self) -> None:
        package = resources.files("innervoice")
        own = Path(str(package / "server" / "page"))
        self._files = {path.name: path for path in own.iterdir() if path.suffix in TYPES}
        questions = packaged_questions()
        self._files |= {question.path.name: question.path for question in questions}
        self._questions = [{"file": question.path.name, "text": question.text} for question in questions]

    @property
    def routes(self) -> list[Route]:
        """The page at the root, and its files beside it under `page/`, so that a prefix before both does no harm."""
        return [
            Route("/", self.index),
            Route("/page/questions.json", self.questions),
            Route("/page/{name}", self.file),
        ]

    async def index(self, _: Request) -> Response:
        """Serve the page itself."""
        return _answer(self._files["index.html"])

    async def questions(self, _: Request) -> Response:
        """List the recordings that the page can ask, each with its words."""
        return JSONResponse(self._questions, headers=HEADERS)

    async def file(self, request: Request) -> Response:
        """Serve one of its files. Raises ApiError (404) for a name that is none of them."""
        path = self._files.get(request.path_params["name"])
        if path is None:
            raise ApiError("unknown_url", "the page has no such file", status=404)
        return _answer(path)


def _answer(path: Path) -> Response:
    return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)
