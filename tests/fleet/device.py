"""A lean device for the controller's tests: it speaks the wire over a real broker.

It verifies seals, fetches every offered file chunk by chunk, checks each hash, and then reports
the phases that its script says. What an engine would do is left out; nothing on the wire is.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import zstandard
from paho.mqtt.enums import CallbackAPIVersion

from delta.decode import decode as undo_delta
from wire.codec import Document, decode, encode
from wire.command import Command, CommandResult
from wire.ids import digest_of
from wire.packing import pack
from wire.seal import Verifier
from wire.telemetry import Ack, Batch, DeviceEvent, Health, Item, ScoreWindow
from wire.topics import RULES, Kind, Topic, artifact_filter, build, device_filters, parse
from wire.transfer import CHUNK_BYTES, ChunkFrame, FetchRequest, FramePart, Offer, chunk_hash
from wire.twin import (
    Capabilities,
    DeploymentReport,
    Desired,
    DesiredRelease,
    Phase,
    Reason,
    Reported,
    Serving,
    Status,
)

Script = Callable[[DesiredRelease], tuple[Phase, Reason | None, str]]
"""How a deployment ends on this device."""


def commits(release: DesiredRelease) -> tuple[Phase, Reason | None, str]:
    return Phase.COMMITTED, None, ""


def refuses(version: int) -> Script:
    def script(release: DesiredRelease) -> tuple[Phase, Reason | None, str]:
        if release.version != version:
            return Phase.COMMITTED, None, ""
        return Phase.ROLLED_BACK, Reason.WORSE_THAN_CHAMPION, "27 worse, 6 better, E = 1024"

    return script


class _InterruptedError(Exception):
    """Something else came while fetching."""


class ScriptedDevice:
    def __init__(  # noqa: PLR0917
        self,
        url: str,
        id: str,
        public_key: bytes,
        script: Script = commits,
        labels: dict[str, str] | None = None,
        boot: str = "boot-1",
        max_chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.id = id
        self.script = script
        self.boot = boot
        self.max_chunk_bytes = max_chunk_bytes
        self.labels = labels or {}
        self.acks: list[int] = []
        self.desired: list[Desired] = []
        self.frames = 0
        self.taken: list[Offer] = []
        self.files: dict[str, bytes] = {}
        self.serving: dict[str, Serving] = {}
        self.deployments: dict[str, DeploymentReport] = {}
        self.revision = 0
        self.sequence = 0
        self.muted = threading.Event()
        self._verifier = Verifier((public_key,))
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._stopping = False
        self._listening = ""
        parts = urlsplit(url)
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, f"{id}-{boot}", protocol=mqtt.MQTTv311
        )
        self._client.username_pw_set("tester", "secret")
        self._client.reconnect_delay_set(1, 1)
        will = Status(device=id, online=False, nonce=boot, since=1)
        self._client.will_set(self._topic(Kind.STATUS), encode(will), qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = lambda c, u, message: self._inbox.put(message)
        self._client.connect_async(parts.hostname or "", parts.port or 0, keepalive=5)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "ScriptedDevice":
        self._thread.start()
        self._client.loop_start()
        return self

    def stop(self) -> None:
        self._stopping = True
        self._inbox.put(None)
        self._thread.join(10)
        self._publish(Kind.STATUS, Status(device=self.id, online=False, nonce=self.boot, since=1))
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, *items: Item, complete: bool = True) -> None:
        batch = Batch(
            device=self.id,
            windows=tuple(item for item in items if isinstance(item, ScoreWindow)),
            health=tuple(item for item in items if isinstance(item, Health)),
            events=tuple(item for item in items if isinstance(item, DeviceEvent)),
            complete=complete,
        )
        self.send_bytes(pack(batch))

    def send_bytes(self, payload: bytes) -> None:
        """Send what may be no batch at all."""
        self._client.publish(self._topic(Kind.BATCH), payload, RULES[Kind.BATCH].qos)

    def ask(self, request: FetchRequest) -> None:
        self._publish(Kind.FETCH, request)

    def report(self) -> None:
        self.sequence += 1
        self._publish(
            Kind.REPORTED,
            Reported(
                device=self.id,
                desired_revision=self.revision,
                agent="0.1.0",
                boot=self.boot,
                sequence=self.sequence,
                labels=self.labels,
                capabilities=Capabilities(
                    runtimes={"onnxruntime": "1.24.1"},
                    architecture="x86_64",
                    max_chunk_bytes=self.max_chunk_bytes,
                ),
                serving=tuple(self.serving.values()),
                deployments=tuple(self.deployments.values()),
            ),
        )

    def _topic(self, kind: Kind) -> str:
        return build(Topic(kind, self.id))

    def _publish(self, kind: Kind, body: Document) -> None:
        rule = RULES[kind]
        self._client.publish(self._topic(kind), encode(body), rule.qos, rule.retain)

    def _on_connect(self, client: mqtt.Client, *rest: object) -> None:
        filters = [*device_filters(self.id), *filter(None, [self._listening])]
        client.subscribe([(each, 0) for each in filters])
        self._publish(Kind.STATUS, Status(device=self.id, online=True, nonce=self.boot, since=1))
        self.report()

    def _run(self) -> None:
        while not self._stopping:
            message = self._inbox.get()
            if message is None:
                return
            try:
                self._handle(message)
            except _InterruptedError as news:
                self._inbox.put(news.args[0])

    def _handle(self, message: mqtt.MQTTMessage) -> None:
        topic = parse(message.topic)
        assert topic is not None
        match topic.kind:
            case Kind.DATA:
                self.frames += 1
            case Kind.ACK:
                self.acks.append(decode(Ack, message.payload).seq)
            case Kind.DESIRED if not self.muted.is_set():
                self._follow(self._verifier.open(Desired, message.payload))
            case Kind.COMMAND if not message.retain:
                command = self._verifier.open(Command, message.payload)
                result = CommandResult(device=self.id, id=command.id, outcome="done")
                self._client.publish(message.topic + "/result", encode(result), 1)

    def _is_newer(self, message: mqtt.MQTTMessage) -> bool:
        return self._verifier.open(Desired, message.payload).revision > self.revision

    def _follow(self, desired: Desired) -> None:
        if desired.revision <= self.revision:
            return
        self.desired.append(desired)
        self.revision = desired.revision
        for release in desired.releases:
            self._deploy(release)
        self.report()

    def _deploy(self, release: DesiredRelease) -> None:
        current = self.serving.get(release.model)
        if current is not None and current.manifest == release.manifest:
            return
        before = self.deployments.get(release.model)
        if before is not None and (before.rollout, before.manifest, before.purpose) == (
            release.rollout,
            release.manifest,
            release.purpose,
        ):
            return
        self._phase(release, Phase.FETCHING)
        for offer in release.offers:
            at_hand = offer.base is None or offer.base in self.files
            if offer.file not in self.files and at_hand:
                self.taken.append(offer)
                self.files[offer.file] = self._fetch(offer)
        self._phase(release, Phase.PROBATION)
        phase, reason, detail = self.script(release)
        if phase is Phase.COMMITTED:
            self.serving[release.model] = Serving(
                model=release.model,
                version=release.version,
                manifest=release.manifest,
                variant="int8-onnx",
                runtime="onnxruntime 1.32.0",
                since=int(time.time()),
            )
        self._phase(release, phase, reason, detail)

    def _phase(
        self, release: DesiredRelease, phase: Phase, reason: Reason | None = None, detail: str = ""
    ) -> None:
        self.deployments[release.model] = DeploymentReport(
            model=release.model,
            version=release.version,
            rollout=release.rollout,
            purpose=release.purpose,
            manifest=release.manifest,
            phase=phase,
            since=int(time.time()),
            reason=reason,
            detail=detail,
        )
        self.report()

    def _fetch(self, offer: Offer) -> bytes:
        self._listening = artifact_filter(offer.index)
        self._client.subscribe(self._listening, 0)
        index = self._fetch_part(offer, "index", None)
        assert digest_of(index) == offer.index
        hashes = [index[at : at + 32] for at in range(0, len(index), 32)]
        data = self._fetch_part(offer, "data", hashes)
        self._client.unsubscribe(self._listening)
        self._listening = ""
        assert digest_of(data) == offer.transfer
        if offer.encoding == "zstd":
            data = zstandard.ZstdDecompressor().decompress(data, offer.file_bytes)
        if offer.base is not None:
            data = bytes(undo_delta(self.files[offer.base], data, offer.file_bytes))
        assert digest_of(data) == offer.file
        return data

    def _fetch_part(self, offer: Offer, part: FramePart, hashes: list[bytes] | None) -> bytes:
        missing = set(range(offer.part_chunks(part)))
        chunks: dict[int, bytes] = {}
        asked_at = 0.0
        while missing and not self._stopping:
            if time.monotonic() - asked_at > 0.7:
                first = min(missing)
                self.ask(FetchRequest.of(offer.index, part, [n for n in missing if n < first + 64]))
                asked_at = time.monotonic()
            try:
                message = self._inbox.get(timeout=0.2)
            except queue.Empty:
                continue
            topic = parse(message.topic) if message else None
            if topic is None or (topic.kind is Kind.DESIRED and self._is_newer(message)):
                raise _InterruptedError(message)
            if topic.owner != offer.index:
                continue
            self.frames += 1
            frame = ChunkFrame.decode(message.payload)
            if frame.part == part and frame.number in missing:
                if hashes is not None:
                    assert chunk_hash(frame.payload) == hashes[frame.number]
                chunks[frame.number] = frame.payload
                missing.discard(frame.number)
                if missing and min(missing) % 64 == 0:
                    asked_at = 0.0
        return b"".join(chunks[number] for number in sorted(chunks))
