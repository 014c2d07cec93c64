"""Rows of telemetry as files of other tools: CSV, Parquet, and TensorBoard's event files.

A file is there when it is whole: until then it lies beside its place under another name.
"""

import csv
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from urllib.parse import quote

from fleet.core.errors import FleetError
from fleet.core.export import WIDTH
from fleet.core.export_views import ExportHead, ExportRow
from wire.telemetry import CONFIDENCE_BINS, LATENCY_ERROR, MILLION

Format = Literal["csv", "parquet", "tensorboard"]
FORMATS: tuple[str, ...] = get_args(Format)
ROWS = 2000
"""Kept in memory before they are written."""
EVENT_BYTES = 16 * 1024 * 1024
MAX_NAME = 100

MAPS = {
    "drift": (str, float), "latency_bins": (int, int), "confidence_bins": (int, int),
    "predicted": (int, int), "noised": (int, int), "confusion": (str, int),
    "outcomes": (str, int),
}  # fmt: skip
"""Columns that hold many numbers by key, and what those are."""
TIMES = ("start", "end")


class Table(Protocol):
    """Takes the rows of one export."""

    def add(self, row: ExportRow) -> None:
        """Write a row, or keep it until there are more."""

    def close(self) -> None:
        """Write what is left."""


@contextmanager
def opened(format: Format, out: Path, head: ExportHead) -> Iterator[Table]:
    """Yield where rows go; at the end `out` is whole, and after an error as it was before.

    Raises:
        FleetError: it cannot be written, or the package for it is not installed.
    """
    kind = _KINDS[format]
    part = out.with_name(f".{out.name}.part")
    try:
        _check(format, out)
        table = kind(part, head)
        try:
            yield table
            table.close()
        except BaseException:
            with suppress(Exception):
                table.close()
            raise
        if part.is_dir() and out.is_dir():
            out.rmdir()
        part.replace(out)
    except OSError as error:
        raise FleetError(
            f"export: cannot write {out}: {error.strerror or error}", "--out"
        ) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _check(format: Format, out: Path) -> None:
    if format == "tensorboard":
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise FleetError(
                f"export: expected a new or empty directory at {out}, got one with files",
                "--out ANOTHER-DIRECTORY",
            )
    elif out.is_dir():
        raise FleetError(f"export: expected a file at {out}, got a directory", f"--out {out}/FILE")


def _need(package: str, module: str) -> Any:
    try:
        return __import__(module, fromlist=["*"])
    except ImportError:
        raise FleetError(
            f"export: expected the package {package}, got none",
            "pip install 'farflung[export]', or --format csv",
        ) from None


# CSV


