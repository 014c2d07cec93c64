"""What this device reports, for a Prometheus on it or near it: `GET /metrics`.

Imported only where the configuration asks for it. Health is the latest report; counts are those
of the windows since the agent started, so they move once a window.
"""

import logging
import socket
import socketserver
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TypeVar

from agent.errors import DeviceError
from wire import VERSION
from wire.metrics import (
    DEVICE_RELEASES,
    PREFIX,
    Buckets,
    Family,
    Labels,
    Metric,
    health_families,
)
from wire.telemetry import Estimate, Golden, Health, Histogram, ScoreWindow

log = logging.getLogger(__name__)

T = TypeVar("T", Golden, Estimate)

MAX_RELEASES = 32
"""Of those counted here; the one that was silent longest makes room."""
REQUEST_S = 5.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUILD = Metric(
    f"{PREFIX}agent_build_info", "gauge", "1, with the agent's version.", ("device", "version")
)


@dataclass(slots=True)
class _Sum:
    """Windows of one release, added up."""

    requests: int = 0
    errors: int = 0
    drops: int = 0
    slo_misses: int = 0
    latency: Histogram = Histogram()  # noqa: RUF009 - frozen
    labelled: int = 0
    correct: int = 0
    orphan_labels: int = 0
    golden: Golden | None = None
    estimate: Estimate | None = None

    def add(self, window: ScoreWindow) -> None:
        self.requests += window.requests
        self.errors += window.errors
        self.drops += window.drops
        self.slo_misses += window.slo_misses
        self.latency = self.latency.merge(window.latency)
        self.labelled += window.labelled
        self.correct += window.correct
        self.orphan_labels += window.orphan_labels
        self.golden = _added(self.golden, window.golden)
        self.estimate = _added(self.estimate, window.estimate)


def _added(one: T | None, other: T | None) -> T | None:
    if one is None or other is None:
        return one or other
    sums = {name: getattr(one, name) + getattr(other, name) for name in type(one).model_fields}
    return one.model_copy(update=sums)


class Metrics:
    """A page of metrics on an address of this device, served by a thread of its own."""

    def __init__(self, address: tuple[str, int], device: str) -> None:
        """Listen.

        Raises:
            DeviceError: the address cannot be had.
        """
        self._device = device
        self._lock = threading.Lock()
        self._health: Health | None = None
        self._sums: dict[tuple[str, int], _Sum] = {}
        try:
            self._server = _Server(address, self)
        except OSError as error:
            raise DeviceError(
                f"metrics: cannot listen on {address[0]}:{address[1]}: {error.strerror}; "
                f"choose another [metrics] listen"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def note(self, item: object) -> None:
        """Take in what the device is about to report; anything else is passed over."""
        with self._lock:
            if isinstance(item, Health):
                self._health = item
            elif isinstance(item, ScoreWindow):
                key = (item.model, item.version)
                known = self._sums.pop(key, None) or _Sum()
                known.add(item)
                self._sums[key] = known
                if len(self._sums) > MAX_RELEASES:
                    del self._sums[next(iter(self._sums))]

    def page(self) -> bytes:
        """Return everything in Prometheus's text format."""
        with self._lock:
            families = [Family(BUILD, [((self._device, VERSION), 1.0)])]
            if self._health is not None:
                families += health_families(self._health)
            families += DEVICE_RELEASES.families(
                ((self._device, model, str(version)), counts)
                for (model, version), counts in sorted(self._sums.items())
            )
        return "".join(_text(family) for family in families if family.samples).encode()

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(REQUEST_S)


class _Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], metrics: Metrics) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.metrics = metrics
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asked went away; the next one is served."""
        log.debug("metrics: %s left midway", client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_S
    server: _Server
    server_version = "farflung-agent"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        if self.path.split("?", 1)[0] != "/metrics":
            self.send_error(404, "the metrics are at /metrics")
            return
        page = self.server.metrics.page()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("metrics: %s", format % args)


def _text(family: Family) -> str:
    metric = family.metric
    lines = [f"# HELP {metric.name} {_help(metric.help)}\n# TYPE {metric.name} {metric.kind}\n"]
    for labels, value in family.samples:
        if isinstance(value, Buckets):
            lines += [
                f"{metric.name}_bucket{_labels(metric, labels, ('le', _bound(bound)))} {count}\n"
                for bound, count in value.bounds
            ]
            lines.append(f"{metric.name}_sum{_labels(metric, labels)} {value.sum!r}\n")
            lines.append(f"{metric.name}_count{_labels(metric, labels)} {value.bounds[-1][1]}\n")
        else:
            lines.append(f"{metric.name}{_labels(metric, labels)} {float(value)!r}\n")
    return "".join(lines)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _labels(metric: Metric, values: Labels, *more: tuple[str, str]) -> str:
    pairs = (*zip(metric.labels, values, strict=True), *more)
    inner = ",".join(f'{name}="{_value(value)}"' for name, value in pairs)
    return f"{{{inner}}}" if inner else ""


def _value(text: str) -> str:
    return _help(text).replace('"', r"\"")
