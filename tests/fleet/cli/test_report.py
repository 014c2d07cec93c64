"""`fleet model report` over the API: whole screens, and what it saves."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from fleet.cli import report_lines
from fleet.core.report_views import (
    AccuracyView,
    CalibrationView,
    ChangeView,
    ClassView,
    CohortView,
    DriftView,
    GoldenView,
    LabelsView,
    LatencyView,
    MistakeView,
    OutcomeView,
    RateView,
    ReleaseReportView,
    ReportView,
    ShadowView,
    ValuesView,
)
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import NOW, MemoryController
from tests.fleet.samples import sample_manifest
from wire.telemetry import ScoreWindow

LABELLED = AccuracyView(kind="labelled", accuracy=0.978, low=0.966, high=0.989, samples=12_420,
                        correct=12_147, devices=987, interval="device-clustered")  # fmt: skip
GOLDEN = AccuracyView(kind="golden", accuracy=0.982, low=0.9497, high=0.9922, samples=200,
                      correct=196, devices=1000, interval="wilson")  # fmt: skip
ESTIMATED = AccuracyView(kind="estimated", accuracy=0.9724, low=0.966, high=0.977,
                         samples=4_200_000, correct=4_084_080, devices=1000,
                         interval="estimate")  # fmt: skip
NONE = (
    AccuracyView(kind="labelled", note="no labels"),
    AccuracyView(kind="golden", note="not run"),
    AccuracyView(kind="estimated", note="no estimate"),
)
FEW = AccuracyView(kind="labelled", accuracy=0.9, samples=10, correct=9, devices=1,
                   note="too few: 1 of 250 devices")  # fmt: skip
RELEASE = ReleaseReportView(
    version=3,
    manifest="sha256:" + "ab" * 32,
    parent="digits@2",
    variants=("int8-onnx", "int8-tflite"),
    pushed_accuracy=0.987,
    devices=1000,
    requests=4_310_000,
    errors=112,
    drops=31,
    accuracy=(LABELLED, GOLDEN, ESTIMATED),
    labels=LabelsView(answers=4_310_000, labelled=12_420, coverage=0.0029, orphans=41,
                      confidence=0.921, confidence_labelled=0.944, gap=0.023, typical=False),
    latency=LatencyView(p50_ms=1.23, p95_ms=3.61, p99_ms=17.2, limit_ms=20, slo_misses=4123,
                        miss_share=0.00096),
    classes=(
        ClassView(number=0, name="zero", labels=522, answers=515, correct=507, precision=0.984,
                  recall=0.971, predicted=40_000),
        ClassView(number=6, name="six", labels=694, answers=629, correct=610, precision=0.97,
                  recall=0.879, predicted=38_000),
        ClassView(number=7, name="sev\x1ben", labels=0, answers=0, correct=0, predicted=3),
    ),
    mistakes=(MistakeView(true="six", answered="zero", count=61, share=0.088),),
    calibration=CalibrationView(error=0.0213, by_chance=0.004, overconfidence=0.018,
                                answers=12_420),
    drift=(
        DriftView(name="brightness", samples=400_000, reference=10_000, p=1e-8, q=1e-7, effect=0.27,
                  js=0.28, psi=0.31, drifted=True),
        DriftView(name="contrast", samples=400_000, reference=10_000, p=0.3, q=0.5, effect=0.0,
                  js=0.01, psi=0.004),
        DriftView(name="hue", samples=12, reference=10_000, note="too few"),
    ),
    golden=GoldenView(runs=5000, samples=1_000_000, flips=12, deviating=400),
    shadow=ShadowView(pairs=23_000, disagreements=410, labelled=1500, worse=21, better=48),
    values=ValuesView(answers=40, p50=0.2134, p95=12.5),
    outcomes=(OutcomeView(name="matched", count=900), OutcomeView(name="missed", count=100)),
    rates=(RateView(name="box recall", value=0.9, unit="share"),
           RateView(name="false accepts", value=1.5, unit="per hour")),
    cohorts=(
        CohortView(group="hamburg", devices=250, requests=1_000_000, errors=12, drops=0,
                   accuracy=(FEW, GOLDEN, ESTIMATED),
                   latency=LatencyView(p50_ms=1.2, p95_ms=3.4, p99_ms=8), drifted=1,
                   worst_feature="brightness", worst_effect=0.3),
        CohortView(group="", devices=1, requests=9, errors=0, drops=0, accuracy=NONE),
    ),
    change=ChangeView(parent="digits@2", accuracy=0.008, low=-0.004, high=0.02, p95_ms=-0.4,
                      error_share=0.0001),
)  # fmt: skip
OLD = ReleaseReportView(version=2, manifest="sha256:" + "cd" * 32, accuracy=NONE)
SINCE, UNTIL = 1_700_006_400, 1_702_598_400


def report(*releases: ReleaseReportView, **changes: object) -> ReportView:
    told = {"model": "digits", "version": 3, "by": "site", "since": SINCE, "until": UNTIL,
            "step_s": 86_400, "made_at": UNTIL, **changes}  # fmt: skip
    return ReportView.model_validate({**told, "releases": releases})


ONE = """\
digits@3  15 Nov 2023 00:00 to 15 Dec 2023 00:00 UTC
  answers     4,310,000 on 1,000 devices, int8-onnx, int8-tflite
  labelled    97.8% (96.6-98.9)  12,420 labels on 987 devices
  golden      98.2% (95.0-99.2)  the same everywhere, 200 samples on 1,000 devices
  estimated   ~97.2% (96.6-97.7)  by confidence, nobody checked: 4,200,000 answers on 1,000 devices
  pushed as   98.7%
  change      against digits@2: +0.8 points (-0.4 to +2.0) labelled, p95 -0.4 ms, errors +0.01 points
  labels      0.3% of answers have one; confidence 94.4% there and 92.1% in all, gap +2.3 points: \
