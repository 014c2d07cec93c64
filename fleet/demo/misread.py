"""A device's own account of the answers in which challenger and champion differed."""

import httpx
from pydantic import BaseModel, ValidationError

from fleet.core.errors import FleetError
from fleet.demo.app import MODEL
from wire.codec import first_error

_TIMEOUT_S = 10.0


class Misread(BaseModel):
    """One request that the two releases answered differently."""

    id: str
    champion: int
    challenger: int
    label: int | None = None


class _Account(BaseModel):
    challenger: str
    disagreements: list[Misread]


def latest_loss(device: str, api: str, challenger: str) -> Misread | None:
    """Return the latest request in which the champion was right and the challenger was not.

    `api` is the URL of the device's local API, `challenger` the digest of a release. A device
    keeps its latest disagreements alone, so there may be none.

    Raises:
        FleetError: the device has no such account.
    """
    url = f"{api}/v2/models/{MODEL}/shadow"
    try:
        # Not through the environment's proxies: the device is on this machine.
        answer = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False).raise_for_status()
        account = _Account.model_validate_json(answer.content)
    except httpx.HTTPError as error:
        raise FleetError(f"{device}: expected its account at {url}, got {error}") from error
    except ValidationError as error:
        raise FleetError(f"{device}: {url}: {first_error(error)}") from error
    if account.challenger != challenger:
        raise FleetError(
            f"{device}: expected an account of {challenger}, got one of {account.challenger}"
        )
    losses = [each for each in account.disagreements if each.champion == each.label]
    return losses[-1] if losses else None
