"""What the controller knows, as the values its API speaks in."""

from collections import Counter
from collections.abc import Iterable, Mapping

from fleet.core.census import Census, Device
from fleet.core.evidence import (
    LEAST_DEVICES,
    SPLIT,
    Verdict,
    promotion,
    readings,
    too_small,
)
from fleet.core.forecast import Forecast
from fleet.core.gate import Standing
from fleet.core.rollout import Rollout, Told, compared, is_back
from fleet.core.scores import Totals, score_view
from fleet.core.views import (
    DeviceView,
    PlanDeviceView,
    PlanWaveView,
    Refusal,
    ReleaseView,
    RolloutDeviceView,
    RolloutPlanView,
    RolloutRequest,
    RolloutView,
    VariantView,
    VerdictView,
    WaveView,
)
from wire.manifest import Manifest
from wire.twin import DeploymentReport, Phase, Reported


def release_view(
    manifest: Manifest, digest: str, pushed_at: float, *, whole: bool = False
) -> ReleaseView:
    """Return a release, with its manifest when the `whole` is wanted."""
    return ReleaseView(
        model=manifest.model,
        version=manifest.version,
        digest=digest,
        description=manifest.description,
        parent=manifest.parent,
        variants=tuple(
            VariantView(name=v.name, format=v.format, size_bytes=v.artifact.size_bytes)
            for v in manifest.variants
        ),
        metrics=manifest.metrics,
        pushed_at=pushed_at,
        manifest=manifest if whole else None,
    )


def device_view(
    device: Device, desired_revision: int, totals: Iterable[Totals], missing: int, now: float
) -> DeviceView:
    """Return a device; its scores in the order their releases came."""
    reported = device.reported or Reported(
        device=device.id, desired_revision=0, agent="", boot="none"
    )
    return DeviceView(
        id=device.id,
        online=device.online(now),
        last_seen=device.last_seen,
        clash=device.clash(now),
        agent=reported.agent,
        labels=reported.labels,
        capabilities=reported.capabilities,
        desired_revision=desired_revision,
        reported_revision=reported.desired_revision,
        serving=reported.serving,
        deployments=reported.deployments,
        api=reported.api,
        refusals=reported.refusals,
        health=device.health.model_dump(mode="json") if device.health else None,
        scores=tuple(score_view(each) for each in sorted(totals, key=lambda t: t.since)),
        missing=missing,
    )


def rollout_view(
    rollout: Rollout, census: Census, now: float, *, with_devices: bool = False
) -> RolloutView:
    """Return a rollout, with each of its devices when asked for."""
    devices = (
        _rollout_device(rollout, census.get(id), number, now)
        for number, wave in enumerate(rollout.waves, start=1)
        for id in wave
    )
    return RolloutView(
        id=rollout.id,
        release=rollout.release,
        digest=rollout.manifest,
        to=rollout.to,
        status=rollout.status,
        because=rollout.because,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        probation=rollout.probation,
        bytes_per_s=rollout.manners.bytes_per_s,
        windows=rollout.manners.windows,
        spread_s=rollout.spread_s,
        gates=_gates(rollout, now) if with_devices else (),
        verdicts=tuple(map(verdict_view, rollout.verdicts)) if with_devices else (),
        waves=tuple(
            WaveView(
                number=number,
                share=share,
                open=number <= rollout.open,
                devices=len(rollout.waves[number - 1]),
                counts=_counts(rollout, rollout.waves[number - 1], census),
            )
            for number, share in enumerate(rollout.shares, start=1)
        ),
        devices=tuple(devices) if with_devices else (),
    )


def verdict_view(verdict: Verdict) -> VerdictView:
    """Return a verdict, or how a gate stands."""
    return VerdictView(
        gate=verdict.gate,
        ruling=verdict.ruling,
        at=verdict.at,
        words=verdict.words,
        e=verdict.e,
        limit=verdict.limit,
        alpha=verdict.alpha,
        wave=verdict.wave,
        devices=verdict.devices,
        figures=dict(verdict.figures),
    )


def _gates(rollout: Rollout, now: float) -> tuple[VerdictView, ...]:
    """Return how every gate stands; none where a share of refusals alone decides."""
    if rollout.judged_by == "threshold":
        return ()
    answers = (told.answer for told in rollout.told.values())
    found = readings(rollout.evidence, answers, now, rollout.open)
    if not rollout.promoted and compared(rollout):
        found.append(promotion(rollout.evidence, now, rollout.open))
    return tuple(map(verdict_view, found))


