"""Who is told of alerts: real servers that misbehave, real commands, a real Alertmanager."""

import hashlib
import hmac
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from fleet.core.alert_policy import AlertmanagerOutput, Hook, Policy, WebhookOutput
from fleet.core.alerts import Act, Alert, Subject
from fleet.shell.notices import Notices, hooks, outlet
from fleet.shell.notices.notices import alert_fields

NOW = time.time()
ABOUT = Subject("digits@2 site=ulm", "digits", 2, label="site=ulm")


def alert(id: str = "a-1", state: str = "firing", severity: str = "warning") -> Alert:
    return Alert(
        id, "accuracy|digits@2", "accuracy", severity, ABOUT, "below 90%", NOW - 60, NOW,
        state=state, fired_at=NOW, ended_at=NOW if state == "resolved" else None,
    )  # type: ignore[arg-type]  # fmt: skip


def act(id: str = "x-1") -> Act:
    return Act(id, "a-1", "hook:train", ABOUT, "below 90%", NOW)


def eventually(look: Callable[[], Any], what: str, within_s: float = 15.0) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {within_s} s; last seen {look()!r}")


class Receiver:
    """An HTTP server on 127.0.0.1 that answers as the script says, and then with 200."""

    def __init__(self, *script: int | str) -> None:
        self.script = list(script)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, dict(self.headers), body))
                answer = receiver.script.pop(0) if receiver.script else 200
                if answer == "close":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if answer == "hang":
                    receiver.over.wait(20)
                    return
                self.send_response(302 if answer == "redirect" else int(answer))
                if answer == "redirect":
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                if answer == 429:
                    self.send_header("Retry-After", "1")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiving(*script: int | str) -> Iterator[Receiver]:
    receiver = Receiver(*script)
    try:
        yield receiver
    finally:
        receiver.close()


class Told:
    def __init__(self) -> None:
        self.ends: dict[str, tuple[str, str]] = {}

    def __call__(self, id: str, outcome: str, detail: str) -> None:
        assert id not in self.ends, "once is enough"
        self.ends[id] = (outcome, detail)


@contextmanager
def noticing(policy: Policy, done: Told | None = None) -> Iterator[Notices]:
    notices = Notices(policy, done or Told())
    try:
        yield notices
    finally:
        notices.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(hooks, "TERM_S", 0.5)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def webhook(url: str, **fields: Any) -> Policy:
    return Policy(webhook=(WebhookOutput(name="ops", url=url, **fields),))


