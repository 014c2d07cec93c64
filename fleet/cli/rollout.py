"""`fleet rollout`: bring a release to devices, watch it, call it off."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click

from fleet.cli import views
from fleet.cli.group import Group
from fleet.cli.patience import patiently
from fleet.cli.plan_lines import rollout_plan
from fleet.cli.render import answer, console
from fleet.cli.session import (
    DONE,
    FAILED,
    STILL_GOING,
    Session,
    byte_rate,
    common,
    duration,
    for_some,
    time_window,
)
from fleet.core.errors import FleetError
from fleet.core.views import MannersRule, RolloutRequest, RolloutStatus, RolloutView
from wire.twin import Phase, Probation

if TYPE_CHECKING:
    from fleet.shell.client import ControllerClient

_POLL_S = 0.5
_POLL_REST = 20
"""And so many times as long as the last answer took: of 10,000 devices it takes a while."""


@click.group(cls=Group)
def rollout() -> None:
    """Rollouts: plan, start, status, watch, list, pause, approve, abort, rollback and more."""


@rollout.command()
@click.argument("release", metavar="NAME@VERSION")
@click.option(
    "--to", default="all", show_default=True, help="`all`, or `site=berlin and not frozen`."
)
@click.option(
    "--waves",
    default="100%",
    show_default=True,
    help="Cumulative shares, counts or percentages: 1,25%,100%.",
)
@click.option("--probation-pairs", type=click.IntRange(0), help="Labelled inputs to judge by.")
@click.option(
    "--probation-margin",
    type=click.FloatRange(0, 100),
    metavar="PP",
    help="How much worse is acceptable, in percentage points of accuracy.",
)
@click.option("--probation-deadline", type=duration, help="When to decide at the latest.")
@click.option(
    "--at-deadline", type=click.Choice(["refuse", "commit"]), help="What to decide by then."
)
@click.option(
    "--probation-cpu",
    type=click.IntRange(0),
    metavar="PERCENT",
    help="Of the champion's processor time an input, what is acceptable; 0: any. Else 300.",
)
@click.option("--no-probation", is_flag=True, help="Commit as soon as the model works.")
@click.option(
    "--bandwidth",
    type=for_some(byte_rate),
    multiple=True,
    help="What each device may fetch: 64KiB/s; or link=lte:16KiB/s for some of them.",
)
@click.option(
    "--window",
    type=for_some(time_window),
    multiple=True,
    help="When, by its own clock: 01:00-05:00; or link=lte:01:00-05:00. May be repeated.",
)
@click.option(
    "--spread", type=duration, help="Devices begin at moments of their own within this long."
)
@click.option(
    "--max-refused",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="Abort when more than this share of the devices told refused it.",
)
@click.option(
    "--judge-by",
    type=click.Choice(["tests", "threshold"]),
    default="tests",
    show_default=True,
    help="Tests that stay valid however often one looks, or --max-refused alone (else 20).",
)
@click.option(
    "--approve-small-waves", is_flag=True, help="Start with waves that are too small to decide."
)
@click.option("--watch", is_flag=True, help="Stay until it is over.")
@click.option("--timeout", type=duration, help="Stop watching after this long; exit 3.")
@common
@click.pass_obj
def start(
    session: Session,
    *,
    release: str,
    to: str,
    waves: str,
    probation_pairs: int | None,
    probation_margin: float | None,
    probation_deadline: int | None,
    at_deadline: Literal["refuse", "commit"] | None,
    probation_cpu: int | None,
    no_probation: bool,
    bandwidth: tuple[tuple[str, int], ...],
    window: tuple[tuple[str, str], ...],
    spread: int | None,
    max_refused: int | None,
    judge_by: Literal["tests", "threshold"],
    approve_small_waves: bool,
    watch: bool,
    timeout: int | None,
) -> int:
    """Bring a release to devices, wave by wave.

    --to takes labels, `arch` and `device`: KEY=VALUE, KEY!=VALUE, KEY in (A, B), KEY alone for a
    label that is not `false`, joined by `and`, `or`, `not` and parentheses.
    """
    if no_probation and probation_pairs:
        raise click.UsageError("--no-probation and --probation-pairs exclude each other")
    if timeout and not watch:
        raise click.UsageError("--timeout goes with --watch")
    chosen = {
        "labelled_pairs": 0 if no_probation else probation_pairs,
        "margin_bp": None if probation_margin is None else round(100 * probation_margin),
        "deadline_s": probation_deadline,
        "at_deadline": at_deadline,
        "cpu_percent": probation_cpu,
    }
    request = RolloutRequest(
        release=release,
        to=to,
        waves=tuple(share.strip() for share in waves.split(",")),
        probation=Probation.model_validate(
            {name: value for name, value in chosen.items() if value is not None}
        ),
        **_manners(bandwidth, window),
        spread_s=spread,
        max_refused_percent=max_refused,
        judged_by=judge_by,
        approve_small_waves=approve_small_waves,
    )
    with session.client() as client:
        view = client.start_rollout(request)
        if watch:
            return _watched(session, client, view, timeout)
    answer(session, view, [view.id, *views.rollout_status(view)])
    session.say(f"next: fleet rollout status {view.id} --watch")
    return DONE


@rollout.command()
@click.argument("release", metavar="NAME@VERSION")
@click.option(
    "--to", default="all", show_default=True, help="`all`, or `site=berlin and not frozen`."
)
@click.option("--waves", default="100%", show_default=True, help="As for `start`.")
@click.option(
    "--judge-by", type=click.Choice(["tests", "threshold"]), default="tests", show_default=True
)
@click.option("--devices", is_flag=True, help="Every device, however many.")
@common
@click.pass_obj
def plan(
    session: Session,
    *,
    release: str,
    to: str,
    waves: str,
    judge_by: Literal["tests", "threshold"],
    devices: bool,
) -> int:
    """Show what a rollout would be; start nothing.

    Which devices are in which wave, what each would fetch, which would refuse and why, and which
    waves are too small to decide.
    """
    request = RolloutRequest(
        release=release,
        to=to,
        waves=tuple(share.strip() for share in waves.split(",")),
        judged_by=judge_by,
    )
    with session.client() as client:
        view = client.plan_rollout(request)
    answer(session, view, rollout_plan(view, every=devices))
    command = f"fleet rollout start {view.release} --to {shlex.quote(to)} --waves {waves}"
    session.say(f"next: {view.next_step or command}")
    return FAILED if view.refusal else DONE


@rollout.command()
@click.argument("id", required=False)
@click.option("--watch", is_flag=True, help="Stay until it is over.")
@click.option("--timeout", type=duration, help="Stop watching after this long; exit 3.")
@common
@click.pass_obj
def status(session: Session, id: str | None, watch: bool, timeout: int | None) -> int:
    """Show how far a rollout is, the latest one without ID."""
    if timeout and not watch:
        raise click.UsageError("--timeout goes with --watch")
    with session.client() as client:
        view = _named(session, client, id)
        if view is None:
            return DONE
        if watch:
            return _watched(session, client, view, timeout)
    answer(session, view, views.rollout_status(view))
    return DONE


@rollout.command()
@click.argument("id", required=False)
@click.option("--timeout", type=duration, help="Stop watching after this long; exit 3.")
@common
@click.pass_obj
def watch(session: Session, id: str | None, timeout: int | None) -> int:
    """Stay with a rollout until it is over, the latest one without ID.

    Exit code 0: completed; 1: aborted or superseded; 3: still going at --timeout.
    """
    with session.client() as client:
        view = _named(session, client, id)
        return DONE if view is None else _watched(session, client, view, timeout)


def _named(session: Session, client: "ControllerClient", id: str | None) -> RolloutView | None:
    """Return a rollout, the latest one without an id; None, and said so, when there is none."""
    if id is None:
        newest = client.rollouts()[:1]
        if not newest:
            answer(session, [], ["no rollouts"])
            session.say("next: fleet rollout start NAME@VERSION")
            return None
        id = newest[0].id
    return client.rollout(id)


@rollout.command("list")
@click.option("--model", help="Of this model alone.")
@click.option("--status", type=click.Choice([str(each) for each in RolloutStatus]))
@click.option("--active", is_flag=True, help="That are not over.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@common
@click.pass_obj
def list_rollouts(
    session: Session, *, model: str | None, status: str | None, active: bool, limit: int | None
) -> None:
    """List rollouts, the newest first."""
    with session.client() as client:
        rollouts = [
            each
            for each in client.rollouts()
            if model in (None, each.release.partition("@")[0])
            and status in (None, each.status)
            and not (active and each.status.final)
        ][:limit]
    answer(session, rollouts, views.rollout_list(rollouts, time.time()))


@rollout.command()
@click.argument("id")
@click.option("--reason", default="paused by an operator", show_default=True)
@common
@click.pass_obj
def pause(session: Session, id: str, reason: str) -> None:
    """Open no wave and let nothing be fetched; what has arrived stays."""
    with session.client() as client:
        view = client.pause_rollout(id, reason)
    answer(session, view, views.rollout_status(view))
    session.say(f"next: fleet rollout resume {view.id}")


@rollout.command()
@click.argument("id")
@common
@click.pass_obj
def resume(session: Session, id: str) -> None:
    """Go on with a paused rollout where it stood."""
    with session.client() as client:
        view = client.resume_rollout(id)
    answer(session, view, views.rollout_status(view))
    session.say(f"next: fleet rollout status {view.id} --watch")


@rollout.command()
@click.argument("id")
@click.option("--reason", default="approved by an operator", show_default=True)
@common
@click.pass_obj
def approve(session: Session, id: str, reason: str) -> None:
    """Let the open wave pass once it is settled, although no test decided."""
    with session.client() as client:
        view = client.approve_rollout(id, reason)
    answer(session, view, views.rollout_status(view))
    session.say(f"next: fleet rollout status {view.id} --watch")


@rollout.command()
@click.argument("id")
@click.option("--reason", default="called off by an operator", show_default=True)
@common
@click.pass_obj
def abort(session: Session, id: str, reason: str) -> None:
    """Call a rollout off; devices return to what they ran before."""
    with session.client() as client:
        view = client.abort_rollout(id, reason)
    answer(session, view, views.rollout_status(view))
    session.say(f"next: fleet rollout status {view.id} --watch")


@rollout.command()
@click.argument("id")
@click.option("--reason", default="promoted by an operator", show_default=True)
@common
@click.pass_obj
def promote(session: Session, id: str, reason: str) -> None:
    """Open all waves at once; the gates may still call it off."""
    with session.client() as client:
        view = client.promote_rollout(id, reason)
    answer(session, view, views.rollout_status(view))
    session.say(f"next: fleet rollout watch {view.id}")


@rollout.command()
@click.argument("id")
@click.option("--watch", is_flag=True, help="Stay until it is over.")
@click.option("--timeout", type=duration, help="Stop watching after this long; exit 3.")
@common
@click.pass_obj
def retry(session: Session, *, id: str, watch: bool, timeout: int | None) -> int:
    """Bring a release once more to the devices that did not commit it: a new rollout, one wave.

    The one before must be over. Probation and manners are the same.
    """
    if timeout and not watch:
        raise click.UsageError("--timeout goes with --watch")
    with session.client() as client:
        old = client.rollout(id)
        if not old.status.final:
            raise FleetError(f"{id} is {old.status}", f"fleet rollout watch {id}")
        opened = {wave.number for wave in old.waves if wave.open}
        failed = [
            each.id
            for each in old.devices
            if each.wave in opened and each.phase is not Phase.COMMITTED
        ]
        if not failed:
            raise FleetError(f"{id}: every device that was told committed", "fleet rollout list")
        request = RolloutRequest(
            release=old.release,
            to=f"device in ({', '.join(failed)})",
            probation=old.probation,
            bytes_per_s=old.bytes_per_s,
            windows=old.windows,
            spread_s=old.spread_s,
            approve_small_waves=True,
        )
        view = client.start_rollout(request)
        if watch:
            return _watched(session, client, view, timeout)
    answer(session, view, [view.id, *views.rollout_status(view)])
    session.say(f"next: fleet rollout watch {view.id}")
    return DONE


@rollout.command()
@click.argument("id")
@click.option("--reason", default="taken back by an operator", show_default=True)
@common
@click.pass_obj
def rollback(session: Session, id: str, reason: str) -> None:
    """Take the devices of a rollout back, even when it is completed.

    Those that are offline go back when they return; those that were told something else since
    are left alone.
    """
    with session.client() as client:
        view = client.roll_back_rollout(id, reason)
    answer(session, view, views.rollout_status(view))
    session.say(
        f"next: fleet rollout status {view.id} --watch; fleet model quarantine {view.release}"
    )


def _manners(
    caps: tuple[tuple[str, int], ...], windows: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    """Return what a request says of all devices, and its rules for some, in the order given."""

    def said(of: str) -> dict[str, Any]:
        return {
            "bytes_per_s": next((cap for target, cap in caps if target == of), 0),
            "windows": tuple(window for target, window in windows if target == of),
        }

    some = dict.fromkeys(target for target, _ in (*caps, *windows) if target)
    return said("") | {"rules": tuple(MannersRule(to=target, **said(target)) for target in some)}


def _watched(
    session: Session, client: "ControllerClient", view: RolloutView, timeout: int | None
) -> int:
    """Watch a rollout to its end, print where it stands then, and return the exit code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with _screen(session) as screen:
        screen.show(view)
        took_s, id = 0.0, view.id
        while not view.status.final and (deadline is None or time.monotonic() < deadline):
            time.sleep(max(_POLL_S, _POLL_REST * took_s))
            asked = time.monotonic()
            view = patiently(session, lambda: client.rollout(id))
            took_s = time.monotonic() - asked
            screen.show(view)
    answer(session, view, views.rollout_status(view))
    if view.status is RolloutStatus.COMPLETED:
        return DONE
    session.say(f"next: fleet rollout status {view.id}")
    return FAILED if view.status.final else STILL_GOING


