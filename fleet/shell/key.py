"""The controller's signing key: made once, readable by its owner alone."""

import base64
import os
import secrets
from pathlib import Path

from fleet.core.errors import FleetError

_NEXT = "restore it from a backup: devices trust no other key"


def read_or_make_key(path: Path) -> bytes:
    """Return the 32-byte Ed25519 seed in `path`, made at the first start.

    Raises:
        FleetError: the file cannot be read or written, or holds something else.
    """
    try:
        if not path.exists():
            _make(path)
        text = path.read_bytes()
    except OSError as error:
        raise FleetError(f"key: cannot use {path}: {error.strerror}", _NEXT) from error
    try:
        seed = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise FleetError(f"key: expected 32 bytes as base64 in {path}, got another text", _NEXT)
    return seed


def _make(path: Path) -> None:
    partial = path.with_suffix(".new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
