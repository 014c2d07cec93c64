"""`fleet top`: the whole fleet at a glance."""

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from fleet.cli import views
from fleet.cli.render import answer, console
from fleet.cli.session import Session, common
from fleet.core.views import DeviceView, HealthView, RolloutView, View

if TYPE_CHECKING:
    from fleet.shell.client import ControllerClient

_REFRESH_S = 1.0


class TopView(View):
    """What `fleet top --json` prints."""

    health: HealthView
    devices: tuple[DeviceView, ...]
    rollouts: tuple[RolloutView, ...]


@click.command()
@click.option("--once", is_flag=True, help="Print one snapshot and end.")
@common
@click.pass_obj
def top(session: Session, once: bool) -> None:
    """Show every device live: phase, release, requests, latency, accuracy, load.

    Ctrl-C ends it. Without a terminal it prints one snapshot.
    """
    with session.client() as client:
        snapshot = _snapshot(client)
        if once or session.json or not sys.stdout.isatty():
            answer(session, snapshot, _lines(snapshot))
        else:
            # Ctrl-C is how one leaves.
            with suppress(KeyboardInterrupt):
                _live(session, client, snapshot)


def _snapshot(client: "ControllerClient") -> TopView:
    return TopView(
        health=client.health(),
        devices=tuple(client.devices()),
        rollouts=tuple(client.rollouts()),
    )


def _lines(snapshot: TopView, room: int | None = None) -> views.Lines:
    return views.top(snapshot.health, snapshot.devices, snapshot.rollouts, room)


def _live(session: Session, client: "ControllerClient", snapshot: TopView) -> None:
    from rich.live import Live

    from fleet.shell.client import UnreachableError

    screen = console(session, error=False)
    note = ""
    with Live(console=screen, auto_refresh=False, screen=True) as live:
        while True:
            lines = _lines(snapshot, screen.height - (2 if note else 0))
            lines += ["", note] if note else []
            text = screen.render_str("\n".join(lines), overflow="ellipsis")
            text.no_wrap = True
            live.update(text, refresh=True)
            time.sleep(_REFRESH_S)
            try:
                snapshot, note = _snapshot(client), ""
            except UnreachableError as error:
                note = f"{error}; trying again"
