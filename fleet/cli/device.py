"""`fleet device`: look at devices, and speak to one."""

import time

import click

from fleet.cli import views
from fleet.cli.group import Group
from fleet.cli.render import answer
from fleet.cli.session import DONE, FAILED, STILL_GOING, Session, common, duration
from fleet.core.views import View
from wire.command import VERBS

_POLL_S = 0.2


class ConfigView(View):
    """The configuration of a device's agent."""

    device: str
    config: str


@click.group(cls=Group)
def device() -> None:
    """Devices: list, show, config, cmd."""


@device.command("list")
@common
@click.pass_obj
def list_devices(session: Session) -> None:
    """List every device ever heard of."""
    with session.client() as client:
        devices = client.devices()
    answer(session, devices, views.device_list(devices, time.time()))
    if not devices:
        session.say("next: fleet device config cam-1 > agent.toml")


@device.command()
@click.argument("id")
@common
@click.pass_obj
def show(session: Session, id: str) -> None:
    """Show one device: what it is, what it serves and how well."""
    with session.client() as client:
        view = client.device(id)
    answer(session, view, views.device_show(view, time.time()))


@device.command()
@click.argument("id")
@common
@click.pass_obj
def config(session: Session, id: str) -> None:
    """Print the agent.toml with which a device joins this fleet. It holds a password."""
    with session.client() as client:
        text = client.device_config(id)
    answer(session, ConfigView(device=id, config=text), text.splitlines())
    session.say(f"next: on {id}, farflung-agent --config agent.toml")


@device.command()
@click.argument("id")
@click.argument("verb", metavar=f"[{'|'.join(VERBS)}]")
@click.option("--timeout", type=duration, default="30s", help="How long to wait for the answer.")
@common
@click.pass_obj
def cmd(session: Session, id: str, verb: str, timeout: int) -> int:
    """Send a one-shot command to a device and wait for its answer."""
    deadline = time.monotonic() + timeout
    with session.client() as client:
        command = client.send_command(id, verb)
        while command.outcome == "waiting" and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            command = client.command(id, command.id)
    answer(session, command, views.command_result(command))
    if command.outcome == "done":
        return DONE
    session.say(f"next: fleet device show {id}")
    return STILL_GOING if command.outcome == "waiting" else FAILED
