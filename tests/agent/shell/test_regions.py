"""Shared memory that apps registered, over swaps and crashes of real engines."""

import os
import queue
import threading
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import shared_memory as shm

from agent.core.actions import StartEngine
from agent.core.events import EngineExited, EngineReady, Event
from agent.regions import Forget, Keep, Noted, Passage
from agent.shell.engines import Engines
from agent.shell.engines.regions import Regions
from tests.agent.engine.harness import Answer, Client, Release, one_hot
from tests.agent.engine.models import onnx_classifier
from tests.agent.shell.test_engines import configure

ROW_BYTES = 16


class Device:
    """Engines of one device, each with another version of the same model."""

    def __init__(self, tmp_path: Path) -> None:
        self._folder = tmp_path
        self._events: queue.Queue[Event] = queue.Queue()
        self.engines = Engines(configure(tmp_path), tmp_path / "run", self._events.put)
        (address,) = self.engines.addresses()
        self.port = int(address.rpartition(":")[2])

    def serve(self, generation: int) -> None:
        release = Release(self._folder / str(generation), onnx_classifier(), version=generation)
        self.engines.start(StartEngine(generation, (release.spec,), golden=True, background=False))
        self.wait_for(EngineReady, generation)
        self.engines.serve(generation)

    def swap(self, generation: int) -> None:
        """Let it take over from the one before it."""
        self.serve(generation)
        self.engines.drain(generation - 1)
        self.wait_for(EngineExited, generation - 1)

    def wait_for(self, kind: type[EngineReady | EngineExited], generation: int) -> None:
        for _ in range(20):
            event = self._events.get(timeout=30)
            if isinstance(event, kind) and event.generation == generation:
                return
        raise AssertionError(f"no {kind.__name__} of engine {generation}")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    made = Device(tmp_path)
    yield made
    made.engines.stop_all(5)


@pytest.fixture
def client(device: Device) -> Iterator[Client]:
    opened = Client(device.port)
    yield opened
    opened.close()


class Memory:
    """An object of shared memory with a row of class `one` at its beginning."""

    def __init__(self, one: int) -> None:
        self._memory = shared_memory.SharedMemory(create=True, size=4096)
        self.key = self._memory.name
        self.write(one)

    def write(self, one: int) -> None:
        assert self._memory.buf is not None
        self._memory.buf[:ROW_BYTES] = np.array(one_hot(one), np.float32).tobytes()

    def unlink(self) -> None:
        self._memory.unlink()

    def close(self) -> None:
        self._memory.close()
        if Path("/dev/shm", self.key).exists():
            self._memory.unlink()


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(1)
    yield made
    made.close()


