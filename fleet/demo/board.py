"""What is shown of the devices: views to lines. Pure, and 80 columns wide."""

from collections.abc import Sequence

from fleet.cli import views
from fleet.cli.words import spaced
from fleet.core.views import DeviceView, RolloutView, ScoreView
from wire.twin import DeploymentReport, Phase, Serving

HEADERS = ("DEVICE", "PHASE", "RELEASE", ">REQUESTS", ">P95", "ACCURACY", ">CPU", ">MEMORY")
NOTHING = "-"


def board(devices: Sequence[DeviceView], pairs: int) -> list[str]:
    """Return a table: where each device stands and how its champion does.

    `pairs` are the labelled ones that a probation asks for.
    """
    return views.table(HEADERS, [_row(device, pairs) for device in devices])


def _row(device: DeviceView, pairs: int) -> tuple[str, ...]:
    health = (device.health or {}) if device.online else {}
    serving = device.serving[0] if device.serving else None
    score = score_of(device, serving)
    return (
        device.id,
        _phase(device, pairs),
        f"{serving.model}@{serving.version}" if serving else NOTHING,
        str(score.requests) if score else NOTHING,
        f"{score.p95_ms:.1f} ms" if score and score.p95_ms is not None else NOTHING,
        _accuracy(score),
        _cpu(health),
        _memory(health),
    )


def _phase(device: DeviceView, pairs: int) -> str:
    if not device.online:
        return "offline"
    if not device.deployments:
        return NOTHING
    report = device.deployments[0]
    word = spaced(report.phase)
    done = _percent(report, pairs)
    return word if done is None else f"{word} {done}%"


def _percent(report: DeploymentReport, pairs: int) -> int | None:
    if report.phase is Phase.FETCHING and report.bytes_total:
        return 100 * report.bytes_done // report.bytes_total
    if report.phase is Phase.PROBATION and pairs:
        return min(100, 100 * report.labelled_pairs // pairs)
    return None


def score_of(device: DeviceView, serving: Serving | None) -> ScoreView | None:
    """Return what the champion did on its device, if anything is known."""
    for score in device.scores:
        if serving is not None and score.manifest == serving.manifest:
            return score
    return None


def _accuracy(score: ScoreView | None) -> str:
    if score is None or score.accuracy is None:
        return NOTHING
    low, high = score.accuracy_low or 0.0, score.accuracy_high or 0.0
    return f"{100 * score.accuracy:.1f}% {100 * low:.1f}-{100 * high:.1f}"


def _cpu(health: dict[str, float]) -> str:
    agent = health.get("agent_cpu_percent")
    return NOTHING if agent is None else f"{agent + health.get('engine_cpu_percent', 0.0):.0f}%"


def _memory(health: dict[str, float]) -> str:
    rss = health.get("agent_rss_bytes")
    if rss is None:
        return NOTHING
    return f"{(rss + health.get('engine_rss_bytes', 0)) / 2**20:.0f} MiB"


def releases(devices: Sequence[DeviceView]) -> list[str]:
    """Return a table of what every release did as champion, on all devices together.

    Without intervals: labels of different devices are not draws of one kind.
    """
    sums: dict[str, tuple[int, int, int]] = {}
    for score in (score for device in devices for score in device.scores):
        ref = f"{score.model}@{score.version}"
        requests, labelled, correct = sums.get(ref, (0, 0, 0))
        sums[ref] = (requests + score.requests, labelled + score.labelled, correct + score.correct)
    return views.table(
        ("RELEASE", ">REQUESTS", ">LABELLED", ">RIGHT"),
        [
            (ref, str(requests), str(labelled), f"{100 * correct / labelled:.1f}%")
            for ref, (requests, labelled, correct) in sorted(sums.items())
            if labelled
        ],
    )


def progress(rollout: RolloutView) -> str:
    """Return where a rollout stands, in one line."""
    return f"{rollout.id}  {views.rollout_line(rollout)}"
