"""Tells what a manifest became, field by field, whichever side of `wire.schema` reads it.

    python -m tests.wire.sides

is the trusting side: a manifest a line on standard input, what it became a line on the other.
"""

import json
import sys
from typing import Any, ClassVar, get_origin, get_type_hints

import wire

if __name__ == "__main__":
    wire.TRUSTING = True

from wire.codec import DecodeError, decode
from wire.manifest import Manifest
from wire.schema import BaseModel


def describe(value: Any) -> Any:
    """Return a value as JSON that tells types apart, with every field of every model in it."""
    kind = type(value).__name__
    if isinstance(value, BaseModel):
        hints = get_type_hints(type(value)).items()
        names = [
            name for name, hint in hints if get_origin(hint) is not ClassVar and name[0] != "_"
        ]
        return [kind, {name: describe(getattr(value, name)) for name in sorted(names)}]
    if isinstance(value, tuple):
        return [kind, [describe(item) for item in value]]
    if isinstance(value, dict):
        return [kind, [[describe(key), describe(item)] for key, item in value.items()]]
    return [kind, repr(value)]


def become(data: bytes) -> Any:
    """Return what a manifest becomes, or why there is none."""
    try:
        return describe(decode(Manifest, data))
    except DecodeError as error:
        return {"refused": str(error)}


def main() -> None:
    """Answer line by line."""
    assert "pydantic" not in sys.modules
    for line in sys.stdin.buffer:
        print(json.dumps(become(line)), flush=True)


if __name__ == "__main__":
    main()
