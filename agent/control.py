"""The words between the daemon and an engine process: one JSON object a line, both ways.

The daemon starts `python -m agent.engine --control FD --generation N [--tcp FD] [--unix FD]
[--blame FD] [--regions FD] [--nice N]` with the inherited descriptors of a Unix stream socket
pair, of the listening sockets, of a small file (a memfd will do), and of another socket pair (see
`agent.regions`). The engine exits by itself when the control socket reaches its end: it never
outlives the daemon. While a model is loaded or invoked, the blame file names it (see `BLAME`):
after a crash it says whose that was, and before that who takes too long.

Frozen dataclasses of JSON values, standard library
alone: both the small daemon and the engine import this.
"""

import dataclasses
import json
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar

MAX_LINE_BYTES = 1024 * 1024

BLAME = struct.Struct("<64s64sQ")
"""The blame file: the model that began to run last; the one that has run longest, and since when,
in nanoseconds of the monotonic clock. Names are NUL-padded; zeros while none runs."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model to load: where its files lie and what its manifest says."""

    model: str
    version: int
    manifest: str
    """Release digest."""
    variant: str
    manifest_path: str
    """The manifest's JSON; the engine reads task, tensors, tolerance and so on from it."""
    files: dict[str, str]
    """File digest -> path of its bytes."""


# ---- daemon -> engine


@dataclass(frozen=True, slots=True)
class Load:
    """Load, warm up and check these models; answer Ready or Failed. Sent once, first.

    `golden` False skips the golden samples (a restart of what already passed them).
    """

    KIND: ClassVar[str] = "load"
    models: list[ModelSpec]
    threads: int = 1
    memory_bytes: int = 0
    """Limit of the process's address space beyond what it has at start; 0: none."""
    trial_bytes: int = 0
    """The same until Serve, where the other is 0."""
    golden: bool = True
    nice: int = 0
    """Niceness until Serve."""
    invoke_s: float = 30.0
    """A run that takes longer is stopped, where its runtime can do that."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Accept on the listening sockets, at normal priority."""

    KIND: ClassVar[str] = "serve"
    invoke_s: float = 30.0
    """As in Load, from here on."""
    golden_s: float = 0.0
    """How often the golden samples are run again, while nobody asks; 0: never."""


@dataclass(frozen=True, slots=True)
class Host:
    """Answer shadow requests on a Unix socket bound at `path` (a challenger is told this)."""

    KIND: ClassVar[str] = "host"
    path: str
    cpu_percent: int = 25
    """Of one core, what the process may take for it."""


@dataclass(frozen=True, slots=True)
class ShadowTo:
    """Copy live inputs of `model` to the challenger at `path` (a champion is told this)."""

    KIND: ClassVar[str] = "shadow_to"
    model: str
    path: str
    challenger: str
    """Release digest."""


@dataclass(frozen=True, slots=True)
class ShadowStop:
    """Stop copying inputs of `model`; its tally stays until the next report."""

    KIND: ClassVar[str] = "shadow_stop"
    model: str


@dataclass(frozen=True, slots=True)
class Report:
    """Answer with Scores: what happened since the last report that carried `windows`.

    With `windows` False only the running shadow tallies are wanted and nothing is reset.
    """

    KIND: ClassVar[str] = "report"
    windows: bool = True


