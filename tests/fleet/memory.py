"""A controller that lives in memory: it keeps releases, and its devices obey at once.

Time moves when a rollout is looked at: every look takes each told device one phase further,
so that a watch sees the same story in every run.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fleet.core import report_asked
from fleet.core.export import Asked, export, head_of
from fleet.core.export_views import ExportLine
from fleet.core.port import Bundle, ControllerPort
from fleet.core.report import gather, report
from fleet.core.report_views import ReportView
from fleet.core.suppression import MIN_DEVICES
from fleet.core.views import (
    CommandView,
    DeviceView,
    EventView,
    HealthView,
    PlanDeviceView,
    PlanWaveView,
    Refusal,
    ReleaseView,
    RolloutDeviceView,
    RolloutPlanView,
    RolloutRequest,
    RolloutStatus,
    RolloutView,
    VariantView,
    VerdictView,
    WaveView,
)
from tests.fleet.records import MemoryRecords
from wire.ids import check_digest, check_id, digest_of
from wire.manifest import Manifest
from wire.twin import Phase, Reason

NOW = 1_800_000_000.0


@dataclass
class MemoryBlob:
    """A file on its way in."""

    home: "MemoryController"
    digest: str
    data: bytearray = field(default_factory=bytearray)

    def write(self, data: bytes) -> None:
        if self.home.disk_full:
            raise OSError(28, "No space left on device")
        self.data += data

    def finish(self) -> int:
        got = digest_of(bytes(self.data))
        if got != self.digest:
            raise Refusal(400, f"blob: {self.digest} expected, got {got}; nothing kept")
        self.home.blobs[self.digest] = bytes(self.data)
        return len(self.data)

    def abort(self) -> None:
        self.home.aborted += 1


@dataclass
class MemoryController(ControllerPort):
    """The seam of `fleet.core.port`, without a broker, a disk or a device."""

    known_devices: dict[str, DeviceView] = field(default_factory=dict)
    bad_devices: frozenset[str] = frozenset()
    """Those on which every challenger turns out worse."""
    disk_full: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    kept: dict[tuple[str, int], ReleaseView] = field(default_factory=dict)
    runs: dict[str, RolloutView] = field(default_factory=dict)
    requests: list[RolloutRequest] = field(default_factory=list)
    commands: dict[str, CommandView] = field(default_factory=dict)
    happened: list[EventView] = field(default_factory=list)
    aborted: int = 0
    records: MemoryRecords = field(default_factory=MemoryRecords)
    class_names: tuple[str, ...] = ()
    bundles: list[tuple[str | None, bool]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    upkeep: Any = None
    """Who answers about alerts."""

    def health(self) -> HealthView:
        online = sum(device.online for device in self.known_devices.values())
        return HealthView(
            version="1.2.3",
            broker_url="mqtt://127.0.0.1:1883",
            broker_connected=True,
            devices=len(self.known_devices),
            devices_online=online,
        )

    def has_blob(self, digest: str) -> bool:
        return digest in self.blobs

    def open_blob(self, digest: str) -> MemoryBlob:
        try:
            check_digest(digest)
        except ValueError as error:
            raise Refusal(400, f"blob: {error}") from error
        return MemoryBlob(self, digest)

    def add_release(self, manifest: Manifest) -> tuple[ReleaseView, bool]:
        key = (manifest.model, manifest.version)
        with self.lock:
            there = self.kept.get(key)
            if there is not None and there.digest == manifest.digest:
                return there, False
            if there is not None:
                raise Refusal(
                    409,
                    f"{manifest.ref}: {there.digest} is kept under this name, got"
                    f" {manifest.digest}",
                    f"fleet model push --version {self.next_version(manifest.model)}",
                )
            missing = [f.name for f in manifest.all_files() if f.digest not in self.blobs]
            if missing:
                raise Refusal(422, f"{manifest.ref}: files are missing: {missing}")
            view = ReleaseView(
                model=manifest.model,
                version=manifest.version,
                digest=manifest.digest,
                description=manifest.description,
                parent=manifest.parent,
                variants=tuple(
                    VariantView(name=v.name, format=v.format, size_bytes=v.artifact.size_bytes)
                    for v in manifest.variants
                ),
                metrics=manifest.metrics,
                pushed_at=NOW,
                manifest=manifest,
            )
            self.kept[key] = view
            return view, True

    def releases(self, model: str | None) -> list[ReleaseView]:
        found = [view for (name, _), view in self.kept.items() if model in (None, name)]
        return sorted(found, key=lambda view: -view.version)

    def release(self, model: str, version: int) -> ReleaseView:
        if (model, version) not in self.kept:
            raise Refusal(404, f"{model}@{version}: no such release", "fleet model list")
        return self.kept[model, version]

    def bundle(self, model: str, version: int, device: str | None, install: bool) -> Bundle:
        view = self.release(model, version)
        if device is not None:
            try:
                check_id(device)
            except ValueError as error:
                raise Refusal(422, f"bundle: {error}", "fleet device list") from error
        self.bundles.append((device, install))
        said = f"bundle of {view.digest} ".encode()
        pieces = iter((said, b"x" * 1_000_000, b"end"))
        cut = ["the disk failed"] if self.disk_full else []

        def read() -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                if cut:
                    raise OSError(5, cut[0])

        return Bundle(len(said) + 1_000_003, read())

    def next_version(self, model: str) -> int:
        return max((version for name, version in self.kept if name == model), default=0) + 1

    def model_report(  # noqa: PLR0917
        self, model: str, version: int | None, by: str | None, since: str, until: str,
        min_devices: int = MIN_DEVICES,
    ) -> ReportView:  # fmt: skip
        found = [self.release(model, version)] if version else self.releases(model)
        if not found:
            raise Refusal(404, f"no model {model!r}", "fleet model list")
        labels = {key for device in self.known_devices.values() for key in device.labels}
        frame = report_asked.frame(model, version, by, since, until, int(NOW), labels, min_devices)
        known = [(each.manifest, each.digest) for each in found if each.manifest is not None]
        names = {each.version: self.class_names for each in found}
        return report(frame, gather(frame, self.records, known, names))

    def telemetry_export(self, asked: Asked) -> Iterator[ExportLine]:
        found = (
            [self.release(asked.model, asked.version)]
            if asked.version
            else self.releases(asked.model)
        )
        if not found:
            raise Refusal(404, f"no model {asked.model!r}", "fleet model list")
        labels = {key for device in self.known_devices.values() for key in device.labels}
        head = head_of(asked, int(NOW), labels, self.records.hours_from())
        known = [(each.manifest, each.digest) for each in found if each.manifest is not None]
        return export(head, self.records, known)

    def metrics(self, accept: str, device: str | None) -> tuple[bytes, str]:
        if device is not None and device not in self.known_devices:
            raise Refusal(404, f"no device {device!r}", "fleet device list")
        return b"# EOF\n", "text/plain"

    def devices(self) -> list[DeviceView]:
        return [self.known_devices[id] for id in sorted(self.known_devices)]

    def device(self, id: str) -> DeviceView:
        if id not in self.known_devices:
            near = sorted(self.known_devices)[:1]
            raise Refusal(404, f"{id}: no such device", f"fleet device show {near[0]}")
        return self.known_devices[id]

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        model, _, version = request.release.partition("@")
        release = self.release(model, int(version))
        with self.lock:
            self.requests.append(request)
            id = f"r-{len(self.runs) + 1}"
            half = (len(self.known_devices) + 1) // 2 if len(request.waves) > 1 else 10**6
            members = tuple(
                RolloutDeviceView(id=device, wave=1 if place < half else 2, online=True, phase=None)
                for place, device in enumerate(sorted(self.known_devices))
            )
            self.runs[id] = RolloutView(
                id=id,
                release=request.release,
                digest=release.digest,
                to=request.to,
                status=RolloutStatus.RUNNING,
                because="wave 1 opened",
                started_at=NOW,
                ended_at=None,
                probation=request.probation,
                waves=_waves(request.waves, members, opened=1),
                devices=members,
            )
            return self.runs[id]

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlanView:
        model, _, version = request.release.partition("@")
        self.release(model, int(version))
        with self.lock:
            self.requests.append(request)
        small = "2 devices told by then are too few to decide"
        waves = (
            PlanWaveView(
                number=1, share="2", devices=2, told=2, too_small=small,
                bytes_coming=5120, bytes_sent=5120, refused=1,
            ),
        )  # fmt: skip
        forecasts = (
            PlanDeviceView(
                id="cam-1", wave=1, online=True, how="delta", variant="int8-onnx",
                bytes_coming=5120, bytes_whole=2**20,
            ),
            PlanDeviceView(
                id="cam-2", wave=1, online=False, how="refused", reason=Reason.WRONG_ARCH,
                detail="only needs x86_64",
            ),
        )  # fmt: skip
        return RolloutPlanView(
            release=request.release,
            to=request.to,
            devices=2,
            waves=waves,
            alphas={"accuracy": 0.03, "crashes": 0.02} if request.judged_by == "tests" else {},
            refusal=f"wave 1: {small}" if request.judged_by == "tests" else "",
            next_step="--waves 30,100%" if request.judged_by == "tests" else "",
            bytes_coming=5120,
            refused=1,
            forecasts=forecasts,
        )

    def rollouts(self) -> list[RolloutView]:
        return [view.model_copy(update={"devices": ()}) for view in reversed(self.runs.values())]

    def rollout(self, id: str) -> RolloutView:
        if id not in self.runs:
            raise Refusal(404, f"{id}: no such rollout", "fleet rollout list")
        with self.lock:
            self.runs[id] = self._further(self.runs[id])
            return self.runs[id]

    def pause_rollout(self, id: str, reason: str) -> RolloutView:
        view = self.runs[id]
        if view.status is not RolloutStatus.RUNNING:
            raise Refusal(409, f"{id} is {view.status} already", f"fleet rollout status {id}")
        self.runs[id] = view.model_copy(update={"status": RolloutStatus.PAUSED, "because": reason})
        return self.runs[id]

    def resume_rollout(self, id: str) -> RolloutView:
        view = self.runs[id]
        if view.status is not RolloutStatus.PAUSED:
            raise Refusal(409, f"{id} is {view.status} already", f"fleet rollout status {id}")
        self.runs[id] = view.model_copy(
            update={"status": RolloutStatus.RUNNING, "because": "resumed"}
        )
        return self.runs[id]

    def approve_rollout(self, id: str, reason: str) -> RolloutView:
        view = self.rollout(id)
        if view.status.final:
            raise Refusal(409, f"{id} is {view.status} already", f"fleet rollout status {id}")
        verdict = VerdictView(
            gate="operator", ruling="approved", at=NOW, words=f"wave 1 of 1: approved {reason}"
        )
        self.runs[id] = view.model_copy(update={"verdicts": (*view.verdicts, verdict)})
        return self.runs[id]

    def abort_rollout(self, id: str, reason: str) -> RolloutView:
        view = self.rollout(id)
        if view.status.final:
            raise Refusal(409, f"{id}: over already, {view.status}", f"fleet rollout status {id}")
        self.runs[id] = view.model_copy(
            update={"status": RolloutStatus.ABORTED, "because": reason, "ended_at": NOW}
        )
        return self.runs[id]

    def promote_rollout(self, id: str, reason: str) -> RolloutView:
        view = self.rollout(id)
        waves = tuple(wave.model_copy(update={"open": True}) for wave in view.waves)
        self.runs[id] = view.model_copy(update={"waves": waves, "because": reason})
        return self.runs[id]

    def roll_back_rollout(self, id: str, reason: str) -> RolloutView:
        view = self.rollout(id)
        if view.status is RolloutStatus.ABORTED:
            raise Refusal(409, f"{id} is aborted already", f"fleet rollout status {id}")
        self.runs[id] = view.model_copy(
            update={"status": RolloutStatus.ROLLING_BACK, "because": reason, "ended_at": None}
        )
        return self.runs[id]

    def send_command(self, device: str, verb: str) -> CommandView:
        self.device(device)
        outcome = "waiting" if verb in ("ping", "sleep") else "refused"
        command = CommandView(
            id=f"c-{len(self.commands) + 1}", device=device, verb=verb, outcome=outcome
        )
        self.commands[command.id] = command
        return command

    def command(self, device: str, id: str) -> CommandView:
        command = self.commands[id]
        if command.verb == "ping":
            command = command.model_copy(update={"outcome": "done", "detail": "pong"})
        return command

    def device_config(self, id: str) -> str:
        try:
            check_id(id)
        except ValueError as error:
            raise Refusal(422, f"device: {error}") from error
        return f'device = "{id}"\n\n[broker]\nurl = "mqtt://127.0.0.1:1883"\n'

    def events(
        self, limit: int, kind: str = "", about: str = "", since: float = 0.0, after: int = 0
    ) -> list[EventView]:
        chosen = [
            each
            for each in self.happened
            if kind in ("", each.kind)
            and about in ("", each.subject)
            and each.at >= since
            and (not after or each.id > after)
        ]
        return chosen[::-1][:limit] if after else chosen[:limit]

    def _further(self, view: RolloutView) -> RolloutView:
        if view.status.final:
            return view
        opened = max(wave.number for wave in view.waves if wave.open)
        members = tuple(
            self._next(member) if member.wave <= opened else member for member in view.devices
        )
        told = [member for member in members if member.wave <= opened]
        status, because = view.status, view.because
        if any(member.phase is Phase.ROLLED_BACK for member in told):
            status, because = RolloutStatus.ABORTED, "1 of 1 devices told refused it"
        elif all(member.phase is Phase.COMMITTED for member in told):
            if opened == len(view.waves):
                status, because = RolloutStatus.COMPLETED, "every device committed"
            else:
                opened, because = opened + 1, f"wave {opened + 1} opened"
        shares = tuple(wave.share for wave in view.waves)
        return view.model_copy(
            update={
                "status": status,
                "because": because,
                "devices": members,
                "waves": _waves(shares, members, opened),
            }
        )

    def _next(self, member: RolloutDeviceView) -> RolloutDeviceView:
        match member.phase:
            case None:
                change = {"phase": Phase.FETCHING, "bytes_done": 42, "bytes_total": 100}
            case Phase.FETCHING:
                change = {"phase": Phase.PROBATION, "labelled_pairs": 120}
            case Phase.PROBATION if member.id in self.bad_devices:
                change = {
                    "phase": Phase.ROLLED_BACK,
                    "reason": Reason.WORSE_THAN_CHAMPION,
                    "detail": "27 worse, 6 better, E = 41.2",
                }
            case Phase.PROBATION:
                change = {"phase": Phase.COMMITTED}
            case _:
                change = {}
        return member.model_copy(update=change)


def _waves(
    shares: tuple[str, ...], members: tuple[RolloutDeviceView, ...], opened: int
) -> tuple[WaveView, ...]:
    waves = []
    for number, share in enumerate(shares, 1):
        mine = [member.phase for member in members if member.wave == number]
        counts: dict[str, int] = {}
        for phase in mine:
            word = phase.value if phase is not None else "waiting"
            counts[word] = counts.get(word, 0) + 1
        waves.append(
            WaveView(
                number=number, share=share, open=number <= opened, devices=len(mine), counts=counts
            )
        )
    return tuple(waves)
