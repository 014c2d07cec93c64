"""Artifacts and the journal on disk: content-addressed, renamed into place, fsynced.

    lock                   held while an agent uses the directory
    journal.json           journal.prev.json is the copy before it
    blobs/<hex>            whole files by digest: there under that name only when complete
    partial/<hex>.part     bytes of a transfer, sparse
    partial/<hex>.index    its verified index

What lies under a name is trusted only after it was hashed.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import queue
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from agent.core.events import (
    BlobRefused,
    BlobStored,
    Event,
    ManifestRead,
    TransferFailed,
    TransferOpened,
)
from agent.core.journal import read_journal, write_journal
from agent.core.state import Journal
from agent.errors import DeviceError
from agent.shell.slots.partial import PIECE_BYTES, Partial, write_all
from wire.codec import MAX_DOCUMENT_BYTES, DecodeError, decode
from wire.ids import digest_hex, digest_of
from wire.manifest import Manifest
from wire.transfer import HASH_BYTES, Offer, chunk_hash
from wire.twin import Reason

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long closing waits for the thread; it looks up after every piece."""

DECODE_COMMAND = (sys.executable, "-m", "delta", "decode")
DECODE_S = 600.0
LOOK_UP_S = 0.2
SYNC_BYTES = 8 * 1024 * 1024
LOOK_AT_SPACE_BYTES = 1024 * 1024
MAX_ZSTD_WINDOW_BYTES = 8 * 1024 * 1024
"""What zstd level 19 uses at most. A frame that wants more memory is refused."""

