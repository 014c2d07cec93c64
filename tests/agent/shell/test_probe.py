import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agent.shell.probe import (
    Probe,
    battery,
    capabilities,
    clock_synchronised,
    network_bytes,
    pressure,
    pss_bytes,
    swap_used_bytes,
    throttled,
)
from wire.codec import decode, encode
from wire.telemetry import Health


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script)


def test_a_sample_tells_how_the_machine_and_the_engines_fare(tmp_path: Path) -> None:
    probe = Probe("pi-1", "boot", tmp_path)
    with subprocess.Popen(python("while True: pass")) as busy:
        probe.sample([busy.pid])
        time.sleep(0.5)

        health = probe.sample([busy.pid, 2**22 - 1])
        busy.kill()

    assert decode(Health, encode(health, deflate=True)) == health
    assert (health.device, health.boot, health.seq) == ("pi-1", "boot", 1)
    assert abs(health.at - time.time()) < 10
    assert health.uptime_s > 0
    assert 0 <= health.cpu_percent <= 100
    assert health.memory_total_bytes == psutil.virtual_memory().total
    assert 0 < health.disk_free_bytes <= os.statvfs(tmp_path).f_blocks * 2**20
    assert health.engine_cpu_percent > 0  # on a busy machine it gets little
    assert health.engine_rss_bytes > 1_000_000
    assert health.agent_rss_bytes > 1_000_000
    assert probe.sample([]).engine_rss_bytes == 0


