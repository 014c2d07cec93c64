"""From a base and a delta to the new file."""

from delta.container import base_rest, gaps, inflate_rest, unpack
from delta.model import Counts, Stream
from delta.rans import Decoder
from delta.spans import code_span, place_rows


def decode(base: bytes, delta: bytes, max_bytes: int) -> bytearray:
    """Return the file that `delta` makes of `base`, at most `max_bytes` of it.

    Whether it is the right one, its digest says: a delta for another base may well decode.
    At its peak, base, delta and result included, it takes no more than the delta, four times base
    and result, and 16 MiB.

    Raises:
        DeltaError: the delta is broken, or makes more.
    """
    parts = unpack(delta, len(base), max_bytes)
    holes = gaps([span.place for span in parts.spans], parts.size)
    rest = inflate_rest(
        parts.rest, sum(hole.length for hole in holes), base_rest(base, parts.spans)
    )
    new, at = bytearray(parts.size), 0
    for hole in holes:
        new[hole.offset : hole.offset + hole.length] = rest[at : at + hole.length]
        at += hole.length
    del rest
    coder = Decoder(parts.words, parts.raw, parts.lanes)
    stream = Stream(coder, Counts())
    for span in parts.spans:
        place_rows(new, span, code_span(stream, span, base, new))
    coder.check_end()
    return new
