"""Commands and addresses that are called with a summary: a few at a time, each for a time."""

import json
import logging
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import httpx

from fleet.core.alert_policy import Hook
from fleet.core.alerts import Act, Outcome
from fleet.shell.notices.outlet import post

MAX_WAITING = 100
TAIL_BYTES = 2000
TRIES = 3
TERM_S = 5.0
"""From the signal that asks to the one that does not."""

_POLL_S = 0.1
_ANSWER_S = 30.0
_PASSED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV")

log = logging.getLogger("fleet.notices")


@dataclass(frozen=True, slots=True)
class _Call:
    act: Act
    hook: Hook
    summary: bytes


class Hooks:
    """Calls under way and calls that wait."""

    def __init__(self, at_once: int, done: Callable[[str, Outcome, str], None]) -> None:
        """`done` gets an action's id and what came of it, from a thread of ours."""
        self.at_once = at_once
        self._done = done
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._workers: set[threading.Thread] = set()
        self._closing = threading.Event()

    def run(self, act: Act, hook: Hook, summary: dict[str, Any]) -> None:
        """Call a hook, now or when others are over."""
        call = _Call(act, hook, json.dumps(summary).encode())
        with self._lock:
            closing = self._closing.is_set()
            full = len(self._waiting) >= MAX_WAITING
            if not closing and not full:
                self._waiting.append(call)
                if len(self._workers) < self.at_once:
                    worker = threading.Thread(target=self._work, name="hook", daemon=True)
                    self._workers.add(worker)
                    worker.start()
                return
        if full:
            self._done(act.id, "failed", f"{MAX_WAITING} calls of hooks wait already")
        else:
            self._done(act.id, "lost", "the controller ended")

    def close(self, within_s: float) -> None:
        """Kill what runs, and call what waits no more."""
        with self._lock:
            self._closing.set()
            left = [*self._waiting]
            self._waiting.clear()
            workers = [*self._workers]
        for call in left:
            self._done(call.act.id, "lost", "the controller ended before it was called")
        deadline = time.monotonic() + within_s
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or len(self._workers) > self.at_once:
                    self._workers.discard(threading.current_thread())
                    return
                call = self._waiting.popleft()
            try:
                outcome, detail = self._call(call)
            except Exception as error:
                log.exception("hook %s", call.hook.name)
                outcome, detail = "failed", f"{type(error).__name__}: {error}"
            self._done(call.act.id, outcome, detail)

    def _call(self, call: _Call) -> tuple[Outcome, str]:
        if call.hook.url is not None:
            return self._post(call, call.hook.url)
        return self._execute(call)

    def _post(self, call: _Call, url: str) -> tuple[Outcome, str]:
        answer, tries = None, 0
        with httpx.Client(timeout=min(call.hook.timeout, _ANSWER_S)) as http:
            while tries < TRIES and not self._closing.is_set():
                answer = post(http, url, call.summary, call.act.id, call.hook.secret_file)
                tries += 1
                if answer.ok:
                    return "done", f"answered {answer.text}"
                if answer.again_in is None:
                    break
                self._closing.wait(4 ** (tries - 1))
        if answer is None:
            return "lost", "the controller ended"
        return "failed", f"{answer.text}; tried {tries} times"

    def _execute(self, call: _Call) -> tuple[Outcome, str]:
        command = call.hook.command or ()
        with tempfile.TemporaryFile() as stdin:
            stdin.write(call.summary)
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=environment(call.act, call.hook),
                    start_new_session=True,
                )
            except OSError as error:
                return "failed", f"{command[0]}: {error.strerror or error}"
        assert process.stdout is not None
        with process.stdout as out:
            os.set_blocking(out.fileno(), False)
            tail, in_time = self._watch(process, out, call.hook.timeout)
        words = tail.decode(errors="replace").strip()
        if self._closing.is_set() and not in_time:
            return "lost", f"killed, as the controller ended; {words}"
        if not in_time:
            return "failed", f"killed after {call.hook.timeout:g} s; {words}"
        if process.returncode != 0:
            return "failed", f"exit status {process.returncode}; {words}"
        return "done", words

    def _watch(
        self, process: subprocess.Popen[bytes], out: IO[bytes], timeout_s: float
    ) -> tuple[bytes, bool]:
        """Wait for its end; return the last it said, and whether it ended in time."""
        tail = b""
        deadline = time.monotonic() + timeout_s
        open_ = True
        while process.poll() is None:
            if time.monotonic() >= deadline or self._closing.is_set():
                _kill(process)
                return tail, False
            if open_:
                select.select([out], [], [], _POLL_S)
                tail, open_ = _read(out, tail)
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        # Whatever it left behind may go on, and talk on; nobody listens any more.
        return _read(out, tail)[0], True


def _read(out: IO[bytes], tail: bytes) -> tuple[bytes, bool]:
    """Return the tail after what can be read now, and whether more may come."""
    for _ in range(64):
        try:
            data = os.read(out.fileno(), 65_536)
        except BlockingIOError:
            return tail, True
        if not data:
            return tail, False
        tail = (tail + data)[-TAIL_BYTES:]
    return tail, True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(TERM_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(act: Act, hook: Hook) -> dict[str, str]:
    """Return the environment of a hook: little of ours, and what it is about."""
    passed = {
        key: value
        for key, value in os.environ.items()
        if key in _PASSED or key.startswith(("LC_", "FARFLUNG_"))
    }
    return passed | {
        "FARFLUNG_ACTION": act.id,
        "FARFLUNG_ALERT": act.alert,
        "FARFLUNG_HOOK": hook.name,
        "FARFLUNG_SUBJECT": act.subject.name,
        "FARFLUNG_MODEL": act.subject.model,
        "FARFLUNG_RELEASE": act.subject.release,
        "FARFLUNG_DEVICE": act.subject.device,
        "FARFLUNG_REASON": act.reason,
    }
