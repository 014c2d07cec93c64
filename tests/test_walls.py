"""The import contracts of pyproject.toml hold, and each would notice what it forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("wire", "agent", "fleet", "delta")


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(
        command, cwd=house, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def house(tmp_path):
    """A copy of the packages, to break."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_walls_stand(house):
    linted = lint(house)

    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("room", "bad"),
    [
        ("agent/config.py", "import fleet.core"),
        ("fleet/core/views.py", "import agent.config"),
        ("agent/core/state.py", "import agent.shell"),
        ("fleet/core/rollout.py", "import time"),
        ("agent/core/step.py", "import psutil"),
        ("wire/ids.py", "import paho.mqtt.client"),
        ("wire/topics.py", "import agent.config"),
        ("agent/shell/link.py", "import agent.shell.slots"),
        ("fleet/shell/blobs.py", "import fleet.shell.link"),
        ("agent/engine/__init__.py", "import agent.core.state"),
        ("agent/shell/slots/slots.py", "import numpy"),
        ("agent/config.py", "import agent.engine"),
        ("agent/shell/slots/slots.py", "import delta.decode"),
        ("delta/spans.py", "import wire.ids"),
    ],
)
def test_a_hole_in_a_wall_is_seen(house, room, bad):
    with (house / room).open("a") as file:
        file.write(f"\n{bad}\n")

    linted = lint(house)

    assert linted.returncode == 1
    assert "BROKEN" in linted.stdout
