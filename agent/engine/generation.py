"""One generation of loaded models: obeys the daemon, tries, serves, shadows, drains."""

import asyncio
import gc
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from agent import allocator, control
from agent.control import (
    Capture,
    Drain,
    Failed,
    Host,
    Hung,
    Load,
    Note,
    Ready,
    Report,
    Scores,
    Serve,
    ShadowStop,
    ShadowTo,
)
from agent.engine import memory, priority
from agent.engine.blame import Blame
from agent.engine.http import HttpServer
from agent.engine.model import read_manifest, variant_of
from agent.engine.rehearsal import Rehearsals
from agent.engine.runtimes import CannotRunError, cannot_run, ensure_imported
from agent.engine.served import Served
from agent.engine.serving import Api
from agent.engine.shadow import ShadowHost
from agent.engine.shared_memory import Regions
from agent.engine.trial import Passed, try_model
from agent.engine.watchdog import Watchdog

ORPHANED = 3
"""Exit code when the daemon is gone."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a trial came to: models that passed, or the first that did not."""

    passed: list[Passed]
    failed: Failed | None


class Generation:
    """The process's one loop: lines from the daemon in, lines to it out."""

    def __init__(
        self,
        control_socket: socket.socket,
        listeners: list[socket.socket],
        blame: Blame,
        regions: Regions,
    ) -> None:
        self._socket = control_socket
        self._listeners = listeners
        self._blame = blame
        self._watchdog = Watchdog(blame)
        self._served: dict[str, Served] = {}
        self._regions = regions
        self._http = HttpServer(Api({}, regions).handle)
        self._writer: asyncio.StreamWriter
        self._finished: asyncio.Future[int]
        self._exit_code = ORPHANED
        self._load = Load([])
        self._shadow_host: ShadowHost | None = None
        self._badness: int | None = None
        """To the kernel when memory runs out, as it was before the trial."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._rehearsing: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Obey until the end; return the exit code."""
        loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        # A terminal's ^C goes to the whole process group; the daemon decides what ends when.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGTERM, lambda: self._start(self._drain(Drain())))
        self._exit_with_daemon()
        self._regions.connect()
        reader, self._writer = await asyncio.open_connection(
            sock=self._socket, limit=control.MAX_LINE_BYTES
        )
        self._start(self._obey_all(reader))
        code = await self._finished
        await self._writer.drain()
        self._writer.close()
        await self._writer.wait_closed()
        return code

    async def _obey_all(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                try:
                    await self._obey(control.read_to_engine(line))
                except ValueError as error:
                    self._say(f"not obeyed: {error}")
        finally:
            # Whatever ended this, an engine that hears nothing more must not go on.
            self._finish(ORPHANED)

    async def _obey(self, message: control.ToEngine) -> None:
        match message:
            case Load():
                self._load = message
                if message.nice > 0:  # a champion serves beside it
                    self._badness = memory.go_first()
                self._watch(message.invoke_s)
                _start_trial(message, self._blame, self._tried)
            case Serve(invoke_s, golden_s):
                self._watchdog.limit_s = invoke_s
                self._let_go()
                for one in self._served.values():
                    one.begin()
                    for note in one.board.notes:
                        self._say(note)
                self._http.listen(self._listeners)
                if golden_s > 0:
                    rehearsals = Rehearsals(self._served.values(), golden_s, self._say)
                    self._rehearsing = asyncio.create_task(rehearsals.run())
            case Host():
                await self._host(message)
            case ShadowTo(model, path, challenger):
                served = self._served.get(model)
                if served is None:
                    self._say(f"shadow of {model}: no such model in this generation")
                else:
                    served.start_shadow(path, challenger, self._say)
            case ShadowStop(model):
                if model in self._served:
                    self._served[model].stop_shadow()
            case Capture(model=model):
                if model in self._served:
                    self._served[model].capture(message, self._say)
            case Report(windows):
                self._report(windows=windows, final=False)
            case Drain():
                self._start(self._drain(message))

    def _watch(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()

        def tell(model: str) -> None:
            limit_s = self._watchdog.limit_s
            detail = f"a run was stopped after {limit_s:g} s without an answer"
            loop.call_soon_threadsafe(self._send, Hung(model, detail))

        self._blame.on_interrupted = tell
        self._watchdog.limit_s = limit_s
        self._watchdog.start()

    def _tried(self, outcome: _Outcome) -> None:
        """Take up what the trial came to."""
        if outcome.failed is not None:
            self._finish(1)
            self._send(outcome.failed)
            return
        now = int(time.time())
        self._served = {passed.model.spec.model: Served(passed, now) for passed in outcome.passed}
        self._http.handler = Api(self._served, self._regions).handle
        # Everything loaded stays until the end: nothing for the collector to walk through.
        gc.collect()
        gc.freeze()
        allocator.give_back()
        allocator.reuse()
        self._send(Ready([passed.loaded for passed in outcome.passed]))

    async def _host(self, order: Host) -> None:
        lanes = {name: one.lane for name, one in self._served.items()}
        self._shadow_host = ShadowHost(
            lanes, self._load.nice, self._load.threads, order.cpu_percent / 100
        )
        try:
            await self._shadow_host.listen(order.path)
        except OSError as error:
            self._say(f"shadow host: {order.path}: {error.strerror or error}")

    def _let_go(self) -> None:
        """End what kept a challenger from disturbing the champion, whose place it now takes."""
        if self._shadow_host is not None:
            self._shadow_host.close()
        priority.restore()
        memory.unlimit(self._load.memory_bytes)
        if self._badness is not None:
            memory.go_no_sooner(self._badness)

    def _report(self, *, windows: bool, final: bool) -> None:
        now = int(time.time())
        comparisons = [one for served in self._served.values() for one in served.comparisons()]
        tallies = [comparison.tally() for comparison in comparisons]
        taken = (
            [
                window
                for served in self._served.values()
                for window in served.take_windows(now, last=final)
            ]
            if windows
            else []
        )
        self._send(Scores(taken, tallies, final))

    async def _drain(self, order: Drain) -> None:
        if self._http.draining:
            return
        if self._rehearsing is not None:
            self._rehearsing.cancel()
        await self._http.drain(order.deadline_s, order.streams_s)
        for served in self._served.values():
            served.stop_shadow()
        self._finish(0)
        self._report(windows=True, final=True)

    def _say(self, text: str) -> None:
        self._send(Note(text))

    def _send(self, message: control.FromEngine) -> None:
        self._writer.write(control.write(message))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _finish(self, code: int) -> None:
        """Let `run` end. Before the last word: whoever hears that may hang up at once."""
        if not self._finished.done():
            self._exit_code = code
            self._finished.set_result(code)

    def _exit_with_daemon(self) -> None:
        """End the process when the daemon's end of the control socket closes.

        In a thread, since a model that never returns may hold up the event loop.
        """

        def wait() -> None:
            poll = select.poll()
            poll.register(self._socket.fileno(), 0)  # hang-up is told without being asked for
            poll.poll()
            # A daemon that has heard our last word may close before we are gone.
            os._exit(self._exit_code)

        threading.Thread(target=wait, name="daemon-watch", daemon=True).start()


def _start_trial(load: Load, blame: Blame, tried: Callable[[_Outcome], None]) -> None:
    """Try the models in a thread of their own, so that the daemon is heard meanwhile."""
    loop = asyncio.get_running_loop()

    def work() -> None:
        outcome = _try_all(load, blame)
        loop.call_soon_threadsafe(tried, outcome)

    threading.Thread(target=work, name="trial", daemon=True).start()


def _try_all(load: Load, blame: Blame) -> _Outcome:
    priority.lower(load.nice, load.threads)
    passed: list[Passed] = []
    model = load.models[0].model if load.models else ""
    try:
        for spec in load.models:
            model = spec.model
            manifest = read_manifest(spec)
            ensure_imported(variant_of(manifest, spec).format)
        # Only now: the libraries themselves take much address space and little memory.
        memory.limit(load.memory_bytes or load.trial_bytes)
        for spec in load.models:
            model = spec.model
            passed.append(try_model(spec, load.threads, blame, golden=load.golden))
    except CannotRunError as failure:
        return _Outcome([], Failed(model, failure.reason, failure.detail))
    except Exception as error:
        unforeseen = cannot_run(error)
        return _Outcome([], Failed(model, unforeseen.reason, unforeseen.detail))
    return _Outcome(passed, None)
