import array
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.client import ApiError, Client
from tests.agent.engine.harness import Listeners, Release, engine, one_hot
from tests.agent.engine.models import onnx_classifier, onnx_text_picker
from tests.agent.engine.speech import spoken, vad
from wire.manifest import Task


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    """Where one engine serves digits, and words that are picked from texts."""
    folder = tmp_path_factory.mktemp("client")
    kept = Listeners(folder)
    words = Release(
        folder / "words", onnx_text_picker(), model="words", datatype="BYTES", task=Task()
    )
    with engine(kept) as started:
        digits = Release(folder / "digits", onnx_classifier(), version=7)
        started.serve(digits, words, vad(folder / "vad"))
        yield kept
    kept.close()


@pytest.fixture(params=["tcp", "unix"])
def api(serving: Listeners, request: pytest.FixtureRequest) -> Iterator[Client]:
    tcp = request.param == "tcp"
    with Client(f"http://127.0.0.1:{serving.port}" if tcp else f"unix:{serving.path}") as opened:
        yield opened


def test_whatever_holds_numbers_is_an_input(api: Client) -> None:
    rows = one_hot(2)
    given = [
        rows,
        rows[0],
        {"image": rows},
        tuple(map(tuple, rows)),
        np.array(rows, np.float32),
        np.array(rows, np.float32)[0],
        np.asfortranarray(np.array(rows * 2, np.float32))[:1],
        array.array("f", rows[0]),
    ]

    answers = [api.infer("digits", value) for value in given]

    assert [answer["scores"].tolist() for answer in answers] == [[[0.0, 0.0, 8.0]]] * len(given)
    assert answers[0]["scores"].numpy().dtype == np.float32
    assert (answers[0].model, answers[0].version) == ("digits", "7")
    assert len({answer.id for answer in answers}) == len(given)


def test_texts_go_in_and_out(api: Client) -> None:
    texts = ["a", "ü", "", "d"]

    answer = api.infer("words", [texts, texts])

    assert answer["scores"].tolist() == [["a", "ü", ""]] * 2
    assert answer["scores"].numpy().shape == (2, 3)


def test_guesses_come_with_labels_and_take_feedback(api: Client) -> None:
    guesses = api.classify("digits", one_hot(1, 2), top=2)

    assert [[guess.label for guess in row] for row in guesses.rows] == [
        ["one", "zero"],
        ["two", "zero"],
    ]
    assert (guesses.best.index, guesses.best.value) == (1, 8.0)
    api.feedback(guesses.id, ["one", 0], model="digits")
    with pytest.raises(ApiError, match="another after the first"):
        api.feedback(guesses.id, [1, 0], model="digits")


def test_a_stream_is_heard_in_pieces(api: Client) -> None:
    sound = spoken("Front_Center")[:8192]
    stream = {"sequence_id": api.address}

    scores = [
        score
        for place in range(0, len(sound), 2048)
        for score in api.infer(
            "vad", sound[place : place + 2048], parameters={**stream, "sequence_start": not place}
        )["output"].tolist()
    ]
    last = api.infer("vad", sound[:512], parameters={**stream, "sequence_end": True})

    assert len(scores) == len(sound) // 512
    assert max(scores)[0] > 0.9
    assert "stream_restarted" not in last.parameters


def test_a_stream_is_begun_continued_and_ended_by_itself(api: Client) -> None:
    sound = spoken("Front_Center")
    pieces = [sound[at : at + 2048] for at in range(0, len(sound), 2048)]

    with api.stream("vad") as stream, api.stream("vad") as beside:
        answers = [stream.send(piece) for piece in pieces]
        beside.send(np.zeros(2048, np.int16).tobytes())
    with pytest.raises(ApiError, match="it has ended") as over:
        api.infer("vad", sound, parameters={"sequence_id": stream.id})
    again = stream.send(pieces[0])
    last = stream.send(pieces[1], end=True)

    scores = [score for answer in answers for [score] in answer["output"].tolist()]
    assert len(scores) == len(sound) // 512
    assert max(scores) > 0.9
    assert over.value.status == 410
    assert again["output"].tolist() == answers[0]["output"].tolist()
    assert last["output"].tolist() == answers[1]["output"].tolist()
    assert not any(answer.restarted for answer in [*answers, again, last])
    stream.end()


