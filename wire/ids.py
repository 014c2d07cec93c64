"""Names that cross the wire, validated once, here."""

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated

from wire.schema import AfterValidator, Field

BUCKETS = 64
"""Hash buckets that device topics are spread over, so that controllers can share a fleet."""

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_id(value: str) -> str:
    """Return `value` when it is a device, model or rollout id.

    Ids are 1 to 40 characters of a-z, 0-9 and inner dashes: never as long as a digest, and
    never anything a topic filter, a file name or a shell would read otherwise.

    Raises:
        ValueError: it is not.
    """
    if _ID.fullmatch(value) is None:
        raise ValueError(
            f"expected 1 to 40 characters of a-z, 0-9 and inner dashes, got {value[:60]!r}"
        )
    return value


def check_digest(value: str) -> str:
    """Return `value` when it is "sha256:" and 64 hex digits.

    Raises:
        ValueError: it is not.
    """
    if _DIGEST.fullmatch(value) is None:
        raise ValueError(f"expected sha256: and 64 hex digits, got {value[:80]!r}")
    return value


def check_plain_name(value: str) -> str:
    """Return `value` when it is a file name without any path in it.

    Raises:
        ValueError: it is empty, too long, hidden, or has a separator or a control character.
    """
    if not value or len(value) > 120 or value.startswith(".") or not value.isprintable():
        raise ValueError(f"expected a plain file name, got {value[:60]!r}")
    if "/" in value or "\\" in value or "\0" in value:
        raise ValueError(f"expected a file name without a path, got {value[:60]!r}")
    return value


DeviceId = Annotated[str, AfterValidator(check_id)]
ModelName = Annotated[str, AfterValidator(check_id)]
RolloutId = Annotated[str, AfterValidator(check_id)]
CommandId = Annotated[str, AfterValidator(check_id)]
Digest = Annotated[str, AfterValidator(check_digest)]
PlainName = Annotated[str, AfterValidator(check_plain_name)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""Any number on the wire: it fits a double, and sums of it fit a store."""
UnixTime = Count
"""Whole seconds since 1970, on the writer's clock."""


@dataclass(frozen=True, slots=True, order=True)
class ReleaseRef:
    """A release by name and version, written `detector@7`."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> "ReleaseRef":
        """Read `name@version`.

        Raises:
            ValueError: it is written otherwise.
        """
        name, at, version = text.partition("@")
        digits = version.isascii() and version.isdigit() and len(version) <= 10
        if not at or not digits or not 0 < int(version) < 2**31:
            raise ValueError(f"expected NAME@VERSION such as detector@7, got {text[:60]!r}")
        return cls(check_id(name), int(version))


def digest_of(data: bytes) -> str:
    """Return the digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_hex(digest: str) -> str:
    """Return the 64 hex digits of a digest: its form in topics and file names."""
    return check_digest(digest).removeprefix("sha256:")


def bucket_of(device: str) -> str:
    """Return the two hex digits of the topic bucket that `device` lives in."""
    return f"{hashlib.sha256(device.encode()).digest()[0] % BUCKETS:02x}"
