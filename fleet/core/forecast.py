"""What a release would cost a device, and why it would not take it: told before anybody is asked.

The rules are the device's own (`wire.choice`, `wire.libraries`); what it knows of itself and does
not report (its quota, its windows, limits of its configuration, built-in operators of TFLite)
counts as no hindrance.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fleet.core import census
from wire import libraries
from wire.choice import RUNTIMES, Device, Operators, choose, short_of_disk, told
from wire.manifest import Manifest, Variant
from wire.transfer import Offer
from wire.twin import Reason

How = Literal["held", "delta", "whole", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would become of a release on one device."""

    how: How
    """unknown: it never reported what it can run; the bytes are those of the first variant."""
    variant: str = ""
    bytes_coming: int = 0
    """That it would fetch."""
    bytes_whole: int = 0
    """That the same files would take without deltas."""
    reason: Reason | None = None
    detail: str = ""
    coming: tuple[Offer, ...] = ()


def files_of(manifest: Manifest, digest: str, variant: Variant) -> list[str]:
    """Return the digests of all that a device needs for a variant, the manifest's own first."""
    shared = (file.digest for file in manifest.shared_files())
    return list(dict.fromkeys((digest, variant.artifact.digest, *shared)))


def chosen_by(manifest: Manifest, device: census.Device) -> Variant | tuple[Reason, str]:
    """Return the variant that a device would take, or why it would take none."""
    if device.reported is None:
        return manifest.variants[0]
    able = Device(
        device.reported.capabilities, _all_operators(manifest), memory_free_bytes=_memory(device)
    )
    found = choose(manifest, able)
    if not isinstance(found, Variant):
        return told(manifest, found, able)
    lacking = libraries.lacking(manifest, able.capabilities)
    return (Reason.NO_RUNTIME, lacking) if lacking else found


def forecast(  # noqa: PLR0917 - all that it rests on
    manifest: Manifest,
    digest: str,
    offers: Sequence[Offer],
    device: census.Device,
    held: Collection[str],
    clearable_bytes: int,
) -> Forecast:
    """Return what a release would cost a device.

    `offers` are those that its order would carry, the best first; `held` the files it has;
    `clearable_bytes` what it may free by giving up releases that served before.
    """
    variant = chosen_by(manifest, device)
    if not isinstance(variant, Variant):
        return Forecast("refused", reason=variant[0], detail=variant[1])
    missing = [file for file in files_of(manifest, digest, variant) if file not in held]
    whole = _first(offers, missing, ())
    coming = _first(offers, missing, held)
    if device.reported is None:
        size = _transfers(whole)
        return Forecast("unknown", variant.name, size, size, coming=tuple(whole))
    health = device.health
    if health is not None:
        free = health.disk_free_bytes + clearable_bytes
        # As the device does: where a delta finds no room, the whole file may.
        if short_of_disk(_on_disk(coming), free):
            coming = whole
        lacking = short_of_disk(_on_disk(coming), free)
        if lacking:
            return Forecast("refused", variant.name, reason=Reason.NO_SPACE, detail=lacking)
    how: How = "whole" if coming else "held"
    if any(offer.base is not None for offer in coming):
        how = "delta"
    return Forecast(how, variant.name, _transfers(coming), _transfers(whole), coming=tuple(coming))


def _first(offers: Sequence[Offer], files: Iterable[str], bases: Collection[str]) -> list[Offer]:
    """Return the first offer for each file that rests on nothing but `bases`."""
    found = []
    for file in files:
        fits = (o for o in offers if o.file == file and (o.base is None or o.base in bases))
        found += [offer for offer in (next(fits, None),) if offer is not None]
    return found


def _transfers(offers: Iterable[Offer]) -> int:
    return sum(offer.transfer_bytes for offer in offers)


def _on_disk(offers: Iterable[Offer]) -> int:
    return sum(offer.disk_bytes for offer in offers)


def _memory(device: census.Device) -> int:
    """Return what was free for engines when it last said so; 0: it never did."""
    health = device.health
    if health is None or not health.memory_available_bytes:
        return 0
    return health.memory_available_bytes + (health.engine_pss_bytes or health.engine_rss_bytes)


def _all_operators(manifest: Manifest) -> Operators:
    """Return operators as if every runtime had what the release needs: devices do not report."""
    needed: dict[str, int] = {}
    for variant in manifest.variants:
        needs = variant.requires
        for name, version in (
            *needs.tflite_operators.items(),
            *((n, 1) for n in needs.custom_operators),
        ):
            needed[name] = max(version, needed.get(name, 0))
    return {runtime: needed for runtimes in RUNTIMES.values() for runtime in runtimes}
