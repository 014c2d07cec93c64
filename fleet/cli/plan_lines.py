"""`fleet rollout plan` in lines. Pure."""

from collections.abc import Sequence

from fleet.cli.views import Lines, table
from fleet.cli.words import size, spaced
from fleet.core.views import PlanDeviceView, RolloutPlanView

SHOWN = 20
"""Devices that are listed without being asked for."""

_WORDS = {"held": "has it", "delta": "delta", "whole": "whole", "unknown": "never reported"}


def rollout_plan(plan: RolloutPlanView, *, every: bool = False) -> Lines:
    """Return the waves with their bytes, who would refuse, and how alpha is split."""
    total = f"{plan.devices} devices, {size(plan.bytes_coming)} to fetch"
    lines = [f"{plan.release} -> {plan.to}: {total}"]
    for wave in plan.waves:
        coming = f"{size(wave.bytes_coming)}, {size(wave.bytes_sent)} sent once"
        refused = f"  {wave.refused} will refuse" if wave.refused else ""
        small = f"  too small: {wave.too_small}" if wave.too_small else ""
        lines.append(
            f"  wave {wave.number}  {wave.share:>5}  {wave.devices} devices  {coming}"
            f"{refused}{small}"
        )
    lines += _refusals(plan.forecasts)
    if plan.forecasts and (every or len(plan.forecasts) <= SHOWN):
        lines += table(
            ("DEVICE", "WAVE", "STATE", "VARIANT", "FETCHES", "HOW"), map(_row, plan.forecasts)
        )
    if plan.alphas:
        parts = ", ".join(f"{gate} {alpha:g}" for gate, alpha in plan.alphas.items())
        alpha = sum(plan.alphas.values())
        lines.append(f"chance of a false abort at most {alpha:g}, over all looks: {parts}")
    else:
        lines.append("judged by a share of refusals: no chance of a false abort can be told")
    if plan.refusal:
        lines.append(f"would not be started: {plan.refusal}")
    return lines


def _row(device: PlanDeviceView) -> tuple[str, ...]:
    how = spaced(f"refuses: {device.reason}") if device.reason else _WORDS[device.how]
    if device.how == "delta":
        how += f", {size(device.bytes_whole)} whole"
    return (
        device.id,
        str(device.wave),
        "online" if device.online else "offline",
        device.variant or "-",
        size(device.bytes_coming) if device.how != "refused" else "-",
        how,
    )


def _refusals(devices: Sequence[PlanDeviceView]) -> Lines:
    """Return who would refuse, together where the reason is the same."""
    groups: dict[tuple[str, str], list[str]] = {}
    for each in devices:
        if each.reason is not None:
            groups.setdefault((each.reason, each.detail), []).append(each.id)
    lines = []
    for (reason, detail), ids in sorted(groups.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        names = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        lines.append(f"  preflight will refuse on {names}: {spaced(reason)}, {detail}")
    if len(groups) > SHOWN:
        lines.append(f"  and for {len(groups) - SHOWN} more reasons: --json lists every device")
    return lines
