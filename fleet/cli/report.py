"""`fleet model report`: how well a model does, with intervals, as tables and as a picture."""

import time
from pathlib import Path

import click

from fleet.cli import report_lines
from fleet.cli.render import answer
from fleet.cli.session import USAGE, Session, common
from fleet.core.errors import FleetError
from fleet.core.report_views import ReportView
from fleet.core.suppression import MIN_DEVICES, MOST
from wire.ids import ReleaseRef

_SUFFIXES = (".svg", ".html", ".png")


class _Moment(click.ParamType[str]):
    """A time as `30d` (ago), `2026-11-01` or `2026-11-01T12:00`."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the words, which the controller reads by its own clock."""
        from fleet.core.report_asked import moment_of

        try:
            moment_of(value, int(time.time()))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


MOMENT = _Moment()


class _Picture(click.ParamType[Path]):
    """Where a picture goes."""

    name = "file"

    def convert(
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path."""
        path = Path(value)
        if path.suffix not in _SUFFIXES:
            self.fail(f"expected a file ending in .svg, .html or .png, got {str(value)!r}",
                      param, ctx)  # fmt: skip
        return path


@click.command()
@click.argument("release", metavar="NAME[@VERSION]")
@click.option(
    "--since", type=MOMENT, default="30d", show_default=True, metavar="TIME",
    help="30d (ago), 2026-11-01 or 2026-11-01T12:00 (UTC).",
)  # fmt: skip
@click.option("--until", type=MOMENT, default="now", show_default=True, metavar="TIME")
@click.option("--by", metavar="LABEL|variant|device", help="A row for each of them, too.")
@click.option(
    "--min-devices", type=click.IntRange(1, MOST), default=MIN_DEVICES, show_default=True,
    help="Groups of fewer are told together as (others).",
)  # fmt: skip
@click.option(
    "--save", type=_Picture(), metavar="FILE", help="Write the report page: .svg, .html or .png."
)
@common
@click.pass_obj
def report(
    session: Session, *, release: str, since: str, until: str, by: str | None, min_devices: int,
    save: Path | None,
) -> None:  # fmt: skip
    """Show how well a release does; without @VERSION all of them, side by side.

    Accuracy has three names that are never blended: labelled, golden and estimated (~). An
    interval is 95%, and over a fleet it is made of devices, not of answers.
    """
    model, version = asked_release(release)
    with session.client() as client:
        view = client.model_report(model, version, by, since, until, min_devices)
    if save is not None:
        _save(view, save)
    answer(session, view, report_lines.report(view))
    if save is not None:
        session.say(f"saved: {save}")


def asked_release(text: str) -> tuple[str, int | None]:
    """Return the model and, if `text` names one, the version."""
    if "@" not in text:
        return text, None
    try:
        ref = ReleaseRef.parse(text)
    except ValueError as error:
        raise FleetError(f"release: {error}", "fleet model list", USAGE) from error
    return ref.model, ref.version


def _save(view: ReportView, path: Path) -> None:
    from fleet.core.report_page import html, svg

    try:
        match path.suffix:
            case ".png":
                path.write_bytes(_png(svg(view)))
            case ".html":
                path.write_text(html(view), encoding="utf-8")
            case _:
                path.write_text(svg(view), encoding="utf-8")
    except OSError as error:
        raise FleetError(f"report: cannot write {path}: {error.strerror}", "--save FILE") from error


def _png(picture: str) -> bytes:
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise FleetError(
            "report: expected the package resvg-py for a .png, got none",
            "pip install 'farflung[report]', or --save report.svg",
        ) from None
    # Twice as fine as a screen, so that it can be printed.
    return bytes(svg_to_bytes(svg_string=picture, zoom=2))
