"""A command that stays, and bears a controller that is away for a moment."""

import time
from collections.abc import Callable
from typing import TypeVar

from fleet.cli.session import Session

PATIENCE_S = 30.0
"""How long a controller may be away: it is being restarted, say."""
AGAIN_S = 2.0

T = TypeVar("T")


def patiently(session: Session, ask: Callable[[], T]) -> T:
    """Return an answer, asking again while nobody answers; what then still fails is raised."""
    from fleet.shell.client import UnreachableError

    patience = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except UnreachableError as error:
            if time.monotonic() > patience:
                raise
            session.say(f"{error}; trying again")
            time.sleep(AGAIN_S)
