"""`fleet samples`: ask devices that consent for inputs of a model, and look at what came."""

import time
from pathlib import Path

import click

from fleet.cli import views
from fleet.cli.group import Group
from fleet.cli.render import answer
from fleet.cli.session import DONE, FAILED, STILL_GOING, Session, common, duration
from fleet.cli.words import ago, size
from fleet.core.sample_views import CaptureRequest, CaptureRequestView, SampleView
from fleet.core.views import View

_POLL_S = 0.2
_SUFFIXES = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "audio/wav": "wav",
    "text/plain": "txt",
    "application/json": "json",
}


class FetchedView(View):
    """A file that `fleet samples fetch` wrote."""

    sample: str
    path: str
    size_bytes: int


@click.group(cls=Group)
def samples() -> None:
    """Captured inputs: request, requests, list, show, fetch, delete."""


@samples.command()
@click.argument("model", metavar="MODEL[@VERSION]")
@click.option("--device", help="Ask this one.")
@click.option("--to", help="`all`, or `site=berlin and arch=x`.")
@click.option("--kind", type=click.Choice(["uncertain", "misclassified", "random"]), required=True)
@click.option("--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--for", "for_s", type=duration, default="2h", show_default=True)
@click.option("--below", type=click.IntRange(1, 100), default=60, show_default=True,
              metavar="PERCENT", help="uncertain: with a top score of less than this.")  # fmt: skip
@click.option("--one-in", type=click.IntRange(1, 1_000_000), default=1, show_default=True,
              help="Take one of so many that would do, by chance.")  # fmt: skip
@click.option("--timeout", type=duration, default="30s", help="How long to wait for answers.")
@common
@click.pass_obj
def request(
    session: Session,
    *,
    model: str,
    device: str | None,
    to: str | None,
    kind: str,
    count: int,
    for_s: int,
    below: int,
    one_in: int,
    timeout: int,
) -> int:
    """Ask devices for inputs; each refuses unless its own configuration consents."""
    if (device is None) == (to is None):
        raise click.UsageError("expected one of --device and --to")
    name, at, version = model.partition("@")
    if at and not (version.isascii() and version.isdigit()):
        raise click.UsageError(f"expected MODEL or MODEL@VERSION, got {model!r}")
    wanted = CaptureRequest.model_validate(
        {
            "model": name,
            "version": int(version) if at else None,
            "to": to if device is None else f"device={device}",
            "kind": kind,
            "count": count,
            "for_s": for_s,
            "below_percent": below,
            "one_in": one_in,
        }
    )
    deadline = time.monotonic() + timeout
    with session.client() as client:
        asked = client.request_samples(wanted)
        ids = {each.id for each in asked}
        while any(each.outcome == "waiting" for each in asked) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            offline = [each for each in asked if not each.id]
            asked = [*(e for e in client.sample_requests() if e.id and e.id in ids), *offline]
    answer(session, asked, _answers(asked))
    if any(each.outcome == "waiting" for each in asked):
        return STILL_GOING
    session.say("next: fleet samples list")
    return DONE if any(each.outcome == "done" for each in asked) else FAILED


@samples.command()
@common
@click.pass_obj
def requests(session: Session) -> None:
    """List what was asked of whom, and what became of it."""
    with session.client() as client:
        asked = client.sample_requests()
    answer(session, asked, _answers(asked) if asked else ["nothing was asked for"])


@samples.command("list")
@click.option("--model")
@click.option("--device")
@click.option("--request", "request_id", metavar="REQUEST")
@common
@click.pass_obj
def list_samples(
    session: Session, model: str | None, device: str | None, request_id: str | None
) -> None:
    """List what came."""
    with session.client() as client:
        found = client.samples(model=model, device=device, request=request_id)
    answer(session, found, _samples(found, time.time()))


@samples.command()
@click.argument("id")
@common
@click.pass_obj
def show(session: Session, id: str) -> None:
    """Show one sample, without its bytes."""
    with session.client() as client:
        view = client.sample(id)
    lines = [f"{key:<12} {value}" for key, value in view.model_dump(exclude={"parts"}).items()]
    lines += [f"{'part':<12} {part.media}, {size(part.size_bytes)}" for part in view.parts]
    answer(session, view, lines)


@samples.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("-o", "out", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Directory to write to.")  # fmt: skip
@click.option("--request", "request_id", metavar="REQUEST", help="All of this one.")
@common
@click.pass_obj
def fetch(session: Session, ids: tuple[str, ...], out: Path, request_id: str | None) -> None:
    """Write samples to files, each beside a .json that says what it is."""
    if not ids and request_id is None:
        raise click.UsageError("expected ids of samples, or --request")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    fetched: list[FetchedView] = []
    with session.client() as client:
        found = [client.sample(id) for id in ids]
        if request_id is not None:
            found += [each for each in client.samples(request=request_id) if each.whole]
        for view in found:
            data = client.sample_data(view.id)
            (out / f"{view.id}.json").write_text(view.model_dump_json(indent=2) + "\n")
            at = 0
            for number, part in enumerate(view.parts):
                piece = data[at : at + part.size_bytes]
                at += part.size_bytes
                path = out / f"{view.id}-{number}.{_SUFFIXES.get(part.media, 'bin')}"
                path.write_bytes(piece)
                fetched.append(FetchedView(sample=view.id, path=str(path), size_bytes=len(piece)))
    answer(session, fetched, [f"{each.path}  {size(each.size_bytes)}" for each in fetched])


@samples.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@common
@click.pass_obj
def delete(session: Session, ids: tuple[str, ...]) -> None:
    """Delete samples, or a request with all of its samples, here and on its device."""
    with session.client() as client:
        done = [client.delete_samples(id) for id in ids]
    text = f"{sum(d.samples for d in done)} samples, {sum(d.requests for d in done)} requests"
    answer(session, done, [f"deleted: {text}"])


def _answers(asked: list[CaptureRequestView]) -> list[str]:
    lines = views.table(
        ("REQUEST", "DEVICE", "MODEL", "KIND", "ANSWER", "STATE", ">CAPTURED", ">CAME"),
        [
            (
                each.id or views.NOTHING,
                each.device,
                f"{each.model}@{each.version}" if each.version else each.model,
                each.kind,
                each.outcome,
                each.state or views.NOTHING,
                str(each.captured),
                str(each.received),
            )
            for each in asked
        ],
    )
    for each in asked:
        if each.detail:
            lines.append(f"  {each.device}: {each.detail}")
        lines += [f"  {each.device}: {n} left out: {why}" for why, n in each.left_out.items()]
        if each.deleted:
            lines.append(f"  {each.device}: {each.deleted} deleted there, never sent")
    return lines


def _samples(found: list[SampleView], now: float) -> list[str]:
    if not found:
        return ["no samples"]
    return views.table(
        ("SAMPLE", "DEVICE", "RELEASE", "KIND", ">SIZE", "CAME", "PREDICTED", "LABEL", "TAKEN"),
        [
            (
                each.id,
                each.device,
                f"{each.model}@{each.version}",
                each.kind,
                size(each.size_bytes),
                "whole" if each.whole else f"{100 * each.have_bytes // each.size_bytes}%",
                ",".join(map(str, each.predicted[:4])) or views.NOTHING,
                views.NOTHING if each.label is None else ",".join(map(str, each.label[:4])),
                ago(now - each.at),
            )
            for each in found
        ],
    )
