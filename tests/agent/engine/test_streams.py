"""Models that listen, through the HTTP API of a real engine."""

import base64
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.control import Drain, Serve
from tests.agent.engine.harness import Client, Listeners, engine
from tests.agent.engine.speech import (
    hear,
    restarted,
    said,
    scores_of,
    silence,
    spoken,
    told,
    vad,
    wake_word,
    wav,
)

WAKE_WORD_SCORE = "StatefulPartitionedCall:0"
NAMES = ("Front_Center", "Front_Left", "Rear_Right", "Side_Left")


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine that serves both models to all tests that only ask; a client's port."""
    folder = tmp_path_factory.mktemp("listening")
    listeners = Listeners(folder)
    with engine(listeners) as started:
        started.serve(vad(folder / "vad"), wake_word(folder / "nabu"))
        yield listeners.port
    listeners.close()


@pytest.fixture
def client(listening: int) -> Any:
    opened = Client(listening)
    yield opened
    opened.close()


def test_speech_scores_high_and_noise_and_silence_low(client: Client) -> None:
    speech = {name: scores_of(client, spoken(name), name) for name in NAMES}
    noise = scores_of(client, spoken("Noise"), "noise")
    nothing = scores_of(client, silence(2), "silence")

    for name, scores in speech.items():
        assert len(scores) == len(spoken(name)) // 512
        assert np.median(scores) > 0.9, name
    assert max(noise) < 0.1
    assert max(nothing) < 0.1


def test_every_frame_has_its_label_class_and_score(client: Client) -> None:
    sound = np.concatenate([silence(0.5), spoken("Front_Center")])

    answer = told(hear(client, sound, "labels", start=True, end=True))

    assert set(answer) == {"output", "label", "class", "score"}
    yes = [score >= 0.5 for score in answer["output"]]
    assert answer["class"] == [int(one) for one in yes]
    assert answer["label"] == ["speech" if one else "quiet" for one in yes]
    assert answer["score"] == pytest.approx(
        [p if one else 1 - p for p, one in zip(answer["output"], yes, strict=True)], abs=1e-6
    )
    assert True in yes and False in yes


def test_how_a_sound_is_cut_into_requests_changes_nothing(client: Client) -> None:
    sound = spoken("Front_Left")

    whole = scores_of(client, sound, "whole", piece=len(sound))
    pieces = {piece: scores_of(client, sound, "pieces", piece=piece) for piece in (33, 512, 5000)}

    assert set(map(tuple, pieces.values())) == {tuple(whole)}


def test_interleaved_streams_are_what_each_is_alone(client: Client) -> None:
    sounds = {name: spoken(name)[:20000] for name in (*NAMES, "Noise")}
    alone = {name: scores_of(client, sound, "alone") for name, sound in sounds.items()}

    together: dict[str, list[float]] = {name: [] for name in sounds}
    for at in range(0, 20000, 700):
        for name, sound in sounds.items():
            answer = hear(client, sound[at : at + 700], name, start=at == 0, end=at + 700 >= 20000)
            together[name] += told(answer)["output"]

    assert together == alone


def test_the_wake_word_is_heard_and_other_words_are_not(client: Client) -> None:
    call = np.concatenate([silence(0.5), said("okay nabu"), silence(0.5)])
    other = np.concatenate([silence(0.5), spoken("Front_Center"), silence(0.5)])

    heard = told(hear(client, call, "call", model="nabu", start=True, end=True))
    ignored = told(hear(client, other, "other", model="nabu", start=True, end=True))

    assert max(heard[WAKE_WORD_SCORE]) > 0.9
    assert "okay nabu" in heard["label"]
    assert set(ignored["label"]) == {"nothing"}


def test_hidden_state_stays_in_its_stream(client: Client) -> None:
    call = np.concatenate([silence(0.5), said("okay nabu"), silence(0.5)])
    half = len(call) // 2
    alone = scores_of(client, call, "alone", model="nabu")

    # A call of which each stream hears one half is heard by neither; and a third one, that begins
    # when the others have heard what they have, hears it as the first did.
    first = scores_of(client, call[:half], "first", model="nabu")
    second = scores_of(client, call[half:], "second", model="nabu")
    third = scores_of(client, call, "third", model="nabu")

    assert third == alone and max(alone) > 0.9
    assert max(first + second) < 0.5
    # The same two halves in one stream are the whole.
    both = told(hear(client, call[:half], "both", model="nabu", start=True))[WAKE_WORD_SCORE]
    both += told(hear(client, call[half:], "both", model="nabu", end=True))[WAKE_WORD_SCORE]
    assert both == alone


