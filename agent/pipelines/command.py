"""Commands of the operator: one that writes frames, one that reads answers."""

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from agent.pipelines.buffer import LOOK_S, Backoff, Buffer, Frame, Stopping
from agent.pipelines.counts import Counts
from agent.pipelines.frames import CutError, cutter
from agent.pipelines.plan import CommandSource as CommandSourcePlan

log = logging.getLogger("pipelines")

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 60.0
SETTLED_S = 10.0
"""A command that lived this long was a good one: the next start waits little again."""
GRACE_S = 1.0
"""From SIGTERM to SIGKILL."""
LOOK_AGAIN_S = 0.02
LINES_PER_MINUTE = 20
"""Of one command's standard error, for the log."""
READ_BYTES = 64 * 1024


class Command:
    """One process with its own group, so that a shell's pipe ends with its shell."""

    def __init__(self, pipeline: str, argv: Sequence[str], *, reads: bool) -> None:
        """Start it; with `reads` we write to its standard input, else we read its output.

        Raises:
            OSError: it cannot be run.
        """
        self._label = f"pipeline {pipeline}: {os.path.basename(argv[0])}"  # noqa: PTH119
        self._lock = threading.Lock()
        self._last = ""
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if reads else subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        pipe = self._process.stdin if reads else self._process.stdout
        assert pipe is not None and self._process.stderr is not None
        self.pipe: IO[bytes] = pipe
        self._ended = False
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stderr,), daemon=True
        )
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether it has not exited; it is left unreaped, so that its id stays its own."""
        how = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return not self._ended and os.waitid(os.P_PID, self._process.pid, how) is None

    def end(self) -> str:
        """End it and all that it started; return how it ended, in words.

        `pipe` stays open, for whoever is reading it.
        """
        with self._lock:
            if not self._ended:
                if self.alive:
                    self._signal(signal.SIGTERM)
                deadline = time.monotonic() + GRACE_S
                while self.alive and time.monotonic() < deadline:
                    time.sleep(LOOK_AGAIN_S)
                self._signal(signal.SIGKILL)
                self._ended = True
                self._process.wait()
                self._listener.join(GRACE_S)
            return self._how()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _how(self) -> str:
        code = self._process.returncode
        how = f"ended with code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"ended by {signal.Signals(-code).name}"
        return f"{self._label} {how}" + (f": {self._last}" if self._last else "")

    def _listen(self, stderr: IO[bytes]) -> None:
        """Log what it says, up to a bound; the last line tells later why it ended."""
        left, minute = LINES_PER_MINUTE, time.monotonic()
        rest = b""
        with stderr:
            while data := stderr.read(4096):
                # ffmpeg rewrites one line for ever, with carriage returns.
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                rest = rest[-4096:]
                for line in lines:
                    text = line.decode("utf-8", "replace").strip()[:300]
                    if not text:
                        continue
                    self._last = text
                    if time.monotonic() - minute > 60:
                        left, minute = LINES_PER_MINUTE, time.monotonic()
                    if left > 0:
                        log.info("%s: %s", self._label, text)
                    left -= 1
        if rest.strip():
            self._last = rest.decode("utf-8", "replace").strip()[:300]


class CommandSource:
    """Frames from a command's standard output, taken by a thread of its own."""

    def __init__(
        self, pipeline: str, plan: CommandSourcePlan, buffer: Buffer, counts: Counts
    ) -> None:
        """Start reading; frames come out of `buffer`."""
        self._pipeline = pipeline
        self._argv = plan.command
        self._frames = plan.frames
        self._buffer = buffer
        self._counts = counts
        self._starts = 0
        self._closed = threading.Event()
        self._command: Command | None = None
        self._thread = threading.Thread(target=self._run, name=f"{pipeline}-source", daemon=True)
        self._thread.start()

    def next(self) -> Frame:
        """Wait for a frame.

        Raises:
            Stopping: there will be none.
        """
        return self._buffer.get()

    def settle(self, frame: Frame, *, good: bool) -> None:
        """Do nothing: what is read is read."""

    def close(self) -> None:
        """End the command."""
        self._closed.set()
        self._buffer.close()
        if self._command is not None:
            self._command.end()
        self._thread.join(GRACE_S)

    def _run(self) -> None:
        backoff = Backoff(FIRST_DELAY_S, LAST_DELAY_S)
        told = ""
        with contextlib.suppress(Stopping):
            while True:
                began = time.monotonic()
                how = self._run_once()
                if self._closed.is_set():
                    return
                if time.monotonic() - began > SETTLED_S:
                    backoff.reset()
                wait_s = backoff.next()
                log.log(
                    logging.DEBUG if how == told else logging.WARNING,
                    "%s; starting it again, at most every %.0f s", how, LAST_DELAY_S,
                )  # fmt: skip
                told = how
                if self._closed.wait(wait_s):
                    return
                self._counts.restarted()

    def _run_once(self) -> str:
        """Run the command until it ends; return how."""
        try:
            command = self._command = Command(self._pipeline, self._argv, reads=False)
        except OSError as error:
            return f"pipeline {self._pipeline}: cannot start {self._argv[0]}: {error.strerror}"
        fault = ""
        try:
            if not self._closed.is_set():
                self._read(command)
        except CutError as error:
            fault = f" ({error})"
        finally:
            how = command.end()
            command.pipe.close()
        return how + fault

    def _read(self, command: Command) -> None:
        cut = cutter(self._frames)
        self._starts += 1
        stream = str(self._starts)
        name = os.path.basename(self._argv[0])  # noqa: PTH119
        while data := os.read(command.pipe.fileno(), READ_BYTES):
            for payload in cut.feed(data):
                self._buffer.put(payload, name, stream)
        for payload in cut.end():
            self._buffer.put(payload, name, stream)


