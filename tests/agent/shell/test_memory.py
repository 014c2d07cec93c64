import os
from pathlib import Path

import psutil

from agent.shell.engines.cgroup import open_cgroups
from agent.shell.memory import available, measure

MEBIBYTE = 1024 * 1024


def test_a_measurement_tells_what_is_left_and_what_each_process_takes() -> None:
    left, taken = measure({1: os.getpid(), 2: 2**22 - 1})

    assert 0 < left <= psutil.virtual_memory().total
    assert list(taken) == [1]
    assert 10 * MEBIBYTE < taken[1] <= psutil.Process().memory_info().rss


def group(folder: Path, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nslab 3\n")


def test_a_control_group_around_the_agent_leaves_less_than_the_machine(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("1:name=systemd:/x\n0::/system.slice/farflung-agent.service\n")
    group(tmp_path / "system.slice", str(90 * MEBIBYTE), 80 * MEBIBYTE, 20 * MEBIBYTE)
    group(tmp_path / "system.slice/farflung-agent.service", "max", 80 * MEBIBYTE, 0)

    assert available(own, tmp_path) == 30 * MEBIBYTE
    group(tmp_path / "system.slice/farflung-agent.service", str(5 * MEBIBYTE), 6 * MEBIBYTE, 0)
    assert available(own, tmp_path) == 0


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert available(tmp_path / "nothing", tmp_path) > 0


# ---- the engines' own groups, on a directory that looks like a delegated one


def delegated(tmp_path: Path, controllers: str = "cpu memory pids", below: str = "") -> Path:
    base = tmp_path / "system.slice/farflung-agent.service"
    base.mkdir(parents=True)
    (base / "cgroup.controllers").write_text(controllers)
    (tmp_path / "self").write_text(f"0::/system.slice/farflung-agent.service{below}\n")
    return base


def test_an_engine_is_put_into_a_group_with_its_limit(tmp_path: Path) -> None:
    base = delegated(tmp_path)

    groups = open_cgroups(tmp_path / "self", tmp_path)
    assert groups is not None
    assert groups.limit(7, 4711, 5 * MEBIBYTE)

    assert (base / "agent/cgroup.procs").read_text() == str(os.getpid())
    assert (base / "cgroup.subtree_control").read_text() == "+memory"
    assert (base / "engine-7/memory.max").read_text() == str(5 * MEBIBYTE)
    assert (base / "engine-7/cgroup.procs").read_text() == "4711"


def test_a_restarted_agent_finds_its_groups_from_below(tmp_path: Path) -> None:
    base = delegated(tmp_path, below="/agent")
    (base / "engine-3").mkdir()

    assert open_cgroups(tmp_path / "self", tmp_path) is not None

    assert not (base / "engine-3").exists()
    assert not (base / "agent/agent").exists()


def test_there_are_no_groups_where_they_are_not_ours_to_make(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    root = tmp_path / "root"
    root.write_text("0::/\n")
    unable = delegated(tmp_path, controllers="cpu pids")

    assert open_cgroups(nothing, tmp_path) is None
    assert open_cgroups(root, tmp_path) is None
    assert open_cgroups(tmp_path / "self", tmp_path) is None
    assert not (unable / "agent").exists()
