import random
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agent.control import Host, Serve, ShadowStop, ShadowTo, Tally
from tests.agent.engine.harness import (
    Client,
    Engine,
    Listeners,
    Release,
    engine,
    eventually,
    one_hot,
)
from tests.agent.engine.models import (
    GOOD,
    ROTATED,
    onnx_classifier,
    onnx_slow_classifier,
    tflite_classifier,
)
from wire.manifest import Task


def start(champion: Engine, challenger: Engine, folder: Path, release: Release) -> str:
    """Let the challenger shadow every later request; return its socket's path."""
    path = str(folder / f"shadow-{release.version}.sock")
    challenger.tell(Host(path))
    champion.tell(ShadowTo("digits", path, release.spec.manifest))
    # The answer to a report says that everything before it was obeyed.
    champion.report(windows=False)
    return path


def tally(champion: Engine) -> Tally:
    (found,) = champion.report(windows=False).tallies
    return found


@pytest.mark.parametrize("runtime", ["onnxruntime", "ai-edge-litert", "tflite-runtime"])
def test_every_pair_and_every_label_is_counted_whatever_comes_first(
    tmp_path: Path, listeners: Listeners, client: Client, runtime: str
) -> None:
    # The challenger is right on class 0 and one off on the others; labels are sometimes noise.
    weights = ROTATED.copy()
    weights[0] = GOOD[0]
    onnx = runtime == "onnxruntime"
    data = onnx_classifier(weights) if onnx else tflite_classifier(weights)
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", data, version=2, format="onnx" if onnx else "tflite")
    chance = random.Random(5)
    expected = {"pairs": 0, "disagreements": 0, "labelled": 0, "worse": 0, "better": 0}
    late: list[tuple[str, int]] = []

    with engine(listeners) as champion, engine(runtimes=runtime) as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        for number in range(200):
            truth = chance.randrange(3)
            label = truth if chance.random() < 0.7 else chance.randrange(3)
            rival = truth if truth == 0 else (truth + 1) % 3
            client.infer(one_hot(truth), id=f"r{number}")
            expected["pairs"] += 1
            expected["disagreements"] += rival != truth
            if number % 32 == 31:
                # More than 64 waiting copies would rightly be dropped.
                eventually(lambda: tally(champion).pairs == expected["pairs"])
            if number % 4 == 3:
                continue
            expected["labelled"] += 1
            expected["worse"] += label == truth != rival
            expected["better"] += label == rival != truth
            if number % 2:
                late.append((f"r{number}", label))
            else:
                client.ask("POST", "/v2/feedback", {"request_id": f"r{number}", "label": label})
        eventually(lambda: tally(champion).pairs == 200)
        for id, label in late:
            client.ask("POST", "/v2/feedback", {"request_id": id, "label": label})
        found = tally(champion)
        shown = client.ask("GET", "/v2/models/digits/shadow").json
        (window,) = champion.report().windows
        last = champion.drain()

    cost = {"champion_cpu_us": 0, "challenger_cpu_us": 0}
    assert found.champion_cpu_us > 0 and found.challenger_cpu_us > 0
    assert replace(found, **cost) == Tally(
        "digits", new.spec.manifest, champion_rows=200, challenger_rows=200, **expected
    )
    assert window.counts["shadow"] == {
        "challenger": new.spec.manifest, "dropped": 0, "errors": 0, **expected
    }  # fmt: skip
    assert last.windows == [] and last.tallies == [found]
    assert shown["running"] is True
    assert shown["tally"]["pairs"] == 200
    assert len(shown["disagreements"]) == 16
    for one in shown["disagreements"]:
        assert one["challenger"] == (one["champion"] + 1) % 3
        assert (one["label"] is None) == (int(one["id"][1:]) % 4 == 3)
    assert champion.notes == []


def test_a_batch_counts_every_row(tmp_path: Path, listeners: Listeners, client: Client) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_classifier(ROTATED), version=2)

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        path = start(champion, challenger, tmp_path, new)
        client.infer(one_hot(0, 1, 2, 2), id="a")
        eventually(lambda: tally(champion).pairs == 4)
        client.ask("POST", "/v2/feedback", {"request_id": "a", "label": [0, 1, 2, 0]})
        found = tally(champion)

        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert (found.disagreements, found.labelled, found.worse, found.better) == (4, 4, 3, 1)


