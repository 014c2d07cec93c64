"""`fleet telemetry export`: what devices counted, as a file for other tools."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fleet.cli.group import Group
from fleet.cli.render import answer, console
from fleet.cli.report import MOMENT, asked_release
from fleet.cli.session import Session, common
from fleet.core.errors import FleetError
from fleet.core.export import STEP, Asked
from fleet.core.export_views import ExportEnd, ExportLine
from fleet.core.report_words import moment, plural
from fleet.core.suppression import MIN_DEVICES, MOST
from fleet.core.views import View
from fleet.shell.export_files import FORMATS, Format, opened

SAY_S = 5.0


class ExportedView(View):
    """What `fleet telemetry export` wrote."""

    path: str
    format: Format
    model: str
    version: int | None
    since: int
    until: int
    step: str
    by: str | None
    min_devices: int
    rows: int
    folded: int
    """Rows that hold several groups, since some are of few devices."""
    withheld: int
    """Rows that are not told: all their devices are fewer than `min_devices`."""


@click.group(cls=Group)
def telemetry() -> None:
    """What devices counted, for other tools: export."""


@telemetry.command()
@click.argument("release", metavar="MODEL[@VERSION]")
@click.option("--format", "format_", type=click.Choice(FORMATS), required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE|DIR",
    help="A file; for TensorBoard a new directory.",
)  # fmt: skip
@click.option(
    "--since", type=MOMENT, default="30d", show_default=True, metavar="TIME",
    help="30d (ago), 2026-11-01 or 2026-11-01T12:00 (UTC).",
)  # fmt: skip
@click.option("--until", type=MOMENT, default="now", show_default=True, metavar="TIME")
@click.option("--by", metavar="LABEL|variant|device", help="A row for each of them.")
@click.option("--step", type=click.Choice(["hour", "day"]), default=STEP, show_default=True)
@click.option(
    "--min-devices", type=click.IntRange(1, MOST), default=MIN_DEVICES, show_default=True,
    help="No row is of fewer; small groups are added up as (others).",
)  # fmt: skip
@common
@click.pass_obj
def export(
    session: Session, *, release: str, format_: Format, out: Path, since: str, until: str,
    by: str | None, step: str, min_devices: int,
) -> None:  # fmt: skip
    """Write a row for each hour or day of a release, or of all of a model.

    Shares are 0 to 1 and times in UTC. A file that could not be written whole is not there.
    """
    model, version = asked_release(release)
    asked = Asked(model, version, by, since, until, step, min_devices)
    with session.client() as client:
        lines = client.telemetry_export(asked)
        head = next(lines).head
        if head is None:
            raise FleetError("export: expected its head first, got another line", "fleet --version")
        with opened(format_, out, head) as table, _bar(session) as advance:
            end = _write(lines, table.add, advance)
    told = head.model_dump(exclude={"made_at"})
    view = ExportedView(path=str(out), format=format_, **told, **end.model_dump())
    answer(session, view, [_told(view)])
    if end.folded:
        session.say(
            f"{plural(end.folded, 'row')} (others): groups of fewer than {min_devices} devices"
            " together"
        )
    if end.withheld:
        session.say(
            f"{plural(end.withheld, 'row')} withheld: of fewer than {min_devices} devices;"
            " --min-devices 1 shows them"
        )
    if format_ == "tensorboard" and end.rows:
        session.say(f"next: tensorboard --logdir {out}")


def _write(
    lines: Iterator[ExportLine], add: Callable[..., None], advance: Callable[[float], None]
) -> ExportEnd:
    end = ExportEnd()
    for line in lines:
        if line.row is not None:
            add(line.row)
        elif line.done is not None:
            advance(line.done)
        elif line.end is not None:
            end = line.end
    return end


def _told(view: ExportedView) -> str:
    ref = view.model if view.version is None else f"{view.model}@{view.version}"
    when = f"{moment(view.since)} to {moment(view.until)} UTC"
    if not view.rows:
        return f"{view.path}: no rows of {ref}, {when}"
    by = f" by {view.by}" if view.by is not None else ""
    return f"{view.path}: {plural(view.rows, 'row')} of {ref}{by}, {when}"


@contextmanager
def _bar(session: Session) -> Iterator[Callable[[float], None]]:
    """Show how far it is: a bar on a terminal, else a line now and then; with --json nothing."""
    screen = console(session, error=True)
    if session.json or not screen.is_terminal:
        said_at = time.monotonic()

        def say(done: float) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= SAY_S:
                session.say(f"exporting: {done:.0%}")
                said_at = time.monotonic()

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("exporting"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done: progress.update(task, completed=done)
