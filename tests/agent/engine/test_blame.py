import os
import time
from collections.abc import Iterator

import pytest

from agent.control import BLAME
from agent.engine.blame import Blame


@pytest.fixture
def page() -> Iterator[int]:
    fd = os.memfd_create("blame")
    yield fd
    os.close(fd)


def read(page: int) -> tuple[bytes, bytes, int]:
    latest, longest, since_ns = BLAME.unpack(os.pread(page, BLAME.size, 0))
    return latest.rstrip(b"\0"), longest.rstrip(b"\0"), since_ns


def test_of_several_running_models_the_latest_and_the_longest_are_named(page: int) -> None:
    blame = Blame(page)
    seen = []

    slow = blame.begin(b"slow")
    quick = blame.begin(b"quick")
    seen.append(read(page))
    blame.end(quick)
    seen.append(read(page))
    blame.end(slow)
    seen.append(read(page))

    since = slow.since_ns
    assert seen == [(b"quick", b"slow", since), (b"slow", b"slow", since), (b"", b"", 0)]
    assert 0 < since <= quick.since_ns <= time.monotonic_ns()


def test_a_model_that_is_being_loaded_is_named_and_takes_its_time(page: int) -> None:
    blame = Blame(page)

    blame.begin(b"huge", timed=False)
    alone = read(page)
    running = blame.begin(b"quick")

    assert alone == (b"huge", b"huge", 0)
    assert read(page) == (b"quick", b"quick", running.since_ns)


def test_an_old_run_is_interrupted_once_and_told_when_it_ended() -> None:
    blame = Blame(None)
    calls, ended = [], []
    blame.on_interrupted = ended.append
    old = blame.begin(b"old", lambda: calls.append("old"))
    stubborn = blame.begin(b"stubborn")
    now = time.monotonic_ns() + 1
    young = blame.begin(b"young", lambda: calls.append("young"))
    young.since_ns = now

    blame.interrupt_older(now)
    blame.interrupt_older(now)
    for run in (old, stubborn, young):
        blame.end(run)
    blame.interrupt_older(now + 1)

    assert calls == ["old"]
    assert ended == ["old"]
    assert (old.interrupted, stubborn.interrupted, young.interrupted) == (True, False, False)
