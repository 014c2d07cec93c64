"""Inputs that an order asks for, written to files. Nothing imports this before there is an order.

Requests are answered first. What is to be kept is then copied and written by a thread of low
priority; what finds no room is left out and counted.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import control
from agent.engine import priority
from agent.engine.model import Model
from agent.engine.runtimes import DATATYPE_OF, Array
from agent.engine.tasks import Item
from agent.engine.tensors import to_bytes
from wire.ids import digest_of

MAX_SAMPLE_BYTES = 4 * 1024 * 1024
MAX_PARTS = 64
MAX_ROWS = 1024
MAX_WAITING = 16
"""Samples that wait to be written."""
MAX_HELD = 256
MAX_HELD_BYTES = 8 * 1024 * 1024
"""Of inputs that wait for a label which may show them misclassified."""
NICE = 10

_MEDIA = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"RIFF": "audio/wav",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Taken:
    """One input, copied: what the app sent, or the tensors."""

    parts: list[dict[str, Any]]
    data: bytes
    at: int
    classes: tuple[int, ...]
    tops: list[float]


class Capture:
    """One order, while its model serves. All but the writing is done on the engine's loop."""

    def __init__(self, order: control.Capture, model: Model, say: Say) -> None:
        self.request = order.request
        self._order = order
        self._model = model
        self._say = say
        self._directory = Path(order.directory)
        self._taken = 0
        self._waiting = 0
        self._held: OrderedDict[str, _Taken] = OrderedDict()
        """Request id -> an input that its label may show misclassified."""
        self._held_bytes = 0
        self._written: OrderedDict[str, str] = OrderedDict()
        """Request id -> sample, for labels that come later."""
        self._left_out: dict[str, int] = {}
        self._lock = threading.Lock()
        """Of what both the loop and the writer count."""
        self._writer = ThreadPoolExecutor(
            1, "capture", initializer=lambda: priority.lower(NICE, threads=1)
        )

    @property
    def gone(self) -> bool:
        """Whether the daemon keeps nothing of this order any more."""
        return not self._directory.is_dir()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be taken."""
        return self._taken >= self._order.count or time.time() >= self._order.until

    def answered(
        self,
        id: str,
        inputs: list[Array],
        items: tuple[Item, ...],
        classes: tuple[int, ...],
        tops: list[float],
    ) -> None:
        """Take an input that was answered, if it is one of those asked for."""
        if self.over:
            return
        match self._order.which:
            case "uncertain":
                if not tops:
                    self._leave_out("no scores")
                elif min(tops) * 100 < self._order.below_percent and self._drawn():
                    self._take(id, inputs, items, classes, tops)
            case "misclassified":
                if not classes:
                    self._leave_out("no classes")
                elif self._drawn():
                    self._hold(id, inputs, items, classes, tops)
            case _:
                if self._drawn():
                    self._take(id, inputs, items, classes, tops)

    def labelled(self, id: str, labels: tuple[int, ...]) -> None:
        """Join the true classes: to a sample that was taken, or to one that is misclassified."""
        held = self._held.pop(id, None)
        if held is not None:
            self._held_bytes -= len(held.data)
            if held.classes != labels and not self.over:
                self._write(id, held, labels)
        elif (name := self._written.pop(id, None)) is not None:
            self._submit(_put, self._directory / f"{name}.label", json.dumps(labels).encode())

    def stop(self) -> None:
        """Take nothing more; what waits is still written."""
        self._held.clear()
        self._writer.shutdown(wait=False)

    def _drawn(self) -> bool:
        return self._order.one_in <= 1 or secrets.randbelow(self._order.one_in) == 0

    def _hold(self, id: str, *input: Any) -> None:
        taken = self._copy(*input)
        if taken is None:
            return
        before = self._held.pop(id, None)
        self._held_bytes += len(taken.data) - (len(before.data) if before else 0)
        self._held[id] = taken
        while len(self._held) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
            self._held_bytes -= len(self._held.popitem(last=False)[1].data)

    def _take(self, id: str, *input: Any) -> None:
        taken = self._copy(*input)
        if taken is not None:
            self._write(id, taken, None)

    def _copy(
        self,
        inputs: list[Array],
        items: tuple[Item, ...],
        classes: tuple[int, ...],
        tops: list[float],
    ) -> _Taken | None:
        """Return a copy of an input, or None when it is too much of one."""
        # Before anything is copied, which takes time on the engine's loop.
        size = sum(len(i) for i in items if isinstance(i, bytes)) or (
            0 if items else sum(array.nbytes for array in inputs)
        )
        if size > MAX_SAMPLE_BYTES or max(len(items), len(inputs)) > MAX_PARTS:
            self._leave_out("too large")
            return None
        if max(len(classes), len(tops)) > MAX_ROWS:
            self._leave_out("too large")
            return None
        parts, data = _of_items(items) if items else self._of_tensors(inputs)
        if not data or len(data) > MAX_SAMPLE_BYTES:
            self._leave_out("too large" if data else "empty")
            return None
        return _Taken(parts, data, int(time.time()), classes, tops)

    def _of_tensors(self, inputs: list[Array]) -> tuple[list[dict[str, Any]], bytes]:
        stream = self._model.manifest.stream
        names = [stream.name] if stream else [spec.name for spec in self._model.manifest.inputs]
        bodies = [to_bytes(array) for array in inputs]
        parts = [
            {
                "name": name,
                "media": "tensor",
                "size_bytes": len(body),
                "datatype": DATATYPE_OF.get(array.dtype, "BYTES"),
                "shape": list(array.shape),
            }
            for name, array, body in zip(names, inputs, bodies, strict=True)
        ]
        return parts, b"".join(bodies)

    def _write(self, id: str, taken: _Taken, labels: tuple[int, ...] | None) -> None:
        if self._waiting >= MAX_WAITING:
            self._leave_out("too fast")
            return
        name, spec = f"s-{secrets.token_hex(8)}", self._model.spec
        head = {
            "sample": name,
            "request": self.request,
            "model": spec.model,
            "version": spec.version,
            "manifest": spec.manifest,
            "variant": spec.variant,
            "kind": self._order.which,
            "at": taken.at,
            "digest": digest_of(taken.data),
            "size_bytes": len(taken.data),
            "parts": taken.parts,
            "predicted": taken.classes,
            "scores": [max(0, min(1_000_000, round(top * 1e6))) for top in taken.tops],
        }
        if labels is not None:
            head["label"] = labels
        else:
            self._written[id] = name
        self._taken += 1
        with self._lock:
            self._waiting += 1
        line = json.dumps(head, separators=(",", ":")).encode() + b"\n"
        self._submit(self._put_sample, self._directory / f"{name}.sample", line, taken.data)

    def _submit(self, work: Callable[..., None], *given: Any) -> None:
        with contextlib.suppress(RuntimeError):  # stopped meanwhile
            self._writer.submit(work, *given)

    def _put_sample(self, path: Path, line: bytes, data: bytes) -> None:
        """Write a sample, on the writer's thread, unless there is no room for it."""
        try:
            lying = sum(each.stat().st_size for each in path.parent.parent.glob("*/*.sample"))
            if lying + len(line) + len(data) > self._order.max_bytes:
                self._leave_out("no room")
            else:
                _put(path, line + data)
        except OSError as error:
            # The order may be withdrawn just now, and its directory gone.
            self._leave_out("not written")
            self._say(f"capture {self.request}: {error.strerror or error}")
        with self._lock:
            self._waiting -= 1

    def _leave_out(self, why: str) -> None:
        """Count an input that is not kept."""
        with self._lock:
            count = self._left_out[why] = self._left_out.get(why, 0) + 1
            body = json.dumps(self._left_out).encode()
        # Each of the first, and then as often as it doubles: every one is a write.
        if count.bit_count() == 1:
            self._submit(_put, self._directory / "left_out", body)


def _of_items(items: tuple[Item, ...]) -> tuple[list[dict[str, Any]], bytes]:
    bodies = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    parts = [
        {"media": _media(item), "size_bytes": len(body)}
        for item, body in zip(items, bodies, strict=True)
    ]
    return parts, b"".join(bodies)


def _media(item: Item) -> str:
    """Return what an item seems to be."""
    if not isinstance(item, bytes):
        return "application/json"
    for begins, media in _MEDIA.items():
        if item.startswith(begins):
            return media
    try:
        item.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain"


def _put(path: Path, data: bytes) -> None:
    """Put a file in place at once, readable by nobody else; nothing where its place is gone."""
    new = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    new.rename(path)
