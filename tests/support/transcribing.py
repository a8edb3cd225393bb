"""A service that transcribes all recordings alike, on a free port of loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = "How are you?"
ENDS_WITH_AN_ERROR = b"broken"  # in the prompt of a request that is to fail


class Answers(BaseHTTPRequestHandler):
    """Answers with the words, or with status 500."""

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/audio/transcriptions" and b"RIFF" in request
        self.send_response(500 if ENDS_WITH_AN_ERROR in request else 200)
        body = json.dumps({"text": WORDS}).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def transcription_service() -> Iterator[str]:
    """Run the service while the block runs -> its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
