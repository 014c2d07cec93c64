"""What a Prometheus gets of a controller, looked at by its own tools."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from fleet.__main__ import fleet as command
from fleet.shell.api import build_app, serve
from tests.brokers import free_port, start_mosquitto
from tests.fleet.test_controller import World, wait_for, window
from wire.telemetry import Health, PipelineCounts

RULES = Path(str(files("fleet.monitoring"))) / "rules"
DASHBOARDS = Path(str(files("fleet.monitoring"))) / "grafana/dashboards"


HEALTH = Health(
    device="cam-1",
    boot="boot-1",
    seq=3,
    at=1,
    uptime_s=9,
    cpu_percent=20.0,
    load_1m=0.5,
    memory_total_bytes=2**31,
    memory_available_bytes=2**30,
    disk_free_bytes=2**33,
    disk_total_bytes=2**34,
    swap_used_bytes=0,
    temperature_c=51.5,
    throttled=False,
    pressure={"cpu": 1.0, "memory": 0.0, "io": 2.5},
    agent_cpu_percent=0.2,
    agent_rss_bytes=2**25,
    agent_pss_bytes=2**25,
    engine_cpu_percent=2.0,
    engine_rss_bytes=2**26,
    engine_pss_bytes=2**26,
    agent_starts=3,
    network_received_bytes=1000,
    network_sent_bytes=1000,
    clock_synchronised=True,
    broker_rtt_ms=3.5,
    battery_percent=88.0,
    battery_charging=True,
    outbox_bytes=500,
    pipelines={"door": PipelineCounts(taken=3, answered=1, dropped={"full": 1}, failed={"bad": 1})},
)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A controller's API, with a device that has answered requests."""
    with ExitStack() as stack:
        broker = stack.enter_context(start_mosquitto(tmp_path, user="tester", password="secret"))
        world = World(tmp_path, broker, stack)
        release = world.push(1)
        device = world.device("cam-1", labels={"site": "berlin"})
        now = int(time.time())
        for seq in (1, 2):
            said = window(release, seq).model_copy(update={"start": now - 60, "end": now})
            device.send(said)
        device.send(HEALTH.model_copy(update={"at": now}))
        world.ended(world.roll_out(str(release.ref)).id)
        wait_for(lambda: device.acks and device.acks[-1] == 3, "ack 2 and 3")
        running = serve(build_app(world.controller), "127.0.0.1", 0)
        stack.callback(running.stop)
        yield running.url


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def tool(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(
        ["promtool", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_metrics_are_what_prometheus_takes_and_say_what_happened(url: str) -> None:
    page, own = get(f"{url}/metrics"), get(f"{url}/metrics/device/cam-1")

    for each in (page, own):
        tool("check", "metrics", given=each)
    assert 'farflung_model_requests_total{model="digits",version="1"} 20.0' in page
    assert "farflung_broker_connected 1.0" in page
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{url}/metrics/device/nobody")


def test_the_rules_are_sound_and_fire_where_they_should() -> None:
    for name in ("alerts.yml", "recording.yml"):
        assert "SUCCESS" in tool("check", "rules", str(RULES / name))
    assert "SUCCESS" in tool("test", "rules", str(RULES / "tests.yml"))


def test_the_files_are_written_once_and_never_over_others(tmp_path: Path) -> None:
    first = CliRunner().invoke(command, ["monitoring", "write", str(tmp_path)])
    (tmp_path / "prometheus.yml").write_text("mine")
    again = CliRunner().invoke(command, ["monitoring", "write", str(tmp_path)])

    assert first.exit_code == again.exit_code == 0
    assert (tmp_path / "grafana/dashboards/fleet.json").is_file()
    assert (tmp_path / "prometheus.yml").read_text() == "mine"
    assert "0 files written" in again.stdout


def expressions() -> list[str]:
    found = []
    for dashboard in sorted(DASHBOARDS.glob("*.json")):
        pending = json.loads(dashboard.read_text())["panels"]
        while pending:
            panel = pending.pop()
            pending += panel.get("panels", [])
            found += [target["expr"] for target in panel.get("targets", [])]
    return found


def test_a_prometheus_scrapes_it_and_answers_every_panel(url: str, tmp_path: Path) -> None:
    assert shutil.which("prometheus"), "expected prometheus; run scripts/test, which installs it"
    home = tmp_path / "prometheus"
    CliRunner().invoke(command, ["monitoring", "write", str(home)])
    config = (home / "prometheus.yml").read_text().replace("127.0.0.1:8700", url[len("http://") :])
    (home / "prometheus.yml").write_text(config.replace("15s", "1s"))
    (home / "devices.yml").write_text('- targets: ["cam-1"]\n')
    tool("check", "config", str(home / "prometheus.yml"))
    address = f"127.0.0.1:{free_port()}"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["prometheus", f"--config.file={home}/prometheus.yml", f"--web.listen-address={address}",
         f"--storage.tsdb.path={tmp_path}/tsdb"],
        stdout=log, stderr=log,
    )  # fmt: skip

    def ask(expression: str) -> list[object]:
        query = urllib.parse.urlencode({"query": expression})
        answer = json.loads(get(f"http://{address}/api/v1/query?{query}"))
        assert answer["status"] == "success", expression
        return answer["data"]["result"]

    def requests() -> list[object]:
        try:
            return ask("farflung_model_requests_total")
        except OSError:
            return []

    try:
        wait_for(requests, "a scrape", 30.0)
        time.sleep(4)  # a rate is of two scrapes
        empty = [each for each in expressions() if not ask(_filled(each))]
        rules = json.loads(get(f"http://{address}/api/v1/rules"))["data"]["groups"]
        wait_for(lambda: ask("farflung:devices_online:ratio"), "a recorded rule", 20.0)
    finally:
        process.terminate()
        process.wait(20)
        log.close()

    assert len(expressions()) > 10
    # Of what this fleet has none of, such as drift and refused chunks.
    assert len(empty) < len(expressions()) / 3, empty
    assert all(rule["health"] in ("ok", "unknown") for group in rules for rule in group["rules"])


def _filled(expression: str) -> str:
    """Put in what Grafana does."""
    for name, value in (
        ("$__rate_interval", "1m"), ("$__interval", "1m"), ("$__range", "1h"),
        ("$model", ".*"), ("$version", ".*"), ("$device", "cam-1"), ("$instance", ".*"),
    ):  # fmt: skip
        expression = expression.replace(name, value)
    return expression
