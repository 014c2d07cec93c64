"""`fleet events`: what happened lately, and what happens now."""

import time
from functools import partial
from typing import TYPE_CHECKING

import click

from fleet.cli import views
from fleet.cli.patience import patiently
from fleet.cli.render import answer
from fleet.cli.session import Session, common, duration

if TYPE_CHECKING:
    from fleet.shell.client import ControllerClient

_POLL_S = 1.0
_MOST = 1000
"""Events that are asked for at a time."""


@click.command()
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True)
@click.option("--kind", default="", help="Of this kind alone: rollout, deployment, device, ...")
@click.option(
    "--about", default="", metavar="SUBJECT", help="About one device, rollout or release: r-31."
)
@click.option("--since", type=duration, help="Not older than this: 90s, 15m, 2h or 1d.")
@click.option("--follow", "-f", is_flag=True, help="Stay, and tell what happens, newest last.")
@common
@click.pass_obj
def events(
    session: Session, *, limit: int, kind: str, about: str, since: int | None, follow: bool
) -> None:
    """Show what happened lately, the newest first."""
    after = 0.0 if since is None else time.time() - since
    with session.client() as client:
        if follow:
            _follow(session, client, limit, kind, about, after)
            return
        found = client.events(limit, kind=kind, about=about, since=after)
    answer(session, found, views.event_list(found, time.time()))


def _follow(  # noqa: PLR0917 - as they were given
    session: Session, client: "ControllerClient", limit: int, kind: str, about: str, since: float
) -> None:
    """Print events as they come, a line each, until interrupted; with `--json` an object each."""
    last = 0
    found = client.events(limit, kind=kind, about=about, since=since)[::-1]
    while True:
        for event in found:
            last = max(last, event.id)
            click.echo(event.model_dump_json() if session.json else views.event_line(event))
        if len(found) < _MOST:
            time.sleep(_POLL_S)
        asked = partial(client.events, _MOST, kind=kind, about=about, after=last)
        found = patiently(session, asked)
