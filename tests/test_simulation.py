"""Whole rollouts over simulated fleets, by the deciders of both sides: seeded, and repeatable."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts.simulation.__main__ import verdict
from scripts.simulation.parts import Plan
from scripts.simulation.world import Course, World

DEVICES = 120
WAVES = ("30", "50%", "100%")


def simulated(**planted: object) -> Course:
    world = World(Plan(devices=DEVICES, waves=WAVES, **planted))  # type: ignore[arg-type]
    for _ in world.run():
        pass
    return world.course()


def test_a_good_release_reaches_all_that_are_not_dead_and_nothing_is_violated() -> None:
    course = simulated(seed=3, dead=0.05, partitions=2, churn_s=3600)

    assert (course.status, course.violations) == ("completed", [])
    assert course.told == DEVICES
    assert course.counts["committed"] > 0.7 * DEVICES
    assert 0 < len(course.silent) < 0.2 * DEVICES
    assert len(course.waves_s) == 3


@pytest.mark.parametrize(
    ("planted", "gate"),
    [
        ({"points": 5.0}, "accuracy"),
        ({"crash": 0.5}, "crashes"),
        ({"points": 40.0, "hit": 0.5}, "heavy-losses"),
    ],
)
def test_a_bad_release_is_called_off_in_the_first_wave(
    planted: dict[str, float], gate: str
) -> None:
    course = simulated(seed=4, **planted)

    assert (course.status, course.violations) == ("aborted", [])
    assert course.gate in (gate, "accuracy")
    assert course.told < DEVICES
    assert course.decided_s is not None and course.decided_s < 3600


def test_devices_that_took_a_bad_release_are_counted_and_taken_back() -> None:
    course = simulated(seed=5, points=5.0, labelled_pairs=100)

    assert course.status == "aborted"
    assert course.harmed > 0 and course.harmed_hours > 0
    assert course.violations == []


def test_without_labels_a_rollout_holds() -> None:
    course = simulated(seed=6, unlabelled=1.0, churn_s=0, grain_s=600.0)

    assert (course.status, course.violations) == ("held", [])
    assert course.counts.get("committed", 0) == 0


def test_the_same_seed_does_the_same_again() -> None:
    first, again, other = (asdict(simulated(seed=seed, partitions=1)) for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_a_bad_release_that_reaches_all_is_no_success() -> None:
    good = simulated(seed=9)

    assert verdict(Plan(), [good]) == 0
    assert verdict(Plan(points=5), [good]) == 1


def test_the_command_tells_the_course_and_in_json_an_object_a_run() -> None:
    command = [sys.executable, "-m", "scripts.simulation", "--devices", "60", "--waves", "30,100%"]
    root = Path(__file__).parents[1]

    told = subprocess.run(
        command, capture_output=True, text=True, cwd=root, timeout=60, check=False
    )
    runs = subprocess.run(
        [*command, "--points", "10", "--runs", "2", "--json"],
        capture_output=True, text=True, cwd=root, timeout=60, check=False,
    )  # fmt: skip
    typo = subprocess.run(
        [*command, "--waves", "half"],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=60,
        check=False,
    )

    assert told.returncode == 0
    assert "seed 1: completed" in told.stdout
    assert runs.returncode == 0
    assert [json.loads(line)["status"] for line in runs.stdout.splitlines()] == ["aborted"] * 2
    assert typo.returncode == 1
    assert "--waves: expected" in typo.stderr and "Traceback" not in typo.stderr
