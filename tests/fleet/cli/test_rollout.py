"""`fleet rollout` over the API: whole screens, and what a watch ends with."""

import json
import threading
from pathlib import Path

import pytest

from fleet.cli.session import byte_rate
from fleet.core.views import MannersRule, RolloutRequest, VerdictView
from fleet.shell.api import RunningApi, build_app, serve
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import MemoryController
from wire.twin import Phase, Probation


def test_start_passes_on_what_was_asked_for(run: Fleet, controller: MemoryController) -> None:
    result = run(
        *("rollout", "start", "digits@2", "--to", "site=berlin", "--waves", "40%, 100%"),
        *("--probation-pairs", "50", "--probation-margin", "2.5"),
        *("--probation-deadline", "2h", "--at-deadline", "commit"),
        *("--probation-cpu", "500"),
    )

    assert controller.requests == [
        RolloutRequest(
            release="digits@2",
            to="site=berlin",
            waves=("40%", "100%"),
            probation=Probation(
                labelled_pairs=50,
                margin_bp=250,
                deadline_s=7200,
                at_deadline="commit",
                cpu_percent=500,
            ),
        )
    ]
    assert result.exit_code == 0
    assert result.stdout == (
        "r-1\n"
        "digits@2 -> site=berlin            wave 1 of 2, running\n"
        "  wave 1   40%  2 waiting\n"
        "  wave 2  100%  1 waiting\n"
        "running: wave 1 opened\n"
    )
    assert result.stderr == "next: fleet rollout status r-1 --watch\n"


def test_start_says_how_devices_are_to_fetch(run: Fleet, controller: MemoryController) -> None:
    run(
        *("rollout", "start", "digits@2", "--bandwidth", "64KiB/s", "--spread", "10m"),
        *("--window", "01:00-05:00", "--window", "22:00-23:30"),
    )

    assert controller.requests == [
        RolloutRequest(
            release="digits@2",
            bytes_per_s=65_536,
            windows=("01:00-05:00", "22:00-23:30"),
            spread_s=600,
        )
    ]


def test_start_says_it_of_some_devices_as_well(run: Fleet, controller: MemoryController) -> None:
    run(
        *("rollout", "start", "digits@2", "--bandwidth", "1MiB/s"),
        *("--bandwidth", "link=lte:16KiB/s", "--window", "link=lte:01:00-05:00"),
        *("--window", "site=berlin and line=2:22:00-04:00"),
    )

    assert controller.requests == [
        RolloutRequest(
            release="digits@2",
            bytes_per_s=1 << 20,
            rules=(
                MannersRule(to="link=lte", bytes_per_s=16_384, windows=("01:00-05:00",)),
                MannersRule(to="site=berlin and line=2", windows=("22:00-04:00",)),
            ),
        )
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("65536", 65_536), ("500kB/s", 500_000), ("1MiB/s", 1 << 20), ("2MB", 2_000_000)],
)
def test_a_bandwidth_is_read_in_its_unit(text: str, expected: int) -> None:
    assert byte_rate(text) == expected


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--bandwidth", "fast", "expected bytes a second such as 64KiB/s"),
        ("--bandwidth", "0", "expected bytes a second such as 64KiB/s"),
        ("--window", "1-5", "expected a window of the day such as 01:00-05:00"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    run: Fleet, controller: MemoryController, option: str, value: str, expected: str
) -> None:
    result = run("rollout", "start", "digits@2", option, value)

    assert result.exit_code == 2
    assert expected in result.stderr
    assert controller.requests == []


def test_a_pause_and_a_resume_say_what_comes_next(run: Fleet, controller: MemoryController) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2", waves=("40%", "100%")))

    paused = run("rollout", "pause", "r-1", "--reason", "lunch")
    again = run("rollout", "pause", "r-1")
    resumed = run("rollout", "resume", "r-1")

    assert "wave 1 of 2, paused\n" in paused.stdout
    assert "paused: lunch\n" in paused.stdout
    assert paused.stderr == "next: fleet rollout resume r-1\n"
    assert (again.exit_code, again.stderr) == (
        1,
        "error: r-1 is paused already\nnext: fleet rollout status r-1\n",
    )
    assert resumed.stderr == "next: fleet rollout status r-1 --watch\n"


def test_start_without_options_asks_for_the_documented_defaults(
    run: Fleet, controller: MemoryController
) -> None:
    run("rollout", "start", "digits@2")
    run("rollout", "start", "digits@2", "--no-probation")

    plain, quick = controller.requests
    assert plain == RolloutRequest(release="digits@2")
    assert quick.probation == Probation(labelled_pairs=0)


def test_status_counts_waves_and_names_who_is_under_way(
    run: Fleet, controller: MemoryController
) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2", waves=("40%", "100%")))

    first, second = run("rollout", "status", "r-1"), run("rollout", "status")

    assert first.stdout == (
        "digits@2 -> all                    wave 1 of 2, running\n"
        "  wave 1   40%  2 fetching\n"
        "  wave 2  100%  1 waiting\n"
        "  fetching 42%, 84 B of 200 B\n"
        "running: wave 1 opened\n"
        "  cam-1  fetching 42%, 42 B of 100 B\n"
        "  cam-2  fetching 42%, 42 B of 100 B\n"
    )
    assert "  cam-1  probation 120 pairs\n" in second.stdout


