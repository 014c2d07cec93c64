"""What devices told of themselves, in a database of its own: as it came, by the hour, by the day.

    messages, items --merge--> hours, days, totals (of a device), groups (of a label's value)

The controller's loop alone writes. Every commit is one transaction: when it returns, the data
survive a power cut. What came is merged later and in bulk; how far that went (the watermark)
moves in the same transaction, so that every window is counted exactly once. What lies above the
watermark is added to every answer. Reading is safe from any thread: each answer is of one moment.
"""

import errno
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from fleet.core.errors import FleetError
from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.core.scores import Totals
from fleet.core.tally import MOST, MOST_OF_DEVICE, NUMBERS, Tally, held
from wire.packing import unpack
from wire.telemetry import DeviceEvent, Health, Item, ScoreWindow

HOUR_S = 3600
DAY_S = 86_400
SCHEMA = 1

MERGE_ITEMS = 2000
"""Items merged in one transaction; more than that never wait long."""

MERGE_S = 60.0
MAX_WINDOW_S = 40 * DAY_S
"""No window is longer, merged ones among them."""

MAX_EVENTS = 200_000
MAX_VALUES = 1000
"""Values of one label that are told apart; devices with others are summed as OTHER."""

OTHER = "(other)"
FLEET = ""
"""In place of a device, of the sums of all."""

MAX_LABELS = 64
"""Labels by which is summed; devices may have others."""

MAX_MESSAGES = 5_000_000
"""Of those that came, as they came; of more the oldest go before their time."""

PRUNE_ROWS = 20_000
_CHUNK = 400
_TOGETHER = 2000

WINDOW, HEALTH, EVENT, IGNORED = range(4)
"""Kinds of items. Ignored ones have no body: their numbers are known, and that is all."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is kept."""

    raw_s: float = 7 * DAY_S
    """As long as a repeat is known as one."""
    hours_s: float = 30 * DAY_S
    days_s: float = 730 * DAY_S
    events_s: float = 90 * DAY_S


@dataclass(frozen=True, slots=True)
class Entry:
    """One item to commit."""

    item: Item
    at: int
    """Where in time it is counted, unix seconds."""
    known: bool = True
    """Whether its release is; else only its number is kept."""


@dataclass(frozen=True, slots=True)
class Message:
    """What came in one piece from one device, as it came."""

    device: str
    received_at: float
    body: bytes
    entries: Sequence[Entry]
    complete: bool = False
    """All up to the last of them may be acknowledged."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event of a device, and when it came."""

    event: DeviceEvent
    at: int
    """When it happened: by the device's clock if that is likely, else when it came."""
    received_at: float


