"""One pipeline at work: take a frame, ask, hand the answer on, let go of the frame."""

import json
import logging
import threading
import time
from typing import Protocol

from agent.pipelines import plan as plans
from agent.pipelines.buffer import Backoff, Buffer, Frame, Stopping
from agent.pipelines.command import CommandSink, CommandSource
from agent.pipelines.counts import Counts
from agent.pipelines.directory import DirectorySource
from agent.pipelines.engine import Answered, Connection, Later, Model, Refused
from agent.pipelines.lines import FileSink

log = logging.getLogger("pipelines")

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 5.0
ATTEMPTS = 2
"""At a frame that the engine fails at, or ends with: it may be the cause, and a release that
crashes three times is sent back."""
BUSY = "model busy"
FAULT_FIRST_S = 1.0
FAULT_LAST_S = 60.0


class Source(Protocol):
    """Where frames come from."""

    def next(self) -> Frame:
        """Wait for one.

        Raises:
            Stopping: there will be none.
        """
        ...

    def settle(self, frame: Frame, *, good: bool) -> None:
        """Let go of one: the sink has its answer, or (not `good`) what was wrong with it."""
        ...

    def close(self) -> None:
        """Leave nothing running."""
        ...


class Sink(Protocol):
    """Where answers go."""

    def put(self, line: bytes) -> None:
        """Hand a line over, waiting until it is taken.

        Raises:
            Stopping: this process ends first.
        """
        ...

    def close(self) -> None:
        """Leave nothing running."""
        ...


class Pipeline:
    """A thread that never ends before it is told to."""

    def __init__(self, plan: plans.PipelinePlan, whole: plans.Plan, stop: threading.Event) -> None:
        self.name = plan.name
        self.counts = Counts()
        self._plan = plan
        self._state_dir = whole.state_dir
        self._stop = stop
        self._connection = Connection(whole.api)
        self._model = Model(self._connection, plan.model, plan.input)
        self._next_at = 0.0
        self._told = ""
        self._thread = threading.Thread(target=self._run, name=plan.name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; False when it takes longer."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def cut(self) -> None:
        """End the question under way."""
        self._connection.cut()

    def _run(self) -> None:
        backoff = Backoff(FAULT_FIRST_S, FAULT_LAST_S)
        while not self._stop.is_set():
            try:
                self._work()
            except Stopping:
                break
            except Exception as error:  # the others go on, and this one tries again
                log.error("pipeline %s: unexpected %r; beginning anew", self.name, error)
                self._stop.wait(backoff.next())
        self._connection.close()

    def _work(self) -> None:
        """Work until the end.

        Raises:
            Stopping: this is the end.
        """
        sink = self._make_sink()
        try:
            source = self._make_source()
            try:
                while True:
                    self._pace()
                    self._serve(source, source.next(), sink)
            finally:
                source.close()
        finally:
            sink.close()

    def _pace(self) -> None:
        """Wait for the next frame's turn, before it is taken: a newer one may come meanwhile."""
        if self._plan.max_per_s:
            now = time.monotonic()
            if self._stop.wait(max(0.0, self._next_at - now)):
                raise Stopping
            self._next_at = max(now, self._next_at) + 1 / self._plan.max_per_s

    def _serve(self, source: Source, frame: Frame, sink: Sink) -> None:
        outcome = self._ask(frame)
        if isinstance(outcome, Later):
            self.counts.dropped(BUSY)
            return
        sink.put(self._line(frame, outcome))
        if isinstance(outcome, Answered):
            self.counts.answered()
        else:
            self.counts.failed(outcome.reason)
            self._tell(outcome.text, f"{frame.source}: {outcome.text}")
        source.settle(frame, good=isinstance(outcome, Answered))

    def _ask(self, frame: Frame) -> Answered | Refused | Later:
        """Ask until there is an answer; Later: the model is busy, and this frame is not to wait.

        Raises:
            Stopping: this process ends first.
        """
        backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        attempts = 0
        while not self._stop.is_set():
            outcome = self._model.ask(frame)
            if not isinstance(outcome, Later):
                return outcome
            if outcome.busy and self._plan.when_busy == "drop":
                return outcome
            attempts += outcome.ours
            if attempts >= ATTEMPTS:
                return Refused("engine failed", f"given up after {attempts} times: {outcome.text}")
            if not outcome.busy:
                self._tell(outcome.text, f"{outcome.text}; trying again")
            self.counts.retried()
            self._stop.wait(backoff.next())
        raise Stopping

    def _line(self, frame: Frame, outcome: Answered | Refused) -> bytes:
        """Return the answer with where it comes from, on one line."""
        head = {"pipeline": self.name, "source": frame.source, "at": round(frame.at, 3)}
        if isinstance(outcome, Refused):
            return json.dumps({**head, "id": frame.id, "error": outcome.text}).encode() + b"\n"
        # The engine's own words, unread: its JSON is an object on one line.
        return json.dumps(head).encode()[:-1] + b", " + outcome.body[1:].strip() + b"\n"

    def _tell(self, why: str, text: str) -> None:
        # The same with other figures is the same: a flood of it is one line.
        kind = "".join(c for c in why if not c.isdigit())
        if kind != self._told:
            log.warning("pipeline %s: %s", self.name, text[:500])
        self._told = kind

    # ---- the ends

    def _make_source(self) -> Source:
        name, source = self.name, self._plan.source
        if isinstance(source, plans.DirectorySource):
            return DirectorySource(name, source, self._state_dir, self.counts, self._stop)
        buffer = Buffer(self._plan.queue, self._plan.when_full, self.counts, self._stop)
        if isinstance(source, plans.CommandSource):
            return CommandSource(name, source, buffer, self.counts)
        from agent.pipelines.mqtt import MqttSource

        return MqttSource(name, source, buffer)

    def _make_sink(self) -> Sink:
        name, sink = self.name, self._plan.sink
        if isinstance(sink, plans.FileSink):
            return FileSink(name, sink, self._stop)
        if isinstance(sink, plans.CommandSink):
            return CommandSink(name, sink.command, self.counts, self._stop)
        from agent.pipelines.mqtt import MqttSink

        return MqttSink(name, sink, self._stop)
