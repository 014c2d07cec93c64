"""Fetches ranges of a transfer over HTTPS, in a thread of its own that starts with the first.

It believes nothing and follows nobody: what comes is given on as frames, which are verified
like those from the broker; whatever is not the range that was asked for ends the attempt.
"""

import contextlib
import http.client
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agent.core.events import Event, SourceFailed, SourceFrame
from wire.transfer import ChunkFrame, Offer

log = logging.getLogger(__name__)

TIMEOUT_S = 8.0
"""For the connection, and for each piece of an answer."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class _Job:
    url: str
    offer: Offer
    first: int
    count: int


class _SourceError(Exception):
    """The source did not answer with what was asked for."""


class Source:
    """One range at a time; a new one takes the place of the one before."""

    def __init__(self, ca_file: Path | None, post: Callable[[Event], None]) -> None:
        """Remember whom to trust: the certificates in `ca_file`, else the system's."""
        self._ca_file = ca_file
        self._post = post
        self._changed = threading.Condition()
        self._job: _Job | None = None
        self._current: _Job | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._origin = ("", "")

    def fetch(self, url: str, offer: Offer, first: int, count: int) -> None:
        """Ask for `count` chunks from number `first` on; they are posted as SourceFrame."""
        with self._changed:
            self._job = self._current = _Job(url, offer, first, count)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="source", daemon=True)
                self._thread.start()
            self._changed.notify()

    def cancel(self) -> None:
        """Let go of what is being fetched."""
        with self._changed:
            self._job = self._current = None
            self._hang_up()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._job = self._current = None
            self._hang_up()
            self._changed.notify()

    def _hang_up(self) -> None:
        # Wakes a thread that is reading; it closes the connection itself.
        connection = self._connection
        sock = getattr(connection, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._closing)
                job, self._job = self._job, None
            if job is None:
                self._disconnect()
                return
            try:
                self._fetch(job)
            except (OSError, http.client.HTTPException, _SourceError) as error:
                self._disconnect()
                self._tell(job, f"{error}" or type(error).__name__)
            except Exception as error:  # a mistake of ours must not end the thread unseen
                log.error("source: unexpected %r", error)
                self._disconnect()
                self._tell(job, type(error).__name__)

    def _tell(self, job: _Job, detail: str) -> None:
        if self._current is job:
            self._post(SourceFailed(job.url, detail[:200]))

    def _fetch(self, job: _Job) -> None:
        offer = job.offer
        start = job.first * offer.chunk_bytes
        end = min((job.first + job.count) * offer.chunk_bytes, offer.transfer_bytes)
        answer = self._ask(job.url, f"bytes={start}-{end - 1}")
        _check(answer, start, end, offer.transfer_bytes)
        for number in range(job.first, job.first + job.count):
            length = offer.chunk_length("data", number)
            payload = answer.read(length)
            if self._current is not job:
                self._disconnect()
                return
            if len(payload) < length:
                raise _SourceError(f"broke off at chunk {number}")
            self._post(SourceFrame(job.url, offer.index, ChunkFrame("data", number, payload)))
        if answer.read(1):
            raise _SourceError("sent more than was asked for")
        if answer.will_close:
            self._disconnect()

    def _ask(self, url: str, span: str) -> http.client.HTTPResponse:
        """Send the request, once more when a connection that was idle turns out closed."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = {"Range": span, "Accept-Encoding": "identity"}
        for fresh in (False, True):
            reused = self._connect(parts.scheme, parts.netloc, fresh=fresh)
            assert self._connection is not None
            try:
                self._connection.request("GET", target, headers=headers)
                return self._connection.getresponse()
            except (ConnectionError, http.client.RemoteDisconnected):
                if not reused:
                    raise
        raise _SourceError("closed the connection twice")

    def _connect(self, scheme: str, netloc: str, *, fresh: bool) -> bool:
        """Have a connection to the origin; return whether it is one that was used before."""
        if self._connection is not None and self._origin == (scheme, netloc) and not fresh:
            return True
        self._disconnect()
        if scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_file)
            self._connection = http.client.HTTPSConnection(
                netloc, timeout=TIMEOUT_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)
        self._origin = (scheme, netloc)
        return False

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _check(answer: http.client.HTTPResponse, start: int, end: int, total: int) -> None:
    if answer.status != 206:
        where = f" to {answer.headers['location'][:80]}" if "location" in answer.headers else ""
        raise _SourceError(f"expected status 206, got {answer.status}{where}")
    said = answer.headers.get("content-range", "")
    found = _RANGE.fullmatch(said)
    right = found is not None and found[3] in ("*", str(total))
    if found is None or not right or (int(found[1]), int(found[2])) != (start, end - 1):
        raise _SourceError(f"expected bytes {start}-{end - 1}/{total}, got {said[:60]!r}")
