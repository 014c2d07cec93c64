import base64
import json
from pathlib import Path

import pytest

from agent.config import ConfigError, engine_environ, load_config, privacy_environ

KEY = base64.b64encode(bytes(range(32))).decode()
GOOD = f"""
device = "pi-1"
data_dir = "data"

[broker]
url = "mqtt://broker.example"

[controller]
public_keys = ["{KEY}"]
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "agent.toml"
    path.write_text(text)
    return path


def refusal(path: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_short_file_is_completed_with_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), {})

    assert config.device == "pi-1"
    assert config.data_dir == tmp_path / "data"
    assert (config.broker.host, config.broker.port, config.broker.tls) == (
        "broker.example",
        1883,
        False,
    )
    assert config.controller.public_keys == (bytes(range(32)),)
    assert config.api.tcp_address == ("127.0.0.1", 8731)
    assert config.api.unix is None
    assert config.transfer.reserve_bytes == 16 * 1024 * 1024
    assert config.telemetry.outbox_bytes == 4 * 1024 * 1024
    assert config.telemetry.outbox_days == 30


def test_the_service_manager_provides_directories_and_the_password(tmp_path: Path) -> None:
    (tmp_path / "creds").mkdir()
    (tmp_path / "creds" / "broker").write_text("s3cret\n")
    text = GOOD.replace('data_dir = "data"\n', "").replace(
        "[controller]", 'username = "pi-1"\npassword_file = "broker"\n\n[controller]'
    )

    config = load_config(
        write(tmp_path, text),
        {
            "STATE_DIRECTORY": "/var/lib/farflung:/other",
            "RUNTIME_DIRECTORY": "/run/farflung",
            "CREDENTIALS_DIRECTORY": str(tmp_path / "creds"),
        },
    )

    assert config.data_dir == Path("/var/lib/farflung")
    assert config.api.unix == Path("/run/farflung/api.sock")
    assert config.broker.password == "s3cret"
    assert "s3cret" not in repr(config)


def test_a_relative_data_directory_lies_where_the_service_may_write(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), {"STATE_DIRECTORY": "/var/lib/farflung"})

    assert config.data_dir == Path("/var/lib/farflung/data")


def test_tls_takes_its_usual_port_and_a_ca_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    text = GOOD.replace("mqtt://broker.example", "mqtts://broker.example")
    text = text.replace("[controller]", 'ca_file = "ca.pem"\n[controller]')

    config = load_config(write(tmp_path, text), {})

    assert (config.broker.tls, config.broker.port) == (True, 8883)
    assert config.broker.ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("url =", "ulr =", "[broker] ulr: unknown key; the nearest is url in [broker]"),
        (
            "[controller]",
            "keepalive = 20\n[controller]",
            "[broker] keepalive: unknown key; the nearest is keepalive_s in [broker]",
        ),
        (
            "data_dir",
            "window_chunk = 8\ndata_dir",
            "window_chunk: unknown key; the nearest is window_chunks in [transfer]",
        ),
        ("[broker]", "[borker]", "borker: unknown key; the nearest is the table [broker]"),
        (
            "[broker]",
            "[engine]\nxyzzy = 1\n[broker]",
            "[engine] xyzzy: unknown key; expected one of threads, nice, memory_mb, ",
        ),
        ('device = "pi-1"', 'device = "Pi 1"', "device: expected 1 to 40 characters of a-z"),
        ("mqtt://", "http://", "[broker] url: expected mqtt://HOST:PORT or mqtts://HOST:PORT"),
        ("broker.example", "me:pw@broker", "[broker] url: expected no name or password in it"),
        ("broker.example", "broker:99999", "[broker] url: expected a port from 1 to"),
        (
            "[controller]",
            'keepalive_s = "often"\n[controller]',
            "[broker] keepalive_s: expected a valid integer, unable to parse string as an "
            "integer, got 'often'",
        ),
        (KEY, "AAAA", "[controller] public_keys.0: expected a 32-byte Ed25519 public key, got 3"),
        (KEY, "not base64!", "[controller] public_keys.0: expected base64 of a 32-byte"),
        (f'["{KEY}"]', "[]", "[controller] public_keys: "),
        ("public_keys", "#", "[controller] public_keys: expected a value, got none"),
        ('data_dir = "data"', "", "data_dir: expected a value, got none; set it, or start under"),
        (
            "[broker]",
            '[api]\ntcp = "0.0.0.0:80"\n[broker]',
            "[api] tcp: expected a loopback address such as 127.0.0.1:8731",
        ),
        ("[broker]", '[api]\ntcp = "8731"\n[broker]', "[api] tcp: expected HOST:PORT such as"),
        (
            "[broker]",
            "[transfer]\nwindow_chunks = 65\n[broker]",
            "[transfer] window_chunks: expected less than or equal to 64, got 65",
        ),
        (
            "[broker]",
            '[engine]\nruntimes = ["onnx"]\n[broker]',
            "[engine] runtimes.0: expected 'onnxruntime', 'ai-edge-litert' or 'tflite-runtime', "
            "got 'onnx'",
        ),
        (
            "[controller]",
            'password = "a"\npassword_file = "b"\n[controller]',
            "[broker] password: expected one of password and password_file, got both",
        ),
        (
            "[controller]",
            'password_file = "nowhere"\n[controller]',
            "[broker] password_file: expected a file that can be read, got",
        ),
        (
            "[controller]",
            'ca_file = "nowhere"\n[controller]',
            "[broker] ca_file: expected a file that can be read, got",
        ),
        (
            "[broker]",
            '[transfer]\nwindows = ["1-5"]\n[broker]',
            "[transfer] windows.0: expected a window of the day such as 01:00-05:00, got '1-5'",
        ),
        (
            "[broker]",
            '[transfer]\nwindows = ["05:00-05:00"]\n[broker]',
            "[transfer] windows.0: expected a window that begins and ends at two times",
        ),
        (
            "[broker]",
            '[transfer]\ntimezone = "Mars/Olympus"\n[broker]',
            "[transfer] timezone: expected a time zone that this system knows, such as",
        ),
        (
            "[broker]",
            '[retention]\npin = ["detector"]\n[broker]',
            "[retention] pin.0: expected NAME@VERSION such as detector@7, got 'detector'",
        ),
        (
            "[broker]",
            "[retention]\nquota_mb = -1\n[broker]",
            "[retention] quota_mb: expected greater than or equal to 0, got -1",
        ),
        ("[broker]", "[broker", "not TOML: "),
    ],
)
def test_each_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD

    message = refusal(write(tmp_path, GOOD.replace(old, new)))

    assert message.startswith(expected)


def test_a_wrong_password_type_is_refused_without_showing_it(tmp_path: Path) -> None:
    text = GOOD.replace("[controller]", "password = 31337\n[controller]")

    message = refusal(write(tmp_path, text))

    assert message.startswith("[broker] password: expected a valid string")
    assert "31337" not in message


def test_syntax_errors_name_their_line(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "device = 'pi-1'\nlabels =\n"))

    assert "line 2" in message


def test_manners_and_retention_are_read(tmp_path: Path) -> None:
    text = """
