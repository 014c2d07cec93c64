"""What every bench has in common: options, bars, the table, the JSON line, the exit code."""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any


class CannotMeasureError(Exception):
    """A yardstick is missing, or did not work; the message says which package brings it."""


@dataclass(frozen=True)
class Bar:
    """What a figure must reach."""

    name: str
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float | None) -> bool | None:
        """Whether `value` reaches it; None: it was not measured."""
        if value is None:
            return None
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass
class Result:
    """What a bench measured: figures, and all raw values they were made of."""

    figures: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)


def note(text: str) -> None:
    """Tell how it goes; the answer alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def need(command: str, package: str) -> str:
    """Return the path of a yardstick's program.

    Raises:
        CannotMeasureError: it is not installed.
    """
    path = shutil.which(command)
    if path is None:
        raise CannotMeasureError(f"expected {command}; run: apt-get install {package}")
    return path


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Return the median of the ratios of pairs that were measured one after the other."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def main(name: str, bars: list[Bar], measure: Callable[[bool], Result]) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=measure.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer or smaller runs")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    # So that whoever ends a bench ends what it started as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        result = measure(options.quick)
    except CannotMeasureError as error:
        note(f"{name}: cannot measure: {error}")
        return 2
    judged = [
        {
            "name": bar.name,
            "value": result.figures[bar.name],
            **({"at_least": bar.at_least} if bar.at_least is not None else {}),
            **({"at_most": bar.at_most} if bar.at_most is not None else {}),
            "holds": bar.holds(result.figures[bar.name]),
        }
        for bar in bars
    ]
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        body = {
            "bench": name,
            "quick": options.quick,
            "machine": machine,
            "figures": result.figures,
            "bars": judged,
            "runs": result.runs,
        }
        print(json.dumps(body))
    else:
        _print_table(bars, result)
    return 1 if any(each["holds"] is False for each in judged) else 0


_VERDICTS = {True: "holds", False: "MISSED", None: "not measured"}


def _print_table(bars: list[Bar], result: Result) -> None:
    known = {bar.name: bar for bar in bars}
    for figure, value in result.figures.items():
        if isinstance(value, list):
            continue  # told line by line while it was measured
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        bar = known.get(figure)
        verdict = "" if bar is None else f"{bar}  {_VERDICTS[bar.holds(value)]}"
        print(f"{figure:32}{shown:>12}  {verdict}".rstrip())