_HEX = re.compile("[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _RefusalError(Exception):
    """A finished transfer is not the promised file."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _ClosingError(Exception):
    """The agent is stopping; what was begun stays on disk for the next one."""


class Slots:
    """The agent's directory. Reading partials again and finishing them happen in a thread.

    `post` must not block: it is also called from the thread that consumes the events.
    """

    def __init__(self, data_dir: Path, reserve_bytes: int, post: Callable[[Event], None]) -> None:
        """Create and lock the directory; `reserve_bytes` of its disk stay free.

        Raises:
            DeviceError: it cannot be written, or another agent uses it.
        """
        self._root = data_dir
        self._reserve_bytes = reserve_bytes
        self._post = post
        self._blobs = data_dir / "blobs"
        self._partial = data_dir / "partial"
        self._lock = threading.Lock()
        self._open: dict[str, Partial] = {}
        self._finishing: set[str] = set()
        self._fresh: set[str] = set()
        self._written = 0
        self._unsynced = 0
        self._headroom = 0
        """Bytes that may be written before it is looked again what is free."""
        self._idle = True
        """No sync of a partial is under way."""
        self._closing = False
        try:
            for directory in (self._blobs, self._partial):
                directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            _sync_directory(data_dir)
            self._lock_fd = _lock(data_dir)
            for left in (*self._partial.glob("*.new"), *data_dir.glob("*.new")):
                left.unlink()
        except OSError as error:
            raise DeviceError(
                f"data_dir {data_dir}: expected a directory to write in, got {error.strerror}"
            ) from None
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="slots", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Stop what is under way, keeping its bytes, and let another agent in."""
        self._closing = True
        self._jobs.put(lambda: None)
        self._worker.join(CLOSE_S)
        for transfer in list(self._open):
            self.close_transfer(transfer)
        os.close(self._lock_fd)

    @property
    def flash_bytes_written(self) -> int:
        """Bytes given to the disk since start, without the file system's own."""
        return self._written

    # ---- journal

    def load_journal(self) -> Journal:
        """Return the journal, the copy before it where it is unreadable, or an empty one."""
        path, previous = self._root / "journal.json", self._root / "journal.prev.json"
        try:
            return read_journal(path.read_bytes())
        except FileNotFoundError:
            complaint = ""
        except (OSError, ValueError) as error:
            complaint = f"{path}: {error}; kept as journal.bad"
            with contextlib.suppress(OSError):
                path.replace(self._root / "journal.bad")
        try:
            journal = read_journal(previous.read_bytes())
        except FileNotFoundError:
            if complaint:
                log.error("%s; there is no earlier copy, starting empty", complaint)
            return Journal()
        except (OSError, ValueError) as error:
            log.error("%s; the copy before it is unreadable too: %s", complaint or path, error)
            return Journal()
        log.error("%s; going on from the copy before it", complaint or f"{path} is missing")
        return journal

    def save_journal(self, journal: Journal) -> None:
        """Write the journal; it is on the disk when this returns.

        When the disk is full, partials are given up for it: they can be fetched again.

        Raises:
            DeviceError: the disk refuses even so. The old journal is intact.
        """
        data = write_journal(journal)
        try:
            self._replace_journal(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise DeviceError(f"journal: cannot write: {error.strerror}") from None
            self._give_up_partials()
            try:
                self._replace_journal(data)
            except OSError as again:
                raise DeviceError(
                    f"journal: cannot write {len(data)} bytes: {again.strerror}; "
                    f"free some space on the disk of {self._root}"
                ) from None

    def _replace_journal(self, data: bytes) -> None:
        path = self._root / "journal.json"
        new = self._write_new(self._root / "journal.new", data)
        with contextlib.suppress(FileNotFoundError):
            path.replace(self._root / "journal.prev.json")
        new.replace(path)
        _sync_directory(self._root)

    def _give_up_partials(self) -> None:
        for transfer in list(self._open):
            self._fail(transfer, Reason.NO_SPACE, "the disk is full; given up for the journal")
        self._clean_partials(frozenset())

    # ---- what is there

    def blobs(self) -> frozenset[str]:
        """Return the digests of the whole files in their slots."""
        return frozenset(f"sha256:{path.name}" for path in self._blob_paths())

    def blob_sizes(self) -> dict[str, int]:
        """Return what each whole file takes, by digest."""
        sizes = {}
        for path in self._blob_paths():
            with contextlib.suppress(FileNotFoundError):
                sizes[f"sha256:{path.name}"] = path.lstat().st_size
        return sizes

    def blob_path(self, digest: str) -> Path:
        """Return where the file of that digest lies, or would lie."""
        return self._blobs / digest_hex(digest)

    def measure_space(self) -> int:
        """Return the bytes that artifacts may still take, those of partials among them."""
        free = self._free_bytes() - self._reserve_bytes
        for path in self._partial.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                free += path.lstat().st_blocks * 512
        return free

    def read_manifest(self, digest: str) -> None:
        """Post ManifestRead with what lies in the slot; a damaged one is deleted."""
        self._post(self._manifest_read(digest))

    def _manifest_read(self, digest: str) -> ManifestRead:
        path = self.blob_path(digest)
        try:
            data = _read_bounded(path, MAX_DOCUMENT_BYTES)
        except OSError as error:
            return ManifestRead(digest, None, f"{digest[:19]}: cannot read: {error.strerror}")
        if data is None:
            detail = f"{digest[:19]}: expected a manifest of at most {MAX_DOCUMENT_BYTES} bytes"
            return ManifestRead(digest, None, f"{detail}, got {path.stat().st_size}")
        if (actual := digest_of(data)) != digest:
            with contextlib.suppress(OSError):
                path.unlink()
            detail = f"expected {digest[:19]}, got {actual[:19]} on disk; deleted"
            return ManifestRead(digest, None, detail)
        try:
            return ManifestRead(digest, decode(Manifest, data))
        except DecodeError as error:
            return ManifestRead(digest, None, str(error))

    def adopt(self, path: Path) -> None:
        """Move a file into its slot by its name, the hex digits of a digest that was checked.

        Raises:
            OSError: the disk refuses.
        """
        with self._lock:
            self._fresh.add(f"sha256:{path.name}")
        path.replace(self._blobs / path.name)
        _sync_directory(self._blobs)

    def collect_garbage(
        self, keep_files: frozenset[str], keep_transfers: frozenset[str], heard: frozenset[str]
    ) -> None:
        """Delete the files and partials that nobody keeps.

        A file stored since the start stays until it is among those `heard` of: its BlobStored may
        still be on its way to whoever decided what to keep.
        """
        with self._lock:
            self._fresh -= heard
            keep = {digest_hex(digest) for digest in keep_files | self._fresh}
        for path in list(self._blob_paths()):
            if path.name not in keep:
                _remove(path)
        self._clean_partials(keep_transfers)

    def _clean_partials(self, keep: frozenset[str]) -> None:
        with self._lock:
            names = {digest_hex(transfer) for transfer in keep | self._finishing}
            for transfer in [t for t in self._open if digest_hex(t) not in names]:
                os.close(self._open.pop(transfer).fd)
        for path in list(self._partial.iterdir()):
            if path.stem not in names:
                _remove(path)

    def _blob_paths(self) -> Iterator[Path]:
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                if _HEX.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield self._blobs / entry.name

    # ---- a transfer

    def open_transfer(self, offer: Offer) -> None:
        """Open or create a partial; post TransferOpened with what of it is right on disk."""
        self._submit(self._open_transfer, offer)

    def write_index(self, transfer: str, index: bytes) -> None:
        """Keep the verified index of an open transfer, or post TransferFailed."""
        if transfer not in self._open:
            return
        path = self._path(transfer, "index")
        try:
            self._write_new(path.with_suffix(".new"), index).replace(path)
            _sync_directory(self._partial)  # without its index, no chunk on disk counts
        except OSError as error:
            self._fail_by(transfer, error)

    def write_chunk(self, transfer: str, offset: int, payload: bytes) -> None:
        """Write a verified chunk of an open transfer, or post TransferFailed."""
        try:
            self._respect_reserve(len(payload))
            with self._lock:
                part = self._open.get(transfer)
                if part is None:
                    return
                part.write(payload, offset)
                self._unsynced += len(payload)
                if self._unsynced >= SYNC_BYTES and self._idle:
                    # Written out while the rest is still coming, so that the end is not a long
                    # wait, and a power cut costs little.
                    self._unsynced = 0
                    self._idle = False
                    self._submit(self._sync, transfer, part, os.dup(part.fd))
            self._written += len(payload)
        except OSError as error:
            self._fail_by(transfer, error)

    def _sync(self, transfer: str, part: Partial, fd: int) -> None:
        try:
            os.fdatasync(fd)
            part.hash_on(fd, 2 * SYNC_BYTES, self._check_closing)
        except _ClosingError:
            pass
        except OSError as error:
            self._fail_by(transfer, error)  # the kernel says so once, never again at the end
        finally:
            os.close(fd)
            self._idle = True

    def finish(self, offer: Offer) -> None:
        """Decode, hash, fsync and store a complete transfer: post BlobStored or BlobRefused."""
        with self._lock:
            part = self._open.pop(offer.transfer, None)
            if part is not None:
                self._finishing.add(offer.transfer)
        if part is None:
            detail = f"{offer.transfer[:19]}: its partial is not open"
            self._post(BlobRefused(offer.file, Reason.IO_ERROR, detail))
        else:
            self._submit(self._finish, offer, part)

    def close_transfer(self, transfer: str) -> None:
        """Close a partial; its bytes stay until the garbage is collected."""
        with self._lock:
            part = self._open.pop(transfer, None)
            if part is not None:
                os.close(part.fd)

    def _open_transfer(self, offer: Offer) -> None:
        fd = -1
        try:
            path = self._path(offer.transfer, "part")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
            os.ftruncate(fd, offer.transfer_bytes)
            index = self._read_index(offer)
            present = frozenset(self._chunks_present(fd, offer, index)) if index else frozenset()
            gap = next((n for n in range(offer.chunks) if n not in present), offer.chunks)
            upto = min(gap * offer.chunk_bytes, offer.transfer_bytes)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            self._post(TransferFailed(offer.transfer, *_judged(error)))
        except _ClosingError:
            os.close(fd)
        else:
            with self._lock:
                before = self._open.pop(offer.transfer, None)
                if before is not None:
                    os.close(before.fd)
                self._open[offer.transfer] = Partial(fd, offer.transfer_bytes, upto)
            self._post(TransferOpened(offer.transfer, index, present))

    def _read_index(self, offer: Offer) -> bytes:
        """Return the index on disk when it is whole and the promised one, else nothing."""
        try:
            index = _read_bounded(self._path(offer.transfer, "index"), offer.index_bytes)
        except FileNotFoundError:
            return b""
        return index if index is not None and digest_of(index) == offer.index else b""

    def _chunks_present(self, fd: int, offer: Offer, index: bytes) -> Iterator[int]:
        # The bytes are hashed again, so that no map of them needs to be kept and trusted.
        for number in range(offer.chunks):
            self._check_closing()
            length = offer.chunk_length("data", number)
            payload = os.pread(fd, length, number * offer.chunk_bytes)
            if chunk_hash(payload) == index[number * HASH_BYTES : (number + 1) * HASH_BYTES]:
                yield number

    def _finish(self, offer: Offer, partial: Partial) -> None:
        fd = partial.fd
        part = self._path(offer.transfer, "part")
        unpacked = self._path(offer.transfer, "new")
        event: Event
        try:
            if offer.encoding == "identity":
                hexdigest = partial.digest(self._check_closing)
                _compare(offer, hexdigest, os.fstat(fd).st_size)
                os.fsync(fd)
                ready = part
            else:
                if offer.base is not None:
                    self._undo_delta(offer, offer.base, part, unpacked)
                else:
                    self._unpack(fd, offer, unpacked)
                ready = unpacked
            with self._lock:
                self._fresh.add(offer.file)
            ready.replace(self.blob_path(offer.file))
            _sync_directory(self._blobs)
            event = BlobStored(offer.file)
        except _ClosingError:
            unpacked.unlink(missing_ok=True)
            os.close(fd)
            return
        except _RefusalError as refusal:
            event = BlobRefused(offer.file, refusal.reason, refusal.detail)
        except OSError as error:
            event = BlobRefused(offer.file, *_judged(error))
        os.close(fd)
        with self._lock:
            self._finishing.discard(offer.transfer)
            if isinstance(event, BlobRefused):
                self._fresh.discard(offer.file)
        for path in (part, unpacked, self._path(offer.transfer, "index")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._post(event)

    def _unpack(self, fd: int, offer: Offer, target: Path) -> None:
        import zstandard  # only while a compressed file is finished

        hasher = hashlib.sha256()
        size = 0
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
        os.lseek(fd, 0, os.SEEK_SET)
        with (
            os.fdopen(os.dup(fd), "rb") as packed,
            target.open("xb", buffering=0) as out,
            decompressor.stream_reader(packed, closefd=False) as reader,
        ):
            while True:
                self._check_closing()
                try:
                    piece = reader.read(PIECE_BYTES)
                except zstandard.ZstdError as error:
                    raise _RefusalError(
                        Reason.BAD_ARTIFACT, f"{offer.transfer[:19]}: expected zstd, got {error}"
                    ) from None
                if not piece:
                    break
                size += len(piece)
                if size > offer.file_bytes:
                    raise _RefusalError(
                        Reason.BAD_ARTIFACT,
                        f"{offer.file[:19]}: expected {offer.file_bytes} bytes unpacked, got more",
                    )
                self._respect_reserve(len(piece))
                hasher.update(piece)
                write_all(out.fileno(), piece, size - len(piece))
                self._written += len(piece)
            _compare(offer, hasher.hexdigest(), size)
            os.fsync(out.fileno())

    def _undo_delta(self, offer: Offer, base: str, delta: Path, target: Path) -> None:
        """Make the file in a child: decoding needs numpy, and memory that goes away with it."""
        self._respect_reserve(offer.file_bytes)
        command = [*DECODE_COMMAND, "--base", str(self.blob_path(base)), "--delta", str(delta)]
        command += ["--out", str(target), "--max-bytes", str(offer.file_bytes)]
        status, said = self._run(command)
        if status:
            words = said.decode("utf-8", "replace").strip().splitlines()
            why = words[-1][:300] if words else f"exit status {status}"
            raise _RefusalError(Reason.BAD_ARTIFACT, f"the delta was not decoded: {why}")
        self._written += offer.file_bytes
        with target.open("rb") as out:
            size = os.fstat(out.fileno()).st_size
            hexdigest = Partial(out.fileno(), size).digest(self._check_closing)
            _compare(offer, hexdigest, size)
            os.fsync(out.fileno())

    def _run(self, command: list[str]) -> tuple[int, bytes]:
        """Run a child to its end, for as long as we are not closing; return status and stderr."""
        silent = subprocess.DEVNULL
        deadline = time.monotonic() + DECODE_S
        with subprocess.Popen(
            command, stdin=silent, stdout=silent, stderr=subprocess.PIPE
        ) as child:
            try:
                while True:
                    self._check_closing()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        said = child.communicate(timeout=LOOK_UP_S)[1]
                        return child.returncode, said
                    if time.monotonic() > deadline:
                        detail = f"the delta was not decoded within {DECODE_S:.0f} s"
                        raise _RefusalError(Reason.BAD_ARTIFACT, detail)
            finally:
                child.kill()

    # ---- small change

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        if not self._closing:
            self._jobs.put(partial(work, *arguments))

    def _work(self) -> None:
        while not self._closing:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:  # a mistake of ours must not end the thread unseen
                log.error("slots: unexpected %r", error)

    def _check_closing(self) -> None:
        if self._closing:
            raise _ClosingError

    def _fail_by(self, transfer: str, error: OSError) -> None:
        self._fail(transfer, *_judged(error))

    def _fail(self, transfer: str, reason: Reason, detail: str) -> None:
        self.close_transfer(transfer)
        self._post(TransferFailed(transfer, reason, detail))

    def _path(self, transfer: str, suffix: str) -> Path:
        return self._partial / f"{digest_hex(transfer)}.{suffix}"

    def _free_bytes(self) -> int:
        volume = os.statvfs(self._root)
        return volume.f_bavail * volume.f_frsize

    def _respect_reserve(self, coming: int) -> None:
        if not self._reserve_bytes:
            return
        self._headroom -= coming
        if self._headroom >= 0:
            return
        free = self._free_bytes() - coming
        if free < self._reserve_bytes:
            raise OSError(
                errno.ENOSPC, f"{self._reserve_bytes} bytes are to stay free, {free} would"
            )
        self._headroom = min(free - self._reserve_bytes, LOOK_AT_SPACE_BYTES)

    def _write_new(self, path: Path, data: bytes) -> Path:
        """Write and fsync a file that is then renamed to where it belongs."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._written += len(data)
        return path


def _lock(root: Path) -> int:
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise DeviceError(
            f"data_dir {root}: another agent (process {holder}) uses it; "
            f"give each agent a data_dir of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _judged(error: OSError) -> tuple[Reason, str]:
    reason = Reason.NO_SPACE if error.errno in _FULL else Reason.IO_ERROR
    return reason, error.strerror or str(error)


def _compare(offer: Offer, hexdigest: str, size: int) -> None:
    if size != offer.file_bytes:
        detail = f"{offer.file[:19]}: expected {offer.file_bytes} bytes, got {size}; deleted"
        raise _RefusalError(Reason.DIGEST_MISMATCH, detail)
    if f"sha256:{hexdigest}" != offer.file:
        detail = f"expected {offer.file[:19]}, got sha256:{hexdigest[:12]}; deleted"
        raise _RefusalError(Reason.DIGEST_MISMATCH, detail)


def _read_bounded(path: Path, limit: int) -> bytes | None:
    """Return a regular file's bytes, or None when there are more than `limit`."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # the next collection finds it again
        log.warning("%s: cannot be deleted: %s", path, error.strerror)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
