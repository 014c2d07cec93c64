"""An app on a device: it asks the local API about handwritten digits and tells what they were."""

import gzip
import http.client
import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from tests.e2e.harness import SAMPLES, wait_for

ANSWER_S = 20.0


def held_out() -> tuple[Any, Any]:
    """Return images, float32 (540, 8, 8, 1), 0 to 16, that no model learned from; and labels."""
    with gzip.open(SAMPLES / "heldout.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    return rows[:, 1:].reshape(-1, 8, 8, 1).astype(np.float32), rows[:, 0].astype(int)


class App(threading.Thread):
    """Streams digits until `stop`, about `rate` a second, each with some noise of its own.

    With `keep_alive` it uses one connection for as long as the server lets it. As every HTTP
    client does, it sends a request once more when a connection that was idle turns out closed.
    """

    def __init__(
        self, url: str, *, seed: int = 1, rate: float = 50.0, keep_alive: bool = True
    ) -> None:
        super().__init__(name=f"app-{seed}", daemon=True)
        self.answered = 0
        self.labelled = 0
        self.correct = 0
        self.versions: Counter[int] = Counter()
        """Release version -> how many requests it answered."""
        self.broken: list[str] = []
        """Requests without an answer."""
        self.refused: list[str] = []
        """Answers other than 200."""
        self.unknown_labels = 0
        """Labels that came when the engine that had answered was gone."""
        self.longest_wait_s = 0.0
        self.last_answer = 0.0
        """Monotonic."""
        self._address = urlsplit(url).netloc
        self._period = 1 / rate
        self._random = np.random.default_rng(seed)
        self._keep_alive = keep_alive
        self._connection: http.client.HTTPConnection | None = None
        self._stopping = threading.Event()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Wait for the last answer, and end."""
        self._stopping.set()
        self.join(2 * ANSWER_S)
        assert not self.is_alive()

    def wait_for_answers(self, count: int) -> None:
        """Wait until it got so many answers more."""
        enough = self.answered + count
        wait_for(f"{count} answers", lambda: self.answered >= enough, ANSWER_S)

    def run(self) -> None:
        images, labels = held_out()
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            # What was missed while nobody answered is not made up for in a burst.
            due = max(due + self._period, time.monotonic() - self._period)
            place = int(self._random.integers(len(images)))
            noisy = images[place] + self._random.normal(0, 0.25, images[place].shape)
            self._ask(np.clip(noisy, 0, 16), int(labels[place]))
        self._hang_up()

    def _ask(self, image: Any, label: int) -> None:
        began = time.monotonic()
        answer = self._post(
            "/v2/models/digits/infer",
            {
                "inputs": [
                    {
                        "name": "image",
                        "shape": [1, 8, 8, 1],
                        "datatype": "FP32",
                        "data": image.ravel().round(3).tolist(),
                    }
                ]
            },
        )
        if answer is None:
            return
        self.last_answer = time.monotonic()
        self.longest_wait_s = max(self.longest_wait_s, self.last_answer - began)
        self.answered += 1
        self.versions[int(answer["model_version"])] += 1
        feedback = {"request_id": answer["id"], "model": "digits", "label": label}
        if self._post("/v2/feedback", feedback) is not None:
            self.labelled += 1
            self.correct += int(np.argmax(answer["outputs"][0]["data"])) == label

    def _post(self, path: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        body = json.dumps(fields).encode()
        try:
            status, answer = self._send(path, body)
        except (OSError, http.client.HTTPException) as error:
            self._hang_up()
            self.broken.append(f"{path}: {error!r}")
            return None
        if status == 200:
            parsed: dict[str, Any] = json.loads(answer)
            return parsed
        if status == 404 and path == "/v2/feedback":
            self.unknown_labels += 1
        else:
            self.refused.append(f"{path}: {status}: {answer[:200]!r}")
        return None

    def _send(self, path: str, body: bytes) -> tuple[int, bytes]:
        reused = self._connection is not None and self._connection.sock is not None
        try:
            return self._send_once(path, body)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
            if not reused:
                raise
            self._hang_up()
            return self._send_once(path, body)

    def _send_once(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._address, timeout=ANSWER_S)
        headers = {} if self._keep_alive else {"Connection": "close"}
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
