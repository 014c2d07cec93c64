"""Where each message goes. `build` and `parse` are inverses; docs/wire.md shows the table."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from wire.ids import bucket_of, check_id, digest_hex

ROOT = "farflung"


class Kind(StrEnum):
    """What a topic carries."""

    DESIRED = "desired"
    ACK = "ack"
    COMMAND = "cmd"
    RESULT = "result"
    REPORTED = "reported"
    STATUS = "status"
    FETCH = "fetch"
    BATCH = "batch"
    SAMPLE = "sample"
    CAPTURE = "capture"
    SAMPLE_ACK = "samples"
    INDEX = "index"
    DATA = "data"
    OWN_INDEX = "own_index"
    OWN_DATA = "own_data"
    ALERTS = "alerts"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind of message travels."""

    pattern: str
    writer: str
    qos: int
    retain: bool
    body: str


RULES: dict[Kind, Rule] = {
    Kind.DESIRED: Rule("d/{bucket}/{device}/desired", "controller", 1, True, "sealed Desired"),
    Kind.ACK: Rule("d/{bucket}/{device}/ack", "controller", 0, False, "Ack"),
    Kind.COMMAND: Rule("d/{bucket}/{device}/cmd/{verb}/{id}", "controller", 1, False,
                       "sealed Command"),
    Kind.RESULT: Rule("d/{bucket}/{device}/cmd/{verb}/{id}/result", "device", 1, False,
                      "CommandResult"),
    Kind.REPORTED: Rule("d/{bucket}/{device}/reported", "device", 1, True, "Reported"),
    Kind.STATUS: Rule("d/{bucket}/{device}/status", "device", 1, True, "Status"),
    Kind.FETCH: Rule("d/{bucket}/{device}/fetch", "device", 0, False, "FetchRequest"),
    Kind.BATCH: Rule("d/{bucket}/{device}/t/batch", "device", 1, False, "Batch, packed"),
    Kind.SAMPLE: Rule("d/{bucket}/{device}/t/sample", "device", 1, False, "Sample"),
    Kind.CAPTURE: Rule("d/{bucket}/{device}/t/capture", "device", 1, False, "CaptureReport"),
    Kind.SAMPLE_ACK: Rule("d/{bucket}/{device}/samples", "controller", 0, False, "SampleAck"),
    Kind.INDEX: Rule("a/{digest}/index", "controller", 0, False, "ChunkFrame"),
    Kind.DATA: Rule("a/{digest}/data", "controller", 0, False, "ChunkFrame"),
    Kind.OWN_INDEX: Rule("d/{bucket}/{device}/a/{digest}/index", "controller", 0, False,
                         "ChunkFrame"),
    Kind.OWN_DATA: Rule("d/{bucket}/{device}/a/{digest}/data", "controller", 0, False,
                        "ChunkFrame"),
    Kind.ALERTS: Rule("alerts", "controller", 1, True, "Alerts"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic. `owner` is the device id, the index's digest under `a/`, or nobody.

    `id` is a command's, or the index's digest under a device's own `a/`.
    """

    kind: Kind
    owner: str
    verb: str = ""
    id: str = ""


def build(topic: Topic, root: str = ROOT) -> str:
    """Return the topic string."""
    if topic.kind is Kind.ALERTS:
        return f"{root}/alerts"
    if topic.kind in (Kind.INDEX, Kind.DATA):
        return f"{root}/a/{digest_hex(topic.owner)}/{topic.kind}"
    base = device_base(topic.owner, root)
    match topic.kind:
        case Kind.COMMAND:
            return f"{base}/cmd/{topic.verb}/{topic.id}"
        case Kind.RESULT:
            return f"{base}/cmd/{topic.verb}/{topic.id}/result"
        case Kind.BATCH | Kind.SAMPLE | Kind.CAPTURE:
            return f"{base}/t/{topic.kind}"
        case Kind.OWN_INDEX | Kind.OWN_DATA:
            return f"{base}/a/{digest_hex(topic.id)}/{topic.kind.removeprefix('own_')}"
        case _:
            return f"{base}/{topic.kind}"


def parse(text: str, root: str = ROOT) -> Topic | None:
    """Return what a topic string means, or None when it is none of ours.

    A device on a bucket that is not its own is none of ours either.
    """
    if not text.startswith(root + "/"):
        return None
    levels = text[len(root) + 1 :].split("/")
    try:
        return _parse(levels)
    except ValueError:
        return None


def _parse(levels: list[str]) -> Topic | None:
    match levels:
        case ["alerts"]:
            return Topic(Kind.ALERTS, "")
        case ["a", hexed, ("index" | "data") as part]:
            digest = f"sha256:{hexed}"
            digest_hex(digest)
            return Topic(Kind(part), digest)
        case ["d", bucket, device, *rest] if bucket == bucket_of(check_id(device)):
            match rest:
                case [("desired" | "ack" | "reported" | "status" | "fetch" | "samples") as kind]:
                    return Topic(Kind(kind), device)
                case ["t", ("batch" | "sample" | "capture") as kind]:
                    return Topic(Kind(kind), device)
                case ["a", hexed, ("index" | "data") as part]:
                    index = f"sha256:{hexed}"
                    digest_hex(index)
                    return Topic(Kind(f"own_{part}"), device, id=index)
                case ["cmd", verb, id]:
                    return Topic(Kind.COMMAND, device, check_id(verb), check_id(id))
                case ["cmd", verb, id, "result"]:
                    return Topic(Kind.RESULT, device, check_id(verb), check_id(id))
    return None


def device_base(device: str, root: str = ROOT) -> str:
    """Return the prefix of all topics of `device`."""
    return f"{root}/d/{bucket_of(device)}/{check_id(device)}"


def device_filters(device: str, root: str = ROOT, *, samples: bool = False) -> list[str]:
    """Return what a device subscribes to, all at QoS 0; artifacts come on top while fetching.

    Its own status is among them: that is how an agent sees another one with its id. `samples`
    are for a device that consents to send some.
    """
    base = device_base(device, root)
    filters = [f"{base}/desired", f"{base}/ack", f"{base}/cmd/+/+", f"{base}/status"]
    return [*filters, f"{base}/samples"] if samples else filters


def artifact_filter(index: str, root: str = ROOT) -> str:
    """Return the filter for all frames of the transfer with this index."""
    return f"{root}/a/{digest_hex(index)}/+"


def own_filter(device: str, index: str, root: str = ROOT) -> str:
    """Return the filter for all frames of a transfer that are sent to `device` alone."""
    return f"{device_base(device, root)}/a/{digest_hex(index)}/+"


def controller_filters(root: str = ROOT) -> list[str]:
    """Return what the controller subscribes to."""
    base = f"{root}/d/+/+"
    return [
        f"{base}/reported",
        f"{base}/status",
        f"{base}/fetch",
        f"{base}/t/+",
        f"{base}/cmd/+/+/result",
    ]


def table() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield pattern, writer, QoS, retained and body of every kind, for the documentation."""
    for rule in RULES.values():
        yield (
            "{root}/" + rule.pattern,
            rule.writer,
            str(rule.qos),
            "yes" if rule.retain else "no",
            rule.body,
        )
