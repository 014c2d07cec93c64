"""How the device fares, and what it can run."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel

from agent.core.choice import Operators
from wire.telemetry import Health
from wire.twin import Capabilities

PROBE_TIMEOUT_S = 90.0
PROBE_COMMAND = (sys.executable, "-m", "agent.engine", "--probe")
CPU_SENSORS = ("cpu_thermal", "coretemp", "k10temp", "soc_thermal", "cpu-thermal", "acpitz")


class Probe:
    """Samples the machine, the agent and its engines; CPU figures are since the last sample."""

    def __init__(self, device: str, boot: str, data_dir: Path) -> None:
        self._device = device
        self._boot = boot
        self._data_dir = data_dir
        self._agent = psutil.Process()
        self._engines: dict[int, psutil.Process] = {}
        # The first call of each only sets the mark that the next one measures from.
        psutil.cpu_percent(None)
        self._agent.cpu_percent(None)

    def sample(self, engine_pids: Iterable[int]) -> Health:
        """Return a health report. Its `seq` is 1 and what only the core counts is 0."""
        memory = psutil.virtual_memory()
        now = time.time()
        engine_cpu, engine_rss = self._engine_use(set(engine_pids))
        volume = os.statvfs(self._data_dir)
        return Health(
            device=self._device,
            boot=self._boot,
            seq=1,
            at=int(now),
            uptime_s=max(0, int(now - psutil.boot_time())),
            cpu_percent=psutil.cpu_percent(None),
            load_1m=round(os.getloadavg()[0], 2),
            memory_total_bytes=memory.total,
            memory_available_bytes=memory.available,
            disk_free_bytes=volume.f_bavail * volume.f_frsize,
            temperature_c=_temperature_c(),
            agent_cpu_percent=round(self._agent.cpu_percent(None), 2),
            agent_rss_bytes=self._agent.memory_info().rss,
            engine_cpu_percent=round(engine_cpu, 2),
            engine_rss_bytes=engine_rss,
        )

    def _engine_use(self, pids: set[int]) -> tuple[float, int]:
        self._engines = {pid: p for pid, p in self._engines.items() if pid in pids}
        cpu, rss = 0.0, 0
        for pid in pids:
            try:
                process = self._engines.get(pid)
                if process is None:
                    process = self._engines[pid] = psutil.Process(pid)
                cpu += process.cpu_percent(None)
                rss += process.memory_info().rss
            except psutil.Error:
                continue  # it ended meanwhile
        return cpu, rss


def capabilities(
    told: Mapping[str, str],
    command: Sequence[str] = PROBE_COMMAND,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Capabilities:
    """Return what this machine can run; see `abilities`."""
    return abilities(told, command, timeout_s)[0]


def abilities(
    told: Mapping[str, str],
    command: Sequence[str] = PROBE_COMMAND,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> tuple[Capabilities, Operators]:
    """Return what this machine can run, asking a child that makes each runtime run a model.

    `told` is what an engine's environment says of runtimes and accelerators. The operators are
    too many to be reported.

    A probe that fails is a device without runtimes, and says why.
    """
    answer = _ask(told, command, timeout_s)
    onnx = answer.supported.get("onnxruntime", _Supported())
    able = Capabilities(
        architecture=platform.machine(),
        python=platform.python_version(),
        runtimes=_words(answer.runtimes),
        unusable=_words(answer.unusable),
        libraries=None if answer.libraries is None else _words(answer.libraries),
        memory_bytes=psutil.virtual_memory().total,
        cpus=len(os.sched_getaffinity(0)),
        onnx_ir=onnx.onnx_ir,
        onnx_opsets=onnx.onnx_opsets,
    )
    return able, {name: each.operators for name, each in answer.supported.items()}


class _Supported(BaseModel):
    """The newest of each that a runtime takes."""

    onnx_ir: int | None = None
    onnx_opsets: dict[str, int] = {}
    operators: dict[str, int] = {}


class _Answer(BaseModel):
    """What the child says."""

    runtimes: dict[str, str]
    unusable: dict[str, str]
    libraries: dict[str, str] | None = None
    supported: dict[str, _Supported] = {}


def _ask(told: Mapping[str, str], command: Sequence[str], timeout_s: float) -> _Answer:
    environ = {**os.environ, **told}
    try:
        done = subprocess.run(
            list(command),
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _no(f"the probe gave no answer within {timeout_s:.0f} s")
    except OSError as error:
        return _no(f"cannot start {command[0]}: {error.strerror}")
    try:
        return _Answer.model_validate_json(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        why = f": {last[0][:200]}" if last else ""
        return _no(f"the probe ended with code {done.returncode}{why}")


def _no(why: str) -> _Answer:
    return _Answer(runtimes={}, unusable={"engine": why})


def _words(answer: dict[str, str]) -> dict[str, str]:
    return {str(name)[:60]: str(text)[:300] for name, text in list(answer.items())[:16]}


def _temperature_c() -> float | None:
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError, ValueError):
        return None
    for name in CPU_SENSORS:
        if sensors.get(name):
            hottest: float = max(reading.current for reading in sensors[name])
            return round(hottest, 1)
    return None
