"""The tables [[pipeline]] of agent.toml: source -> model -> sink.

Imported only where there is one: the daemon of a device without pipelines does not carry it.
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from agent.config import MEBIBYTE, BrokerUrl, ConfigError, broker_address
from wire.ids import ModelName

MAX_PIPELINES = 16
MAX_FRAME_BYTES = 15 * MEBIBYTE
QUEUE = 8

Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
LOCAL = "mqtt://127.0.0.1:1883"


def _letting_go(text: str) -> str:
    if text not in ("delete", "leave") and "/" not in text:
        raise ValueError('expected "delete", "leave", or a directory with a / in its path')
    return text


def _topic(text: str) -> str:
    if not text or len(text.encode()) > 65535 or any(c in text for c in "+#\0"):
        raise ValueError("expected one topic, without + and #")
    return text


def _topic_filter(text: str) -> str:
    levels = text.split("/")
    hashes = [place for place, level in enumerate(levels) if "#" in level]
    plain = all(level in ("+", "#") for level in levels if "+" in level or "#" in level)
    if not text or "\0" in text or not plain or hashes not in ([], [len(levels) - 1]):
        raise ValueError('expected a topic, perhaps with "+" for one level or "#" for all below')
    return text


LettingGo = Annotated[str, AfterValidator(_letting_go)]


@dataclass(frozen=True, slots=True)
class Places:
    """Where relative paths start."""

    config: Path
    state: Path
    """What the service may write to."""
    credentials: Path


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DirectorySource(_Table):
    """Files that appear in a directory."""

    directory: str
    pattern: str = "*"
    """Of their names, as a shell would have it; hidden ones and *.tmp, *.part never count."""
    settle_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """A file that did not change for so long is whole; 0: writers rename whole ones into place."""
    done: LettingGo
    """What becomes of files that were answered: "delete", "leave", or a directory to move to."""
    failed: LettingGo | None = None
    """The same for files that the model refused; left out: as `done`."""

    def plan(self, places: Places) -> dict[str, Any]:
        """Return what the process is told."""

        def path(text: str) -> str:
            return text if text in ("delete", "leave") else str(places.state / text)

        return {
            "directory": str(places.state / self.directory),
            "pattern": self.pattern,
            "settle_s": self.settle_s,
            "done": path(self.done),
            "failed": path(self.failed or self.done),
        }


class CommandSource(_Table):
    """What a command writes to its standard output; it is started again when it ends."""

    command: Words
    frames: Literal["jpeg", "lines", "length"] | Annotated[int, Field(ge=1, le=MAX_FRAME_BYTES)]
    """JPEG images; lines; a 4-byte length (big-endian) before each; or so many bytes each."""

    def plan(self, _places: Places) -> dict[str, Any]:
        """Return what the process is told."""
        return {"command": list(self.command), "frames": self.frames}


class _Mqtt(_Table):
    mqtt: str
    broker: BrokerUrl = LOCAL
    qos: Literal[0, 1] = 0
    ca_file: str | None = None
    username: str | None = None
    password_file: str | None = None

    def plan(self, places: Places) -> dict[str, Any]:
        """Return what the process is told."""
        password = None
        if self.password_file is not None:
            password = _read(places.credentials / self.password_file).rstrip("\r\n")
        host, port, tls = broker_address(self.broker)
        ca_file = None if self.ca_file is None else str(places.config / self.ca_file)
        broker = {"host": host, "port": port, "tls": tls, "ca_file": ca_file}
        broker |= {"username": self.username, "password": password}
        return {"mqtt": self.mqtt, "qos": self.qos, "broker": broker}


class MqttSource(_Mqtt):
    """The messages of a topic, or of all that a filter names."""

    mqtt: Annotated[str, AfterValidator(_topic_filter)]


class MqttSink(_Mqtt):
    """A message an answer."""

    mqtt: Annotated[str, AfterValidator(_topic)]
    qos: Literal[0, 1] = 1


class FileSink(_Table):
    """JSON lines in a file, which is renamed FILE.1 and so on when it is full."""

    file: str
    max_mb: Annotated[int, Field(ge=1, le=1024)] = 10
    keep: Annotated[int, Field(ge=0, le=99)] = 2
    """How many full ones stay beside it."""

    def plan(self, places: Places) -> dict[str, Any]:
        """Return what the process is told."""
        file = str(places.state / self.file)
        return {"file": file, "max_bytes": self.max_mb * MEBIBYTE, "keep": self.keep}


class CommandSink(_Table):
    """JSON lines on a command's standard input; it is started again when it ends."""

    command: Words

    def plan(self, _places: Places) -> dict[str, Any]:
        """Return what the process is told."""
        return {"command": list(self.command)}


def _kind(*kinds: str) -> Callable[[Any], str | None]:
    def kind(table: Any) -> str | None:
        found = [each for each in kinds if isinstance(table, dict) and each in table]
        return found[0] if len(found) == 1 else None

    return kind