def test_a_watch_logs_each_change_and_ends_done(run: Fleet) -> None:
    result = run("rollout", "start", "digits@2", "--waves", "40%,100%", "--watch")

    assert result.exit_code == 0
    assert result.stdout == (
        "digits@2 -> all                    completed\n"
        "  wave 1   40%  2 committed\n"
        "  wave 2  100%  1 committed\n"
        "completed: every device committed\n"
    )
    assert result.stderr == (
        "r-1 digits@2 wave 1 of 2, running: 3 waiting\n"
        "r-1 digits@2 wave 1 of 2, running: 2 fetching, 1 waiting\n"
        "r-1 digits@2 wave 1 of 2, running: 2 probation, 1 waiting\n"
        "r-1 digits@2 wave 2 of 2, running: 2 committed, 1 waiting\n"
        "r-1 digits@2 wave 2 of 2, running: 2 committed, 1 fetching\n"
        "r-1 digits@2 wave 2 of 2, running: 2 committed, 1 probation\n"
        "r-1 digits@2 completed: 3 committed\n"
    )


def test_a_watch_of_a_refused_release_fails_with_the_reason(
    run: Fleet, controller: MemoryController
) -> None:
    controller.bad_devices = frozenset({"cam-3"})

    result = run("rollout", "start", "digits@2", "--watch")

    assert result.exit_code == 1
    assert result.stdout == (
        "digits@2 -> all                    aborted\n"
        "  wave 1  100%  2 committed  1 rolled back\n"
        "aborted: 1 of 1 devices told refused it\n"
        "  cam-3  rolled back  worse_than_champion: 27 worse, 6 better, E = 41.2\n"
    )
    assert result.stderr.endswith("next: fleet rollout status r-1\n")


