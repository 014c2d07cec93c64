"""Lines and views to the terminal, a pipe, or JSON."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fleet.cli.session import Session
from fleet.core.views import View

if TYPE_CHECKING:
    from rich.console import Console

_TONES = {
    "good": r"\b(?P<good>committed|completed|online|done|connected)\b",
    "busy": (
        r"\b(?P<busy>running|rolling back|queued|preflight|fetching|verified|trial|probation)\b"
    ),
    "bad": (
        r"\b(?P<bad>rejected|failed|timed out|rolled back|aborted|offline|clash|NOT connected"
        r"|engine down|expired|refused)\b"
    ),
    "head": r"(?m)^(?P<head>[A-Z0-9]+(  +[A-Z0-9]+)+)$",
}
_STYLES = {
    "tone.good": "green",
    "tone.busy": "yellow",
    "tone.bad": "bold red",
    "tone.head": "bold",
}


def answer(session: Session, value: View | Sequence[View], lines: Sequence[str]) -> None:
    """Print the answer of a command on stdout: `value` with `--json`, else `lines`."""
    if session.json:
        click.echo(as_json(value))
    elif session.color and sys.stdout.isatty():
        screen = console(session, error=False)
        for line in lines:
            screen.print(line, soft_wrap=True)
    else:
        for line in lines:
            click.echo(line)


def as_json(value: View | Sequence[View]) -> str:
    """Return the documented form: the view as the API gives it, indented."""
    dumped = (
        value.model_dump(mode="json")
        if isinstance(value, View)
        else [each.model_dump(mode="json") for each in value]
    )
    return json.dumps(dumped, indent=2, ensure_ascii=False)


def console(session: Session, *, error: bool) -> "Console":
    """Return a console on stderr or stdout that tints the words of our screens."""
    from rich.console import Console
    from rich.highlighter import RegexHighlighter
    from rich.theme import Theme

    class Tones(RegexHighlighter):
        base_style = "tone."
        highlights = list(_TONES.values())  # noqa: RUF012

    return Console(
        stderr=error,
        theme=Theme(_STYLES),
        highlighter=Tones(),
        markup=False,
        emoji=False,
        no_color=None if session.color else True,
    )
