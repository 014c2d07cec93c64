"""`fleet model`: push releases and look at them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from fleet.cli import views
from fleet.cli.group import Group
from fleet.cli.render import answer, console
from fleet.cli.report import report
from fleet.cli.session import USAGE, Session, common
from fleet.cli.words import size
from fleet.core.errors import FleetError
from fleet.core.views import BundleView, ReleaseView
from wire.ids import ReleaseRef
from wire.manifest import Budget

if TYPE_CHECKING:
    from fleet.shell.client import ControllerClient
    from fleet.workshop.inspect import ReleaseDraft

MEBIBYTE = 1024 * 1024
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Task(click.ParamType[str]):
    """A kind of task, or the path of a file that declares one."""

    name = "task"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the kind or the path."""
        if value in ("classification", "tensor"):
            return value
        if not value.endswith(".toml"):
            self.fail(f"expected classification, tensor or a .toml file, got {value!r}", param, ctx)
        return str(_FILE.convert(value, param, ctx))


@click.group(cls=Group)
def model() -> None:
    """Releases: push, list, show, report, quarantine."""


model.add_command(report)


@model.command()
@click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path)
)
@click.option("--name", help="Model name; else that of the file or directory.")
@click.option("--version", type=click.IntRange(1), help="Else the next free one.")
@click.option("--labels", type=_FILE, help="One label a line.")
@click.option("--golden", type=_FILE, help="NumPy .npz with inputs and the expected outputs.")
@click.option(
    "--baseline",
    type=_FILE,
    metavar="DATA",
    help="Reference inputs, .npz or .csv: what devices compare theirs with, to see drift.",
)
@click.option(
    "--task",
    type=_Task(),
    metavar="KIND|FILE",
    help="What outputs mean: classification, tensor, or a .toml that says what apps may send too.",
)
@click.option("--description", default="", help="For people.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="URL",
    help="Where devices get it by ranges beside the broker: https://cache/models/{digest}.",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Devices on which a run takes longer refuse it.",
)
@click.option(
    "--budget-mib",
    type=click.FloatRange(0, min_open=True),
    metavar="MIB",
    help="Devices on which it takes more memory refuse it.",
)
@common
@click.pass_obj
def push(
    session: Session,
    *,
    paths: tuple[Path, ...],
    name: str | None,
    version: int | None,
    labels: Path | None,
    golden: Path | None,
    baseline: Path | None,
    task: str | None,
    description: str,
    sources: tuple[str, ...],
    budget_ms: float | None,
    budget_mib: float | None,
) -> None:
    """Push a release: one or more .onnx and .tflite files, or one release directory.

    Several files are variants of one release; a device takes the first it can run. Inputs,
    outputs, types, quantization and operator versions are read from the files.
    """
    from fleet.workshop.draft import changed
    from fleet.workshop.errors import ArtifactError
    from fleet.workshop.inspect import compose_release

    try:
        draft = compose_release(
            list(paths),
            name=name,
            version=version,
            labels=labels,
            golden=golden,
            task=task,
            description=description,
        )
        if baseline is not None:
            draft = _compared(draft, baseline)
        if sources:
            draft = replace(draft, manifest=changed(draft.manifest, sources=sources))
        if budget_ms is not None or budget_mib is not None:
            memory = None if budget_mib is None else max(1, int(budget_mib * MEBIBYTE))
            budget = Budget(invoke_ms=budget_ms, memory_bytes=memory)
            draft = replace(draft, manifest=changed(draft.manifest, budget=budget))
    except ArtifactError as error:
        raise FleetError(str(error), "fleet model push --help") from error
    with session.client() as client:
        draft, known = _numbered(client, draft)
        if known is None:
            _upload(session, client, draft)
        release, new = client.add_release(draft.manifest)
    answer(session, release, views.release_pushed(release, new=new))
    ref = f"{release.model}@{release.version}"
    if sources:
        bundle = f"{release.model}-{release.version}.ffb"
        session.say(f"to fill a cache: fleet model export {ref}; tar xf {bundle} -C DIRECTORY")
    session.say(f"next: fleet rollout start {ref}")


def _compared(draft: "ReleaseDraft", data: Path) -> "ReleaseDraft":
    """Return the draft with what the data says of its inputs, and of its confidence if it does.

    Raises:
        ArtifactError: the data is not of this release.
    """
    from fleet.workshop.draft import changed
    from fleet.workshop.reference import read_reference

    made = read_reference(data, draft.manifest)
    fields: dict[str, object] = {"baseline": made.baseline}
    if made.calibration:
        fields["calibration"] = made.calibration
    return replace(draft, manifest=changed(draft.manifest, **fields))


def _numbered(
    client: "ControllerClient", draft: "ReleaseDraft"
) -> tuple["ReleaseDraft", ReleaseView | None]:
    """Return the draft with its version, and the release it repeats byte for byte, if any."""
    model = draft.manifest.model
    if draft.version_given:
        return draft, None
    for latest in client.releases(model)[:1]:
        same = draft.with_version(latest.version)
        if same.manifest.digest == latest.digest:
            return same, latest
    return draft.with_version(client.next_version(model)), None