def test_a_stream_that_is_over_is_told_and_begins_anew(api: Client) -> None:
    sound = spoken("Front_Center")[:2048]

    with pytest.raises(ZeroDivisionError), api.stream("vad", "mine") as stream:
        first = stream.send(sound)
        api.infer("vad", {}, parameters={"sequence_id": "mine", "sequence_end": True})
        with pytest.raises(ApiError) as over:
            stream.send(sound)
        second = stream.send(sound)
        api.infer("vad", {}, parameters={"sequence_id": "mine", "sequence_end": True})
        raise ZeroDivisionError

    assert over.value.status == 410
    assert second["output"].tolist() == first["output"].tolist()


def test_a_stream_says_that_a_crash_made_it_forget(tmp_path: Path) -> None:
    sound = spoken("Front_Center")[:2048]
    kept = Listeners(tmp_path)

    with Client(f"http://127.0.0.1:{kept.port}") as api, api.stream("vad") as stream:
        with engine(kept) as first:
            first.serve(vad(tmp_path / "1"))
            before = stream.send(sound)
            first.process.kill()
        with engine(kept) as second:
            second.serve(vad(tmp_path / "2", version=2))
            after = [stream.send(sound, within_s=5), stream.send(sound, end=True)]
    kept.close()

    assert (before.restarted, before.version) == (False, "1")
    assert [answer.restarted for answer in after] == [True, False]
    assert after[0].version == "2"
    assert after[0]["output"].tolist() == before["output"].tolist()


def test_what_the_device_says_is_the_message_of_the_error(api: Client) -> None:
    for ask, status, says in [
        (lambda: api.infer("letters", [1.0]), 404, "expected one of"),
        (lambda: api.infer("digits", [1.0, 2.0]), 400, r"expected \[-1, 4\]"),
        (lambda: api.infer("digits", np.zeros(4)), 400, "expected FP32, got FP64"),
        (lambda: api.infer("digits", {"pixels": [1.0]}), 400, r"expected \['image'\]"),
        (lambda: api.infer("digits", [[1, 2, 3, 4], [1]]), 400, "expected 8 values"),
        (lambda: api.infer("digits", ["a", "b", "c", "d"]), 400, "expected numbers"),
        (lambda: api.feedback("nobody", 1), 404, "nobody"),
    ]:
        with pytest.raises(ApiError, match=says) as refused:
            ask()
        assert (refused.value.status, refused.value.retry_after_s) == (status, None)


def test_a_time_that_is_up_is_worth_another_try(api: Client) -> None:
    with pytest.raises(ApiError, match="timeout of 1 microseconds") as late:
        api.infer("digits", one_hot(1), within_s=1e-6)

    assert (late.value.status, late.value.retry_after_s) == (503, 1.0)


def test_ready_and_models(api: Client) -> None:
    assert api.ready()
    assert api.models() == ["digits", "words", "vad"]
    assert not Client("unix:/nowhere").ready()
    with pytest.raises(ApiError, match="unix:/nowhere: no answer") as gone:
        Client("unix:/nowhere").models()
    assert gone.value.status == 0
    with pytest.raises(ApiError, match="expected http://HOST:PORT or unix:PATH"):
        Client("tcp://127.0.0.1")


def test_threads_may_share_a_client(api: Client) -> None:
    found: dict[int, int] = {}

    def ask(number: int) -> None:
        for _ in range(20):
            found[number] = api.classify("digits", one_hot(number % 3)).best.index

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {number: number % 3 for number in range(6)}


def test_a_kept_connection_may_end_between_requests_as_at_a_swap(tmp_path: Path) -> None:
    listeners = Listeners(tmp_path)
    first = Release(tmp_path / "first", onnx_classifier(), version=1)
    second = Release(tmp_path / "second", onnx_classifier(), version=2, input="pixels")

    with (
        Client(f"unix:{listeners.path}") as api,
        engine(listeners) as old,
        engine(listeners) as new,
    ):
        old.serve(first)
        before = api.infer("digits", one_hot(1))
        new.serve(second)
        old.drain()
        # The inputs have other names now: the first request finds that out.
        with pytest.raises(ApiError, match="pixels"):
            api.infer("digits", one_hot(1))
        after = api.infer("digits", one_hot(1))
    listeners.close()

    assert (before.version, after.version) == ("1", "2")


def test_an_answer_that_breaks_off_is_an_error_and_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        body = json.dumps({"name": "digits"}).encode()
        said = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + body

        def break_off() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=break_off)
        thread.start()

        with pytest.raises(ApiError, match="no answer"):
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}").metadata("digits")
        thread.join()
