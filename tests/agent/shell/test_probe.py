import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agent.shell.probe import Probe, capabilities
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