def test_a_watch_that_runs_out_of_time_says_still_going(
    run: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.cli.rollout._POLL_S", 0.6)

    result = run("rollout", "start", "digits@2", "--watch", "--timeout", "1s")

    assert result.exit_code == 3
    assert "running: wave 1 opened" in result.stdout


def test_a_watch_with_json_prints_one_document(run: Fleet) -> None:
    result = run("rollout", "start", "digits@2", "--watch", "--json")

    assert json.loads(result.stdout)["status"] == "completed"
    assert result.stderr == ""


def test_a_watch_outlives_a_restart_of_the_controller(
    run: Fleet, controller: MemoryController, api: RunningApi, tmp_path: Path
) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2"))
    port = int(api.url.rpartition(":")[2])
    back: list[RunningApi] = []

    def restart() -> None:
        api.stop()
        threading.Event().wait(1.0)
        back.append(serve(build_app(controller), "127.0.0.1", port))

    looked = controller.rollout

    def look_then_restart(id: str) -> object:
        controller.rollout = looked  # type: ignore[method-assign]
        threading.Thread(target=restart).start()
        threading.Event().wait(0.3)
        return looked(id)

    controller.rollout = look_then_restart  # type: ignore[method-assign,assignment]
    result = run("rollout", "status", "r-1", "--watch")

    back[0].stop()
    assert result.exit_code == 0
    assert "; trying again\n" in result.stderr
    assert result.stdout.endswith("completed: every device committed\n")


def test_abort_calls_it_off_once(run: Fleet, controller: MemoryController) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2"))

    first = run("rollout", "abort", "r-1", "--reason", "wrong labels")
    second = run("rollout", "abort", "r-1")

    assert first.exit_code == 0
    assert "aborted: wrong labels\n" in first.stdout
    assert second.exit_code == 1
    assert second.stderr == ("error: r-1: over already, aborted\nnext: fleet rollout status r-1\n")


def test_list_and_status_of_nothing(run: Fleet) -> None:
    assert run("rollout", "list").stdout == "no rollouts\n"
    assert run("rollout", "status").stderr == "next: fleet rollout start NAME@VERSION\n"
    assert run("rollout", "status", "r-9").stderr == (
        "error: r-9: no such rollout\nnext: fleet rollout list\n"
    )


def test_list_shows_the_latest_decision(run: Fleet) -> None:
    run("rollout", "start", "digits@2", "--watch")

    assert run("rollout", "list").stdout == (
        "ROLLOUT  RELEASE   TO   STATUS     STARTED  BECAUSE\n"
        "r-1      digits@2  all  completed  5 s ago  every device committed\n"
    )


def test_plan_names_waves_too_small_to_decide_and_starts_nothing(
    run: Fleet, controller: MemoryController
) -> None:
    result = run("rollout", "plan", "digits@2", "--waves", "2,100%")

    assert result.exit_code == 1
    assert result.stdout == (
        "digits@2 -> all: 2 devices, 5.0 KiB to fetch\n"
        "  wave 1      2  2 devices  5.0 KiB, 5.0 KiB sent once  1 will refuse"
        "  too small: 2 devices told by then are too few to decide\n"
        "  preflight will refuse on cam-2: wrong arch, only needs x86_64\n"
        "DEVICE  WAVE  STATE    VARIANT    FETCHES  HOW\n"
        "cam-1   1     online   int8-onnx  5.0 KiB  delta, 1.0 MiB whole\n"
        "cam-2   1     offline  -          -        refuses: wrong arch\n"
        "chance of a false abort at most 0.05, over all looks: accuracy 0.03, crashes 0.02\n"
        "would not be started: wave 1: 2 devices told by then are too few to decide\n"
    )
    assert result.stderr == "next: --waves 30,100%\n"
    assert controller.runs == {}


def test_a_plan_by_threshold_has_no_alpha(run: Fleet) -> None:
    result = run("rollout", "plan", "digits@2", "--judge-by", "threshold")

    assert result.exit_code == 0
    assert "judged by a share of refusals: no chance of a false abort can be told\n" in (
        result.stdout
    )
    assert result.stderr == "next: fleet rollout start digits@2 --to all --waves 100%\n"


def test_start_says_how_it_is_to_be_judged(run: Fleet, controller: MemoryController) -> None:
    run(
        *("rollout", "start", "digits@2", "--max-refused", "5", "--judge-by", "threshold"),
        "--approve-small-waves",
    )

    asked = controller.requests[-1]
    assert (asked.max_refused_percent, asked.judged_by, asked.approve_small_waves) == (
        5, "threshold", True,
    )  # fmt: skip


def test_status_shows_what_was_decided_and_how_the_gates_stand(
    run: Fleet, controller: MemoryController
) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2"))
    run("rollout", "approve", "r-1", "--reason", "seen")
    view = controller.runs["r-1"]
    gates = (
        VerdictView(gate="accuracy", ruling="hold", at=1.0, words="accuracy: E = 3", devices=9),
        VerdictView(gate="crashes", ruling="hold", at=1.0, words="none", figures={"count": 0.0}),
    )
    controller.runs["r-1"] = view.model_copy(update={"gates": gates})

    result = run("rollout", "status", "r-1")

    assert "  decided  approved: wave 1 of 1: approved seen\n" in result.stdout
    assert "  gate     accuracy: E = 3\n" in result.stdout
    assert "none" not in result.stdout


def test_a_list_is_chosen_by_model_and_standing(run: Fleet) -> None:
    run("rollout", "start", "digits@1")
    run("rollout", "abort", "r-1")
    run("rollout", "start", "digits@2")

    def ids(*options: str) -> list[str]:
        return [
            each["id"] for each in json.loads(run("rollout", "list", *options, "--json").stdout)
        ]

    assert ids() == ["r-2", "r-1"]
    assert ids("--active") == ["r-2"]
    assert ids("--status", "aborted") == ["r-1"]
    assert ids("--model", "other") == []
    assert ids("--model", "digits", "--limit", "1") == ["r-2"]


def test_a_watch_ends_with_the_verdict(run: Fleet) -> None:
    run("rollout", "start", "digits@2")

    good = run("rollout", "watch")
    run("rollout", "start", "digits@1")
    run("rollout", "abort", "r-2")
    bad = run("rollout", "watch", "r-2")

    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "completed" in good.stdout and "aborted" in bad.stdout


def test_without_rollouts_there_is_nothing_to_watch(run: Fleet) -> None:
    result = run("rollout", "watch")

    assert (result.exit_code, result.stdout) == (0, "no rollouts\n")


def test_a_completed_rollout_is_taken_back(run: Fleet, controller: MemoryController) -> None:
    run("rollout", "start", "digits@2")
    run("rollout", "watch")

    result = run("rollout", "rollback", "r-1", "--reason", "wrong at night")

    assert result.exit_code == 0
    assert "rolling back: wrong at night" in result.stdout
    assert "fleet model quarantine digits@2" in result.stderr


def test_a_promotion_opens_all_waves(run: Fleet, controller: MemoryController) -> None:
    run("rollout", "start", "digits@2", "--waves", "1,100%")

    result = run("rollout", "promote", "r-1", "--reason", "seen")

    assert result.exit_code == 0
    assert all(wave.open for wave in controller.runs["r-1"].waves)
    assert result.stderr == "next: fleet rollout watch r-1\n"


def test_those_that_did_not_commit_are_tried_once_more(
    run: Fleet, controller: MemoryController
) -> None:
    run("rollout", "start", "digits@2", "--probation-pairs", "50", "--spread", "10m")
    early = run("rollout", "retry", "r-1")
    run("rollout", "watch")
    none = run("rollout", "retry", "r-1")
    view = controller.runs["r-1"]
    first, *others = view.devices
    failed = first.model_copy(update={"phase": Phase.FAILED})
    controller.runs["r-1"] = view.model_copy(update={"devices": (failed, *others)})

    result = run("rollout", "retry", "r-1")

    assert (early.exit_code, none.exit_code, result.exit_code) == (1, 1, 0)
    assert "r-1 is running" in early.stderr
    assert "every device that was told committed" in none.stderr
    again = controller.requests[-1]
    assert (again.release, again.to) == ("digits@2", f"device in ({first.id})")
    assert again.probation == controller.requests[0].probation
