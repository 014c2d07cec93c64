"""Libraries that a release's task needs beside a runtime, and whether this device has them."""

from wire.manifest import Manifest
from wire.twin import Capabilities

PICTURES = "Pillow"


def lacking(manifest: Manifest, able: Capabilities) -> str:
    """Return what is needed and what there is, empty when nothing is lacking."""
    there = able.libraries
    if there is None:
        return ""  # not known: the trial will tell
    given = manifest.task.input
    if given is not None and given.kind == "image" and PICTURES not in there:
        return _told("takes pictures", PICTURES, "vision", able)
    features = None if manifest.stream is None else manifest.stream.features
    if features is None:
        return ""
    name, wanted = features.extractor, features.version.split(".")
    if name not in there:
        return _told("takes features of sound", f"{name} {features.version}", "audio", able)
    if there[name].split(".")[: len(wanted)] != wanted:
        return f"the task needs {name} {features.version}; here: {there[name]}"
    return ""


def _told(what: str, needs: str, extra: str, able: Capabilities) -> str:
    name = needs.split(maxsplit=1)[0]
    why = able.unusable.get(name)
    here = f"unusable: {why}" if why else f"not installed: pip install 'farflung[{extra}]'"
    return f"the task {what} and needs {needs}; here: {here}"[:480]
