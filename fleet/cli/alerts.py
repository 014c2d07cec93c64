"""`fleet alerts`: what is wrong, what was done about it, and what nobody wants to hear."""

import getpass
import time
from pathlib import Path

import click

from fleet.cli import alert_lines as lines
from fleet.cli.group import Group
from fleet.cli.render import answer
from fleet.cli.session import FAILED, Session, common, duration
from fleet.core.alert_views import SilenceRequest, policy_view


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def alerts(ctx: click.Context) -> None:
    """Alerts: list, show, ack, silence, unsilence, silences, rules, check."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_alerts, all_of_them=False)


@alerts.command("list")
@click.option("--all", "all_of_them", is_flag=True, help="Also those that are over.")
@common
@click.pass_obj
def list_alerts(session: Session, all_of_them: bool) -> None:
    """List what fires or is about to, the most severe first."""
    with session.client() as client:
        found = client.alerts(resolved=all_of_them)
    answer(session, found, lines.alert_list(found, time.time()))
    firing = [each for each in found if each.state == "firing"]
    if firing:
        session.say(f"next: fleet alerts show {firing[0].id}")


@alerts.command()
@click.argument("id")
@common
@click.pass_obj
def show(session: Session, id: str) -> None:
    """Show one alert: since when, why, and what was done."""
    with session.client() as client:
        view = client.alert(id)
    answer(session, view, lines.alert_show(view, time.time()))
    if view.state == "firing" and view.acknowledged_by is None:
        session.say(f"next: fleet alerts ack {id}")


@alerts.command()
@click.argument("id")
@click.option("--note", default="", help="For the others.")
@click.option("--by", default="", help="Who; else the login name.")
@common
@click.pass_obj
def ack(session: Session, id: str, note: str, by: str) -> None:
    """Say that you care: nothing is repeated, and nothing more is done by itself."""
    with session.client() as client:
        view = client.acknowledge_alert(id, by or _login(), note)
    answer(session, view, lines.alert_show(view, time.time()))


@alerts.command()
@click.argument("subject", default="")
@click.option("--rule", default="", help="Only of this rule.")
@click.option("--for", "for_s", type=duration, required=True, help="How long: 2h, 1d.")
@click.option("--reason", default="", help="For the others.")
@click.option("--by", default="", help="Who; else the login name.")
@click.option("--everything", is_flag=True, help="All alerts of the whole fleet.")
@common
@click.pass_obj
def silence(
    session: Session,
    *,
    subject: str,
    rule: str,
    for_s: int,
    reason: str,
    by: str,
    everything: bool,
) -> None:
    """Hear nothing of SUBJECT for a while, nor let anything be done.

    SUBJECT is a device, a model, a release, an alert's id or the whole subject of an alert.
    """
    if bool(subject or rule) == everything:
        raise click.UsageError("expected a SUBJECT, --rule, or --everything alone")
    wanted = SilenceRequest(
        for_s=for_s, rule=rule, subject=subject, reason=reason, by=by or _login()
    )
    with session.client() as client:
        view = client.silence(wanted)
    answer(session, view, lines.silence_list([view], time.time()))
    session.say(f"next: fleet alerts unsilence {view.id}")


@alerts.command()
@click.argument("id")
@common
@click.pass_obj
def unsilence(session: Session, id: str) -> None:
    """Take a silence back."""
    with session.client() as client:
        view = client.unsilence(id)
    answer(session, view, [f"{view.id} taken back"])


@alerts.command()
@common
@click.pass_obj
def silences(session: Session) -> None:
    """List the silences that hold, the next to end first."""
    with session.client() as client:
        found = client.silences()
    answer(session, found, lines.silence_list(found, time.time()))


@alerts.command()
@common
@click.pass_obj
def rules(session: Session) -> int | None:
    """Show the rules that hold, and whom alerts are told to."""
    with session.client() as client:
        view = client.alert_policy()
    answer(session, view, lines.policy(view))
    if view.error:
        session.say(f"not followed: {view.error}")
        return FAILED
    return None


@alerts.command()
@click.argument("file", type=click.Path(path_type=Path))
@common
@click.pass_obj
def check(session: Session, file: Path) -> None:
    """Check an alerts.toml without a controller, and show what it comes to."""
    from fleet.shell.alerting import read_file

    view = policy_view(read_file(file), str(file))
    answer(session, view, lines.policy(view))
    session.say(f"next: fleet serve --alerts {file}")


def _login() -> str:
    try:
        return getpass.getuser()[:100]
    except (KeyError, OSError):
        return ""
