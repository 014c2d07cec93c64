"""`fleet telemetry export` over the API: files that their own tools read."""

import csv
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing import event_accumulator

from fleet.core.export import export, head_of
from fleet.core.export_views import ExportRow
from fleet.core.report_views import ReportView
from fleet.shell.export_files import MAPS
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import NOW, Asked, MemoryController
from tests.fleet.samples import sample_manifest
from wire.telemetry import ScoreWindow

DAY = 86_400
TODAY = int(NOW) // DAY * DAY
COUNTED: dict[str, Any] = {
    "requests": 200, "errors": 3, "labelled": 100, "correct": 90, "predicted": {0: 120, 1: 80},
    "confidence": {18: 50, 19: 150}, "confidence_sum": 190_000_000,
    "confusion": {"0,0": 50, "0,1": 10, "1,1": 40}, "latency": {"bins": {300: 150, 400: 50}},
    "estimate": {"samples": 200, "sum_p": 180_000_000, "spread": 9_000_000},
    "outcomes": {"within": 9},
}  # fmt: skip


def window(device: str, days_ago: int, version: int = 1) -> ScoreWindow:
    end = TODAY - days_ago * DAY + 3600
    told = {"device": device, "boot": "b", "seq": 1, "model": "digits", "version": version,
            "manifest": sample_manifest(version).digest, "variant": "int8-onnx",
            "start": end - 60, "end": end, **COUNTED}  # fmt: skip
    return ScoreWindow.model_validate(told)


@pytest.fixture
def told(controller: MemoryController) -> MemoryController:
    """Seven devices on two sites, three days."""
    for number in range(7):
        device = f"cam-{number}"
        controller.records.windows += [window(device, days_ago) for days_ago in (1, 2, 5)]
        site = "berlin" if number else '=cmd|"x"!A1'
        controller.records.labels[device] = {"site": site}
    return controller


def rows_of(controller: MemoryController, **asked: Any) -> list[ExportRow]:
    wanted = Asked("digits", 1, **asked)
    lines = controller.telemetry_export(wanted)
    return [line.row for line in lines if line.row is not None]


def read_csv(path: Path) -> list[ExportRow]:
    """Read what was written back into rows."""
    found = []
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            told: dict[str, Any] = {name: cell for name, cell in cells.items() if cell != ""}
            for name in MAPS:
                told[name] = json.loads(told.get(name, "{}"))
            for name in ("start", "end"):
                told[name] = int(datetime.fromisoformat(told[name]).timestamp())
            found.append(ExportRow.model_validate(told))
    return found


def read_parquet(path: Path) -> list[ExportRow]:
    found = []
    for told in pq.read_table(path).to_pylist():
        for name in MAPS:
            told[name] = dict(told[name])
        for name in ("start", "end"):
            assert told[name].tzinfo is not None
            told[name] = int(told[name].astimezone(UTC).timestamp())
        found.append(ExportRow.model_validate(told))
    return found


@pytest.mark.parametrize(("format_", "read"), [("csv", read_csv), ("parquet", read_parquet)])
@pytest.mark.parametrize("by", [None, "site"])
def test_what_is_written_is_read_back_and_adds_up_to_the_report(  # noqa: PLR0917
    run: Fleet, told: MemoryController, tmp_path: Path, format_: str,
    read: Callable[[Path], list[ExportRow]], by: str | None,
) -> None:  # fmt: skip
    path = tmp_path / f"digits.{format_}"
    options = ("--by", by) if by else ()

    result = run("telemetry", "export", "digits@1", "--format", format_, "--out", str(path),
                 *options)  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{path}: 3 rows of digits@1")
    rows = read(path)
    assert rows == rows_of(told, by=by)
    report = ReportView.model_validate_json(run("model", "report", "digits@1", "--json").stdout)
    [release] = report.releases
    assert sum(row.requests for row in rows) == release.requests == 4200
    assert sum(row.errors for row in rows) == release.errors
    assert sum(row.labelled_correct for row in rows) == release.accuracy[0].correct
    assert sum(row.predicted[0] for row in rows) == release.classes[0].predicted
    assert list(tmp_path.iterdir()) == [path], "nothing else is left"
    if by:
        assert {row.group for row in rows} == {"(others)"}
        assert "3 rows (others): groups of fewer than 5 devices together" in result.stderr


