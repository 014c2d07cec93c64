"""Elements of BYTES as apps send them to a desk: whole pictures, texts, rows."""

import base64
import binascii
import math
import struct
from typing import Any

from agent.engine.tensors import TensorError

MAX_ITEMS = 1024
_LENGTH = struct.Struct("<I")


def check_count(name: str, shape: Any) -> int:
    """Return how many elements a shape [n] or [n, 1] has.

    Raises:
        TensorError: it is another.
    """
    sizes = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not sizes or len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] > MAX_ITEMS:
        raise TensorError(
            f"input {name}: shape: expected [n] or [n, 1], n up to {MAX_ITEMS}, got "
            f"{str(shape)[:80]}"
        )
    return math.prod(shape)


def from_json(name: str, count: int, data: Any, *, in_base64: bool) -> list[bytes]:
    """Return the elements that JSON strings stand for: UTF-8 text, or base64 of anything.

    Raises:
        TensorError: of another number, no strings, or no base64.
    """
    flat = data
    if isinstance(data, list) and any(isinstance(item, list) for item in data):
        flat = [part for item in data for part in (item if isinstance(item, list) else [item])]
    if (
        not isinstance(flat, list)
        or len(flat) != count
        or not all(isinstance(item, str) for item in flat)
    ):
        raise TensorError(f"input {name}: data: expected {count} strings, got {str(data)[:80]}")
    if in_base64:
        return [from_base64(name, item) for item in flat]
    return [item.encode(errors="surrogatepass") for item in flat]


def from_bytes(name: str, count: int, raw: memoryview) -> list[bytes]:
    """Return the elements in `raw`, each a little-endian u32 length and its bytes.

    Raises:
        TensorError: of another number, or cut.
    """
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) <= count:
        end = at + _LENGTH.size
        length = _LENGTH.unpack_from(raw, at)[0] if end <= len(raw) else len(raw)
        if end + length > len(raw):
            raise TensorError(f"input {name}: expected u32 length + bytes, got a cut element")
        found.append(bytes(raw[end : end + length]))
        at = end + length
    if len(found) != count:
        raise TensorError(f"input {name}: expected {count} elements as its shape says, got others")
    return found


def from_base64(name: str, text: Any) -> bytes:
    """Return what base64 stands for.

    Raises:
        TensorError: it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise TensorError(f"input {name}: expected base64: {error}") from None
