"""No input leaves a device, unless its own configuration consents and somebody asks for it."""

import base64
import binascii
import contextlib
import json
import re
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from tests.e2e.harness import SAMPLES, Agent, Fleet, wait_for
from tests.e2e.wiretap import Wiretap

RUN = 8
"""So many bytes in a row are taken for a trace of an input."""


class Listener(Wiretap):
    """Keeps every message."""

    def __init__(self, url: str) -> None:
        self.bodies: list[bytes] = []
        super().__init__(url, "#")

    def _on_message(self, client, data, message):  # type: ignore[no-untyped-def]
        self.bodies.append(message.topic.encode() + b"\n" + bytes(message.payload))
        super()._on_message(client, data, message)


def unwrapped(body: bytes) -> list[bytes]:
    """Return a message and all that can be found inside it: inflated, base64, hex."""
    found = [body]
    for at in range(len(body)):
        if body[at] == 0x78:
            with contextlib.suppress(zlib.error):
                found.append(zlib.decompressobj().decompress(body[at:], 1 << 20))
    for text in list(found):
        for run in re.findall(rb"[A-Za-z0-9+/_-]{11,}", text):
            for start in range(4):
                part = run[start : start + (len(run) - start) // 4 * 4]
                with contextlib.suppress(binascii.Error):
                    found.append(base64.b64decode(part, b"+/"))
        for run in re.findall(rb"[0-9a-fA-F]{16,}", text):
            for start in range(2):
                part = run[start : start + (len(run) - start) // 2 * 2]
                found.append(bytes.fromhex(part.decode()))
    return found


def traces(bodies: list[bytes], secret: bytes) -> list[bytes]:
    """Return the messages in which any RUN bytes in a row of `secret` can be found."""
    runs = {secret[at : at + RUN] for at in range(len(secret) - RUN + 1)}
    runs = {run for run in runs if len(set(run)) > 2}
    return [
        body[:80]
        for body in bodies
        if any(
            piece[at : at + RUN] in runs
            for piece in unwrapped(body)
            for at in range(len(piece) - RUN + 1)
        )
    ]


def secret_image() -> np.ndarray:
    values = np.random.default_rng(20261124).random((1, 8, 8, 1))
    return values.astype("<f4")


def ask(agent: Agent, image: np.ndarray, id: str) -> dict:
    body = {
        "id": id,
        "inputs": [{
            "name": "image", "datatype": "FP32", "shape": list(image.shape),
            "data": image.ravel().tolist(),
        }],
    }  # fmt: skip
    request = urllib.request.Request(
        f"{agent.url}/v2/models/digits/infer", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_no_byte_of_an_input_travels_unless_the_device_consents_and_is_asked(
    mosquitto_fleet: Fleet, tmp_path: Path
) -> None:
    fleet = mosquitto_fleet
    shy = fleet.agent("shy")
    open_ = fleet.agent("open", capture={"allow": ["digits"]})
    for agent in (shy, open_):
        fleet.wait_until_online(agent)
    fleet.push(SAMPLES / "digits-1")
    fleet.rollout("digits@1")
    image = secret_image()
    secret = image.tobytes()

    with Listener(fleet.broker.url) as tap:
        for agent in (shy, open_):
            for number in range(20):
                ask(agent, image, f"r{number}")
            fleet.wait_for_requests(agent, 20)
        quiet = list(tap.bodies)
        refusal = fleet.cli(
            "samples", "request", "digits", "--device", "shy", "--kind", "random",
            "--count", "3", "--for", "2m", code=1,
        )  # fmt: skip
        taken = fleet.command(
            "samples", "request", "digits", "--device", "open", "--kind", "random",
            "--count", "3", "--for", "2m",
        )  # fmt: skip
        for number in range(6):
            ask(open_, image, f"s{number}")
            ask(shy, image, f"s{number}")
        wait_for(
            "three samples",
            lambda: len([s for s in fleet.client.samples() if s.whole]) == 3,
        )

    assert len(quiet) > 4 and not traces(quiet, secret)
    assert "done" in taken
    asked = {view.device: view for view in fleet.client.sample_requests()}
    assert asked["shy"].outcome == "refused" and "does not consent" in asked["shy"].detail
    assert refusal is not None
    assert traces(tap.bodies, secret), "the same detector finds what was asked for"
    assert not [b for b in traces(tap.bodies, secret) if b"/shy/" in b]
    assert not (shy.data_dir / "capture").exists()
    samples = fleet.client.samples(device="open")
    assert {fleet.client.sample_data(each.id) for each in samples} == {secret}
    fleet.command("samples", "fetch", samples[0].id, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out" / f"{samples[0].id}-0.bin").read_bytes() == secret
