"""What stays on the disk: the running, the previous and the pinned releases, within a quota."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.core.state import Deployment, Installed, Journal, Settings
from wire.choice import short_of_disk


@dataclass(frozen=True, slots=True)
class Room:
    """How a new release finds its place."""

    leaving: tuple[Installed, ...] = ()
    """Previous releases that go for it."""
    lacking: str = ""
    """Why it does not fit, with the figures, even if they all went; then none goes."""


@dataclass(frozen=True, slots=True)
class Space:
    """What there is: `free_bytes` on the disk, partials among them, and each whole file's size."""

    free_bytes: int
    sizes: Mapping[str, int]
    imported: frozenset[str] = frozenset()
    """Files that came in bundles and are kept for their time."""
    memory_free_bytes: int = 0
    """Main memory for engines, what those of today hold included; 0: not known."""

    def of(self, files: Iterable[str]) -> int:
        """Return what these files take together."""
        return sum(self.sizes.get(file, 0) for file in set(files))


def kept_files(installed: Iterable[Installed]) -> set[str]:
    """Return the digests of all that these releases need."""
    return {file for each in installed for file in each.files}


def pinned_after(
    journal: Journal,
    champions: Mapping[str, Installed],
    previous: Mapping[str, Installed],
    pins: frozenset[tuple[str, int]],
) -> tuple[Installed, ...]:
    """Return which releases are kept for their pins alone, once these serve and these served.

    The running and the previous ones are kept anyway, and never twice.
    """
    anyway = {each.manifest for each in (*champions.values(), *previous.values())}
    known = (*journal.pinned, *journal.previous.values(), *journal.champions.values())
    pinned = {
        each.manifest: each
        for each in known
        if (each.model, each.version) in pins and each.manifest not in anyway
    }
    return tuple(pinned.values())


def make_room(  # noqa: PLR0917 - all that room depends on
    journal: Journal,
    deployment: Deployment,
    bases: set[str],
    coming_bytes: int,
    space: Space,
    settings: Settings,
) -> Room:
    """Return which previous releases go so that `coming_bytes` fit on the disk and in the quota.

    The one of the same model goes first, since the new release would take its place, then the
    oldest. Neither a pinned nor a running release ever goes, nor one with a file among `bases`.
    """
    stays = [*journal.champions.values(), *journal.pinned]
    may_go: list[Installed] = []
    for each in sorted(
        journal.previous.values(), key=lambda i: (i.model != deployment.model, i.since)
    ):
        pinned = (each.model, each.version) in settings.pins
        wanted = each.manifest == deployment.manifest or not bases.isdisjoint(each.files)
        (stays if pinned or wanted else may_go).append(each)
    kept = {*deployment.files, *space.imported}
    before = space.of(kept_files([*stays, *may_go]) | kept)
    for count in range(len(may_go) + 1):
        taken = space.of(kept_files([*stays, *may_go[count:]]) | kept)
        free = space.free_bytes + before - taken
        left = settings.quota_bytes - taken
        if coming_bytes <= free and (not settings.quota_bytes or coming_bytes <= left):
            return Room(leaving=tuple(may_go[:count]))
    if lacking := short_of_disk(coming_bytes, free):
        return Room(lacking=lacking)
    return Room(
        lacking=f"expected room for {coming_bytes} bytes in the quota of {settings.quota_bytes}, "
        f"got {max(left, 0)} beside the {taken} of what runs or is pinned"
    )
