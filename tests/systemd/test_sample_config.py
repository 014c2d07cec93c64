import tomllib
from pathlib import Path

import pytest

from agent.config import AgentConfig, ConfigError, load_config

SAMPLE = Path(__file__).parents[2] / "systemd/agent.toml"
KEY = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA="
ENVIRONMENT = {
    "STATE_DIRECTORY": "/var/lib/farflung",
    "RUNTIME_DIRECTORY": "/run/farflung",
}


def test_the_sample_is_refused_until_the_operator_says_whose_orders_count():
    with pytest.raises(ConfigError, match="public_keys"):
        load_config(SAMPLE, ENVIRONMENT)


def test_the_sample_with_every_remark_taken_up_is_a_whole_configuration(tmp_path):
    (tmp_path / "broker-password").write_text("secret\n")
    lines = SAMPLE.read_text().replace('[""]', f'["{KEY}"]').splitlines()
    filled = tmp_path / "agent.toml"
    filled.write_text(
        "\n".join(line.removeprefix("# ") if " = " in line else line for line in lines)
    )

    config = load_config(filled, ENVIRONMENT | {"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert config.broker.password == "secret"
    assert config.data_dir == Path("/var/lib/farflung")
    assert config.api.unix == Path("/run/farflung/api.sock")
    assert set(tomllib.loads(filled.read_text())) <= set(AgentConfig.model_fields)
