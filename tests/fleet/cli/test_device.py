"""`fleet device`, `fleet top` and `fleet events` over the API: whole screens."""

import json

import pytest

from fleet.cli import views
from fleet.core.views import EventView, HealthView, RolloutRequest
from tests.fleet.cli.conftest import Fleet
from tests.fleet.memory import NOW, MemoryController
from tests.fleet.samples import sample_device


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


WHOLE_HEALTH = {
    "uptime_s": 4 * 86_400, "cpu_percent": 41.6, "load_1m": 1.5,
    "memory_total_bytes": 4 * 2**30, "memory_available_bytes": 2**30,
    "disk_free_bytes": 5 * 2**30, "disk_total_bytes": 64 * 2**30, "temperature_c": 84.2,
    "agent_cpu_percent": 0.6, "agent_rss_bytes": 30 * 2**20, "engine_rss_bytes": 60 * 2**20,
    "engine_restarts": 2, "outbox_waiting": 12, "outbox_dropped": 3, "outbox_merged": 40,
    "outbox_bytes": 5300, "pressure": {"cpu": 3.2, "memory": 24.0, "io": 0.0},
    "swap_used_bytes": 2**20, "throttled": True, "network_received_bytes": 3 * 2**30,
    "network_sent_bytes": 2**30, "clock_synchronised": False, "clock_stepped_s": 3600.5,
    "agent_pss_bytes": 28 * 2**20, "engine_pss_bytes": 55 * 2**20, "agent_starts": 7,
    "broker_rtt_ms": 38.4, "battery_percent": 12.0, "battery_charging": False,
}  # fmt: skip


def unwell(controller: MemoryController, id: str, **gauges: object) -> None:
    device = controller.known_devices[id]
    health = {**(device.health or {}), **gauges}
    controller.known_devices[id] = device.model_copy(update={"health": health})


def test_show_tells_how_the_device_fares(run: Fleet, controller: MemoryController) -> None:
    unwell(controller, "cam-1", **WHOLE_HEALTH)

    shown = run("device", "show", "cam-1").stdout

    assert (
        "  health      cpu 13%, memory 90.0 MiB, disk free 5.0 GiB, 84 °C\n"
        "  load        machine 42% busy, load 1.50; tasks waited for cpu 3%, io 0%, memory 24%"
        " of a minute\n"
        "  memory      1.0 GiB of 4.0 GiB free, swap 1.0 MiB, agent 28.0 MiB PSS,"
        " engine 55.0 MiB PSS\n"
        "  disk        5.0 GiB of 64.0 GiB free\n"
        "  heat        the processor is slowed down\n"
        "  network     3.0 GiB in and 1.0 GiB out since the machine started, broker answers in"
        " 38 ms\n"
        "  clock       not synchronised, set by +3600.5 s in all\n"
        "  battery     12%, not charging\n"
        "  telemetry   12 waiting (5.2 KiB), 40 merged, 3 dropped\n"
        "  starts      agent 7, engine 2 more, machine up for 4 d\n"
        "  attention   disk 8% left, memory pressure 24%, 84 °C, throttled,"
        " clock not synchronised, clock set by +3600 s, battery 12%, 3 reports dropped\n"
    ) in shown


def test_a_device_that_is_well_needs_no_attention(run: Fleet, controller: MemoryController) -> None:
    well = {"clock_synchronised": True, "throttled": False, "battery_percent": 9.0,
            "battery_charging": True, "disk_total_bytes": 6 * 2**30}  # fmt: skip
    unwell(controller, "cam-1", **well)

    shown, table = run("device", "show", "cam-1").stdout, run("top", "--once").stdout

    assert "  battery     9%, charging\n" in shown
    assert "attention" not in shown and "ATTENTION" not in table


def test_top_shows_what_is_worth_a_look(run: Fleet, controller: MemoryController) -> None:
    unwell(controller, "cam-3", temperature_c=91.0, throttled=True)
    unwell(controller, "cam-2", temperature_c=99.0)

    heads, _, gone, hot = run("top", "--once").stdout.splitlines()[2:6]

    assert heads.endswith("CPU    MEMORY  ATTENTION")
    assert hot.endswith("13%  90.0 MiB  91 °C, throttled")
    assert gone.endswith("-         -"), "what it said before it went is old"


def test_a_fleet_that_is_larger_than_the_screen_shows_first_who_needs_somebody() -> None:
    devices = [sample_device(f"cam-{number}") for number in range(100, 400)]
    calm = [each.model_copy(update={"deployments": ()}) for each in devices]
    calm[250] = calm[250].model_copy(update={"online": False})
    calm[150] = calm[150].model_copy(update={"health": {"temperature_c": 90.0}})
    calm[100] = devices[100]
    health = HealthView(version="1", broker_url="", broker_connected=True, devices=300,
                        devices_online=299)  # fmt: skip

    screen = views.top(health, calm, [], room=24)

    assert len(screen) == 24
    assert [line.split()[0] for line in screen[3:7]] == ["cam-350", "cam-200", "cam-250", "cam-100"]
    assert screen[-1] == "and 280 more: fleet device list"
