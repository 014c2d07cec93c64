"""Clients that people already have, against a real engine: `tritonclient[http]`."""

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from tests.agent.engine.harness import Client, Listeners, one_hot
from tests.agent.engine.models import GOOD

NAMES = itertools.count()


@pytest.fixture
def client(shared: Listeners) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{shared.port}", concurrency=4) as opened:
        yield opened


class Memory:
    """A segment of shared memory, made by the client's own library."""

    def __init__(self, byte_size: int) -> None:
        self.name = f"farflung-test-{os.getpid()}-{next(NAMES)}"
        self.byte_size = byte_size
        self.handle = shm.create_shared_memory_region(self.name, f"/{self.name}", byte_size)

    def close(self) -> None:
        shm.destroy_shared_memory_region(self.handle)


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(1024)
    yield made
    made.close()


def image(rows: Any, *, binary: bool = True) -> triton.InferInput:
    array = np.array(rows, np.float32)
    given = triton.InferInput("image", list(array.shape), "FP32")
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def scores(rows: Any) -> list[list[float]]:
    expected: list[list[float]] = (np.array(rows, np.float32) @ GOOD).tolist()
    return expected


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "7")
    assert not client.is_model_ready("digits", "8")
    assert client.get_server_metadata()["name"] == "farflung"
    assert client.get_model_metadata("digits")["inputs"][0]["name"] == "image"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer_with_json_and_bytes_plain_and_compressed(
    client: triton.InferenceServerClient, binary: bool, compression: str | None
) -> None:
    rows = one_hot(*(place % 3 for place in range(200)))

    answer = client.infer(
        "digits",
        [image(rows, binary=binary)],
        outputs=[triton.InferRequestedOutput("scores", binary_data=binary)],
        request_id="r-1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    unnamed = client.infer("digits", [image(rows)], model_version="7")

    assert answer.as_numpy("scores").tolist() == scores(rows)
    assert unnamed.as_numpy("scores").tolist() == scores(rows)
    assert answer.get_response()["id"] == "r-1"


def test_async_infer_answers_each_request_with_its_own(
    client: triton.InferenceServerClient,
) -> None:
    asked = [client.async_infer("digits", [image(one_hot(n % 3))]) for n in range(24)]

    answers = [request.get_result().as_numpy("scores").argmax() for request in asked]

    assert answers == [n % 3 for n in range(24)]


def test_the_aio_client(shared: Listeners) -> None:
    async def ask() -> list[int]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{shared.port}") as client:
            assert await client.is_model_ready("digits")
            answers = await asyncio.gather(
                *(client.infer("digits", [image(one_hot(n % 3))]) for n in range(12))
            )
            index = await client.get_model_repository_index()
            assert index[0]["name"] == "digits"
            return [int(answer.as_numpy("scores").argmax()) for answer in answers]

    assert asyncio.run(ask()) == [n % 3 for n in range(12)]


def test_classification_names_the_highest_with_their_labels(
    client: triton.InferenceServerClient,
) -> None:
    rows = [[0.5, 2.0, 1.0, 0.0], [2.0, 0.0, 0.0, 0.0]]
    for binary in (True, False):
        wanted = triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)

        answer = client.infer("digits", [image(rows)], outputs=[wanted])

        texts = [[str(text, "utf-8") if binary else text for text in row]
                 for row in answer.as_numpy("scores")]  # fmt: skip
        assert texts == [["8.0:1:one", "4.0:2:two"], ["8.0:0:zero", "0.0:1:one"]]
        assert answer.get_output("scores")["datatype"] == "BYTES"


def test_statistics_count_requests_rows_and_time(client: triton.InferenceServerClient) -> None:
    def entry() -> dict[str, Any]:
        everything = client.get_inference_statistics()["model_stats"]
        alone = client.get_inference_statistics("digits", "7")["model_stats"]
        assert [one["name"] for one in everything + alone] == ["digits", "digits"]
        return dict(alone[0])

    before = entry()

    for count in (1, 1, 5):
        client.infer("digits", [image(one_hot(*[1] * count))])

    after = entry()
    assert after["inference_count"] - before["inference_count"] == 7
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["last_inference"] >= before["last_inference"]
    spent = {
        name: (stat["count"] - before["inference_stats"][name]["count"],
               stat["ns"] - before["inference_stats"][name]["ns"])
        for name, stat in after["inference_stats"].items()
    }  # fmt: skip
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(spent[name][0] == 3 for name in ("success", *parts))
    assert spent["fail"] == (0, 0)
    assert spent["compute_infer"][1] > 0
    assert sum(spent[name][1] for name in parts) == pytest.approx(spent["success"][1], abs=10)
    by_size = {batch["batch_size"]: batch["compute_infer"] for batch in after["batch_stats"]}
    assert by_size[5]["count"] >= 1 and by_size[5]["ns"] > 0


def test_the_repository_index_names_what_serves(client: triton.InferenceServerClient) -> None:
    assert client.get_model_repository_index() == [
        {"name": "digits", "version": "7", "state": "READY", "reason": ""}
    ]
    with pytest.raises(InferenceServerException, match="the fleet decides") as refused:
        client.load_model("digits")
    assert refused.value.status() == "501"


