"""Who hears telemetry in bench ingest, on one core: `floor`, `bare` (they count), `controller`.

Run as `python -m scripts.benches._ingest_side ROLE URL DIRECTORY CORE`.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from wire.topics import controller_filters

PROGRESS = "bench/progress"
QOS = {"floor": 1, "bare": 0}
"""With which those that count are sent every message."""

EVERY = 50
"""Messages after which the floor says how many it counted."""


def main() -> None:
    """Take part until a signal comes."""
    role, url, directory, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    end = _controller(url, Path(directory)) if role == "controller" else _floor(url, QOS[role])
    over.wait()
    end()
    cpu = os.times()
    print(cpu.user + cpu.system, flush=True)


def _floor(url: str, qos: int) -> "object":
    """Subscribe to what the controller does, and only count."""
    counted = 0

    def count(client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        nonlocal counted
        counted += 1
        if counted % EVERY == 0:
            client.publish(PROGRESS, str(counted), 0)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="counts")
    client.on_message = count
    client.on_subscribe = lambda *_: print("ready", flush=True)
    host, port = url.removeprefix("mqtt://").split(":")
    client.connect(host, int(port))
    client.subscribe([(each, qos) for each in controller_filters() if "/t/" in each])
    client.loop_start()
    return client.disconnect


def _controller(url: str, directory: Path) -> "object":
    """Be a controller that knows the release."""
    from fleet.controller import Controller
    from fleet.shell.collector import look_seldom
    from scripts.benches.ingest import ARTIFACT, release
    from wire.ids import digest_of

    controller = Controller(directory, url, "", "", "", "")
    writer = controller.open_blob(digest_of(ARTIFACT))
    writer.write(ARTIFACT)
    writer.finish()
    controller.start()
    look_seldom()
    controller.add_release(release())
    while not controller.health().broker_connected:
        time.sleep(0.05)
    time.sleep(1)  # the subscription is on its way
    print("ready", flush=True)
    return controller.stop


if __name__ == "__main__":
    main()
