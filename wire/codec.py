"""Documents to bytes and back, with one error for whatever a peer may send."""

import json
import zlib
from typing import Any, ClassVar, TypeVar

from wire.schema import BaseModel, ConfigDict, ValidationError

MAX_DOCUMENT_BYTES = 120 * 1024
"""Every message stays under 128 KiB, the smallest limit among the brokers we know."""

_DEFLATED = b"\x78"


class DecodeError(ValueError):
    """What a peer sent is not a document we can read; the message says what and why."""


class Document(BaseModel):
    """A message body: frozen, with a schema version, deaf to fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, defer_build=True)

    SCHEMA: ClassVar[int] = 1
    schema_version: int = 1


class Part(BaseModel):
    """A value inside a document."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, defer_build=True)


D = TypeVar("D", bound=Document)


def encode(document: Document, *, deflate: bool = False) -> bytes:
    """Return `document` as compact JSON, deflated on request (statistics, not state)."""
    text = document.model_dump_json(exclude_none=True).encode()
    return zlib.compress(text, 9) if deflate else text


def parse_json(data: bytes) -> Any:
    """Read JSON of at most `MAX_DOCUMENT_BYTES`, deflated or plain.

    Raises:
        DecodeError: too long, not JSON, or a compression bomb.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DecodeError(f"expected at most {MAX_DOCUMENT_BYTES} bytes, got {len(data)}")
    if data[:1] == _DEFLATED:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(data, MAX_DOCUMENT_BYTES)
        except zlib.error as error:
            raise DecodeError(f"expected deflated JSON, got {error}") from error
        if not inflater.eof:
            raise DecodeError(
                f"expected at most {MAX_DOCUMENT_BYTES} bytes inflated, got more or a cut stream"
            )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"expected JSON, got {data[:40]!r}: {error}") from error


def decode(kind: type[D], data: bytes) -> D:
    """Read one document of `kind`.

    A newer schema version is read as far as it is understood: fields are only ever added.

    Raises:
        DecodeError: not JSON, or a required field is missing or wrong.
    """
    return validate(kind, parse_json(data))


def validate(kind: type[D], value: Any) -> D:
    """Check a parsed JSON value against `kind`.

    Raises:
        DecodeError: a required field is missing or wrong.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise DecodeError(f"{kind.__name__}: {first_error(error)}") from None


def first_error(error: ValidationError) -> str:
    """Return the first thing wrong, in one line: where, what was expected, what came."""
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in detail["loc"])[:80] or "document"
    if not where.isprintable():
        where = repr(where)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {detail['msg']}, got {str(detail['input'])[:80]!r}{more}"
