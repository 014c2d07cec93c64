"""A challenger hears whole streams or none of them."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.control import Host, ShadowTo, Tally
from tests.agent.engine.harness import Client, Engine, Listeners, engine, eventually
from tests.agent.engine.speech import (
    VAD,
    VAD_STREAM,
    ListeningRelease,
    hear,
    said,
    silence,
    spoken,
    told,
    vad,
    wake_word,
)
from wire.task import Task


def plain(folder: Path, version: int) -> ListeningRelease:
    """A release whose answers are compared as numbers, to a thousandth."""
    return ListeningRelease(folder, VAD, VAD_STREAM, version=version, task=Task(kind="tensor"))


def start(champion: Engine, challenger: Engine, folder: Path, release: ListeningRelease) -> None:
    path = str(folder / "shadow.sock")
    challenger.tell(Host(path))
    champion.tell(ShadowTo(release.spec.model, path, release.spec.manifest))
    champion.report(windows=False)


def tally(champion: Engine) -> Tally:
    (found,) = champion.report(windows=False).tallies
    return found


def send(client: Client, sound: Any, id: str) -> int:
    """Stream a sound in pieces of 0.1 s; return how many answers told of a frame."""
    answers = 0
    for at in range(0, len(sound), 1600):
        answer = hear(client, sound[at : at + 1600], id, start=at == 0, end=at + 1600 >= len(sound))
        answers += told(answer)["output"] != []
    return answers


def test_a_challenger_begins_with_streams_that_begin_after_it_came(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    sound = spoken("Front_Center")
    old, new = plain(tmp_path / "1", 1), plain(tmp_path / "2", 2)

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        hear(client, sound[:8000], "before", start=True)
        start(champion, challenger, tmp_path, new)
        missed = len(told(hear(client, sound[8000:], "before", end=True))["output"])
        answers = send(client, sound, "after")
        eventually(lambda: tally(champion).pairs == answers)
        found = tally(champion)

    assert missed > 0
    assert (found.dropped, found.disagreements, found.errors) == (1, 0, 0)
    assert answers > 10


@pytest.mark.parametrize("kind", ["vad", "nabu"])
def test_interleaved_streams_are_heard_as_the_champion_hears_them(
    tmp_path: Path, listeners: Listeners, client: Client, kind: str
) -> None:
    make = vad if kind == "vad" else wake_word
    old, new = make(tmp_path / "1", 1), make(tmp_path / "2", 2)
    call = np.concatenate([silence(0.3), said("okay nabu"), silence(0.5)])
    sounds = {"a": call, "b": spoken("Front_Center")[: len(call)]}

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        frames = 0
        for at in range(0, len(call), 1600):
            for id, sound in sounds.items():
                piece = sound[at : at + 1600]
                answer = hear(client, piece, id, model=kind, start=at == 0)
                frames += len(told(answer)["label"])
            eventually(lambda expected=frames: tally(champion).pairs == expected)
        found = tally(champion)

    assert (found.disagreements, found.errors, found.dropped) == (0, 0, 0)
    # Whichever interpreter ran them: every frame of both is counted.
    assert found.champion_rows == found.challenger_rows == found.pairs


def test_a_stream_that_a_challenger_falls_behind_on_is_left_out_whole(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    sound = spoken("Front_Center")
    old, new = plain(tmp_path / "1", 1), plain(tmp_path / "2", 2)
    frame = [sound[at : at + 512] for at in range(0, 512 * 40, 512)]

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        for place in range(10):
            hear(client, frame[place], "slow", start=place == 0)
        eventually(lambda: tally(champion).pairs == 10)
        os.kill(challenger.process.pid, signal.SIGSTOP)
        for place in range(100):
            assert hear(client, frame[place % 40], "slow").status == 200
        os.kill(challenger.process.pid, signal.SIGCONT)
        eventually(lambda: tally(champion).dropped >= 98)
        for place in range(20):
            hear(client, frame[place], "slow")
            hear(client, frame[place], "quick", start=place == 0, end=place == 19)
        eventually(lambda: sum_of(tally(champion)) == 150)
        found = tally(champion)

    # Had the challenger missed a single frame of what it was asked, it would have disagreed.
    assert found.disagreements == found.errors == 0
    assert found.pairs in (30, 31) and found.dropped == 150 - found.pairs


def sum_of(found: Tally) -> int:
    return found.pairs + found.dropped + found.errors


def test_a_challenger_that_was_gone_hears_only_new_streams(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    sound = spoken("Front_Center")
    old, new = plain(tmp_path / "1", 1), plain(tmp_path / "2", 2)

    with engine(listeners) as champion:
        champion.serve(old)
        with engine() as first:
            first.load(new)
            start(champion, first, tmp_path, new)
            hear(client, sound[:5120], "s", start=True)
            eventually(lambda: tally(champion).pairs == 1)
            first.process.kill()
            first.process.wait(5)
        hear(client, sound[:5120], "s")
        with engine() as second:
            second.load(new)
            second.tell(Host(str(tmp_path / "shadow.sock")))
            hear(client, sound[5120:], "s")
            eventually(lambda: sum_of(tally(champion)) == 3)
            hear(client, sound[:5120], "t", start=True)
            eventually(lambda: sum_of(tally(champion)) == 4)
            found = tally(champion)

    assert found.disagreements == 0
    assert found.pairs == 2
