"""The open streams of one model: each with a memory of its own, few, and over when idle.

A stream has a life as in Triton's sequence extension: a request with `sequence_start` begins it,
those with the same `sequence_id` continue it, one with `sequence_end` is its last.
"""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent.engine.errors import BusyError, HttpError
from agent.engine.framing import Listener
from agent.engine.model import Model
from agent.engine.runtimes import Array
from agent.engine.sound import Pcm

MAX_OPEN = 32
"""Of one model."""

OPENING_MS = 20.0
"""What opening an interpreter is taken to last: too long for the event loop."""

MAX_REMEMBERED = 1024
"""Streams that are over and whose late requests are told why."""

FAILED = "a run failed, and with it what the model knew of the sound"

StreamId = int | str

_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Sequence:
    """What a request says of its stream."""

    id: StreamId
    start: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One request's part of its stream."""

    stream: "LiveStream"
    sequence: Sequence
    first: bool


class LiveStream:
    """One stream, from its first request to its end."""

    def __init__(self, model: Model, id: StreamId, *, restarted: bool) -> None:
        self.id = id
        self.number = next(_NUMBERS)
        """Unlike its id, no other stream's of this process."""
        self._restarted = restarted
        self.last_at = 0.0
        self.in_hand = 0
        """Requests that were taken and are not answered."""
        self.open = True
        self.failed = ""
        self._model = model
        assert model.framing is not None
        self._framing = model.framing
        self._pcm = Pcm(self._framing.stream.rate_hz)
        self._listener: Listener | None = None
        self._said_yes = False

    @property
    def visible(self) -> tuple[int, ...]:
        """The outputs that are no state."""
        return self._framing.visible

    def expected_ms(self, sound: Array, invoke_ms: float) -> float:
        """Return about how long hearing this takes, when one run takes `invoke_ms`."""
        if self._listener is None and self._framing.stream.state == "internal":
            return OPENING_MS
        samples = sound.size // 2 if sound.dtype == np.uint8 else sound.size
        return (1 + samples / self._framing.hop_samples) * invoke_ms

    def tell_restarted(self) -> bool:
        """Whether it goes on, without a memory, for a former generation's; True once."""
        told, self._restarted = self._restarted, False
        return told

    def hear(self, sound: Array) -> list[Array]:
        """Run what frames the sound completes; outputs as `Listener.hear` returns them.

        Sound is INT16 or FP32 samples, or UINT8: the bytes of PCM or of a WAV file.

        Raises:
            HttpError: a request before this one failed, or it is a WAV file of another kind.
            Exception: whatever the runtime raises; the stream is over then.
        """
        if self.failed:
            raise HttpError(410, f"sequence {str(self.id)[:80]!r} is over: {self.failed}")
        samples = self._pcm.samples(sound.tobytes()) if sound.dtype == np.uint8 else sound
        try:
            if self._listener is None:
                # Here, where runs take their turns: opening an interpreter takes time.
                self._listener = self._model.listener()
            return self._listener.hear(samples)
        except Exception:
            self.failed = FAILED
            raise

    def accepts(self, classes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the first and last frame of each yes that begins among these classes.

        One that goes on from the request before began there.
        """
        began: list[tuple[int, int]] = []
        first: int | None = None
        for place, yes in enumerate(classes):
            if yes and not self._said_yes:
                first = place
            elif not yes and first is not None:
                began.append((first, place - 1))
                first = None
            self._said_yes = bool(yes)
        return began if first is None else [*began, (first, len(classes) - 1)]

    def forget_if_over(self) -> None:
        """Let go of the memory when nothing will ask for it: others may still hold the stream."""
        if not self.open and not self.in_hand:
            self._listener = None


class Streams:
    """Finds the stream of each request. Not for two threads; `now` is monotonic."""

    def __init__(self, model: Model, now: Callable[[], float] = time.monotonic) -> None:
        assert model.framing is not None
        self._model = model
        self._now = now
        self._idle_s = model.framing.stream.idle_s
        self._open: dict[StreamId, LiveStream] = {}
        self._over: OrderedDict[StreamId, str] = OrderedDict()
        self._adopt_until = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def adopt(self) -> None:
        """Take unknown streams, for as long as one may be idle, for a former generation's."""
        self._adopt_until = self._now() + self._idle_s

    def take(self, sequence: Sequence) -> Part:
        """Find the stream of a request that is now to be run.

        `done`, `give_back` or `lose` has to follow.

        Raises:
            HttpError: the stream is over or was never begun.
            BusyError: too many are open.
        """
        self.expire()
        first = sequence.start or sequence.id not in self._open
        stream = self._begin(sequence) if sequence.start else self._find(sequence)
        stream.in_hand += 1
        stream.last_at = self._now()
        if sequence.end:
            # Now and not when it was run: what comes later does not belong to it.
            self._close(stream, "it has ended")
        return Part(stream, sequence, first)

    def done(self, part: Part) -> None:
        """Note that a request was run; one that failed ends its stream."""
        stream = part.stream
        stream.in_hand -= 1
        stream.last_at = self._now()
        if stream.failed:
            self._close(stream, stream.failed)
        stream.forget_if_over()

    def give_back(self, part: Part) -> None:
        """Undo `take`: the request was not run, and may be sent again."""
        stream = part.stream
        stream.in_hand -= 1
        if part.first:
            self._close(stream, "its first request found no room")
        elif part.sequence.end and stream.id not in self._open:
            del self._over[stream.id]
            self._open[stream.id] = stream
            stream.open = True

    def lose(self, part: Part) -> None:
        """End a stream of which a frame was perhaps not heard: what follows would be noise."""
        part.stream.failed = "a request was not run in time, and its sound is missing"
        self.done(part)

    def expire(self) -> None:
        """End the streams that were idle for too long."""
        until = self._now() - self._idle_s
        for stream in list(self._open.values()):
            if stream.last_at <= until and not stream.in_hand:
                self._close(stream, f"it was without a frame for {self._idle_s} s")

    async def sweep(self) -> None:
        """Free what streams hold that nobody asks for any more, for ever."""
        while True:
            await asyncio.sleep(self._idle_s)
            self.expire()

    def _begin(self, sequence: Sequence, *, restarted: bool = False) -> LiveStream:
        before = self._open.get(sequence.id)
        if before is not None:
            self._close(before, "it was begun again")
        if len(self._open) >= MAX_OPEN:
            raise BusyError(
                f"model {self._model.spec.model}: {MAX_OPEN} streams are open already; end one "
                f"(sequence_end), or wait until one was idle for {self._idle_s} s",
            )
        self._over.pop(sequence.id, None)
        stream = LiveStream(self._model, sequence.id, restarted=restarted)
        self._open[sequence.id] = stream
        return stream

    def _find(self, sequence: Sequence) -> LiveStream:
        stream = self._open.get(sequence.id)
        if stream is not None:
            return stream
        why = self._over.get(sequence.id)
        named = f"model {self._model.spec.model}: sequence {str(sequence.id)[:80]!r}"
        if why is not None:
            raise HttpError(410, f"{named} is over: {why}; begin again with sequence_start")
        if self._now() < self._adopt_until:
            return self._begin(sequence, restarted=True)
        raise HttpError(404, f"{named}: expected sequence_start in its first request")

    def _close(self, stream: LiveStream, why: str) -> None:
        stream.open = False
        stream.forget_if_over()
        if self._open.get(stream.id) is not stream:
            return
        del self._open[stream.id]
        self._over[stream.id] = why
        self._over.move_to_end(stream.id)
        if len(self._over) > MAX_REMEMBERED:
            self._over.popitem(last=False)
