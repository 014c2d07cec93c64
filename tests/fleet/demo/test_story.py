"""A step that does not end as it should ends the demo, in one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.cli.session import Session
from fleet.core.errors import FleetError
from fleet.core.views import DeviceView, RolloutDeviceView
from fleet.demo import story as story_module
from fleet.demo import world as world_module
from fleet.demo.misread import latest_loss
from fleet.demo.screen import Screen
from fleet.demo.story import Story
from fleet.demo.world import Plan, World, find_samples
from fleet.shell.api import build_app, serve
from fleet.shell.client import ControllerClient
from tests.fleet.memory import MemoryController
from tests.fleet.samples import sample_device
from wire.twin import Capabilities, Phase

IDS = ("cam-1", "cam-2", "cam-3")


@pytest.fixture
def controller() -> MemoryController:
    """A controller in memory whose devices commit whatever they are told to take."""
    return MemoryController(known_devices={id: sample_device(id) for id in IDS})


@pytest.fixture
def world(controller: MemoryController, tmp_path: Path) -> Iterator[World]:
    running = serve(build_app(controller), "127.0.0.1", 0)
    world = World(Plan(devices=3), tmp_path)
    world.client = ControllerClient(running.url)
    yield world
    running.stop()


@pytest.fixture
def story(world: World) -> Story:
    return Story(Screen(Session()), world)


def test_a_bad_release_that_is_not_refused_ends_the_demo(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FleetError) as caught:
        story.refuse(3)

    assert caught.value.error == (
        "digits@3: expected the rollout to be aborted, it was completed: every device committed"
    )
    assert caught.value.exit_code == 1
    assert "digits@3 pushed: onnx-int8, tflite-int8" in capsys.readouterr().out


def test_a_good_release_that_is_refused_ends_the_demo(
    story: Story, controller: MemoryController
) -> None:
    controller.bad_devices = frozenset({"cam-2"})
    story.push(2)

    with pytest.raises(FleetError, match="digits@2: expected the rollout to be completed, it was"):
        story.roll_out(2)


def test_a_release_that_nobody_serves_ends_the_demo_at_its_deadline(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story_module, "SETTLE_S", 1.0)
    story.push(2)

    # In memory the rollout completes, and the devices go on serving digits@1.
    with pytest.raises(FleetError, match="expected within 1 s: every device answers with digits@2"):
        story.roll_out(2)


def test_a_download_that_is_over_cannot_be_killed_and_says_so(
    story: Story, world: World, controller: MemoryController
) -> None:
    through = RolloutDeviceView(id="cam-1", wave=1, online=True, phase=Phase.COMMITTED)
    story.push(1)
    rollout = world.start_rollout("digits@1", "device=cam-1")
    view = controller.runs[rollout.id].model_copy(update={"devices": (through,)})

    with pytest.raises(FleetError, match="cam-1: expected to kill it while it fetched"):
        story._halfway(view)


def test_a_device_on_which_nothing_runs_ends_the_demo_and_one_that_has_not_reported_does_not(
    story: Story, controller: MemoryController
) -> None:
    silent = DeviceView(id="cam-2", online=True, last_seen=0.0)
    barren = controller.known_devices["cam-3"].model_copy(
        update={"capabilities": Capabilities(unusable={"onnxruntime": "killed by SIGILL"})}
    )

    controller.known_devices["cam-2"] = silent
    assert not story.all_online()
    controller.known_devices["cam-3"] = barren
    with pytest.raises(FleetError, match=r"cam-3: expected a runtime .* \(onnxruntime: killed by"):
        story.all_online()


def test_a_device_without_an_account_is_named() -> None:
    with pytest.raises(FleetError, match=r"cam-1: expected its account at http://127.0.0.1:9/"):
        latest_loss("cam-1", "http://127.0.0.1:9", "sha256:" + "11" * 32)


def test_a_command_that_fails_is_told_in_its_own_words(world: World) -> None:
    with pytest.raises(FleetError, match=r"fleet rollout start digits@7 --to all: digits@7: no"):
        world.fleet("rollout", "start", "digits@7", "--to", "all")


def test_three_of_five_devices_run_onnx_and_one_is_on_a_slow_line(tmp_path: Path) -> None:
    world = World(Plan(devices=5), tmp_path)

    runtimes = [device.runtimes[0] for device in world.devices]
    lines = [device.bytes_per_s for device in world.devices]

    assert sorted(runtimes) == ["ai-edge-litert"] * 2 + ["onnxruntime"] * 3
    assert [bool(line) for line in lines] == [True, False, False, False, False]
    assert world.slow.runtimes == ("onnxruntime",)


def test_on_a_broker_of_others_the_names_are_nobody_else_s(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    one, two = (World(Plan(broker="mqtt://h:1"), tmp_path / place) for place in ("one", "two"))

    assert one.site != two.site
    assert not {device.id for device in one.devices} & {device.id for device in two.devices}


def test_a_configuration_is_the_controller_s_with_what_is_the_device_s_own(
    tmp_path: Path,
) -> None:
    import tomllib

    device = World(Plan(devices=2), tmp_path).devices[1]
    enrolled = 'device = "cam-2"\n[api]\ntcp = "127.0.0.1:8731"\n'

    config = tomllib.loads(device.config(enrolled, "demo"))

    assert config == {
        "device": "cam-2",
        "api": {"tcp": f"127.0.0.1:{device.port}"},
        "labels": {"site": "demo"},
        "engine": {"runtimes": ["ai-edge-litert", "tflite-runtime"]},
        "telemetry": {"window_s": 1, "health_s": 2},
        "transfer": {"bytes_per_s": 0},
    }


def test_a_configuration_of_another_form_is_not_guessed_at(tmp_path: Path) -> None:
    device = World(Plan(devices=1), tmp_path).devices[0]

    with pytest.raises(FleetError, match=r"cam-1: expected 127.0.0.1:8731 in the configuration"):
        device.config('device = "cam-1"\n', "demo")


def test_samples_are_found_beside_the_package_or_here_or_else_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = find_samples()
    monkeypatch.setattr(world_module.fleet, "__file__", str(tmp_path / "site/fleet/__init__.py"))

    monkeypatch.chdir(there.parent)
    assert find_samples() == there
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FleetError, match=r"samples: expected heldout\.csv\.gz"):
        find_samples()
