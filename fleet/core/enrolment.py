"""How a device joins: the configuration with which its agent finds and trusts this controller."""

import base64
import json

from fleet.core.views import Refusal
from wire.ids import check_id


def agent_toml(
    device: str, broker_url: str, username: str, password: str, public_key: bytes
) -> str:
    """Return the text of an `agent.toml` (422: not a device id)."""
    try:
        check_id(device)
    except ValueError as error:
        raise Refusal(422, f"device id: {error}", "fleet device config cam-1") from None
    login = [f"username = {_string(username)}", f"password = {_string(password)}"]
    lines = [
        f"device = {_string(device)}",
        'data_dir = "data"',
        "",
        "[broker]",
        f"url = {_string(broker_url)}",
        *(login if username else []),
        "",
        "[controller]",
        f"public_keys = [{_string(base64.b64encode(public_key).decode())}]",
        "",
        "[api]",
        'tcp = "127.0.0.1:8731"',
    ]
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    """Return a TOML basic string; JSON's escapes are among its own."""
    return json.dumps(text)