[transfer]
bytes_per_s = 65536
windows = ["22:00-04:00", "12:00-13:00"]
timezone = "Europe/Berlin"

[retention]
pin = ["detector@7", "digits@1"]
quota_mb = 64
"""

    config = load_config(write(tmp_path, GOOD + text), {})

    assert config.transfer.windows == ("22:00-04:00", "12:00-13:00")
    assert config.transfer.timezone == "Europe/Berlin"
    assert config.retention.pins == {("detector", 7), ("digits", 1)}
    assert config.retention.quota_bytes == 64 * 1024 * 1024


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "none.toml")

    assert message == "cannot read the configuration: No such file or directory"


def test_accelerators_are_names_or_tables_with_the_librarys_own_options(tmp_path: Path) -> None:
    engine = """
[engine]
providers = ["OpenVINO", { name = "QNN", backend_path = "libQnnHtp.so", profiling = 1 }]
delegates = ["libedgetpu.so.1"]
"""

    config = load_config(write(tmp_path, GOOD + engine), {})

    told = json.loads(engine_environ(config.engine, {"OpenVINO"})["FARFLUNG_ACCELERATORS"])
    options = {"backend_path": "libQnnHtp.so", "profiling": "1"}
    assert told == {"providers": [["QNN", options]], "delegates": [["libedgetpu.so.1", {}]]}
    broken = {"OpenVINO", "QNN", "libedgetpu.so.1"}
    assert "FARFLUNG_ACCELERATORS" not in engine_environ(config.engine, broken)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('providers = [{ device = "GPU" }]', "[engine] providers.0.name: expected a"),
        ('delegates = [""]', "[engine] delegates.0.name: "),
        ("nice = 20", "[engine] nice: expected less than or equal to 19, got 20"),
        ("invoke_timeout_s = 0", "[engine] invoke_timeout_s: expected greater than"),
    ],
)
def test_a_mistake_about_the_engine_is_one_clear_line(
    tmp_path: Path, given: str, expected: str
) -> None:
    assert refusal(write(tmp_path, f"{GOOD}\n[engine]\n{given}\n")).startswith(expected)


def test_metrics_are_off_unless_an_address_is_given(tmp_path: Path) -> None:
    off = load_config(write(tmp_path, GOOD), {})
    on = load_config(write(tmp_path, f'{GOOD}\n[metrics]\nlisten = "127.0.0.1:9464"'), {})

    assert off.metrics.address is None
    assert on.metrics.address == ("127.0.0.1", 9464)


def test_metrics_want_an_address_and_a_port(tmp_path: Path) -> None:
    for wrong in ("9464", "0.0.0.0", "example.com:9464", "127.0.0.1:x"):
        text = refusal(write(tmp_path, f'{GOOD}\n[metrics]\nlisten = "{wrong}"'))
        assert text.startswith("[metrics] listen: expected ADDRESS:PORT such as 127.0.0.1:9464")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("epsilon = 0", "[privacy] epsilon: expected greater than or equal to 0.001, got 0"),
        ("epsilon = 50", "[privacy] epsilon: expected less than or equal to 10, got 50"),
        ("epsilon_day = 2", "[privacy]: expected epsilon beside epsilon_day"),
        ("epsilon = 2\nepsilon_day = 1", "[privacy]: expected an epsilon_day of at least epsilon"),
        ("epsilom = 1", "[privacy] epsilom: unknown key; the nearest is epsilon in [privacy]"),
    ],
)
def test_a_mistake_about_privacy_is_one_clear_line(
    tmp_path: Path, given: str, expected: str
) -> None:
    assert refusal(write(tmp_path, f"{GOOD}\n[privacy]\n{given}\n")).startswith(expected)


def test_an_engine_is_told_what_class_counts_may_cost_in_decimals(tmp_path: Path) -> None:
    off = load_config(write(tmp_path, GOOD), {})
    on = load_config(write(tmp_path, f"{GOOD}\n[privacy]\nepsilon = 0.1\nepsilon_day = 2"), {})

    assert privacy_environ(off.privacy) == {}
    assert privacy_environ(on.privacy) == {"FARFLUNG_PRIVACY": "0.1,2.0"}
