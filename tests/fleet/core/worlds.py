"""Values for tests of the fleet's core."""

from fleet.core.census import Census
from fleet.core.rollout import Assignment, Rollout
from wire.transfer import Offer
from wire.twin import (
    DeploymentReport,
    Phase,
    Probation,
    Reason,
    Reported,
    Serving,
    Status,
)

OLD = "sha256:" + "01" * 32
NEW = "sha256:" + "02" * 32
T0 = 1_800_000_000.0


def serving(manifest: str) -> Serving:
    version = 1 if manifest == OLD else 2
    return Serving(
        model="digits", version=version, manifest=manifest, variant="v", runtime="r", since=1
    )


def deployment(
    phase: Phase,
    *,
    rollout: str = "r-2",
    purpose: str = "rollout",
    manifest: str = NEW,
    reason: Reason | None = None,
    detail: str = "",
) -> DeploymentReport:
    return DeploymentReport.model_validate(
        {
            "model": "digits",
            "version": 1 if manifest == OLD else 2,
            "rollout": rollout,
            "purpose": purpose,
            "manifest": manifest,
            "phase": phase,
            "since": 1,
            "reason": reason,
            "detail": detail,
        }
    )


def report(
    id: str,
    sequence: int,
    now_serving: str | None = OLD,
    latest: DeploymentReport | None = None,
    *,
    boot: str = "boot-1",
    revision: int = 0,
) -> Reported:
    return Reported(
        device=id,
        desired_revision=revision,
        agent="0.1.0",
        boot=boot,
        sequence=sequence,
        serving=(serving(now_serving),) if now_serving else (),
        deployments=(latest,) if latest else (),
    )


def status(id: str, *, online: bool = True, nonce: str = "boot-1") -> Status:
    return Status(device=id, online=online, nonce=nonce, since=1)


def census_of(*ids: str, now: float = T0) -> Census:
    """Devices that are online and serve the old release."""
    census = Census()
    for id in ids:
        census.hear_status(status(id), now, retained=False)
        census.hear_reported(report(id, 1), now, retained=False)
    return census


def rollout_of(*waves: tuple[str, ...], limit: int | None = 20) -> Rollout:
    """digits@2 to devices that have digits@1 by order of r-1."""
    return Rollout(
        id="r-2",
        model="digits",
        version=2,
        manifest=NEW,
        to="all",
        shares=tuple(str(n) for n in range(len(waves))),
        waves=waves,
        previous={
            id: Assignment("digits", 1, OLD, "r-1", probation=Probation(labelled_pairs=50))
            for wave in waves
            for id in wave
        },
        started_at=T0,
        max_refused_percent=limit,
    )


def offer_of(chunks: int = 10, digit: str = "a") -> Offer:
    size = chunks * 64 * 1024
    digest = "sha256:" + digit * 64
    return Offer(
        file=digest,
        file_bytes=size,
        transfer=digest,
        transfer_bytes=size,
        index="sha256:" + digit * 63 + "0",
    )
