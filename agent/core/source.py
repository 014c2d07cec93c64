"""Where chunks come from: an HTTPS source that a release names, or else the broker.

A source is asked for one range at a time. One that fails, lies or falls silent rests for a while,
longer each time, and the broker is asked for what is missing; then the source again.
"""

from urllib.parse import urlsplit

from agent.core.actions import CancelRange, FetchRange
from agent.core.download import Download
from agent.core.turn import Turn
from wire.ids import digest_hex
from wire.manifest import Manifest

FIRST_REST_S = 30.0
LAST_REST_S = 3600.0


def ask(turn: Turn, download: Download, manifest: Manifest | None) -> bool:
    """Ask a source for what is missing; False: none is to be asked, so ask the broker."""
    now = turn.now.mono
    if download.source and now >= download.silent_at():
        give_up(turn, download, "sends nothing")
    if not download.source and not _begin(turn, download, manifest):
        return False
    asked = download.range_due(now)
    if asked is not None:
        turn.do(FetchRange(download.source, download.offer, *asked))
    return True


def _begin(turn: Turn, download: Download, manifest: Manifest | None) -> bool:
    offer = download.offer
    if manifest is None or download.part != "data" or offer.base is not None:
        return False
    for template in manifest.sources or ():
        _, until = turn.state.sources_resting.get(_origin(template), (0, 0.0))
        if turn.now.mono >= until:
            download.go_to(template.replace("{digest}", digest_hex(offer.transfer)))
            turn.say(f"{offer.transfer[:19]}: fetching from {_origin(template)}")
            return True
    return False


def give_up(turn: Turn, download: Download, why: str) -> None:
    """Let the source in use rest; what it has sent stays."""
    origin = _origin(download.source)
    failures = turn.state.sources_resting.get(origin, (0, 0.0))[0] + 1
    rest = min(FIRST_REST_S * 2 ** min(failures - 1, 10), LAST_REST_S)
    turn.state.sources_resting = {
        **_still_counting(turn), origin: (failures, turn.now.mono + rest)
    }  # fmt: skip
    turn.say(f"source {origin}: {why}; not asked for {rest:.0f} s, the broker is", "warning")
    drop(turn, download)


def drop(turn: Turn, download: Download) -> None:
    """Ask the source in use no more."""
    if download.source:
        turn.do(CancelRange())
        download.go_to("")


def works(turn: Turn, download: Download) -> None:
    """Forget what a source did wrong before: it sent a chunk that is right."""
    origin = _origin(download.source)
    if origin in turn.state.sources_resting:
        resting = turn.state.sources_resting
        turn.state.sources_resting = {o: r for o, r in resting.items() if o != origin}


def _still_counting(turn: Turn) -> dict[str, tuple[int, float]]:
    """Return the sources that failed of late; older failures are forgotten."""
    oldest = turn.now.mono - LAST_REST_S
    return {o: r for o, r in turn.state.sources_resting.items() if r[1] > oldest}


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
