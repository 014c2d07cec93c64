"""The file around it all: a header, the table of spans, and four streams."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import zstandard

from delta.errors import DeltaError
from delta.formats import Place
from delta.model import MAX_EXPONENT, TOP
from delta.spans import ELEMENTS, Bytes, Predictor, Scales, Span

MAGIC = b"FfD\x01"
MAX_LANES_BITS = 12
MAX_RANK = 255
MAX_SPANS = 1 << 13
MAX_TABLE = 1 << 24
_HAS_SCALES, _HAS_COLUMNS, _HAS_RANK = 1, 2, 4


@dataclass(frozen=True)
class Delta:
    """The parts of a delta."""

    size: int
    """Of the new file."""
    spans: tuple[Span, ...]
    """In the order of coding: what a prediction needs comes before it."""
    lanes: int
    words: bytes
    raw: bytes
    rest: bytes
    """One zstd frame: what of the new file is in no span, with the same of the base as prefix."""


def pack(delta: Delta) -> bytes:
    """Return the bytes of a delta."""
    table = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(
        _pack_spans(delta.spans)
    )
    lengths = (delta.size, len(table), len(delta.words), len(delta.raw))
    header = b"".join(_varint(number) for number in lengths)
    lanes_bits = delta.lanes.bit_length() - 1
    return b"".join([MAGIC, bytes([lanes_bits]), header, table, delta.words, delta.raw, delta.rest])


def unpack(content: bytes, base_size: int, max_bytes: int) -> Delta:
    """Read a delta for a base of `base_size`; every place in it is within its file.

    Raises:
        DeltaError: it is not one, or makes more than `max_bytes`.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise DeltaError(f"expected a delta ({MAGIC!r}), got {content[: len(MAGIC)]!r}")
    reader = _Reader(content, len(MAGIC))
    lanes_bits = reader.number(MAX_LANES_BITS)
    size = reader.number(max_bytes)
    lengths = [reader.number(len(content)) for _ in range(3)]
    table, words, raw = (reader.take(length) for length in lengths)
    spans = _unpack_spans(_inflate(table, MAX_TABLE), size, base_size)
    return Delta(size, spans, 1 << lanes_bits, words, raw, reader.take(reader.left))


def gaps(places: Iterable[Place], size: int) -> list[Place]:
    """Return what is between the places, which may overlap."""
    found, at = [], 0
    for place in sorted(places, key=lambda place: place.offset):
        if place.offset > at:
            found.append(Place(at, place.offset - at))
        at = max(at, place.offset + place.length)
    return [*found, Place(at, size - at)] if at < size else found


def cut(content: Bytes, places: Iterable[Place]) -> bytes:
    """Return the bytes at the places, one after the other."""
    view = memoryview(content)
    return b"".join(view[place.offset : place.offset + place.length] for place in places)


def base_rest(base: Bytes, spans: Iterable[Span]) -> bytes:
    """Return what of the base no span is predicted from."""
    return cut(base, gaps([span.base_place for span in spans if span.base_place.length], len(base)))


