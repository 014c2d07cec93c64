"""`fleet events`: what happened lately."""

import time

import click

from fleet.cli import views
from fleet.cli.render import answer
from fleet.cli.session import Session, common


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@common
@click.pass_obj
def events(session: Session, limit: int) -> None:
    """Show what happened lately, the newest first."""
    with session.client() as client:
        found = client.events(limit)
    answer(session, found, views.event_list(found, time.time()))
