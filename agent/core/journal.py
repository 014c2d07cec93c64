"""The journal as bytes: versioned JSON that can be told from a torn or zero-filled file."""

import json

from pydantic import TypeAdapter, ValidationError

from agent.core.state import Journal
from wire.codec import first_error

VERSION = 1
_JOURNAL = TypeAdapter(Journal)


def write_journal(journal: Journal) -> bytes:
    """Return `journal` as bytes for the disk."""
    return b'{"version":%d,"journal":%b}\n' % (VERSION, _JOURNAL.dump_json(journal))


def read_journal(data: bytes) -> Journal:
    """Read what `write_journal` wrote. A newer version is read as far as it is understood.

    Raises:
        ValueError: torn, overwritten, or not a journal; the message says which.
    """
    try:
        body = json.loads(data)
    except ValueError:
        shown = "only zeros" if not data.strip(b"\0") else repr(data[:40])
        raise ValueError(f"expected JSON, got {len(data)} bytes: {shown}") from None
    if not isinstance(body, dict) or not isinstance(body.get("version"), int):
        raise ValueError("expected a journal with a version, got other JSON")
    try:
        return _JOURNAL.validate_python(body.get("journal"))
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
