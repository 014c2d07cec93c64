"""Whose fault it is, when a thing fails that no plan foresees."""


class DeviceError(Exception):
    """This machine will not let the agent work: a disk, a port, a setting.

    The message is one line for its operator: what, which, expected, got, what to do.
    """
