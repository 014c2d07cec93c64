"""Releases of real models, as `fleet model push` makes them, on a device's disk."""

import shutil
from pathlib import Path

from agent.control import ModelSpec
from fleet.workshop.inspect import compose_release
from wire.codec import encode
from wire.manifest import Manifest


class TaskRelease:
    """What a device has of a release: its manifest and its files; `spec` is what it loads."""

    def __init__(
        self,
        folder: Path,
        name: str,
        models: list[Path],
        options: dict[str, Path],
        version: int = 1,
    ) -> None:
        draft = compose_release(
            models,
            name=name,
            version=version,
            labels=options.get("--labels"),
            golden=None,
            task=str(options["--task"]),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.manifest: Manifest = draft.manifest
        self._folder = folder
        self._files = {}
        for digest, path in draft.files.items():
            copy = folder / digest.replace(":", "-")
            shutil.copyfile(path, copy)
            self._files[digest] = str(copy)
        (folder / "manifest.json").write_bytes(encode(self.manifest))
        self.spec = self.of_variant(self.manifest.variants[0].name)

    def of_variant(self, variant: str) -> ModelSpec:
        """Return what a device loads that chose another variant."""
        return ModelSpec(
            self.manifest.model,
            self.manifest.version,
            self.manifest.digest,
            variant,
            str(self._folder / "manifest.json"),
            self._files,
        )
