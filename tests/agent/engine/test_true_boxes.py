"""True boxes that an app posts, beside those that a real detector found."""

from pathlib import Path

from tests import found, tasks
from tests.agent.engine.harness import Client, Listeners, engine
from tests.agent.engine.task_release import TaskRelease


def test_found_boxes_match_true_ones_by_their_overlap(tmp_path: Path, listeners: Listeners) -> None:
    release = TaskRelease(
        tmp_path / "release",
        "faces",
        [found.face_model("short_range")],
        tasks.write_face(tmp_path / "task"),
    )
    client = Client(listeners.port)
    told = []

    with engine(listeners) as started:
        started.serve(release)  # type: ignore[arg-type]
        for id, move in (("same", 0.0), ("near", 0.1), ("far", 2.0), ("none", None)):
            headers = {"Content-Type": "image/png", "X-Request-Id": id}
            answer = client.ask("POST", "/v2/models/faces/infer", found.astronaut(), headers)
            [face] = answer.json["detections"]
            left, top, right, bottom = face["box"]
            boxes = []
            if move is not None:
                by = move * (right - left)
                boxes = [{"label": "face", "box": [left + by, top, right + by, bottom]}]
            joined = client.ask("POST", "/v2/feedback", {"request_id": id, "boxes": boxes})
            assert joined.status == 200, joined.body
            told.append(tuple(joined.json[key] for key in ("matched", "missed", "spurious")))
        again = client.ask("POST", "/v2/feedback", {"request_id": "same", "boxes": []})
        (window,) = started.report().windows
    client.close()

    assert told == [(1, 0, 0), (1, 0, 0), (0, 1, 1), (0, 0, 1)]
    assert again.status == 400
    assert window.counts["outcomes"] == {"matched": 2, "missed": 1, "spurious": 2}
