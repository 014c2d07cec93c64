"""Streams by the client that people have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.agent.engine.harness import Client, Listeners, engine
from tests.agent.engine.speech import scores_of, spoken, vad


def ask(client: Any, sound: Any, **sequence: Any) -> list[float]:
    given = triton.InferInput("audio", [len(sound)], "INT16")
    given.set_data_from_numpy(sound)
    answer: Any = client.infer("vad", [given], **sequence)
    scores: list[float] = answer.as_numpy("output").tolist()
    return [score for [score] in scores]


def test_tritonclient_streams_with_its_own_arguments(tmp_path: Path, listeners: Listeners) -> None:
    sound = spoken("Front_Center")
    ours = Client(listeners.port)

    with engine(listeners) as started:
        started.serve(vad(tmp_path / "vad"))
        client = triton.InferenceServerClient(f"127.0.0.1:{listeners.port}")
        expected = scores_of(ours, sound, "ours")
        scores: list[float] = []
        for at in range(0, len(sound), 4000):
            last = at + 4000 >= len(sound)
            scores += ask(
                client, sound[at : at + 4000],
                sequence_id=7, sequence_start=at == 0, sequence_end=last,
            )  # fmt: skip
        with pytest.raises(InferenceServerException) as over:
            ask(client, sound, sequence_id=7)
        with pytest.raises(InferenceServerException) as alone:
            ask(client, sound)
        client.close()
    ours.close()

    assert scores == pytest.approx(expected, abs=1e-7)
    assert np.median(scores) > 0.9
    assert over.value.status() == "410" and "it has ended" in over.value.message()
    assert "expected parameters.sequence_id" in alone.value.message()
