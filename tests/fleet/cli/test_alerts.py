"""`fleet alerts` and `fleet model quarantine`, over a real API and what stands behind it."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import TypeAdapter

from fleet.__main__ import fleet
from fleet.cli import views
from fleet.core.alerts import Facts, Reading, State, Subject, step
from fleet.core.books import Books, Release
from fleet.shell.alerting import read_file
from fleet.shell.api import RunningApi, build_app, serve
from fleet.shell.notices import Notices
from fleet.shell.store import Store
from fleet.shell.telemetry import Telemetry
from fleet.upkeep import Levers, Upkeep
from tests.fleet.memory import MemoryController
from tests.fleet.samples import sample_device, sample_manifest

Fleet = Callable[..., Result]

POLICY = """
[[rule]]
name = "hot"
kind = "temperature"
above = 85
severity = "critical"
for = 0
actions = ["hook:cool"]
dry_run = true
[[hook]]
name = "cool"
command = ["cool", "--now"]
"""


@pytest.fixture
def upkeep(tmp_path: Path) -> Iterator[Upkeep]:
    """Alerts of a controller that is never asked by a device: two fire, one of them acted upon."""
    (tmp_path / "alerts.toml").write_text(POLICY)
    store, telemetry = Store(tmp_path / "fleet.db"), Telemetry(tmp_path / "telemetry.db")
    books = Books()
    books.keep_release(Release(sample_manifest(1).digest, sample_manifest(1), time.time()), ())

    def refuse(*_: object) -> object:
        raise AssertionError("nothing is to be done")

    levers = Levers(
        ask=lambda run: run(),
        publish=lambda topic, body: True,
        start_rollout=refuse,  # type: ignore[arg-type]
        turn=refuse,  # type: ignore[arg-type]
        send_command=refuse,  # type: ignore[arg-type]
    )
    made = _made(books, store, telemetry, levers, tmp_path)
    yield made
    made.stop()
    telemetry.close()
    store.close()


def _made(books: Books, store: Store, telemetry: Telemetry, levers: Levers, home: Path) -> Upkeep:
    readings = (
        Reading("hot", Subject("cam-1", device="cam-1"), "bad", "cam-1: 91 °C, above 85", 60.0),
        Reading(
            "silent", Subject("cam-2", device="cam-2"), "bad", "cam-2 says nothing for 40 min", 60.0
        ),
    )
    facts = Facts(readings, frozenset({"hot", "silent"}))
    state, _ = step(State(), facts, read_file(home / "alerts.toml"), time.time() - 120)
    rows: list[tuple[str, str, bytes | None]] = []
    for kind, values in (("alert", state.alerts), ("act", state.acts)):
        rows += [(kind, id, TypeAdapter(type(v)).dump_json(v)) for id, v in values.items()]
    store.save_alert_values(rows)
    return Upkeep(books, store, telemetry, levers, Notices, home, None)


@pytest.fixture
def api(upkeep: Upkeep) -> Iterator[RunningApi]:
    controller = MemoryController(known_devices={"cam-1": sample_device("cam-1")})
    controller.upkeep = upkeep.port
    running = serve(build_app(controller), "127.0.0.1", 0)
    yield running
    running.stop()


@pytest.fixture
def run(api: RunningApi) -> Fleet:
    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(fleet, arguments, env={"FARFLUNG_CONTROLLER": api.url})
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


def test_alerts_are_listed_with_the_most_severe_first(run: Fleet) -> None:
    done = run("alerts")

    assert done.stdout.splitlines() == [
        "ALERT  SEVERITY  STATE   SUBJECT  SINCE      WHY",
        "a-1    critical  firing  cam-1    2 min ago  cam-1: 91 °C, above 85",
        "a-2    warning   firing  cam-2    2 min ago  cam-2 says nothing for 40 min",
    ]
    assert done.stderr == "next: fleet alerts show a-1\n"
    assert [each["id"] for each in json.loads(run("alerts", "list", "--json").stdout)] == [
        "a-1",
        "a-2",
    ]


def test_one_alert_is_shown_with_what_was_done(run: Fleet) -> None:
    assert run("alerts", "show", "a-1").stdout.splitlines() == [
        "a-1  hot  critical  firing  cam-1",
        "  why         cam-1: 91 °C, above 85",
        "  began       2 min ago",
        "  fired       2 min ago",
        "  action      x-3 hook:cool dry run 2 min ago: would be done",
    ]


def test_an_acknowledgement_and_its_note_are_shown(run: Fleet) -> None:
    done = run("alerts", "ack", "a-1", "--by", "ann", "--note", "fan ordered")

    assert "acked       0 s ago by ann" in done.stdout
    assert "note        fan ordered" in done.stdout
    assert "firing, acked" in run("alerts").stdout


def test_a_silence_is_made_listed_and_taken_back(run: Fleet) -> None:
    made = run("alerts", "silence", "cam-1", "--for", "2h", "--by", "ann", "--reason", "summer")
    listed = run("alerts").stdout
    held = run("alerts", "silences").stdout
    run("alerts", "unsilence", "s-4")

    assert made.stderr == "next: fleet alerts unsilence s-4\n"
    assert "firing, silenced" in listed
    assert held.splitlines()[1] == "s-4      any   cam-1    1 h      ann  summer"
    assert run("alerts", "silences").stdout == "no silences\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "a-9"], 1, "error: no alert 'a-9'; nearest is"),
        (["silence", "--for", "1h"], 2, "error: expected a SUBJECT, --rule, or --everything"),
        (["silence", "--rule", "hto", "--for", "1h"], 1, "no rule 'hto'; nearest is hot"),
        (["unsilence", "s-9"], 1, "error: no silence 's-9'"),
        (["lst"], 2, "did you mean 'list'?"),
    ],
)
def test_mistakes_are_answered_with_what_would_work(
    run: Fleet, arguments: list[str], code: int, said: str
) -> None:
    done = run("alerts", *arguments)

    assert done.exit_code == code
    assert said in done.stderr


def test_the_rules_that_hold_are_shown_with_where_they_come_from(run: Fleet) -> None:
    shown = run("alerts", "rules").stdout

    assert "hook cool: cool --now" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("hot ")]
    assert (row[1], row[-2:]) == ("critical", ["hook:cool", "file"])


def test_a_policy_is_checked_without_a_controller(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(POLICY)
    bad.write_text(POLICY.replace("above", "below"))

    checked = CliRunner().invoke(fleet, ["alerts", "check", str(good)])
    refused = CliRunner().invoke(fleet, ["alerts", "check", str(bad)])
    missing = CliRunner().invoke(fleet, ["alerts", "check", str(tmp_path / "nowhere.toml")])

    assert checked.exit_code == 0
    assert "temperature above 85 °C" in checked.stdout
    assert (refused.exit_code, missing.exit_code) == (1, 1)
    assert "rule 'hot': expected above = degrees Celsius" in refused.stderr
    assert "No such file" in missing.stderr


def test_a_release_goes_into_quarantine_and_out_again(run: Fleet) -> None:
    shut = run("model", "quarantine", "digits@1", "--reason", "sees ghosts")
    twice = run("model", "quarantine", "digits@1")
    free = run("model", "release", "digits@1")

    assert "quarantine  sees ghosts" in shut.stdout
    assert "digits@1 is in quarantine already: sees ghosts" in twice.stderr
    assert "quarantine" not in free.stdout
    assert run("model", "release", "digits@1").exit_code == 1


def test_what_fires_is_one_line_at_the_top_and_one_with_the_device() -> None:
    health = MemoryController().health()
    busy = health.model_copy(update={"alerts_firing": {"info": 1, "critical": 2}})
    device = sample_device("cam-1").model_copy(update={"alerts": ("a-1 hot (critical): 91 °C",)})

    assert views.top(busy, [], [])[1] == "alerts firing: 2 critical, 1 info; fleet alerts"
    assert views.top(health, [], [])[1] == ""
    shown = views.device_show(device, device.last_seen)
    assert [line.split() for line in shown if "hot" in line] == [
        ["alert", "a-1", "hot", "(critical):", "91", "°C"]
    ]
