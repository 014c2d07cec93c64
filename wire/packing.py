"""Batches of telemetry as they travel: columns of whole numbers behind a line of JSON, deflated.

    batch  := version (1 byte), then a raw deflate stream of: head, newline, columns
    head   := JSON [device, complete, windows, health, events, schema]; an item is an array of its
              values in the order of the tables below, cut after the last that is no default
    columns := for every column below, for every window: its list
    list   := code (1 byte), size (1 byte, or 255 and 4 bytes), the numbers

The code says how a list is written, plus in what. 0: the numbers; 1: folded differences, the
first from 0; 2: a middle (4 bytes), and folded differences from that. 0: bytes; 4: UTF-8 of the
numbers as code points, surrogates among them; 8 and 12, of plain numbers: 4 and 8 bytes each. A
difference d is folded to 2 d, or to -2 d - 1 below 0. What has several bytes is little-endian.

New values and columns are added at the ends, where an older reader does not look. What is the same
in several items of a batch, deflate writes once.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from typing import Any

from wire.codec import MAX_DOCUMENT_BYTES, DecodeError, validate
from wire.telemetry import Batch, DeviceEvent, Health, ScoreWindow

VERSION = b"\x01"
DIGEST = "sha256:"
DICTIONARY = (
    b'"gap","dropped","clock","deployment","crash","consent","other",{"windows":1,"health":1,'
    b'"requests":1,"since":17,"until":17}"tflite-int8","tflite-fp32","onnx-fp32",'
    b'null,null,null,null,{},{},"false,null,null,null,0.0,{},"-4,"cpu":0.0,{"cpu":0.0,"io":0.0,'
    b'"memory":0.0}{"cpu":0.0,"memory":0.0,"io":0.0},0,false,true,0.0,null,null,'
    b'"onnx-int8",17,17,0,0,0,null,[1,0,0,0],[[1,0,"'
)
"""What deflate may refer to from the start: words of version 1, the likeliest last."""

WINDOW = (
    "seq", "first", "boot", "model", "version", "manifest", "variant", "start", "end",
    "requests", "errors", "drops", "labelled", "correct", "confidence_sum", "slo_misses",
    "orphan_labels", "estimate", "golden", "shadow", "outcomes", "value_errors", "confusion",
    "epsilon", "epsilon_windows", "noised", "schema_version",
)  # fmt: skip
"""`value_errors` is 1 if its columns count, and `confusion` is there only if it has odd keys."""

HEALTH = (
    "seq", "first", "boot", "at", "uptime_s", "cpu_percent", "load_1m", "memory_total_bytes",
    "memory_available_bytes", "disk_free_bytes", "temperature_c", "agent_cpu_percent",
    "agent_rss_bytes", "engine_cpu_percent", "engine_rss_bytes", "engine_restarts",
    "outbox_waiting", "outbox_dropped", "transfer_bytes", "chunks_bad", "flash_bytes_written",
    "pipelines", "kernel_boot", "pressure", "swap_used_bytes", "disk_total_bytes", "throttled",
    "network_received_bytes", "network_sent_bytes", "clock_synchronised", "clock_stepped_s",
    "agent_pss_bytes", "engine_pss_bytes", "agent_starts", "broker_rtt_ms", "battery_percent",
    "battery_charging", "outbox_bytes", "outbox_merged", "schema_version",
)  # fmt: skip

EVENT = ("seq", "boot", "at", "kind", "model", "version", "text", "counts", "schema_version")

ESTIMATE = ("samples", "sum_p", "spread")
GOLDEN = ("runs", "samples", "flips", "labelled", "correct", "deviating")
SHADOW = (
    "challenger", "pairs", "disagreements", "labelled", "worse", "better", "dropped", "errors",
)  # fmt: skip

COLUMNS = (
    "keys", "latency", "answers", "confusion", "samples", "sums", "ends", "bins", "value_errors",
)  # fmt: skip
"""One list of each for every window. Keys are written as runs: how many runs; for each the gap
before it, and its length. So are those of latency, predicted, confidence, calibration, drift and
value_errors, behind each other, and then how many counts each feature of drift has. Answers: the
counts of predicted, and of confidence. Confusion: true classes, answers, counts. Samples and sums
are calibration's: how many, and how many right; the sums. Ends: of each feature the last two
counts, NaN and outside, which are of another size than the others, its bins."""


class PackError(ValueError):
    """The items do not fit into one message."""


def pack(batch: Batch) -> bytes:
    """Return a batch as it travels.

    Raises:
        PackError: it is longer than a message may be.
    """
    columns = _Writer()
    for lists in zip(*map(_lists, batch.windows), strict=True):
        for values in lists:
            columns.ints(values)
    head = [
        batch.device,
        int(batch.complete),
        [_window_row(window) for window in batch.windows],
        [_row(health, HEALTH) for health in batch.health],
        [_row(event, EVENT) for event in batch.events],
        batch.schema_version,
    ]
    text = json.dumps(_cut(head, [None, 0, [], [], [], 1]), separators=(",", ":")).encode()
    size = len(text) + 1 + len(columns.data)
    if size > MAX_DOCUMENT_BYTES:
        raise PackError(f"expected at most {MAX_DOCUMENT_BYTES} bytes inflated, got {size}")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=DICTIONARY)
    # Digits and columns each get a code of their own: a tenth shorter.
    first = deflater.compress(text + b"\n") + deflater.flush(zlib.Z_BLOCK)
    return VERSION + first + deflater.compress(columns.data) + deflater.flush()


def unpack(data: bytes) -> Batch:
    """Read a batch.

    Raises:
        DecodeError: it is none, or too long.
    """
    try:
        head, reader = _open(data)
        device, complete, windows, health, events, schema = _filled(head, _HEAD)
        rows = [_window(row) for row in windows]
        columns = [[reader.ints() for _ in rows] for _ in COLUMNS]
        room = [MAX_DOCUMENT_BYTES]
        for row, lists in zip(rows, zip(*columns, strict=True), strict=True):
            _fill(room, row, *lists)
        values = {
            "device": device,
            "windows": [{**row, "device": device} for row in rows],
            "health": [_item(row, HEALTH, device) for row in health],
            "events": [_item(row, EVENT, device) for row in events],
            "complete": complete,
            "schema_version": schema,
        }
    except (ValueError, TypeError, LookupError, struct.error, RecursionError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"Batch: expected a packed batch, got {error!r}"[:300]) from None
    return validate(Batch, values)


_HEAD = (None, 0, (), (), (), 1)


def _open(data: bytes) -> tuple[list[Any], "_Reader"]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DecodeError(f"expected at most {MAX_DOCUMENT_BYTES} bytes, got {len(data)}")
    if data[:1] != VERSION:
        raise DecodeError(f"Batch: expected version {VERSION[0]}, got {data[:1]!r}")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY)
    try:
        whole = inflater.decompress(data[1:], MAX_DOCUMENT_BYTES)
    except zlib.error as error:
        raise DecodeError(f"Batch: expected a deflate stream, got {error}") from None
    if not inflater.eof:
        raise DecodeError(
            f"expected at most {MAX_DOCUMENT_BYTES} bytes inflated, got more or a cut stream"
        )
    end = whole.index(b"\n")
    head = json.loads(whole[:end])
    if not isinstance(head, list):
        raise DecodeError("Batch: expected an array, got something else")
    return head, _Reader(whole, end + 1)


# ---- items as arrays


def _cut(row: list[Any], defaults: list[Any]) -> list[Any]:
    while row and row[-1] == defaults[len(row) - 1]:
        row.pop()
    return row


def _filled(row: list[Any], defaults: tuple[Any, ...]) -> list[Any]:
    return [*row, *defaults[len(row) :]][: len(defaults)]


def _defaults(kind: type[ScoreWindow | Health | DeviceEvent]) -> dict[str, Any]:
    """Return what is left out at the end of an array; required values never are."""
    fields = kind.model_fields
    return {name: None if field.is_required() else field.default for name, field in fields.items()}


def _row(item: Health | DeviceEvent, names: tuple[str, ...]) -> list[Any]:
    values = item.model_dump(mode="json")
    defaults = _DEFAULTS[type(item)]
    return _cut([values[name] for name in names], [defaults[name] for name in names])


def _item(row: list[Any], names: tuple[str, ...], device: object) -> dict[str, Any]:
    return {**dict(zip(names, _array(row), strict=False)), "device": device}


def _window_row(window: ScoreWindow) -> list[Any]:
    estimate, golden, shadow = window.estimate, window.golden, window.shadow
    row = [getattr(window, name) for name in WINDOW[:17]]
    row[5] = window.manifest.removeprefix(DIGEST)
    row += [
        [getattr(estimate, name) for name in ESTIMATE] if estimate is not None else None,
        [getattr(golden, name) for name in GOLDEN] if golden is not None else None,
        [getattr(shadow, name) for name in SHADOW] if shadow is not None else None,
        window.outcomes,
        0 if window.value_errors is None else 1,
        {} if _pairs(window.confusion) is not None else window.confusion,
        window.epsilon,
        window.epsilon_windows,
        window.noised,
        window.schema_version,
    ]
    return _cut(row, _WINDOW_DEFAULTS)


def _window(row: list[Any]) -> dict[str, Any]:
    values = dict(zip(WINDOW, _array(row), strict=False))
    values["manifest"] = f"{DIGEST}{values.get('manifest')}"
    # Said, since to copy a default takes longer than to check a value.
    values.setdefault("outcomes", {})
    values.setdefault("noised", {})
    for name, names in (("estimate", ESTIMATE), ("golden", GOLDEN), ("shadow", SHADOW)):
        if values.get(name) is not None:
            values[name] = dict(zip(names, _array(values[name]), strict=False))
    return values


def _array(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError(f"Batch: expected an array, got {str(value)[:40]!r}")
    return value


_DEFAULTS = {kind: _defaults(kind) for kind in (Health, DeviceEvent)}
_WINDOW_DEFAULTS = [
    {"value_errors": 0, "confusion": {}}.get(name, _defaults(ScoreWindow)[name]) for name in WINDOW
]


# ---- lists of whole numbers

_PLAIN, _STEPS, _AROUND = range(3)
_BYTES, _TEXT, _FOUR, _EIGHT = 0, 4, 8, 12
_LONG = 255
_LAST_POINT = 0x10FFFF
_MIDDLE = struct.Struct("<I")
_UNFOLDED = bytes((n >> 1 if not n & 1 else -(n + 1) >> 1) & 255 for n in range(256))
"""Folded steps of one byte to signed bytes."""


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def ints(self, values: list[int]) -> None:
        """Write the numbers, or their differences where these are smaller."""
        steps = _folded([b - a for a, b in pairwise((0, *values))])
        middle = sum(values) // len(values) if values else 0
        around = _folded([value - middle for value in values])
        ways = [(sum(points), way, points)
                for way, points in ((_PLAIN, values), (_STEPS, steps), (_AROUND, around))
                if max(points, default=0) <= _LAST_POINT and (way != _AROUND or middle < 2**32)
                ]  # fmt: skip
        if ways:
            _, way, points = min(ways)
            form, data = _short(points)
            if way == _AROUND:
                data = _MIDDLE.pack(middle) + data
        else:
            way, form, letter = (_PLAIN, _FOUR, "I") if max(values) < 2**32 else (0, _EIGHT, "Q")
            data = struct.pack(f"<{len(values)}{letter}", *values)
        self.data.append(form + way)
        if len(data) < _LONG:
            self.data.append(len(data))
        else:
            self.data += struct.pack("<BI", _LONG, len(data))
        self.data += data


def _short(points: list[int]) -> tuple[int, bytes]:
    if max(points, default=0) < 256:
        return _BYTES, bytes(points)
    return _TEXT, "".join(map(chr, points)).encode("utf-8", "surrogatepass")


def _folded(steps: list[int]) -> list[int]:
    """Return 0, -1, 1, -2, 2... as 0, 1, 2, 3, 4..."""
    return [2 * step if step >= 0 else -2 * step - 1 for step in steps]


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def ints(self) -> Iterable[int]:
        """Read a list; behind the end of what an older writer knew of there are empty ones.

        Little is done in loops of our own: a controller reads thousands a second.
        """
        data, at = self._data, self._at
        if at >= len(data):
            return ()
        code, size = data[at], data[at + 1]
        at += 2
        if size == _LONG:
            (size,) = _MIDDLE.unpack_from(data, at)
            at += 4
        end = self._at = at + size
        if end > len(data) or code > _EIGHT:
            raise DecodeError("Batch: a column is cut or of an unknown code")
        if code == _PLAIN:
            return data[at:end]
        if code >= _FOUR:
            letter, width = ("I", 4) if code == _FOUR else ("Q", 8)
            return struct.unpack(f"<{size // width}{letter}", data[at:end])
        way = code & 3
        if way == _AROUND:
            (middle,) = _MIDDLE.unpack_from(data, at)
            at += 4
        steps: Iterable[int]
        if code < _TEXT:
            steps = memoryview(data[at:end].translate(_UNFOLDED)).cast("b")
        else:
            points = map(ord, data[at:end].decode("utf-8", "surrogatepass"))
            if way == _PLAIN:
                return points
            steps = [-(n + 1) >> 1 if n & 1 else n >> 1 for n in points]
        if way == _STEPS:
            return accumulate(steps)
        return [middle + step for step in steps]


# ---- columns


def _pairs(confusion: Mapping[str, int]) -> list[tuple[int, int, int]] | None:
    """Return true class, answer and count, or None if a key is not written in the plain way."""
    found = []
    for key, count in confusion.items():
        true, _, predicted = key.partition(",")
        if not (true.isdecimal() and predicted.isdecimal()):
            return None
        numbers = (int(true), int(predicted))
        if f"{numbers[0]},{numbers[1]}" != key or max(numbers) >= 2**31:
            return None
        found.append((*numbers, count))
    return sorted(found)


def _lists(window: ScoreWindow) -> list[list[int]]:
    """Return the lists of a window in the order of COLUMNS."""
    errors = window.value_errors.bins if window.value_errors is not None else {}
    latency, predicted, confidence = window.latency.bins, window.predicted, window.confidence
    calibration, drift = window.calibration, window.drift
    keys: list[int] = []
    for each in (latency, predicted, confidence, calibration, drift, errors):
        keys += _runs(sorted(each))
    features = [drift[feature] for feature in sorted(drift)]
    sums = [calibration[place] for place in sorted(calibration)]
    pairs = _pairs(window.confusion) or []
    return [
        keys + [len(counts) for counts in features],
        _ordered(latency),
        _ordered(predicted) + _ordered(confidence),
        [pair[part] for part in range(3) for pair in pairs],
        [each[0] for each in sums] + [each[2] for each in sums],
        [each[1] for each in sums],
        [count for counts in features for count in counts[-2:]],
        [count for counts in features for count in counts[:-2]],
        _ordered(errors),
    ]


def _ordered(counts: Mapping[int, int]) -> list[int]:
    return [counts[key] for key in sorted(counts)]


def _runs(keys: list[int]) -> list[int]:
    runs: list[int] = [0]
    following = None
    end = 0
    for key in keys:
        if key == following:
            runs[-1] += 1
        else:
            runs += (key - end, 1)
            runs[0] += 1
        following = end = key + 1
    return runs


def _fill(  # noqa: PLR0917 - one for each column
    room: list[int],
    row: dict[str, Any],
    keys: Iterable[int],
    latency: Iterable[int],
    answers: Iterable[int],
    confusion: Iterable[int],
    samples: Iterable[int],
    sums: Iterable[int],
    ends: Iterable[int],
    bins: Iterable[int],
    errors: Iterable[int],
) -> None:
    """Put the lists of one window to its other values."""
    told = iter(keys)
    places, predicted, confidence, calibration, drift, error_places = [
        _spread(told, room) for _ in range(6)
    ]
    row["latency"] = {"bins": dict(zip(places, latency, strict=True))}
    counts = iter(answers)
    row["predicted"] = dict(zip(predicted, islice(counts, len(predicted)), strict=True))
    row["confidence"] = dict(zip(confidence, counts, strict=True))
    pairs = list(confusion)
    n = len(pairs) // 3
    if pairs:
        classes = map(_key, pairs[:n], pairs[n : 2 * n])
        row["confusion"] = dict(zip(classes, pairs[2 * n :], strict=True))
    if calibration:
        numbers = list(samples)
        triples = zip(numbers, sums, numbers[len(calibration) :], strict=False)
        row["calibration"] = dict(zip(calibration, triples, strict=True))
    if drift:
        last, rest = iter(ends), iter(bins)
        row["drift"] = {
            feature: (*islice(rest, max(length - 2, 0)), *islice(last, min(length, 2)))
            for feature, length in zip(drift, told, strict=True)
        }
    row["value_errors"] = (
        {"bins": dict(zip(error_places, errors, strict=True))} if row.get("value_errors") else None
    )


@lru_cache(4096)
def _key(true: int, answer: int) -> str:
    return f"{true},{answer}"


def _spread(told: Iterator[int], room: list[int]) -> list[int]:
    """Return the keys of the next runs; there is `room` for as many as can have a count."""
    keys: list[int] = []
    end = 0
    for _ in range(next(told, 0)):
        start = end + next(told, 0)
        end = start + next(told, 0)
        room[0] -= end - start
        if room[0] < 0:
            raise DecodeError("Batch: a column has more keys than counts")
        keys += range(start, end)
    return keys
