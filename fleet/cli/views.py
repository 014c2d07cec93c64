"""Views to lines of text. Pure: the same values, the same `now`, the same screen."""

import time
from collections.abc import Iterable, Mapping, Sequence

from fleet.cli import gauges
from fleet.cli.words import ago, lasting, size, spaced
from fleet.core.views import (
    CommandView,
    DeviceView,
    EventView,
    HealthView,
    ReleaseView,
    RolloutDeviceView,
    RolloutStatus,
    RolloutView,
    ScoreView,
    WaveView,
)
from wire.manifest import Baseline, Budget, Manifest, TensorSpec
from wire.twin import DeploymentReport, Phase, Serving

Lines = list[str]

MAX_DEVICE_LINES = 12
MAX_VERDICT_LINES = 8
NOTHING = "-"

_BAD = (Phase.FAILED, Phase.REJECTED, Phase.ROLLED_BACK, Phase.TIMED_OUT)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Return aligned columns; a header that begins with `>` is aligned to the right."""
    names = [header.lstrip(">") for header in headers]
    cells = [names, *(list(row) for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    return [
        "  ".join(
            cell.rjust(width) if header.startswith(">") else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ).rstrip()
        for row in cells
    ]


# Releases


def release_list(releases: Sequence[ReleaseView], now: float) -> Lines:
    """Return `fleet model list`."""
    if not releases:
        return ["no releases"]
    return table(
        ("RELEASE", "VARIANTS", ">SIZE", "PUSHED", "DESCRIPTION"),
        [
            (
                f"{each.model}@{each.version}",
                ", ".join(variant.name for variant in each.variants),
                size(sum(variant.size_bytes for variant in each.variants)),
                ago(now - each.pushed_at),
                ("IN QUARANTINE " if each.quarantined else "") + _first_line(each.description),
            )
            for each in releases
        ],
    )


def release_pushed(release: ReleaseView, *, new: bool) -> Lines:
    """Return `fleet model push`."""
    what = "pushed" if new else "already there"
    total = size(sum(variant.size_bytes for variant in release.variants))
    names = ", ".join(variant.name for variant in release.variants)
    return [f"{release.model}@{release.version} {what}: {names}, {total}, {release.digest}"]


def release_show(release: ReleaseView, now: float) -> Lines:
    """Return `fleet model show`."""
    facts = [
        ("digest", release.digest),
        ("about", release.description),
        ("parent", release.parent or ""),
        ("pushed", ago(now - release.pushed_at)),
        ("quarantine", release.quarantined or ""),
        *(("metric", f"{name} {value:.4g}") for name, value in sorted(release.metrics.items())),
    ]
    lines = [f"{release.model}@{release.version}", *facts_of(facts)]
    return lines + (_manifest_lines(release.manifest) if release.manifest else [])


def _baseline(baseline: Baseline) -> str:
    names = [feature.name for feature in baseline.features]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    classes = "; predicted classes" if baseline.predicted else ""
    return f"{baseline.samples} samples of {', '.join(names[:8]) or 'no features'}{more}{classes}"


def _manifest_lines(manifest: Manifest) -> Lines:
    task = manifest.task
    what = f"{task.kind}, {task.scores_are} in {task.scores}" if task.scores else task.kind
    if task.input is not None:
        what += f"; apps send {task.input.kind} as {task.input.name}"
    if manifest.stream is not None:
        what += f"; apps send sound at {manifest.stream.rate_hz} Hz as {manifest.stream.name}"
    facts = [("task", what)]
    if manifest.budget is not None:
        facts.append(("budget", _budget(manifest.budget)))
    if manifest.baseline is not None:
        facts.append(("baseline", _baseline(manifest.baseline)))
    if manifest.calibration:
        facts.append(("calibration", f"{len(manifest.calibration)} points"))
    facts += [("input", _tensor(tensor)) for tensor in manifest.inputs]
    facts += [("output", _tensor(tensor)) for tensor in manifest.outputs]
    shared = [("labels", manifest.labels), ("golden", manifest.golden)]
    shared += [("file", file) for file in manifest.files]
    facts += [
        (name, f"{file.name}, {size(file.size_bytes)}") for name, file in shared if file is not None
    ]
    variants = table(
        ("VARIANT", "FORMAT", ">SIZE", "REQUIRES", "ARTIFACT"),
        [
            (
                variant.name,
                variant.format,
                size(variant.artifact.size_bytes),
                _requires(manifest, variant.name),
                variant.artifact.digest,
            )
            for variant in manifest.variants
        ],
    )
    return facts_of(facts) + [f"  {line}" for line in variants]


def _budget(budget: Budget) -> str:
    words = [] if budget.invoke_ms is None else [f"{budget.invoke_ms:g} ms a run"]
    words += [] if budget.memory_bytes is None else [size(budget.memory_bytes)]
    return ", ".join(words) or NOTHING


def _requires(manifest: Manifest, name: str) -> str:
    needs = manifest.variant(name).requires
    words = [f"{domain or 'ai.onnx'} {v}" for domain, v in sorted(needs.onnx_opsets.items())]
    if needs.tflite_operators:
        words.append(f"{len(needs.tflite_operators)} operators")
    words += needs.custom_operators
    words += needs.architectures
    words += [f"{runtime} {version}" for runtime, version in (needs.runtimes or {}).items()]
    words += [] if needs.memory_bytes is None else [f"{size(needs.memory_bytes)} of memory"]
    return ", ".join(words) or NOTHING


def _tensor(tensor: TensorSpec) -> str:
    shape = ", ".join("?" if extent < 0 else str(extent) for extent in tensor.shape)
    return f"{tensor.name}: {tensor.datatype} ({shape})"


# Devices


def device_list(devices: Sequence[DeviceView], now: float) -> Lines:
    """Return `fleet device list`."""
    if not devices:
        return ["no devices"]
    return table(
        ("DEVICE", "STATUS", "SERVING", "DEPLOYMENT", "LABELS"),
        [
            (
                each.id,
                _presence(each, now),
                ", ".join(_release(serving) for serving in each.serving) or NOTHING,
                ", ".join(deployment(report) for report in each.deployments) or NOTHING,
                " ".join(f"{key}={value}" for key, value in sorted(each.labels.items())),
            )
            for each in devices
        ],
    )


def device_show(device: DeviceView, now: float) -> Lines:
    """Return `fleet device show`."""
    can = device.capabilities
    behind = device.desired_revision - device.reported_revision
    facts = [
        ("agent", device.agent),
        ("machine", _machine(device)),
        ("labels", " ".join(f"{key}={value}" for key, value in sorted(device.labels.items()))),
        *(("runtime", f"{name} {version}") for name, version in sorted(can.runtimes.items())),
        *(
            ("library", f"{name} {version}")
            for name, version in sorted((can.libraries or {}).items())
        ),
        *(("unusable", f"{name}: {why}") for name, why in sorted(can.unusable.items())),
        ("orders", f"revision {device.desired_revision}, {behind} not taken up" if behind else ""),
        *(("serving", _serving(serving, device.scores)) for serving in device.serving),
        *(("deployment", _deployment_whole(report)) for report in device.deployments),
        *(("why", report.detail) for report in device.deployments if report.detail),
        ("health", _health(device)),
        *(gauges.facts(device.health) if device.online and device.health else ()),
        *(("pipeline", words) for words in _pipelines(device)),
        *(("api", address) for address in device.api),
        *(("refused", text) for text in device.refusals),
        *(("alert", text) for text in device.alerts),
        ("missing", f"{device.missing} reports never came" if device.missing else ""),
        *(("told", f"{ago(now - each.at)}: {each.text}") for each in device.events),
    ]
    return [f"{device.id}  {_presence(device, now)}", *facts_of(facts)]


def deployment(report: DeploymentReport) -> str:
    """Return one deployment in a few words: `detector@8 fetching 42%`."""
    words = f"{report.model}@{report.version} {_phase(report.phase)}"
    if report.reason is not None:
        return f"{words}: {report.reason}"
    return words + _progress(report, report.phase)


def _deployment_whole(report: DeploymentReport) -> str:
    return deployment(report) + _amounts_of(report, report.phase)


def command_result(command: CommandView) -> Lines:
    """Return `fleet device cmd`."""
    detail = f": {command.detail}" if command.detail else ""
    return [f"{command.device} {command.verb}: {command.outcome}{detail}"]


def _machine(device: DeviceView) -> str:
    can = device.capabilities
    words = [can.architecture, f"{can.cpus} cpus" if can.cpus else ""]
    words += [size(can.memory_bytes) if can.memory_bytes else ""]
    words += [f"python {can.python}" if can.python else ""]
    return ", ".join(word for word in words if word)


def _health(device: DeviceView) -> str:
    gauges = _Gauges(device)
    if device.health is None or not device.online:
        return ""
    words = [f"cpu {gauges.cpu}", f"memory {gauges.memory}", f"disk free {gauges.disk_free}"]
    written = device.health.get("flash_bytes_written", 0)
    if written:
        words.append(f"flash written {size(written)}")
    if gauges.temperature is not None:
        words.append(f"{gauges.temperature:.0f} °C")
    return ", ".join(words)


def _pipelines(device: DeviceView) -> Lines:
    """Return for each pipeline what became of its frames since its process began."""
    every = (device.health or {}).get("pipelines", {}) if device.online else {}
    lines = []
    for name, counts in sorted(every.items()):
        words = [f"{counts.get('taken', 0)} taken", f"{counts.get('answered', 0)} answered"]
        for what in ("dropped", "failed"):
            words += [f"{n} {what}: {why}" for why, n in sorted(counts.get(what, {}).items())]
        words += [f"{n} {what}" for what in ("retries", "restarts") if (n := counts.get(what, 0))]
        lines.append(f"{name}: {', '.join(words)}")
    return lines


class _Gauges:
    """The latest health report of a device that is there, in words."""

    def __init__(self, device: DeviceView) -> None:
        health = (device.health or {}) if device.online else {}
        agent, engine = health.get("agent_cpu_percent"), health.get("engine_cpu_percent", 0.0)
        self.cpu = NOTHING if agent is None else f"{agent + engine:.0f}%"
        rss = health.get("agent_rss_bytes")
        self.memory = NOTHING if rss is None else size(rss + health.get("engine_rss_bytes", 0))
        self.disk_free = size(health.get("disk_free_bytes", 0))
        self.temperature = health.get("temperature_c")


def _presence(device: DeviceView, now: float) -> str:
    if device.clash:
        return "clash: two agents"
    return "online" if device.online else f"offline, seen {ago(now - device.last_seen)}"


def _release(serving: Serving) -> str:
    down = "" if serving.runtime else " (engine down)"
    return f"{serving.model}@{serving.version} {serving.variant}{down}"


def _serving(serving: Serving, scores: Sequence[ScoreView]) -> str:
    score = _score_of(serving, scores)
    words = [f"{_release(serving)} on {serving.runtime}" if serving.runtime else _release(serving)]
    if serving.fallback is not None:
        words.append(f"not accelerated: {serving.fallback}")
    if score is not None:
        words += [f"{score.requests} requests", f"p95 {_ms(score.p95_ms)}", accuracy(score)]
    return ", ".join(words)


def _score_of(serving: Serving, scores: Sequence[ScoreView]) -> ScoreView | None:
    for score in scores:
        if (score.manifest, score.variant) == (serving.manifest, serving.variant):
            return score
    return None


def accuracy(score: ScoreView) -> str:
    """Return labelled accuracy with its interval, `98.3% (97.1-99.0)`, or how far off numbers are.

    The half and 95% of them: `off by 0.21, 0.85`.
    """
    if score.accuracy is None and score.error_p50 is not None and score.error_p95 is not None:
        return f"off by {score.error_p50:.2g}, {score.error_p95:.2g}"
    if score.accuracy is None:
        return "no labels"
    words = f"{100 * score.accuracy:.1f}%"
    if score.accuracy_low is None or score.accuracy_high is None:
        return words
    return f"{words} ({100 * score.accuracy_low:.1f}-{100 * score.accuracy_high:.1f})"


def firing(counts: Mapping[str, int]) -> str:
    """Return one line on what fires; empty: nothing does."""
    order = ("critical", "warning", "info")
    told = [f"{counts[each]} {each}" for each in order if counts.get(each)]
    return f"alerts firing: {', '.join(told)}; fleet alerts" if told else ""


def top(
    health: HealthView,
    devices: Sequence[DeviceView],
    rollouts: Sequence[RolloutView],
    room: int | None = None,
) -> Lines:
    """Return `fleet top`: each device and what its champion does, then what is under way.

    Where `room` lines are too few for all devices, those that need somebody come first.
    """
    broker = "connected" if health.broker_connected else "NOT connected"
    lines = [f"{health.devices_online} of {health.devices} devices online, broker {broker}"]
    lines += [line for line in (firing(health.alerts_firing),) if line]
    lines.append("")
    under_way = [
        line
        for rollout in rollouts
        if not rollout.status.final
        for line in ("", f"{rollout.id}  {rollout_line(rollout)}")
    ]
    if room is not None:
        room = max(1, room - len(lines) - len(under_way) - 2)
    if room is not None and len(devices) > room:
        devices = sorted(devices, key=_calm)
    rows = [row for device in devices for row in _top_rows(device)]
    left_out = 0 if room is None else max(0, len(rows) - room)
    rows = rows[: len(rows) - left_out]
    headers = ["DEVICE", "STATUS", "SERVING", "DEPLOYMENT", ">REQUESTS", ">P95", "ACCURACY"]
    headers += [">CPU", ">MEMORY", "ATTENTION"]
    if not any(row[-1] for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    lines += table(headers, rows) if rows else ["no devices"]
    lines += [f"and {left_out} more: fleet device list"] if left_out else []
    return lines + under_way


def _calm(device: DeviceView) -> tuple[int, str]:
    """Return what sorts devices that need somebody before those that do not."""
    if device.clash or not device.online:
        return 0, device.id
    if any(report.phase in _BAD for report in device.deployments):
        return 1, device.id
    if gauges.troubles(device.health or {}):
        return 2, device.id
    return 3 + all(report.phase.final for report in device.deployments), device.id


def _top_rows(device: DeviceView) -> list[tuple[str, ...]]:
    status = "clash" if device.clash else "online" if device.online else "offline"
    told = _Gauges(device)
    health = device.health if device.online else None
    last = (told.cpu, told.memory, ", ".join(gauges.troubles(health or {})))
    by_model = {report.model: deployment(report) for report in device.deployments}
    rows: list[tuple[str, ...]] = []
    for serving in device.serving:
        score = _score_of(serving, device.scores)
        rows.append(
            (
                device.id,
                status,
                _release(serving),
                by_model.pop(serving.model, NOTHING),
                str(score.requests) if score else "0",
                _ms(score.p95_ms if score else None),
                accuracy(score) if score else "no labels",
                *last,
            )
        )
    for text in by_model.values() or ([] if device.serving else [NOTHING]):
        rows.append((device.id, status, NOTHING, text, NOTHING, NOTHING, NOTHING, *last))
    return rows


# Rollouts


def rollout_list(rollouts: Sequence[RolloutView], now: float) -> Lines:
    """Return `fleet rollout list`."""
    if not rollouts:
        return ["no rollouts"]
    return table(
        ("ROLLOUT", "RELEASE", "TO", "STATUS", "STARTED", "BECAUSE"),
        [
            (
                each.id,
                each.release,
                each.to,
                spaced(each.status),
                ago(now - each.started_at),
                each.because,
            )
            for each in rollouts
        ],
    )


def rollout_status(rollout: RolloutView) -> Lines:
    """Return `fleet rollout status`: the waves, the latest decision, and who is not well."""
    head = f"{rollout.release} -> {rollout.to}"
    lines = [f"{head:<34} {_stand(rollout)}"]
    lines += _waves(rollout.waves)
    lines += _fetching(rollout)
    lines.append(f"{spaced(rollout.status)}: {rollout.because}")
    return lines + _gates(rollout) + _devices(rollout.devices)


def _gates(rollout: RolloutView) -> Lines:
    """Return what was decided, and how the gates stand that have anything to go by."""
    more = len(rollout.verdicts) - MAX_VERDICT_LINES
    lines = [f"  decided  {more} more before: --json shows all"] if more > 0 else []
    said = rollout.verdicts[-MAX_VERDICT_LINES:]
    lines += [f"  decided  {each.ruling}: {each.words}" for each in said]
    if not rollout.status.final:
        live = (each for each in rollout.gates if each.figures.get("count", each.devices))
        lines += [f"  gate     {each.words}" for each in live]
    return lines


def rollout_line(rollout: RolloutView) -> str:
    """Return where a rollout stands, in one line for a log."""
    counts: dict[str, int] = {}
    for wave in rollout.waves:
        for phase, count in wave.counts.items():
            counts[phase] = counts.get(phase, 0) + count
    return f"{rollout.release} {_stand(rollout)}: {_counts(counts, ', ')}"


def wave_progress(rollout: RolloutView) -> list[tuple[str, int, int]]:
    """Return the name of each wave, how many of its devices are through, and of how many."""
    return [
        (
            f"wave {wave.number}",
            sum(wave.counts.get(phase, 0) for phase in Phase if phase.final),
            wave.devices,
        )
        for wave in rollout.waves
    ]


def bytes_progress(rollout: RolloutView) -> tuple[int, int]:
    """Return how many bytes came, and how many come, on the devices that fetch now."""
    busy = [each for each in rollout.devices if each.phase is Phase.FETCHING]
    return sum(each.bytes_done for each in busy), sum(each.bytes_total for each in busy)


def _fetching(rollout: RolloutView) -> Lines:
    """Return how far the devices are that fetch now, all together."""
    done, total = bytes_progress(rollout)
    speed = sum(each.bytes_per_s for each in rollout.devices)
    return [f"  fetching {100 * done // total}%{_amounts(done, total, speed)}"] if total else []


def _stand(rollout: RolloutView) -> str:
    status = spaced(rollout.status)
    if rollout.status not in (RolloutStatus.RUNNING, RolloutStatus.PAUSED):
        return status
    opened = [wave.number for wave in rollout.waves if wave.open]
    return f"wave {max(opened, default=1)} of {len(rollout.waves)}, {status}"


def _waves(waves: Sequence[WaveView]) -> Lines:
    shares = max((len(wave.share) for wave in waves), default=0)
    return [
        f"  wave {wave.number}  {wave.share:>{shares}}  {_counts(wave.counts, '  ')}".rstrip()
        for wave in waves
    ]


def _counts(counts: dict[str, int], between: str) -> str:
    words = [f"{count} {spaced(phase)}" for phase, count in sorted(counts.items(), key=_by_phase)]
    return between.join(word for word in words if not word.startswith("0 ")) or "no devices"


_ORDER = [Phase.COMMITTED, *(phase for phase in Phase if phase is not Phase.COMMITTED)]


def _by_phase(item: tuple[str, int]) -> int:
    return _ORDER.index(Phase(item[0])) if item[0] in list(Phase) else len(_ORDER)


def _devices(devices: Sequence[RolloutDeviceView]) -> Lines:
    """Return those that ended badly and those under way; the well and the waiting are counted."""
    bad = [each for each in devices if each.phase in _BAD]
    busy = [each for each in devices if each.phase is not None and not each.phase.final]
    away = [each for each in devices if each.recall not in ("", "back")]
    told = list(dict.fromkeys([*away, *bad, *busy]))
    rows = [(each.id, _rollout_device(each)) for each in told[:MAX_DEVICE_LINES]]
    width = max((len(id) for id, _ in rows), default=0)
    lines = [f"  {id:<{width}}  {text}" for id, text in rows]
    more = len(told) - len(rows)
    return lines + ([f"  and {more} more: --json shows all"] if more else [])


def _rollout_device(device: RolloutDeviceView) -> str:
    words = "told" if device.phase is None else _phase(device.phase)
    if device.reason is not None:
        words += f"  {device.reason}" + (f": {device.detail}" if device.detail else "")
    elif device.phase is not None:
        words += _progress(device, device.phase) + _amounts_of(device, device.phase)
        words += f", {device.detail}" if device.waiting else ""
    if device.recall:
        words += f"; taken back: {device.recall}"
    return words if device.online else f"{words}  (offline)"


def _progress(report: DeploymentReport | RolloutDeviceView, phase: Phase) -> str:
    if phase is Phase.FETCHING and report.bytes_total:
        return f" {100 * report.bytes_done // report.bytes_total}%"
    if phase is Phase.PROBATION:
        return f" {report.labelled_pairs} pairs"
    return ""


def _amounts_of(report: DeploymentReport | RolloutDeviceView, phase: Phase) -> str:
    if phase is not Phase.FETCHING or not report.bytes_total:
        return ""
    return _amounts(report.bytes_done, report.bytes_total, report.bytes_per_s)


def _amounts(done: int, total: int, speed: int) -> str:
    """Return `, 21.0 MiB of 50.0 MiB, 1.2 MiB/s, 25 s left`, the rest of it while it moves."""
    words = f", {size(done)} of {size(total)}"
    if not speed:
        return words
    return f"{words}, {size(speed)}/s, {lasting(-(-(total - done) // speed))} left"


def event_line(event: EventView) -> str:
    """Return a line of `fleet events --follow`."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    return f"{at}  {event.kind}  {event.subject or NOTHING}  {event.text}"


def event_list(events: Sequence[EventView], now: float) -> Lines:
    """Return `fleet events`."""
    if not events:
        return ["nothing happened yet"]
    return table(
        ("WHEN", "KIND", "SUBJECT", "WHAT"),
        [(ago(now - each.at), each.kind, each.subject or NOTHING, each.text) for each in events],
    )


# Words


def _phase(phase: Phase) -> str:
    return spaced(phase.value)


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def facts_of(facts: Iterable[tuple[str, str]]) -> Lines:
    """Return named facts, one a line; empty ones are left out."""
    return [f"  {name:<11} {text}" for name, text in facts if text]


def _first_line(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 60 else line[:57] + "..."
