"""Signed, never encrypted: the envelope of Desired and Command.

Canonical bytes are JSON with sorted keys, no white space, and no fractions, so that any
language writes them alike. The signature also covers the kind of document, so that one kind
can never be passed off as another.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from wire.codec import DecodeError, Document, Part, encode, parse_json, validate
from wire.schema import Field

D = TypeVar("D", bound=Document)
_DOMAIN = "farflung/1/"


class SealError(ValueError):
    """A document that claims to be signed is not, or not by a key we trust."""


class Signature(Part):
    """One key's signature over the canonical bytes."""

    key: str
    sig: str


class Envelope(Document):
    """A signed document: `signed` is readable as it stands."""

    kind: str
    signed: dict[str, Any]
    signatures: Annotated[tuple[Signature, ...], Field(max_length=8)]


def canonical(value: Any) -> bytes:
    """Return the one byte form of a JSON value without fractions.

    Raises:
        TypeError: there is a float in it, whose text would depend on the language.
    """
    _no_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _no_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"expected no fractions in a signed document, got {value}")
    if isinstance(value, dict):
        for item in value.values():
            _no_floats(item)
    elif isinstance(value, list):
        for item in value:
            _no_floats(item)


def key_id(public: bytes) -> str:
    """Return the short name of a public key: 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Sealer:
    """Holds the private key. 32 bytes, Ed25519."""

    seed: bytes

    @property
    def public(self) -> bytes:
        """The 32 bytes that devices verify with."""
        return bytes(_signing_key(self.seed).verify_key)

    def seal(self, document: Document) -> bytes:
        """Return `document` in a signed envelope, as bytes to publish."""
        kind = type(document).__name__
        signed = document.model_dump(mode="json", exclude_none=True)
        message = (_DOMAIN + kind + "\n").encode() + canonical(signed)
        signature = _signing_key(self.seed).sign(message).signature
        return encode(
            Envelope(
                kind=kind,
                signed=signed,
                signatures=(
                    Signature(key=key_id(self.public), sig=base64.b64encode(signature).decode()),
                ),
            )
        )


@lru_cache(maxsize=4)
def _signing_key(seed: bytes) -> SigningKey:
    # Making it of the seed takes as long as a signature.
    return SigningKey(seed)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Holds the public keys a device trusts, 32 bytes each."""

    trusted: tuple[bytes, ...]

    def open(self, kind: type[D], data: bytes) -> D:
        """Return the document inside an envelope.

        Raises:
            DecodeError: not an envelope, or not a `kind` inside.
            SealError: of another kind, unsigned, or signed by a stranger.
        """
        envelope = validate(Envelope, parse_json(data))
        if envelope.kind != kind.__name__:
            raise SealError(f"expected a signed {kind.__name__}, got a {envelope.kind[:40]}")
        try:
            message = (_DOMAIN + envelope.kind + "\n").encode() + canonical(envelope.signed)
        except (TypeError, ValueError, RecursionError) as error:
            raise DecodeError(f"{envelope.kind[:40]}: cannot be signed: {error}") from None
        keys = {key_id(public): public for public in self.trusted}
        for signature in envelope.signatures:
            public = keys.get(signature.key)
            if public is not None and _verifies(public, message, signature.sig):
                return validate(kind, envelope.signed)
        strangers = ", ".join(signature.key[:16] for signature in envelope.signatures) or "nobody"
        raise SealError(
            f"{kind.__name__}: expected a signature by {', '.join(keys)}, got one by {strangers}"
        )


def _verifies(public: bytes, message: bytes, signature: str) -> bool:
    try:
        VerifyKey(public).verify(message, base64.b64decode(signature, validate=True))
    except (BadSignatureError, ValueError):
        return False
    return True
