"""Preflight: may and can this device take the release? Asked before a byte of it is fetched."""

from dataclasses import replace

from agent.core import ends, fetching, imports
from agent.core.actions import MeasureSpace, ReadManifest
from agent.core.manners import openings, wait_before_all
from agent.core.offers import all_chosen
from agent.core.retention import Room, Space, make_room
from agent.core.state import Deployment, Installed
from agent.core.turn import Turn
from wire import libraries
from wire.choice import Device, choose, told
from wire.manifest import Manifest, Variant
from wire.transfer import Offer
from wire.twin import DesiredRelease, Phase, Reason


def preflight(turn: Turn, deployment: Deployment, release: DesiredRelease) -> None:
    """Get the manifest, read it, and have the room for the rest measured."""
    state = turn.state
    if not fetching.may_fetch(turn, deployment, wait_before_all(state, release, turn.now)):
        return
    if release.manifest not in state.blobs:
        # It is small, and the day need not end before the device knows what it would fetch.
        fetching.fetch(turn, deployment, release, release.manifest)
    elif release.manifest not in state.manifests:
        if state.finishing != release.manifest:
            state.finishing = release.manifest
            turn.do(ReadManifest(release.manifest))
    elif not state.measured:
        state.measured = True
        turn.do(MeasureSpace())


def on_manifest(turn: Turn, digest: str, manifest: Manifest | None, detail: str) -> None:
    """Take a manifest that was read from disk."""
    state = turn.state
    if state.finishing == digest:
        state.finishing = ""
    if manifest is not None:
        state.manifests = {**state.manifests, digest: manifest}
        return
    deployment = state.active()
    if deployment is not None and deployment.manifest == digest:
        state.blobs = state.blobs - {digest}
        ends.finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)


def on_space(turn: Turn, space: Space) -> None:
    """Choose the variant and see that it fits before the first byte of it is fetched."""
    # What vanished from the disk is fetched again.
    turn.state.blobs = turn.state.blobs & space.sizes.keys()
    deployment = turn.state.active()
    if deployment is None or deployment.phase is not Phase.PREFLIGHT:
        return
    release = turn.wanted(deployment.model)
    manifest = turn.state.manifests.get(deployment.manifest)
    if release is None or manifest is None:
        return
    if (manifest.model, manifest.version) != (release.model, release.version):
        detail = f"expected the manifest of {release.ref}, got that of {manifest.ref}"
        ends.finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)
        return
    device = _device(turn, space)
    variant = choose(manifest, device)
    if not isinstance(variant, Variant):
        reason, detail = told(manifest, variant, device)
        ends.finish(turn, deployment, Phase.REJECTED, reason, detail)
        return
    lacking = libraries.lacking(manifest, device.capabilities)
    if lacking:
        ends.finish(turn, deployment, Phase.REJECTED, Reason.NO_RUNTIME, lacking)
        return
    shared = (file.digest for file in manifest.shared_files())
    files = tuple(dict.fromkeys((deployment.manifest, variant.artifact.digest, *shared)))
    offers = {offer.file: offer for offer in all_chosen(turn.state, release, files)}
    missing = fetching.missing_of(turn, files)
    unoffered = [digest for digest in missing if digest not in offers]
    if unoffered:
        detail = f"expected an offer for each file, got none for {unoffered[0][:19]}"
        ends.finish(turn, deployment, Phase.REJECTED, Reason.BAD_MANIFEST, detail)
        return
    own, ordered = turn.state.settings.windows, release.manners.windows
    if missing and not openings(own, ordered):
        detail = f"expected windows that meet, got {', '.join(ordered)} in the order and "
        detail += f"{', '.join(own)} on this device"
        ends.finish(turn, deployment, Phase.REJECTED, Reason.NO_PROGRESS, detail)
        return
    needed = sum(offers[digest].disk_bytes for digest in missing)
    deployment = replace(deployment, variant=variant.name, files=files)
    room = _room(turn, deployment, release, [offers[digest] for digest in missing], space)
    if room.lacking:
        ends.finish(turn, deployment, Phase.REJECTED, Reason.NO_SPACE, room.lacking)
        return
    turn.advance(deployment, Phase.FETCHING)
    if room.leaving:
        _clear(turn, release, room.leaving)
    turn.say(f"{release.ref}: fetching {variant.name}, {len(missing)} files, {needed} bytes")


def _device(turn: Turn, space: Space) -> Device:
    state = turn.state
    return Device(
        state.capabilities,
        state.operators,
        memory_free_bytes=space.memory_free_bytes,
        memory_limit_bytes=state.settings.memory_bytes,
    )


def _room(
    turn: Turn, deployment: Deployment, release: DesiredRelease, offers: list[Offer], space: Space
) -> Room:
    """Return how the files of these offers find room: as deltas, or else whole."""
    journal, settings = turn.state.journal, turn.state.settings
    space = replace(space, imported=frozenset(imports.kept(turn)))
    bases = {offer.base for offer in offers if offer.base is not None}
    needed = sum(offer.disk_bytes for offer in offers)
    room = make_room(journal, deployment, bases, needed, space, settings)
    if not room.lacking or not bases:
        return room
    files = {offer.file for offer in offers}
    whole = [o for o in release.offers if o.file in files and o.base is None]
    sizes = {o.file: o.disk_bytes for o in sorted(whole, key=lambda o: o.disk_bytes)}
    return make_room(journal, deployment, set(), sum(sizes.values()), space, settings)


def _clear(turn: Turn, release: DesiredRelease, leaving: tuple[Installed, ...]) -> None:
    """Give up previous releases for a new one."""
    previous = turn.state.journal.previous
    models = {each.model for each in leaving}
    turn.record(previous={m: i for m, i in previous.items() if m not in models})
    for each in leaving:
        turn.say(f"{each.model}@{each.version}: deleted to make room for {release.ref}", "warning")
    ends.collect(turn)
