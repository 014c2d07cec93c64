"""What is wanted against what is so. An empty answer means converged."""

from dataclasses import dataclass

from agent.core.state import Deployment, Journal, Key
from wire.twin import DesiredRelease, Phase


@dataclass(frozen=True, slots=True)
class Begin:
    """Bring this release here."""

    release: DesiredRelease


@dataclass(frozen=True, slots=True)
class Adopt:
    """This release already serves: note that its rollout is done here."""

    release: DesiredRelease


@dataclass(frozen=True, slots=True)
class Supersede:
    """End a deployment that is no longer wanted."""

    model: str


Step = Begin | Adopt | Supersede


def key_of(release: DesiredRelease) -> Key:
    """Return what makes a deployment of `release` that one and no other."""
    return (release.rollout, release.purpose, release.manifest)


def settled(journal: Journal, release: DesiredRelease) -> bool:
    """Return whether this rollout had its say here, whatever it was."""
    key = key_of(release)
    latest = journal.deployments.get(release.model)
    committed = latest is not None and latest.phase is Phase.COMMITTED and latest.key == key
    return committed or key in journal.refused


def under_way(deployment: Deployment, release: DesiredRelease) -> bool:
    """Return whether this very deployment is going on."""
    return not deployment.phase.final and deployment.key == key_of(release)


def reconcile(journal: Journal) -> list[Step]:
    """Compare the desired document with champions and deployments.

    A model that the document does not name is left as it is: losing a controller's memory
    must never stop a working model. Only a deployment under way is given up.
    """
    wanted = journal.wanted()
    steps: list[Step] = []
    for model, deployment in journal.deployments.items():
        release = wanted.get(model)
        unwanted = release is None or deployment.key != key_of(release)
        if not deployment.phase.final and unwanted:
            steps.append(Supersede(model))
    for model, release in wanted.items():
        latest = journal.deployments.get(model)
        if settled(journal, release) or (latest is not None and under_way(latest, release)):
            continue
        champion = journal.champions.get(model)
        if champion is None or champion.manifest != release.manifest:
            steps.append(Begin(release))
        elif champion.rollout != release.rollout and (
            latest is None or latest.rollout != release.rollout
        ):
            steps.append(Adopt(release))
    return steps