Source = Annotated[
    Annotated[DirectorySource, Tag("directory")]
    | Annotated[MqttSource, Tag("mqtt")]
    | Annotated[CommandSource, Tag("command")],
    Discriminator(
        _kind("directory", "mqtt", "command"),
        custom_error_type="source",
        custom_error_message="expected a table with one of directory, mqtt, command",
    ),
]
Sink = Annotated[
    Annotated[FileSink, Tag("file")]
    | Annotated[MqttSink, Tag("mqtt")]
    | Annotated[CommandSink, Tag("command")],
    Discriminator(
        _kind("file", "mqtt", "command"),
        custom_error_type="sink",
        custom_error_message="expected a table with one of file, mqtt, command",
    ),
]


class PipelineConfig(_Table):
    """One pipeline."""

    name: ModelName
    model: ModelName
    source: Source
    sink: Sink
    input: Literal["auto", "raw", "bytes", "json"] = "auto"
    """What a frame is: a tensor's own bytes; one element of BYTES (a picture, a text); a JSON list
    of numbers. auto: bytes where the model takes them, else raw."""
    queue: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Frames that wait for the model, 8 unless set; 1 with drop-oldest: the latest alone."""
    when_full: Literal["wait", "drop-oldest", "drop-newest"] | None = None
    """wait unless set, which makes the command wait; drop-oldest with mqtt, which cannot."""
    when_busy: Literal["retry", "drop"] = "retry"
    """What becomes of a frame that the engine has no room for."""
    max_per_s: Annotated[float, Field(gt=0, le=10_000)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "PipelineConfig":
        if isinstance(self.source, DirectorySource):
            for key in ("queue", "when_full"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: expected none with a directory, whose files wait")
            if self.when_busy == "drop":
                raise ValueError("when_busy: expected retry with a directory, whose files wait")
        if isinstance(self.source, MqttSource) and self.when_full == "wait":
            raise ValueError(
                "when_full: expected drop-oldest or drop-newest with mqtt, which cannot wait"
            )
        return self

    def plan(self, places: Places) -> dict[str, Any]:
        """Return what the process is told."""
        waits = not isinstance(self.source, MqttSource)
        return {
            "name": self.name,
            "model": self.model,
            "source": self.source.plan(places),
            "sink": self.sink.plan(places),
            "input": self.input,
            "queue": self.queue or QUEUE,
            "when_full": self.when_full or ("wait" if waits else "drop-oldest"),
            "when_busy": self.when_busy,
            "max_per_s": self.max_per_s or 0.0,
        }


def read_pipelines(tables: Any, places: Places) -> list[dict[str, Any]]:
    """Check the tables and return what the process of the pipelines is told.

    Raises:
        ConfigError: one cannot be used; the message names its key.
    """
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ConfigError("pipeline: expected tables, each under [[pipeline]]")
    if len(tables) > MAX_PIPELINES:
        raise ConfigError(f"pipeline: expected at most {MAX_PIPELINES}, got {len(tables)}")
    plans = []
    for number, table in enumerate(tables, 1):
        where = f"[[pipeline]] {table.get('name', number)}"
        try:
            plans.append(PipelineConfig.model_validate(table).plan(places))
        except ValidationError as error:
            raise ConfigError(f"{where}: {_problem(error)}") from None
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    _differ("name", (plan["name"] for plan in plans))
    _differ("source.directory", (plan["source"].get("directory") for plan in plans))
    _differ("sink.file", (plan["sink"].get("file") for plan in plans))
    return plans


def _differ(key: str, values: Iterable[str | None]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"[[pipeline]] {key}: expected different ones, got {value} twice")
        if value is not None:
            seen.add(value)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"password_file: cannot read {path}: {why}") from None


def _problem(error: ValidationError) -> str:
    # A typo explains the key that is missing because of it, so unknown keys come first.
    problems = sorted(
        error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden"
    )
    problem = problems[0]
    place = [str(part) for part in problem["loc"]]
    end = _end_of(place)
    if end is not None:
        del place[1]  # the tag, which is no key of the file
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = list((end or PipelineConfig).model_fields)
        near = difflib.get_close_matches(place[-1], known, 1)
        hint = f"the nearest is {near[0]}" if near else f"expected one of {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{name}: expected a value, got none"
    expected = problem["msg"].removeprefix("Value error, ")
    if not name:
        return expected
    expected = expected.replace("Input should be", "expected").replace("should", "must")
    return f"{name}: {expected}, got {problem['input']!r:.80}"


_ENDS: dict[tuple[str, str], type[BaseModel]] = {
    ("source", "directory"): DirectorySource,
    ("source", "mqtt"): MqttSource,
    ("source", "command"): CommandSource,
    ("sink", "file"): FileSink,
    ("sink", "mqtt"): MqttSink,
    ("sink", "command"): CommandSink,
}


def _end_of(place: list[str]) -> type[BaseModel] | None:
    return _ENDS.get((place[0], place[1])) if len(place) > 2 else None
