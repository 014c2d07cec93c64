"""`fleet authority`: the fleet's certificate authority, on the controller's own machine."""

import time
from pathlib import Path

import click

from fleet.cli.group import Group
from fleet.cli.render import answer
from fleet.cli.session import Session, common
from fleet.core.views import View

_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("farflung-data"),
    show_default=True,
    help="The controller's data directory.",
)


class AuthorityView(View):
    """A certificate authority."""

    name: str
    path: str
    fingerprint: str
    """SHA-256 of its certificate, hexadecimal."""
    not_after: float


@click.group(cls=Group)
def authority() -> None:
    """The fleet's certificate authority: init, show."""


@authority.command()
@_data
@click.option("--name", default="Farflung fleet", show_default=True, help="What it calls itself.")
@common
@click.pass_obj
def init(session: Session, data: Path, name: str) -> None:
    """Make the authority that devices get their certificates from. Once in a fleet's life."""
    from fleet.shell.authority import init_authority

    if not 1 <= len(name) <= 64:
        raise click.BadParameter(f"expected 1 to 64 characters, got {len(name)}")
    made = init_authority(data / "authority", name, time.time())
    view = AuthorityView(
        name=made.name,
        path=str(data / "authority"),
        fingerprint=made.fingerprint,
        not_after=made.not_after,
    )
    answer(session, view, _screen(view))
    session.say("next: fleet serve, then fleet device enroll ID")


@authority.command()
@_data
@common
@click.pass_obj
def show(session: Session, data: Path) -> None:
    """Show the authority of a data directory."""
    from fleet.shell.authority import Authority

    made = Authority(data / "authority")
    view = AuthorityView(
        name=made.name,
        path=str(data / "authority"),
        fingerprint=made.fingerprint,
        not_after=made.not_after,
    )
    answer(session, view, _screen(view))


def _screen(view: AuthorityView) -> list[str]:
    until = time.strftime("%Y-%m-%d", time.gmtime(view.not_after))
    return [
        f"authority    {view.name}, until {until}",
        f"fingerprint  sha256:{view.fingerprint}",
        f"files        {view.path} (ca.key signs: whoever has it is everybody)",
    ]
