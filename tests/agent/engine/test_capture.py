"""A real engine keeps the inputs that an order asks for, and no others."""

import json
import time
from pathlib import Path
from typing import Any

from agent.control import Capture
from tests.agent.engine.harness import Client, Listeners, Release, engine, eventually, one_hot
from tests.agent.engine.models import onnx_classifier

SURE, UNSURE = [5.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]


def test_each_kind_of_order_takes_what_it_says(tmp_path: Path) -> None:
    release = Release(tmp_path / "release", onnx_classifier())
    listeners = Listeners(tmp_path)
    kinds = ("random", "uncertain", "misclassified")
    folders = {kind: tmp_path / "capture" / kind for kind in kinds}

    with engine(listeners) as running:
        running.serve(release)
        for kind, folder in folders.items():
            folder.mkdir(parents=True)
            running.tell(
                Capture(
                    request=f"r-{kind}", model="digits", which=kind, count=10, max_bytes=100_000,
                    until=int(time.time()) + 60, below_percent=70, directory=str(folder),
                )
            )  # fmt: skip
        running.report()
        client = Client(listeners.port)
        for id, row in (("sure", SURE), ("unsure", UNSURE), ("wrong", one_hot(1)[0])):
            assert client.infer([row[: len(one_hot(0)[0])]], id).status == 200
        for id, label in (("sure", 0), ("unsure", 0), ("wrong", 2)):
            told = {"request_id": id, "label": label}
            assert client.ask("POST", "/v2/feedback", told).status == 200
        client.close()
        eventually(lambda: len(taken(folders["random"])) == 3)
        eventually(lambda: len(taken(folders["misclassified"])) == 1)
        eventually(lambda: len(list(folders["random"].glob("*.label"))) == 3)
        eventually(lambda: len(list(folders["uncertain"].glob("*.label"))) >= 1)
    listeners.close()

    scores = [head["scores"][0] for head in taken(folders["uncertain"])]
    assert scores and all(score < 700_000 for score in scores)
    everything = [head["scores"][0] for head in taken(folders["random"])]
    assert len(scores) == sum(score < 700_000 for score in everything)
    (wrong,) = taken(folders["misclassified"])
    assert (wrong["predicted"], wrong["label"]) == ([1], [2])


def taken(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes().partition(b"\n")[0]) for path in folder.glob("*.sample")]
