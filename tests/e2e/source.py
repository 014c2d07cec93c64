"""A controller of one device that answers its fetches as the test says, lies included."""

import base64
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import onnx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.e2e.harness import wait_for
from wire.codec import decode, encode
from wire.ids import digest_of
from wire.manifest import File, Manifest
from wire.packing import unpack
from wire.seal import Sealer
from wire.telemetry import Ack, Health
from wire.topics import Kind, Topic, build, controller_filters, parse
from wire.transfer import ChunkFrame, FetchRequest, Offer, chunk_hash
from wire.twin import DeploymentReport, Desired, DesiredRelease, Probation, Reported

CHUNK = 1024
DEVICE = "cam-1"
SEALER = Sealer(bytes(range(32)))
PUBLIC_KEY = base64.b64encode(SEALER.public).decode()

Spoil = Callable[[ChunkFrame], Iterable[bytes]]
"""From a frame that is right to the messages that are sent in its place."""


def honestly(frame: ChunkFrame) -> Iterable[bytes]:
    return [frame.encode()]


@dataclass(frozen=True)
class Shipment:
    """One file of a release and the form in which it travels."""

    offer: Offer
    travels: bytes

    def part(self, part: str) -> bytes:
        return self.travels if part == "data" else index_of(self.travels)


@dataclass(frozen=True)
class Release:
    manifest: Manifest
    shipments: tuple[Shipment, ...]

    @property
    def model(self) -> str:
        return self.manifest.model


def index_of(data: bytes) -> bytes:
    return b"".join(chunk_hash(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))


def ship(file: bytes, packed: bytes | None = None) -> Shipment:
    """Offer `file` as it is, or claim that `packed` unpacks to it."""
    travels = file if packed is None else packed
    offer = Offer(
        file=digest_of(file),
        file_bytes=len(file),
        encoding="identity" if packed is None else "zstd",
        transfer=digest_of(travels),
        transfer_bytes=len(travels),
        index=digest_of(index_of(travels)),
        chunk_bytes=CHUNK,
    )
    return Shipment(offer, travels)


def release_of(
    folder: Path, version: int, model: str = "digits", packed: bytes | None = None
) -> Release:
    """Make a release of a sample's ONNX variant, with weights that no other release has.

    `packed` travels in their place.
    """
    sample = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    variant = sample.variant("onnx-int8")
    # What is appended to a protobuf message is merged into it.
    mark = onnx.ModelProto(producer_version=f"{model}@{version}").SerializeToString()
    weights = (folder / variant.artifact.name).read_bytes() + mark
    artifact = File(name="model.onnx", digest=digest_of(weights), size_bytes=len(weights))
    variants = (variant.model_copy(update={"artifact": artifact}),)
    changes = {"model": model, "version": version, "variants": variants, "parent": None}
    manifest = sample.model_copy(update=changes)
    others = [(folder / file.name).read_bytes() for file in manifest.shared_files()]
    return Release(manifest, (ship(encode(manifest)), ship(weights, packed), *map(ship, others)))


class Source:
    """Everything the fleet says to one device, by way of a real broker."""

    def __init__(self, url: str) -> None:
        self.version = 1
        """Of the latest release that a test made."""
        self.spoil: Spoil = honestly
        self.asked: Counter[str] = Counter()
        """Index digest -> requests that came."""
        self.health: Health | None = None
        self.reported: Reported | None = None
        self._revision = 0
        self._rollouts = 0
        self._wanted: dict[str, DesiredRelease] = {}
        self._shipments: dict[str, Shipment] = {}
        self._connected = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.max_queued_messages_set(0)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._connected.set()
        self._client.on_message = self._on_message
        address = urlsplit(url)
        assert address.hostname and address.port
        self._client.connect(address.hostname, address.port)
        self._client.loop_start()
        assert self._connected.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    # ---- orders

    def want(self, *releases: Release, claim: dict[str, int] | None = None) -> str:
        """Ask for releases by one more rollout, beside what was asked for of other models.

        `claim` is what every offer says of itself, whatever is true and whatever is allowed.
        """
        self._rollouts += 1
        rollout = f"r-{self._rollouts}"
        for release in releases:
            self._shipments |= {each.offer.index: each for each in release.shipments}
            wanted = DesiredRelease(
                model=release.model,
                version=release.manifest.version,
                rollout=rollout,
                manifest=release.manifest.digest,
                offers=tuple(each.offer for each in release.shipments),
                probation=Probation(labelled_pairs=0),
                fetch_deadline_s=10,
            )
            offers = tuple(offer.model_copy(update=claim or {}) for offer in wanted.offers)
            self._wanted[release.model] = wanted.model_copy(update={"offers": offers})
        self._publish_desired()
        return rollout

    def withdraw(self, model: str) -> None:
        """Ask for nothing of a model any more."""
        del self._wanted[model]
        self._publish_desired()

    def _publish_desired(self) -> None:
        self._revision += 1
        releases = tuple(self._wanted.values())
        desired = Desired(device=DEVICE, revision=self._revision, releases=releases)
        self.publish(Topic(Kind.DESIRED, DEVICE), SEALER.seal(desired), retain=True)

    def publish(self, topic: Topic, body: bytes, *, retain: bool = False) -> None:
        self._client.publish(build(topic), body, 1, retain)

    # ---- answers

    def wait_until_over(self, rollout: str, model: str = "digits") -> DeploymentReport:
        """Wait for how a rollout ended for a model on the device."""

        def over() -> DeploymentReport | None:
            found = [
                each
                for each in (self.reported.deployments if self.reported else ())
                if (each.model, each.rollout) == (model, rollout) and each.phase.final
            ]
            return found[0] if found else None

        return wait_for(f"the end of {rollout}", over, 40)

    def wait_until_serving(self, expected: dict[str, int]) -> None:
        wait_for(f"{expected} to serve", lambda: self.serving() == expected, 20)

    def serving(self) -> dict[str, int]:
        """Return model -> version, of those whose engine is up."""
        assert self.reported is not None
        return {each.model: each.version for each in self.reported.serving if each.runtime}

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(text, 0) for text in controller_filters()])

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        topic = parse(message.topic)
        assert topic is not None
        body = bytes(message.payload)
        match topic.kind:
            case Kind.FETCH:
                self._answer(decode(FetchRequest, body))
            case Kind.REPORTED:
                self.reported = decode(Reported, body)
            case Kind.BATCH:
                batch = unpack(body)
                self.health = next(iter(reversed(batch.health)), self.health)
                if batch.complete:
                    ack = Ack(device=DEVICE, seq=batch.items()[-1].seq)
                    self.publish(Topic(Kind.ACK, DEVICE), encode(ack))

    def _answer(self, request: FetchRequest) -> None:
        self.asked[request.index] += 1
        shipment = self._shipments[request.index]
        source = shipment.part(request.part)
        for number in request.numbers():
            payload = source[number * CHUNK : (number + 1) * CHUNK]
            for body in self.spoil(ChunkFrame(request.part, number, payload)):
                topic = Topic(Kind(request.part), request.index)
                self._client.publish(build(topic), body, 0)
