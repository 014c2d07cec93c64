"""Randomness without a generator: the same seed and count give the same draw."""

import hashlib


def draw(seed: str, count: int) -> float:
    """Return a number in [0, 1) that looks random over `seed` and `count`."""
    bits = hashlib.blake2b(f"{seed}/{count}".encode(), digest_size=6).digest()
    return int.from_bytes(bits, "big") / 2**48
