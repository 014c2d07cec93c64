"""Golden samples once more, now and then, while nobody waits: is the model what it was released as?

A model shares its interpreter with apps. So samples are run in its lane, one at a time, when no app
asked for some seconds, with long rests: an app that comes just then waits for one run at most. A
thread of low priority would be worse, since an app would wait for it where others keep the
processor busy. A model that listens is never idle while a stream is open, and may hide state:
its samples run in an interpreter of their own, in a thread that gives way to all others.
"""

import asyncio
import functools
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from agent import allocator
from agent.engine import priority
from agent.engine.errors import AnswerError
from agent.engine.runtimes import Array
from agent.engine.served import Served
from agent.engine.shadow import Say
from agent.engine.trial import Golden, deviates, read_golden, sample_inputs

FIRST_S = 300.0
"""The latest beginning of the first round; drawn, so that devices do not begin together."""

QUIET_S = 5.0
PATIENCE_S = 600.0
"""Who waited so long for quiet takes any moment at which no request waits, a run a second."""

REST = 19
"""Rests between runs, in runs: a twentieth of the time at most is taken."""

LEAST_REST_S = 0.05
PATIENT_REST_S = 1.0
NICE = 19

Runner = Callable[[list[Array]], list[Array]]


class Rehearsals:
    """Runs the golden samples of all models that serve, round after round."""

    def __init__(self, served: Iterable[Served], every_s: float, say: Say) -> None:
        everybody = list(served)
        self._boards = [one.board for one in everybody]
        self._served = [one for one in everybody if one.model.manifest.golden is not None]
        self._every_s = every_s
        self._quiet_s = min(QUIET_S, every_s / 4)
        self._say = say
        self._silent: set[str] = set()
        """Models of which was said that their samples cannot be run."""

    async def run(self) -> None:
        """Go on for ever."""
        wait_s = min(FIRST_S, self._every_s) * _drawn(0.4, 1)
        while self._served:
            await asyncio.sleep(wait_s)
            for one in self._served:
                await self._round(one)
            allocator.give_back()
            wait_s = self._every_s * _drawn(0.9, 1.1)

    async def _round(self, one: Served) -> None:
        # A thread of its own: a niceness once raised stays.
        worker = ThreadPoolExecutor(1, "rehearse", priority.lower, (NICE, 1))
        try:
            await self._run_all(one, worker)
            one.board.rehearsed({"runs": 1})
        except Exception as error:
            # Whatever the runtime raises: apps are told of it when it happens to them.
            self._say_once(one, error)
        finally:
            worker.shutdown(wait=False, cancel_futures=True)

    async def _run_all(self, one: Served, worker: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        apart = one.model.framing is not None
        until = time.monotonic() + PATIENCE_S
        if not apart:
            await self._quiet(one, until)
        golden = await loop.run_in_executor(worker, read_golden, one.model)
        assert golden is not None
        runner: Runner | None = None
        if apart:
            runner = await loop.run_in_executor(worker, one.model.apart)
        for place in range(golden.samples):
            began = time.monotonic()
            inputs = sample_inputs(one.model, golden, place)
            if runner is not None:
                outputs = await loop.run_in_executor(worker, runner, inputs)
            else:
                began = await self._quiet(one, until)
                outputs = (await one.lane.queue(inputs)).outputs
            took_s = time.monotonic() - began
            check = functools.partial(_judge, one, golden, place, outputs)
            one.board.rehearsed(await loop.run_in_executor(worker, check))
            least_s = PATIENT_REST_S if began > until else LEAST_REST_S
            await asyncio.sleep(max(least_s, REST * took_s))

    async def _quiet(self, one: Served, until: float) -> float:
        """Wait for a moment at which a run disturbs nobody; return when that is."""
        seen, since = self._activity(), time.monotonic()
        while True:
            now = time.monotonic()
            if (activity := self._activity()) != seen:
                seen, since = activity, now
            elif now - since >= self._quiet_s:
                return now
            if now > until and one.lane.idle:
                return now
            await asyncio.sleep(self._quiet_s / 5)

    def _activity(self) -> int:
        return sum(board.activity for board in self._boards)

    def _say_once(self, one: Served, error: Exception) -> None:
        name = one.model.spec.model
        if name not in self._silent:
            self._silent.add(name)
            why = " ".join(str(error).split())[:300] or type(error).__name__
            self._say(f"golden samples of {name}: not run again this time: {why}")


def _drawn(low: float, high: float) -> float:
    return low + (high - low) * int.from_bytes(os.urandom(2), "big") / 65536


def _judge(one: Served, golden: Golden, place: int, outputs: list[Array]) -> dict[str, int]:
    """Return what a sample's answer adds to the window."""
    model = one.model
    expected = [array[place : place + 1] for array in golden.outputs]
    counts = {"samples": 1, "deviating": int(deviates(model, place, outputs, expected))}
    try:
        classes = model.classify(outputs)[0]
    except AnswerError:
        return {**counts, "flips": 1, "labelled": int(golden.labels is not None)}
    counts["flips"] = int(classes != model.classify(expected)[0])
    if golden.labels is not None and classes:
        counts["labelled"] = 1
        counts["correct"] = int(classes[0] == golden.labels[place])
    return counts
