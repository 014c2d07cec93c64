import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agent.config import ConfigError, load_config
from agent.pipelines import plan
from agent.pipelines.plan import read_plan

KEY = base64.b64encode(bytes(range(32))).decode()
DEVICE = f"""
device = "pi-1"
data_dir = "data"

[broker]
url = "mqtt://broker.example"

[controller]
public_keys = ["{KEY}"]
"""
DOOR = """
[[pipeline]]
name = "door"
model = "digits"
source = { directory = "/spool", done = "delete" }
sink = { file = "door.jsonl" }
"""
EAR = """
[[pipeline]]
name = "ear"
model = "voice"
input = "raw"
queue = 1
when_full = "drop-oldest"
when_busy = "drop"
max_per_s = 31.25
source = { command = ["arecord", "-"], frames = 1024 }
sink = { command = ["./on-voice"] }
"""
FIELD = """
[[pipeline]]
name = "field"
model = "pests"
source = { mqtt = "cams/+/jpeg/#", broker = "mqtts://hub.local", ca_file = "ca.pem", qos = 1 }
sink = { mqtt = "pests", username = "pi", password_file = "pw" }
"""


def load(directory: Path, text: str, **environ: str) -> tuple[dict[str, Any], ...]:
    path = directory / "agent.toml"
    path.write_text(DEVICE + text)
    return load_config(path, environ).pipeline


def refusal(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{directory / 'agent.toml'}: ")


def test_without_pipelines_there_are_none(tmp_path: Path) -> None:
    assert load(tmp_path, "") == ()


def test_the_process_is_told_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret\n")

    plans = load(tmp_path, DOOR + EAR + FIELD)
    line = json.dumps({"api": "unix:/api", "state_dir": "/state", "pipelines": plans}).encode()
    door, ear, field = read_plan(line).pipelines

    assert door == plan.PipelinePlan(
        name="door",
        model="digits",
        source=plan.DirectorySource("/spool", "*", 1.0, "delete", "delete"),
        sink=plan.FileSink(str(tmp_path / "door.jsonl"), 10 * 1024 * 1024, 2),
        input="auto",
        queue=8,
        when_full="wait",
        when_busy="retry",
        max_per_s=0.0,
    )
    assert ear == plan.PipelinePlan(
        name="ear",
        model="voice",
        source=plan.CommandSource(["arecord", "-"], 1024),
        sink=plan.CommandSink(["./on-voice"]),
        input="raw",
        queue=1,
        when_full="drop-oldest",
        when_busy="drop",
        max_per_s=31.25,
    )
    hub = plan.Broker("hub.local", 8883, True, str(tmp_path / "ca.pem"), None, None)
    here = plan.Broker("127.0.0.1", 1883, False, None, "pi", "secret")
    assert (field.source, field.sink) == (
        plan.MqttEnd("cams/+/jpeg/#", 1, hub),
        plan.MqttEnd("pests", 1, here),
    )
    assert field.when_full == "drop-oldest"


def test_under_the_service_manager_paths_start_where_it_may_write(tmp_path: Path) -> None:
    text = DOOR.replace('done = "delete"', 'done = "./seen", failed = "leave"')

    [door] = load(tmp_path, text, STATE_DIRECTORY="/var/lib/farflung")

    assert door["sink"]["file"] == "/var/lib/farflung/door.jsonl"
    assert (door["source"]["done"], door["source"]["failed"]) == (
        "/var/lib/farflung/seen",
        "leave",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("done =", "dnoe =", "[[pipeline]] door: source.dnoe: unknown key; the nearest is done"),
        (', done = "delete"', "", "[[pipeline]] door: source.done: expected a value, got none"),
        (
            '"delete"',
            '"delte"',
            '[[pipeline]] door: source.done: expected "delete", "leave", or a directory with a / '
            "in its path, got 'delte'",
        ),
        (
            "directory =",
            "dir =",
            "[[pipeline]] door: source: expected a table with one of directory, mqtt, command, got",
        ),
        (
            "file =",
            'mqtt = "x", file =',
            "[[pipeline]] door: sink: expected a table with one of file, mqtt, command, got",
        ),
        ("model =", "modle =", "[[pipeline]] door: modle: unknown key; the nearest is model"),
        (
            "model =",
            "zzz = 1\nmodel =",
            "[[pipeline]] door: zzz: unknown key; expected one of name, model, source, sink, "
            "input, queue, when_full, when_busy, max_per_s",
        ),
        ('"digits"', '"Di gits"', "[[pipeline]] door: model: expected 1 to 40 characters of a-z"),
        ('name = "door"', "", "[[pipeline]] 1: name: expected a value, got none"),
        (
            "model =",
            "max_per_s = 0\nmodel =",
            "[[pipeline]] door: max_per_s: expected greater than 0, got 0",
        ),
        (
            "model =",
            'when_full = "forget"\nmodel =',
            "[[pipeline]] door: when_full: expected 'wait', 'drop-oldest' or 'drop-newest', got "
            "'forget'",
        ),
        (
            "model =",
            "queue = 5\nmodel =",
            "[[pipeline]] door: queue: expected none with a directory, whose files wait",
        ),
        (
            "model =",
            'when_busy = "drop"\nmodel =',
            "[[pipeline]] door: when_busy: expected retry with a directory, whose files wait",
        ),
        (
            'directory = "/spool", done = "delete"',
            'mqtt = "a/#/b"',
            "[[pipeline]] door: source.mqtt: expected a topic, perhaps with",
        ),
        (
            'file = "door.jsonl"',
            'mqtt = "a/+"',
            "[[pipeline]] door: sink.mqtt: expected one topic, without + and #, got 'a/+'",
        ),
        (
            'file = "door.jsonl"',
            'mqtt = "a", broker = "http://x"',
            "[[pipeline]] door: sink.broker: expected mqtt://HOST:PORT or mqtts://HOST:PORT",
        ),
        (
            'file = "door.jsonl"',
            'mqtt = "a", password_file = "none"',
            "[[pipeline]] door: password_file: cannot read",
        ),
        (
            'directory = "/spool", done = "delete"',
            'command = ["x"], frames = "jpg"',
            "[[pipeline]] door: source.frames",
        ),
        (
            'directory = "/spool", done = "delete"',
            'mqtt = "a"}\nwhen_full = "wait"\nqueue = 2 #',
            "[[pipeline]] door: when_full: expected drop-oldest or drop-newest with mqtt",
        ),
        ('"door"', '["door"]', "[[pipeline]] ['door']: name: expected a valid string"),
        ("[[pipeline]]", "[pipeline]", "pipeline: expected tables, each under [[pipeline]]"),
    ],
)
def test_each_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in DOOR

    assert refusal(tmp_path, DOOR.replace(old, new)).startswith(expected)


def test_names_directories_and_files_are_not_shared(tmp_path: Path) -> None:
    other = DOOR.replace('name = "door"', 'name = "gate"')

    assert refusal(tmp_path, DOOR + DOOR).startswith("[[pipeline]] name: expected different ones")
    assert refusal(tmp_path, DOOR + other).startswith("[[pipeline]] source.directory: expected")
    other = other.replace("/spool", "/other")
    assert refusal(tmp_path, DOOR + other).startswith("[[pipeline]] sink.file: expected different")


def test_there_are_not_endlessly_many(tmp_path: Path) -> None:
    many = "".join(EAR.replace('"ear"', f'"ear-{n}"') for n in range(17))

    assert refusal(tmp_path, many) == "pipeline: expected at most 16, got 17"
