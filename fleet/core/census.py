"""What the controller knows of every device, from messages that may be late, lost or repeated."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fleet.core.cohort import facts_of
from wire.telemetry import Health
from wire.twin import DeploymentReport, Reported, Serving, Status

SILENT_AFTER_S = 200.0
"""Without any word for this long (three health reports) a device counts as offline."""

CLASH_S = 120.0
"""How long two nonces may overlap before the older one counts as lost rather than alive."""

_BOOTS = 4


@dataclass(frozen=True, slots=True)
class Device:
    """One device, as far as it was heard."""

    id: str
    reported: Reported | None = None
    health: Health | None = None
    agents: tuple[tuple[str, float, float], ...] = ()
    """(nonce, when it came, when it last said so) of each agent that is online under this id."""
    last_seen: float = 0.0
    """When it last spoke, unix seconds; what a broker had retained does not count."""
    present_at: float = 0.0
    """When it, or the broker for it, last gave a sign of life."""
    boots: tuple[tuple[str, int], ...] = ()
    """(boot, highest report sequence) of the latest few boots, the newest last."""

    def online(self, now: float) -> bool:
        """Return whether it can be reached, as far as one can know."""
        return bool(self.agents) and now - self.present_at < SILENT_AFTER_S

    def clash(self, now: float) -> bool:
        """Return whether two agents speak with this id.

        One that came and another that was there before and says so again: an agent that lost
        power and is back before its last will is told has only left its old name behind.
        """
        return len(self.agents) > 1 and any(
            came < later < spoke and now - spoke < CLASH_S
            for _, came, spoke in self.agents
            for _, later, _ in self.agents
        )

    @property
    def facts(self) -> dict[str, str]:
        """What a rollout's target can ask about."""
        if self.reported is None:
            return facts_of(self.id, "", {})
        return facts_of(self.id, self.reported.capabilities.architecture, self.reported.labels)

    @property
    def revision(self) -> int:
        """The highest desired revision it said it took up."""
        return self.reported.desired_revision if self.reported else 0

    def deployment(self, model: str) -> DeploymentReport | None:
        """Return its latest deployment of `model`."""
        # Asked for every device again and again: a loop is three times as fast as a generator.
        for deployment in self.reported.deployments if self.reported is not None else ():
            if deployment.model == model:
                return deployment
        return None

    def serving(self, model: str) -> Serving | None:
        """Return what answers for `model` on it."""
        for serving in self.reported.serving if self.reported is not None else ():
            if serving.model == model:
                return serving
        return None


class Census:
    """Every device ever heard of. Owned by the controller's loop; its devices are values."""

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._devices

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices.values())

    def __len__(self) -> int:
        return len(self._devices)

    def get(self, id: str) -> Device:
        """Return a device; one that never spoke is empty."""
        return self._devices.get(id) or Device(id)

    def copy(self) -> "Census":
        """Return what is known now, for whoever looks at it while the loop goes on."""
        other = Census()
        other._devices = self._devices.copy()
        return other

    def restore(self, device: Device) -> None:
        """Put back what a store remembered."""
        self._devices[device.id] = device

    def hear_reported(self, reported: Reported, now: float, *, retained: bool) -> bool:
        """Take in a report; False when it is a repeat or older than what is known.

        Of one boot the higher sequence wins. A boot that another one replaced may still speak
        (two agents with one id), but what it said before does not count again.
        """
        known = self.get(reported.device)
        seen = dict(known.boots)
        self._touch(known, now, retained)
        if reported.boot in seen and not _newer(reported, seen[reported.boot], known.reported):
            return False
        seen.pop(reported.boot, None)
        boots = (*seen.items(), (reported.boot, reported.sequence))[-_BOOTS:]
        self._devices[known.id] = replace(self._devices[known.id], reported=reported, boots=boots)
        return True

    def hear_status(self, status: Status, now: float, *, retained: bool) -> None:
        """Take in a status: an agent came, or (by its will) went.

        Each agent has its own nonce, so the will of an earlier one cannot take a later one
        offline. An earlier one that never said goodbye is forgotten after CLASH_S.
        """
        known = self.get(status.device)
        self._touch(known, now, retained)
        others = tuple(
            (nonce, came, spoke)
            for nonce, came, spoke in known.agents
            if nonce != status.nonce and (not status.online or now - spoke < CLASH_S)
        )
        came = next((came for nonce, came, _ in known.agents if nonce == status.nonce), now)
        if status.online:
            self._devices[known.id] = replace(
                self._devices[known.id],
                agents=(*others, (status.nonce, came, now))[-_BOOTS:],
                present_at=now,
            )
        else:
            self._devices[known.id] = replace(self._devices[known.id], agents=others)

    def hear_health(self, health: Health, now: float, *, anew: bool = False) -> None:
        """Take in a health report; the highest sequence is the latest, unless it began `anew`."""
        known = self.get(health.device)
        last = known.health
        latest = last is None or anew or last.seq < health.seq
        # One copy: this is the most frequent message of all.
        self._devices[known.id] = replace(
            known, last_seen=now, present_at=now, health=health if latest else last
        )

    def hear(self, id: str, now: float) -> None:
        """Note any other live message of a device."""
        self._touch(self.get(id), now, retained=False)

    def _touch(self, known: Device, now: float, retained: bool) -> None:
        if retained:
            self._devices[known.id] = known
        else:
            self._devices[known.id] = replace(known, last_seen=now, present_at=now)


def _newer(reported: Reported, sequence: int, current: Reported | None) -> bool:
    if reported.sequence > 0:
        return reported.sequence > sequence
    # An agent that does not number its reports: only its revision can show that one is old.
    return current is None or (
        reported != current and reported.desired_revision >= current.desired_revision
    )