def _upload(session: Session, client: "ControllerClient", draft: "ReleaseDraft") -> None:
    """Send the files that the controller does not have."""
    missing = {digest: path for digest, path in draft.files.items() if not client.has_blob(digest)}
    total = sum(path.stat().st_size for path in missing.values())
    with _bar(session, "pushing", total) as bar:
        for digest, path in missing.items():
            client.upload(digest, path, bar.advance)
            bar.finished(path)


class _Progress(Protocol):
    def advance(self, size_bytes: int) -> None: ...
    def finished(self, path: Path) -> None: ...


class _Log:
    """Progress without a terminal: a line a file."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def advance(self, size_bytes: int) -> None:
        pass

    def finished(self, path: Path) -> None:
        self._session.say(f"sent {path.name}, {size(path.stat().st_size)}")


@contextmanager
def _bar(session: Session, doing: str, total: int) -> Iterator[_Progress]:
    screen = console(session, error=True)
    if session.json or not screen.is_terminal:
        yield _Log(session)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("", total=total)

        class Bar(_Log):
            def advance(self, size_bytes: int) -> None:
                progress.advance(task, size_bytes)

            def finished(self, path: Path) -> None:
                progress.console.print(f"sent {path.name}")

        yield Bar(session)


@model.command()
@click.argument("release", metavar="NAME[@VERSION]")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Else NAME-VERSION.ffb."
)
@click.option("--for", "device", metavar="DEVICE", help="No other device takes it then.")
@click.option(
    "--install", is_flag=True, help="Devices may take the release on the word of this file alone."
)
@common
@click.pass_obj
def export(
    session: Session, *, release: str, out: Path | None, device: str | None, install: bool
) -> None:
    """Write a release to one signed file, for devices that fetch nothing.

    `farflung-agent import` brings it to a device, from a USB stick say. The device takes the
    release when a rollout asks for it; with --install here and there, at once.
    """
    with session.client() as client:
        ref = _resolve(client, release)
        out = out or Path(f"{ref.model}-{ref.version}.ffb")
        with client.bundle(ref, device, install) as (size_bytes, pieces):
            _save(session, out, size_bytes, pieces)
    view = BundleView(release=str(ref), path=str(out), size_bytes=out.stat().st_size,
                      device=device, install=install)  # fmt: skip
    answer(session, view, [f"{ref} -> {out}, {size(view.size_bytes)}"])
    flag = " --install" if install else ""
    session.say(f"next, on the device: farflung-agent import --config agent.toml {out.name}{flag}")


def _save(session: Session, out: Path, size_bytes: int, pieces: Iterator[bytes]) -> None:
    """Write the file and see it on the disk, since a stick may be pulled the next moment."""
    partial = out.with_name(f"{out.name}.part")
    try:
        with partial.open("wb") as file, _bar(session, "exporting", size_bytes) as bar:
            for piece in pieces:
                file.write(piece)
                bar.advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as error:
        raise FleetError(f"export: cannot write {out}: {error.strerror}", "--out FILE") from error
    finally:
        partial.unlink(missing_ok=True)


@model.command("list")
@click.argument("name", required=False)
@common
@click.pass_obj
def list_releases(session: Session, name: str | None) -> None:
    """List releases, of all models or of one."""
    with session.client() as client:
        releases = client.releases(name)
    answer(session, releases, views.release_list(releases, time.time()))


@model.command()
@click.argument("release", metavar="NAME[@VERSION]")
@common
@click.pass_obj
def show(session: Session, release: str) -> None:
    """Show one release, the newest one without @VERSION."""
    with session.client() as client:
        ref = _resolve(client, release)
        view = client.release(ref.model, ref.version)
    answer(session, view, views.release_show(view, time.time()))


@model.command()
@click.argument("release", metavar="NAME@VERSION")
@click.option("--reason", default="put there by an operator", help="For the others.")
@common
@click.pass_obj
def quarantine(session: Session, release: str, reason: str) -> None:
    """Let no new rollout bring a release, and pause one that does."""
    with session.client() as client:
        view = client.quarantine(_exactly(release), reason)
    answer(session, view, views.release_show(view, time.time()))
    session.say(f"next: fleet model release {release}")


@model.command("release")
@click.argument("release", metavar="NAME@VERSION")
@common
@click.pass_obj
def end_quarantine(session: Session, release: str) -> None:
    """Take a release out of quarantine."""
    with session.client() as client:
        view = client.end_quarantine(_exactly(release))
    answer(session, view, views.release_show(view, time.time()))


def _exactly(text: str) -> ReleaseRef:
    try:
        return ReleaseRef.parse(text)
    except ValueError as error:
        raise FleetError(f"release: {error}", "fleet model list", USAGE) from error


def _resolve(client: "ControllerClient", text: str) -> ReleaseRef:
    if "@" in text:
        return _exactly(text)
    for newest in client.releases(text)[:1]:
        return ReleaseRef(newest.model, newest.version)
    raise FleetError(f"release: no model is called {text!r}", "fleet model list")
