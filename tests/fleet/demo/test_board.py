"""What the demo shows of devices and releases: whole screens."""

from fleet.cli import views
from fleet.core.views import DeviceView
from fleet.demo.board import board, releases
from tests.fleet.samples import sample_device
from wire.twin import DeploymentReport, Phase


def at(device: DeviceView, **changes: object) -> DeviceView:
    """Return the device with its one deployment changed."""
    report = device.deployments[0].model_copy(update={"reason": None, **changes})
    return device.model_copy(update={"deployments": (report,)})


def new(id: str) -> DeviceView:
    return DeviceView(id=id, online=True, last_seen=0.0)


def test_each_device_is_a_line_of_at_most_eighty_columns() -> None:
    devices = [
        at(sample_device("cam-1"), phase=Phase.FETCHING, bytes_done=47, bytes_total=100),
        at(sample_device("cam-2"), phase=Phase.PROBATION, labelled_pairs=213),
        sample_device("cam-3"),
        sample_device("cam-4", online=False),
        new("cam-5"),
    ]

    lines = board(devices, pairs=300)

    assert lines == [
        "DEVICE  PHASE          RELEASE   REQUESTS     P95  ACCURACY         CPU  MEMORY",
        "cam-1   fetching 47%   digits@1      1234  3.4 ms  98.3% 97.0-99.1  13%  90 MiB",
        "cam-2   probation 71%  digits@1      1234  3.4 ms  98.3% 97.0-99.1  13%  90 MiB",
        "cam-3   rolled back    digits@1      1234  3.4 ms  98.3% 97.0-99.1  13%  90 MiB",
        "cam-4   offline        digits@1      1234  3.4 ms  98.3% 97.0-99.1    -       -",
        "cam-5   -              -                -       -  -                  -       -",
    ]
    assert max(map(len, lines)) <= 80


def test_a_probation_that_waits_for_its_verdict_is_not_beyond_its_end() -> None:
    device = at(sample_device(), phase=Phase.PROBATION, labelled_pairs=320)

    assert "probation 100%" in board([device], pairs=300)[1]


def test_a_phase_has_no_percent_where_nothing_is_counted() -> None:
    device = at(sample_device(), phase=Phase.TRIAL)

    assert board([device], pairs=300)[1].split()[:3] == ["cam-1", "trial", "digits@1"]


def test_releases_are_summed_over_devices_and_those_without_labels_left_out() -> None:
    one, two = sample_device("cam-1"), sample_device("cam-2")
    unlabelled = one.scores[0].model_copy(update={"version": 9, "labelled": 0, "correct": 0})
    two = two.model_copy(update={"scores": (*two.scores, unlabelled)})
    score = one.scores[0]

    lines = releases([one, two])

    right = f"{100 * score.correct / score.labelled:.1f}%"
    assert lines == views.table(
        ("RELEASE", ">REQUESTS", ">LABELLED", ">RIGHT"),
        [("digits@1", str(2 * score.requests), str(2 * score.labelled), right)],
    )


def test_a_report_of_every_phase_fits_its_column() -> None:
    base = sample_device().deployments[0]
    for phase in Phase:
        report: DeploymentReport = base.model_copy(
            update={"phase": phase, "labelled_pairs": 300, "bytes_done": 1, "bytes_total": 1}
        )
        device = sample_device().model_copy(update={"deployments": (report,)})

        assert len(board([device], pairs=300)[1]) <= 80
