"""What an operator may set: one TOML file, checked whole before anything starts."""

import base64
import ipaddress
import json
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from agent.errors import DeviceError
from wire.ids import DeviceId, ModelName, ReleaseRef
from wire.manners import Windows
from wire.topics import ROOT
from wire.transfer import MAX_WINDOW_CHUNKS

Runtime = Literal["onnxruntime", "ai-edge-litert", "tflite-runtime"]
Label = Annotated[str, Field(max_length=100)]
LabelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")]
Seconds = Annotated[int, Field(ge=1, le=86_400)]
MEBIBYTE = 1024 * 1024
MAX_PINS = 64


class ConfigError(DeviceError):
    """The configuration cannot be used; the message names the file and the key."""


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True
    )


def _public_key(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("expected a base64 string")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("expected base64 of a 32-byte Ed25519 public key") from None
    if len(key) != 32:
        raise ValueError(f"expected a 32-byte Ed25519 public key, got {len(key)} bytes")
    return key


def _broker_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
        raise ValueError("expected mqtt://HOST:PORT or mqtts://HOST:PORT")
    if url.username is not None or url.password is not None:
        raise ValueError("expected no name or password in it; use username and password_file")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError("expected nothing after the port")
    try:
        numbered = url.port != 0
    except ValueError:
        numbered = False
    if not numbered:
        raise ValueError("expected a port from 1 to 65535")
    return text


def _timezone(text: str) -> str:
    if text:
        from zoneinfo import ZoneInfo  # only where one is named

        try:
            ZoneInfo(text)
        except (LookupError, ValueError, OSError):
            raise ValueError(
                "expected a time zone that this system knows, such as Europe/Berlin"
            ) from None
    return text


def _pin(text: str) -> str:
    return str(ReleaseRef.parse(text))


def _root(text: str) -> str:
    if not text or len(text) > 40 or any(c in text for c in "+#/$\0 "):
        raise ValueError("expected one topic level of 1 to 40 characters without + # / $")
    return text


def _loopback(text: str) -> str:
    if not text:
        return text
    try:
        host, _ = _split_address(text)
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ValueError('expected HOST:PORT such as 127.0.0.1:8731, or ""') from None
    if not inside:
        raise ValueError(
            "expected a loopback address such as 127.0.0.1:8731: the API knows no passwords"
        )
    return text


def _listen(text: str) -> str:
    if text:
        try:
            host, _ = _split_address(text)
            ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError:
            raise ValueError('expected ADDRESS:PORT such as 127.0.0.1:9464, or ""') from None
    return text


def _split_address(text: str) -> tuple[str, int]:
    url = urlsplit(f"//{text}")
    if url.hostname is None or url.port is None or url.path or url.username is not None:
        raise ValueError("expected HOST:PORT")
    return url.hostname, url.port


Pin = Annotated[str, AfterValidator(_pin)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]


def broker_address(url: str) -> tuple[str, int, bool]:
    """Return host, port (1883 unless the URL says otherwise, 8883 with TLS), and whether TLS."""
    parts = urlsplit(url)
    tls = parts.scheme == "mqtts"
    return parts.hostname or "", parts.port or (8883 if tls else 1883), tls


class BrokerConfig(_Table):
    """Where the fleet's MQTT broker is and how to enter."""

    url: BrokerUrl
    ca_file: Path | None = None
    """PEM certificates to trust for mqtts instead of the system's."""
    username: str | None = None
    password: Annotated[str | None, Field(repr=False)] = None
    password_file: Path | None = None
    """Read at start into `password`; relative to $CREDENTIALS_DIRECTORY where that is set."""
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    root: Annotated[str, AfterValidator(_root)] = ROOT

    @property
    def host(self) -> str:
        """Name or address to connect to."""
        return broker_address(self.url)[0]

    @property
    def tls(self) -> bool:
        """Whether to speak TLS."""
        return broker_address(self.url)[2]

    @property
    def port(self) -> int:
        """Where it listens."""
        return broker_address(self.url)[1]


class ControllerConfig(_Table):
    """Whose orders this device follows."""

    public_keys: Annotated[
        tuple[Annotated[bytes, BeforeValidator(_public_key)], ...],
        Field(min_length=1, max_length=8),
    ]
    """Ed25519 keys, 32 bytes each, written as base64."""


class ApiConfig(_Table):
    """Where apps on this device reach the models."""

    tcp: Annotated[str, AfterValidator(_loopback)] = "127.0.0.1:8731"
    """Empty: no TCP."""
    unix: Path | None = None
    """Path of a Unix socket; $RUNTIME_DIRECTORY/api.sock where that is set."""

    @property
    def tcp_address(self) -> tuple[str, int] | None:
        """Host and port, or None when TCP is off."""
        return _split_address(self.tcp) if self.tcp else None


def _accelerator(given: object) -> object:
    """Take "NAME", or a table of a name and the options that the library itself knows."""
    if isinstance(given, str):
        return {"name": given}
    if isinstance(given, Mapping) and "options" not in given:
        options = {str(key): str(value) for key, value in given.items() if key != "name"}
        return {"name": given.get("name"), "options": options}
    return given


class AcceleratorConfig(_Table):
    """An execution provider or a delegate."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    options: dict[str, str] = {}


Accelerators = Annotated[
    tuple[Annotated[AcceleratorConfig, BeforeValidator(_accelerator)], ...], Field(max_length=8)
]


class EngineConfig(_Table):
    """How models run."""

    threads: Annotated[int, Field(ge=1, le=64)] = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 0
    """Of the engine that answers; trials and challengers are at least at 10."""
    memory_mb: Annotated[int, Field(ge=0)] = 0
    """What an engine may take beyond its own code; 0: no limit."""
    reserve_mb: Annotated[int, Field(ge=0)] = 32
    """Memory that a second engine must leave free; where it would not, the first one ends first."""
    runtimes: tuple[Runtime, ...] = ()
    """The only ones to use; empty: every one that works."""
    providers: Accelerators = ()
    """Of onnxruntime, such as "OpenVINO", tried in this order before the processor."""
    delegates: Accelerators = ()
    """Libraries of TFLite delegates, such as "libedgetpu.so.1", tried before the processor."""
    shadow_cpu_percent: Annotated[int, Field(ge=1, le=100)] = 25
    """Of one core, what a challenger on probation may take beside the champion."""
    start_timeout_s: Seconds = 60
    invoke_timeout_s: Seconds = 30
    """A single run of a model that takes longer is ended, and counts as a crash."""


class TelemetryConfig(_Table):
    """What is reported and how often."""

    window_s: Seconds = 60
    health_s: Seconds = 60
    outbox_bytes: Annotated[int, Field(ge=64 * 1024, le=1024 * MEBIBYTE)] = 4 * MEBIBYTE
    """Room for reports that the controller has not yet acknowledged; without it those that nobody
    saw are merged, then health goes, then windows."""
    outbox_days: Annotated[int, Field(ge=1, le=365)] = 30
    """Of a running agent; then what was not acknowledged is dropped."""
    golden_s: Annotated[int, Field(ge=0, le=30 * 86_400)] = 86_400
    """How often the golden samples are run again, while no app asks; 0: never."""


class CaptureConfig(_Table):
    """Whose inputs may leave this device, on request; by default nobody's."""

    allow: Annotated[tuple[ModelName, ...], Field(max_length=64)] = ()
    """Models. Everything else about a request is refused or bounded below."""
    bytes: Annotated[int, Field(ge=64 * 1024, le=1024 * MEBIBYTE)] = 16 * MEBIBYTE
    """What captured inputs may take of the disk until they are sent."""
    days: Annotated[int, Field(ge=1, le=365)] = 7
    """Then what was not sent is deleted."""


class PrivacyConfig(_Table):
    """How classes are counted, where counts themselves may tell too much."""

    epsilon: Annotated[float, Field(ge=0.001, le=10)] | None = None
    """Class counts leave with noise, which costs this much each time; None: as they are."""
    epsilon_day: Annotated[float, Field(ge=0.001, le=100_000)] | None = None
    """What they may cost a day and model: they are told less often then. None: every window."""

    @model_validator(mode="after")
    def _agree(self) -> "PrivacyConfig":
        if self.epsilon_day is not None and self.epsilon is None:
            raise ValueError("expected epsilon beside epsilon_day")
        if self.epsilon_day is not None and self.epsilon_day < (self.epsilon or 0):
            raise ValueError("expected an epsilon_day of at least epsilon")
        return self


class TransferConfig(_Table):
    """How artifacts are fetched."""

    window_chunks: Annotated[int, Field(ge=1, le=MAX_WINDOW_CHUNKS)] = 32
    shared: bool = True
    """Listen to the frames that go to a whole wave; false where the broker denies that topic."""
    max_chunk_bytes: Annotated[int, Field(ge=1024, le=MEBIBYTE)] = 256 * 1024
    """For a broker that carries only short messages: 8 bytes less than what it lets through."""
    bytes_per_s: Annotated[int, Field(ge=0)] = 0
    """What a slow or paid line may carry of them; 0: no cap."""
    windows: Windows = ()
    """Times of the day, such as "01:00-05:00", when they may be fetched; none: at any time."""
    timezone: Annotated[str, AfterValidator(_timezone)] = ""
    """Of the windows, such as "Europe/Berlin"; empty: the system's."""
    source_ca_file: Path | None = None
    """PEM certificates to trust for https sources instead of the system's."""
    reserve_mb: Annotated[int, Field(ge=0)] = 16
    """Free space on the disk that artifacts never touch."""

    @property
    def reserve_bytes(self) -> int:
        """`reserve_mb` in bytes."""
        return self.reserve_mb * MEBIBYTE


class RetentionConfig(_Table):
    """What stays on the disk beside the running and the previous releases."""

    pin: Annotated[tuple[Pin, ...], Field(max_length=MAX_PINS)] = ()
    """Releases, such as "detector@7", that stay once they served here."""
    quota_mb: Annotated[int, Field(ge=0)] = 0
    """What all artifacts together may take; 0: what the disk has."""

    @property
    def pins(self) -> frozenset[tuple[str, int]]:
        """(model, version) of the pinned releases."""
        refs = (ReleaseRef.parse(text) for text in self.pin)
        return frozenset((ref.model, ref.version) for ref in refs)

    @property
    def quota_bytes(self) -> int:
        """`quota_mb` in bytes."""
        return self.quota_mb * MEBIBYTE


class MetricsConfig(_Table):
    """Where a Prometheus may read what is reported."""

    listen: Annotated[str, AfterValidator(_listen)] = ""
    """Address and port; anybody who reaches them may read. Empty: nowhere."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port, or None."""
        return _split_address(self.listen) if self.listen else None


class AgentConfig(_Table):
    """The whole configuration of one agent."""

    device: DeviceId
    data_dir: Path
    labels: Annotated[dict[LabelName, Label], Field(max_length=32)] = {}
    broker: BrokerConfig
    controller: ControllerConfig
    api: ApiConfig = ApiConfig()
    engine: EngineConfig = EngineConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    transfer: TransferConfig = TransferConfig()
    retention: RetentionConfig = RetentionConfig()
    metrics: MetricsConfig = MetricsConfig()
    capture: CaptureConfig = CaptureConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    pipeline: tuple[dict[str, Any], ...] = ()
    """As `agent.pipeline_config` checked and completed them, for the process that runs them."""


def engine_environ(engine: EngineConfig, unusable: Collection[str] = ()) -> dict[str, str]:
    """Return what tells an engine process which runtimes and accelerators it may use."""
    environ = {}
    if engine.runtimes:
        environ["FARFLUNG_RUNTIMES"] = ",".join(engine.runtimes)
    named = {"providers": engine.providers, "delegates": engine.delegates}
    tried = {
        kind: [[each.name, each.options] for each in several if each.name not in unusable]
        for kind, several in named.items()
    }
    if any(tried.values()):
        environ["FARFLUNG_ACCELERATORS"] = json.dumps(tried)
    return environ


def privacy_environ(privacy: PrivacyConfig) -> dict[str, str]:
    """Return what tells an engine process what class counts may cost, as decimal numbers."""
    if privacy.epsilon is None:
        return {}
    given = [privacy.epsilon] + [day for day in (privacy.epsilon_day,) if day is not None]
    # A count of millionths is what a controller adds up, so no finer.
    return {"FARFLUNG_PRIVACY": ",".join(str(round(each, 6)) for each in given)}


_TABLES: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in AgentConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


def load_config(path: Path, environ: Mapping[str, str] = os.environ) -> AgentConfig:
    """Read and check the configuration.

    Relative paths start at the file's own directory, `data_dir` at $STATE_DIRECTORY where set.

    Raises:
        ConfigError: it cannot be read or used; one line says which key and why.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8, got {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    _fill_in(path, values, environ)
    try:
        return AgentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error, values)}") from None


def _fill_in(path: Path, values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put in what the service manager knows, make paths absolute, read the password."""
    base = path.absolute().parent
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        values.setdefault("data_dir", state)
    # One file serves both a trial by hand and the service, which may write to its own place only.
    _anchor(values, "data_dir", Path(state) if state else base)

    api = values.setdefault("api", {})
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if isinstance(api, dict):
        if runtime:
            api.setdefault("unix", f"{runtime}/api.sock")
        if api.get("unix") == "":
            del api["unix"]
        _anchor(api, "unix", base)

    transfer = values.get("transfer")
    if isinstance(transfer, dict):
        _anchor(transfer, "source_ca_file", base)

    broker = values.get("broker")
    if isinstance(broker, dict):
        _anchor(broker, "ca_file", base)
        if isinstance(broker.get("ca_file"), str):
            _read_text(path, "ca_file", Path(broker["ca_file"]))
        _anchor(broker, "password_file", Path(environ.get("CREDENTIALS_DIRECTORY") or base))
        if isinstance(broker.get("password_file"), str):
            if "password" in broker:
                raise ConfigError(
                    f"{path}: [broker] password: expected one of password and password_file, "
                    f"got both"
                )
            password = _read_text(path, "password_file", Path(broker["password_file"]))
            broker["password"] = password.rstrip("\r\n")

    if values.get("pipeline"):
        values["pipeline"] = _pipelines(path, values["pipeline"], environ)


def _pipelines(path: Path, tables: Any, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    from agent.pipeline_config import Places, read_pipelines

    base = path.absolute().parent
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    places = Places(base, Path(state or base), Path(environ.get("CREDENTIALS_DIRECTORY") or base))
    try:
        return read_pipelines(tables, places)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _anchor(table: dict[str, Any], key: str, base: Path) -> None:
    if isinstance(table.get(key), str):
        table[key] = str(base / table[key])


def _read_text(config: Path, key: str, file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            f"{config}: [broker] {key}: expected a file that can be read, got {file}: "
            f"{error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{config}: [broker] {key}: expected text, got {file}") from None


def _first_problem(error: ValidationError, values: dict[str, Any]) -> str:
    # A typo explains the key that is missing because of it, so unknown keys come first.
    problems = sorted(
        error.errors(include_url=False, include_input=False),
        key=lambda p: p["type"] != "extra_forbidden",
    )
    problem = problems[0]
    place = tuple(part for part in problem["loc"] if part != "[key]")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        return _unknown(place) + more
    if problem["type"] == "missing":
        return f"{_name(place)}: expected a value, got none{_hint(place)}{more}"
    expected = problem["msg"].removeprefix("Value error, ")
    expected = expected.replace("Input should be", "expected").replace("should", "must")
    return f"{_name(place)}: {expected}, got {_shown(place, values)}{more}"


def _name(place: tuple[Any, ...]) -> str:
    head, *rest = (str(part) for part in place)
    if head in _TABLES and rest:
        return f"[{head}] {'.'.join(rest)}"
    return f"[{head}]" if head in _TABLES else ".".join((head, *rest))


def _hint(place: tuple[Any, ...]) -> str:
    if place == ("data_dir",):
        return "; set it, or start under a service manager that sets $STATE_DIRECTORY"
    if place[0] == "controller":
        return "; the controller's 32-byte public key, as base64"
    return ""


def _unknown(place: tuple[Any, ...]) -> str:
    import difflib  # 1 MB, for a mistake alone

    table = str(place[0]) if len(place) > 1 else ""
    key = str(place[-1])
    here = _TABLES[table].model_fields if table in _TABLES else AgentConfig.model_fields
    where = {name: known for known, model in _TABLES.items() for name in model.model_fields}
    where |= dict.fromkeys((n for n in AgentConfig.model_fields if n not in _TABLES), "")
    near = difflib.get_close_matches(key, list(here), 1)
    found = (near[0], table) if near else None
    if found is None and (far := difflib.get_close_matches(key, list(where), 1)):
        found = (far[0], where[far[0]])
    name = _name(place) if table else key
    if found is None:
        return f"{name}: unknown key; expected one of {', '.join(here)}"
    return f"{name}: unknown key; the nearest is {_qualified(*found)}"


def _qualified(key: str, table: str) -> str:
    if table:
        return f"{key} in [{table}]"
    return f"the table [{key}]" if key in _TABLES else f"{key} at the top of the file"


def _shown(place: tuple[Any, ...], values: Any) -> str:
    for part in place:
        if "password" in str(part):
            return "something else"
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return repr(part)
    return repr(values)[:80]
