"""A local server that speaks the OpenAI chat format and answers from a script: real HTTP, no model."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self

from planish_promptv.models.scripted import Scripted
from planish_promptv.models.secrets import Key

LARGEST_REQUEST = 16 << 20


class Answerer(Protocol):
    """What stands behind the server."""

    def answer(self, request: dict[str, Any]) -> Scripted:
        """The answer to the body of a chat request. Called from several threads."""
        ...


class ScriptedServer:
    """Serves ``answerer`` at ``url`` while the context is open.

    Args:
        port: 0 takes a free one.
        key: refuse requests without it.
        host: address to listen at.
        refuse_json_mode: answer 400 to ``response_format``, as servers without JSON mode do.

    Attributes:
        requests: the bodies of the chat requests that came, in order.
    """

    def __init__(
        self,
        answerer: Answerer,
        port: int = 0,
        key: Key | None = None,
        host: str = "127.0.0.1",
        refuse_json_mode: bool = False,
    ) -> None:
        self.answerer = answerer
        self.requests: list[dict[str, Any]] = []
        self.key = key
        self.refuse_json_mode = refuse_json_mode
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Base URL for clients."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(owner: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LARGEST_REQUEST:
                self._error(413 if length else 400, "give a body with its length")
                return
            raw = self.rfile.read(length)
            if not self.path.endswith("/chat/completions"):
                self._error(404, "no such path")
                return
            if owner.key and self.headers.get("Authorization") != owner.key.header()["Authorization"]:
                # Like real endpoints, this echoes what it was given.
                self._error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
                return
            try:
                request = json.loads(raw)
            except ValueError:
                self._error(400, "the body is not JSON")
                return
            owner.requests.append(request)
            if owner.refuse_json_mode and "response_format" in request:
                self._error(400, "response_format is not supported by this model")
                return
            self._play(request, owner.answerer.answer(request))

        def _play(self, request: dict[str, Any], answer: Scripted) -> None:
            deadline = time.monotonic() + answer.delay
            owner.closing.wait(max(0.0, deadline - time.monotonic()))
            body = answer.body if answer.body is not None else json.dumps(answer.completion(request))
            if answer.status != 200 and answer.body is None:
                body = json.dumps({"error": {"message": answer.text or f"scripted status {answer.status}"}})
            self._send_raw(answer.status, body.encode(), answer.retry_after, answer.cut)

        def _error(self, status: int, message: str) -> None:
            self._send(status, {"error": {"message": message}})

        def _send(self, status: int, value: Any) -> None:
            self._send_raw(status, json.dumps(value).encode(), None, None)

        def _send_raw(
            self, status: int, body: bytes, retry_after: float | str | None, cut: int | None
        ) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                if retry_after is not None:
                    self.send_header("Retry-After", str(retry_after))
                self.end_headers()
                self.wfile.write(body[:cut])
                if cut is not None:
                    self.close_connection = True
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up: timeouts are part of what scripts test

    return Handler