def test_tensors_in_shared_memory_both_ways(
    client: triton.InferenceServerClient, memory: Memory
) -> None:
    rows = np.array(one_hot(2, 0), np.float32)
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    shm.set_shared_memory_region(memory.handle, [rows], offset=64)
    client.register_system_shared_memory(memory.name, f"/{memory.name}", memory.byte_size)
    given = triton.InferInput("image", [2, 4], "FP32")
    given.set_shared_memory(memory.name, rows.nbytes, offset=64)
    wanted = triton.InferRequestedOutput("scores")
    wanted.set_shared_memory(memory.name, 24, offset=512)

    answer = client.infer("digits", [given], outputs=[wanted])

    assert "data" not in answer.get_output("scores")
    assert answer.get_output("scores")["parameters"]["shared_memory_byte_size"] == 24
    found = shm.get_contents_as_numpy(memory.handle, np.float32, [2, 3], offset=512)
    assert found.tolist() == scores(rows)
    assert client.get_system_shared_memory_status() == [
        {"name": memory.name, "key": f"/{memory.name}", "offset": 0, "byte_size": 1024}
    ]
    client.unregister_system_shared_memory(memory.name)
    assert client.get_system_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match="is not registered"):
        client.infer("digits", [given])


def test_a_region_may_be_a_part_of_its_object(
    client: triton.InferenceServerClient, memory: Memory
) -> None:
    shm.set_shared_memory_region(memory.handle, [np.array(one_hot(1), np.float32)], offset=256)
    client.register_system_shared_memory("part", f"/{memory.name}", 16, offset=256)
    given = triton.InferInput("image", [1, 4], "FP32")
    given.set_shared_memory("part", 16)

    answer = client.infer("digits", [given])

    assert answer.as_numpy("scores").argmax() == 1
    given.set_shared_memory("part", 16, offset=1)
    with pytest.raises(InferenceServerException, match="expected at most"):
        client.infer("digits", [given])
    client.unregister_system_shared_memory("part")


def test_memory_that_is_unlinked_is_still_read_and_memory_that_shrinks_is_refused(
    client: triton.InferenceServerClient, asker: Client, memory: Memory
) -> None:
    rows = np.array(one_hot(1), np.float32)
    shm.set_shared_memory_region(memory.handle, [rows])
    path = Path("/dev/shm", memory.name)
    aside = path.with_suffix(".aside")
    client.register_system_shared_memory("shrinks", f"/{memory.name}", 1024)
    given = triton.InferInput("image", [1, 4], "FP32")
    given.set_shared_memory("shrinks", 16)
    wanted = triton.InferRequestedOutput("scores")
    wanted.set_shared_memory("shrinks", 12, offset=128)
    kept = os.open(path, os.O_RDWR)
    aside.hardlink_to(path)
    path.unlink()

    unlinked = client.infer("digits", [given])
    os.truncate(kept, 64)
    with pytest.raises(InferenceServerException, match=r"output scores: .* has been shrunk"):
        client.infer("digits", [given], outputs=[wanted])
    os.truncate(kept, 8)
    with pytest.raises(InferenceServerException, match=r"input image: .* has been shrunk"):
        client.infer("digits", [given])
    size = os.fstat(kept).st_size
    os.truncate(kept, 1024)
    aside.rename(path)
    os.close(kept)

    assert unlinked.as_numpy("scores").argmax() == 1
    assert size == 8, "the engine made its app's memory larger"
    assert asker.ask("GET", "/v2/health/ready").status == 200
    client.unregister_system_shared_memory("shrinks")


@pytest.mark.parametrize(
    ("key", "size", "says"),
    [
        ("/no-such-object", 16, "No such file"),
        ("/../etc/passwd", 16, "without further slashes"),
        ("..", 16, "without further slashes"),
        ("", 16, "without further slashes"),
        ("{}", 4096, "expected 4096 bytes"),
        ("{}", 0, "byte_size from 1"),
    ],
)
def test_what_is_no_region_is_not_registered(
    client: triton.InferenceServerClient, memory: Memory, key: str, size: int, says: str
) -> None:
    with pytest.raises(InferenceServerException, match=says):
        client.register_system_shared_memory("odd", key.format(memory.name), size)

    assert client.get_system_shared_memory_status() == []


def test_a_link_in_place_of_memory_is_not_followed(
    client: triton.InferenceServerClient, memory: Memory
) -> None:
    link = Path("/dev/shm", f"{memory.name}-link")
    link.symlink_to("/etc/passwd")
    try:
        with pytest.raises(InferenceServerException, match="may read and write"):
            client.register_system_shared_memory("link", link.name, 16)
    finally:
        link.unlink()


def test_the_number_of_regions_is_bounded(
    client: triton.InferenceServerClient, memory: Memory
) -> None:
    for place in range(64):
        client.register_system_shared_memory(f"n{place}", f"/{memory.name}", 16)

    with pytest.raises(InferenceServerException, match="64 regions") as refused:
        client.register_system_shared_memory("one more", f"/{memory.name}", 16)
    with pytest.raises(InferenceServerException, match="registered already"):
        client.register_system_shared_memory("n1", f"/{memory.name}", 16)
    client.unregister_system_shared_memory()

    assert refused.value.status() == "503"
    assert client.get_system_shared_memory_status() == []


def test_cuda_memory_is_refused_and_nothing_of_it_is_there(
    client: triton.InferenceServerClient,
) -> None:
    assert client.get_cuda_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match="CUDA") as refused:
        client.register_cuda_shared_memory("gpu", b"handle", 0, 64)
    assert refused.value.status() == "501"


def test_an_error_says_what_was_expected(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"expected \[-1, 4\]"):
        client.infer("digits", [image([[1.0, 2.0]])])
    with pytest.raises(InferenceServerException, match=r"expected one of \['digits'\]") as lost:
        client.infer("letters", [image(one_hot(1))])
    assert lost.value.status() == "404"
