"""What all commands share: where the controller is, how to print, what to end with."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fleet.shell.client import ControllerClient

DONE, FAILED, USAGE, STILL_GOING, INTERRUPTED = 0, 1, 2, 3, 130

DEFAULT_CONTROLLER = "http://127.0.0.1:8700"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass
class Session:
    """The options of one call of `fleet`."""

    controller: str = DEFAULT_CONTROLLER
    json: bool = False
    color: bool = True

    def client(self) -> "ControllerClient":
        """Return a client of the controller; to be closed after use."""
        from fleet.shell.client import ControllerClient

        return ControllerClient(self.controller)

    def say(self, text: str) -> None:
        """Say something beside the answer; nothing with `--json`."""
        if not self.json:
            click.echo(text, err=True)


def common(command: F) -> F:
    """Let a command take the global options behind its name, too."""
    for name, what, flag in (
        ("--no-color", "Plain text.", True),
        ("--controller", "URL of the controller.", False),
        ("--json", "Print JSON.", True),
    ):
        command = click.option(
            name,
            is_flag=flag,
            default=None,
            help=what,
            hidden=name != "--json",
            expose_value=False,
            callback=_remember,
        )(command)
    return command


def _remember(ctx: click.Context, option: click.Parameter, value: object) -> None:
    session = ctx.find_object(Session)
    if not value or session is None:
        return
    match option.name:
        case "json":
            session.json = True
        case "no_color":
            session.color = False
        case "controller":
            session.controller = str(value)


def byte_rate(text: str) -> int:
    """Return the bytes a second of `65536`, `64KiB/s`, `500kB/s` or `1MiB/s`.

    Raises:
        BadParameter: it is written otherwise, or is nothing.
    """
    match = re.fullmatch(r"(\d{1,9})(?:([kKM]i?)?B)?(?:/s)?", text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(
            f"expected bytes a second such as 64KiB/s, 500kB/s or 1MiB/s, got {text!r}"
        )
    unit = (match[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    factors = {"": 1, "k": base, "m": base * base}
    return int(match[1]) * factors[unit[:1]]


def time_window(text: str) -> str:
    """Return a window of the day such as `01:00-05:00`.

    Raises:
        BadParameter: it is none.
    """
    from wire.manners import window_minutes

    try:
        window_minutes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def for_some(read: Callable[[str], T]) -> Callable[[str], tuple[str, T]]:
    """Return a reader of `VALUE`, for all devices, or of `KEY=VALUE:VALUE`, for some of them.

    What it reads is (target, value), the target empty where it is for all.
    """

    def parse(text: str) -> tuple[str, T]:
        target, colon, value = text.partition(":")
        return (target, read(value)) if colon and "=" in target else ("", read(text))

    return parse


def duration(text: str) -> int:
    """Return the whole seconds of `90`, `90s`, `15m`, `2h` or `1d`.

    Raises:
        BadParameter: it is written otherwise.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"expected a duration such as 90s, 15m, 2h or 1d, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]