def test_a_stream_that_ended_begins_anew_or_not_at_all(client: Client) -> None:
    sound = spoken("Front_Center")
    first = scores_of(client, sound, 7)

    late = hear(client, sound[:512], 7)
    again = scores_of(client, sound, 7)
    hear(client, sound[:3000], 7, start=True)
    begun_again = scores_of(client, sound, 7)

    assert late.status == 410
    assert (
        "sequence '7' is over: it has ended; begin again with sequence_start" in late.body.decode()
    )
    assert again == begun_again == first


@pytest.mark.parametrize("form", ["pcm", "odd pcm", "wav", "fp32", "int16 row", "base64"])
def test_sound_may_come_in_many_forms(client: Client, form: str) -> None:
    sound = spoken("Rear_Center")[:16000]
    expected = scores_of(client, sound, "expected")
    raw = sound.tobytes()
    pieces = [raw[:9001], raw[9001:9002], raw[9002:]] if form == "odd pcm" else [raw]
    if form == "wav":
        pieces = [wav(sound)[:5000], wav(sound)[5000:]]

    scores: list[float] = []
    for place, piece in enumerate(pieces):
        scores += told(
            client.ask("POST", "/v2/models/vad/infer", *_request(form, piece, sound, place == 0))
        )["output"]

    assert scores == expected


