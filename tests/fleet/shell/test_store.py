"""What the controller remembers."""

import errno
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from pydantic import TypeAdapter

from fleet.core.census import Census, Device
from fleet.core.errors import FleetError
from fleet.core.gate import Answer, Standing
from fleet.core.rollout import Assignment, Told
from fleet.core.views import CommandView, EventView
from fleet.shell import migrations
from fleet.shell.store import MAX_EVENTS, Change, DesiredRow, Release, Store
from tests.fleet.core.worlds import T0, report, rollout_of, status
from tests.fleet.samples import sample_manifest
from wire.codec import encode
from wire.manners import Manners
from wire.twin import Phase, Probation, Reason


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "fleet.db")


def event(text: str = "x") -> EventView:
    return EventView(at=T0, kind="release", subject="digits@1", text=text)


def reopened(store: Store) -> Store:
    path = store._engine.url.database
    store.close()
    return Store(Path(str(path)))


def test_all_that_was_written_is_there_after_a_restart(store: Store) -> None:
    manifest = sample_manifest(1)
    release = Release(manifest.digest, manifest, T0)
    assignment = Assignment(
        "digits", 1, manifest.digest, "r-1", "rollback", Probation(labelled_pairs=7)
    )
    answer = Answer(Standing.REFUSED, Phase.FAILED, Reason.CRASHED, "signal 11")
    told = Told(T0, answer=answer, recall="previous")
    rollout = replace(rollout_of(("a",), ("b",)), told={"a": told}, open=1)
    census = Census()
    census.hear_status(status("a"), T0, retained=False)
    census.hear_reported(report("a", 3), T0, retained=False)

    store.add_release(release, event())
    store.apply(
        Change([rollout], [("a", "digits", assignment)], [DesiredRow("a", 4, b"sealed")], [event()])
    )
    store.save_devices([census.get("a")])
    store = reopened(store)

    assert store.releases() == [release]
    assert store.rollouts() == [rollout]
    assert store.assignments() == [("a", assignment)]
    assert store.desired() == [DesiredRow("a", 4, b"sealed")]
    assert store.devices() == [census.get("a")]
    assert store.events(10) == [event().model_copy(update={"id": id}) for id in (2, 1)]


def test_an_order_comes_back_with_its_manners(store: Store) -> None:
    manifest = sample_manifest(1)
    store.add_release(Release(manifest.digest, manifest, T0), event())
    manners = Manners(bytes_per_s=9, windows=("22:00-04:00",), spread_s=3, held=True)
    order = Assignment("digits", 1, manifest.digest, "r-1", manners=manners)

    store.apply(Change(assignments=[("cam-1", "digits", order)]))

    assert reopened(store).assignments() == [("cam-1", order)]


def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path, manifest = tmp_path / "old.db", sample_manifest(1)
    device = Census().get("cam-1")
    order = Assignment("digits", 1, manifest.digest, "r-1")
    of_version(path, "0001")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO releases VALUES (?, ?, 1, ?, ?)",
            (manifest.digest, "digits", encode(manifest), T0),
        )
        state = TypeAdapter(Device).dump_json(device)
        connection.execute("INSERT INTO devices VALUES (?, ?, 17)", (device.id, state))
        connection.execute(
            "INSERT INTO assignments VALUES ('cam-1', 'digits', ?, 1, 'r-1', 'rollout', ?)",
            (manifest.digest, order.probation.model_dump_json()),
        )

    store = Store(path)

    assert store.assignments() == [("cam-1", order)]
    assert store.devices() == [device]
    store.close()


def of_version(path: Path, version: str) -> None:
    """Make a store as it was then."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.upgrade(config, version)
    engine.dispose()


def test_what_alerts_need_is_kept_by_kind_and_forgotten_on_demand(store: Store) -> None:
    store.save_alert_values([("alert", "a-1", b"x"), ("act", "x-2", b"y"), ("alert", "a-3", b"z")])

    store.save_alert_values([("alert", "a-1", None), ("alert", "a-3", b"Z")])

    assert reopened(store).alert_values("alert") == [("a-3", b"Z")]
    assert reopened(store).alert_values("act") == [("x-2", b"y")]


def test_an_assignment_can_be_taken_away(store: Store) -> None:
    manifest = sample_manifest(1)
    store.add_release(Release(manifest.digest, manifest, T0), event())
    assignment = Assignment("digits", 1, manifest.digest, "r-1")
    store.apply(Change(assignments=[("a", "digits", assignment)]))

    store.apply(Change(assignments=[("a", "digits", None)]))

    assert store.assignments() == []


def test_a_decision_is_stored_whole_or_not_at_all(store: Store) -> None:
    stranger = Assignment("digits", 1, "sha256:" + "0" * 64, "r-1")

    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.apply(Change([rollout_of(("a",))], [("a", "digits", stranger)]))

    assert store.rollouts() == []


def test_commands_keep_their_answer(store: Store) -> None:
    view = CommandView(id="c-1", device="a", verb="ping", outcome="waiting")
    store.save_command(view, T0 + 60)
    store.save_command(view.model_copy(update={"outcome": "done"}), T0 + 60)

    assert store.command("a", "c-1") == (view.model_copy(update={"outcome": "done"}), T0 + 60)
    assert store.command("b", "c-1") is None


def test_too_many_events_go(store: Store) -> None:
    store.add_events([event(str(n)) for n in range(MAX_EVENTS + 5)])

    store.prune()

    assert len(store.events(2 * MAX_EVENTS)) == MAX_EVENTS


def test_a_full_disk_is_named_and_what_was_there_stays(store: Store) -> None:
    store.add_events([event("before")])
    sa.event.listen(
        store._engine,
        "connect",
        lambda connection, _: connection.execute("PRAGMA max_page_count = 64"),
    )
    store._engine.dispose()

    with pytest.raises(OSError, match="database or disk is full") as refused:
        store.add_events([event("x" * 1000) for _ in range(1000)])

    assert refused.value.errno == errno.ENOSPC
    assert [each.text for each in store.events(10)] == ["before"]


def test_a_store_of_a_newer_version_is_refused_with_a_clear_line(store: Store) -> None:
    path = Path(str(store._engine.url.database))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(FleetError, match=r"of version 0004 or older, got 9999") as refused:
        Store(path)

    assert refused.value.next_step == "a newer farflung wrote it: upgrade this one"


def test_a_file_that_is_no_store_is_refused_with_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"hello" * 1000)

    with pytest.raises(FleetError, match=r"cannot use .*fleet.db: file is not a database"):
        Store(tmp_path / "fleet.db")


def test_the_migrations_make_the_tables_the_code_expects(store: Store) -> None:
    from fleet.shell.store import _meta

    path = str(store._engine.url.database)
    with sqlite3.connect(path) as connection:
        for table in _meta.tables.values():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")]
            assert columns == [column.name for column in table.columns], table.name
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
