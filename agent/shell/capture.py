"""What was captured: orders and samples on the disk, and their way to the controller.

    capture/REQUEST/order.json    what is asked for, and how it fares
    capture/REQUEST/NAME.sample   a line of JSON, the head, and the bytes behind it: by the engine
    capture/REQUEST/NAME.label    true classes that came later: by the engine
    capture/REQUEST/left_out      inputs that would have done, by reason: by the engine
    capture/REQUEST/NAME.head     what is kept of a sample that the controller has, for its label

Nothing else imports this, so that a device which captures nothing never loads it.
"""

import base64
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import control
from wire.codec import DecodeError, decode, encode, first_error
from wire.command import CaptureOrder
from wire.ids import check_id
from wire.sample import (
    MAX_SAMPLE_BYTES,
    PIECE_BYTES,
    CaptureReport,
    CaptureState,
    Sample,
    SampleAck,
    SampleHead,
)
from wire.schema import ValidationError
from wire.topics import Kind

log = logging.getLogger(__name__)

DAY_S = 86_400
AHEAD = 4
"""Pieces on their way that were not acknowledged."""
FIRST_RESEND_S = 10.0
LAST_RESEND_S = 300.0
MAX_HEAD_BYTES = 64 * 1024
MAX_ORDERS = 16
HEAD_ROOM = 4096
"""Of a message, for what stands beside a piece."""

Message = tuple[Kind, bytes]


@dataclass(slots=True)
class _Order:
    """One order and how it fares; `save` keeps it."""

    request: str
    asked: CaptureOrder
    directory: Path
    state: CaptureState = "capturing"
    captured: int = 0
    deleted: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    reported: bool = False
    seen: set[str] = field(default_factory=set)
    """Samples that were counted."""

    def save(self) -> None:
        body = {
            "order": self.asked.model_dump(exclude_none=True),
            "state": self.state,
            "captured": self.captured,
            "deleted": self.deleted,
            "left_out": self.left_out,
            "reported": self.reported,
            "seen": sorted(self.seen),
        }
        _write(self.directory / "order.json", json.dumps(body).encode())

    @classmethod
    def load(cls, directory: Path) -> "_Order":
        """Read what `save` wrote.

        Raises:
            ValueError: it was not.
            OSError: it is not there.
        """
        try:
            body = json.loads((directory / "order.json").read_bytes())
            asked = CaptureOrder.model_validate(body.pop("order"))
            seen = set(body.pop("seen"))
            return cls(check_id(directory.name), asked, directory, seen=seen, **body)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"order: {error!r}") from error


@dataclass(slots=True)
class _Sending:
    """The sample that is on its way."""

    request: str
    name: str
    head: SampleHead
    path: Path
    """Of its bytes; a `.head` when only the label is news."""
    begins: int
    """Where in the file the bytes begin."""
    have: int = 0
    """What the controller has."""
    sent: int = 0

    def piece(self, size: int) -> tuple[int, bytes]:
        """Return where the next piece begins, and the piece."""
        offset = self.sent
        with self.path.open("rb") as file:
            file.seek(self.begins + offset)
            piece = file.read(min(size, self.head.size_bytes - offset))
        self.sent += len(piece)
        return offset, piece