def test_answers_without_classes_are_compared_as_numbers(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    near, far = GOOD * 1.0001, GOOD * 1.1
    task = Task(kind="tensor")
    old = Release(tmp_path / "1", onnx_classifier(), task=task)
    found = []

    for version, weights in ((2, near), (3, far)):
        new = Release(tmp_path / str(version), onnx_classifier(weights), version=version, task=task)
        own = Listeners(tmp_path / str(version))
        client = Client(own.port)
        with engine(own) as champion, engine() as challenger:
            champion.serve(old)
            challenger.load(new)
            start(champion, challenger, tmp_path, new)
            client.infer(one_hot(1))
            eventually(lambda champion=champion: tally(champion).pairs == 1)
            found.append(tally(champion).disagreements)
        client.close()
        own.close()

    assert found == [0, 1]


def test_a_dying_challenger_is_noted_and_never_costs_the_champion_an_answer(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_classifier(), version=2)

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        client.infer(one_hot(0))
        eventually(lambda: tally(champion).pairs == 1)
        challenger.process.kill()
        statuses = [client.infer(one_hot(0)).status for _ in range(100)]
        eventually(lambda: champion.report(windows=False) and champion.notes)
        champion.tell(ShadowStop("digits"))
        found = tally(champion)
        champion.report()
        after = champion.report().tallies
        still = client.ask("GET", "/v2/models/digits/shadow").json

    assert statuses == [200] * 100
    assert champion.notes[0].startswith("shadow of digits: the challenger is silent: ")
    assert found.errors >= 1
    assert found.pairs + found.errors + found.dropped == 101
    assert after == []
    assert (still["running"], still["tally"]["pairs"]) == (False, 1)


def test_a_challenger_that_comes_to_serve_with_copies_in_hand_lets_them_go_in_silence(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_slow_classifier(200), version=2)
    more = Listeners(tmp_path / "2")
    second = Client(more.port)

    with engine(listeners) as champion, engine(more) as another, engine() as challenger:
        champion.serve(old)
        another.serve(old)
        challenger.load(new)
        path = start(champion, challenger, tmp_path, new)
        another.tell(ShadowTo("digits", path, new.spec.manifest))
        another.report(windows=False)
        # One copy runs, the other waits for the only thread that runs copies.
        client.infer(one_hot(0))
        eventually(lambda: challenger.blamed() == "digits")
        second.infer(one_hot(0))
        challenger.report(windows=False)
        challenger.tell(Serve())
        eventually(lambda: challenger.blamed() == "")
        # What it says besides is seen when it is closed.
        challenger.report(windows=False)
    second.close()
    more.close()


def test_a_slow_challenger_costs_copies_and_no_time(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_slow_classifier(6), version=2)

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        statuses = [client.infer(one_hot(0)).status for _ in range(300)]
        eventually(lambda: tally(champion).pairs + tally(champion).dropped == 300)
        found = tally(champion)

    assert statuses == [200] * 300
    assert found.dropped > 0 and found.errors == 0
    assert found.disagreements == 0


def test_a_challenger_that_cannot_take_the_inputs_counts_as_errors(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_classifier(batch=1), version=2, batch=1, variant_batch=1)

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        client.infer(one_hot(0, 1))
        client.infer(one_hot(2))
        eventually(lambda: tally(champion).pairs == 1)
        found = tally(champion)

    assert (found.errors, found.pairs) == (2, 1)


def test_a_shadow_of_another_begins_a_new_tally_and_loses_no_count_of_the_old(
    tmp_path: Path, listeners: Listeners, client: Client
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    two = Release(tmp_path / "2", onnx_classifier(ROTATED), version=2)
    three = Release(tmp_path / "3", onnx_classifier(), version=3)

    with engine(listeners) as champion, engine() as second, engine() as third:
        champion.serve(old)
        second.load(two)
        third.load(three)
        start(champion, second, tmp_path, two)
        client.infer(one_hot(0), id="early")
        eventually(lambda: tally(champion).pairs == 1)
        start(champion, third, tmp_path, three)
        client.infer(one_hot(0), id="late")
        eventually(lambda: champion.report(windows=False).tallies[-1].pairs == 1)
        for id in ("early", "late"):
            client.ask("POST", "/v2/feedback", {"request_id": id, "label": 0})
        scores = champion.report()

    assert [(t.challenger, t.worse) for t in scores.tallies] == [
        (two.spec.manifest, 1),
        (three.spec.manifest, 0),
    ]
    shadows = [window.counts["shadow"] for window in scores.windows]
    assert [(s["challenger"], s["pairs"], s["labelled"]) for s in shadows] == [
        (two.spec.manifest, 1, 1),
        (three.spec.manifest, 1, 1),
    ]
    assert [window.counts["requests"] for window in scores.windows] == [2, 0]


def test_shadowing_under_load_conserves_every_offered_pair(
    tmp_path: Path, listeners: Listeners
) -> None:
    old = Release(tmp_path / "1", onnx_classifier(), version=1)
    new = Release(tmp_path / "2", onnx_classifier(ROTATED), version=2)
    statuses: list[int] = []

    def ask() -> None:
        client = Client(listeners.port)
        statuses.extend(client.infer(one_hot(1)).status for _ in range(250))
        client.close()

    with engine(listeners) as champion, engine() as challenger:
        champion.serve(old)
        challenger.load(new)
        start(champion, challenger, tmp_path, new)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        champion.tell(ShadowStop("digits"))
        found = tally(champion)

    assert statuses == [200] * 1000
    assert found.pairs + found.dropped == 1000
    assert found.pairs > 0 and found.errors == 0
