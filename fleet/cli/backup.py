"""`fleet backup` and `fleet restore`: a controller's data in one file, on its own machine."""

import sys
from pathlib import Path

import click

from fleet.cli.group import Group
from fleet.cli.render import answer
from fleet.cli.session import Session, common
from fleet.core.views import View
from fleet.shell.backup import Contents, restore_backup, verify_backup, write_backup

_FILE = click.Path(dir_okay=False, path_type=Path)
_EVERY = 64 * 1024 * 1024
_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("farflung-data"),
    show_default=True,
    help="The controller's data directory.",
)


class BackupView(View):
    """A backup that was written, verified or restored."""

    path: str
    files: int
    size_bytes: int
    """Of the files in it together."""
    data: str | None = None
    """Where it was restored to."""


class _Shown:
    """Says on a terminal how far it is."""

    def __init__(self, session: Session) -> None:
        self._done, self._said = 0, 0
        self._speaks = sys.stderr.isatty()
        self._session = session

    def __call__(self, more: int) -> None:
        self._done += more
        if self._speaks and self._done - self._said >= _EVERY:
            self._said = self._done
            self._session.say(f"{self._done / 2**20:.0f} MiB")


@click.group(cls=Group)
def backup() -> None:
    """Everything a controller needs, in one file: write, verify."""


@backup.command()
@click.argument("file", type=_FILE)
@_data
@common
@click.pass_obj
def write(session: Session, file: Path, data: Path) -> None:
    """Write a backup to FILE; the controller may run meanwhile. It holds the signing key."""
    _answer(session, file, "written", write_backup(data, file, _Shown(session)))
    session.say(f"next: keep it where nobody else reads it; fleet backup verify {file}")


@backup.command()
@click.argument("file", type=_FILE)
@common
@click.pass_obj
def verify(session: Session, file: Path) -> None:
    """Read FILE to its end and compare all checksums."""
    _answer(session, file, "whole", verify_backup(file, _Shown(session)))


@click.command()
@click.argument("file", type=_FILE)
@_data
@common
@click.pass_obj
def restore(session: Session, file: Path, data: Path) -> None:
    """Make an empty --data directory of a backup. Stop the old controller first."""
    contents = restore_backup(file, data, _Shown(session))
    _answer(session, file, f"restored to {data}", contents, str(data.absolute()))
    session.say(f"next: fleet serve --data {data}")


def _answer(
    session: Session, file: Path, what: str, contents: Contents, data: str | None = None
) -> None:
    size = sum(member.size_bytes for member in contents.members.values())
    count = len(contents.members)
    view = BackupView(path=str(file), files=count, size_bytes=size, data=data)
    answer(session, view, [f"{file}: {what}, {count} files, {size} bytes"])