class Captures:
    """The orders of one device. Called from one thread."""

    def __init__(
        self,
        directory: Path,
        device: str,
        consents: Collection[str],
        *,
        max_bytes: int,
        days: int,
        message_bytes: int,
    ) -> None:
        """Take up what an earlier run left."""
        self._directory = directory
        self._device = device
        self._consents = frozenset(consents)
        self._max_bytes = max_bytes
        self._keep_s = days * DAY_S
        self._piece_bytes = max(256, min(PIECE_BYTES, (message_bytes - HEAD_ROOM) * 3 // 4))
        self._orders: dict[str, _Order] = {}
        self._sending: _Sending | None = None
        self._resend_at = 0.0
        self._resend_s = FIRST_RESEND_S
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for each in sorted(directory.iterdir()):
            try:
                self._orders[each.name] = _Order.load(each)
            except (OSError, ValueError):
                log.warning("capture: %s is not an order of ours; deleted", each.name)
                _remove(each)

    def start(self, request: str, asked: CaptureOrder) -> None:
        """Take up an order, unless there are too many; then it is over at once, and says so."""
        directory = self._directory / check_id(request)
        directory.mkdir(mode=0o700, exist_ok=True)
        full = sum(order.state == "capturing" for order in self._orders.values()) >= MAX_ORDERS
        order = self._orders[request] = _Order(request, asked, directory)
        if full:
            order.state = "over"
            _write(directory / "left_out", b'{"too many orders": 1}')
        order.save()
        log.info(
            "capture %s: up to %d %s inputs of %s, as the operator of the fleet asked and this "
            "device's configuration allows", request, asked.count, asked.kind, asked.model,
        )  # fmt: skip

    def for_engine(self) -> Iterator[control.Capture]:
        """Yield what an engine that begins to serve is to be told."""
        for order in self._orders.values():
            if order.state == "capturing" and order.asked.model in self._consents:
                yield control.Capture(
                    request=order.request,
                    model=order.asked.model,
                    which=order.asked.kind,
                    count=order.asked.count - order.captured,
                    max_bytes=self._max_bytes,
                    until=order.asked.until,
                    below_percent=order.asked.below_percent,
                    one_in=order.asked.one_in,
                    directory=str(order.directory),
                )

    def withdraw(self) -> Iterator[tuple[str, str, int]]:
        """Delete what this device consents to no more; yield model, request and how many."""
        for order in self._orders.values():
            if order.asked.model in self._consents or order.state == "withdrawn":
                continue
            gone = sum(1 for _ in order.directory.glob("*.sample"))
            self._clear(order)
            order.state, order.reported = "withdrawn", False
            order.deleted += gone
            order.save()
            log.warning(
                "capture %s: consent for %s is withdrawn; %d samples are deleted",
                order.request, order.asked.model, gone,
            )  # fmt: skip
            yield order.asked.model, order.request, gone

    def look(self, now: float, mono: float) -> list[Message]:
        """Take in what engines captured; return what is to be sent."""
        room = self._max_bytes
        for order in self._orders.values():
            if order.state != "withdrawn":
                room = self._take_in(order, now, room)
        return self._due(mono)

    def heard(self, body: bytes, mono: float) -> tuple[list[Message], list[control.Capture]]:
        """Take up an acknowledgement; return what is to be sent next, and engines to be told."""
        try:
            ack = decode(SampleAck, body)
        except DecodeError as error:
            log.warning("capture: an acknowledgement was not read: %s", error)
            return [], []
        order = self._orders.get(ack.request)
        if order is None or ack.device != self._device:
            return [], []
        if not ack.wanted:
            log.info("capture %s: nobody waits for it any more; deleted", order.request)
            self._drop(order)
            return [], [control.Capture(request=order.request, model=order.asked.model)]
        if ack.sample is None:
            order.reported = True
            order.save()
        else:
            self._heard_of(order, ack)
        self._resend_s = FIRST_RESEND_S
        due = self._pieces(lost=False)
        in_flight = self._sending is not None and self._sending.sent > self._sending.have
        self._resend_at = mono + self._resend_s if due or in_flight else 0.0
        return due, []

    @property
    def idle(self) -> bool:
        """Whether there is nothing left to do; the directory is gone then."""
        for order in list(self._orders.values()):
            over = order.state != "capturing" and order.reported
            left = any(path.suffix in (".sample", ".head") for path in order.directory.iterdir())
            if over and not left:
                self._drop(order)
        if not self._orders:
            _remove(self._directory)
        return not self._orders

    # ---- taking in

    def _take_in(self, order: _Order, now: float, room: int) -> int:
        """Count new samples, join labels, delete what is old or too much; return the room left."""
        kept = (order.captured, order.deleted, order.state, dict(order.left_out))
        for path in sorted(order.directory.glob("*.sample"), key=_age):
            size = _size(path)
            expired = now - _age(path) > self._keep_s
            if path.stem not in order.seen:
                wrong = self._wrong(order, path)
                if wrong or order.captured >= order.asked.count:
                    why = wrong or "more than asked for"
                    log.warning("capture %s: a file was deleted: %s", order.request, why)
                    path.unlink(missing_ok=True)
                    continue
                order.seen.add(path.stem)
                order.captured += 1
                log.info("capture %s: %s, %d bytes", order.request, path.stem, size)
            if expired or size > room:
                path.unlink(missing_ok=True)
                order.deleted += 1
                why = "older than it may get" if expired else "no room for it"
                log.warning("capture %s: %s is deleted: %s", order.request, path.stem, why)
                continue
            room -= size
        for path in order.directory.glob("*.label"):
            self._join(order, path)
        for path in order.directory.glob("*.head"):
            if now - _age(path) > self._keep_s:
                path.unlink(missing_ok=True)
        order.left_out = _counts(order.directory / "left_out")
        if order.state == "capturing" and (
            now >= order.asked.until or order.captured >= order.asked.count
        ):
            order.state = "over"
            log.info("capture %s: over with %d inputs", order.request, order.captured)
        if order.state == "over" and order.reported and now >= order.asked.until:
            for path in order.directory.glob("*.head"):
                path.unlink(missing_ok=True)  # no label is waited for any longer
        if kept != (order.captured, order.deleted, order.state, order.left_out):
            order.reported = False
            order.save()
        return room

    def _wrong(self, order: _Order, path: Path) -> str:
        """Return why a file is no sample of this order: a model may have taken the engine over."""
        try:
            head = self._read(path)[0]
            check_id(path.stem)
        except (OSError, ValueError) as error:
            return str(error)[:200]
        if (head.sample, head.request, head.model) != (
            path.stem, order.request, order.asked.model,
        ):  # fmt: skip
            return "it is named for another"
        return ""

    def _read(self, path: Path) -> tuple[SampleHead, bytes]:
        """Return head and bytes of a sample.

        Raises:
            OSError: it is gone.
            ValueError: it is none of ours.
        """
        if _size(path) > MAX_SAMPLE_BYTES + MAX_HEAD_BYTES:
            raise ValueError("it is too long")
        line, _, data = path.read_bytes().partition(b"\n")
        if len(line) > MAX_HEAD_BYTES:
            raise ValueError("its head is too long")
        head = _head(line)
        if len(data) != head.size_bytes or _digest(data) != head.digest:
            raise ValueError("its bytes are not those of its head")
        return head, data

    def _join(self, order: _Order, path: Path) -> None:
        """Write a label that came later into the head of its sample."""
        try:
            label = json.loads(path.read_bytes()[:MAX_HEAD_BYTES])
            sample, sent = path.with_suffix(".sample"), path.with_suffix(".head")
            if sample.exists():
                head, data = self._read(sample)
                _write(sample, _with_label(head, label) + b"\n" + data)
                self._sending = None  # begins elsewhere in the file now
            elif sent.exists():
                _write(sent, _with_label(_head(sent.read_bytes()), label))
        except (OSError, ValueError) as error:
            log.warning("capture %s: a label was left out: %s", order.request, str(error)[:200])
        path.unlink(missing_ok=True)

    # ---- sending

    def _due(self, mono: float) -> list[Message]:
        """Return what nobody acknowledged, once it was waited for, and what is new."""
        if mono < self._resend_at:
            return []
        due = [
            (Kind.CAPTURE, encode(self._report(order)))
            for order in self._orders.values()
            if not order.reported
        ]
        due += self._pieces(lost=True)
        if due:
            self._resend_at = mono + self._resend_s
            self._resend_s = min(self._resend_s * 2, LAST_RESEND_S)
        return due

    def _pieces(self, *, lost: bool) -> list[Message]:
        """Return pieces of the sample that is being sent, or of the next one.

        `lost`: those on their way are given up.
        """
        sending = self._sending
        if sending is None or not self._may_go(sending):
            sending = self._sending = self._next()
            lost = True
        if sending is None:
            return []
        if lost:
            sending.sent = sending.have
        if sending.path.suffix == ".head":
            return [self._sample(sending.head, sending.head.size_bytes, b"")] if lost else []
        pieces = []
        most = min(sending.have + AHEAD * self._piece_bytes, sending.head.size_bytes)
        try:
            while sending.sent < most:
                pieces.append(self._sample(sending.head, *sending.piece(self._piece_bytes)))
        except OSError as error:
            log.warning("capture %s: %s cannot be read: %s", sending.request, sending.name, error)
            sending.path.unlink(missing_ok=True)
        return pieces

    def _may_go(self, sending: _Sending) -> bool:
        """Whether a sample is there, and this device still consents to send it."""
        order = self._orders.get(sending.request)
        return order is not None and self._consented(order) and sending.path.exists()

    def _consented(self, order: _Order) -> bool:
        return order.state != "withdrawn" and order.asked.model in self._consents

    def _next(self) -> _Sending | None:
        """Return the oldest sample with news, if there is one."""
        for order in self._orders.values():
            if not self._consented(order):
                continue
            for suffix in (".sample", ".head"):
                for path in sorted(order.directory.glob(f"*{suffix}"), key=_age):
                    try:
                        with path.open("rb") as file:
                            line = file.readline(MAX_HEAD_BYTES)
                        head = _head(line)
                    except (OSError, ValueError) as error:
                        log.warning("capture %s: %s: %s", order.request, path.name, error)
                        path.unlink(missing_ok=True)
                        continue
                    if path.stem in order.seen and (suffix == ".sample" or head.label is not None):
                        return _Sending(order.request, path.stem, head, path, len(line))
        return None

    def _sample(self, head: SampleHead, offset: int, piece: bytes) -> Message:
        data = base64.b64encode(piece).decode()
        sample = Sample(device=self._device, head=head, offset=offset, data=data)
        return Kind.SAMPLE, encode(sample)

    def _report(self, order: _Order) -> CaptureReport:
        return CaptureReport(
            device=self._device,
            request=order.request,
            model=order.asked.model,
            state=order.state,
            captured=order.captured,
            deleted=order.deleted,
            left_out=order.left_out,
        )

    def _heard_of(self, order: _Order, ack: SampleAck) -> None:
        sending = self._sending
        if sending is None or (sending.request, sending.name) != (order.request, ack.sample):
            return
        if ack.have < sending.head.size_bytes:
            # Less than before: it was thrown away there.
            sending.sent = sending.sent if ack.have >= sending.have else ack.have
            sending.have = ack.have
            sending.sent = max(sending.sent, sending.have)
            return
        labelled = ack.labelled and sending.head.label is not None
        if sending.path.suffix == ".sample":
            log.info("capture %s: %s is sent", order.request, sending.name)
            if not labelled:
                # As it is on the disk: a label may have come meanwhile.
                with sending.path.open("rb") as file:
                    line = file.readline(MAX_HEAD_BYTES).rstrip(b"\n")
                _write(sending.path.with_suffix(".head"), line)
        elif not labelled:
            return
        sending.path.unlink(missing_ok=True)
        self._sending = None

    # ---- the disk

    def _clear(self, order: _Order) -> None:
        """Delete everything of an order but what is known of it."""
        for path in list(order.directory.iterdir()):
            if path.name != "order.json":
                _remove(path)
        if self._sending is not None and self._sending.request == order.request:
            self._sending = None

    def _drop(self, order: _Order) -> None:
        self._clear(order)
        _remove(order.directory)
        self._orders.pop(order.request, None)


def _head(line: bytes) -> SampleHead:
    try:
        return SampleHead.model_validate(json.loads(line))
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _line(head: SampleHead) -> bytes:
    return head.model_dump_json(exclude_none=True).encode()


def _with_label(head: SampleHead, label: Any) -> bytes:
    return _line(_head(json.dumps({**head.model_dump(), "label": label}).encode()))


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _counts(path: Path) -> dict[str, int]:
    """Return what an engine left out, as far as it can be read."""
    try:
        if _size(path) > MAX_HEAD_BYTES:
            return {}
        found = json.loads(path.read_bytes())
        named = {str(key)[:40]: value for key, value in list(found.items())[:16]}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {key: n for key, n in named.items() if type(n) is int and 0 <= n <= 2**53}


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write(path: Path, data: bytes) -> None:
    """Put `data` in place at once, readable by nobody else."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