class CommandSink:
    """Lines on a command's standard input; a line that a dying command cut is written again.

    What the command had not read when it died is lost with the pipe.
    """

    def __init__(
        self, pipeline: str, argv: Sequence[str], counts: Counts, stop: threading.Event
    ) -> None:
        self._pipeline = pipeline
        self._argv = argv
        self._counts = counts
        self._stop = stop
        self._backoff = Backoff(FIRST_DELAY_S, LAST_DELAY_S)
        self._command: Command | None = None
        self._told = ""
        self._start()

    def put(self, line: bytes) -> None:
        """Write a line, waiting for the command to read.

        Raises:
            Stopping: this process ends first.
        """
        while self._command is None or not self._write(self._command, line):
            if self._command is not None:
                lived = time.monotonic() - self._command.started
                if lived > SETTLED_S:
                    self._backoff.reset()
                self._tell(self._command.end())
                with contextlib.suppress(OSError):
                    self._command.pipe.close()
            if self._stop.wait(self._backoff.next()):
                raise Stopping
            self._counts.restarted()
            self._start()

    def close(self) -> None:
        """End the command, which may finish what it has read."""
        if self._command is not None:
            with contextlib.suppress(OSError):
                self._command.pipe.close()
            deadline = time.monotonic() + GRACE_S
            while self._command.alive and time.monotonic() < deadline:
                time.sleep(LOOK_AGAIN_S)
            self._command.end()

    def _start(self) -> None:
        try:
            self._command = Command(self._pipeline, self._argv, reads=True)
        except OSError as error:
            self._command = None
            why = f"pipeline {self._pipeline}: cannot start {self._argv[0]}: {error.strerror}"
            self._tell(why)
            return
        os.set_blocking(self._command.pipe.fileno(), False)

    def _write(self, command: Command, line: bytes) -> bool:
        """Write a whole line; False when the command is gone."""
        poll = select.poll()
        poll.register(command.pipe, select.POLLOUT)
        rest = memoryview(line)
        while rest:
            if self._stop.is_set():
                raise Stopping
            if not command.alive:
                return False
            try:
                if poll.poll(LOOK_S * 1000):
                    rest = rest[os.write(command.pipe.fileno(), rest) :]
            except BlockingIOError:
                continue
            except OSError:
                return False
        return True

    def _tell(self, text: str) -> None:
        level = logging.DEBUG if text == self._told else logging.WARNING
        log.log(level, "%s; starting it again, at most every %.0f s", text, LAST_DELAY_S)
        self._told = text
