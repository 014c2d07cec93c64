"""A release on its way to the store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleet.workshop.errors import ArtifactError
from wire.codec import MAX_DOCUMENT_BYTES, encode, first_error
from wire.features import measure_of
from wire.manifest import Manifest


@dataclass(frozen=True)
class ReleaseDraft:
    """A release ready to be pushed: its manifest, and where its files lie."""

    manifest: Manifest
    version_given: bool
    """Whether somebody chose the version; otherwise it is 1 and the store's next one is due."""
    files: dict[str, Path]
    """Digest -> path, of every file of the release."""

    def with_version(self, version: int) -> "ReleaseDraft":
        """Return the same release as `version`.

        Raises:
            ArtifactError: `version` is not 1 or more.
        """
        return ReleaseDraft(changed(self.manifest, version=version), True, self.files)


def changed(manifest: Manifest, **fields: Any) -> Manifest:
    """Return `manifest` with other values in `fields`, checked like the first ones.

    Raises:
        ArtifactError: a value is not allowed.
    """
    return checked_manifest(dict(manifest) | fields)


def checked_manifest(fields: dict[str, Any]) -> Manifest:
    """Return a manifest that the wire will carry.

    Raises:
        ArtifactError: a field is not allowed, or all of them are too long together.
    """
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        raise ArtifactError(f"release: {first_error(error)}; change it and push again") from error
    for feature in manifest.baseline.features if manifest.baseline else ():
        try:
            measure_of(feature.name, manifest)
        except ValueError as error:
            raise ArtifactError(f"release: baseline: {error}; change it and push again") from error
    size = len(encode(manifest))
    if size > MAX_DOCUMENT_BYTES:
        raise ArtifactError(
            f"release: expected a manifest of at most {MAX_DOCUMENT_BYTES} bytes, got {size}; "
            "shorten names, metrics or the baseline"
        )
    return manifest