no random sample; 41 labels came too late
  calibration expected error 2.1% on 12,420 labelled answers (0.4% by chance), 1.8 points overconfident
  latency     p50 1.2 ms, p95 3.6 ms, p99 17 ms; 4,123 over 20 ms (0.10%)
  errors      112 (0.00%), 31 dropped in the queue
  conformity  12 flipped and 400 deviating of 1,000,000 golden answers in 5,000 runs
  challengers 23,000 pairs, 410 disagreed; of 1,500 labelled 48 better, 21 worse
  off by      0.213 (half), 12.5 (95%) in 40 numbers
  box recall  90.0%
  false accepts 1.5 per hour
  counted     900 matched, 100 missed

CLASS   LABELS  RECALL  PRECISION  ANSWERS
six        694   87.9%      97.0%   38,000
zero       522   97.1%      98.4%   40,000
sev\ufffden       0       -          -        3

TRUE  TAKEN FOR  TIMES  OF ITS LABELS
six   zero          61           8.8%

FEATURE     SAMPLES  EFFECT     JS   PSI       Q  AGAINST THE BASELINE
brightness  400,000   0.270  0.280  0.31  <0.001  moved
contrast    400,000   0.000  0.010  0.00   0.500  as before
hue              12       -      -     -       -  too few

SITE     DEVICES  ANSWERS  LABELLED         GOLDEN             ESTIMATED              P95  ERRORS  DRIFT
hamburg      250    1.0 M  90.0% (too few)  98.2% (95.0-99.2)  ~97.2% (96.6-97.7)  3.4 ms   0.00%  1 moved: brightness
(none)         1        9  -                -                  -                        -   0.00%  -"""  # noqa: E501

SIDE_BY_SIDE = """\
digits  15 Nov 2023 00:00 to 15 Dec 2023 00:00 UTC, 2 releases

RELEASE   DEVICES  ANSWERS  LABELLED           GOLDEN             ESTIMATED              P50     P95    P99  ERRORS  DRIFT         AGAINST ITS PARENT
digits@3    1,000    4.3 M  97.8% (96.6-98.9)  98.2% (95.0-99.2)  ~97.2% (96.6-97.7)  1.2 ms  3.6 ms  17 ms   0.00%  1 of 3 moved  digits@2: +0.8 points (-0.4 to +2.0)
digits@2        0        0  -                  -                  -                        -       -      -       -  -             -"""  # noqa: E501


def test_a_release_is_told_on_one_screen() -> None:
    assert "\n".join(report_lines.report(report(RELEASE))) == ONE


def test_all_releases_stand_side_by_side() -> None:
    view = report(RELEASE, OLD, version=None, by=None)

    assert "\n".join(report_lines.report(view)) == SIDE_BY_SIDE


def test_what_is_too_much_for_a_screen_is_counted() -> None:
    classes = tuple(
        ClassView(number=n, name=f"class-{n}", labels=9, answers=9, correct=n, recall=n / 100,
                  precision=0.5) for n in range(50)
    )  # fmt: skip

    lines = report_lines.report(report(RELEASE.model_copy(update={"classes": classes})))

    first = lines.index("CLASS     LABELS  RECALL  PRECISION  ANSWERS")
    assert lines[first + 1].startswith("class-0 ") and lines[first + 20].startswith("class-19 ")
    assert lines[first + 21] == "and 30 more: --json shows all"


# Over the API


def window(device: str, **counts: object) -> ScoreWindow:
    end = int(NOW) - 86_400
    told = {"device": device, "boot": "b", "seq": 1, "model": "digits", "version": 1,
            "manifest": sample_manifest().digest, "variant": "int8-onnx", "start": end - 60,
            "end": end, **counts}  # fmt: skip
    return ScoreWindow.model_validate(told)


@pytest.fixture
def told(controller: MemoryController) -> MemoryController:
    confusion = {"0,0": 50, "0,1": 10, "1,1": 40}
    controller.class_names = ("cat", "dog")
    controller.records.windows += [
        window("cam-1", requests=200, labelled=100, correct=90, confusion=confusion,
               predicted={0: 120, 1: 80}, latency={"bins": {400: 200}}),
    ]  # fmt: skip
    controller.records.labels["cam-1"] = {"site": "berlin"}
    return controller


SCREEN = """\
digits@1  16 Dec 2026 00:00 to 16 Jan 2027 00:00 UTC
  answers     200 on 1 device, int8-onnx
  labelled    90.0% (82.6-94.5)  100 labels on 1 device
  golden      not run
  estimated   no estimate
  pushed as   98.7%
  labels      50.0% of answers have one
  latency     p50 3 ms, p95 3 ms, p99 3 ms
  errors      0 (0.00%), 0 dropped in the queue

