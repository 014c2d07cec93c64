"""Too many frames, no room, and frames that are too much for a model."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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
from tests.agent.engine.slow_models import onnx_looper
from tests.agent.pipelines.harness import (
    FRAMES,
    SIZE,
    answered,
    ear,
    frame,
    records,
    running,
    script,
)


def test_the_latest_alone_is_asked_and_the_others_are_counted(
    tmp_path: Path, listeners: Listeners
) -> None:
    body = FRAMES + "for n in range(1000): out.write(frames[0])\nout.write(frames[2])\ntime.sleep(600)\n"  # fmt: skip # noqa: E501
    more = 'queue = 1\nwhen_full = "drop-oldest"'

    toml = ear(script(tmp_path, "cam", body), SIZE, more)
    with running(f"unix:{listeners.path}", tmp_path, toml) as it:
        # Nobody serves: the newest frame waits, and before it the one that was already taken to
        # the door, unless all had come by then.
        counts = it.wait_for("ear", taken=1001, answered=0)
        kept = 1001 - counts["dropped"]["queue full"]
        assert kept in (1, 2)
        with engine(listeners) as started:
            started.serve(Release(tmp_path / "release", onnx_classifier()))
            dropped = {"queue full": 1001 - kept}
            it.wait_for("ear", taken=1001, answered=kept, dropped=dropped, failed={})

    assert [answered(record) for record in records(tmp_path / "out.jsonl")] == [0, 2][-kept:]


def test_the_newest_are_dropped_where_that_is_wished(tmp_path: Path, listeners: Listeners) -> None:
    body = FRAMES + "for n in range(99): out.write(frames[n % 3])\ntime.sleep(600)\n"
    more = 'queue = 4\nwhen_full = "drop-newest"'

    toml = ear(script(tmp_path, "cam", body), SIZE, more)
    with running(f"unix:{listeners.path}", tmp_path, toml) as it:
        counts = it.wait_for("ear", taken=99, answered=0)
        kept = 99 - counts["dropped"]["queue full"]
        assert 4 <= kept <= 5  # the thread that asks may have taken its one before or after
        with engine(listeners) as started:
            started.serve(Release(tmp_path / "release", onnx_classifier()))
            it.wait_for("ear", answered=kept)


def test_no_more_are_asked_than_is_wished(tmp_path: Path, api: str) -> None:
    body = FRAMES + "while True: out.write(frames[0]); time.sleep(0.005)\n"
    more = 'queue = 1\nwhen_full = "drop-oldest"\nmax_per_s = 10'

    with running(api, tmp_path, ear(script(tmp_path, "cam", body), SIZE, more)) as it:
        eventually(lambda: it.counts.get("ear", {}).get("answered", 0) >= 8)

    times = [record["at"] for record in records(tmp_path / "out.jsonl")]
    # The first one did not wait for its turn.
    assert np.diff(times[1:]).mean() > 0.085
    counts = it.counts["ear"]
    assert counts["dropped"]["queue full"] > counts["answered"]


@contextmanager
def others(listeners: Listeners, count: int) -> Iterator[None]:
    """Other apps, more than the engine lets wait, that ask again and again."""
    enough = threading.Event()

    def ask() -> None:
        client = Client(listeners.port)
        while not enough.is_set():
            if client.infer(one_hot(0)).status == 503:
                enough.wait(0.02)
        client.close()

    apps = [threading.Thread(target=ask) for _ in range(count)]
    for app in apps:
        app.start()
    try:
        yield
    finally:
        enough.set()
        for app in apps:
            app.join(20)


def test_a_frame_is_dropped_when_the_model_is_busy_if_that_is_wished(
    tmp_path: Path, listeners: Listeners
) -> None:
    body = f"""
    import os
    out.write(frames[0])
    while not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.01)
    for n in range(20): out.write(frames[0])
    time.sleep(600)
    """
    command = script(tmp_path, "cam", body, FRAMES)
    toml = ear(command, SIZE, 'when_busy = "drop"')

    with engine(listeners) as started, running(f"unix:{listeners.path}", tmp_path, toml) as it:
        started.serve(Release(tmp_path / "release", onnx_slow_classifier(10)))
        it.wait_for("ear", answered=1)
        with others(listeners, 75):
            (tmp_path / "go").touch()
            counts = eventually(lambda: it.counts["ear"].get("dropped") and it.counts["ear"])
            assert set(counts["dropped"]) == {"model busy"}
        eventually(
            lambda: it.counts["ear"]["answered"] + it.counts["ear"]["dropped"]["model busy"] == 21
        )
    assert it.counts["ear"] == {
        **it.counts["ear"], "taken": 21, "failed": {}, "retries": 0,
    }  # fmt: skip


def test_a_frame_that_ends_the_engine_is_set_apart_before_the_model_is_blamed(
    tmp_path: Path, listeners: Listeners
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    poison = np.frombuffer(frame(0), np.float32).copy()
    poison[0] = 1e9  # turns of a loop
    (folder / "1.raw").write_bytes(poison.tobytes())
    (folder / "2.raw").write_bytes(frame(2))
    for place in (1, 2):
        os.utime(folder / f"{place}.raw", (place, place))
    (tmp_path / "bad").mkdir()
    toml = """
    [[pipeline]]
    name = "door"
    model = "digits"
    source = { directory = "in", settle_s = 0, done = "delete", failed = "./bad" }
    sink = { file = "out.jsonl" }
    """
    release = Release(tmp_path / "release", onnx_looper())

    def end(started: Engine) -> None:
        """Do what the agent's watchdog does with a run that never ends."""
        eventually(lambda: started.blamed() == "digits")
        started.process.kill()

    with running(f"unix:{listeners.path}", tmp_path, toml) as it:
        for _ in range(2):
            with engine(listeners) as started:
                started.serve(release)
                end(started)
        with engine(listeners) as started:
            started.serve(release)
            it.wait_for("door", taken=2, answered=1, failed={"engine failed": 1}, retries=1)

    refused, fine = records(tmp_path / "out.jsonl")
    assert refused["error"].startswith("given up after 2 times: the engine ended with the request")
    assert answered(fine) == 2
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["1.raw"]
