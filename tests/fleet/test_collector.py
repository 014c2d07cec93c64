"""Cyclic garbage in a process that holds a fleet."""

import subprocess
import sys

from fleet.shell.collector import YOUNG

IN_A_PROCESS = """
import gc, weakref
from fleet.shell.collector import YOUNG, look_seldom

look_seldom()

class Knot:
    def __init__(self):
        self.me = self

first = weakref.ref(Knot())
kept = []
while first() is not None and len(kept) < 4 * YOUNG:
    kept.append([])
assert gc.get_freeze_count() > 0
print(len(kept))
"""


def test_cycles_are_still_found_though_they_are_looked_for_seldom() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, timeout=60, check=True
    )

    made = int(ran.stdout)
    assert YOUNG // 2 < made < 2 * YOUNG
