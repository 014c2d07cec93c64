"""How long and how much, in words."""


def ago(seconds: float) -> str:
    """Return how long ago: `3 s ago`, `14 min ago`, `5 h ago`, `2 d ago`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def lasting(seconds: float) -> str:
    """Return how long: `25 s`, `14 min`, `5 h`, `2 d`."""
    return ago(seconds).removesuffix(" ago")


def size(bytes_: float) -> str:
    """Return a size in binary units: `161.2 KiB`."""
    amount = float(bytes_)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def spaced(word: str) -> str:
    """Return `rolled_back` as `rolled back`."""
    return word.replace("_", " ")