class _Screen(Protocol):
    def show(self, view: RolloutView) -> None: ...


class _Silence:
    def show(self, view: RolloutView) -> None:
        pass


class _Log:
    """Without a terminal: a line whenever something changed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last = ""

    def show(self, view: RolloutView) -> None:
        line = f"{view.id} {views.rollout_line(view)}"
        if line != self._last:
            self._session.say(line)
            self._last = line


@contextmanager
def _screen(session: Session) -> Iterator[_Screen]:
    if session.json:
        yield _Silence()
        return
    screen = console(session, error=True)
    if not screen.is_terminal:
        yield _Log(session)
        return
    from rich.console import Group as Stack
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    with Live(console=screen, transient=True, auto_refresh=False) as live:

        class Board:
            def show(self, view: RolloutView) -> None:
                bars = Table.grid(padding=(0, 1))
                for name, done, total in views.wave_progress(view):
                    share = f"{done} of {total}"
                    bars.add_row(name, ProgressBar(max(total, 1), done, width=40), share)
                came, coming = views.bytes_progress(view)
                if coming:
                    bars.add_row("fetched", ProgressBar(coming, came, width=40))
                text = screen.render_str("\n".join(views.rollout_status(view)))
                live.update(Stack(bars, text), refresh=True)

        yield Board()
