"""`fleet monitoring`: files for Prometheus, Alertmanager and Grafana."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from fleet.core.errors import FleetError


@click.group()
def monitoring() -> None:
    """Prometheus, Alertmanager and Grafana."""


@monitoring.command()
@click.argument("directory", type=click.Path(path_type=Path))
def write(directory: Path) -> None:
    """Write configurations, rules and dashboards into DIRECTORY, to be adapted there.

    What is there already is left as it is.
    """
    written, kept = 0, 0
    for name, file in _files(files("fleet.monitoring"), ""):
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                out.write(file.read_bytes())
            written += 1
        except FileExistsError:
            kept += 1
        except OSError as error:
            raise FleetError(
                f"{path}: cannot be written: {error.strerror}",
                "fleet monitoring write ANOTHER-DIRECTORY",
            ) from error
    click.echo(f"{written} files written to {directory}" + (f", {kept} kept" if kept else ""))


def _files(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    """Return the files in a folder of the package by their place in it."""
    found = []
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir():
            if each.name != "__pycache__":
                found += _files(each, f"{prefix}{each.name}/")
        elif not each.name.startswith("__") and not each.name.endswith(".pyc"):
            found.append((f"{prefix}{each.name}", each))
    return found