def test_parquet_says_what_it_is_of(run: Fleet, told: MemoryController, tmp_path: Path) -> None:
    path = tmp_path / "digits.parquet"

    run("telemetry", "export", "digits", "--format", "parquet", "--out", str(path),
        "--step", "hour", "--since", "7d")  # fmt: skip

    schema = pq.read_schema(path)
    head = json.loads(schema.metadata[b"farflung"])
    assert (head["model"], head["step"], head["min_devices"]) == ("digits", "hour", 5)
    assert str(schema.field("start").type) == "timestamp[ms, tz=UTC]"
    assert str(schema.field("requests").type) == "int64"
    assert str(schema.field("predicted").type).startswith("map<int64, int64")


def test_a_spreadsheet_runs_nothing_that_a_device_calls_itself(
    run: Fleet, told: MemoryController, tmp_path: Path
) -> None:
    path = tmp_path / "digits.csv"

    run("telemetry", "export", "digits@1", "--format", "csv", "--out", str(path), "--by", "site",
        "--min-devices", "1")  # fmt: skip

    groups = {row.group for row in read_csv(path)}
    assert groups == {"berlin", '\'=cmd|"x"!A1'}


def test_tensorboards_own_reader_reads_the_export(
    run: Fleet, told: MemoryController, tmp_path: Path
) -> None:
    out = tmp_path / "board"

    result = run("telemetry", "export", "digits@1", "--format", "tensorboard", "--out", str(out))

    assert result.stderr == f"next: tensorboard --logdir {out}\n"
    board = event_accumulator.EventAccumulator(str(out / "digits@1"), size_guidance={
        event_accumulator.SCALARS: 0, event_accumulator.HISTOGRAMS: 0, event_accumulator.TENSORS: 0,
    })  # fmt: skip
    board.Reload()
    rows = rows_of(told)
    for tag, column in (
        ("requests", "requests"), ("accuracy_labelled/accuracy", "labelled_accuracy"),
        ("accuracy_labelled/low", "labelled_low"), ("latency_s/p95", "latency_p95_s"),
        ("accuracy_estimated/accuracy", "estimated_accuracy"),
    ):  # fmt: skip
        points = board.Scalars(tag)
        assert [(p.step, p.wall_time) for p in points] == [(r.start // DAY, r.start) for r in rows]
        assert [p.value for p in points] == pytest.approx([getattr(r, column) for r in rows])
    assert "accuracy_golden/accuracy" not in board.Tags()["scalars"]
    assert [p.value for p in board.Scalars("outcomes/within")] == [63.0] * 3
    for tag, total in (("latency_s", 1400), ("confidence", 1400), ("predicted", 1400)):
        bars = board.Histograms(tag)
        assert [sum(each.histogram_value.bucket) for each in bars] == [total] * 3
        assert [each.histogram_value.num for each in bars] == [total] * 3
        limits = bars[0].histogram_value.bucket_limit
        assert list(limits) == sorted(set(limits))


def test_every_group_is_a_run_of_its_own(
    run: Fleet, told: MemoryController, tmp_path: Path
) -> None:
    out = tmp_path / "board"
    out.mkdir()
    told.records.labels["cam-0"]["site"] = "../../" + "x" * 300

    run("telemetry", "export", "digits", "--format", "tensorboard", "--out", str(out), "--by",
        "site", "--min-devices", "1")  # fmt: skip

    runs = sorted(path.parent.relative_to(out) for path in out.rglob("events.out.tfevents.*"))
    assert len(runs) == 2 and runs[1] == Path("digits@1/site=berlin")
    assert runs[0].parent == Path("digits@1") and len(runs[0].name) < 120


def test_json_is_what_was_written_and_nothing_else_is_said(
    run: Fleet, told: MemoryController, tmp_path: Path
) -> None:
    path = tmp_path / "digits.csv"

    result = run("telemetry", "export", "digits@1", "--format", "csv", "--out", str(path), "--json",
                 "--min-devices", "8")  # fmt: skip

    assert result.stderr == ""
    view = json.loads(result.stdout)
    assert (view["path"], view["rows"], view["withheld"]) == (str(path), 0, 3)
    assert len(path.read_text().splitlines()) == 1, "the names of the columns"


def test_a_fleet_that_said_nothing_has_an_export_without_rows(run: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "digits.parquet"

    result = run("telemetry", "export", "digits", "--format", "parquet", "--out", str(path))

    assert result.exit_code == 0
    assert result.stdout.startswith(f"{path}: no rows of digits")
    assert pq.read_table(path).num_rows == 0


@pytest.mark.parametrize(
    ("arguments", "code", "error", "next_step"),
    [
        (("digts", "--format", "csv", "--out", "{}/x"), 1, "no model 'digts'", "fleet model list"),
        (("digits@9", "--format", "csv", "--out", "{}/x"), 1, "digits@9: no such release",
         "fleet model list"),
        (("digits", "--format", "xls", "--out", "{}/x"), 2, "Invalid value for '--format'",
         "fleet telemetry export --help"),
        (("digits", "--format", "csv", "--out", "{}/x", "--by", "sit"), 1,
         "by: expected device, variant or a label", "fleet device list"),
        (("digits", "--format", "csv", "--out", "{}/x", "--by", "device"), 1,
         "by: every row would be of one device", "--by device --min-devices 1"),
        (("digits", "--format", "csv", "--out", "{}/x", "--since", "1d", "--until", "2d"), 1,
         "since: expected a time before until", "for example: --since 30d"),
        (("digits", "--format", "csv", "--out", "{}"), 1, "export: expected a file at", "--out"),
        (("digits", "--format", "csv", "--out", "{}/no/x"), 1, "export: cannot write", "--out"),
        (("digits", "--format", "tensorboard", "--out", "{}"), 1,
         "export: expected a new or empty directory", "--out ANOTHER"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_ends_with_the_next_command(  # noqa: PLR0917
    run: Fleet, tmp_path: Path, arguments: tuple[str, ...], code: int, error: str, next_step: str
) -> None:
    (tmp_path / "there").write_text("mine")

    result = run("telemetry", "export", *(each.format(tmp_path) for each in arguments))

    first, last = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, "")
    assert first.startswith(f"error: {error}")
    assert last.startswith(f"next: {next_step}")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_without_its_package_a_format_says_what_is_missing(
    run: Fleet, told: MemoryController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    result = run("telemetry", "export", "digits", "--format", "parquet", "--out",
                 str(tmp_path / "x"))  # fmt: skip

    assert result.exit_code == 1
    assert result.stderr == (
        "error: export: expected the package pyarrow, got none\n"
        "next: pip install 'farflung[export]', or --format csv\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_cut_short_leaves_what_was_there(
    run: Fleet, told: MemoryController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digits.csv"
    path.write_text("of yesterday")

    def cut(asked: Asked) -> Any:
        head = head_of(asked, int(NOW), (), 0)
        known = [(sample_manifest(1), sample_manifest(1).digest)]
        yield from list(export(head, told.records, known))[:-1]

    monkeypatch.setattr(told, "telemetry_export", cut)
    result = run("telemetry", "export", "digits", "--format", "csv", "--out", str(path))

    assert result.exit_code == 1
    assert "got an export without its end" in result.stderr
    assert path.read_text() == "of yesterday"
    assert list(tmp_path.iterdir()) == [path]
