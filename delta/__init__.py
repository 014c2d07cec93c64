"""Weight deltas: a new model file, told as what changed since one that the reader has.

`encode` runs where releases are made, `decode` on a device, in a short-lived process of its own.
"""

from delta.decode import decode
from delta.encode import encode
from delta.errors import DeltaError

__all__ = ["DeltaError", "decode", "encode"]
