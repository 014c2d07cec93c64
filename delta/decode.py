"""From a base and a delta to the new file."""

from delta.container import base_rest, gaps, inflate_rest, unpack
from delta.errors import DeltaError
from delta.model import Counts
from delta.rans import Decoder
from delta.spans import code_span, place_rows


def decode(base: bytes, delta: bytes, max_bytes: int) -> bytearray:
    """Return the file that `delta` makes of `base`, at most `max_bytes` of it.

    Whether it is the right one, its digest says: a delta for another base may well decode.
    Needs, besides base, delta and result, at most as much as base and result together, and
    16 MiB.

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
    coder, counts = Decoder(parts.words, parts.raw, parts.lanes), Counts()
    for span in parts.spans:
        place_rows(new, span, code_span(coder, counts, span, base, new, None, None))
    coder.check_end()
    return new


__all__ = ["DeltaError", "decode"]
