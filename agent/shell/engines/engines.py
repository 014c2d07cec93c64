"""All engine processes of one agent, and what each is told."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from agent import control
from agent.config import MEBIBYTE, AgentConfig, engine_environ, privacy_environ
from agent.control import ToEngine
from agent.core.actions import StartEngine, StartShadow
from agent.core.events import EngineExited, Event
from agent.errors import DeviceError
from agent.shell.engines.cgroup import open_cgroups
from agent.shell.engines.child import Child
from agent.shell.engines.listeners import open_listeners
from agent.shell.engines.regions import Regions

COMMAND = (sys.executable, "-m", "agent.engine")
BACKGROUND_NICE = 10
PATIENCE = 4
"""How much longer a run may take at low priority: its wall time says little there."""
DRAIN_S = 10.0
DRAIN_GRACE_S = 3.0
OWN_BYTES = 64 * MEBIBYTE
"""What an engine takes before its first model, in its control group: interpreter, libraries."""
LONGEST_RUN_DIR = 80
"""A Unix socket's path has room for 107 bytes."""

# What the service manager says to the daemon alone.
_PRIVATE = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY",
    "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
)  # fmt: skip


class Engines:
    """Called from one thread; events come from others."""

    def __init__(
        self,
        config: AgentConfig,
        run_dir: Path,
        post: Callable[[Event], None],
        *,
        command: Sequence[str] = COMMAND,
        drain_s: tuple[float, float] = (DRAIN_S, DRAIN_GRACE_S),
    ) -> None:
        """Open the listening sockets; `run_dir` is for private ones.

        Raises:
            DeviceError: a socket cannot be had.
        """
        self._config = config.engine
        self._privacy = privacy_environ(config.privacy)
        self._post = post
        self._command = command
        self._drain_s = drain_s
        self._golden_s = config.telemetry.golden_s
        self._unusable: frozenset[str] = frozenset()
        self._children: dict[int, Child] = {}
        self._regions = Regions()
        self._cgroups = open_cgroups() if config.engine.memory_mb else None
        self._listeners = open_listeners(config.api)
        self._temporary: Path | None = None
        try:
            self._run_dir = self._private(run_dir)
        except OSError as error:
            self._listeners.close()
            raise DeviceError(
                f"run directory {run_dir}: expected one to write in, got {error.strerror}"
            ) from None

    def addresses(self) -> tuple[str, ...]:
        """Return where apps reach the models: http://HOST:PORT, unix:/PATH."""
        return self._listeners.addresses()

    def leave_out(self, accelerators: Iterable[str]) -> None:
        """Start no engine with these: they do not work here, and may take an engine along."""
        self._unusable = frozenset(accelerators)

    def pids(self) -> dict[int, int]:
        """Return generation -> process id of those that did not end yet."""
        ended = [n for n, child in self._children.items() if not child.running]
        for number in ended:
            del self._children[number]
            if self._cgroups is not None:
                self._cgroups.remove(number)
        return {n: child.pid for n, child in self._children.items()}

    def start(self, order: StartEngine) -> None:
        """Start a generation; EngineReady, EngineFailed and in any case EngineExited follow."""
        child = Child(order.generation, self._post, self._regions)
        load = control.Load(
            models=list(order.models),
            threads=self._config.threads,
            memory_bytes=self._config.memory_mb * MEBIBYTE,
            trial_bytes=order.memory_bytes,
            golden=order.golden,
            nice=max(BACKGROUND_NICE, self._config.nice) if order.background else 0,
            invoke_s=self._config.invoke_timeout_s * (PATIENCE if order.background else 1),
        )
        sockets = {
            name: sock.fileno()
            for name, sock in (("tcp", self._listeners.tcp), ("unix", self._listeners.unix))
            if sock is not None
        }
        try:
            child.start(
                self._command,
                sockets,
                self._environ(),
                load,
                timeout_s=self._config.start_timeout_s,
                nice=self._config.nice,
            )
        except OSError as error:
            detail = f"cannot start {self._command[0]}: {error.strerror}"
            self._post(EngineExited(order.generation, 127, "", detail))
            return
        self._children[order.generation] = child
        if self._cgroups is not None:
            room = self._config.memory_mb * MEBIBYTE + OWN_BYTES
            self._cgroups.limit(order.generation, child.pid, room)

    def serve(self, generation: int) -> None:
        """Let a ready generation accept."""
        child = self._children.get(generation)
        if child is not None:
            child.serve(self._config.invoke_timeout_s, self._golden_s)

    def shadow(self, order: StartShadow) -> None:
        """Let the champion copy its inputs to the challenger."""
        challenger = self._children.get(order.challenger)
        if challenger is None:
            return
        if not challenger.shadow_path:
            challenger.shadow_path = str(self._run_dir / f"shadow-{order.challenger}.sock")
            challenger.send(control.Host(challenger.shadow_path, self._config.shadow_cpu_percent))
        self._tell(
            order.champion,
            control.ShadowTo(order.model, challenger.shadow_path, order.release),
        )

    def stop_shadow(self, model: str, champion: int) -> None:
        """End the copying."""
        self._tell(champion, control.ShadowStop(model))

    def ask_scores(self, generation: int, windows: bool) -> None:
        """Ask for counts; ScoresCame follows."""
        self._tell(generation, control.Report(windows))

    def capture(self, generation: int, order: control.Capture) -> None:
        """Let a generation keep inputs, or keep no more."""
        self._tell(generation, order)

    def drain(self, generation: int, *, streams: bool = False) -> None:
        """Let a generation finish and exit; it is killed when that takes too long.

        With `streams` its clients may go on with those that are open, while there is time.
        """
        child = self._children.get(generation)
        if child is not None:
            deadline_s, grace_s = self._drain_s
            child.drain(deadline_s, grace_s, deadline_s if streams else 0.0)

    def kill(self, generation: int) -> None:
        """End a generation now."""
        child = self._children.get(generation)
        if child is not None:
            child.kill()

    def stop_all(self, deadline_s: float) -> None:
        """End every generation within about `deadline_s`, and close the sockets."""
        by = time.monotonic() + deadline_s
        for child in self._children.values():
            child.drain(*self._drain_s)
        for child in self._children.values():
            child.join(max(0.0, by - time.monotonic()))
            child.kill()
        for child in self._children.values():
            child.join(1.0)
        self.pids()  # and what is left of them
        self._listeners.close()
        self._regions.close()
        for path in self._run_dir.glob("shadow-*.sock"):
            path.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _tell(self, generation: int, message: ToEngine) -> None:
        child = self._children.get(generation)
        if child is not None:
            child.send(message)

    def _private(self, run_dir: Path) -> Path:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(str(run_dir)) > LONGEST_RUN_DIR:
            # Noted where the next agent looks, since one that is killed cleans up nothing.
            note = run_dir / "elsewhere"
            if note.is_symlink():
                shutil.rmtree(note.readlink(), ignore_errors=True)
                note.unlink()
            self._temporary = Path(tempfile.mkdtemp(prefix="farflung-"))
            note.symlink_to(self._temporary)
            return self._temporary
        for stale in run_dir.glob("shadow-*.sock"):
            stale.unlink()
        return run_dir

    def _environ(self) -> dict[str, str]:
        environ = {
            **os.environ,
            # One arena that gives memory back: models come and go in this process.
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "MALLOC_ARENA_MAX": "2",
            "OMP_NUM_THREADS": str(self._config.threads),
        }
        for private in _PRIVATE:
            environ.pop(private, None)
        return environ | self._privacy | engine_environ(self._config, self._unusable)
