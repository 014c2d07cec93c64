"""`fleet serve`: the embedded broker, the controller and its API, in one process."""

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import click

from fleet.cli.log import log_to_stderr
from fleet.cli.render import answer
from fleet.cli.session import USAGE, Session, common
from fleet.core.errors import FleetError
from fleet.core.keeping import MEBIBYTE, SAMPLES_DAYS, SAMPLES_MB, TELEMETRY_DAYS
from fleet.core.views import Refusal, View
from fleet.shell.blobs import CHUNK_BYTES, MAX_CHUNK_BYTES

DEFAULT_BROKER_PORT = 1883
_PORTS = {"mqtt": 1883, "mqtts": 8883}


class ServeView(View):
    """Where the controller is: what `fleet serve --json` prints once it is ready."""

    api: str
    broker: str
    data: str


@dataclass(frozen=True)
class _Access:
    """A broker, and how the controller and the devices log in there."""

    url: str
    controller: tuple[str, str]
    device: tuple[str, str]


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("farflung-data"),
    show_default=True,
    help="Directory of everything that must not be lost.",
)
@click.option("--listen", default="127.0.0.1:8700", show_default=True, metavar="HOST:PORT")
@click.option(
    "--broker",
    default="nats",
    show_default=True,
    metavar="nats|mosquitto|mqtt://USER@HOST:PORT",
    help="Start this one, or use one of yours.",
)
@click.option(
    "--broker-port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_BROKER_PORT,
    show_default=True,
    help="Of the broker started here; 0: a free one, kept over restarts.",
)
@click.option(
    "--broker-password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One line: the password of USER at your broker.",
)
@click.option(
    "--chunk-bytes",
    type=click.IntRange(1024, MAX_CHUNK_BYTES),
    default=CHUNK_BYTES,
    show_default=True,
    help="How much of a model one message carries; less where the broker or the line asks for it.",
)
@click.option(
    "--per-device-topics",
    is_flag=True,
    help="Send every device its own copy, where the broker's policy allows no shared topic.",
)
@click.option(
    "--alerts",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What is worth an alert, and what is done then; else alerts.toml in --data, if there.",
)
@click.option(
    "--telemetry-days",
    type=click.IntRange(1, 90),
    default=TELEMETRY_DAYS,
    show_default=True,
    help="How long windows and health are kept as they came; their sums are kept longer.",
)
@click.option(
    "--samples-days",
    type=click.IntRange(1, 366),
    default=SAMPLES_DAYS,
    show_default=True,
    help="How long captured inputs are kept.",
)
@click.option(
    "--samples-mb",
    type=click.IntRange(1, 1_000_000),
    default=SAMPLES_MB,
    show_default=True,
    help="How much of them is kept, in MiB.",
)
@common
@click.pass_obj
def serve(
    session: Session,
    *,
    data: Path,
    listen: str,
    broker: str,
    broker_port: int,
    broker_password_file: Path | None,
    chunk_bytes: int,
    per_device_topics: bool,
    alerts: Path | None,
    telemetry_days: int,
    samples_days: int,
    samples_mb: int,
) -> None:
    """Run the controller until SIGTERM or Ctrl-C."""
    log_to_stderr()
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    host, port = _address(listen)
    with ExitStack() as stack:
        stack.enter_context(_sole_owner(data))
        access = stack.enter_context(_broker(broker, data, broker_port, broker_password_file))
        url = stack.enter_context(
            _controller(
                data,
                access,
                host,
                port,
                chunk_bytes=chunk_bytes,
                shared=not per_device_topics,
                samples_bytes=samples_mb * MEBIBYTE,
                samples_days=samples_days,
                alerts=alerts,
                telemetry_days=telemetry_days,
            )
        )
        view = ServeView(api=url, broker=access.url, data=str(data.absolute()))
        answer(session, view, _screen(view))
        _say_next(session, url)
        _notify("READY=1")
        stop.wait()
        _notify("STOPPING=1")
        session.say("stopping")


def _screen(view: ServeView) -> list[str]:
    return [f"controller  {view.api}", f"broker      {view.broker}", f"data        {view.data}"]


def _say_next(session: Session, url: str) -> None:
    if url != session.controller:
        session.say(f"next: export FARFLUNG_CONTROLLER={url}")
    session.say("next: fleet device config cam-1 > agent.toml")
    session.say("next: fleet model push MODEL.onnx")


@contextmanager
def _sole_owner(data: Path) -> Iterator[None]:
    """Hold the data directory: two controllers in one would undo each other's work."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (data / "serve.lock").open("a")
    except OSError as error:
        raise FleetError(
            f"data: expected a directory to write in, got {data}: {error.strerror}",
            "fleet serve --data DIR",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetError(
                f"data: {data} is in use by another controller",
                "stop it, or fleet serve --data ANOTHER_DIR",
            ) from None
        yield


@contextmanager
def _broker(choice: str, data: Path, port: int, password_file: Path | None) -> Iterator[_Access]:
    if choice not in ("nats", "mosquitto"):
        yield _foreign(choice, password_file)
        return
    from fleet.shell.broker import BrokerKind, start_broker

    with start_broker(cast(BrokerKind, choice), data, port) as running:
        yield _Access(running.url, running.credentials("controller"), running.credentials("device"))


def _foreign(text: str, password_file: Path | None) -> _Access:
    """Read `mqtt://user@host:port` (or `mqtts`); devices log in there as the controller does."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if parts.scheme not in _PORTS or not host:
        raise FleetError(
            f"--broker: expected nats, mosquitto or mqtt://USER@HOST:PORT, got {text!r}",
            "fleet serve --help",
            USAGE,
        )
    if parts.password is not None:
        raise FleetError(
            "--broker: expected no password on the command line, where everybody sees it",
            "fleet serve --broker mqtt://USER@HOST:PORT --broker-password-file FILE",
            USAGE,
        )
    password = password_file.read_text().strip() if password_file else ""
    login = (parts.username or "", password)
    return _Access(f"{parts.scheme}://{host}:{port}", login, login)


@contextmanager
def _controller(
    data: Path, access: _Access, host: str, port: int, **settings: Any
) -> Iterator[str]:
    """Run the controller and its API; give the API's URL. `settings` are the controller's own."""
    from fleet.controller import Controller
    from fleet.shell.api import build_app
    from fleet.shell.api import serve as serve_api
    from fleet.shell.collector import look_seldom

    try:
        controller = Controller(data, access.url, *access.controller, *access.device, **settings)
    except Refusal as refusal:
        raise FleetError(refusal.error, refusal.next_step) from refusal
    with ExitStack() as stack:
        # The API first: a taken port must be known before the controller speaks to devices.
        stack.callback(controller.stop)
        controller.begin()
        api = serve_api(build_app(controller), host, port)
        stack.callback(api.stop)
        # For the hooks that alerts call: `fleet` in them speaks to this controller.
        os.environ["FARFLUNG_CONTROLLER"] = api.url
        controller.start()
        look_seldom()
        yield api.url


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise FleetError(
            f"--listen: expected HOST:PORT such as 127.0.0.1:8700, got {listen!r}",
            "fleet serve --help",
            USAGE,
        )
    from fleet.shell.api import check_loopback

    host = host.strip("[]")
    check_loopback(host)
    return host, int(port)


def _notify(state: str) -> None:
    if "NOTIFY_SOCKET" in os.environ:
        from fleet.shell.notify import notify

        notify(state)