class CsvTable:
    """One line a row; columns of many numbers are JSON."""

    def __init__(self, path: Path, head: ExportHead) -> None:
        """Begin it with the names of the columns."""
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(ExportRow.model_fields)

    def add(self, row: ExportRow) -> None:
        """Write a line."""
        self._writer.writerow(_cell(name, getattr(row, name)) for name in ExportRow.model_fields)

    def close(self) -> None:
        """Close the file, its bytes on the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def _cell(name: str, value: Any) -> str | int | float:
    if value is None:
        return ""
    if name in TIMES:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if name in MAPS:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False) if value else ""
    if isinstance(value, str):
        # A label's value comes from a device: what a spreadsheet would run is made words.
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    assert isinstance(value, int | float)
    return value


# Parquet


class ParquetTable:
    """Columns of their own types; times are timestamps in UTC, many numbers by key are maps."""

    def __init__(self, path: Path, head: ExportHead) -> None:
        """Begin the file; what it is of is in its metadata, under `farflung`."""
        self._arrow = _need("pyarrow", "pyarrow")
        parquet = _need("pyarrow", "pyarrow.parquet")
        about = {"farflung": head.model_dump_json(exclude_none=True)}
        self._schema = self._arrow.schema(
            [(name, self._type(name)) for name in ExportRow.model_fields], metadata=about
        )
        self._rows: list[dict[str, Any]] = []
        self._writer = parquet.ParquetWriter(str(path), self._schema, compression="zstd")

    def _type(self, name: str) -> Any:
        arrow, kinds = self._arrow, {str: "string", int: "int64", float: "float64"}
        if name in TIMES:
            return arrow.timestamp("ms", tz="UTC")
        if name in MAPS:
            return arrow.map_(*(getattr(arrow, kinds[kind])() for kind in MAPS[name]))
        hint = str(ExportRow.model_fields[name].annotation)
        kind = str if "str" in hint else float if "float" in hint else int
        return getattr(arrow, kinds[kind])()

    def add(self, row: ExportRow) -> None:
        """Keep a row, and write many at once."""
        told = row.model_dump()
        for name in MAPS:
            told[name] = list(told[name].items())
        for name in TIMES:
            told[name] *= 1000
        self._rows.append(told)
        if len(self._rows) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        """Write what is left and end the file."""
        if self._writer.is_open:
            if self._rows:
                self._flush()
            self._writer.close()


# TensorBoard


class EventFiles:
    """A run for each release and group: DIR/detector@7, or DIR/detector@7/site=berlin.

    The step of a point is its hour or day since 1970, and its wall time the beginning of that.
    """

    def __init__(self, path: Path, head: ExportHead) -> None:
        """Begin with an empty directory."""
        self._event = _need("tensorboardx", "tensorboardX.proto.event_pb2").Event
        self._summary = _need("tensorboardx", "tensorboardX.proto.summary_pb2").Summary
        self._crc: Callable[[bytes], int] = _need("tensorboardx", "tensorboardX.crc32c").crc32c
        self._head, self._path = head, path
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        self._runs: dict[str, bytearray] = {}
        self._size = 0

    def add(self, row: ExportRow) -> None:
        """Keep the row's points, and write those of many rows at once."""
        run = f"{_name(row.model)}@{row.version}"
        if self._head.by is not None:
            run += f"/{_name(self._head.by)}={_name(row.group or '(none)')}"
        width = WIDTH[self._head.step]
        summary = self._summary()
        for tag, value in _scalars(row):
            summary.value.add(tag=tag, simple_value=value)
        for tag, bars in _histograms(row):
            summary.value.add(tag=tag).histo.CopyFrom(self._histogram(bars))
        record = self._event(wall_time=row.start, step=row.start // width, summary=summary)
        if run not in self._runs:
            self._runs[run] = bytearray()
            first = self._event(wall_time=row.start, file_version="brain.Event:2")
            self._write(run, first.SerializeToString())
        self._write(run, record.SerializeToString())
        if self._size >= EVENT_BYTES:
            self._flush()

    def _write(self, run: str, data: bytes) -> None:
        """Frame a record as TensorFlow does."""
        length = struct.pack("<Q", len(data))
        record = length + self._masked(length) + data + self._masked(data)
        self._runs[run] += record
        self._size += len(record)

    def _masked(self, data: bytes) -> bytes:
        crc = self._crc(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    def _histogram(self, bars: list[tuple[float, float, int]]) -> Any:
        """Return (low, high, count) in ascending order as TensorBoard has it."""
        counts = [max(0, count) for _, _, count in bars]
        middles = [(low + high) / 2 for low, high, _ in bars]
        limits = [high for _, high, _ in bars]
        # A bar reaches down to the one before it: what lies between them is a bar of nothing.
        steps: list[tuple[float, float]] = []
        for (low, high, _), count in zip(bars, counts, strict=True):
            if not steps or steps[-1][0] < low:
                steps.append((low, 0.0))
            steps.append((high, float(count)))
        histogram = self._summary.Value().histo
        histogram.min, histogram.max = bars[0][0], limits[-1]
        histogram.num = float(sum(counts))
        histogram.sum = sum(m * c for m, c in zip(middles, counts, strict=True))
        histogram.sum_squares = sum(m * m * c for m, c in zip(middles, counts, strict=True))
        histogram.bucket_limit.extend(limit for limit, _ in steps)
        histogram.bucket.extend(count for _, count in steps)
        return histogram

    def _flush(self) -> None:
        for run, data in self._runs.items():
            if data:
                folder = self._path / run
                folder.mkdir(parents=True, exist_ok=True)
                name = f"events.out.tfevents.{self._head.made_at:010d}.farflung"
                with (folder / name).open("ab") as file:
                    file.write(data)
                data.clear()
        self._size = 0

    def close(self) -> None:
        """Write what is left."""
        self._flush()


def _name(text: str) -> str:
    """Return words as the name of a directory, another one for other words."""
    name = quote(text, safe=" ()")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 13]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return name


_TAGS = {
    "requests": "requests", "devices": "devices", "errors": "errors", "drops": "drops",
    "slo_misses": "slo_misses", "latency_p50_s": "latency_s/p50", "latency_p90_s": "latency_s/p90",
    "latency_p95_s": "latency_s/p95", "latency_p99_s": "latency_s/p99",
    "confidence_mean": "confidence/mean", "labelled": "labels/count",
    "label_coverage": "labels/coverage", "orphan_labels": "labels/orphans",
    "labelled_accuracy": "accuracy_labelled/accuracy", "labelled_low": "accuracy_labelled/low",
    "labelled_high": "accuracy_labelled/high", "golden_accuracy": "accuracy_golden/accuracy",
    "golden_low": "accuracy_golden/low", "golden_high": "accuracy_golden/high",
    "estimated_accuracy": "accuracy_estimated/accuracy",
    "estimated_low": "accuracy_estimated/low", "estimated_high": "accuracy_estimated/high",
    "golden_flips": "golden/flips", "golden_deviating": "golden/deviating",
    "calibration_error": "calibration/error", "value_error_p50": "value_error/p50",
    "value_error_p95": "value_error/p95", "drifted": "drifted_features",
    "shadow_pairs": "shadow/pairs", "shadow_disagreements": "shadow/disagreements",
    "shadow_worse": "shadow/worse", "shadow_better": "shadow/better", "epsilon": "privacy/epsilon",
}  # fmt: skip
"""Column -> tag; the three kinds of accuracy have a chart each."""


def _scalars(row: ExportRow) -> Iterator[tuple[str, float]]:
    for column, tag in _TAGS.items():
        value = getattr(row, column)
        if value is not None:
            yield tag, float(value)
    for feature, effect in row.drift.items():
        yield f"drift/{feature}", effect
    for outcome, count in row.outcomes.items():
        yield f"outcomes/{outcome}", float(count)


def _histograms(row: ExportRow) -> Iterator[tuple[str, list[tuple[float, float, int]]]]:
    """Yield what has bars, as (low, high, count) in ascending order."""
    if row.latency_bins:
        yield (
            "latency_s",
            [
                (_edge_s(place - 1) if place else 0.0, _edge_s(place), count)
                for place, count in sorted(row.latency_bins.items())
            ],
        )
    if row.confidence_bins:
        yield (
            "confidence",
            [
                (place / CONFIDENCE_BINS, (place + 1) / CONFIDENCE_BINS, count)
                for place, count in sorted(row.confidence_bins.items())
            ],
        )
    for tag, classes in (("predicted", row.predicted), ("predicted_noised", row.noised)):
        if classes:
            yield tag, [(c - 0.5, c + 0.5, count) for c, count in sorted(classes.items())]


def _edge_s(place: int) -> float:
    """Return the upper end of a latency's bin in seconds."""
    gamma = (1 + LATENCY_ERROR) / (1 - LATENCY_ERROR)
    return float(gamma**place) / MILLION


_KINDS: dict[Format, Callable[[Path, ExportHead], Table]] = {
    "csv": CsvTable,
    "parquet": ParquetTable,
    "tensorboard": EventFiles,
}