def test_a_webhook_hears_of_an_alert_and_of_its_end_in_a_body_that_is_signed(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("hush\nnot this line\n")

    with (
        receiving() as receiver,
        noticing(webhook(receiver.url, secret_file=str(tmp_path / "secret"))) as notices,
    ):
        notices.tell(alert())
        notices.tell(alert(state="resolved"))
        eventually(lambda: len(receiver.requests) == 2, "two posts")

    states = [json.loads(body)["alert"]["state"] for _, _, body in receiver.requests]
    assert states == ["firing", "resolved"]
    _, headers, body = receiver.requests[0]
    assert json.loads(body) == {"schema": 1, "alert": alert_fields(alert())}
    stamped = headers["Farflung-Timestamp"].encode() + b"." + body
    expected = hmac.new(b"hush", stamped, hashlib.sha256).hexdigest()
    assert headers["Farflung-Signature"] == f"sha256={expected}"
    assert abs(int(headers["Farflung-Timestamp"]) - time.time()) < 60


def test_what_may_help_is_tried_again_under_the_same_name() -> None:
    with (
        receiving(500, "close", 429, 503) as receiver,
        noticing(webhook(receiver.url)) as notices,
    ):
        began = time.monotonic()
        notices.tell(alert())
        eventually(lambda: notices.outlets()["webhook ops"].delivered, "delivery")
        told = notices.counts()
        took = time.monotonic() - began

    assert len(receiver.requests) == 5
    assert len({headers["Farflung-Delivery"] for _, headers, _ in receiver.requests}) == 1
    assert sorted(told) == [
        ("webhook ops", "delivered", 1), ("webhook ops", "dropped", 0), ("webhook ops", "failed", 4)
    ]  # fmt: skip
    assert took > 0.75, "it was asked to wait a second, give or take a quarter"


@pytest.mark.parametrize("answer", [400, 404, "redirect"])
def test_what_cannot_help_is_not_tried_again(answer: int | str) -> None:
    with receiving(answer) as receiver, noticing(webhook(receiver.url)) as notices:
        notices.tell(alert())
        counts = notices.outlets()["webhook ops"]
        eventually(lambda: counts.dropped, "a dropped post")
        notices.tell(alert("a-2"))
        eventually(lambda: counts.delivered, "the next one")

    assert [path for path, _, _ in receiver.requests] == ["/", "/"]
    assert (counts.failed, counts.dropped, counts.delivered) == (1, 1, 1)


def test_a_server_that_hangs_holds_up_nobody() -> None:
    with (
        receiving("hang") as slow,
        receiving() as good,
        noticing(
            Policy(
                webhook=(
                    WebhookOutput(name="slow", url=slow.url, timeout=0.3),
                    WebhookOutput(name="good", url=good.url),
                )
            )
        ) as notices,
    ):
        began = time.monotonic()
        for number in range(20):
            notices.tell(alert(f"a-{number}"))
        told_in = time.monotonic() - began
        eventually(lambda: len(good.requests) == 20, "the other one")
        eventually(lambda: notices.outlets()["webhook slow"].delivered == 20, "all, in the end")

    assert told_in < 1


def test_nothing_is_sent_without_the_secret_and_nothing_tells_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"

    with (
        receiving() as receiver,
        noticing(webhook(receiver.url, secret_file=str(path))) as notices,
    ):
        notices.tell(alert())
        eventually(lambda: notices.outlets()["webhook ops"].failed, "a failure")
        unsigned = len(receiver.requests)
        path.write_text("very-secret-word")
        eventually(lambda: receiver.requests, "a signed one", 20)

    assert unsigned == 0
    assert f"{path}" in caplog.text
    assert "very-secret-word" not in caplog.text


def test_only_what_is_severe_enough_is_told() -> None:
    with receiving() as receiver, noticing(webhook(receiver.url, severity="critical")) as notices:
        notices.tell(alert("a-1", severity="info"))
        notices.tell(alert("a-2", severity="warning"))
        notices.tell(alert("a-3", severity="critical"))
        eventually(lambda: receiver.requests, "a post")

    ids = [json.loads(body)["alert"]["id"] for _, _, body in receiver.requests]
    assert ids == ["a-3"]


def test_what_still_fires_is_told_again_where_the_policy_says_so() -> None:
    with receiving() as receiver, noticing(webhook(receiver.url, repeat=0.2)) as notices:
        notices.tell(alert())
        deadline = time.monotonic() + 10
        while len(receiver.requests) < 3 and time.monotonic() < deadline:
            notices.firing([alert()])
            time.sleep(0.02)
        notices.tell(alert(state="resolved"))
        notices.firing([])
        eventually(lambda: len(receiver.requests) == 4, "the end")
        time.sleep(0.4)
        notices.firing([])

    assert len(receiver.requests) == 4


def test_outputs_that_stay_keep_what_waits_for_them_over_a_new_policy() -> None:
    with receiving(500, 500) as receiver, receiving() as other:
        policy = webhook(receiver.url)
        with noticing(policy) as notices:
            notices.tell(alert())
            eventually(lambda: notices.outlets()["webhook ops"].failed, "a failure")

            added = WebhookOutput(name="new", url=other.url)
            notices.use(Policy(webhook=(*policy.webhook, added)))
            eventually(lambda: notices.outlets()["webhook ops"].delivered, "delivery")
            notices.tell(alert("a-2"))
            eventually(lambda: other.requests, "the new one")
            notices.use(Policy())
            notices.tell(alert("a-3"))

        assert notices.outlets() == {}
        assert len(other.requests) == 1


def test_every_post_is_delivered_or_counted_and_little_waits_whatever_the_other_side_does() -> None:
    rng = random.Random(3)
    script = [rng.choice([200, 200, 400, 500, "close"]) for _ in range(200)]
    many = outlet.MAX_WAITING + 200

    with receiving(*script) as receiver, noticing(webhook(receiver.url)) as notices:
        counts = notices.outlets()["webhook ops"]
        for number in range(many):
            notices.tell(alert(f"a-{number}"))
        eventually(lambda: counts.delivered + counts.dropped == many, "an end of all", 40)

    assert counts.delivered >= outlet.MAX_WAITING // 2
    assert counts.dropped >= 100


# ---- hooks


def hook(*command: str, **fields: Any) -> Hook:
    return Hook(name="train", command=command, **fields)


def python(code: str, **fields: Any) -> Hook:
    return hook(sys.executable, "-c", code, **fields)


def test_a_hook_reads_the_summary_and_knows_what_it_is_about() -> None:
    done = Told()
    code = (
        "import json, os, sys; told = json.load(sys.stdin);"
        "print(told['model'], os.environ['FARFLUNG_RELEASE'], os.environ['FARFLUNG_ALERT'],"
        " 'SECRET_OF_OURS' in os.environ)"
    )
    os.environ["SECRET_OF_OURS"] = "x"
    try:
        with noticing(Policy(), done) as notices:
            notices.run(act(), python(code), {"model": "digits"})
            eventually(lambda: done.ends, "the end")
    finally:
        del os.environ["SECRET_OF_OURS"]

    assert done.ends["x-1"] == ("done", "digits digits@2 a-1 False")


@pytest.mark.parametrize(
    ("hook", "outcome", "words"),
    [
        (python("import sys; print('no data'); sys.exit(3)"), "failed", "exit status 3; no data"),
        (hook("/nowhere/train"), "failed", "/nowhere/train: No such file"),
        (python("print('y' * 3_000_000, end='')"), "done", "y" * hooks.TAIL_BYTES),
        (python("import os; os.close(1); os.close(2); import time; time.sleep(.3)"), "done", ""),
    ],
    ids=["fails", "missing", "floods", "closes its output"],
)
def test_what_comes_of_a_hook_is_told(hook: Hook, outcome: str, words: str) -> None:
    done = Told()

    with noticing(Policy(), done) as notices:
        notices.run(act(), hook, {})
        eventually(lambda: done.ends, "the end")

    assert done.ends["x-1"][0] == outcome
    assert done.ends["x-1"][1].startswith(words)
    assert len(done.ends["x-1"][1]) <= hooks.TAIL_BYTES


def test_a_hook_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    done, marker = Told(), tmp_path / "child"
    code = (
        "import os, pathlib, signal, subprocess, sys, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"pathlib.Path({str(marker)!r}).write_text(str(child.pid)); time.sleep(60)"
    )

    with noticing(Policy(), done) as notices:
        notices.run(act(), python(code, timeout=1.0), {})
        eventually(lambda: done.ends, "the end")

    assert done.ends["x-1"][0] == "failed"
    assert done.ends["x-1"][1].startswith("killed after 1 s")
    child = int(marker.read_text())
    eventually(lambda: not _alive(child), "the end of its child")


def _alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_no_more_hooks_run_at_once_than_the_policy_says(tmp_path: Path) -> None:
    done = Told()
    code = (
        "import os, pathlib, time; here = pathlib.Path(os.environ['HOME']);"
        "mine = here / str(os.getpid()); mine.touch(); time.sleep(.3);"
        "print(len(list(here.iterdir()))); mine.unlink()"
    )
    os.environ["HOME"], home = str(tmp_path), os.environ.get("HOME", "")
    try:
        with noticing(Policy(hooks_at_once=2), done) as notices:
            for number in range(5):
                notices.run(act(f"x-{number}"), python(code), {})
            eventually(lambda: len(done.ends) == 5, "five ends")
    finally:
        os.environ["HOME"] = home

    at_once = [int(detail) for _, detail in done.ends.values()]
    assert max(at_once) == 2


def test_hooks_under_way_are_lost_when_the_controller_ends() -> None:
    done = Told()
    notices = Notices(Policy(hooks_at_once=1), done)
    notices.run(act("x-1"), python("import time; time.sleep(60)"), {})
    notices.run(act("x-2"), python("print('never')"), {})
    time.sleep(0.5)

    began = time.monotonic()
    notices.close()
    notices.run(act("x-3"), python("print('never')"), {})

    assert time.monotonic() - began < 6
    assert {id: outcome for id, (outcome, _) in done.ends.items()} == {
        "x-1": "lost", "x-2": "lost", "x-3": "lost",
    }  # fmt: skip


def test_a_hook_may_be_an_address() -> None:
    done = Told()

    with receiving(404) as receiver, noticing(Policy(), done) as notices:
        there = Hook(name="train", url=f"{receiver.url}/jobs")
        notices.run(act("x-1"), there, {"model": "digits"})
        eventually(lambda: "x-1" in done.ends, "a refusal")
        notices.run(act("x-2"), there, {"model": "digits"})
        eventually(lambda: "x-2" in done.ends, "an end")

    assert done.ends["x-1"] == ("failed", "answered 404; tried 1 times")
    assert done.ends["x-2"] == ("done", "answered 200")
    path, headers, body = receiver.requests[1]
    assert (path, json.loads(body)) == ("/jobs", {"model": "digits"})
    assert headers["Farflung-Delivery"] == "x-2"


# ---- Alertmanager


def test_an_alertmanager_passes_alerts_on_and_their_end(tmp_path: Path) -> None:
    assert shutil.which("prometheus-alertmanager"), "run scripts/test, which installs it"
    with receiving() as receiver, _alertmanager(tmp_path, receiver.url) as url:
        output = AlertmanagerOutput(url=url, labels={"fleet": "north"}, resend=1)
        with noticing(Policy(alertmanager=output)) as notices:
            notices.firing([alert()])
            first = eventually(lambda: receiver.requests, "the alert", 30)
            notices.tell(alert(state="resolved"))
            eventually(lambda: b'"status":"resolved"' in receiver.requests[-1][2], "its end", 30)

    [told] = json.loads(first[0][2])["alerts"]
    assert told["status"] == "firing"
    assert told["labels"] == {
        "alertname": "accuracy", "severity": "warning", "subject": "digits@2 site=ulm",
        "model": "digits", "version": "2", "label_site": "ulm", "fleet": "north",
    }  # fmt: skip
    assert told["annotations"]["summary"] == "below 90%"


@contextmanager
def _alertmanager(home: Path, receiver: str) -> Iterator[str]:
    (home / "alertmanager.yml").write_text(
        "route: {receiver: ops, group_by: [alertname], group_wait: 100ms, group_interval: 200ms}\n"
        "receivers: [{name: ops, webhook_configs: "
        f"[{{url: '{receiver}/', send_resolved: true}}]}}]\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "prometheus-alertmanager", f"--config.file={home}/alertmanager.yml",
        f"--storage.path={home}/data", f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]  # fmt: skip
    with (
        (home / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            eventually(lambda: _listens(port), "the Alertmanager", 20)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
