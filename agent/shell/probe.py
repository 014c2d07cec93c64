"""How the device fares, and what it can run."""

import ctypes
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel

from wire.choice import Operators
from wire.telemetry import Health
from wire.twin import Capabilities

PROBE_TIMEOUT_S = 90.0
PROBE_COMMAND = (sys.executable, "-m", "agent.engine", "--probe")
PRESSED = ("cpu", "memory", "io")
THROTTLED_NOW = 0b1111
"""Of a Raspberry Pi: low voltage, a capped clock, throttled, too warm; higher bits are history."""
CLOCK_UNSYNCHRONISED = 0x40
"""STA_UNSYNC of adjtimex(2)."""
CPU_SENSORS = ("cpu_thermal", "coretemp", "k10temp", "soc_thermal", "cpu-thermal", "acpitz")


class Probe:
    """Samples the machine, the agent and its engines; CPU figures are since the last sample."""

    def __init__(self, device: str, boot: str, data_dir: Path, root: Path = Path("/")) -> None:
        """Begin to measure; `root` is where `proc`, `sys` and `run` are."""
        self._root = root
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
        root = self._root
        received, sent = network_bytes(root)
        percent, charging = battery(root)
        pids = list(self._engines)
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
            kernel_boot=_text(root / "proc/sys/kernel/random/boot_id"),
            pressure=pressure(root),
            swap_used_bytes=swap_used_bytes(root),
            disk_total_bytes=volume.f_blocks * volume.f_frsize,
            throttled=throttled(root),
            network_received_bytes=received,
            network_sent_bytes=sent,
            clock_synchronised=clock_synchronised(root),
            agent_pss_bytes=pss_bytes(root, [os.getpid()]),
            engine_pss_bytes=pss_bytes(root, pids),
            battery_percent=percent,
            battery_charging=charging,
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


# ---- what the kernel says, below `root`; what it does not say is None


def pressure(root: Path) -> dict[str, float]:
    """Return the percent of the last minute in which some task waited, by what it waited for."""
    found = {}
    for name in PRESSED:
        words = (_text(root / "proc/pressure" / name) or "").split()
        shares = [word.removeprefix("avg60=") for word in words if word.startswith("avg60=")]
        if words[:1] == ["some"] and shares:
            found[name] = float(shares[0])
    return found


def swap_used_bytes(root: Path) -> int | None:
    """Return what lies in swap."""
    lines = (_text(root / "proc/meminfo") or "").splitlines()
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if ":" in line}
    try:
        return (int(sizes["SwapTotal"]) - int(sizes["SwapFree"])) * 1024
    except (KeyError, ValueError):
        return None


def throttled(root: Path) -> bool | None:
    """Tell whether the processor runs slower than it could: a Raspberry Pi's word, or cooling."""
    word = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if word is not None:
        try:
            return bool(int(word, 16) & THROTTLED_NOW)
        except ValueError:
            return None
    states = []
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        kind, state = _text(device / "type") or "", _text(device / "cur_state") or ""
        if ("cpu" in kind or kind == "Processor") and state.isdecimal():
            states.append(int(state))
    return any(states) if states else None


def network_bytes(root: Path) -> tuple[int | None, int | None]:
    """Return the bytes received and sent since boot, on all interfaces but the loopback."""
    text = _text(root / "proc/net/dev")
    if text is None:
        return None, None
    rows = [line.partition(":") for line in text.splitlines()]
    counts = [row[2].split() for row in rows if row[1] and row[0].strip() != "lo"]
    try:
        return sum(int(each[0]) for each in counts), sum(int(each[8]) for each in counts)
    except (IndexError, ValueError):
        return None, None


def clock_synchronised(root: Path) -> bool | None:
    """Tell whether somebody keeps the wall clock: systemd says so, or the kernel was told."""
    if (root / "run/systemd/timesync/synchronized").exists():
        return True
    timex = ctypes.create_string_buffer(512)  # modes 0: nothing is set
    try:
        if ctypes.CDLL(None).adjtimex(timex) < 0:
            return None
    except (OSError, AttributeError):
        return None
    # unsigned modes; long offset, freq, maxerror, esterror; int status
    (status,) = struct.unpack_from("@Illlli", timex)[-1:]
    return not status & CLOCK_UNSYNCHRONISED


def pss_bytes(root: Path, pids: Iterable[int]) -> int | None:
    """Return the memory of processes, with their share of what they have in common."""
    total = 0
    for pid in pids:
        lines = (_text(root / "proc" / str(pid) / "smaps_rollup") or "").splitlines()
        sizes = [line.split()[1] for line in lines if line.startswith("Pss:")]
        if not sizes:
            return None
        total += int(sizes[0]) * 1024
    return total


def battery(root: Path) -> tuple[float | None, bool | None]:
    """Return how full the device's battery is, and whether it is on the charger."""
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        # A keyboard's battery has a scope: it is its own.
        if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
            continue
        level = _text(supply / "capacity") or ""
        status = (_text(supply / "status") or "").lower()
        charging = {"charging": True, "full": True, "discharging": False}.get(status)
        return (float(level) if level.isdecimal() else None), charging
    return None, None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


# ---- what it can run


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
