"""Which of the offers for a file this device takes."""

from collections.abc import Iterable

from agent.core.state import AgentState
from wire.transfer import Offer
from wire.twin import DesiredRelease


def chosen(state: AgentState, release: DesiredRelease, file: str) -> Offer | None:
    """Return the first offer for `file` that can be taken; the controller puts the best first.

    A delta needs its base on the disk, and is not tried again once it did not decode.
    """
    for offer in release.offers:
        if offer.file != file or offer.index in state.spoilt:
            continue
        if offer.base is None or offer.base in state.blobs:
            return offer
    return None


def all_chosen(state: AgentState, release: DesiredRelease, files: Iterable[str]) -> list[Offer]:
    """Return the offers taken for those of `files` that are offered at all."""
    offers = (chosen(state, release, file) for file in files)
    return [offer for offer in offers if offer is not None]
