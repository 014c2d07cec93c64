"""Prints from when to when an agent had two engines; arguments: its process id, the old engine's.

Looks at one small file many times a second, so that what is measured is little disturbed.
"""

import sys
import time
from pathlib import Path

LOOK_S = 0.01
LIMIT_S = 60.0


def main() -> None:
    """Wait for another engine, then for the end of the old one."""
    agent, old = sys.argv[1:]
    children = Path(f"/proc/{agent}/task/{agent}/children")
    begin = 0.0
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        there = children.read_text().split()
        # Asked again each time: a child is not at once what it becomes.
        if not begin and any(_is_engine(pid) for pid in there if pid != old):
            begin = time.monotonic()
        if begin and old not in there:
            print(begin, time.monotonic())
            return
        time.sleep(LOOK_S)
    sys.exit(f"no swap within {LIMIT_S:.0f} s")


def _is_engine(pid: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"--generation" in command


if __name__ == "__main__":
    main()
