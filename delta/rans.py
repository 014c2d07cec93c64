"""Interleaved range coding (rANS): many symbols a step, each with its own distribution.

Every lane has a state of 32 bits; symbol number i of a call goes through lane i modulo the number
of lanes. All lanes share one stream of 16-bit words. The decoder walks forward; the encoder
notes what it is given, and codes it backwards when it is finished.

Source: Duda 2013, "Asymmetric numeral systems"; Giesen 2014, "Interleaved entropy coders".
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from delta.errors import DeltaError

Ints: TypeAlias = NDArray[np.int64]

PRECISION_BITS = 14
"""Frequencies of one distribution add up to 2^14."""

SYMBOLS = 16
_LOW = 1 << 16
_LOW_BITS = 16


class Encoder:
    """Collects symbols and raw bits, and writes them at the end."""

    def __init__(self) -> None:
        self._starts: list[NDArray[np.uint16]] = []
        self._sizes: list[NDArray[np.uint16]] = []
        self._raw: list[Ints] = []
        self._raw_widths: list[NDArray[np.uint8]] = []

    def symbols(self, bounds: Ints, contexts: Ints, symbols: Ints | None) -> Ints:
        """Note `symbols`; row c of `bounds` (contexts, 17) cuts 2^14 into the shares of c."""
        assert symbols is not None
        start = bounds[contexts, symbols]
        self._starts.append(start.astype(np.uint16))
        self._sizes.append((bounds[contexts, symbols + 1] - start).astype(np.uint16))
        return symbols

    def raw(self, widths: Ints, values: Ints | None) -> Ints:
        """Note `values`, each below 2^width; widths 0 to 32."""
        assert values is not None
        wanted = widths > 0
        self._raw.append(values[wanted])
        self._raw_widths.append(widths[wanted].astype(np.uint8))
        return values

    def cost_bytes(self) -> float:
        """Return about how many bytes all that was noted will take."""
        sizes = sum(
            float(np.sum(PRECISION_BITS - np.log2(sizes, dtype=np.float64)))
            for sizes in self._sizes
        )
        return (sizes + sum(int(widths.sum(dtype=np.int64)) for widths in self._raw_widths)) / 8

    def finish(self, lanes: int) -> tuple[bytes, bytes]:
        """Return the words, states first, and the raw bits."""
        states = np.full(lanes, _LOW, np.int64)
        words: list[NDArray[np.uint16]] = []
        for starts, sizes in zip(reversed(self._starts), reversed(self._sizes), strict=True):
            for first in reversed(range(0, len(starts), lanes)):
                start = starts[first : first + lanes].astype(np.int64)
                size = sizes[first : first + lanes].astype(np.int64)
                state = states[: len(start)]
                full = state >= size << (32 - PRECISION_BITS)
                words.append((state[full] & 0xFFFF).astype(np.uint16))
                state[full] >>= _LOW_BITS
                high, low = np.divmod(state, size)
                state[:] = (high << PRECISION_BITS) + low + start
        words.reverse()
        stream = np.concatenate([np.empty(0, np.uint16), *words]).astype("<u2")
        return states.astype("<u4").tobytes() + stream.tobytes(), self._raw_bytes()

    def _raw_bytes(self) -> bytes:
        values = np.concatenate([np.empty(0, np.int64), *self._raw])
        widths = np.concatenate([np.empty(0, np.uint8), *self._raw_widths]).astype(np.int64)
        owner = np.repeat(np.arange(len(widths)), widths)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(widths) - widths, widths)
        bits = (values[owner] >> place & 1).astype(np.uint8)
        return np.packbits(bits, bitorder="little").tobytes()


class Decoder:
    """Reads back what an Encoder wrote, in the same order of calls."""

    def __init__(self, words: bytes, raw: bytes, lanes: int) -> None:
        if len(words) < 4 * lanes or len(words) % 2:
            raise DeltaError(f"{len(words)} bytes of words cannot hold {lanes} lanes")
        self._states = np.frombuffer(words, "<u4", lanes).astype(np.int64)
        self._words = np.frombuffer(words, "<u2", offset=4 * lanes)
        self._next = 0
        self._raw = np.frombuffer(raw + bytes(8), np.uint8)
        self._raw_bits = 8 * len(raw)
        self._raw_next = 0

    def symbols(self, bounds: Ints, contexts: Ints, symbols: Ints | None = None) -> Ints:
        """Return one symbol for every context."""
        del symbols
        lanes = len(self._states)
        found = np.empty(len(contexts), np.int64)
        lane = np.arange(lanes)
        for first in range(0, len(contexts), lanes):
            rows = bounds[contexts[first : first + lanes]]
            state = self._states[: len(rows)]
            slot = state & ((1 << PRECISION_BITS) - 1)
            symbol = (rows[:, 1:SYMBOLS] <= slot[:, None]).sum(axis=1)
            here = lane[: len(rows)]
            start = rows[here, symbol]
            state[:] = (rows[here, symbol + 1] - start) * (state >> PRECISION_BITS) + slot - start
            low = np.flatnonzero(state < _LOW)
            words = self._words[self._next : self._next + len(low)]
            if len(words) < len(low):
                raise DeltaError("the words end before the weights do")
            state[low] = state[low] << _LOW_BITS | words
            self._next += len(low)
            found[first : first + lanes] = symbol
        return found

    def raw(self, widths: Ints, values: Ints | None = None) -> Ints:
        """Return one number of so many bits for every width."""
        del values
        ends = self._raw_next + np.cumsum(widths)
        total = int(ends[-1]) if len(ends) else self._raw_next
        if total > self._raw_bits:
            raise DeltaError("the raw bits end before the weights do")
        place = ends - widths
        number = np.zeros(len(widths), np.int64)
        for byte in range(5):
            number |= self._raw[(place >> 3) + byte].astype(np.int64) << 8 * byte
        self._raw_next = total
        return number >> (place & 7) & (1 << widths) - 1

    def check_end(self) -> None:
        """Refuse what is left over, or states that no encoder starts from."""
        if self._next != len(self._words) or np.any(self._states != _LOW):
            raise DeltaError("the words do not end where the weights do")
        if self._raw_bits - self._raw_next >= 8:
            raise DeltaError("the raw bits do not end where the weights do")
