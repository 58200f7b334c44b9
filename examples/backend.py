"""An image classifier as an HTTP service, with the standard library and one session.

    python examples/backend.py model.int8.onnx --port 8000
    curl --data-binary @cat.jpg http://localhost:8000/classify?top=3

The answer is JSON: ``{"classes": [{"label": "cat", "index": 3, "score": 0.91}, ...]}``. Requests run in threads, which
share the session. For production put a server such as nginx in front, for TLS, timeouts and rate limits.
"""

import argparse
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from firebox import FireboxError, Session

MAX_IMAGE_BYTES = 16 * 1024**2


def make_server(session: Session, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """Return a server for a session; ``port`` 0 takes a free one. Call ``serve_forever`` on it."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            """Answer /health with the model, its runtime and the result of its golden check."""
            if self.path == "/health":
                self.reply(HTTPStatus.OK, {"model": session.name, **session.facts.to_json()})
            else:
                self.reply(HTTPStatus.NOT_FOUND, {"error": "use GET /health or POST /classify"})

        def do_POST(self) -> None:
            """Classify the image in the body."""
            url = urlsplit(self.path)
            length = self.headers.get("Content-Length", "")
            top = parse_qs(url.query).get("top", ["5"])[0]
            if url.path != "/classify":
                self.reply(HTTPStatus.NOT_FOUND, {"error": "use POST /classify"})
            elif not length.isdecimal() or not 0 < int(length) <= MAX_IMAGE_BYTES:
                self.reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"send 1 to {MAX_IMAGE_BYTES} bytes"})
            elif not top.isdecimal():
                self.reply(HTTPStatus.BAD_REQUEST, {"error": f"top is {top!r}; use a number"})
            else:
                self.classify(self.rfile.read(int(length)), int(top))

        def classify(self, image: bytes, top: int) -> None:
            """Reply with the most probable classes, or with one line about what is wrong with the image."""
            try:
                found = session.classify(image, top=top)
            except FireboxError as error:
                self.reply(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            else:
                self.reply(HTTPStatus.OK, {"classes": [vars(prediction) for prediction in found]})

        def reply(self, status: HTTPStatus, body: dict) -> None:
            """Send JSON."""
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                # The body was not read.
                self.close_connection = True
            self.end_headers()
            self.wfile.write(data)

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Serve until interrupted. A wrong golden output stops the service before it starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with Session(options.model, threads=options.threads, check="strict") as session:
        server = make_server(session, options.port, options.host)
        print(f"http://{options.host}:{server.server_port}/classify", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()


if __name__ == "__main__":
    main()
