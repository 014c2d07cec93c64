"""How often drift is told where there is none, and how often it is found where it was planted.

Windows of streams without drift, of samples that are independent or repeat each other, go through
the same verdicts and the same hysteresis as a controller's. Nothing is timed.
"""

from collections.abc import Callable

from fleet.core.statistics.drift import DriftPolicy
from fleet.core.statistics.intervals import clopper_pearson
from scripts.benches._common import Bar, Result, main, note
from tests.fleet.core.statistics.streams import (
    SETTINGS,
    Setting,
    Shares,
    raises,
    shifted_by,
    verdicts,
    without_a_value,
)

POLICY = DriftPolicy()
BARS = [Bar("highest_rate_bound", at_most=POLICY.rate), Bar("lowest_power", at_least=0.9)]
WINDOWS, PLANTED = 20_000, 1_000
HOURS = 24 * 365

NEAR = tuple(
    Setting(10_000, samples, repeats, slices)
    for samples, repeats, slices in [
        (100, 0.2, 8), (200, 0.2, 8), (1_000, 0.6, 8), (1_000, 0.3, 6), (10_000, 0.9, 4),
    ]
)  # fmt: skip
"""Streams with barely enough samples to tell, and with few slices."""

PLANTS: dict[str, Callable[[Shares], Shares]] = {
    "shift 0.25 deviations": shifted_by(0.25),
    "shift 0.5 deviations": shifted_by(0.5),
    "shift 1 deviation": shifted_by(1.0),
    "2% NaN": without_a_value(0.02),
    "5% NaN": without_a_value(0.05),
    "20% NaN": without_a_value(0.2),
}
MEANT = {("shift 0.5 deviations", 1_000), ("shift 0.5 deviations", 10_000), ("5% NaN", 1_000),
         ("5% NaN", 10_000), ("shift 1 deviation", 100), ("20% NaN", 100)}  # fmt: skip
"""What must be found nearly always: the bar is on the lowest of these."""


def measure(quick: bool) -> Result:
    """Measure false alarms and power of the drift verdict."""
    result = Result(runs={"false_alarms": [], "power": []})
    windows, planted = (WINDOWS // 10, PLANTED // 5) if quick else (WINDOWS, PLANTED)
    note("reference  samples  repeats  slices   told    alarm  at most   alerts a device and year")
    note("                                                      (95%)   seen  independent  at most")
    highest = alerts_bound = 0.0
    for setting in (*SETTINGS, *NEAR):
        # Those near the bar take all windows to tell.
        run = _false_alarms(setting, windows if setting in SETTINGS else WINDOWS)
        result.runs["false_alarms"].append(run)
        highest = max(highest, run["rate_bound"])
        alerts_bound = max(alerts_bound, run["alerts_at_most"])
        note(
            f"{setting.reference:9}  {setting.samples:7}  {setting.repeats:7}  {setting.slices:6}  "
            f"{run['told']:5.1%}  {run['rate']:7.2%}  {run['rate_bound']:7.2%}  "
            f"{run['alerts_seen']:5.2f}  {run['alerts_independent']:11.4f}  "
            f"{run['alerts_at_most']:7.1f}"
        )
    note("\nfound in so many of 100 windows, one of three features changed:")
    lowest = 1.0
    for name, changed in PLANTS.items():
        row = []
        for samples in (100, 1_000, 10_000):
            streams = verdicts(Setting(10_000, samples), planted, seed=3, changed=changed)
            power = sum(bool(alarm) for stream in streams for alarm in stream) / planted
            row.append(f"{samples}: {100 * power:5.1f}")
            result.runs["power"].append({"what": name, "samples": samples, "power": power})
            if (name, samples) in MEANT:
                lowest = min(lowest, power)
        note(f"{name:24}{'   '.join(row)}")
    result.figures = {
        "highest_rate_bound": highest,
        "alerts_a_device_year_at_most": alerts_bound,
        "lowest_power": lowest,
        "windows": windows,
        "settings": len(SETTINGS) + len(NEAR),
    }
    return result


def _false_alarms(setting: Setting, windows: int) -> dict[str, float | str]:
    """Return how often it alarmed, and what that is in alerts, one window an hour."""
    streams = list(verdicts(setting, windows, seed=17))
    told = [alarm for stream in streams for alarm in stream if alarm is not None]
    bound = clopper_pearson(sum(told), windows, confidence=0.9)[1]
    alerts = sum(raises(POLICY.hysteresis, stream) for stream in streams)
    return {
        "setting": str(setting),
        "told": len(told) / windows,
        "rate": sum(told) / windows,
        "rate_bound": bound,
        "alerts_seen": alerts / windows * HOURS,
        "alerts_independent": HOURS * POLICY.hysteresis.raises_per_window(bound),
        "alerts_at_most": HOURS * POLICY.hysteresis.most_raises_per_window(bound),
    }


if __name__ == "__main__":
    raise SystemExit(main("drift", BARS, measure))