# ---- what the kernel says


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_kernel_answers(tmp_path: Path) -> None:
    health = Probe("pi-1", "boot", tmp_path).sample([])

    assert health.kernel_boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert set(health.pressure) == {
        path.name for path in Path("/proc/pressure").glob("*") if path.name != "irq"
    }
    assert health.swap_used_bytes is not None
    assert abs(health.swap_used_bytes - psutil.swap_memory().used) < 64 * 1024 * 1024
    assert health.disk_total_bytes is not None
    assert health.disk_total_bytes > health.disk_free_bytes
    others = [io for name, io in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    assert health.network_received_bytes is not None
    assert health.network_received_bytes >= sum(io.bytes_recv for io in others) * 0.9
    assert health.agent_pss_bytes is not None
    assert 1_000_000 < health.agent_pss_bytes <= health.agent_rss_bytes * 1.2
    assert health.engine_pss_bytes == 0
    assert health.clock_synchronised in (True, False)


def test_a_kernel_that_says_nothing_leaves_everything_open(tmp_path: Path) -> None:
    health = Probe("pi-1", "boot", tmp_path, root=tmp_path).sample([os.getpid()])

    assert (health.kernel_boot, health.pressure, health.swap_used_bytes) == (None, {}, None)
    assert (health.throttled, health.battery_percent, health.battery_charging) == (None, None, None)
    assert (health.agent_pss_bytes, health.engine_pss_bytes) == (None, None)
    assert (health.network_received_bytes, health.network_sent_bytes) == (None, None)


def test_pressure_is_that_of_the_last_minute(tmp_path: Path) -> None:
    line = (
        "some avg10=9.00 avg60={} avg300=1.92 total=107\nfull avg10=0 avg60=7.0 avg300=0 total=0\n"
    )
    put(tmp_path, {"proc/pressure/cpu": line.format("1.81"), "proc/pressure/io": line.format(0.0)})

    assert pressure(tmp_path) == {"cpu": 1.81, "io": 0.0}


def test_swap_in_use_is_told(tmp_path: Path) -> None:
    put(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nSwapTotal:  1000 kB\nSwapFree:  990 kB\n"})

    assert swap_used_bytes(tmp_path) == 10 * 1024


@pytest.mark.parametrize(
    ("word", "expected"), [("0", False), ("50000", False), ("50005", True), ("0x4", True)]
)
def test_a_raspberry_pi_tells_of_low_voltage_and_heat_of_now(
    tmp_path: Path, word: str, expected: bool
) -> None:
    put(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": word + "\n"})

    assert throttled(tmp_path) is expected


@pytest.mark.parametrize(("state", "expected"), [("0", False), ("3", True)])
def test_elsewhere_the_cooling_of_the_processor_tells_it(
    tmp_path: Path, state: str, expected: bool
) -> None:
    thermal = "sys/class/thermal/cooling_device"
    put(tmp_path, {f"{thermal}0/type": "pwm-fan\n", f"{thermal}0/cur_state": "4\n"})
    fan_alone = throttled(tmp_path)
    put(tmp_path, {f"{thermal}1/type": "cpufreq-cpu0\n", f"{thermal}1/cur_state": state})

    assert fan_alone is None
    assert throttled(tmp_path) is expected


def test_the_loopback_is_no_network(tmp_path: Path) -> None:
    rows = (
        "Inter-|   Receive                        |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo: 1000 1 0 0 0 0 0 0 1000 1 0 0 0 0 0 0\n"
        "  eth0: 70 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n"
        "wlan0:30 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n"
    )
    put(tmp_path, {"proc/net/dev": rows})

    assert network_bytes(tmp_path) == (100, 11)


def test_a_clock_that_systemd_keeps_is_synchronised(tmp_path: Path) -> None:
    put(tmp_path, {"run/systemd/timesync/synchronized": ""})

    assert clock_synchronised(tmp_path) is True


def test_memory_of_processes_is_summed_and_one_that_is_hidden_leaves_it_open(
    tmp_path: Path,
) -> None:
    put(tmp_path, {f"proc/{pid}/smaps_rollup": f"x\nPss:  {pid} kB\n" for pid in (7, 8)})

    assert pss_bytes(tmp_path, [7, 8]) == 15 * 1024
    assert pss_bytes(tmp_path, [7, 9]) is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [("Charging", True), ("Full", True), ("Discharging", False), ("Unknown", None)],
)
def test_the_battery_of_the_device_is_told_and_not_that_of_its_mouse(
    tmp_path: Path, status: str, expected: bool | None
) -> None:
    supply = "sys/class/power_supply"
    put(tmp_path, {
        f"{supply}/AC/type": "Mains\n",
        f"{supply}/a-mouse/type": "Battery\n", f"{supply}/a-mouse/scope": "Device\n",
        f"{supply}/a-mouse/capacity": "3\n",
        f"{supply}/bat0/type": "Battery\n", f"{supply}/bat0/capacity": "81\n",
        f"{supply}/bat0/status": f"{status}\n",
    })  # fmt: skip

    assert battery(tmp_path) == (81.0, expected)


# ---- what it can run


def test_the_installed_runtimes_are_seen_to_run_a_model() -> None:
    found = capabilities({"FARFLUNG_RUNTIMES": "onnxruntime"})

    assert list(found.runtimes) == ["onnxruntime"]
    assert found.runtimes["onnxruntime"][0].isdigit()
    assert found.unusable == {}
    assert found.libraries is not None
    assert set(found.libraries) == {"Pillow", "pymicro-features"}
    assert found.libraries["Pillow"][0].isdigit()
    assert found.architecture == os.uname().machine
    assert found.memory_bytes == psutil.virtual_memory().total
    assert found.cpus >= 1


def test_the_allowed_runtimes_reach_the_probe(tmp_path: Path) -> None:
    script = (
        "import json, os; "
        "print(json.dumps({'runtimes': {}, 'unusable': "
        "{'seen': os.environ.get('FARFLUNG_RUNTIMES', 'all')}}))"
    )

    assert capabilities({"FARFLUNG_RUNTIMES": "a,b"}, python(script)).unusable == {"seen": "a,b"}
    assert capabilities({}, python(script)).unusable == {"seen": "all"}


def test_a_library_that_is_broken_is_unusable_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('libjpeg.so.62: not found')")
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")

    found = capabilities({"FARFLUNG_RUNTIMES": "onnxruntime"})

    assert found.unusable == {"Pillow": "libjpeg.so.62: not found"}
    assert found.libraries is not None
    assert set(found.libraries) == {"pymicro-features"}


def test_a_probe_that_fails_is_a_device_without_runtimes_that_says_why() -> None:
    for command, why in [
        (python("import sys; sys.exit('no numpy here')"), "ended with code 1: no numpy here"),
        (python("print('[1, 2]')"), "the probe ended with code 0"),
        (python("import os; os.kill(os.getpid(), 11)"), "the probe ended with code -11"),
        (python("import time; time.sleep(9)"), "the probe gave no answer within 0 s"),
        (("/nowhere/python",), "cannot start /nowhere/python: No such file or directory"),
    ]:
        found = capabilities({}, command, timeout_s=0.4 if "sleep" in command[-1] else 20)

        assert found.runtimes == {}
        assert why in found.unusable["engine"]
