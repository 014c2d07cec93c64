"""`fleet device`, `fleet top` and `fleet events` over the API: whole screens."""

import json

import pytest

from fleet.core.views import EventView, RolloutRequest
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import NOW, MemoryController


def test_list_shows_who_is_there_and_what_they_serve(run: Fleet) -> None:
    result = run("device", "list")

    told = "digits@1 int8-onnx  digits@2 rolled back: worse_than_champion  line=2 site=berlin\n"
    assert result.stdout == (
        "DEVICE  STATUS                   SERVING             DEPLOYMENT"
        "                                 LABELS\n"
        f"cam-1   online                   {told}"
        f"cam-2   offline, seen 2 min ago  {told}"
        f"cam-3   online                   {told}"
    )


def test_a_fleet_without_devices_says_how_to_get_one(
    run: Fleet, controller: MemoryController
) -> None:
    controller.known_devices.clear()

    result = run("device", "list")

    assert (result.stdout, result.exit_code) == ("no devices\n", 0)
    assert result.stderr == "next: fleet device config cam-1 > agent.toml\n"


def test_show_tells_all_about_a_device(run: Fleet) -> None:
    result = run("device", "show", "cam-1")

    assert result.stdout == (
        "cam-1  online\n"
        "  agent       farflung 0.1.0\n"
        "  machine     aarch64, 4 cpus, 4.0 GiB, python 3.11.9\n"
        "  labels      line=2 site=berlin\n"
        "  runtime     onnxruntime 1.32.0\n"
        "  unusable    tflite-runtime: _ARRAY_API not found\n"
        "  orders      revision 7, 1 not taken up\n"
        "  serving     digits@1 int8-onnx on onnxruntime 1.32.0, 1234 requests, p95 3.4 ms,"
        " 98.3% (97.0-99.1)\n"
        "  deployment  digits@2 rolled back: worse_than_champion\n"
        "  why         27 worse, 6 better, E = 41.2\n"
        "  health      cpu 13%, memory 90.0 MiB, disk free 5.0 GiB, 51 °C\n"
        "  api         http://127.0.0.1:8080\n"
    )


def test_show_tells_why_a_model_is_not_accelerated(
    run: Fleet, controller: MemoryController
) -> None:
    device = controller.known_devices["cam-1"]
    [serving] = device.serving
    slow = serving.model_copy(update={"fallback": "QNN: not in this onnxruntime"})
    controller.known_devices["cam-1"] = device.model_copy(update={"serving": (slow,)})

    result = run("device", "show", "cam-1")

    words = "on onnxruntime 1.32.0, not accelerated: QNN: not in this onnxruntime, 1234 requests"
    assert words in result.stdout


def test_show_tells_what_became_of_the_frames_of_pipelines(
    run: Fleet, controller: MemoryController
) -> None:
    device = controller.known_devices["cam-1"]
    counts = {
        "door": {
            "taken": 120, "answered": 110, "dropped": {"full": 7, "stale": 1},
            "failed": {"refused": 2}, "retries": 3, "restarts": 0,
        },
        "yard": {"taken": 0, "answered": 0},
    }  # fmt: skip
    health = {**(device.health or {}), "pipelines": counts}
    controller.known_devices["cam-1"] = device.model_copy(update={"health": health})

    shown = run("device", "show", "cam-1").stdout
    offline = controller.known_devices["cam-1"].model_copy(update={"online": False})
    controller.known_devices["cam-1"] = offline
    gone = run("device", "show", "cam-1").stdout

    assert (
        "  pipeline    door: 120 taken, 110 answered, 7 dropped: full, 1 dropped: stale, "
        "2 failed: refused, 3 retries\n"
        "  pipeline    yard: 0 taken, 0 answered\n"
    ) in shown
    assert "pipeline" not in gone


def test_show_tells_how_far_off_numbers_are(run: Fleet, controller: MemoryController) -> None:
    device = controller.known_devices["cam-1"]
    [score] = device.scores
    unlabelled = {"labelled": 0, "correct": 0, "accuracy": None}
    told = {"valued": 40, "error_p50": 0.2134, "error_p95": 12.5}
    scores = (score.model_copy(update={**unlabelled, **told}),)
    controller.known_devices["cam-1"] = device.model_copy(update={"scores": scores})

    shown = run("device", "show", "cam-1").stdout
    table = run("top", "--once").stdout

    assert "1234 requests, p95 3.4 ms, off by 0.21, 12\n" in shown
    assert "off by 0.21, 12" in table


def test_an_unknown_device_leads_to_the_nearest(run: Fleet) -> None:
    result = run("device", "show", "cam-9")

    assert result.exit_code == 1
    assert result.stderr == "error: cam-9: no such device\nnext: fleet device show cam-1\n"


@pytest.mark.parametrize(
    ("verb", "code", "screen"),
    [
        ("ping", 0, "cam-1 ping: done: pong\n"),
        ("dance", 1, "cam-1 dance: refused\n"),
        ("sleep", 3, "cam-1 sleep: waiting\n"),
    ],
)
def test_a_command_is_sent_and_its_answer_awaited(
    run: Fleet, verb: str, code: int, screen: str
) -> None:
    result = run("device", "cmd", "cam-1", verb, "--timeout", "1s")

    assert (result.stdout, result.exit_code) == (screen, code)


def test_config_is_a_file_to_redirect(run: Fleet) -> None:
    result = run("device", "config", "cam-7")

    assert result.stdout == 'device = "cam-7"\n\n[broker]\nurl = "mqtt://127.0.0.1:1883"\n'
    assert result.stderr == "next: on cam-7, farflung-agent --config agent.toml\n"
    assert json.loads(run("device", "config", "cam-7", "--json").stdout)["device"] == "cam-7"


def test_config_of_an_impossible_id_is_refused(run: Fleet) -> None:
    result = run("device", "config", "Cam 7")

    assert result.exit_code == 1
    assert result.stderr == (
        "error: device: expected 1 to 40 characters of a-z, 0-9 and inner dashes, got 'Cam 7'\n"
        "next: fleet --help\n"
    )


def test_top_shows_the_fleet_at_a_glance(run: Fleet, controller: MemoryController) -> None:
    controller.start_rollout(RolloutRequest(release="digits@2"))

    result = run("top")

    served = "digits@1 int8-onnx  digits@2 rolled back: worse_than_champion      1234  3.4 ms"
    assert result.stdout == (
        "2 of 3 devices online, broker connected\n"
        "\n"
        "DEVICE  STATUS   SERVING             DEPLOYMENT                                 REQUESTS"
        "     P95  ACCURACY           CPU    MEMORY\n"
        f"cam-1   online   {served}  98.3% (97.0-99.1)  13%  90.0 MiB\n"
        f"cam-2   offline  {served}  98.3% (97.0-99.1)    -         -\n"
        f"cam-3   online   {served}  98.3% (97.0-99.1)  13%  90.0 MiB\n"
        "\n"
        "r-1  digits@2 wave 1 of 1, running: 3 waiting\n"
    )
    assert set(json.loads(run("top", "--json").stdout)) == {"health", "devices", "rollouts"}


def test_events_are_listed_newest_first(run: Fleet, controller: MemoryController) -> None:
    controller.happened = [
        EventView(at=NOW, kind="device", subject="cam-1", text="came online"),
        EventView(at=NOW - 7200, kind="controller", subject="", text="started"),
    ]

    assert run("events").stdout == (
        "WHEN     KIND        SUBJECT  WHAT\n"
        "5 s ago  device      cam-1    came online\n"
        "2 h ago  controller  -        started\n"
    )
    assert "started" not in run("events", "--limit", "1").stdout
