"""Which devices a rollout is for, in which order, and in which waves."""

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from fleet.core.target import OneOf, Target
from fleet.core.views import Refusal

LIST_DEVICES = "fleet device list"
_SHARE = re.compile(r"([0-9]{1,9})(%?)")


def facts_of(device: str, architecture: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return what targets can ask about a device; `arch` and `device` cannot be relabelled."""
    return {**labels, "arch": architecture, "device": device}


def check_known(target: Target, fleet: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse a target that asks for a label or a device that nobody heard of: a typo.

    Raises:
        Refusal: 404, no such device; 422, no such label.
    """
    known = {"arch", "device"} | {key for facts in fleet.values() for key in facts}
    for asked in target.wanted:
        if asked.key not in known:
            raise Refusal(
                422,
                f"--to: no device has a label {asked.key!r}{nearest(asked.key, known)}",
                LIST_DEVICES,
            )
        if asked.key == "device" and isinstance(asked, OneOf):
            for value in asked.values:
                if value not in fleet:
                    raise Refusal(404, f"no device {value!r}{nearest(value, fleet)}", LIST_DEVICES)


def select(target: Target, fleet: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the ids of the devices meant; `fleet` is id -> facts.

    Raises:
        Refusal: 404, a device that nobody heard of; 422, an unknown key or nobody matches.
    """
    if not fleet:
        raise Refusal(404, "no device ever spoke to this controller", LIST_DEVICES)
    check_known(target, fleet)
    chosen = [device for device, facts in fleet.items() if target.matches(facts)]
    if not chosen:
        raise Refusal(422, f"--to: none of {len(fleet)} devices has {target.text}", LIST_DEVICES)
    return chosen


def nearest(wanted: str, known: Collection[str]) -> str:
    """Return `; nearest is NAME`, or nothing when none is near."""
    close = get_close_matches(wanted, list(known), n=1)
    return f"; nearest is {close[0]}" if close else ""


def parse_waves(shares: Sequence[str], devices: int) -> tuple[int, ...]:
    """Return how many devices are in the first wave, the first two waves, and so on.

    Shares are cumulative: `30` is a count, `25%` is rounded up to whole devices.

    Raises:
        Refusal: 422, not numbers, not ascending, or the last is not 100%.
    """
    example = "for example: --waves 1,25%,100%"
    if not shares or shares[-1] != "100%":
        raise Refusal(422, f"--waves: expected the last to be 100%, got {list(shares)}", example)
    counts: list[int] = []
    for share in shares:
        match = _SHARE.fullmatch(share)
        number = int(match[1]) if match else 0
        percent = bool(match and match[2])
        if number == 0 or (percent and number > 100):
            raise Refusal(
                422, f"--waves: expected a count or 1% to 100%, got {share[:40]!r}", example
            )
        count = math.ceil(devices * number / 100) if percent else min(number, devices)
        if counts and count < counts[-1]:
            raise Refusal(
                422,
                f"--waves: expected ascending shares, but of {devices} devices {share} are "
                f"{count}, fewer than the {counts[-1]} before",
                example,
            )
        counts.append(count)
    if len(set(shares)) != len(shares):
        raise Refusal(422, f"--waves: expected ascending shares, got {list(shares)}", example)
    return tuple(counts)


def order(rollout: str, devices: Collection[str]) -> list[str]:
    """Return `devices` shuffled by a hash, so that first waves differ from rollout to rollout."""
    return sorted(devices, key=lambda id: hashlib.sha256(f"{rollout}/{id}".encode()).digest())


def cut(ordered: Sequence[str], counts: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the devices that each wave adds, given the cumulative counts."""
    starts = (0, *counts[:-1])
    return tuple(tuple(ordered[start:end]) for start, end in zip(starts, counts, strict=True))