def descriptors() -> int:
    """Return how many are open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def register(client: Client, name: str, key: str) -> Answer:
    fields = {"key": key, "byte_size": 4096}
    return client.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", fields)


def unregister(client: Client, name: str) -> None:
    answer = client.ask("POST", f"/v2/systemsharedmemory/region/{name}/unregister")
    assert answer.status == 200


def infer(client: Client, region: str) -> Answer:
    place = {"shared_memory_region": region, "shared_memory_byte_size": ROW_BYTES}
    given = {"name": "image", "shape": [1, 4], "datatype": "FP32", "parameters": place}
    return client.ask("POST", "/v2/models/digits/infer", {"inputs": [given]})


def best(answer: Answer) -> int:
    assert answer.status == 200, answer.body
    return int(np.argmax(answer.json["outputs"][0]["data"]))


def connect(port: int, version: str) -> Client:
    """Return a client whose connection the engine with this version has accepted."""
    for _ in range(200):
        client = Client(port)
        if client.ask("GET", "/v2/models/digits").json["versions"] == [version]:
            return client
        client.close()
    raise AssertionError(f"no connection of 200 reached version {version}")


class App(threading.Thread):
    """Asks through a region, without a pause, until it is left."""

    def __init__(self, port: int, region: str) -> None:
        super().__init__(daemon=True)
        self._client, self._region = Client(port), region
        self._over = threading.Event()
        self.versions: set[str] = set()
        self.failures: list[Any] = []
        self.start()

    def __enter__(self) -> "App":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(20)
        self._client.close()

    def run(self) -> None:
        while not self._over.wait(0.002):
            try:
                answer = infer(self._client, self._region)
            except OSError as error:
                self.failures.append(error)
                continue
            if answer.status != 200:
                self.failures.append(answer)
                continue
            self.versions.add(answer.json["model_version"])


def test_an_app_goes_on_with_its_region_over_swaps_and_notices_nothing(
    device: Device, client: Client, memory: Memory
) -> None:
    device.serve(1)
    assert register(client, "frames", memory.key).status == 200

    with App(device.port, "frames") as app:
        device.swap(2)
        device.swap(3)
        memory.write(2)
        found = infer(client, "frames")

    assert app.failures == []
    assert {"1", "2", "3"} >= app.versions > {"1"}
    assert best(found) == 2
    status = client.ask("GET", "/v2/systemsharedmemory/status").json
    assert [region["key"] for region in status] == [memory.key]


def test_the_client_that_people_have_registers_once_and_goes_on_after_a_swap(
    device: Device,
) -> None:
    row = np.array(one_hot(2), np.float32)
    name = f"farflung-test-{os.getpid()}"
    handle = shm.create_shared_memory_region(name, f"/{name}", 64)
    shm.set_shared_memory_region(handle, [row])
    given = triton.InferInput("image", [1, 4], "FP32")
    given.set_shared_memory(name, row.nbytes)
    wanted = triton.InferRequestedOutput("scores")
    wanted.set_shared_memory(name, 12, offset=32)
    device.serve(1)
    found = []

    with triton.InferenceServerClient(f"127.0.0.1:{device.port}") as client:
        client.register_system_shared_memory(name, f"/{name}", 64)
    for generation in (2, 3):
        device.swap(generation)
        with triton.InferenceServerClient(f"127.0.0.1:{device.port}") as client:
            answer = client.infer("digits", [given], outputs=[wanted])
            scores = shm.get_contents_as_numpy(handle, np.float32, [3], offset=32)
            found.append((answer.get_response()["model_version"], scores.argmax()))
            shm.set_shared_memory_region(handle, [np.zeros(3, np.float32)], offset=32)
    shm.destroy_shared_memory_region(handle)

    assert found == [("2", 2), ("3", 2)]


def test_the_object_stays_the_one_that_was_registered_although_its_name_is_anothers(
    device: Device, client: Client, memory: Memory
) -> None:
    device.serve(1)
    assert register(client, "frames", memory.key).status == 200
    memory.unlink()
    other = shared_memory.SharedMemory(memory.key, create=True, size=4096)

    device.swap(2)
    after_swap = infer(client, "frames")
    os.kill(device.engines.pids()[2], 9)
    device.wait_for(EngineExited, 2)
    device.serve(3)
    after_crash = infer(client, "frames")

    other.close()
    other.unlink()
    assert [best(after_swap), best(after_crash)] == [1, 1]
    assert after_crash.json["model_version"] == "3"


def test_what_one_engine_registers_another_one_knows_before_the_app_is_answered(
    device: Device, memory: Memory
) -> None:
    device.serve(1)
    old = Client(device.port)
    assert infer(old, "frames").status == 400
    device.serve(2)
    new = connect(device.port, "2")
    other = Memory(2)

    found = []
    for key in (memory.key, other.key) * 10:
        assert register(old, "frames", key).status == 200
        found.append(best(infer(new, "frames")))
        unregister(old, "frames")
        assert infer(new, "frames").status == 400

    assert found == [1, 2] * 10
    for one in (old, new, other):
        one.close()


def test_when_there_are_too_many_the_oldest_that_is_unlinked_makes_room(
    device: Device, client: Client, memory: Memory
) -> None:
    device.serve(1)
    left = Memory(2)
    for number in range(63):
        assert register(client, f"frames-{number}", memory.key).status == 200
    assert register(client, "left", left.key).status == 200

    refused = register(client, "more", memory.key)
    left.unlink()
    taken = register(client, "more", memory.key)
    device.swap(2)

    left.close()
    assert (refused.status, taken.status) == (503, 200)
    assert best(infer(client, "frames-62")) == 1
    assert best(infer(client, "more")) == 1
    assert infer(client, "left").status == 400
    assert register(client, "again", memory.key).status == 503


def test_what_is_held_waits_for_a_new_engine_with_its_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "object"
    file.write_bytes(b"content")
    kept = Regions()
    first, theirs = kept.join()
    engine = Passage(theirs)

    with file.open("rb") as opened:
        engine.send(Keep("frames", "/object", 0, 7), opened.fileno())
        engine.send(Keep("more", "/object", 2, 5), opened.fileno())
        engine.send(Forget("frames"))
    assert kept.hear(first)
    engine.close()
    file.unlink()
    kept.leave(first)
    second, theirs = kept.join()
    successor = Passage(theirs)
    [(word, fd)] = list(successor.receive())

    assert word == Keep("more", "/object", 2, 5)
    assert fd is not None
    assert os.pread(fd, 7, 0) == b"content"
    os.close(fd)
    successor.close()
    kept.leave(second)
    kept.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"kind":"keep","name":"frames","key":"/x","offset":0,"byte_size":1}\n',
        b'{"kind":"keep","name":"frames","key":"/x","offset":-1,"byte_size":true}\n',
        b'{"kind":"forget","name":7}\n',
        b"x" * 10_000,
    ],
)
def test_an_engine_that_does_not_keep_to_the_words_is_not_listened_to(line: bytes) -> None:
    kept = Regions()
    passage, theirs = kept.join()
    before = descriptors()

    with theirs:
        theirs.settimeout(5)
        sender = threading.Thread(target=theirs.sendall, args=(line,))
        sender.start()
        sender.join(5)
        heard = [kept.hear(passage) for _ in range(2)]

    assert not all(heard)
    assert descriptors() == before - 1
    kept.leave(passage)
    kept.close()


def test_no_more_than_64_descriptors_are_held(tmp_path: Path) -> None:
    kept = Regions()
    passage, theirs = kept.join()
    engine = Passage(theirs)
    before = descriptors()

    with Path(os.devnull).open("rb") as opened:
        for number in range(100):
            engine.send(Keep(f"frames-{number}", "/x", 0, 1), opened.fileno())
            assert kept.hear(passage)
    held = descriptors() - before

    assert held == 64
    assert {type(word) for word, _ in engine.receive()} == {Noted}
    engine.close()
    kept.leave(passage)
    kept.close()
    assert descriptors() == before - 2
