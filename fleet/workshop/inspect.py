"""From model files, or a release directory, to a release: what the files know is read from them."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from wire.manifest import Manifest


@dataclass(frozen=True)
class ReleaseDraft:
    """A release ready to be pushed: its manifest, and where its files lie."""

    manifest: Manifest
    version_given: bool
    """Whether somebody chose the version; otherwise it is 1 and the store's next one is due."""
    files: dict[str, Path] = field(default_factory=dict)
    """Digest -> path, of every file of the release."""

    def with_version(self, version: int) -> "ReleaseDraft":
        """Return the same release as `version`."""
        return replace(
            self,
            manifest=self.manifest.model_copy(update={"version": version}),
            version_given=True,
        )


def compose_release(
    paths: list[Path],
    *,
    name: str | None,
    version: int | None,
    labels: Path | None,
    golden: Path | None,
    task: str | None,
    description: str = "",
) -> ReleaseDraft:
    """Read one release directory, or one or more model files that are variants of one release.

    Raises:
        ArtifactError: a file is missing, broken, or does not agree with the others.
    """
    raise NotImplementedError
