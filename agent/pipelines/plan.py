"""What the daemon tells this process: the tables [[pipeline]] as they were checked there."""

import json
from dataclasses import dataclass
from typing import Any, Literal

WhenFull = Literal["wait", "drop-oldest", "drop-newest"]
WhenBusy = Literal["retry", "drop"]
Input = Literal["auto", "raw", "bytes", "json"]


@dataclass(frozen=True, slots=True)
class Broker:
    """An MQTT broker and how to enter."""

    host: str
    port: int
    tls: bool
    ca_file: str | None
    username: str | None
    password: str | None


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """Files that appear in a directory."""

    directory: str
    pattern: str
    settle_s: float
    done: str
    """"delete", "leave", or the directory to move to."""
    failed: str


@dataclass(frozen=True, slots=True)
class CommandSource:
    """Frames that a command writes to its standard output."""

    command: list[str]
    frames: str | int


@dataclass(frozen=True, slots=True)
class MqttEnd:
    """A topic to listen to, or to answer on."""

    mqtt: str
    qos: int
    broker: Broker


@dataclass(frozen=True, slots=True)
class FileSink:
    """JSON lines in a file."""

    file: str
    max_bytes: int
    keep: int


@dataclass(frozen=True, slots=True)
class CommandSink:
    """JSON lines on the standard input of a command."""

    command: list[str]


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """One pipeline."""

    name: str
    model: str
    source: DirectorySource | CommandSource | MqttEnd
    sink: FileSink | CommandSink | MqttEnd
    input: Input
    queue: int
    when_full: WhenFull
    when_busy: WhenBusy
    max_per_s: float
    """0: as fast as the model answers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All pipelines, where the models are asked, and where to remember files that stay."""

    api: str
    """unix:/PATH or http://HOST:PORT."""
    state_dir: str
    pipelines: list[PipelinePlan]


def read_plan(line: bytes) -> Plan:
    """Read what the daemon wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        fields = json.loads(line)
        return Plan(
            fields["api"], fields["state_dir"], [_pipeline(each) for each in fields["pipelines"]]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"plan: {error!r}") from error


def _pipeline(fields: dict[str, Any]) -> PipelinePlan:
    kinds = {"directory": DirectorySource, "command": CommandSource, "mqtt": _mqtt}
    source = _end(fields.pop("source"), kinds)
    sink = _end(fields.pop("sink"), {"file": FileSink, "command": CommandSink, "mqtt": _mqtt})
    return PipelinePlan(source=source, sink=sink, **fields)


def _end(fields: dict[str, Any], kinds: dict[str, Any]) -> Any:
    for key, make in kinds.items():
        if key in fields:
            return make(**fields)
    raise ValueError(f"plan: expected one of {', '.join(kinds)}, got {', '.join(fields)}")


def _mqtt(*, mqtt: str, qos: int, broker: dict[str, Any]) -> MqttEnd:
    return MqttEnd(mqtt, qos, Broker(**broker))
