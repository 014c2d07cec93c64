"""What the scoreboard adds to an inference: an engine with it and without, in turns.

The int8 digits of the samples (0.07 ms a run, less on quick machines) in a real engine, asked at
its TCP address with tensors as bytes, the form that is answered soonest there. The release brings
its baseline and its calibration: softmax and confidence, classes, latency, estimated accuracy and
three drift features (mean and deviation of the picture, sampled, and the confidence) are counted.
One process has
its scoreboard taken away and given back between blocks of requests, so that both are the same code
in the same memory. What is added is processor time of the engine, since other programs take none
of that; it includes what is done after the answer has left. The local API's p50 is what the client
waits, scoreboard included, on one processor.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from agent import control
from agent.control import Load, ModelSpec, Ready, Report, Scores, Serve
from scripts.benches import _client as raw
from scripts.benches._common import Bar, CannotMeasureError, Result, main, note
from wire.codec import decode
from wire.features import STRIDE
from wire.manifest import Manifest

BARS = [Bar("added_us", at_most=15.0), Bar("added_percent_of_api_p50", at_most=4.0)]
RELEASE = Path(__file__).parents[2] / "samples/digits-1"
ROOT = Path(__file__).parents[2]
BLOCK = 256 * STRIDE
"""Whole turns of what is counted many at a time, and of what is sampled."""
WARM = 64
INPUTS = 8
ANSWER_S = 60.0


def measure(quick: bool) -> Result:
    """Processor time of an engine with a scoreboard less that of one without, an inference."""
    pairs = 20 if quick else 60
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    added, without_us, with_us, p50_us = [], [], [], []
    with _engine() as engine:
        with closing(raw.Http(engine.address)) as connection:
            block = _Blocks(engine, connection)
            for pair in range(pairs):
                # Which of them begins alternates.
                order = (True, False) if pair % 2 else (False, True)
                found = {counted: block.run(counted) for counted in order}
                with_us.append(found[True][0])
                without_us.append(found[False][0])
                p50_us.append(found[True][1])
                added.append(with_us[-1] - without_us[-1])
        counted = engine.requests()
    if counted != block.counted:
        raise CannotMeasureError(f"expected {block.counted} counted answers, got {counted}")
    added_us, api_us = median(added), median(p50_us)
    note(
        f"{pairs} pairs of {BLOCK}: {median(with_us):.1f} us of processor time an answer with the "
        f"scoreboard, {median(without_us):.1f} without; p50 of the API {api_us:.0f} us"
    )
    return Result(
        figures={
            "added_us": added_us,
            "added_percent_of_api_p50": 100 * added_us / api_us,
            "api_p50_us": api_us,
            "with_us": median(with_us),
            "without_us": median(without_us),
        },
        runs={"with_us": with_us, "without_us": without_us, "api_p50_us": p50_us},
    )


@dataclass
class _Engine:
    process: subprocess.Popen[bytes]
    socket: socket.socket
    lines: Any
    address: tuple[str, int]

    def switch(self, *, counted: bool) -> None:
        """Give the engine its scoreboard, or take it away."""
        self.process.send_signal(signal.SIGUSR2 if counted else signal.SIGUSR1)

    def processor_us(self) -> float:
        """Return what the engine's event loop took so far."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1000

    def requests(self) -> int:
        """Return how many answers the scoreboard counted."""
        self.socket.sendall(control.write(Report()))
        answer = control.read_from_engine(self.lines.readline())
        assert isinstance(answer, Scores)
        return sum(window.counts["requests"] for window in answer.windows)


class _Blocks:
    """Asks the same requests over and over, in blocks."""

    def __init__(self, engine: _Engine, connection: raw.Http) -> None:
        self.counted = 0
        self._engine = engine
        self._connection = connection
        draw = np.random.default_rng(1)
        pictures = draw.integers(0, 17, (INPUTS, 1, 8, 8, 1)).astype(np.float32)
        self._requests = [raw.as_binary("digits", "image", picture) for picture in pictures]
        self._warm_up(True)  # and see that it serves

    def run(self, counted: bool) -> tuple[float, float]:
        """Return processor time an answer, and the client's p50, in microseconds."""
        # Whoever answers this is done with what there was left to do after the answer before.
        self._connection.call(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._engine.switch(counted=counted)
        self._warm_up(counted)
        began = self._engine.processor_us()
        waited = [raw.timed_us(self._ask, turn)[0] for turn in range(BLOCK)]
        took = self._engine.processor_us() - began
        self.counted += BLOCK * counted
        return took / BLOCK, median(waited)

    def _warm_up(self, counted: bool) -> None:
        for turn in range(WARM):
            self._ask(turn)
        self.counted += WARM * counted

    def _ask(self, turn: int) -> None:
        answer = self._connection.call(self._requests[turn % INPUTS])
        if self._connection.status != 200:
            raise CannotMeasureError(f"expected 200, got {answer[:300]!r}")


@contextmanager
def _engine() -> Iterator[_Engine]:
    listener = socket.create_server(("127.0.0.1", 0))
    ours, theirs = socket.socketpair()
    blame = os.memfd_create("blame")
    arguments = {"--control": theirs.fileno(), "--tcp": listener.fileno(), "--blame": blame}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "scripts.benches._scoreboard_engine",
            *(str(word) for pair in arguments.items() for word in pair),
        ],
        pass_fds=tuple(arguments.values()),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    ours.settimeout(ANSWER_S)
    try:
        with ours.makefile("rb") as lines:
            ours.sendall(control.write(Load([_spec()])))
            answer = control.read_from_engine(lines.readline())
            if not isinstance(answer, Ready):
                raise CannotMeasureError(f"the engine refused the samples: {answer}")
            ours.sendall(control.write(Serve()))
            yield _Engine(process, ours, lines, listener.getsockname())
    finally:
        process.kill()
        process.wait()
        ours.close()
        listener.close()
        os.close(blame)


def _spec() -> ModelSpec:
    data = RELEASE / "manifest.json"
    manifest = decode(Manifest, data.read_bytes())
    files = {file.digest: str(RELEASE / file.name) for file in manifest.all_files()}
    return ModelSpec(
        manifest.model,
        manifest.version,
        manifest.digest,
        manifest.variants[0].name,
        str(data),
        files,
    )


if __name__ == "__main__":
    sys.exit(main("scoreboard", BARS, measure))