_meta = sa.MetaData()
_state = sa.Table(
    "state",
    _meta,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_messages = sa.Table(
    "messages",
    _meta,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("complete", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
_items = sa.Table(
    "items",
    _meta,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("boot", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("first", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("message", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("device", "boot", "seq"),
)
_events = sa.Table(
    "events",
    _meta,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
    sa.Column("received_at", sa.Float, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
_releases = sa.Table(
    "releases",
    _meta,
    sa.Column("manifest", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
)
_labels = sa.Table(
    "labels",
    _meta,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("labels", sa.LargeBinary, nullable=False),
)
_ledgers = sa.Table(
    "ledgers",
    _meta,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)


def _sums(name: str, *keys: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        name,
        _meta,
        *keys,
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        *(sa.Column(number, sa.BigInteger, nullable=False) for number in NUMBERS),
        sa.Column("rest", sa.LargeBinary, nullable=False),
    )


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, primary_key=True)


def _start() -> sa.Column[Any]:
    return sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False)


_totals = _sums("totals", _text("device"), _text("manifest"), _text("variant"))
_of_devices = {
    step: _sums(name, _text("manifest"), _start(), _text("device"), _text("variant"))
    for step, name in ((HOUR_S, "hours"), (DAY_S, "days"))
}
_of_groups = {
    step: _sums(name, _text("manifest"), _text("label"), _start(), _text("value"), _text("variant"))
    for step, name in ((HOUR_S, "group_hours"), (DAY_S, "group_days"))
}

_Key = tuple[str | int, ...]
_Tallies = dict[_Key, Tally]


class Telemetry:
    """The open database."""

    def __init__(
        self,
        path: Path,
        labels: Callable[[str], Mapping[str, str]] = lambda device: {},
        retention: Retention | None = None,
    ) -> None:
        """Open or create it at `path`; `labels` says what a device's are.

        Raises:
            FleetError: not such a database, from a newer version, or the disk refuses.
        """
        self._of = labels
        self._retention = retention or Retention()
        self._engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self._engine, "connect", _configure)
        self._recent: dict[int, ScoreWindow] = {}
        """Windows above the watermark that came since we started, by the item's id."""
        self._known_labels: dict[str, Mapping[str, str]] = {}
        self._values: dict[str, set[str]] = {}
        self._known_releases: set[str] = set()
        self._merged_at = 0.0
        try:
            with self._engine.begin() as connection:
                self._begin(connection, path)
        except sa.exc.DatabaseError as error:
            self._engine.dispose()
            raise FleetError(
                f"telemetry: cannot use {path}: {error.orig}",
                "check that it is this fleet's, on a disk with room; else restore a backup, or "
                "move it away to begin anew",
            ) from error

    def _begin(self, connection: sa.Connection, path: Path) -> None:
        _meta.create_all(connection)
        state = _read_state(connection)
        schema = state.setdefault("schema", SCHEMA)
        if schema > SCHEMA:
            raise FleetError(
                f"telemetry: expected {path} to be of version {SCHEMA} or older, got {schema}",
                "a newer farflung wrote it: upgrade this one",
            )
        state.setdefault("merged", 0)
        state.setdefault("hours_from", 0)
        _write_state(connection, state)
        self._merged = state["merged"]
        top = connection.scalar(sa.select(sa.func.max(_items.c.id))) or 0
        self._next_item = max(top, self._merged) + 1
        top = connection.scalar(sa.select(sa.func.max(_messages.c.id))) or 0
        self._next_message = max(top, state.get("messages", 0)) + 1
        for row in connection.execute(sa.select(_labels)):
            self._known_labels[row.device] = orjson.loads(row.labels)
        for device in self._known_labels:
            self._labels_of(device)
        self._known_releases.update(connection.scalars(sa.select(_releases.c.manifest)))

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
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
        except sa.exc.OperationalError as error:
            full = getattr(error.orig, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, f"telemetry: {error.orig}") from error

    @contextmanager
    def _moment(self) -> Iterator[sa.Connection]:
        """Read from one snapshot."""
        with self._engine.begin() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    # ---- what comes in

    def commit(
        self, messages: Iterable[Message], ledgers: Mapping[str, bytes] | None = None
    ) -> None:
        """Keep what came, and with it how far each device's telemetry has come in.

        An item whose (device, boot, seq) is there already changes nothing.
        """
        kept: list[dict[str, Any]] = []
        items: list[dict[str, Any]] = []
        events: list[dict[str, Any]] = []
        labels: dict[str, Mapping[str, str]] = {}
        recent: dict[int, ScoreWindow] = {}
        releases: dict[str, dict[str, Any]] = {}
        next_item, next_message = self._next_item, self._next_message
        for message in messages:
            for entry in message.entries:
                item = entry.item
                kind = _kind(entry)
                items.append(
                    {
                        "id": next_item,
                        "device": item.device,
                        "boot": item.boot,
                        "seq": item.seq,
                        "first": item.seq
                        if isinstance(item, DeviceEvent)
                        else item.first or item.seq,
                        "kind": kind,
                        "at": entry.at,
                        "message": next_message,
                    }
                )
                if isinstance(item, ScoreWindow) and kind == WINDOW:
                    recent[next_item] = item
                    if item.manifest not in self._known_releases:
                        releases[item.manifest] = {
                            "manifest": item.manifest,
                            "model": item.model,
                            "version": item.version,
                        }
                elif isinstance(item, DeviceEvent):
                    events.append(_event_row(next_item, item, entry.at, message.received_at))
                next_item += 1
            wanted = any(_kind(entry) != IGNORED for entry in message.entries)
            kept.append(
                {
                    "id": next_message,
                    "received_at": message.received_at,
                    "complete": int(message.complete),
                    "body": message.body if wanted else b"",
                }
            )
            next_message += 1
            if (now := self._of(message.device)) != self._known_labels.get(message.device):
                labels[message.device] = dict(now)
        if not kept:
            return
        with self._transaction() as connection:
            connection.execute(sa.insert(_messages), kept)
            if items:
                connection.execute(sa.insert(_items).prefix_with("OR IGNORE"), items)
            if events:
                _add_events(connection, events)
            if ledgers:
                states = [{"device": id, "state": state} for id, state in ledgers.items()]
                _replace(connection, _ledgers, states)
            if labels:
                rows = [{"device": id, "labels": orjson.dumps(of)} for id, of in labels.items()]
                _replace(connection, _labels, rows)
            if releases:
                _replace(connection, _releases, list(releases.values()))
        self._next_item, self._next_message = next_item, next_message
        self._known_labels.update(labels)
        self._known_releases.update(releases)
        self._recent.update(recent)

    def pending(self) -> int:
        """Return how many items may lie above the watermark."""
        return self._next_item - 1 - self._merged

    def merge_due(self, now: float) -> bool:
        """Return whether it is time to merge."""
        pending = self.pending()
        return pending >= MERGE_ITEMS or bool(pending and now - self._merged_at >= MERGE_S)

    def merge_at(self) -> float:
        """Return when what waits is to be merged at the latest."""
        return self._merged_at + MERGE_S

    def merge(self, now: float) -> int:
        """Add the oldest items above the watermark to the sums; return how many are left."""
        with self._transaction() as connection:
            rows = _raw(connection, self._merged, MERGE_ITEMS)
            for table, tallies in self._spread(self._hours(rows)).items():
                _add_up(connection, table, tallies)
            merged = rows[-1].id if rows else self._next_item - 1
            state = {"merged": merged, "messages": self._next_message - 1}
            _write_state(connection, state)
        for id in [id for id in self._recent if id <= merged]:
            del self._recent[id]
        self._merged = merged
        self._merged_at = now
        return self.pending()

    def _hours(self, rows: Iterable[Any]) -> _Tallies:
        """Add windows up by manifest, hour, device and variant."""
        hours = _Sums()
        for row, window in self._windows(rows):
            start = row.at - row.at % HOUR_S
            hours.add((window.manifest, start, row.device, window.variant), _sum_of(row.at, window))
        return hours

    def _spread(self, hours: _Tallies) -> dict[sa.Table, _Tallies]:
        """Add hours of devices up wherever they belong."""
        totals, days, alike, of_hours, of_days = (_Sums() for _ in range(5))
        for (manifest, start, device, variant), tally in hours.items():
            totals.add((device, manifest, variant), tally)
            day = int(start) - int(start) % DAY_S
            days.add((manifest, day, device, variant), tally)
            # Devices with the same labels are added up once, and not once for every label.
            groups = (("", ""), *self._labels_of(str(device)).items())
            alike.add((manifest, start, groups, variant), tally)
        for (manifest, start, groups, variant), tally in alike.items():
            for label, group in groups:
                of_hours.add((manifest, label, start, group, variant), tally)
        for (manifest, of, start, value, variant), tally in of_hours.items():
            day = int(start) - int(start) % DAY_S
            of_days.add((manifest, of, day, value, variant), tally)
            if of == "":
                totals.add((FLEET, manifest, variant), tally)
        return {
            _of_devices[HOUR_S]: hours,
            _of_devices[DAY_S]: days,
            _of_groups[HOUR_S]: of_hours,
            _of_groups[DAY_S]: of_days,
            _totals: totals,
        }

    def _labels_of(self, device: str) -> dict[str, str]:
        """Return the labels under which a device is summed, and as which value of each."""
        found = {}
        for key, value in sorted(self._known_labels.get(device, {}).items()):
            known = self._values.get(key)
            if known is None and len(self._values) < MAX_LABELS:
                known = self._values[key] = set()
            if known is not None:
                if len(known) < MAX_VALUES:
                    known.add(value)
                found[key] = value if value in known else OTHER
        return found

    def _windows(self, rows: Iterable[Any]) -> Iterator[tuple[Any, ScoreWindow]]:
        """Yield the raw windows among rows, each with its row."""
        for row in rows:
            if row.kind == WINDOW:
                window = self._recent.get(row.id)
                for item in () if window is not None else items_of(row.body):
                    if item.seq == row.seq and isinstance(item, ScoreWindow):
                        window = item
                if window is not None:
                    yield row, window

    # ---- what is asked, from any thread

    def slices(self, query: Query, step: Step | None = None) -> list[Slice]:
        """Return what each variant of each release did, by group and step, the earliest first."""
        if query.by not in (None, "variant"):
            return self._slices_by_label(query, step)
        return [
            Slice(variant if query.by else "", *_span(tally, start, step), totals)
            for (_, variant, _, start), (tally, totals) in self._sums(query, step, "").items()
        ]

    def _slices_by_label(self, query: Query, step: Step | None) -> list[Slice]:
        found = []
        assert query.by is not None
        with self._moment() as connection:
            labelled = self._sums(query, step, query.by, connection)
            whole = self._sums(query, step, "", connection)
        for (manifest, variant, value, start), (tally, totals) in labelled.items():
            found.append(Slice(value, *_span(tally, start, step), totals))
            if (rest := whole.get((manifest, variant, "", start))) is not None:
                rest[0].less(tally)
        for (_, variant, _, start), (tally, totals) in whole.items():
            if tally.windows > 0:
                named = (totals.device, totals.model, totals.version, totals.manifest, variant)
                found.append(Slice("", *_span(tally, start, step), tally.totals(*named)))
        return sorted(found, key=lambda each: (each.start, each.totals.version, each.group))

    def _sums(
        self,
        query: Query,
        step: Step | None,
        label: str,
        connection: sa.Connection | None = None,
    ) -> dict[tuple[str, str, str, int], tuple[Tally, Totals]]:
        """Return sums by (manifest, variant, value, start)."""
        if connection is None:
            with self._moment() as moment:
                return self._sums(query, step, label, moment)
        releases = _releases_of(connection, query)
        tallies: dict[tuple[str, str, str, int], Tally] = {}
        width = {"hour": HOUR_S, "day": DAY_S, None: 0}[step]
        for table, since, until in _segments(_of_groups, query, step, _hours_from(connection)):
            rows = connection.execute(
                sa.select(table).where(
                    table.c.manifest.in_(releases),
                    table.c.label == label,
                    table.c.start >= since,
                    table.c.start < until,
                )
            )
            for row in rows:
                start = row.start - row.start % width if width else 0
                key = (row.manifest, row.variant, row.value, start)
                _merge_into(tallies, key, _tally_of(row))
        for row, window in self._pending(connection, query, releases):
            labels = {"": "", **self._labels_of(row.device)}
            if label not in labels:
                continue
            value = labels[label]
            start = row.at - row.at % width if width else 0
            key = (window.manifest, window.variant, value, start)
            tallies.setdefault(key, Tally()).merge(_sum_of(row.at, window))
        found = {}
        for key in sorted(tallies, key=lambda key: (key[3], *releases[key[0]], key[2], key[1])):
            model, version = releases[key[0]]
            totals = tallies[key].totals("", model, version, key[0], key[1])
            found[key] = (tallies[key], totals)
        return found

    def devices(self, query: Query) -> list[DeviceCounts]:
        """Return what each device did with each variant of each release, by device."""
        with self._moment() as connection:
            releases = _releases_of(connection, query)
            sums: dict[tuple[str, str, str], list[int]] = {}
            for table, since, until in _segments(_of_devices, query, None, _hours_from(connection)):
                rows = connection.execute(
                    sa.select(
                        table.c.device,
                        table.c.manifest,
                        table.c.variant,
                        *(sa.func.sum(table.c[name]).label(name) for name in _COUNTED),
                    )
                    .where(
                        table.c.manifest.in_(releases),
                        table.c.start >= since,
                        table.c.start < until,
                    )
                    .group_by(table.c.device, table.c.manifest, table.c.variant)
                )
                for device, manifest, variant, *numbers in rows:
                    _add_numbers(sums, (device, manifest, variant), numbers)
            for row, window in self._pending(connection, query, releases):
                key = (row.device, window.manifest, window.variant)
                _add_numbers(sums, key, _numbers_of(window))
        found = []
        for (device, manifest, variant), numbers in sorted(sums.items()):
            group = variant if query.by == "variant" else ""
            if query.by not in (None, "variant"):
                group = self._labels_of(device).get(query.by, "")
            version = releases[manifest][1]
            found.append(DeviceCounts(device, version, manifest, variant, group, *numbers))
        return found

    def hours_from(self) -> int:
        """Return the beginning of the first day of which hours are kept, unix seconds."""
        with self._moment() as connection:
            return _hours_from(connection)

    def devices_by_step(self, query: Query, step: Step) -> Iterator[tuple[int, list[DeviceCounts]]]:
        """Yield the start of a step and what each device did in it, release by release.

        Each release and step comes once. It is read as it is asked for, from one moment.
        """
        width = HOUR_S if step == "hour" else DAY_S
        groups: dict[str, str] = {}
        with self._moment() as connection:
            releases = _releases_of(connection, query)
            waiting: dict[tuple[str, int], dict[tuple[str, str], list[int]]] = {}
            for row, window in self._pending(connection, query, releases):
                numbers = _numbers_of(window)
                sums = waiting.setdefault((window.manifest, row.at - row.at % width), {})
                _add_numbers(sums, (row.device, window.variant), numbers)
            for table, since, until in _segments(_of_devices, query, step, _hours_from(connection)):
                rows = _device_rows(connection, table, list(releases), since, until)
                for (manifest, start), some in groupby(rows, lambda r: (r[0], r[1] - r[1] % width)):
                    sums = waiting.pop((manifest, start), {})
                    for row in some:
                        _add_numbers(sums, (row[2], row[3]), row[4:])
                    yield start, self._counts(query.by, manifest, releases, sums, groups)
            for (manifest, start), sums in waiting.items():
                yield start, self._counts(query.by, manifest, releases, sums, groups)

    def slices_of_devices(self, query: Query, step: Step) -> list[Slice]:
        """Return slices whose devices are those of `devices_by_step`: by the labels of today.

        Every device's sums are read, so it takes a while; with `by` "device" each is a group.
        """
        width = HOUR_S if step == "hour" else DAY_S
        sums: dict[tuple[int, str, str, str], Tally] = {}
        groups: dict[str, str] = {}

        def place(manifest: str, at: int, device: str, variant: str) -> tuple[int, str, str, str]:
            group = variant if query.by == "variant" else device if query.by == "device" else ""
            if query.by not in (None, "variant", "device"):
                if device not in groups:
                    groups[device] = self._labels_of(device).get(query.by, "")
                group = groups[device]
            return at - at % width, manifest, group, variant

        with self._moment() as connection:
            releases = _releases_of(connection, query)
            for table, since, until in _segments(_of_devices, query, step, _hours_from(connection)):
                within = (table.c.start >= since, table.c.start < until)
                rows = sa.select(table).where(table.c.manifest.in_(list(releases)), *within)
                for some in connection.execute(rows).partitions(_CHUNK):
                    for row in some:
                        key = place(row.manifest, row.start, row.device, row.variant)
                        _merge_into(sums, key, _tally_of(row))
            for row, window in self._pending(connection, query, releases):
                key = place(window.manifest, row.at, row.device, window.variant)
                sums.setdefault(key, Tally()).merge(_sum_of(row.at, window))
        return [
            Slice(
                group,
                start,
                start + width,
                tally.totals("", *releases[manifest], manifest, variant),
            )
            for (start, manifest, group, variant), tally in sorted(sums.items(), key=lambda e: e[0])
        ]

    def _counts(
        self,
        by: str | None,
        manifest: str,
        releases: Mapping[str, tuple[str, int]],
        sums: Mapping[tuple[str, str], Sequence[int]],
        groups: dict[str, str],
    ) -> list[DeviceCounts]:
        """Return the counts of a release's devices and variants; `groups` remembers theirs."""
        version = releases[manifest][1]
        found = []
        for (device, variant), numbers in sums.items():
            group = variant if by == "variant" else ""
            if by not in (None, "variant"):
                if device not in groups:
                    groups[device] = self._labels_of(device).get(by, "")
                group = groups[device]
            found.append(DeviceCounts(device, version, manifest, variant, group, *numbers))
        return found

    def totals(self, device: str | None = None) -> list[Totals]:
        """Return all that every variant of every release ever did, by device (on one device)."""
        if device is not None:
            return self._ever(_totals.c.device == device, device)
        return self._ever(_totals.c.device != FLEET, None)

    def fleet_totals(self) -> list[Totals]:
        """Return all that every variant of every release ever did on all devices together."""
        return self._ever(_totals.c.device == FLEET, None, whole=True)

    def _ever(
        self, rows: sa.ColumnElement[bool], device: str | None, *, whole: bool = False
    ) -> list[Totals]:
        with self._moment() as connection:
            releases = _releases_of(connection, None)
            tallies: dict[_Key, Tally] = {
                (row.device, row.manifest, row.variant): _tally_of(row)
                for row in connection.execute(sa.select(_totals).where(rows))
            }
            for row, window in self._windows(_raw(connection, _merged(connection), None, device)):
                key = (FLEET if whole else row.device, window.manifest, window.variant)
                tallies.setdefault(key, Tally()).merge(_sum_of(row.at, window))
        return [
            tally.totals(str(key[0]), *releases[str(key[1])], str(key[1]), str(key[2]))
            for key, tally in sorted(tallies.items())
        ]

    def _pending(
        self, connection: sa.Connection, query: Query, releases: Mapping[str, object]
    ) -> Iterator[tuple[Any, ScoreWindow]]:
        """Yield the windows meant that are above the watermark."""
        since = query.since - query.since % HOUR_S
        until = -(-query.until // HOUR_S) * HOUR_S
        rows = _raw(connection, _merged(connection), None)
        for row, window in self._windows(row for row in rows if since <= row.at < until):
            if window.manifest in releases:
                yield row, window

    def health(self, device: str, since: int = 0, until: int = 2**53) -> list[Health]:
        """Return the health reports of a device that are still kept, the earliest first."""
        found = self._kept(device, HEALTH, since, until)
        return [item for item in found if isinstance(item, Health)]

    def windows(self, device: str, since: int = 0, until: int = 2**53) -> list[ScoreWindow]:
        """Return the windows of a device that are still kept as they came, the earliest first."""
        found = self._kept(device, WINDOW, since, until)
        return [item for item in found if isinstance(item, ScoreWindow)]

    def _kept(self, device: str, kind: int, since: int, until: int) -> list[Item]:
        query = (
            sa.select(_items.c.seq, _messages.c.body)
            .join(_messages, _messages.c.id == _items.c.message)
            .where(
                _items.c.device == device,
                _items.c.kind == kind,
                _items.c.at >= since,
                _items.c.at < until,
            )
            .order_by(_items.c.at, _items.c.seq)
        )
        with self._moment() as connection:
            rows = connection.execute(query).all()
        return [item for row in rows for item in items_of(row.body) if item.seq == row.seq]

    def events(
        self,
        device: str | None = None,
        since: int = 0,
        until: int = 2**53,
        kind: str | None = None,
        limit: int = 1000,
    ) -> list[EventRow]:
        """Return what happened on devices, the latest first."""
        query = sa.select(_events).where(_events.c.at >= since, _events.c.at < until)
        if device is not None:
            query = query.where(_events.c.device == device)
        if kind is not None:
            query = query.where(_events.c.kind == kind)
        query = query.order_by(_events.c.at.desc(), _events.c.id.desc()).limit(limit)
        with self._moment() as connection:
            return [
                EventRow(DeviceEvent.model_validate_json(row.body), row.at, row.received_at)
                for row in connection.execute(query)
            ]

    # ---- what a controller reads when it starts

    def ledgers(self) -> list[tuple[str, bytes]]:
        """Return how far each device's telemetry has come in, as it was committed."""
        with self._moment() as connection:
            return [(row.device, row.state) for row in connection.execute(sa.select(_ledgers))]

    # ---- what goes

    def prune(self, now: float) -> bool:
        """Drop some of what is old, and of what is too much; return whether there is more."""
        keep = self._retention
        with self._transaction() as connection:
            gone = self._prune_raw(connection, now - keep.raw_s)
            hours_from = int(now - keep.hours_s) // DAY_S * DAY_S
            days_from = int(now - keep.days_s) // DAY_S * DAY_S
            # First, so that nobody reads an hour of which a part is gone.
            _write_state(connection, {"hours_from": hours_from})
            for step, floor in ((HOUR_S, hours_from), (DAY_S, days_from)):
                for table in (_of_devices[step], _of_groups[step]):
                    gone = max(gone, _drop_before(connection, table, floor))
            connection.execute(sa.delete(_totals).where(_totals.c.until < now - keep.days_s))
            top = connection.scalar(sa.select(sa.func.max(_events.c.id))) or 0
            late = sa.or_(
                _events.c.received_at < now - keep.events_s, _events.c.id <= top - MAX_EVENTS
            )
            connection.execute(sa.delete(_events).where(late))
        return gone >= PRUNE_ROWS

    def _prune_raw(self, connection: sa.Connection, cutoff: float) -> int:
        oldest = connection.execute(
            sa.select(_messages.c.id, _messages.c.received_at)
            .order_by(_messages.c.id)
            .limit(PRUNE_ROWS)
        ).all()
        beyond = self._next_message - MAX_MESSAGES
        old = [row.id for row in oldest if row.received_at < cutoff or row.id < beyond]
        waiting = sa.select(sa.func.min(_items.c.message)).where(_items.c.id > self._merged)
        last = min(max(old, default=0), (connection.scalar(waiting) or self._next_message) - 1)
        first = sa.select(sa.func.min(_items.c.id)).where(_items.c.message > last)
        item = connection.scalar(first) or self._merged + 1
        connection.execute(sa.delete(_items).where(_items.c.id < item, _items.c.message <= last))
        connection.execute(sa.delete(_messages).where(_messages.c.id <= last))
        return len(old)


_COUNTED = (
    "requests", "errors", "drops", "slo_misses", "labelled", "correct", "confidence_sum",
    "predictions", "golden_samples", "golden_labelled", "golden_correct", "estimate_samples",
    "estimate_sum_p", "estimate_spread",
)  # fmt: skip
"""The numbers of DeviceCounts, in its order."""
_COUNTED_AT = [NUMBERS.index(name) for name in _COUNTED]


def _numbers_of(window: ScoreWindow) -> list[int]:
    tally = Tally()
    tally.add(window)
    return [tally.numbers[place] for place in _COUNTED_AT]


def _device_rows(
    connection: sa.Connection, table: sa.Table, releases: list[str], since: int, until: int
) -> Iterator[Any]:
    """Yield (manifest, start, device, variant, numbers...) in the order of the first two."""
    columns = ("manifest", "start", "device", "variant", *_COUNTED)
    query = (
        sa.select(*(table.c[name] for name in columns))
        .where(table.c.manifest.in_(releases), table.c.start >= since, table.c.start < until)
        .order_by(table.c.manifest, table.c.start)
    )
    for some in connection.execute(query).partitions(_TOGETHER):
        yield from some


def items_of(body: bytes) -> list[Item]:
    """Return what a message holds, as it came."""
    return unpack(body).items() if body else []


def _configure(connection: Any, record: object) -> None:
    # SQLAlchemy's transactions are begun by us: the driver's own begin too late for a snapshot.
    connection.isolation_level = None
    with closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=5000")


def _read_state(connection: sa.Connection) -> dict[str, int]:
    return {row.name: row.value for row in connection.execute(sa.select(_state))}


def _write_state(connection: sa.Connection, state: Mapping[str, int]) -> None:
    _replace(connection, _state, [{"name": name, "value": n} for name, n in state.items()])


def _merged(connection: sa.Connection) -> int:
    """Return the watermark: the id of the last item that was merged."""
    return connection.scalar(sa.select(_state.c.value).where(_state.c.name == "merged")) or 0


def _hours_from(connection: sa.Connection) -> int:
    """Return the beginning of the first day of which hours are kept."""
    query = sa.select(_state.c.value).where(_state.c.name == "hours_from")
    return connection.scalar(query) or 0


def _kind(entry: Entry) -> int:
    match entry.item:
        case ScoreWindow():
            return WINDOW if entry.known else IGNORED
        case Health():
            return HEALTH
        case DeviceEvent():
            return EVENT


def _event_row(id: int, event: DeviceEvent, at: int, received_at: float) -> dict[str, Any]:
    return {
        "id": id,
        "device": event.device,
        "at": at,
        "received_at": received_at,
        "kind": event.kind,
        "body": event.model_dump_json(exclude_none=True).encode(),
    }


def _add_events(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Keep those events whose items were not there before."""
    fresh = sa.select(_items.c.id).where(_items.c.id >= rows[0]["id"], _items.c.kind == EVENT)
    ids = set(connection.scalars(fresh))
    if kept := [row for row in rows if row["id"] in ids]:
        connection.execute(sa.insert(_events), kept)


def _replace(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, in place of those with the same key."""
    statement = insert(table)
    keys = list(table.primary_key.columns.keys())
    rest = {name: statement.excluded[name] for name in map(str, table.c.keys()) if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest), rows)


def _raw(
    connection: sa.Connection, after: int, limit: int | None, device: str | None = None
) -> Sequence[Any]:
    """Return the items behind `after` in the order they were committed, with their bodies."""
    query = (
        sa.select(_items.c.id, _items.c.device, _items.c.seq, _items.c.kind, _items.c.at,
                  _messages.c.body)
        .join(_messages, _messages.c.id == _items.c.message)
        .where(_items.c.id > after)
        .order_by(_items.c.id)
    )  # fmt: skip
    if limit is not None:
        query = query.limit(limit)
    if device is not None:
        query = query.where(_items.c.device == device)
    return connection.execute(query).all()


class _Sums(dict[Any, Tally]):
    """Sums by key. One that is made of a single tally is that very tally, and not a copy."""

    def __init__(self) -> None:
        super().__init__()
        self._own: set[Any] = set()

    def add(self, key: Any, tally: Tally) -> None:
        """Add to a sum; `tally` is left as it is, and is not to be changed any more."""
        known = self.get(key)
        if known is None:
            self[key] = tally
            return
        if key not in self._own:
            self._own.add(key)
            first, known = known, Tally()
            known.merge(first)
            self[key] = known
        known.merge(tally)


def _add_up(connection: sa.Connection, table: sa.Table, tallies: _Tallies) -> None:
    """Add sums to the rows of a table."""
    names = table.primary_key.columns.keys()
    # What differs in these lies together under one hour and release, and is read many at a time.
    last = "value" if "value" in names else "device"
    scope = [name for name in names if name != last]
    together: dict[_Key, list[_Key]] = {}
    for key in tallies:
        together.setdefault(
            tuple(k for k, name in zip(key, names, strict=True) if name != last), []
        ).append(key)
    place = names.index(last)
    for shared, keys in together.items():
        for at in range(0, len(keys), _CHUNK):
            some = [key[place] for key in keys[at : at + _CHUNK]]
            known = connection.execute(
                sa.select(table).where(
                    *(table.c[name] == value for name, value in zip(scope, shared, strict=True)),
                    table.c[last].in_(some),
                )
            )
            for row in known:
                key = tuple(getattr(row, name) for name in names)
                # Into what is there, which has more in it; and a tally may be in several sums.
                sum_ = _tally_of(row)
                sum_.merge(tallies[key])
                tallies[key] = sum_
    sums = []
    most = MOST_OF_DEVICE if table in _of_devices.values() else MOST
    for key, tally in tallies.items():
        values: dict[str, Any] = dict(zip(names, key, strict=True))
        values.update(zip(NUMBERS, tally.held(most), strict=True))
        values.update(since=tally.since, until=tally.until, rest=_dumped(tally))
        sums.append(values)
    if sums:
        _replace(connection, table, sums)


def _dumped(tally: Tally) -> bytes:
    try:
        return orjson.dumps(tally.rest())
    except orjson.JSONEncodeError:  # a number of more than 64 bits
        return orjson.dumps(held(tally.rest()))


_WIDTH = len(NUMBERS)


def _sum_of(at: int, window: ScoreWindow) -> Tally:
    """Return a window as a sum to be read, at a time that can be true."""
    tally = Tally.of_window(window)
    tally.until = at
    tally.since = max(window.start, at - MAX_WINDOW_S) if at == window.end else at
    return tally


def _tally_of(row: Any) -> Tally:
    numbers = row[-_WIDTH - 1 : -1]
    return Tally.of(numbers, row.since, row.until, orjson.loads(row.rest))


def _merge_into(tallies: dict[Any, Tally], key: Any, tally: Tally) -> None:
    known = tallies.get(key)
    if known is None:
        tallies[key] = tally
    else:
        known.merge(tally)


def _add_numbers(sums: dict[Any, list[int]], key: Any, numbers: Sequence[int]) -> None:
    known = sums.get(key)
    sums[key] = [*numbers] if known is None else [*map(int.__add__, known, numbers)]


def _releases_of(connection: sa.Connection, query: Query | None) -> dict[str, tuple[str, int]]:
    """Return model and version by release digest, of those that `query` means."""
    wanted = sa.select(_releases)
    if query is not None:
        wanted = wanted.where(_releases.c.model == query.model)
        if query.version is not None:
            wanted = wanted.where(_releases.c.version == query.version)
    return {row.manifest: (row.model, row.version) for row in connection.execute(wanted)}


def _bounds(query: Query, hours_from: int) -> tuple[int, int]:
    """Return the query's times, moved out to whole hours, or days where no hours are kept."""
    since = query.since - query.since % HOUR_S
    until = -(-query.until // HOUR_S) * HOUR_S
    if since < hours_from:
        since -= since % DAY_S
    if until < hours_from:
        until = -(-until // DAY_S) * DAY_S
    return since, until


def _segments(
    tables: Mapping[int, sa.Table], query: Query, step: Step | None, hours_from: int
) -> Iterator[tuple[sa.Table, int, int]]:
    """Yield which rows of which table make up the query: as few as can be."""
    since, until = _bounds(query, hours_from)
    if since < hours_from:
        yield tables[DAY_S], since, min(until, hours_from)
        since = hours_from
    first, last = -(-since // DAY_S) * DAY_S, until - until % DAY_S
    if step == "hour" or first >= last:
        yield tables[HOUR_S], since, until
        return
    yield tables[HOUR_S], since, first
    yield tables[DAY_S], first, last
    yield tables[HOUR_S], last, until


def _span(tally: Tally, start: int, step: Step | None) -> tuple[int, int]:
    if step is None:
        return tally.since, tally.until
    return start, start + (HOUR_S if step == "hour" else DAY_S)


def _drop_before(connection: sa.Connection, table: sa.Table, floor: int) -> int:
    """Delete the sums of some of the hours or days before `floor`; return how many."""
    starts = sa.select(table.c.manifest, table.c.start).where(table.c.start < floor).distinct()
    gone = 0
    for manifest, start in connection.execute(starts.limit(_CHUNK)).all():
        these = sa.and_(table.c.manifest == manifest, table.c.start == start)
        gone += connection.execute(sa.delete(table).where(these)).rowcount
        if gone >= PRUNE_ROWS:
            break
    return gone
