"""Which execution providers and delegates the configuration names, beside the processor."""

import json
import os
from dataclasses import dataclass, field
from typing import Literal

VARIABLE = "FARFLUNG_ACCELERATORS"
"""Environment: {"providers" | "delegates": [[name, {option: text}], ...]} as JSON."""

Kind = Literal["providers", "delegates"]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """An execution provider of onnxruntime by name, or a TFLite delegate by its library."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


def configured(kind: Kind) -> list[Accelerator]:
    """Return those to try, the first choice first."""
    table = json.loads(os.environ.get(VARIABLE, "{}"))
    return [Accelerator(name, options) for name, options in table.get(kind, [])]


def one_line(error: BaseException) -> str:
    """Return what a library says of its failure, for a report."""
    return " ".join(str(error).split())[:200] or type(error).__name__
