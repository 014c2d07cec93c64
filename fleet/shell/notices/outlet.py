"""One address that is posted to: a queue with a bound, a thread, and patience with a bound.

What cannot be delivered is tried again with growing pauses, and is dropped, and counted, when it
is an hour old or when too much waits. Whoever puts something in never waits.
"""

import hashlib
import hmac
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

log = logging.getLogger("fleet.notices")

MAX_WAITING = 256
GIVE_UP_S = 3600.0
FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 300.0
_MULTIPLE = 2.0
_TOO_EARLY, _TIMEOUT, _TOO_MANY = 425, 408, 429
_SERVER_ERROR = 500


@dataclass(slots=True)
class Post:
    """A body on its way; `id` is the same however often it is tried."""

    id: str
    body: bytes
    pause_s: float = field(default_factory=lambda: FIRST_PAUSE_S)
    due: float = 0.0
    """By the monotonic clock, as are the others."""
    until: float = field(default_factory=lambda: time.monotonic() + GIVE_UP_S)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try."""

    ok: bool
    text: str
    again_in: float | None = None
    """None: there is no use in another try; 0: when we like."""


@dataclass(slots=True)
class Counts:
    """What became of an outlet's posts."""

    delivered: int = 0
    failed: int = 0
    """Tries that failed."""
    dropped: int = 0


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return what `Farflung-Signature` says: HMAC-SHA256 over `timestamp.body`."""
    return (
        "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    )


def read_secret(path: str) -> bytes:
    """Return the first line of a secret's file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty.
    """
    with Path(path).open("rb") as file:
        secret = file.readline(4096).strip()
    if not secret:
        raise ValueError(f"{path}: expected a secret in its first line, got none")
    return secret


def post(http: httpx.Client, url: str, body: bytes, id: str, secret_file: str | None) -> Answer:
    """Post once, signed if there is a secret. Follows no redirect and reads no answer's body."""
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "farflung",
        "Farflung-Delivery": id,
        "Farflung-Timestamp": timestamp,
    }
    try:
        if secret_file is not None:
            secret = read_secret(secret_file)
            headers["Farflung-Signature"] = signature(secret, timestamp, body)
        with http.stream("POST", url, content=body, headers=headers) as answer:
            return _judged(answer)
    except (OSError, ValueError) as error:
        # Never unsigned, where a signature was asked for.
        return Answer(False, f"secret_file: {error}", 0.0)
    except httpx.HTTPError as error:
        return Answer(False, str(error) or type(error).__name__, 0.0)


def _judged(answer: httpx.Response) -> Answer:
    status = answer.status_code
    if answer.is_success:
        return Answer(True, f"{status}")
    if status in (_TIMEOUT, _TOO_EARLY, _TOO_MANY) or status >= _SERVER_ERROR:
        wait = answer.headers.get("Retry-After", "")
        return Answer(False, f"answered {status}", float(wait) if wait.isdigit() else 0.0)
    hint = "; redirects are not followed" if answer.is_redirect else ""
    return Answer(False, f"answered {status}{hint}")


class Outlet:
    """The queue of one address. Its thread starts with the first post."""

    def __init__(self, name: str, send: Callable[[httpx.Client, Post], Answer], timeout_s: float):
        """`send` tries once; `timeout_s` bounds each step of it."""
        self.name = name
        self.counts = Counts()
        self._send = send
        self._timeout_s = timeout_s
        self._waiting: deque[Post] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._troubled = ""

    def put(self, post: Post) -> None:
        """Let it be sent; of too many the oldest goes."""
        with self._changed:
            if self._closing:
                return
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._drop("too many wait")
            self._waiting.append(post)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many posts wait."""
        return len(self._waiting)

    def close(self, within_s: float) -> None:
        """End; what waits is dropped, and what is under way is given a moment."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(within_s)

    def _run(self) -> None:
        # Another's proxy may be what the environment names; that is the operator's choice.
        with httpx.Client(timeout=self._timeout_s, follow_redirects=False) as http:
            while (post := self._next()) is not None:
                try:
                    answer = self._send(http, post)
                except Exception as error:
                    log.exception("%s: a post could not be made", self.name)
                    answer = Answer(False, f"{type(error).__name__}: {error}")
                self._settle(post, answer)

    def _next(self) -> Post | None:
        """Return the next post that is due; None: it is over."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                due = min(self._waiting, key=lambda each: each.due, default=None)
                if due is not None and due.due <= now:
                    self._waiting.remove(due)
                    return due
                self._changed.wait(due.due - now if due is not None else None)
        return None

    def _settle(self, post: Post, answer: Answer) -> None:
        with self._changed:
            if answer.ok:
                self.counts.delivered += 1
                if self._troubled:
                    log.warning("%s: delivers again", self.name)
                self._troubled = ""
                return
            self.counts.failed += 1
            self._trouble(answer.text)
            now = time.monotonic()
            pause = max(post.pause_s, min(answer.again_in or 0.0, LAST_PAUSE_S))
            if answer.again_in is None or now + pause > post.until or self._closing:
                self._drop(answer.text)
                return
            post.due = now + pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
            post.pause_s = min(pause * _MULTIPLE, LAST_PAUSE_S)
            if len(self._waiting) >= MAX_WAITING:
                self._drop("too many wait")
                return
            self._waiting.append(post)

    def _drop(self, why: str) -> None:
        self.counts.dropped += 1
        if self.counts.dropped == 1 or self.counts.dropped % 100 == 0:
            log.error("%s: %d dropped so far, the last as: %s", self.name, self.counts.dropped, why)

    def _trouble(self, text: str) -> None:
        if text != self._troubled:
            log.warning(
                "%s: not delivered: %s; it is tried again where that may help", self.name, text
            )
        self._troubled = text
