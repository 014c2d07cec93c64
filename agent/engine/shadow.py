"""Copies of live inputs to a challenger in another process, and its answers back.

A frame is two big-endian u32, the lengths of a JSON header and of the payload, then both. A
request's header is {"model", "tensors": [{"shape", "bytes"}]}, its payload the tensors in the
manifest's order as `tensors.to_bytes` makes them; or {"model", "items": [bytes]}, the payload then
being pictures, texts or rows as an app sent them; or, with one tensor of sound, {"model",
"tensors", "stream": {"id", "start", "end", "datatype"}}. The answer's header is {"classes": [...]},
with "boxes" too, one list a picture, where pictures were sent to a detection, {"tensors": [...]}
where the task has no classes, or {"error": "..."}; and in any case "cost", the rows that were run
so far and the microseconds of processor time they took, and "rest", the seconds for which the
champion is to send nothing, so that the challenger keeps to its share of a core.
"""

import asyncio
import contextlib
import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine import priority
from agent.engine.comparison import Boxes, Comparison, Outcome
from agent.engine.lane import Lane
from agent.engine.meter import Metered, Ration
from agent.engine.model import Model
from agent.engine.runtimes import DATATYPE_OF, Array
from agent.engine.streams import LiveStream, Part, Streams
from agent.engine.streams import Sequence as StreamSequence
from agent.engine.tasks import Item, Read
from agent.engine.tasks.detection import Box, boxes_of
from agent.engine.tensors import check_shape, from_bytes, to_bytes
from agent.engine.values import numbers_of
from wire.manifest import TensorSpec

MAX_WAITING = 64
MAX_WAITING_BYTES = 32 * 1024 * 1024
ANSWER_S = 10.0
FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 5.0
LONGEST_REST_S = 60.0
RELATIVE_TOLERANCE = 1e-3
MAX_HEADER_BYTES = 1024 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

_LENGTHS = struct.Struct(">II")
# What reading a peer's header and tensors may raise; FrameError and TensorError are ValueErrors.
_MALFORMED = (KeyError, TypeError, ValueError)

Say = Callable[[str], None]