CLASS  LABELS  RECALL  PRECISION  ANSWERS
cat        60   83.3%     100.0%      120
dog        40  100.0%      80.0%       80

TRUE  TAKEN FOR  TIMES  OF ITS LABELS
cat   dog           10          16.7%
"""


def test_a_report_comes_from_the_controller(run: Fleet, told: MemoryController) -> None:
    result = run("model", "report", "digits@1")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == SCREEN


def test_by_a_label_there_is_a_row_for_each_value(run: Fleet, told: MemoryController) -> None:
    asked = ("model", "report", "digits@1", "--by", "site")

    rows = run(*asked, "--min-devices", "1").stdout.splitlines()[-2:]

    assert rows[0].startswith("SITE    DEVICES  ANSWERS  LABELLED           GOLDEN  ESTIMATED")
    assert rows[1].startswith("berlin        1      200  90.0% (82.6-94.5)  -       -")


def test_a_group_of_few_devices_is_withheld_unless_it_is_asked_for(
    run: Fleet, told: MemoryController
) -> None:
    result = run("model", "report", "digits@1", "--by", "site")

    last = result.stdout.splitlines()[-1]
    assert last == "1 group withheld: together fewer than 5 devices"
    assert "berlin" not in result.stdout
    assert "berlin" not in run("model", "report", "digits@1", "--by", "site", "--json").stdout


def test_json_has_every_number(run: Fleet, told: MemoryController) -> None:
    value = json.loads(run("model", "report", "digits", "--json").stdout)

    assert [each["version"] for each in value["releases"]] == [2, 1]
    [labelled, golden, estimated] = value["releases"][1]["accuracy"]
    assert (labelled["accuracy"], labelled["samples"]) == (0.9, 100)
    assert (golden["accuracy"], estimated["note"]) == (None, "no estimate")
    assert ReportView.model_validate(value).releases[1].classes[0].name == "cat"


@pytest.mark.parametrize("suffix", ["svg", "html", "png"])
def test_a_page_is_saved(run: Fleet, told: MemoryController, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"report.{suffix}"

    result = run("model", "report", "digits@1", "--save", str(path))

    assert (result.stdout, result.stderr) == (SCREEN, f"saved: {path}\n")
    data = path.read_bytes()
    match suffix:
        case "svg":
            assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
        case "html":
            assert data.startswith(b"<!doctype html>") and b"<svg " in data
        case _:
            assert data.startswith(b"\x89PNG")


def test_a_png_without_its_package_says_what_is_missing(
    run: Fleet, told: MemoryController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)

    result = run("model", "report", "digits@1", "--save", str(tmp_path / "report.png"))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: report: expected the package resvg-py for a .png, got none\n"
        "next: pip install 'farflung[report]', or --save report.svg\n"
    )


def test_a_fleet_without_answers_has_a_report_that_says_so(run: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "report.svg"

    one = run("model", "report", "digits@1", "--save", str(path))
    every = run("model", "report", "digits")

    assert one.stdout.splitlines()[1:] == ["  no answers in this time"]
    assert every.stdout.splitlines()[3].split() == [
        "digits@2", "0", "0", "-", "-", "-", "-", "-", "-", "-", "-", "-",
    ]  # fmt: skip
    assert "no answers in this time" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "error", "next_step"),
    [
        (("digts",), 1, "no model 'digts'", "fleet model list"),
        (("digits@9",), 1, "digits@9: no such release", "fleet model list"),
        (("digits@x",), 2, "release: expected NAME@VERSION such as detector@7", "fleet model list"),
        (("digits", "--since", "soon"), 2, "Invalid value for '--since': expected 30d, 12h",
         "fleet model report --help"),
        (("digits", "--since", "2026-13-77"), 2, "Invalid value for '--since': expected 30d, 12h",
         "fleet model report --help"),
        (("digits", "--since", "1d", "--until", "2d"), 1, "since: expected a time before until",
         "for example: --since 30d"),
        (("digits", "--by", "sit"), 1, "by: expected device, variant or a label of devices",
         "fleet device list"),
        (("digits", "--min-devices", "0"), 2, "Invalid value for '--min-devices': 0 is not in",
         "fleet model report --help"),
        (("digits", "--save", "report.pdf"), 2, "Invalid value for '--save': expected a file",
         "fleet model report --help"),
        (("digits", "--save", "/nowhere/report.svg"), 1,
         "report: cannot write /nowhere/report.svg: No such file or directory", "--save FILE"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_ends_with_the_next_command(
    run: Fleet, arguments: tuple[str, ...], code: int, error: str, next_step: str
) -> None:
    result = run("model", "report", *arguments)

    first, last = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, "")
    assert first.startswith(f"error: {error}")
    assert last.startswith(f"next: {next_step}")
