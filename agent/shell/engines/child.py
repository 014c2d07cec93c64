"""One engine process: its start, its words, its end.

A thread reads its control socket and its standard error, posts events, and ends with it.
Engines end by themselves when the control socket closes, so none outlives the daemon, however
that ends.
"""

import contextlib
import logging
import math
import os
import selectors
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from pydantic import TypeAdapter

from agent import control
from agent.control import FromEngine, ToEngine
from agent.core.events import (
    EngineExited,
    EngineFailed,
    EngineHung,
    EngineReady,
    Event,
    ScoresCame,
)
from agent.shell.engines.regions import Regions
from wire.ids import check_id
from wire.twin import Reason

log = logging.getLogger(__name__)

STDERR_KEPT_BYTES = 2048
MAX_NOTES = 200
"""Lines for the log from one process."""
SEND_TIMEOUT_S = 2.0
"""An engine that leaves its control socket full for so long does not read it any more."""
EXIT_GRACE_S = 5.0
"""From the end of the control socket to the end of the process."""
HUNG_GRACE_S = 2.0
"""From the end of a run's time, when the engine itself tries to stop it, to its own end."""
LOOKS_A_LIMIT = 8
LONGEST_LOOK_S = 5.0


class Child:
    """One generation's process."""

    def __init__(self, generation: int, post: Callable[[Event], None], regions: Regions) -> None:
        """Prepare; `start` makes the process."""
        self.generation = generation
        self.shadow_path = ""
        """Where it answers shadow requests, once it was told to."""
        self._post = post
        self._control, self._theirs = socket.socketpair()
        self._control.settimeout(SEND_TIMEOUT_S)
        self._regions = regions
        self._passage, self._their_passage = regions.join()
        self._blame = os.memfd_create("blame")
        os.ftruncate(self._blame, control.BLAME.size)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._failed = False
        self._hung_at = -math.inf
        self._tail = b""
        self._notes_left = MAX_NOTES
        self._drain_timer: threading.Timer | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{generation}", daemon=True)

    @property
    def pid(self) -> int:
        """Its process id; 0 before it started."""
        return self._process.pid if self._process is not None else 0

    def start(
        self,
        command: Sequence[str],
        sockets: Mapping[str, int],
        environ: Mapping[str, str],
        load: control.Load,
        *,
        timeout_s: float,
        nice: int = 0,
    ) -> None:
        """Make the process and let it `load`; it must be ready within `timeout_s`.

        Raises:
            OSError: the command cannot be run.
        """
        arguments = ["--control", str(self._theirs.fileno()), "--generation", str(self.generation)]
        arguments += ["--blame", str(self._blame), "--nice", str(load.nice)]
        arguments += ["--regions", str(self._their_passage.fileno())]
        for name, fd in sockets.items():
            arguments += [f"--{name}", str(fd)]
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environ,
                pass_fds=(
                    self._theirs.fileno(),
                    self._their_passage.fileno(),
                    self._blame,
                    *sockets.values(),
                ),
                # A Ctrl-C in the daemon's terminal is the daemon's business.
                process_group=0,
            )
        except OSError:
            self._control.close()
            self._regions.leave(self._passage)
            os.close(self._blame)
            raise
        finally:
            self._theirs.close()
            self._their_passage.close()
        self._start_by = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._invoke_s = load.invoke_s
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)
        self.send(load)
        self._thread.start()

    def send(self, message: ToEngine) -> None:
        """Tell it something. One that does not listen any more is killed."""
        try:
            self._control.sendall(control.write(message))
        except TimeoutError:
            self._give_up(Reason.HUNG, "it does not read its control socket")
        except OSError:
            return  # it has ended; its thread says so

    def serve(self, invoke_s: float, golden_s: float) -> None:
        """Let it accept; no run may take longer than `invoke_s` from here on."""
        self._invoke_s = invoke_s
        self.send(control.Serve(invoke_s, golden_s))

    def drain(self, deadline_s: float, grace_s: float, streams_s: float = 0.0) -> None:
        """Let it finish what it has; kill it when it takes longer."""
        if self._drain_timer is None:
            self._drain_timer = threading.Timer(deadline_s + grace_s, self.kill)
            self._drain_timer.daemon = True
            self._drain_timer.start()
            self.send(control.Drain(deadline_s, streams_s))

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.kill()

    def join(self, timeout_s: float) -> None:
        """Wait until it ended and its events were posted."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def running(self) -> bool:
        """Whether its EngineExited is still to come."""
        return self._thread.is_alive()

    # ---- the thread

    def _run(self) -> None:
        assert self._process is not None
        stderr = self._process.stderr
        assert stderr is not None
        try:
            self._listen(stderr.fileno())
        except Exception as error:  # its end must be told whatever it said before
            log.error("engine %d: unexpected %r", self.generation, error)
        code = self._wait()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        os.set_blocking(stderr.fileno(), False)
        with contextlib.suppress(OSError):
            self._hear(os.read(stderr.fileno(), STDERR_KEPT_BYTES))
        blamed = self._blamed() if code != 0 else ""
        self._control.close()
        self._regions.leave(self._passage)
        stderr.close()
        os.close(self._blame)
        self._post(EngineExited(self.generation, code, blamed, self._last_words(code)))

    def _listen(self, stderr: int) -> None:
        """Read until the control socket ends or the time to get ready is over."""
        waiting = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            selector.register(self._passage, selectors.EVENT_READ)
            while True:
                left = math.inf if self._ready else self._start_by - time.monotonic()
                if left <= 0:
                    self._give_up(Reason.HUNG, f"not ready within {self._timeout_s:.0f} s")
                    return
                hung = self._hung()
                look_s = min(self._invoke_s / LOOKS_A_LIMIT, LONGEST_LOOK_S)
                # What it said before it hung counts, however late that is read.
                for key, _ in selector.select(0.0 if hung else min(left, look_s)):
                    if key.fd == stderr:
                        data = os.read(stderr, 4096)
                        if not data:
                            selector.unregister(stderr)
                        self._hear(data)
                        continue
                    if key.fileobj is self._passage:
                        if not self._regions.hear(self._passage):
                            selector.unregister(self._passage)
                        continue
                    try:
                        data = self._control.recv(65536)
                    except ConnectionError:
                        data = b""
                    if not data:
                        return
                    *lines, waiting = (waiting + data).split(b"\n")
                    if len(waiting) > control.MAX_LINE_BYTES or not all(map(self._take, lines)):
                        self._give_up(Reason.CRASHED, "it does not keep to the control protocol")
                        return
                if hung:
                    detail = f"a run took more than {self._invoke_s:g} s and could not be stopped"
                    self._give_up(Reason.HUNG, detail, hung)
                    return

    def _take(self, line: bytes) -> bool:
        try:
            event = self._event(_checked(control.read_from_engine(line)))
        except ValueError as error:
            log.warning("engine %d: %s", self.generation, str(error).splitlines()[0][:300])
            return False
        if event is not None:
            self._post(event)
        return True

    def _event(self, message: FromEngine) -> Event | None:
        match message:
            case control.Ready(models):
                self._ready = True
                return EngineReady(self.generation, tuple(models))
            case control.Failed(model, reason, detail):
                self._failed = True
                self._start_by = time.monotonic() + EXIT_GRACE_S
                return EngineFailed(self.generation, model[:60], Reason(reason), detail[:480])
            case control.Scores(windows, tallies):
                return ScoresCame(self.generation, tuple(windows), tuple(tallies))
            case control.Hung(model, detail) if self._may_have_hung():
                return EngineHung(self.generation, model[:60], detail[:480])
            case control.Note(text) if self._notes_left > 0:
                self._notes_left -= 1
                log.info("engine %d: %s", self.generation, text[:300])
        return None

    def _may_have_hung(self) -> bool:
        """Whether so much time went by since the last run was stopped: each is journalled."""
        now = time.monotonic()
        believable = now - self._hung_at >= self._invoke_s / 2
        if believable:
            self._hung_at = now
        return believable

    def _give_up(self, reason: Reason, detail: str, model: str | None = None) -> None:
        blamed = self._blamed() if model is None else model
        self.kill()
        if not self._failed:
            self._failed = True
            self._post(EngineFailed(self.generation, blamed, reason, detail))

    def _wait(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _hear(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-STDERR_KEPT_BYTES:]
        for line in data.decode("utf-8", "replace").splitlines():
            log.debug("engine %d: %s", self.generation, line[:300])

    def _last_words(self, code: int) -> str:
        if code == 0:
            return ""
        how = f"ended with code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"ended by {signal.Signals(-code).name}"
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {lines[-1].strip()[:300]}" if lines else how

    def _blamed(self) -> str:
        """Return the model it was running, if it left a name that can be one."""
        latest, _, _ = self._read_blame()
        return latest

    def _hung(self) -> str:
        """Return the model that has run for too long, if one has."""
        _, longest, since_ns = self._read_blame()
        ran_s = (time.monotonic_ns() - since_ns) / 1e9
        return longest if since_ns and ran_s > self._invoke_s + HUNG_GRACE_S else ""

    def _read_blame(self) -> tuple[str, str, int]:
        """Return the model that runs since lately, the one that runs longest, and since when."""
        with contextlib.suppress(OSError, struct.error):
            page = os.pread(self._blame, control.BLAME.size, 0)
            latest, longest, since_ns = control.BLAME.unpack(page)
            return _model(latest), _model(longest), since_ns
        return "", "", 0


def _model(name: bytes) -> str:
    """Return a name as the engine left it, if it can be one."""
    with contextlib.suppress(ValueError):
        return check_id(name.rstrip(b"\0").decode("ascii"))
    return ""


_KINDS: dict[type[FromEngine], TypeAdapter[FromEngine]] = {
    kind: TypeAdapter(kind)
    for kind in (control.Ready, control.Failed, control.Scores, control.Note, control.Hung)
}


def _checked(message: FromEngine) -> FromEngine:
    """Return `message` when every field is of its type: a model may have taken the engine over.

    Raises:
        ValueError: one is not.
    """
    return _KINDS[type(message)].validate_python(asdict(message))
