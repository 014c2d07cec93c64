"""Captured inputs at the controller: what was asked of which device, and what it sent.

    samples/REQUEST/request.json   what was asked, and how it fares
    samples/REQUEST/NAME.json      what is known of a sample
    samples/REQUEST/NAME.part      its bytes, as far as they came
    samples/REQUEST/NAME.bin       all of them, with the digest that its head says

Nothing is taken in that was not asked for: the id of a request is a secret between the
controller and the device, drawn anew for each.
"""

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from fleet.core.sample_views import CaptureRequestView, Deleted, SamplePartView, SampleView
from fleet.core.views import Refusal, View
from wire.codec import DecodeError
from wire.ids import check_id
from wire.sample import CaptureReport, Sample, SampleAck, SampleHead

log = logging.getLogger("fleet.samples")

DAY_S = 86_400
MAX_REQUESTS = 10_000
MAX_SPOILT = 3
"""Times a sample may come with another digest than its head says, before nothing more is taken."""

LIST = "fleet samples list"


class Samples:
    """The requests and their samples. Safe to use from several threads."""

    def __init__(self, directory: Path, max_bytes: int, days: int) -> None:
        """Open what is there. A request is kept for `days` after its end, with its samples."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep_s = days * DAY_S
        self._lock = threading.RLock()
        self._requests: dict[str, CaptureRequestView] = {}
        self._samples: dict[str, dict[str, SampleView]] = {}
        self._spoilt: dict[str, int] = {}
        self._full = False
        if directory.is_dir():
            for each in sorted(directory.iterdir()):
                self._load(each)

    def asked(self, view: CaptureRequestView) -> None:
        """Keep a request that is about to be sent.

        Raises:
            Refusal: 409, there are too many.
        """
        with self._lock:
            if len(self._requests) >= MAX_REQUESTS:
                text = f"expected at most {MAX_REQUESTS} requests to be kept"
                raise Refusal(409, text, "fleet samples delete REQUEST")
            self._folder(view.id).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            self._samples[view.id] = {}
            self._keep(view)

    def answered(self, request: str, outcome: str, detail: str) -> None:
        """Note what the device said to the command."""
        with self._lock:
            view = self._requests.get(request)
            if view is not None and view.outcome == "waiting":
                self._keep(view.model_copy(update={"outcome": outcome, "detail": detail}))

    def reported(self, report: CaptureReport) -> SampleAck:
        """Note how a request fares."""
        with self._lock:
            view = self._requests.get(report.request)
            if view is None or view.device != report.device:
                return SampleAck(device=report.device, request=report.request, wanted=False)
            self._keep(
                view.model_copy(
                    update={
                        # The command's own answer may have been lost.
                        "outcome": "done" if view.outcome == "waiting" else view.outcome,
                        "state": report.state,
                        "captured": report.captured,
                        "deleted": report.deleted,
                        "left_out": {key[:40]: n for key, n in report.left_out.items()},
                    }
                )
            )
            return SampleAck(device=report.device, request=report.request)

    def take(self, sample: Sample, now: float) -> SampleAck | None:
        """Take in a piece; return what is to be acknowledged, or None: nothing."""
        head = sample.head
        with self._lock:
            view = self._requests.get(head.request)
            if (
                view is None
                or (view.device, view.model) != (sample.device, head.model)
                or self._spoilt.get(head.request, 0) >= MAX_SPOILT
            ):
                return _unwanted(sample)
            known = self._samples[head.request].get(head.sample)
            if known is None:
                if len(self._samples[head.request]) >= view.count:
                    return _unwanted(sample)
                known = _view(head, sample.device, now)
                view = view.model_copy(update={"received": view.received + 1})
            elif known.digest != head.digest:
                return None
            try:
                known = self._append(known, sample)
            except DecodeError as error:
                log.warning("%s: %s", sample.device, error)
                return None
            if head.label is not None and known.label is None:
                known = known.model_copy(update={"label": head.label})
            try:
                self._keep_sample(known)
            finally:
                # Last, so that what is sent again after a disk was full counts once.
                if view is not self._requests[view.id]:
                    self._keep(view)
            return SampleAck(
                device=sample.device,
                request=head.request,
                sample=head.sample,
                have=known.have_bytes,
                labelled=known.label is not None,
            )

    def _append(self, known: SampleView, sample: Sample) -> SampleView:
        """Write a piece that goes on where the last one ended; another one is passed over."""
        piece = sample.piece()
        if sample.offset != known.have_bytes or not piece:
            return known
        if self._used() + len(piece) > self._max_bytes:
            if not self._full:
                log.warning("samples: the budget of %d bytes is used up", self._max_bytes)
            self._full = True
            return known
        self._full = False
        part = self._path(known, ".part")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+b") as file:
            file.seek(known.have_bytes)
            file.write(piece)
            file.flush()
            have = known.have_bytes + len(piece)
            if have == known.size_bytes:
                os.fsync(file.fileno())
        if have == known.size_bytes:
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if f"sha256:{digest}" != known.digest:
                log.warning("%s: sample %s is not what its head says", known.device, known.id)
                self._spoilt[known.request] = self._spoilt.get(known.request, 0) + 1
                part.unlink()
                return known.model_copy(update={"have_bytes": 0})
            part.replace(self._path(known, ".bin"))
        return known.model_copy(update={"have_bytes": have})

    # ---- what people ask

    def requests(self) -> list[CaptureRequestView]:
        """Return all requests, the newest first."""
        with self._lock:
            return sorted(self._requests.values(), key=lambda view: (-view.asked_at, view.device))

    def request(self, id: str) -> CaptureRequestView | None:
        """Return one request."""
        with self._lock:
            return self._requests.get(id)

    def samples(self, wanted: Callable[[SampleView], bool]) -> list[SampleView]:
        """Return samples, the newest first."""
        with self._lock:
            found = [s for each in self._samples.values() for s in each.values() if wanted(s)]
        return sorted(found, key=lambda view: (-view.at, view.id))

    def sample(self, id: str) -> SampleView:
        """Return one sample.

        Raises:
            Refusal: 404.
        """
        found = self.samples(lambda view: view.id == id)
        if not found:
            raise Refusal(404, f"no sample {id[:60]!r}", LIST)
        return found[0]

    def data(self, id: str) -> bytes:
        """Return the bytes of a sample.

        Raises:
            Refusal: 404; 409, it is still on its way.
        """
        view = self.sample(id)
        if not view.whole:
            raise Refusal(
                409, f"{id}: {view.have_bytes} of {view.size_bytes} bytes came so far", LIST
            )
        return self._path(view, ".bin").read_bytes()

    def delete(self, id: str) -> Deleted:
        """Delete a sample, or a request with all of its samples.

        Raises:
            Refusal: 404, there is neither.
        """
        with self._lock:
            if id in self._requests:
                return Deleted(samples=self._drop(id), requests=1)
            view = self.sample(id)
            for suffix in (".part", ".bin", ".json"):
                self._path(view, suffix).unlink(missing_ok=True)
            del self._samples[view.request][view.id]
            return Deleted(samples=1, requests=0)

    def prune(self, now: float) -> None:
        """Delete what is older than it may get, and settle what nobody answered."""
        with self._lock:
            for view in list(self._requests.values()):
                if now > view.until + self._keep_s:
                    self._drop(view.id)

    def _drop(self, request: str) -> int:
        shutil.rmtree(self._folder(request), ignore_errors=True)
        del self._requests[request]
        self._spoilt.pop(request, None)
        return len(self._samples.pop(request, {}))

    # ---- the disk

    def _load(self, folder: Path) -> None:
        try:
            check_id(folder.name)
            text = (folder / "request.json").read_text()
            self._requests[folder.name] = CaptureRequestView.model_validate_json(text)
        except (OSError, ValueError) as error:
            log.warning("samples: %s cannot be read: %s", folder, error)
            return
        samples = self._samples[folder.name] = {}
        for path in folder.glob("*.json"):
            if path.name == "request.json":
                continue
            try:
                view = SampleView.model_validate_json(path.read_text())
            except (OSError, ValidationError) as error:
                log.warning("samples: %s cannot be read: %s", path, error)
                continue
            # What the disk has counts, whatever was noted.
            bin, part = path.with_suffix(".bin"), path.with_suffix(".part")
            have = view.size_bytes if bin.exists() else _size(part)
            samples[view.id] = view.model_copy(update={"have_bytes": min(have, view.size_bytes)})

    def _used(self) -> int:
        return sum(s.have_bytes for each in self._samples.values() for s in each.values())

    def _keep(self, view: CaptureRequestView) -> None:
        self._requests[view.id] = view
        _write(self._folder(view.id) / "request.json", view)

    def _keep_sample(self, view: SampleView) -> None:
        before = self._samples[view.request].get(view.id)
        self._samples[view.request][view.id] = view
        # Between the first piece and the last the length of the file tells all.
        if before is None or view.whole or view.label != before.label:
            _write(self._path(view, ".json"), view)

    def _folder(self, request: str) -> Path:
        return self._directory / check_id(request)

    def _path(self, view: SampleView, suffix: str) -> Path:
        return self._folder(view.request) / f"{check_id(view.id)}{suffix}"


def _unwanted(sample: Sample) -> SampleAck:
    head = sample.head
    return SampleAck(device=sample.device, request=head.request, sample=head.sample, wanted=False)


def _view(head: SampleHead, device: str, now: float) -> SampleView:
    return SampleView(
        id=head.sample,
        request=head.request,
        device=device,
        model=head.model,
        version=head.version,
        manifest=head.manifest,
        variant=head.variant,
        kind=head.kind,
        at=head.at,
        received_at=now,
        size_bytes=head.size_bytes,
        have_bytes=0,
        digest=head.digest,
        parts=tuple(SamplePartView(**part.model_dump()) for part in head.parts),
        predicted=head.predicted,
        scores=tuple(score / 1e6 for score in head.scores),
        label=head.label,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write(path: Path, view: View) -> None:
    """Put a value in place at once, readable by nobody else."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(view.model_dump_json())
    new.replace(path)
