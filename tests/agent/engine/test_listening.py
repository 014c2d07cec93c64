"""Frames, bytes and open streams, without an engine around them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.blame import Blame
from agent.engine.errors import BusyError, HttpError
from agent.engine.features import Extractor
from agent.engine.framing import Framing, Listener
from agent.engine.model import Model
from agent.engine.runtimes import CannotRunError
from agent.engine.sound import Pcm
from agent.engine.streams import MAX_OPEN, Sequence, Streams
from agent.engine.trial import try_model
from tests.agent.engine.speech import (
    VAD,
    VAD_STREAM,
    WAKE_WORD,
    WAKE_WORD_STREAM,
    ListeningRelease,
    said,
    silence,
    spoken,
    vad,
    wake_word,
    wav,
)
from wire.ids import digest_of
from wire.manifest import File, Manifest, TensorSpec, Variant
from wire.stream import Features, Stream


def echo(**stream: Any) -> Framing:
    """A model that answers what it was given: x, FP32 (1, any)."""
    x = (TensorSpec(name="x", datatype="FP32", shape=(1, -1)),)
    y = (TensorSpec(name="y", datatype="FP32", shape=(1, -1)),)
    artifact = File(name="m", digest=digest_of(b"m"), size_bytes=1)
    variant = Variant(name="v", format="onnx", artifact=artifact, inputs=x, outputs=y)
    manifest = Manifest(
        model="echo", version=1, inputs=x, outputs=y, variants=(variant,),
        stream=Stream(rate_hz=16000, **stream),
    )  # fmt: skip
    return Framing(manifest, variant)


@given(
    frame=st.integers(1, 20),
    hop=st.integers(1, 20),
    context=st.integers(0, 10),
    pieces=st.lists(st.integers(0, 60), max_size=12),
)
def test_every_frame_is_what_its_place_in_the_sound_says(
    frame: int, hop: int, context: int, pieces: list[int]
) -> None:
    hop = min(hop, frame)
    sound = np.arange(1, sum(pieces) + 1, dtype=np.float32)
    listener = Listener(echo(frame=frame, hop=hop, context=context), lambda inputs: inputs)

    heard, at = [], 0
    for piece in pieces:
        heard += listener.hear(sound[at : at + piece])[0].tolist()
        at += piece

    padded = np.concatenate([np.zeros(context, np.float32), sound]).tolist()
    window = context + frame
    starts = range(0, len(padded) - window + 1, hop)
    assert heard == [padded[start : start + window] for start in starts]


def test_samples_of_16_bits_are_reals_below_one() -> None:
    listener = Listener(echo(frame=4), lambda inputs: inputs)

    answer = listener.hear(np.array([0, 16384, -32768, 32767], np.int16))[0]

    assert answer.tolist() == [[0.0, 0.5, -1.0, 32767 / 32768]]


@given(
    pieces=st.lists(st.integers(0, 301), min_size=1, max_size=20),
    headed=st.booleans(),
)
@settings(max_examples=50)
def test_bytes_of_sound_may_be_cut_anywhere(pieces: list[int], headed: bool) -> None:
    samples = np.arange(-700, 700, dtype=np.int16)
    raw = wav(samples) + b"LIST\4\0\0\0what" if headed else samples.tobytes()
    pcm = Pcm(16000)
    cuts = [60, *pieces]

    heard, at = [], 0
    for cut in [*cuts, len(raw)]:
        heard += pcm.samples(raw[at : at + cut]).tolist()
        at += cut

    assert heard == samples.tolist()


def test_features_are_those_of_the_library_however_the_sound_is_cut() -> None:
    from pymicro_features import MicroFrontend

    sound = said("okay nabu")
    front, expected = MicroFrontend(), []
    for at in range(0, len(sound) - 159, 160):
        expected += front.process_samples(sound[at : at + 160].tobytes()).features

    extractor = Extractor(Features(extractor="pymicro-features", version="2"))
    rows = [extractor.rows(sound[at : at + 77]) for at in range(0, len(sound), 77)]

    assert np.concatenate(rows).ravel().tolist() == np.float32(expected).tolist()


@pytest.mark.parametrize("version", ["1", "2.9", "2.0.1"])
def test_features_of_another_version_are_refused(version: str) -> None:
    with pytest.raises(CannotRunError, match=f"expected version {version} as the release"):
        Extractor(Features(extractor="pymicro-features", version=version))


# ---- streams, with a clock of our own


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(vad(tmp_path_factory.mktemp("vad"), idle_s=60).spec, 1, Blame(None))


def test_only_what_is_idle_makes_room(model: Model) -> None:
    clock = Clock()
    streams = Streams(model, clock)
    parts = [streams.take(Sequence(n + 1, start=True)) for n in range(MAX_OPEN)]
    for part in parts[1:]:
        streams.done(part)

    with pytest.raises(BusyError, match="32 streams are open already"):
        streams.take(Sequence("more", start=True))
    clock.now += 60.0
    # The first one's request is still being run: it is not idle.
    more = streams.take(Sequence("more", start=True))
    streams.done(parts[0])

    assert len(streams) == 2
    assert parts[0].stream.open and more.stream.open and not parts[1].stream.open


def test_unknown_streams_are_a_former_generations_for_as_long_as_one_may_be_idle(
    model: Model,
) -> None:
    clock = Clock()
    streams = Streams(model, clock)
    streams.adopt()

    adopted = streams.take(Sequence("mic"))
    clock.now += 60.0
    with pytest.raises(HttpError) as late:
        streams.take(Sequence("other"))

    assert adopted.stream.tell_restarted() and not adopted.stream.tell_restarted()
    assert late.value.status == 404


def test_a_request_that_found_no_room_may_be_sent_again(model: Model) -> None:
    streams = Streams(model, Clock())
    first = streams.take(Sequence("s", start=True))
    streams.give_back(first)
    again = streams.take(Sequence("s", start=True))
    streams.done(again)

    last = streams.take(Sequence("s", end=True))
    streams.give_back(last)
    once_more = streams.take(Sequence("s", end=True))
    streams.done(once_more)

    assert once_more.stream is again.stream is not first.stream
    assert len(streams) == 0


def test_a_lost_request_ends_its_stream(model: Model) -> None:
    streams = Streams(model, Clock())
    streams.done(streams.take(Sequence("s", start=True)))
    lost = streams.take(Sequence("s"))

    streams.lose(lost)

    with pytest.raises(HttpError, match="its sound is missing; begin again") as over:
        streams.take(Sequence("s"))
    assert over.value.status == 410
    # What had been queued behind it is not heard either.
    with pytest.raises(HttpError, match="its sound is missing"):
        lost.stream.hear(silence(0.1))


def test_a_run_that_fails_ends_its_stream_and_no_other(model: Model) -> None:
    streams = Streams(model, Clock())
    one, other = (streams.take(Sequence(id, start=True)) for id in ("one", "other"))
    run, model.run = model.run, lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        one.stream.hear(silence(0.1))
    model.run = run  # type: ignore[method-assign]
    streams.done(one)
    streams.done(other)

    with pytest.raises(HttpError, match="a run failed"):
        streams.take(Sequence("one"))
    assert streams.take(Sequence("other")).stream.hear(silence(0.1))[0].shape == (3, 1)


# ---- trials


def golden(release: ListeningRelease, sound: Any) -> dict[str, Any]:
    """Record what the model takes and answers when it hears a sound from the beginning."""
    model = Model(release.spec, 1, Blame(None))
    taken: list[list[Any]] = []
    answered: list[list[Any]] = []

    def run(inputs: list[Any]) -> list[Any]:
        taken.append([array.copy() for array in inputs])
        answered.append(model.run(inputs))
        return answered[-1]

    assert model.framing is not None
    Listener(model.framing, run).hear(sound)

    def stacked(rows: list[list[Any]], place: int) -> Any:
        arrays = [row[place] for row in rows]
        return np.concatenate(arrays) if arrays[0].shape[:1] == (1,) else np.stack(arrays)

    arrays = {f"input_{place}": stacked(taken, place) for place in range(len(taken[0]))}
    return arrays | {
        f"output_{place}": stacked(answered, place) for place in range(len(answered[0]))
    }


def test_golden_samples_of_hidden_state_are_one_stream_after_the_warm_up(tmp_path: Path) -> None:
    call = np.concatenate([silence(0.3), said("okay nabu")])
    samples = golden(wake_word(tmp_path / "bare"), call)
    release = ListeningRelease(
        tmp_path / "golden", WAKE_WORD, WAKE_WORD_STREAM, model="nabu", golden=samples
    )

    passed = try_model(release.spec, 1, Blame(None), golden=True)
    model = passed.model
    again = [model.run([row[None]])[0].item() for row in samples["input_0"]]
    model.forget()
    fresh = [model.run([row[None]])[0].item() for row in samples["input_0"]]

    assert passed.loaded.golden_samples == len(samples["input_0"])
    assert passed.loaded.golden_worst == 0
    # It matters: on an interpreter that heard something before, the answers are others.
    assert again != samples["output_0"].ravel().tolist() == fresh
    assert max(fresh) > 200


def test_golden_samples_of_carried_state_hold_the_state(tmp_path: Path) -> None:
    samples = golden(vad(tmp_path / "bare"), spoken("Front_Center")[:8000])
    release = ListeningRelease(tmp_path / "golden", VAD, VAD_STREAM, golden=samples)

    passed = try_model(release.spec, 1, Blame(None), golden=True)

    assert passed.loaded.golden_samples == 15
    assert passed.loaded.golden_worst < 1e-6


def test_a_device_without_the_extractor_fails_the_trial(tmp_path: Path) -> None:
    features = {"extractor": "pymicro-features", "version": "3"}
    release = wake_word(tmp_path / "r", features=features)

    with pytest.raises(CannotRunError, match="expected version 3") as failed:
        try_model(release.spec, 1, Blame(None), golden=False)

    assert failed.value.reason == "no_runtime"
