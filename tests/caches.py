"""A web server that serves files by ranges over HTTPS, rightly or not, on a port of its own."""

import contextlib
import http.server
import re
import ssl
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def certificate(directory: Path) -> Path:
    """Make a certificate for 127.0.0.1 that signs itself; return its file, the key beside it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=cache", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return directory / "cert.pem"


class Cache:
    """Serves `files` by the last level of their address; `manner` is how."""

    def __init__(self, files: dict[str, bytes], cert: Path) -> None:
        self.files = files
        self.manner = "right"
        self.die_after: float = float("inf")
        """Bytes of bodies after which it is gone, in the middle of an answer."""
        self.sent_bytes = 0
        self.connections = 0
        self.requests: list[tuple[str, str]] = []
        cache = self

        class Handler(_Handler):
            home = cache

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, cert.with_name("key.pem"))
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def die(self) -> None:
        """Be gone: nobody listens any more."""
        self._server.socket.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    home: Cache

    def setup(self) -> None:
        self.home.connections += 1
        super().setup()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        home = self.home
        asked = self.headers.get("range", "")
        home.requests.append((self.path, asked))
        data = home.files.get(self.path.rpartition("/")[2], b"")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        start, end = (int(found[1]), int(found[2]) + 1) if found else (0, len(data))
        answer = self._answer(data, start, end)
        self.send_response(answer["status"])
        for name, value in answer["headers"].items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer["body"])))
        self.end_headers()
        self._send(answer["body"])

    def _answer(self, data: bytes, start: int, end: int) -> dict[str, Any]:
        body, status = data[start:end], 206 if data else 404
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        match self.home.manner:
            case "whole":
                body, status = data, 200
            case "absent":
                body, status = b"no such file", 404
            case "elsewhere":
                status, headers["Location"] = 302, "http://192.0.2.1/elsewhere"
            case "another range":
                headers = {"Content-Range": f"bytes 0-{end - start - 1}/{len(data)}"}
            case "another size":
                headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data) + 1}"}
            case "no range":
                headers = {}
            case "longer":
                body += b"and more"
            case "wrong":
                body = bytes(len(body))
        return {"status": status, "headers": headers, "body": body}

    def _send(self, body: bytes) -> None:
        home = self.home
        if home.manner == "slow":
            self.wfile.write(body[:100])
            self.wfile.flush()
            time.sleep(3)
            return
        if home.manner == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        room = home.die_after - home.sent_bytes
        if len(body) > room:
            body = body[: int(room)]
            self.close_connection = True
            home.die()
        with contextlib.suppress(OSError):  # who asked may have left
            self.wfile.write(body)
        home.sent_bytes += len(body)
        if home.manner == "one request a connection":
            self.close_connection = True
