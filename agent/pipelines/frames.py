"""Frames out of a stream of bytes that a command writes."""

from typing import Protocol

MAX_FRAME_BYTES = 15 * 1024 * 1024
"""Leaves room for the words around it in the 16 MiB that the engine takes."""

_PREFIX_BYTES = 4
_START, _END, _SCAN, _FILL, _STUFFED, _ALONE = 0xD8, 0xD9, 0xDA, 0xFF, 0x00, 0x01
_RESTARTS = range(0xD0, 0xD8)


class CutError(ValueError):
    """The stream cannot be cut as configured; only a fresh start of the command helps."""


class Cutter(Protocol):
    """Takes bytes as they come and returns the frames that are whole."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes.

        Raises:
            CutError: it never will.
        """
        ...

    def end(self) -> list[bytes]:
        """Return what the end of the stream completes."""
        ...


def cutter(frames: str | int) -> Cutter:
    """Return a fresh one for "jpeg", "lines", "length" or a number of bytes."""
    if isinstance(frames, int):
        return Fixed(frames)
    kinds: dict[str, type[Jpegs | Lines | Prefixed]] = {
        "jpeg": Jpegs, "lines": Lines, "length": Prefixed,
    }  # fmt: skip
    return kinds[frames]()


class Fixed:
    """Frames of so many bytes each."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes."""
        self._waiting += data
        whole = len(self._waiting) // self._size * self._size
        found = [bytes(self._waiting[at : at + self._size]) for at in range(0, whole, self._size)]
        del self._waiting[:whole]
        return found

    def end(self) -> list[bytes]:
        """Return nothing: a part is no frame."""
        return []


class Prefixed:
    """Frames with their length before them: 4 bytes, the most significant first."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes.

        Raises:
            CutError: one is announced that is too long.
        """
        self._waiting += data
        found = []
        at = 0
        while len(self._waiting) - at >= _PREFIX_BYTES:
            size = int.from_bytes(self._waiting[at : at + _PREFIX_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise CutError(
                    f"expected a frame of at most {MAX_FRAME_BYTES} bytes, got a length of {size}"
                )
            if len(self._waiting) - at - _PREFIX_BYTES < size:
                break
            at += _PREFIX_BYTES
            found.append(bytes(self._waiting[at : at + size]))
            at += size
        del self._waiting[:at]
        return found

    def end(self) -> list[bytes]:
        """Return nothing: a part is no frame."""
        return []


class Lines:
    """Lines without their ends; empty ones are none."""

    def __init__(self) -> None:
        self._waiting = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes.

        Raises:
            CutError: one is too long.
        """
        # Looking for line ends in `data` alone: a long line is not searched again and again.
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._waiting + lines[0]
            self._waiting = rest
        else:
            self._waiting += rest
        if max(map(len, (*lines, self._waiting))) > MAX_FRAME_BYTES:
            raise CutError(f"expected a line of at most {MAX_FRAME_BYTES} bytes, got a longer one")
        return [line for line in (each.rstrip(b"\r") for each in lines) if line]

    def end(self) -> list[bytes]:
        """Return the last line, which nobody ended."""
        last, self._waiting = self._waiting.rstrip(b"\r"), b""
        return [last] if last else []


class Jpegs:
    """JPEG images one after the other, as `ffmpeg -f mjpeg` writes them.

    The segments of the head are stepped over by their lengths: a thumbnail in them has an end of
    image of its own. What is broken is skipped up to the next start of an image.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._at = 0
        """Where the next marker is, or is looked for; 0: the image has not begun."""
        self._scanning = False
        """Whether the coefficients are being read, where markers are to be looked for."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the images that `data` completes.

        Raises:
            CutError: one is too long.
        """
        self._waiting += data
        found = []
        while self._find_end():
            found.append(bytes(self._waiting[: self._at]))
            self._drop(self._at)
        if len(self._waiting) > MAX_FRAME_BYTES:
            raise CutError(f"expected an image of at most {MAX_FRAME_BYTES} bytes, got more")
        return found

    def end(self) -> list[bytes]:
        """Return nothing: a part is no image."""
        return []

    def _drop(self, count: int) -> None:
        del self._waiting[:count]
        self._at, self._scanning = 0, False

    def _find_end(self) -> bool:
        """Step to the end of the first image; False while it is not all there."""
        while self._at or self._find_start():
            if self._scanning and not self._find_marker():
                return False
            if len(self._waiting) < self._at + 2:
                return False
            first, code = self._waiting[self._at], self._waiting[self._at + 1]
            if first != _FILL:
                self._drop(2)
            elif code == _FILL:
                self._at += 1
            elif code == _END:
                self._at += 2
                return True
            elif code == _START:
                self._drop(self._at)  # the image before was cut short
            elif code == _ALONE or code in _RESTARTS:
                self._at += 2
            elif not self._step_over(code):
                return False
        return False

    def _find_start(self) -> bool:
        place = self._waiting.find(b"\xff\xd8")
        if place < 0:
            del self._waiting[: max(0, len(self._waiting) - 1)]
            return False
        del self._waiting[:place]
        self._at = 2
        return True

    def _find_marker(self) -> bool:
        """Step to the next marker among the coefficients, where 0xFF 0x00 stands for 0xFF."""
        while True:
            place = self._waiting.find(b"\xff", self._at)
            self._at = max(self._at, len(self._waiting)) if place < 0 else place
            if len(self._waiting) < self._at + 2:
                return False
            code = self._waiting[self._at + 1]
            if code != _STUFFED and code not in _RESTARTS:
                self._scanning = False
                return True
            self._at += 2

    def _step_over(self, code: int) -> bool:
        """Step over a segment by its length; False while that is not there."""
        if len(self._waiting) < self._at + 4:
            return False
        size = int.from_bytes(self._waiting[self._at + 2 : self._at + 4], "big")
        if size < 2:
            self._drop(2)
        else:
            self._at += 2 + size
            self._scanning = code == _SCAN
        return True
