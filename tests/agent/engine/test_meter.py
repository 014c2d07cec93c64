"""What a challenger costs, what it is allowed, and that the champion does not pay for it."""

import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest

from agent.control import Host, Serve, ShadowStop, ShadowTo
from agent.core.probation import judge
from agent.engine.meter import BURST_S, Ration
from tests.agent.engine.harness import (
    Client,
    Engine,
    Listeners,
    Release,
    engine,
    eventually,
    one_hot,
)
from tests.agent.engine.models import onnx_classifier, onnx_slow_classifier
from tests.agent.engine.test_shadow import tally
from wire.twin import Phase, Probation, Reason

BUSY_S = 90.0


def begin(champion: Engine, challenger: Engine, folder: Path, release: Release, percent: int):
    """Let the challenger shadow every later request with so much of a core."""
    path = str(folder / "shadow.sock")
    challenger.tell(Host(path, percent))
    champion.tell(ShadowTo("digits", path, release.spec.manifest))
    champion.report(windows=False)


def niceness(engine: Engine) -> set[int]:
    """Return how nice the threads of an engine are; one that just ended counts for nothing."""
    found = set()
    for task in Path(f"/proc/{engine.process.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    return found


def test_a_ration_is_rested_off_and_not_saved_up() -> None:
    ration = Ration(0.25, now=100.0, cpu_s=5.0)

    assert ration.rest_s(100.0, 5.1) == pytest.approx(0.4)
    assert ration.rest_s(100.4, 5.1) == pytest.approx(0.0)
    assert ration.rest_s(1000.0, 5.2) == pytest.approx(0.4 - BURST_S)


def test_a_challenger_that_costs_too_much_is_refused_with_both_figures(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_slow_classifier(2), version=2)

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        begin(champion, challenger, tmp_path, new, 100)
        for _ in range(25):
            client.infer(one_hot(0))
        eventually(lambda: tally(champion).challenger_rows >= 25)
        found = tally(champion)
    verdict = judge(Probation(), found, 1.0)
    allowed = judge(Probation(cpu_percent=0), found, 1.0)

    assert found.champion_rows == 25
    assert verdict is not None and allowed is None
    assert (verdict.phase, verdict.reason) == (Phase.ROLLED_BACK, Reason.TOO_SLOW)
    ours, theirs = found.champion_cpu_us / 25_000, found.challenger_cpu_us / 25_000
    assert verdict.detail.startswith(
        f"{theirs:.2f} ms of processor time an input, the champion takes {ours:.2f} ms: "
    )
    assert verdict.detail.endswith("refused above 300%")


def test_a_challenger_keeps_to_its_share_of_a_core_and_to_low_priority(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_slow_classifier(16), version=2)
    share, ours = 0.2, os.nice(0)

    def compared() -> int:
        """Ask for more than is compared meanwhile; return how many pairs there are so far."""
        assert {client.infer(one_hot(0)).status for _ in range(20)} == {200}
        return tally(champion).pairs

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new, nice=10)
        begin(champion, challenger, tmp_path, new, 20)
        process = psutil.Process(challenger.process.pid)
        first = eventually(compared, BUSY_S)
        began, before = time.monotonic(), sum(process.cpu_times()[:2])
        # On a busy machine a nice process takes long for so many: pairs end it, not seconds.
        eventually(lambda: compared() >= first + 30, BUSY_S)
        taken_s = sum(process.cpu_times()[:2]) - before
        elapsed_s = time.monotonic() - began
        during = niceness(challenger)
        champion.tell(ShadowStop("digits"))
        found = tally(champion)
        challenger.tell(Serve())
        after = eventually(lambda: (found := niceness(challenger)) == {ours} and found)

    run_s = found.challenger_cpu_us / found.challenger_rows / 1e6
    # What was saved up before and the run in hand come on top; unrationed it would be about 1.
    assert taken_s < share * (elapsed_s + BURST_S) + 2 * run_s
    assert found.dropped > 0 and found.errors == 0
    assert during == {ours, 10}
    assert after == {ours}