@dataclass(frozen=True, slots=True)
class Capture:
    """Keep inputs of `model` that match, a file each; or no more of them, where `count` is 0.

    A file `NAME.sample` in `directory` is a line of JSON, a wire.sample.SampleHead, and the bytes
    behind it; `NAME.label` the true classes, when they come later; `left_out` counts by reason.
    Each is written under another name and then renamed.
    """

    KIND: ClassVar[str] = "capture"
    request: str
    model: str
    which: str = "random"
    """A wire.command.CaptureKind; the line itself has a `kind`."""
    count: int = 0
    max_bytes: int = 0
    """Of all samples of all orders, which lie beside `directory`."""
    until: int = 0
    """Unix seconds."""
    below_percent: int = 60
    one_in: int = 1
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop accepting, finish what is in hand within `deadline_s`, send Scores, exit 0."""

    KIND: ClassVar[str] = "drain"
    deadline_s: float = 10.0
    streams_s: float = 0.0
    """How long clients with open streams may go on with them here."""


# ---- engine -> daemon


@dataclass(frozen=True, slots=True)
class Loaded:
    """One model as it was loaded, with what its trial measured."""

    model: str
    runtime: str
    """Such as `onnxruntime 1.32.0`."""
    load_ms: float
    invoke_ms: float
    """Median of the warm-up."""
    golden_samples: int = 0
    golden_flips: int = 0
    golden_worst: float = 0.0
    """Largest absolute difference from the golden answers."""
    fallback: str = ""
    """Why it runs on the processor although an accelerator is configured."""


@dataclass(frozen=True, slots=True)
class Ready:
    """All models are loaded, warm and conform to their golden samples."""

    KIND: ClassVar[str] = "ready"
    models: list[Loaded]


@dataclass(frozen=True, slots=True)
class Failed:
    """A model could not be loaded or failed its trial; the engine exits after this."""

    KIND: ClassVar[str] = "failed"
    model: str
    reason: str
    """A wire.twin.Reason value: load_failed, golden_mismatch, no_runtime, out_of_memory, ..."""
    detail: str


@dataclass(frozen=True, slots=True)
class Window:
    """Counts of one model since the last report, fields as in wire.telemetry.ScoreWindow."""

    model: str
    version: int
    manifest: str
    variant: str
    start: int
    end: int
    counts: dict[str, Any]
    """requests, errors, drops, latency {bin: n}, predicted, confidence, labelled, correct,
    confusion, orphan_labels, and where there are any confidence_sum, calibration, estimate,
    golden, drift, slo_misses, outcomes, value_errors {bins: {bin: n}}, and shadow {challenger,
    pairs, ...}: the increments."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The whole of one shadow comparison since ShadowTo."""

    model: str
    challenger: str
    pairs: int = 0
    disagreements: int = 0
    labelled: int = 0
    worse: int = 0
    better: int = 0
    dropped: int = 0
    errors: int = 0
    champion_rows: int = 0
    champion_cpu_us: int = 0
    """Processor time of the threads that ran so many rows of live inputs, and the challenger's."""
    challenger_rows: int = 0
    challenger_cpu_us: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer to Report, and the last word of a drained engine."""

    KIND: ClassVar[str] = "scores"
    windows: list[Window] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    final: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log: a line, such as a challenger that stopped answering."""

    KIND: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, slots=True)
class Hung:
    """A run took too long and was stopped; the engine goes on."""

    KIND: ClassVar[str] = "hung"
    model: str
    detail: str


ToEngine = Load | Serve | Host | ShadowTo | ShadowStop | Report | Capture | Drain
FromEngine = Ready | Failed | Scores | Note | Hung

_TO_ENGINE: dict[str, type[Any]] = {
    kind.KIND: kind for kind in (Load, Serve, Host, ShadowTo, ShadowStop, Report, Capture, Drain)
}
_FROM_ENGINE: dict[str, type[Any]] = {
    kind.KIND: kind for kind in (Ready, Failed, Scores, Note, Hung)
}
_NESTED: dict[tuple[str, str], type[Any]] = {
    ("load", "models"): ModelSpec,
    ("ready", "models"): Loaded,
    ("scores", "windows"): Window,
    ("scores", "tallies"): Tally,
}


def write(message: ToEngine | FromEngine) -> bytes:
    """Return a message as the line that travels."""
    body = {"kind": message.KIND, **dataclasses.asdict(message)}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def read_to_engine(line: bytes) -> ToEngine:
    """Read a line from the daemon.

    Raises:
        ValueError: not one of our messages.
    """
    message: ToEngine = _read(line, _TO_ENGINE)
    return message


def read_from_engine(line: bytes) -> FromEngine:
    """Read a line from an engine, which a hostile model may have taken over.

    Raises:
        ValueError: not one of our messages.
    """
    message: FromEngine = _read(line, _FROM_ENGINE)
    return message


def _read(line: bytes, kinds: dict[str, type[Any]]) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"control line: expected at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    try:
        body = json.loads(line)
        name = body.pop("kind")
        kind = kinds[name]
        for key, nested in _NESTED.items():
            if key[0] == name:
                body[key[1]] = [nested(**item) for item in body[key[1]]]
        return kind(**body)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"control line: {error!r} in {line[:80]!r}") from error
