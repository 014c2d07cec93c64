"""An app on a device: shows digits to the local model and later says what they were.

    python -m fleet.demo.app --api http://127.0.0.1:8731 --device cam-1 --samples heldout.csv.gz

It speaks the Open Inference Protocol v2 over one connection that it keeps, as any app would in
any language, and needs nothing beyond the standard library.
"""

import argparse
import http.client
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet.demo.digits import SIDE, Digit, Stream, read_digits

MODEL = "digits"
TIMEOUT_S = 10.0
RETRY_S = 0.25
"""How long it waits while no model is there yet."""


def request_id(device: str, number: int) -> str:
    """Return the id under which picture `number` of a device is sent."""
    return f"{device}.{number}"


def picture_number(id: str) -> int:
    """Return which picture a request was about."""
    return int(id.rpartition(".")[2])


def question(digit: Digit, id: str = "") -> dict[str, Any]:
    """Return an inference request for one picture."""
    image = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, SIDE, SIDE, 1],
        "data": list(digit.pixels),
    }
    return {**({"id": id} if id else {}), "inputs": [image]}


class NotServedError(Exception):
    """The device has no model to ask yet, or the engine has just changed."""


class Api:
    """The device's local API over one connection, made again when it breaks."""

    def __init__(self, url: str) -> None:
        """Remember where it is."""
        address = urlsplit(url)
        self._http = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=TIMEOUT_S
        )

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON and return the answer.

        Raises:
            NotServedError: nobody answers, or nothing of this name is served.
        """
        headers = {"Content-Type": "application/json"}
        try:
            self._http.request("POST", path, json.dumps(body).encode(), headers)
            answer = self._http.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise NotServedError(str(error)) from error
        if answer.status != http.client.OK:
            raise NotServedError(f"{answer.status}: {text[:200].decode(errors='replace')}")
        fields: dict[str, Any] = json.loads(text)
        return fields


def show(api: Api, stream: Stream, device: str, number: int) -> None:
    """Ask what picture `number` shows, then say what it really is."""
    digit = stream.at(number)
    id = request_id(device, number)
    api.post(f"/v2/models/{MODEL}/infer", question(digit, id))
    api.post("/v2/feedback", {"model": MODEL, "request_id": id, "label": digit.label})


def run(api: Api, stream: Stream, device: str, per_second: float) -> None:
    """Show picture after picture for as long as the program that started this one lives."""
    parent = os.getppid()
    number = 0
    due = time.monotonic()
    while os.getppid() == parent:
        try:
            show(api, stream, device, number)
            due += 1 / per_second
        except NotServedError:
            due = time.monotonic() + RETRY_S
        # A picture is never sent twice, answered or not: it would count twice as evidence.
        number += 1
        # What was missed during a pause is not made up for.
        due = max(due, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> int:
    """Run the program."""
    options = _options()
    try:
        digits = read_digits(options.samples)
    except (OSError, ValueError) as error:
        print(f"app: {error}", file=sys.stderr)  # noqa: T201
        return 1
    stream = Stream(digits, options.seed, options.device)
    run(Api(options.api), stream, options.device, options.per_second)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fleet.demo.app", description=__doc__.split("\n")[0])
    parser.add_argument("--api", required=True, help="URL of the device's local API")
    parser.add_argument("--device", required=True, help="whose pictures to show")
    parser.add_argument("--samples", type=Path, required=True, help="gzipped label,pixel,... lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-second", type=float, default=20.0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
