"""Rows of named columns to the vector of features that a model of tables takes."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.engine.tasks import Item, Read
from agent.engine.tasks.edges import to_tensor, whole
from agent.engine.tensors import TensorError
from wire.manifest import TensorSpec
from wire.task import Column, TableInput

MAX_BATCH = 1024
MAX_ROW_BYTES = 256 * 1024
QUICK_VALUES = 512


class TableReader:
    """Fills in what is missing, scales numbers and spreads categories."""

    media: tuple[str, ...] = ()

    def __init__(self, given: TableInput, spec: TensorSpec) -> None:
        self.name = given.name
        self._spec = whole(spec)
        self.columns = given.columns
        self.column_names = frozenset(column.name for column in given.columns)
        self._places = {
            column.name: {category: place for place, category in enumerate(column.categories)}
            for column in given.columns
        }

    def is_quick(self, items: Sequence[Item]) -> bool:
        """Whether there are few values."""
        return len(items) * len(self.columns) <= QUICK_VALUES

    def read(self, items: Sequence[Item]) -> Read:
        """Return the rows as one batch."""
        most = 1 if self._spec.shape[0] == 1 else MAX_BATCH
        if not 1 <= len(items) <= most:
            raise TensorError(f"input {self.name}: expected 1 to {most} rows, got {len(items)}")
        rows = [self._row(item) for item in items]
        features = [self._features(column, rows) for column in self.columns]
        return Read([to_tensor(np.concatenate(features, axis=1), self._spec)])

    def _row(self, item: Item) -> dict[str, Any]:
        if isinstance(item, bytes):
            if len(item) > MAX_ROW_BYTES:
                raise TensorError(
                    f"input {self.name}: expected a row of at most {MAX_ROW_BYTES} bytes, got "
                    f"{len(item)}"
                )
            try:
                item = json.loads(item)
            except (ValueError, RecursionError) as error:
                raise TensorError(f"input {self.name}: expected JSON: {error}") from None
        if not isinstance(item, dict):
            raise TensorError(f"input {self.name}: expected an object, got {type(item).__name__}")
        strangers = set(item) - self.column_names
        if strangers:
            raise TensorError(
                f"input {self.name}: expected the columns {sorted(self.column_names)[:20]}, got "
                f"{str(min(strangers))[:80]!r} too"
            )
        return item

    def _features(self, column: Column, rows: list[dict[str, Any]]) -> Any:
        """Return the features of one column, FP64 (rows, features)."""
        values = [self._value(column, row.get(column.name)) for row in rows]
        if column.kind == "number":
            return (np.array(values, np.float64)[:, None] - column.mean) / column.std
        known = self._places[column.name]
        places = np.array([known.get(value, -1) for value in values])
        if column.encoding == "number":
            return places[:, None].astype(np.float64)
        return (places[:, None] == np.arange(len(known))).astype(np.float64)

    def _value(self, column: Column, value: Any) -> Any:
        """Return a number, or the name of a category, known or to count as none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            if column.missing is None:
                raise TensorError(f"column {column.name}: expected a value, got none")
            value = column.missing
        if column.kind == "number":
            # Beyond the range of floats an integer cannot even be converted.
            if type(value) in (int, float) and abs(value) <= 1e308:
                return value
            raise TensorError(
                f"column {column.name}: expected a finite number, got {_short(value)}"
            )
        if type(value) is int:
            value = str(value)
        if isinstance(value, str) and (
            column.unknown == "zero" or value in self._places[column.name]
        ):
            return value
        raise TensorError(
            f"column {column.name}: expected one of {list(column.categories[:20])}, got "
            f"{_short(value)}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