def deflate_rest(rest: bytes, prefix: bytes) -> bytes:
    """Return one zstd frame of `rest`, with the prefix as its dictionary."""
    window = max(10, min(27, (len(rest) + len(prefix)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=window, enable_ldm=len(prefix) > 1 << 20, write_content_size=True
    )
    return zstandard.ZstdCompressor(
        compression_params=parameters, dict_data=_dictionary(prefix)
    ).compress(rest)


def inflate_rest(frame: bytes, size: int, prefix: bytes) -> bytes:
    """Return the `size` bytes of the frame that `deflate_rest` made."""
    found = _inflate(frame, size, prefix)
    if len(found) != size:
        raise DeltaError(f"expected {size} bytes between the tensors, got {len(found)}")
    return found


def _dictionary(prefix: bytes) -> zstandard.ZstdCompressionDict | None:
    # zstd takes 8 bytes at the least.
    if len(prefix) < 8:
        return None
    return zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _inflate(frame: bytes, limit: int, prefix: bytes = b"") -> bytes:
    try:
        told = zstandard.get_frame_parameters(frame).content_size
        if told > limit:  # also what "unknown" is
            raise DeltaError(f"expected a frame of at most {limit} bytes, got one of {told}")
        return zstandard.ZstdDecompressor(
            dict_data=_dictionary(prefix), max_window_size=1 << 31
        ).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DeltaError(f"a zstd frame is broken: {error}") from error


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def _zigzag(number: int) -> bytes:
    return _varint(2 * number if number >= 0 else -2 * number - 1)


class _Reader:
    def __init__(self, content: bytes, at: int = 0) -> None:
        self._content = content
        self._at = at

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise DeltaError(f"expected {length} more bytes, got {self.left}")
        self._at += length
        return self._content[self._at - length : self._at]

    def number(self, highest: int, lowest: int = 0) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if not lowest <= value <= highest:
                    raise DeltaError(f"expected {lowest} to {highest}, got {value}")
                return value
        raise DeltaError("a number has no end")

    def signed(self) -> int:
        value = self.number(1 << 62)
        return -(value + 1 >> 1) if value & 1 else value >> 1


def _pack_spans(spans: Iterable[Span]) -> bytes:
    made, new_end, base_end = bytearray(), 0, 0
    for span in spans:
        flags = (
            _HAS_SCALES * (span.scales is not None)
            | _HAS_COLUMNS * span.has_columns
            | _HAS_RANK * bool(span.exponents)
        )
        made += bytes([ELEMENTS.index(span.element) << 4 | span.predictor, flags])
        made += _zigzag(span.new - new_end) + _zigzag(span.base - base_end)
        made += _varint(span.outer) + _varint(span.rows) + _varint(span.inner)
        made += _varint(span.middle)
        if span.scales is not None:
            made += _varint(span.scales.new) + _varint(span.scales.base)
            made += _varint(span.scales.count)
            made += _zigzag(span.scales.new_zero) + _zigzag(span.scales.base_zero)
        if span.factors is not None:
            made += _varint(span.factors[0]) + _varint(span.factors[1])
        if span.exponents:
            made += _varint(len(span.exponents)) + bytes(span.exponents)
            made += _varint(span.left_middle) + _varint(span.right_middle)
        new_end, base_end = span.new + span.length, span.base + span.length
    return bytes(made)


def _unpack_spans(table: bytes, size: int, base_size: int) -> tuple[Span, ...]:
    reader, spans, new_end, base_end = _Reader(table), [], 0, 0
    while reader.left:
        span = _unpack_span(reader, new_end, base_end)
        _check(span, size, base_size)
        new_end, base_end = span.new + span.length, span.base + span.length
        spans.append(span)
        if len(spans) > MAX_SPANS:
            raise DeltaError(f"expected at most {MAX_SPANS} spans")
    places = sorted((span.new, span.new + span.length) for span in spans)
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        raise DeltaError("two spans overlap")
    return tuple(spans)


def _unpack_span(reader: _Reader, new_end: int, base_end: int) -> Span:
    kind, flags = reader.take(2)
    if kind >> 4 >= len(ELEMENTS) or kind & 15 > max(Predictor) or flags > 7:
        raise DeltaError(f"kind {kind} and flags {flags} of a span are unknown")
    far = 1 << 62
    predictor = Predictor(kind & 15)
    new, base = new_end + reader.signed(), base_end + reader.signed()
    outer, rows, inner = (reader.number(far, lowest=1) for _ in range(3))
    middle = reader.number(TOP)
    scales = factors = None
    if flags & _HAS_SCALES:
        new_scales, base_scales, count = (reader.number(far) for _ in range(3))
        scales = Scales(new_scales, base_scales, count, reader.signed(), reader.signed())
    if predictor is Predictor.PRODUCT:
        factors = (reader.number(far), reader.number(far))
    exponents: tuple[int, ...] = ()
    left = right = 0
    if flags & _HAS_RANK:
        exponents = tuple(reader.take(reader.number(MAX_RANK, lowest=1)))
        left, right = reader.number(TOP), reader.number(TOP)
    return Span(
        element=ELEMENTS[kind >> 4],
        predictor=predictor,
        new=new,
        base=base,
        outer=outer,
        rows=rows,
        inner=inner,
        scales=scales,
        factors=factors,
        middle=middle,
        has_columns=bool(flags & _HAS_COLUMNS),
        exponents=exponents,
        left_middle=left,
        right_middle=right,
    )


def _check(span: Span, size: int, base_size: int) -> None:
    """Refuse a span that reads or writes where nothing is."""

    def within(offset: int, length: int, limit: int, what: str) -> None:
        if offset < 0 or offset + length > limit:
            raise DeltaError(f"{what}: bytes {offset} to {offset + length} of {limit} wanted")

    within(span.new, span.length, size, "a span")
    within(span.base, span.base_place.length, base_size, "the base of a span")
    if (span.scales is not None) != (span.predictor is Predictor.RESCALED):
        raise DeltaError("a span is rescaled without scales, or has scales in vain")
    if span.scales is not None:
        if span.scales.count not in (1, span.rows, span.columns) or span.scales.count == 0:
            raise DeltaError(f"{span.scales.count} scales for {span.rows} x {span.columns}")
        if max(abs(span.scales.new_zero), abs(span.scales.base_zero)) > 1 << 31:
            raise DeltaError("a zero point is out of range")
        within(span.scales.new, 4 * span.scales.count, size, "scales")
        within(span.scales.base, 4 * span.scales.count, base_size, "scales of the base")
    if span.factors is not None:
        if span.rows != 1 or span.element != "f4":
            raise DeltaError("a product is one row of floats")
        within(span.factors[0], 4 * span.columns, size, "a factor")
        within(span.factors[1], 4, size, "a factor")
    if span.exponents:
        rank = len(span.exponents)
        if 4 * rank * (span.rows + span.columns) > span.rows * span.columns:
            raise DeltaError(f"rank {rank} is too much for {span.rows} x {span.columns}")
        if max(span.exponents) > MAX_EXPONENT:
            raise DeltaError(f"expected exponents up to {MAX_EXPONENT}")
