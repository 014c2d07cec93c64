"""What can be wrong with a delta."""


class DeltaError(ValueError):
    """The delta is broken, not for this base, or leads to more bytes than allowed."""