class FrameError(ValueError):
    """What came is not a frame of ours; the message says why."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """An input on its way to the challenger, with the champion's answer."""

    inputs: list[Array]
    outputs: list[Array]
    outcome: Outcome
    items: tuple[bytes, ...] = ()
    """What the inputs were read from; the challenger may read it in its own way."""
    part: Part | None = None
    """Of a stream; the only input is sound then."""

    @property
    def rows(self) -> int:
        """How many pairs this can make; sound that completes no frame makes none."""
        if self.part is not None and not self.outputs[self.part.stream.visible[0]].size:
            return 0
        return self.outcome.rows

    @property
    def size_bytes(self) -> int:
        arrays = sum(array.nbytes for array in (*self.inputs, *self.outputs))
        return arrays + sum(map(len, self.items))

    def pack(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return what the challenger is to be sent."""
        if self.items:
            return {"items": [len(item) for item in self.items]}, list(self.items)
        header, payload = _pack(self.inputs)
        if self.part is not None:
            header["stream"] = {
                "id": self.part.stream.number,
                "start": self.part.first,
                "end": self.part.sequence.end,
                "datatype": DATATYPE_OF[self.inputs[0].dtype],
            }
        return header, payload


class ShadowFeed:
    """Feeds one comparison. Never waits for room: what finds none is dropped and counted."""

    def __init__(self, model: Model, path: str, comparison: Comparison, say: Say) -> None:
        self.comparison = comparison
        self._model = model
        self._path = path
        self._say = say
        self._followed: set[LiveStream] = set()
        """Streams of which every frame was copied so far."""
        self._waiting: deque[_Copy] = deque()
        self._waiting_bytes = 0
        self._in_hand: _Copy | None = None
        self._filled = asyncio.Event()
        self._silent = False
        self._retry_s = FIRST_RETRY_S
        self._task = asyncio.create_task(self._feed())

    def offer(
        self,
        inputs: list[Array],
        outputs: list[Array],
        outcome: Outcome,
        items: Sequence[Item] = (),
    ) -> None:
        """Queue a copy of a request that the champion has answered."""
        sent = tuple(
            item if isinstance(item, bytes) else json.dumps(item).encode() for item in items
        )
        if not self._queue(_Copy(inputs, outputs, outcome, sent)):
            self.comparison.counts.dropped += outcome.rows

    def offer_part(self, part: Part, sound: Array, outputs: list[Array], outcome: Outcome) -> None:
        """Queue a copy of a request of a stream: each with all before it, or none from there on.

        A model that misses a frame hears another sound, and its answers are no evidence. So a
        stream that began before this comparison, or that finds no room, is left out.
        """
        copy = _Copy([sound], outputs, outcome, part=part)
        if part.first:
            self._followed = {stream for stream in self._followed if stream.open}
            self._followed.add(part.stream)
        if part.stream not in self._followed:
            self.comparison.counts.dropped += copy.rows
        elif not self._queue(copy):
            self.comparison.counts.dropped += copy.rows
            self._leave_out({part.stream})

    def _queue(self, copy: _Copy) -> bool:
        size = copy.size_bytes
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            return False
        self._waiting.append(copy)
        self._waiting_bytes += size
        self._filled.set()
        return True

    def _leave_out(self, streams: set[LiveStream]) -> None:
        """Copy nothing more of these streams, nor what of them waits."""
        self._followed -= streams
        kept: deque[_Copy] = deque()
        out: list[_Copy] = []
        for copy in self._waiting:
            left = copy.part is not None and copy.part.stream in streams
            (out if left else kept).append(copy)
        self.comparison.counts.dropped += sum(copy.rows for copy in out)
        self._waiting_bytes -= sum(copy.size_bytes for copy in out)
        self._waiting = kept

    def stop(self) -> None:
        """End the copying; what still waits counts as dropped."""
        self._task.cancel()
        rest = [*self._waiting, *([self._in_hand] if self._in_hand else [])]
        self.comparison.counts.dropped += sum(copy.rows for copy in rest)
        self._waiting.clear()
        self._in_hand = None
        self.comparison.ended = True

    async def _feed(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                await self._wait_for_challenger(error)
                continue
            try:
                await self._exchange(reader, writer)
            except (OSError, EOFError, TimeoutError, *_MALFORMED) as error:
                self._lost_one()
                await self._wait_for_challenger(error)
            finally:
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            while not self._waiting:
                self._filled.clear()
                await self._filled.wait()
            self._in_hand = copy = self._waiting.popleft()
            self._waiting_bytes -= copy.size_bytes
            header, payload = copy.pack()
            async with asyncio.timeout(ANSWER_S):
                _write(writer, {"model": self._model.spec.model, **header}, payload)
                await writer.drain()
                answer, raw = await _read(reader)
            self._take(copy, answer, raw)
            self._in_hand = None
            self._answers_again()
            await asyncio.sleep(_rest_s(answer))

    def _take(self, copy: _Copy, answer: dict[str, Any], raw: memoryview) -> None:
        self.comparison.challenger_cost = _cost(answer)
        if "error" in answer:
            self.comparison.counts.errors += copy.rows
            if copy.part is not None:
                self._leave_out({copy.part.stream})
        elif copy.rows == 0:
            return
        elif copy.outcome.classes:
            self.comparison.answered(copy.outcome, _classes(answer), _boxes(answer))
        else:
            specs, ours = self._model.manifest.outputs, copy.outputs
            if copy.part is not None:
                visible = copy.part.stream.visible
                specs = tuple(specs[place] for place in visible)
                ours = [ours[place] for place in visible]
            theirs = _unpack(specs, answer, raw)
            tolerance = self._model.variant.golden_tolerance
            self.comparison.answered_alike(
                copy.outcome, alike(ours, theirs, tolerance), numbers_of(theirs[0])
            )

    def _lost_one(self) -> None:
        if self._in_hand is not None:
            self.comparison.counts.errors += self._in_hand.rows
            self._in_hand = None
        # What the challenger knew of streams is gone with the connection.
        waiting = {copy.part.stream for copy in self._waiting if copy.part is not None}
        self._leave_out(self._followed | waiting)

    async def _wait_for_challenger(self, error: Exception) -> None:
        # A challenger that is told to listen just now needs a moment: no word of that.
        if self._retry_s > 8 * FIRST_RETRY_S and not self._silent:
            self._silent = True
            why = str(error) or type(error).__name__
            self._say(f"shadow of {self._model.spec.model}: the challenger is silent: {why}")
        await asyncio.sleep(self._retry_s)
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)

    def _answers_again(self) -> None:
        self._retry_s = FIRST_RETRY_S
        if self._silent:
            self._silent = False
            self._say(f"shadow of {self._model.spec.model}: the challenger answers again")


class ShadowHost:
    """Answers copies of a champion's inputs on a Unix socket that only our user may open."""

    def __init__(self, lanes: dict[str, Lane], nice: int, threads: int, share: float) -> None:
        """Prepare to answer in one thread of the given niceness, with `share` of one core."""
        self._lanes = lanes
        self._meters = {name: Metered(lane.model.runtime) for name, lane in lanes.items()}
        for name, lane in lanes.items():
            lane.model.runtime = self._meters[name]
        # A thread of its own: a niceness once raised stays, and this process may come to serve.
        self._worker = ThreadPoolExecutor(1, "shadow", priority.lower, (nice, threads))
        self._ration = Ration(share, time.monotonic(), time.process_time())
        self._server: asyncio.Server | None = None

    async def listen(self, path: str) -> None:
        """Bind and answer from now on.

        Raises:
            OSError: the path cannot be bound.
        """
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._answer_all, path)
        finally:
            os.umask(before)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
        self._worker.shutdown(wait=False, cancel_futures=True)
        for name, lane in self._lanes.items():
            lane.model.runtime = self._meters[name].inner

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams: dict[str, Streams] = {}
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError, *_MALFORMED):
            while True:
                header, raw = await _read(reader)
                try:
                    if "stream" in header:
                        answer, payload = await self._answer_part(header, raw, streams)
                    else:
                        answer, payload = await self._answer(header, raw)
                except Exception as error:
                    answer, payload = {"error": f"{type(error).__name__}: {error}"[:400]}, []
                answer |= self._bill(str(header.get("model")))
                _write(writer, answer, payload)
                await writer.drain()
        writer.close()

    def _bill(self, model: str) -> dict[str, Any]:
        """Return what all runs took so far, and how long the champion is to send nothing."""
        meter = self._meters.get(model)
        cost = [meter.rows, meter.cpu_us] if meter is not None else [0, 0]
        return {"cost": cost, "rest": self._ration.rest_s(time.monotonic(), time.process_time())}

    async def _answer(
        self, header: dict[str, Any], raw: memoryview
    ) -> tuple[dict[str, Any], list[bytes]]:
        lane = self._lanes[str(header.get("model"))]
        specs = lane.model.manifest.inputs
        if "items" in header:
            read = await _read_items(lane.model, header["items"], raw)
        else:
            read = Read(_unpack(specs, header, raw))
        for spec, array in zip(specs, read.inputs, strict=True):
            check_shape(spec, list(array.shape))
        loop = asyncio.get_running_loop()
        outputs = await loop.run_in_executor(self._worker, lane.model.run, read.inputs)
        if lane.model.classes is None:
            return _pack(outputs)
        told: dict[str, Any] = {"classes": lane.model.classify(outputs)[0]}
        if lane.model.detector is not None and read.frames:
            found = await loop.run_in_executor(
                self._worker, lane.model.detector.tell, outputs, read.frames
            )
            told["boxes"] = boxes_of(found)
        return told, []

    async def _answer_part(
        self, header: dict[str, Any], raw: memoryview, streams: dict[str, Streams]
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Answer a part of a stream; `streams` are those of this connection, by model."""
        model = self._lanes[str(header.get("model"))].model
        if model.framing is None:
            raise FrameError("expected tensors, since the release does not listen")
        said = header["stream"]
        spec = TensorSpec(name="sound", datatype=said["datatype"], shape=(-1,))
        [sound] = _unpack((spec,), header, raw)
        table = streams.setdefault(model.spec.model, Streams(model))
        part = table.take(StreamSequence(int(said["id"]), said["start"], said["end"]))
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._worker, part.stream.hear, sound)
        finally:
            table.done(part)
        if model.classes is None:
            return _pack([outputs[place] for place in model.framing.visible])
        return {"classes": model.classify(outputs)[0]}, []


async def _read_items(model: Model, sizes: list[int], raw: memoryview) -> Read:
    if model.desk is None:
        raise FrameError("expected tensors, since the release takes nothing else")
    items: list[bytes] = []
    at = 0
    for size in sizes:
        items.append(bytes(raw[at : at + size]))
        at += size
    return await model.desk.queue(items)


def alike(ours: list[Array], theirs: list[Array], tolerance: float) -> bool:
    """Whether two answers differ by no more than `tolerance` or a thousandth of ours."""
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            return False
        if mine.dtype.kind in "OSU":
            if (mine != other).any():
                return False
            continue
        real = mine.astype(np.float64)
        gap = np.abs(real - other.astype(np.float64)).max(initial=0.0)
        if not gap <= max(tolerance, RELATIVE_TOLERANCE * float(np.abs(real).max(initial=0.0))):
            return False
    return True


def _rest_s(answer: dict[str, Any]) -> float:
    rest = answer.get("rest", 0.0)
    if not isinstance(rest, int | float) or not rest >= 0:
        raise FrameError(f"expected seconds to rest, got {str(rest)[:40]}")
    return min(rest, LONGEST_REST_S)


def _cost(answer: dict[str, Any]) -> tuple[int, int]:
    cost = answer.get("cost", [0, 0])
    if not (isinstance(cost, list) and len(cost) == 2 and all(type(n) is int for n in cost)):
        raise FrameError(f"expected rows and microseconds, got {str(cost)[:40]}")
    return cost[0], cost[1]


def _classes(answer: dict[str, Any]) -> tuple[int, ...]:
    classes = answer.get("classes")
    if not isinstance(classes, list) or not all(type(item) is int for item in classes):
        raise FrameError(f"expected classes, got {list(answer)}")
    return tuple(classes)


def _boxes(answer: dict[str, Any]) -> Boxes | None:
    pictures = answer.get("boxes")
    if pictures is None:
        return None
    # TypeError and ValueError: not of this form, which ends the connection.
    return [[_box(*box) for box in picture] for picture in pictures]


def _box(number: int, left: float, top: float, right: float, bottom: float) -> Box:
    return int(number), float(left), float(top), float(right), float(bottom)


def _pack(arrays: list[Array]) -> tuple[dict[str, Any], list[bytes]]:
    payload = [to_bytes(array) for array in arrays]
    tensors = [
        {"shape": array.shape, "bytes": len(data)}
        for array, data in zip(arrays, payload, strict=True)
    ]
    return {"tensors": tensors}, payload


def _unpack(specs: tuple[TensorSpec, ...], header: dict[str, Any], raw: memoryview) -> list[Array]:
    arrays, at = [], 0
    for spec, tensor in zip(specs, header["tensors"], strict=True):
        end = at + tensor["bytes"]
        arrays.append(from_bytes(spec, tuple(tensor["shape"]), raw[at:end]))
        at = end
    return arrays


def _write(writer: asyncio.StreamWriter, header: dict[str, Any], payload: list[bytes]) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    lengths = _LENGTHS.pack(len(text), sum(map(len, payload)))
    writer.writelines([lengths, text, *payload])


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], memoryview]:
    header_bytes, payload_bytes = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise FrameError(f"expected a shorter frame, got {header_bytes} + {payload_bytes} bytes")
    header = await reader.readexactly(header_bytes)
    payload = await reader.readexactly(payload_bytes)
    try:
        fields = json.loads(header)
    except ValueError as error:
        raise FrameError(f"expected JSON, got {header[:40]!r}") from error
    if not isinstance(fields, dict):
        raise FrameError(f"expected an object, got {header[:40]!r}")
    return fields, memoryview(payload)
