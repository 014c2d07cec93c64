"""All that the controller must remember, in SQLite through SQLAlchemy Core.

Written by the controller's loop alone. Every method that writes is one transaction: when it
returns, the data survive a power cut (WAL, synchronous=FULL).
"""

import errno
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import TypeAdapter
from sqlalchemy.dialects.sqlite import insert

from fleet.core.books import Release
from fleet.core.census import Device
from fleet.core.errors import FleetError
from fleet.core.rollout import Assignment, Rollout
from fleet.core.views import CommandView, EventView
from wire.codec import decode, encode
from wire.manifest import Manifest
from wire.manners import Manners
from wire.twin import Probation

MAX_EVENTS = 10_000
MAX_COMMANDS = 10_000

_meta = sa.MetaData()
_releases = sa.Table(
    "releases",
    _meta,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("model", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("manifest", sa.LargeBinary),
    sa.Column("pushed_at", sa.Float),
)
_devices = sa.Table(
    "devices",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.LargeBinary),
)
_assignments = sa.Table(
    "assignments",
    _meta,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("manifest", sa.Text),
    sa.Column("version", sa.Integer),
    sa.Column("rollout", sa.Text),
    sa.Column("purpose", sa.Text),
    sa.Column("probation", sa.LargeBinary),
    sa.Column("manners", sa.LargeBinary),
)
_rollouts = sa.Table(
    "rollouts",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer),
    sa.Column("model", sa.Text),
    sa.Column("status", sa.Text),
    sa.Column("value", sa.LargeBinary),
)
_desired = sa.Table(
    "desired",
    _meta,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger),
    sa.Column("document", sa.LargeBinary),
)
_commands = sa.Table(
    "commands",
    _meta,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("device", sa.Text),
    sa.Column("verb", sa.Text),
    sa.Column("expires_at", sa.Float),
    sa.Column("outcome", sa.Text),
    sa.Column("detail", sa.Text),
)
_events = sa.Table(
    "events",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float),
    sa.Column("kind", sa.Text),
    sa.Column("subject", sa.Text),
    sa.Column("text", sa.Text),
)
_alert_values = sa.Table(
    "alert_values",
    _meta,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary),
)

_DEVICE = TypeAdapter(Device)
_ROLLOUT = TypeAdapter(Rollout)
_PROBATION = TypeAdapter(Probation)
_MANNERS = TypeAdapter(Manners)


@dataclass(frozen=True, slots=True)
class DesiredRow:
    """What was last published to a device: its revision and the sealed bytes."""

    device: str
    revision: int
    document: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """What one decision changes: stored as a whole, before any of it is published."""

    rollouts: Sequence[Rollout] = ()
    assignments: Sequence[tuple[str, str, Assignment | None]] = ()
    """(device, model, assignment or none)."""
    desired: Sequence[DesiredRow] = ()
    events: Sequence[EventView] = ()
    alert_values: Sequence[tuple[str, str, bytes | None]] = ()
    """As in `save_alert_values`."""


