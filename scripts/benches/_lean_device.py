"""Many devices in one process: the agent's own core and link, without an engine and a disk.

    python -m scripts.benches._lean_device URL USER PUBLIC_KEY DEVICE...

Every device decides by `agent.core.step`, speaks through `agent.shell.link`, checks every chunk
against the signed index, and drops it. A line `{"device", "version", "bytes", "at"}` on standard
output says that a release arrived whole. The broker's password comes in $BENCH_PASSWORD.
"""

import base64
import json
import os
import queue
import sys
import threading
import time

import zstandard

from agent.config import BrokerConfig
from agent.core import actions as do
from agent.core import events as ev
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import next_wake, step
from agent.shell.link import Link
from wire.codec import decode, encode
from wire.ids import digest_of
from wire.manifest import Manifest
from wire.seal import Verifier
from wire.topics import Kind, Topic
from wire.transfer import Offer
from wire.twin import Capabilities

KEPT_BYTES = 256 * 1024
"""Files up to this size are kept: the manifest among them has to be read."""


class LeanDevice:
    """One device: a loop as the daemon's, around the same core and the same link."""

    def __init__(self, id: str, broker: BrokerConfig, public_key: bytes) -> None:
        self._id = id
        self._events: queue.Queue[ev.Event] = queue.Queue(64)
        self._own: list[ev.Event] = []
        self._small: dict[str, bytearray] = {}
        self._files: dict[str, bytes] = {}
        started = int(time.time())
        self._state = AgentState(
            Settings(
                device=id,
                boot=f"b-{id}",
                version="bench",
                started=started,
                labels={"line": "slow" if id == "slow" else "fast"},
                window_s=3600,
            )
        )
        self._link = Link(
            broker,
            device=id,
            verifier=Verifier((public_key,)),
            nonce=f"b-{os.getpid()}",
            started_at=started,
            post=self._events.put,
        )

    def run(self) -> None:
        """Work until the process ends."""
        runtimes = {"onnxruntime": "1"}
        able = Capabilities(architecture="x86_64", runtimes=runtimes, max_chunk_bytes=256 * 1024)
        self._own.append(ev.Booted(Journal(), able, frozenset()))
        self._link.start()
        while True:
            now = Instant(time.monotonic(), time.time())
            self._state, actions = step(self._state, self._next(now), now)
            for action in actions:
                self._carry_out(action)

    def _next(self, now: Instant) -> ev.Event:
        if self._own:
            return self._own.pop(0)
        try:
            return self._events.get(timeout=max(0.0, next_wake(self._state, now) - now.mono))
        except queue.Empty:
            return ev.Ticked()

    def _carry_out(self, action: do.Action) -> None:
        match action:
            case do.PublishReported(reported):
                self._link.publish(Topic(Kind.REPORTED, self._id), encode(reported))
            case do.PublishOnline():
                self._link.publish_online()
            case do.PublishFetch(request):
                self._link.publish(Topic(Kind.FETCH, self._id), encode(request))
            case do.Listen(index, own):
                self._link.listen(index, own)
            case do.Unlisten(index):
                self._link.unlisten(index)
            case do.OpenTransfer(offer):
                if offer.transfer_bytes <= KEPT_BYTES:
                    self._small[offer.transfer] = bytearray(offer.transfer_bytes)
                self._own.append(ev.TransferOpened(offer.transfer, b"", frozenset()))
            case do.WriteChunk(transfer, offset, payload):
                if transfer in self._small:
                    self._small[transfer][offset : offset + len(payload)] = payload
            case do.FinishTransfer(offer):
                self._finish(offer)
            case do.ReadManifest(digest):
                manifest = decode(Manifest, self._files[digest])
                self._own.append(ev.ManifestRead(digest, manifest))
            case do.MeasureSpace():
                self._own.append(ev.SpaceMeasured(2**50, dict.fromkeys(self._state.blobs, 1)))
            case do.StartEngine(_, models):
                self._tell(max(spec.version for spec in models))
            case do.DrainEngine(generation) | do.KillEngine(generation):
                self._own.append(ev.EngineExited(generation, 0))
            case do.Say(text, level) if level != "info" or "for this line" in text:
                print(f"{self._id}: {text}", file=sys.stderr, flush=True)

    def _finish(self, offer: Offer) -> None:
        if offer.transfer in self._small:
            data = bytes(self._small.pop(offer.transfer))
            if offer.encoding == "zstd":
                data = zstandard.decompress(data)
            assert digest_of(data) == offer.file
            self._files[offer.file] = data
        self._own.append(ev.BlobStored(offer.file))

    def _tell(self, version: int) -> None:
        arrived = {"device": self._id, "version": version, "at": time.time(),
                   "bytes": self._state.transfer_bytes}  # fmt: skip
        sys.stdout.write(json.dumps(arrived) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Run the devices of the command line until the process is ended."""
    url, user, key, *ids = sys.argv[1:]
    login = {"username": user, "password": os.environ["BENCH_PASSWORD"]} if user else {}
    broker = BrokerConfig.model_validate({"url": url, **login})
    for id in ids:
        device = LeanDevice(id, broker, base64.b64decode(key))
        threading.Thread(target=device.run, name=id, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
