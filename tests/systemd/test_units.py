import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").glob("*.service"))
HIGHEST_EXPOSURE = 2.5

pytestmark = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *command], capture_output=True, text=True, timeout=60, check=False
    )


def setting(unit: Path, name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)
    assert len(found) == 1, f"{unit.name}: expected one {name}=, got {found}"
    return str(found[0])


def installed(unit: Path, root: Path, text: str | None = None) -> None:
    """Lay out under `root` what the installer leaves on a machine, as far as a unit shows."""
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    there = root / "etc/systemd/system" / unit.name
    there.parent.mkdir(parents=True)
    there.write_text(text or unit.read_text())
    program = root / setting(unit, "ExecStart").split()[0].lstrip("/")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def complaints(unit: Path, root: Path) -> str:
    return run("verify", "--man=no", f"--root={root}", unit.name).stderr


def test_systemd_has_nothing_to_say_about_a_unit(unit, tmp_path):
    installed(unit, tmp_path)

    verified = run("verify", "--man=no", f"--root={tmp_path}", unit.name)

    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_systemd_would_say_so_if_a_key_were_misspelt(unit, tmp_path):
    installed(unit, tmp_path, unit.read_text().replace("TasksMax=", "TaskMax="))

    assert "Unknown key 'TaskMax'" in complaints(unit, tmp_path)


def test_a_unit_is_exposed_little(unit):
    scored = run("security", "--offline=true", "--no-pager", str(unit))

    overall = re.search(r"Overall exposure level for .*: ([0-9.]+)", scored.stdout)
    assert overall is not None, scored.stdout + scored.stderr
    assert float(overall[1]) <= HIGHEST_EXPOSURE


def test_a_unit_is_restarted_for_ever_and_never_runs_as_root(unit):
    assert setting(unit, "Restart") == "always"
    assert setting(unit, "StartLimitIntervalSec") == "0"
    assert setting(unit, "User") == unit.stem.removesuffix("-agent")
    assert setting(unit, "Type") == "notify"
    assert setting(unit, "KillMode") == "mixed"