def _request(form: str, piece: bytes, sound: Any, start: bool) -> tuple[Any, dict[str, str]]:
    item: dict[str, Any] = {"name": "audio", "datatype": "BYTES", "shape": [1]}
    data = struct.pack("<I", len(piece)) + piece
    if form == "fp32":
        data = (sound / 32768).astype("<f4").tobytes()
        item |= {"datatype": "FP32", "shape": [len(sound)]}
    elif form == "int16 row":
        data = piece
        item |= {"datatype": "INT16", "shape": [1, len(sound)]}
    body = {"parameters": {"sequence_id": form, "sequence_start": start}, "inputs": [item]}
    if form == "base64":
        item["data"] = [base64.b64encode(piece).decode()]
        return body, {}
    item["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(body).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def test_outputs_come_as_bytes_too(client: Client) -> None:
    sound = spoken("Front_Center")
    expected = scores_of(client, sound, "as json")

    answer = client.ask(
        "POST",
        "/v2/models/vad/infer",
        {
            "parameters": {"sequence_id": "as bytes", "sequence_start": True},
            "inputs": [
                {
                    "name": "audio", "datatype": "INT16", "shape": [len(sound)],
                    "data": sound.tolist(),
                }
            ],
            "outputs": [{"name": "output", "parameters": {"binary_data": True}}],
        },
    )  # fmt: skip

    length = int(answer.headers["Inference-Header-Content-Length"])
    assert np.frombuffer(answer.body[length:], "<f4").tolist() == pytest.approx(expected, abs=1e-7)


def test_a_model_that_listens_says_what_it_takes_and_tells(client: Client) -> None:
    vad_says = client.ask("GET", "/v2/models/vad").json
    nabu_says = client.ask("GET", "/v2/models/nabu").json

    assert vad_says["inputs"] == [{"name": "audio", "datatype": "INT16", "shape": [-1]}]
    assert vad_says["outputs"] == [
        {"name": "output", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "class", "datatype": "INT64", "shape": [-1]},
        {"name": "score", "datatype": "FP32", "shape": [-1]},
    ]
    assert nabu_says["outputs"][0]["datatype"] == "FP32"
    assert "sequence" in client.ask("GET", "/v2").json["extensions"]


SOUND = {"name": "audio", "datatype": "INT16", "shape": [2], "data": [1, 2]}
BEGIN = {"sequence_id": 1, "sequence_start": True}


@pytest.mark.parametrize(
    ("parameters", "item", "expected"),
    [
        ({}, SOUND, "expected parameters.sequence_id"),
        ({"sequence_id": 0}, SOUND, "expected parameters.sequence_id"),
        ({"sequence_id": True}, SOUND, "expected parameters.sequence_id"),
        ({"sequence_id": "a" * 200}, SOUND, "expected parameters.sequence_id"),
        ({"sequence_id": 1, "sequence_start": 1}, SOUND, "sequence_start: expected true or f"),
        (BEGIN, {**SOUND, "name": "input"}, "inputs: expected ['audio'], got 'input'"),
        (BEGIN, {**SOUND, "datatype": "INT8"}, "expected INT16, FP32 or BYTES, got 'INT8'"),
        (BEGIN, {**SOUND, "shape": [3]}, "expected 3 values"),
        (BEGIN, {**SOUND, "data": [1, 40000]}, "from -32768 to 32767"),
        (BEGIN, {**SOUND, "datatype": "FP32", "data": [0.5, 12e3]}, "send 16-bit numbers as"),
        (BEGIN, {**SOUND, "datatype": "BYTES", "shape": [1], "data": ["UklGRgAA"]}, "whole head"),
    ],
)
def test_what_is_no_part_of_a_stream_is_refused(
    client: Client, parameters: dict[str, Any], item: dict[str, Any], expected: str
) -> None:
    body = {"parameters": parameters, "inputs": [item]}

    answer = client.ask("POST", "/v2/models/vad/infer", body)

    assert answer.status == 400
    assert expected in answer.json["error"]


def test_a_wav_file_of_another_kind_is_refused_by_name(client: Client) -> None:
    stereo = base64.b64encode(wav(silence(0.1), 48_000, 2)).decode()
    item = {"name": "audio", "datatype": "BYTES", "shape": [1], "data": [stereo]}

    answer = client.ask(
        "POST",
        "/v2/models/vad/infer",
        {"parameters": {"sequence_id": "st", "sequence_start": True}, "inputs": [item]},
    )

    assert answer.status == 400
    assert (
        "expected one channel of 16 bits at 16000 Hz, got 2 of 16 bits at 48000 Hz"
        in (answer.json["error"])
    )


def test_more_sound_than_a_minute_is_for_several_requests(client: Client) -> None:
    answer = hear(client, silence(61), "long", start=True)

    assert answer.status == 400
    assert "up to 60 s at 16000 Hz in one request" in answer.json["error"]


def test_rows_are_not_for_models_that_listen(client: Client) -> None:
    answer = client.ask("POST", "/v1/models/vad:predict", {"instances": [[0.0] * 576]})

    assert answer.status == 501
    assert "the model listens" in answer.json["error"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parameters=st.fixed_dictionaries(
        {},
        optional={
            # Few that are valid: streams are few.
            "sequence_id": st.sampled_from(
                [1, "a", -5, 2**70, "", 0, None, 1.5, [], {}, "b" * 129]
            ),
            "sequence_start": st.just(True) | ANYTHING,
            "sequence_end": st.booleans() | ANYTHING,
            "timeout": st.sampled_from([0, 1, 10**9]) | ANYTHING,
        },
    ),
    item=st.fixed_dictionaries(
        {"name": st.just("audio")},
        optional={
            "datatype": st.sampled_from(["INT16", "FP32", "BYTES"]) | ANYTHING,
            "shape": st.sampled_from([[0], [1], [2], [1, 2], [2, 1]]) | ANYTHING,
            "data": st.sampled_from([[1, 2], [[1, 2]], ["AAAA"], [1e300], []]) | ANYTHING,
            "parameters": ANYTHING,
        },
    ),
    bare=st.booleans(),
)
def test_whatever_is_asked_is_answered_and_costs_no_other_stream(
    client: Client, parameters: dict[str, Any], item: dict[str, Any], bare: bool
) -> None:
    inputs = [] if bare else [item]

    answer = client.ask(
        "POST", "/v2/models/vad/infer", {"parameters": parameters, "inputs": inputs}
    )

    assert answer.status in (200, 400, 404, 410, 503)
    assert answer.status == 200 or answer.json["error"]
    assert answer.status != 503 or "microseconds" in answer.json["error"]


def test_streams_are_few_and_over_when_idle(tmp_path: Path, listeners: Listeners) -> None:
    client = Client(listeners.port)
    sound = spoken("Front_Center")

    with engine(listeners) as started:
        started.serve(vad(tmp_path / "vad", idle_s=1))
        opened = [hear(client, sound[:512], f"s{n}", start=True).status for n in range(32)]
        full = hear(client, sound[:512], "one more", start=True)
        time.sleep(1.1)
        expired = hear(client, sound[512:1024], "s3")
        again = hear(client, sound[:512], "s3", start=True)
        never = hear(client, sound[:512], "nobody")
    client.close()

    assert set(opened) == {200}
    assert full.status == 503
    assert "32 streams are open already" in full.json["error"]
    assert expired.status == 410
    assert expired.json["error"] == (
        "model vad: sequence 's3' is over: it was without a frame for 1 s; "
        "begin again with sequence_start"
    )
    assert again.status == 200 and not restarted(again)
    assert never.status == 404
    assert "expected sequence_start in its first request" in never.json["error"]


def test_a_label_joins_every_frame_of_a_request(tmp_path: Path, listeners: Listeners) -> None:
    client = Client(listeners.port)

    with engine(listeners) as started:
        started.serve(vad(tmp_path / "vad"))
        answer = hear(client, spoken("Front_Center")[:5120], "s", start=True, request="r1")
        frames = len(told(answer)["output"])
        labels = {"request_id": "r1", "label": ["speech"] * frames}
        labelled = client.ask("POST", "/v2/feedback", labels)
        (window,) = started.report().windows
    client.close()

    assert labelled.json["labelled"] == frames == 10
    assert window.counts["requests"] == 1
    assert sum(window.counts["predicted"].values()) == 10
    assert window.counts["labelled"] == 10


def test_a_swap_lets_streams_end_where_they_began(tmp_path: Path, listeners: Listeners) -> None:
    sound = spoken("Front_Center")
    keeps, comes_anew = Client(listeners.port), Client(listeners.port)

    with engine(listeners) as old, engine(listeners) as new:
        old.serve(vad(tmp_path / "1", version=1))
        hear(keeps, sound[:5120], "keeps", start=True)
        hear(comes_anew, sound[:5120], "anew", start=True)
        comes_anew.close()
        new.load(vad(tmp_path / "2", version=2))
        new.tell(Serve())
        old.tell(Drain(deadline_s=20, streams_s=15))
        eventually_answers(listeners, "2")
        middle = hear(keeps, sound[5120:10240], "keeps")
        last = hear(keeps, sound[10240:], "keeps", end=True)
        elsewhere = hear(comes_anew, sound[5120:], "anew")
        after = hear(keeps, sound, "keeps", start=True)
        assert old.process.wait(5) == 0
    keeps.close()
    comes_anew.close()

    assert [middle.json["model_version"], last.json["model_version"]] == ["1", "1"]
    assert not restarted(middle) and not restarted(last)
    assert last.headers["Connection"] == "close"
    assert (elsewhere.json["model_version"], restarted(elsewhere)) == ("2", True)
    assert (after.json["model_version"], restarted(after)) == ("2", False)


def eventually_answers(listeners: Listeners, version: str) -> None:
    """Wait until new connections reach the engine that serves this version."""
    for _ in range(200):
        one = Client(listeners.port)
        found = one.ask("GET", "/v2/models/vad").json["versions"]
        one.close()
        if found == [version]:
            return
        time.sleep(0.02)
    raise AssertionError(f"expected version {version} to answer")


def test_a_swap_waits_for_streams_no_longer_than_it_is_told(
    tmp_path: Path, listeners: Listeners
) -> None:
    sound = spoken("Front_Center")
    client = Client(listeners.port)

    with engine(listeners) as old, engine(listeners) as new:
        old.serve(vad(tmp_path / "1", version=1))
        new.serve(vad(tmp_path / "2", version=2))
        # Whichever of the two takes a connection: streams go on only where they began.
        answers = [hear(client, sound[:512], "s", start=True)]
        stays = old if answers[0].json["model_version"] == "1" else new
        began = time.monotonic()
        stays.tell(Drain(deadline_s=10, streams_s=1.0))
        while time.monotonic() - began < 2.5:
            answers.append(hear(client, sound[:512], "s"))
            time.sleep(0.05)
        assert stays.process.wait(5) == 0
    client.close()

    assert {answer.status for answer in answers} == {200}
    versions = [answer.json["model_version"] for answer in answers]
    assert len(set(versions)) == 2
    assert versions == sorted(versions, key=lambda one: one != versions[0])
    flags = [restarted(answer) for answer in answers]
    # Said once, in the first answer of the other generation.
    assert flags.count(True) == 1 and flags.index(True) == versions.index(versions[-1])


def test_a_crash_restarts_streams_with_a_flag(tmp_path: Path, listeners: Listeners) -> None:
    sound = spoken("Front_Center")
    client = Client(listeners.port)
    with engine(listeners) as crashing:
        crashing.serve(vad(tmp_path / "1"))
        hear(client, sound[:5120], "s", start=True)
        crashing.process.kill()
        crashing.process.wait(5)

    with engine(listeners) as next_one:
        next_one.serve(vad(tmp_path / "1"))
        client.close()
        answer = hear(client, sound[5120:], "s")
        more = hear(client, sound, "s")
    client.close()

    assert restarted(answer) and not restarted(more)
