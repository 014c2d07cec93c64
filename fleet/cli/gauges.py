"""The latest health report of a device in words: all of it, and what somebody should look at."""

from collections.abc import Mapping
from typing import Any

from fleet.cli.words import lasting, size

Health = Mapping[str, Any]
"""A wire.telemetry.Health as JSON; of an older agent without the newer fields."""

LITTLE = 0.1
"""Less than this share of memory or disk is worth a word."""
HOT_C = 80.0
PRESSED_PERCENT = 20.0
EMPTY_PERCENT = 20.0
FAR_MS = 2000.0
STEPPED_S = 5.0


def facts(health: Health) -> list[tuple[str, str]]:
    """Return (name, words) for each group of gauges that the device told."""
    return [
        ("load", _load(health)),
        ("memory", _memory(health)),
        ("disk", _disk(health)),
        ("heat", _heat(health)),
        ("network", _network(health)),
        ("clock", _clock(health)),
        ("battery", _battery(health)),
        ("telemetry", _outbox(health)),
        ("starts", _starts(health)),
        ("attention", ", ".join(troubles(health))),
    ]


def troubles(health: Health) -> list[str]:
    """Return what is worth a look, each in a few words; alerts have rules of their own."""
    found = []
    for what, left, total in (
        ("memory", "memory_available_bytes", "memory_total_bytes"),
        ("disk", "disk_free_bytes", "disk_total_bytes"),
    ):
        share = _share(health, left, total)
        if share is not None and share < LITTLE:
            found.append(f"{what} {100 * share:.0f}% left")
    pressure = health.get("pressure") or {}
    found += [f"{w} pressure {p:.0f}%" for w, p in sorted(pressure.items()) if p >= PRESSED_PERCENT]
    heat = health.get("temperature_c")
    if heat is not None and heat >= HOT_C:
        found.append(f"{heat:.0f} °C")
    if health.get("throttled"):
        found.append("throttled")
    if health.get("clock_synchronised") is False:
        found.append("clock not synchronised")
    if abs(health.get("clock_stepped_s") or 0.0) >= STEPPED_S:
        found.append(f"clock set by {health['clock_stepped_s']:+.0f} s")
    battery = health.get("battery_percent")
    if battery is not None and battery < EMPTY_PERCENT and not health.get("battery_charging"):
        found.append(f"battery {battery:.0f}%")
    if (health.get("broker_rtt_ms") or 0.0) >= FAR_MS:
        found.append(f"broker {health['broker_rtt_ms'] / 1000:.1f} s away")
    if health.get("outbox_dropped"):
        found.append(f"{health['outbox_dropped']} reports dropped")
    return found


def _share(health: Health, part: str, whole: str) -> float | None:
    total = health.get(whole)
    return health.get(part, 0) / total if total else None


def _load(health: Health) -> str:
    words = []
    if "cpu_percent" in health:
        words.append(f"machine {health['cpu_percent']:.0f}% busy, load {health['load_1m']:.2f}")
    pressure = health.get("pressure") or {}
    if pressure:
        waits = ", ".join(f"{what} {pressure[what]:.0f}%" for what in sorted(pressure))
        words.append(f"tasks waited for {waits} of a minute")
    return "; ".join(words)


def _memory(health: Health) -> str:
    words = []
    if health.get("memory_total_bytes"):
        free, total = health["memory_available_bytes"], health["memory_total_bytes"]
        words.append(f"{size(free)} of {size(total)} free")
    if health.get("swap_used_bytes"):
        words.append(f"swap {size(health['swap_used_bytes'])}")
    if health.get("agent_pss_bytes") is not None:
        words.append(f"agent {size(health['agent_pss_bytes'])} PSS")
    if health.get("engine_pss_bytes"):
        words.append(f"engine {size(health['engine_pss_bytes'])} PSS")
    return ", ".join(words)


def _disk(health: Health) -> str:
    if not health.get("disk_total_bytes"):
        return ""
    return f"{size(health['disk_free_bytes'])} of {size(health['disk_total_bytes'])} free"


def _heat(health: Health) -> str:
    throttled = health.get("throttled")
    if throttled is None:
        return ""
    return "the processor is slowed down" if throttled else "the processor runs at full speed"


def _network(health: Health) -> str:
    words = []
    if health.get("network_received_bytes") is not None:
        received, sent = health["network_received_bytes"], health.get("network_sent_bytes") or 0
        words.append(f"{size(received)} in and {size(sent)} out since the machine started")
    if health.get("broker_rtt_ms") is not None:
        words.append(f"broker answers in {health['broker_rtt_ms']:.0f} ms")
    return ", ".join(words)


def _clock(health: Health) -> str:
    words = []
    synchronised = health.get("clock_synchronised")
    if synchronised is not None:
        words.append("synchronised" if synchronised else "not synchronised")
    if health.get("clock_stepped_s"):
        words.append(f"set by {health['clock_stepped_s']:+.1f} s in all")
    return ", ".join(words)


def _battery(health: Health) -> str:
    if health.get("battery_percent") is None:
        return ""
    charging = health.get("battery_charging")
    state = "" if charging is None else ", charging" if charging else ", not charging"
    return f"{health['battery_percent']:.0f}%{state}"


def _outbox(health: Health) -> str:
    if health.get("outbox_bytes") is None:
        return ""
    words = [f"{health.get('outbox_waiting', 0)} waiting ({size(health['outbox_bytes'])})"]
    words += [
        f"{health[name]} {what}"
        for name, what in (("outbox_merged", "merged"), ("outbox_dropped", "dropped"))
        if health.get(name)
    ]
    return ", ".join(words)


def _starts(health: Health) -> str:
    words = []
    if health.get("agent_starts") is not None:
        words.append(f"agent {health['agent_starts']}")
    if health.get("engine_restarts"):
        words.append(f"engine {health['engine_restarts']} more")
    if "uptime_s" in health:
        words.append(f"machine up for {lasting(health['uptime_s'])}")
    return ", ".join(words)
