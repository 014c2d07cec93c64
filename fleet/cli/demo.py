"""`fleet demo`: the whole loop on this machine, for real."""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from fleet.cli.session import Session
from fleet.core.errors import FleetError

if TYPE_CHECKING:
    from fleet.demo.world import Plan, World

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option("--devices", type=click.IntRange(2, 20), default=5, show_default=True)
@click.option(
    "--broker",
    default="nats",
    show_default=True,
    metavar="nats|mosquitto|mqtt://USER@HOST:PORT",
    help="Start this one, or use one of yours.",
)
@click.option(
    "--broker-password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One line: the password of USER at your broker.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Makes other pictures.")
@click.option("--no-color", is_flag=True, help="Plain text.")
@click.pass_obj
def demo(
    session: Session,
    *,
    keep: bool,
    devices: int,
    broker: str,
    broker_password_file: Path | None,
    seed: int,
    no_color: bool,
) -> None:
    """Run a controller and devices here, and bring three releases to them; the last one is bad.

    Real processes, a real broker, real models on real images, under a minute. Everything is
    ended and removed afterwards.
    """
    started = time.monotonic()
    click.echo("farflung demo: three releases on their way to devices, all on this machine")
    from fleet.demo.screen import Screen
    from fleet.demo.story import Story
    from fleet.demo.world import Plan

    session.color = session.color and not no_color
    screen = Screen(session)
    with _world(Plan(devices, broker, broker_password_file, seed, keep)) as world:
        Story(screen, world).tell(started)
        if keep:
            screen.say(f"Everything runs until Ctrl-C. Logs are in {world.home}.")
            with suppress(KeyboardInterrupt):
                signal.pause()
        screen.say("Stopping all of it.")


@contextmanager
def _world(plan: "Plan") -> "Iterator[World]":
    """Give a world that ends with the block, however that ends, and leaves nothing behind."""
    from fleet.demo.world import World

    home = Path(tempfile.mkdtemp(prefix="farflung-demo-"))
    kept = False
    with _signals(_interrupt):
        try:
            world = World(plan, home)
            try:
                yield world
            finally:
                # An impatient second Ctrl-C must not leave half of it running.
                with _signals(signal.SIG_IGN):
                    world.stop()
        except FleetError as error:
            kept = plan.keep
            if kept:
                error.next_step = f"look into the logs in {home}"
            raise
        finally:
            if not kept:
                shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _signals(
    handler: "Callable[[int, FrameType | None], None] | signal.Handlers",
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(number: int, frame: "FrameType | None") -> None:
    raise KeyboardInterrupt
