"""The command line over a real API, before a controller that lives in memory."""

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from fleet.__main__ import fleet
from fleet.shell.api import RunningApi, build_app, serve
from tests.fleet.memory import NOW, MemoryController
from tests.fleet.samples import ARTIFACT, sample_device, sample_manifest
from wire.ids import digest_of

Fleet = Callable[..., Result]


@pytest.fixture
def controller() -> MemoryController:
    """A controller that keeps digits@1 and digits@2 and knows three devices, one of them away."""
    ids = ("cam-1", "cam-2", "cam-3")
    controller = MemoryController(
        known_devices={id: sample_device(id, online=id != "cam-2") for id in ids}
    )
    controller.blobs[digest_of(ARTIFACT)] = ARTIFACT
    controller.add_release(sample_manifest(1))
    controller.add_release(sample_manifest(2))
    return controller


@pytest.fixture
def api(controller: MemoryController) -> Iterator[RunningApi]:
    running = serve(build_app(controller), "127.0.0.1", 0)
    yield running
    running.stop()


@pytest.fixture
def run(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Call `fleet` with arguments, five seconds after everything happened."""
    monkeypatch.setattr("time.time", lambda: NOW + 5)
    monkeypatch.setattr("fleet.cli.rollout._POLL_S", 0.01)
    monkeypatch.setattr("fleet.cli.device._POLL_S", 0.01)

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(fleet, arguments, env={"FARFLUNG_CONTROLLER": api.url})
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call
