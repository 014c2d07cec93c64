"""A device's own page of metrics."""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from agent.errors import DeviceError
from agent.shell.metrics import CONTENT_TYPE, MAX_RELEASES, Metrics
from wire.metrics import DEVICE_HEALTH, DEVICE_RELEASES
from wire.telemetry import Health, Histogram, PipelineCounts, ScoreWindow

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    page = Metrics(("127.0.0.1", 0), "cam-1")
    yield page
    page.close()


def health(**changes: object) -> Health:
    values: dict[str, object] = {
        "device": "cam-1",
        "boot": "b1",
        "seq": 1,
        "at": 1_700_000_000,
        "uptime_s": 100,
        "cpu_percent": 25.0,
        "load_1m": 0.5,
        "memory_total_bytes": 1000,
        "memory_available_bytes": 400,
        "disk_free_bytes": 5000,
        "agent_cpu_percent": 1.0,
        "agent_rss_bytes": 30,
    }
    return Health.model_validate(values | changes)


def window(version: int = 1, **changes: object) -> ScoreWindow:
    values: dict[str, object] = {
        "device": "cam-1",
        "boot": "b1",
        "seq": 1,
        "model": "digits",
        "version": version,
        "manifest": DIGEST,
        "variant": "onnx",
        "start": 0,
        "end": 60,
    }
    return ScoreWindow.model_validate(values | changes)


def read(metrics: Metrics, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}{path}", timeout=10) as answer:
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        return answer.read().decode()


def checked_by_promtool(page: str) -> str:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr if done.returncode else ""


def test_windows_add_up_and_the_latest_health_is_shown(metrics: Metrics) -> None:
    metrics.note(health(seq=1, temperature_c=40.0))
    metrics.note(window(requests=3, latency=Histogram(bins={0: 2, 500: 1}), labelled=2, correct=1))
    metrics.note(window(requests=4, errors=1, golden={"samples": 5}, estimate={"sum_p": 500_000}))
    metrics.note(health(seq=2, temperature_c=41.5, pressure={"cpu": 12.5}))

    lines = read(metrics).splitlines()

    assert 'farflung_device_temperature_celsius{device="cam-1"} 41.5' in lines
    assert 'farflung_device_cpu_utilization_ratio{device="cam-1"} 0.25' in lines
    assert 'farflung_device_pressure_ratio{device="cam-1",resource="cpu"} 0.125' in lines
    release = 'device="cam-1",model="digits",version="1"'
    assert f"farflung_device_model_requests_total{{{release}}} 7.0" in lines
    assert f"farflung_device_model_labelled_correct_total{{{release}}} 1.0" in lines
    assert f"farflung_device_model_golden_samples_total{{{release}}} 5.0" in lines
    assert f"farflung_device_model_estimated_correct_total{{{release}}} 0.5" in lines
    assert f'farflung_device_model_latency_seconds_bucket{{{release},le="0.0001"}} 2' in lines
    assert f'farflung_device_model_latency_seconds_bucket{{{release},le="+Inf"}} 3' in lines
    assert f"farflung_device_model_latency_seconds_count{{{release}}} 3" in lines


def test_promtool_finds_nothing_wrong_with_a_full_page(metrics: Metrics) -> None:
    frames = PipelineCounts(taken=5, dropped={"full": 1}, failed={'odd "one"\n': 1})
    optional = {
        "temperature_c": 50.0, "swap_used_bytes": 1, "disk_total_bytes": 2, "throttled": False,
        "network_received_bytes": 3, "network_sent_bytes": 4, "clock_synchronised": True,
        "agent_pss_bytes": 5, "engine_pss_bytes": 6, "agent_starts": 7, "broker_rtt_ms": 8.5,
        "battery_percent": 90.0, "battery_charging": True, "outbox_bytes": 9,
        "pressure": {"io": 0.5}, "pipelines": {"belt": frames},
    }  # fmt: skip
    metrics.note(health(**optional))
    metrics.note(window(requests=1))

    page = read(metrics)

    assert checked_by_promtool(page) == ""
    shown = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    assert shown >= {metric.name for metric in (*DEVICE_HEALTH, *DEVICE_RELEASES.all)}


def test_what_a_device_cannot_measure_has_no_series(metrics: Metrics) -> None:
    metrics.note(health())

    page = read(metrics)

    assert "uptime" in page
    assert "temperature" not in page
    assert "battery" not in page


def test_releases_that_were_silent_longest_make_room(metrics: Metrics) -> None:
    for version in range(1, MAX_RELEASES + 6):
        metrics.note(window(version=version, requests=1))

    page = read(metrics)

    versions = re.findall(r'requests_total\{.*version="(\d+)"', page)
    assert sorted(map(int, versions)) == list(range(6, MAX_RELEASES + 6))


def test_other_addresses_are_not_there_and_do_no_harm(metrics: Metrics) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(metrics, "/")

    assert "farflung_agent_build_info" in read(metrics)


def test_an_address_that_is_taken_is_named(metrics: Metrics) -> None:
    with pytest.raises(DeviceError, match=rf"127.0.0.1:{metrics.port}.*\[metrics\] listen"):
        Metrics(("127.0.0.1", metrics.port), "cam-1")


def test_nothing_is_imported_for_metrics_that_nobody_wants() -> None:
    names = ("agent.shell.metrics", "wire.metrics", "http.server")
    code = f"import sys, agent.daemon; print([n for n in {names} if n in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
