"""Python's search for cyclic garbage, at the pace of a process that holds a fleet.

A controller keeps a few objects for each device for as long as it runs. Python looks through all of
them again and again while messages come in, and finds nothing: what a message makes is freed by
counting references. So what is there at the start is left out, and looks are made seldom. They are
still made: cycles that a library leaves behind are found.
"""

import gc

YOUNG = 50_000
"""New objects, less the freed ones, after which the youngest are looked through."""

OLDER = 50
"""Looks at one generation after which the next older one is looked through as well."""


def look_seldom() -> None:
    """Leave out all that is there now, and look for cycles seldom from here on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