class Store:
    """The open database."""

    def __init__(self, path: Path) -> None:
        """Open or create the store at `path` and bring its tables up to date.

        Raises:
            FleetError: not a store, from a newer version, or the disk refuses.
        """
        self._engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self._engine, "connect", _configure)
        try:
            with self._engine.connect() as connection:
                _migrate(connection, path)
                connection.commit()
        except sa.exc.DatabaseError as error:
            self._engine.dispose()
            raise FleetError(
                f"store: cannot use {path}: {error.orig}",
                "check that it is this fleet's, on a disk with room; else restore a backup",
            ) from error

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """Write all or nothing.

        Raises:
            OSError: the disk is full (ENOSPC), or refuses otherwise (EIO).
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            full = getattr(error.orig, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, f"store: {error.orig}") from error

    # ---- what a controller reads when it starts

    def releases(self) -> list[Release]:
        """Return every release."""
        with self._engine.connect() as connection:
            return [
                Release(row.digest, decode(Manifest, row.manifest), row.pushed_at)
                for row in connection.execute(sa.select(_releases))
            ]

    def devices(self) -> list[Device]:
        """Return every device."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_devices.c.state))
            return [_DEVICE.validate_json(row.state) for row in rows]

    def assignments(self) -> list[tuple[str, Assignment]]:
        """Return (device, assignment) of every device and model."""
        with self._engine.connect() as connection:
            return [
                (
                    row.device,
                    Assignment(
                        row.model,
                        row.version,
                        row.manifest,
                        row.rollout,
                        row.purpose,
                        _PROBATION.validate_json(row.probation),
                        _MANNERS.validate_json(row.manners) if row.manners else Manners(),
                    ),
                )
                for row in connection.execute(sa.select(_assignments))
            ]

    def rollouts(self) -> list[Rollout]:
        """Return every rollout, the oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_rollouts.c.value).order_by(_rollouts.c.number))
            return [_ROLLOUT.validate_json(row.value) for row in rows]

    def desired(self) -> list[DesiredRow]:
        """Return the latest document of every device."""
        with self._engine.connect() as connection:
            return [DesiredRow(*row) for row in connection.execute(sa.select(_desired))]

    def events(
        self, limit: int, kind: str = "", about: str = "", since: float = 0.0, after: int = 0
    ) -> list[EventView]:
        """Return the latest events, the newest first; those `after` an id the oldest first."""
        order = _events.c.id.asc() if after else _events.c.id.desc()
        query = sa.select(_events).order_by(order).limit(limit)
        if kind:
            query = query.where(_events.c.kind == kind)
        if about:
            query = query.where(_events.c.subject == about)
        if since:
            query = query.where(_events.c.at >= since)
        if after:
            query = query.where(_events.c.id > after)
        with self._engine.connect() as connection:
            return [
                EventView(id=row.id, at=row.at, kind=row.kind, subject=row.subject, text=row.text)
                for row in connection.execute(query)
            ]

    def command(self, device: str, id: str) -> tuple[CommandView, float] | None:
        """Return a command and when it expires."""
        query = sa.select(_commands).where(_commands.c.id == id, _commands.c.device == device)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        view = CommandView(
            id=row.id, device=row.device, verb=row.verb, outcome=row.outcome, detail=row.detail
        )
        return view, row.expires_at

    def alert_values(self, kind: str) -> list[tuple[str, bytes]]:
        """Return (id, value) of all that alerts need remembered of this kind."""
        query = sa.select(_alert_values.c.id, _alert_values.c.value)
        with self._engine.connect() as connection:
            rows = connection.execute(query.where(_alert_values.c.kind == kind))
            return [(row.id, row.value) for row in rows]

    # ---- what it writes

    def add_release(self, release: Release, event: EventView) -> None:
        """Keep a release."""
        manifest = release.manifest
        with self._transaction() as connection:
            connection.execute(
                sa.insert(_releases).values(
                    digest=release.digest,
                    model=manifest.model,
                    version=manifest.version,
                    manifest=encode(manifest),
                    pushed_at=release.pushed_at,
                )
            )
            _add_events(connection, [event])

    def apply(self, change: Change) -> None:
        """Keep what one decision changed."""
        with self._transaction() as connection:
            for rollout in change.rollouts:
                _save_rollout(connection, rollout)
            _save_assignments(connection, change.assignments)
            rows: list[dict[str, object]] = [
                {"device": row.device, "revision": row.revision, "document": row.document}
                for row in change.desired
            ]
            _upsert_all(connection, _desired, ["device"], rows)
            _add_events(connection, change.events)
            _save_alert_values(connection, change.alert_values)

    def save_devices(self, devices: Iterable[Device]) -> None:
        """Keep what is known of these devices."""
        rows: list[dict[str, object]] = [
            {"id": device.id, "state": _DEVICE.dump_json(device)} for device in devices
        ]
        if not rows:
            return
        with self._transaction() as connection:
            _upsert_all(connection, _devices, ["id"], rows)

    def save_command(self, view: CommandView, expires_at: float) -> None:
        """Keep a command as it stands."""
        with self._transaction() as connection:
            _upsert(connection, _commands, ["id"], **view.model_dump(), expires_at=expires_at)

    def save_alert_values(
        self, changes: Iterable[tuple[str, str, bytes | None]], events: Sequence[EventView] = ()
    ) -> None:
        """Keep values by (kind, id), None: forget it; and with them events."""
        with self._transaction() as connection:
            _add_events(connection, events)
            _save_alert_values(connection, changes)

    def add_events(self, events: Sequence[EventView]) -> None:
        """Keep events."""
        with self._transaction() as connection:
            _add_events(connection, events)

    def drop_rollouts(self, ids: Sequence[str]) -> None:
        """Forget rollouts that are long over."""
        with self._transaction() as connection:
            connection.execute(sa.delete(_rollouts).where(_rollouts.c.id.in_(ids)))

    def prune(self) -> None:
        """Drop the oldest of what is too much."""
        with self._transaction() as connection:
            last = connection.scalar(sa.select(sa.func.max(_events.c.id))) or 0
            connection.execute(sa.delete(_events).where(_events.c.id <= last - MAX_EVENTS))
            kept = (
                sa.select(_commands.c.id)
                .order_by(_commands.c.expires_at.desc())
                .limit(MAX_COMMANDS)
            )
            connection.execute(sa.delete(_commands).where(_commands.c.id.not_in(kept)))


def _configure(connection: object, record: object) -> None:
    with closing(connection.cursor()) as cursor:  # type: ignore[attr-defined]
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=5000")
        cursor.execute("PRAGMA foreign_keys=ON")


def _migrate(connection: sa.Connection, path: Path) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    known = {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        raise FleetError(
            f"store: expected {path} to be of version {max(known)} or older, got {current}",
            "a newer farflung wrote it: upgrade this one",
        )
    alembic.upgrade(config, "head")


def _upsert(connection: sa.Connection, table: sa.Table, keys: list[str], **values: object) -> None:
    _upsert_all(connection, table, keys, [values])


def _upsert_all(
    connection: sa.Connection,
    table: sa.Table,
    keys: list[str],
    rows: Sequence[dict[str, object]],
) -> None:
    """Insert or replace rows that all have the same columns."""
    if not rows:
        return
    statement = insert(table)
    rest = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest), rows)


def _save_rollout(connection: sa.Connection, rollout: Rollout) -> None:
    _upsert(
        connection,
        _rollouts,
        ["id"],
        id=rollout.id,
        number=int(rollout.id.removeprefix("r-")),
        model=rollout.model,
        status=rollout.status.value,
        value=_ROLLOUT.dump_json(rollout),
    )


def _save_assignments(
    connection: sa.Connection, changes: Iterable[tuple[str, str, Assignment | None]]
) -> None:
    # Of one device and model the last change counts.
    last = {(device, model): assignment for device, model, assignment in changes}
    gone = [{"d": device, "m": model} for (device, model), each in last.items() if each is None]
    if gone:
        mine = sa.and_(
            _assignments.c.device == sa.bindparam("d"), _assignments.c.model == sa.bindparam("m")
        )
        connection.execute(sa.delete(_assignments).where(mine), gone)
    rows: list[dict[str, object]] = [
        {
            "device": device,
            "model": model,
            "manifest": each.manifest,
            "version": each.version,
            "rollout": each.rollout,
            "purpose": each.purpose,
            "probation": _PROBATION.dump_json(each.probation),
            "manners": _MANNERS.dump_json(each.manners),
        }
        for (device, model), each in last.items()
        if each is not None
    ]
    _upsert_all(connection, _assignments, ["device", "model"], rows)


def _save_alert_values(
    connection: sa.Connection, changes: Iterable[tuple[str, str, bytes | None]]
) -> None:
    for kind, id, value in changes:
        if value is None:
            connection.execute(
                sa.delete(_alert_values).where(
                    _alert_values.c.kind == kind, _alert_values.c.id == id
                )
            )
        else:
            keys = ["kind", "id"]
            _upsert(connection, _alert_values, keys, kind=kind, id=id, value=value)


def _add_events(connection: sa.Connection, events: Sequence[EventView]) -> None:
    if events:
        connection.execute(
            sa.insert(_events), [event.model_dump(exclude={"id"}) for event in events]
        )
