"""All that an agent knows: what survives a restart (Journal) and what does not (AgentState)."""

from dataclasses import dataclass, field
from typing import Literal

from wire.manifest import Manifest
from wire.twin import Desired, Phase, Reason

Purpose = Literal["rollout", "rollback", "fallback"]


@dataclass(frozen=True, slots=True)
class Installed:
    """A release on this device, with the variant it takes and every file it needs."""

    model: str
    version: int
    manifest: str
    variant: str
    files: tuple[str, ...]
    """Digests of all files it needs to run, the manifest's own among them."""
    rollout: str
    since: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """One attempt to bring a release to this device."""

    model: str
    version: int
    manifest: str
    rollout: str
    purpose: Purpose
    phase: Phase
    since: float
    """When the phase began, unix seconds."""
    attempts: int = 0
    """How often its engine was started; journalled before each start."""
    variant: str = ""
    files: tuple[str, ...] = ()
    reason: Reason | None = None
    detail: str = ""
    labelled_pairs: int = 0
    worse: int = 0
    better: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it this deployment and no other."""
        return (self.rollout, self.purpose, self.manifest)


@dataclass(frozen=True, slots=True)
class Journal:
    """What must survive power loss. Everything else is derived from it and from the blobs."""

    desired: Desired | None = None
    champions: dict[str, Installed] = field(default_factory=dict)
    """Model -> what serves."""
    previous: dict[str, Installed] = field(default_factory=dict)
    """Model -> what served before, kept whole for the way back."""
    deployments: dict[str, Deployment] = field(default_factory=dict)
    """Model -> the latest."""
    crashes: dict[str, int] = field(default_factory=dict)
    """Model -> engine crashes blamed on its champion since it last ran well."""
    commands: tuple[str, ...] = ()
    """Ids of recent commands, oldest first."""
    sequence: int = 0
    """Of the last telemetry item that was queued. The outbox may be ahead of it after a crash."""


@dataclass(frozen=True, slots=True)
class KnownManifest:
    """A manifest that was read from its slot."""

    digest: str
    manifest: Manifest
