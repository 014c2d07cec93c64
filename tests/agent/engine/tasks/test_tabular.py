"""Rows of named columns become features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.control import Load, Ready, Serve
from agent.engine.tasks.tabular import TableReader
from agent.engine.tensors import TensorError
from tests.agent.engine.harness import Client, Listeners, engine
from tests.agent.engine.models import onnx_bytes
from tests.agent.engine.task_release import TaskRelease
from wire.manifest import TensorSpec
from wire.task import Column, TableInput

AGE = Column(name="age", mean=40, std=20, missing=40)
KM = Column(name="km", mean=0, std=1000)
FUEL = Column(
    name="fuel", kind="category", categories=("petrol", "diesel", "electric"), unknown="zero"
)
DOORS = Column(name="doors", kind="category", categories=("3", "5"), encoding="number", missing="5")


def reader(*columns: Column) -> TableReader:
    width = sum(column.features for column in columns)
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, width))
    return TableReader(TableInput(columns=columns), spec)


def features(found: TableReader, *rows: dict[str, Any]) -> Any:
    return found.read(rows).inputs[0].tolist()


def test_numbers_are_scaled_and_categories_spread_in_the_order_of_the_columns() -> None:
    found = reader(AGE, KM, FUEL, DOORS)

    rows = features(
        found,
        {"age": 60, "km": 500.0, "fuel": "diesel", "doors": "3"},
        {"doors": 5, "fuel": "petrol", "km": 0, "age": 40.0},
    )

    assert rows == [[1, 0.5, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1]]


def test_a_row_may_be_json_too() -> None:
    assert reader(AGE).read([json.dumps({"age": 20}).encode()]).inputs[0].tolist() == [[-1]]


@pytest.mark.parametrize("missing", [{}, {"age": None}, {"age": float("nan")}])
def test_what_is_missing_counts_as_the_release_says(missing: dict[str, Any]) -> None:
    assert features(reader(AGE), missing) == [[0]]
    assert features(reader(DOORS), {}) == [[1]]
    with pytest.raises(TensorError, match="column km: expected a value, got none"):
        features(reader(KM), {})


def test_an_unknown_category_is_none_or_refused() -> None:
    strict = FUEL.model_copy(update={"unknown": "refuse"})

    assert features(reader(FUEL), {"fuel": "steam"}) == [[0, 0, 0]]
    with pytest.raises(TensorError, match=r"column fuel: expected one of .*, got 'steam'"):
        features(reader(strict), {"fuel": "steam"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": "old"}, "column age: expected a finite number, got 'old'"),
        ({"age": True}, "column age: expected a finite number, got True"),
        ({"age": float("inf")}, "finite number"),
        ({"age": 10**400}, "finite number"),
        ({"age": [1]}, "finite number"),
        ({"agee": 1}, "expected the columns .* got 'agee' too"),
        (b"[1]", "expected an object, got list"),
        (b"{", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b" " * 300_000, "expected a row of at most 262144 bytes"),
    ],
)
def test_what_is_no_row_is_refused_by_its_column(row: Any, words: str) -> None:
    with pytest.raises(TensorError, match=words):
        reader(AGE).read([row])


def test_no_more_rows_than_the_limit() -> None:
    with pytest.raises(TensorError, match="expected 1 to 1024 rows, got 1025"):
        reader(AGE).read([{}] * 1025)


TASK = """
kind = "classification"
scores_are = "logits"
top = 1

[input]
kind = "table"

[[input.columns]]
name = "age"
mean = 40.0
std = 20.0
missing = 40.0

[[input.columns]]
name = "fuel"
kind = "category"
categories = ["petrol", "electric"]
"""


def cars() -> bytes:
    """Return a linear model: old ones and electric ones count against each other."""
    weights = np.array([[2, -2], [0, 0], [-1, 1]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "cars",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    return onnx_bytes(graph)


def test_rows_are_answered_in_every_dialect(tmp_path: Path, listeners: Listeners) -> None:
    (tmp_path / "cars.onnx").write_bytes(cars())
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "labels.txt").write_text("old\nnew\n")
    release = TaskRelease(
        tmp_path / "release",
        "cars",
        [tmp_path / "cars.onnx"],
        {"--task": tmp_path / "task.toml", "--labels": tmp_path / "labels.txt"},
    )
    rows = [{"age": 80, "fuel": "petrol"}, {"fuel": "electric"}, {"age": 90, "fuel": "electric"}]
    texts = {"name": "row", "datatype": "BYTES", "shape": [3], "data": list(map(json.dumps, rows))}
    columns = {"age": [80, None, 90], "fuel": ["petrol", "electric", "electric"]}

    with engine(listeners) as started:
        started.tell(Load([release.spec]))
        assert isinstance(started.hear(), Ready)
        started.tell(Serve())
        client = Client(listeners.port)
        by_row = client.ask("POST", "/v1/models/cars:predict", {"instances": rows})
        by_column = client.ask("POST", "/v1/models/cars:predict", {"inputs": columns})
        tensors = client.ask("POST", "/v2/models/cars/infer", {"inputs": [texts]})
        plain = client.ask("POST", "/v1/models/cars:predict", {"instances": [[2.0, 1.0, 0.0]]})
        wrong = client.ask("POST", "/v1/models/cars:predict", {"instances": [rows[0], {"age": 1}]})
        client.close()

    expected = ["old", "new", "old"]
    assert [row["labels"][0]["label"] for row in by_row.json["predictions"]] == expected
    assert [row[0] for row in by_column.json["outputs"]["label"]] == expected
    assert next(o for o in tensors.json["outputs"] if o["name"] == "label")["data"] == expected
    assert plain.json == {"predictions": [[4.0, -4.0]]}
    assert wrong.status == 400
    assert "column fuel: expected a value, got none" in wrong.json["error"]