def plan_view(
    rollout: Rollout,
    request: RolloutRequest,
    costs: Mapping[str, Forecast],
    census: Census,
    now: float,
) -> RolloutPlanView:
    """Return a rollout of which nobody was told: waves too small to decide, and what it costs."""
    refused = small_waves(rollout, request.approve_small_waves)
    tests = rollout.judged_by == "tests"
    told, waves = 0, []
    for number, (share, wave) in enumerate(zip(rollout.shares, rollout.waves, strict=True), 1):
        told += len(wave)
        small = too_small(told) if tests else ""
        waves.append(
            PlanWaveView(
                number=number,
                share=share,
                devices=len(wave),
                told=told,
                too_small=small,
                bytes_coming=sum(costs[id].bytes_coming for id in wave),
                bytes_sent=_sent_once(costs[id] for id in wave),
                refused=sum(costs[id].how == "refused" for id in wave),
            )
        )
    return RolloutPlanView(
        release=rollout.release,
        to=rollout.to,
        devices=told,
        waves=tuple(waves),
        alphas=dict(SPLIT) if tests else {},
        refusal=refused.error if refused is not None else "",
        next_step=refused.next_step if refused is not None else "",
        bytes_coming=sum(wave.bytes_coming for wave in waves),
        refused=sum(wave.refused for wave in waves),
        forecasts=tuple(
            PlanDeviceView(
                id=id,
                wave=number,
                online=census.get(id).online(now),
                how=costs[id].how,
                variant=costs[id].variant,
                bytes_coming=costs[id].bytes_coming,
                bytes_whole=costs[id].bytes_whole,
                reason=costs[id].reason,
                detail=costs[id].detail,
            )
            for number, wave in enumerate(rollout.waves, 1)
            for id in wave
        ),
    )


def _sent_once(costs: Iterable[Forecast]) -> int:
    transfers = {o.transfer: o.transfer_bytes for cost in costs for o in cost.coming}
    return sum(transfers.values())


def small_waves(rollout: Rollout, approved: bool) -> Refusal | None:
    """Return why a rollout is not started: a wave that is too small and could be larger (422)."""
    total = sum(map(len, rollout.waves))
    if approved or rollout.judged_by == "threshold" or total < LEAST_DEVICES:
        return None
    told = 0
    for number, wave in enumerate(rollout.waves, start=1):
        told += len(wave)
        if told and (why := too_small(told)):
            return Refusal(
                422,
                f"wave {number}: {why}",
                f"fleet rollout start {rollout.release} --waves {LEAST_DEVICES},100%, "
                "or --approve-small-waves",
            )
    return None


def _counts(rollout: Rollout, wave: Iterable[str], census: Census) -> dict[str, int]:
    """Return how many devices of a wave stand where; no values are made for that."""
    words: Counter[str] = Counter()
    for id in wave:
        told = rollout.told.get(id)
        if told is None:
            words["waiting"] += 1
        else:
            phase, _ = _stand(rollout, told, census.get(id))
            words[phase or "told"] += 1
    return {str(word): count for word, count in sorted(words.items())}


def _stand(
    rollout: Rollout, told: Told, device: Device
) -> tuple[Phase | None, DeploymentReport | None]:
    """Return where a device stands, and what it reports of it, if it does.

    Its final answer outlives later deployments on it.
    """
    report = device.deployment(rollout.model)
    if report is None or report.rollout != rollout.id or report.purpose != "rollout":
        return told.answer.phase, None
    if told.answer.standing is not Standing.WORKING:
        return told.answer.phase, report
    return report.phase, report


def _rollout_device(rollout: Rollout, device: Device, number: int, now: float) -> RolloutDeviceView:
    """Return one device; its final answer outlives later deployments on it."""
    told = rollout.told.get(device.id)
    if told is None:
        return RolloutDeviceView(id=device.id, wave=number, online=device.online(now), phase=None)
    phase, report = _stand(rollout, told, device)
    ended = told.answer.standing is not Standing.WORKING
    said = told.answer if ended or report is None else report
    view = RolloutDeviceView(
        id=device.id,
        wave=number,
        online=device.online(now),
        phase=phase,
        reason=said.reason,
        detail=said.detail,
        recall=_recall(rollout, told, device, now),
    )
    if report is None:
        return view
    return view.model_copy(
        update={
            "bytes_done": report.bytes_done,
            "bytes_total": report.bytes_total,
            "bytes_per_s": report.bytes_per_s,
            "waiting": report.waiting,
            "labelled_pairs": report.labelled_pairs,
            "worse": report.worse,
            "better": report.better,
        }
    )


def _recall(rollout: Rollout, told: Told, device: Device, now: float) -> str:
    """Return how a device that was called back fares, in words; empty when it was not."""
    if not told.recall:
        return ""
    if told.recall == "left":
        return "left alone"
    if rollout.previous.get(device.id) is None:
        return "nothing before"
    if is_back(rollout, device):
        return "back"
    report = device.deployment(rollout.model)
    if (
        report is not None
        and (report.rollout, report.purpose) == (rollout.id, "rollback")
        and report.phase.final
        and report.phase is not Phase.COMMITTED
    ):
        return f"cannot: {report.reason or report.phase}" + (
            f", {report.detail}" if report.detail else ""
        )
    return "on its way" if device.online(now) else "offline"
