"""What must hold of a model's answers and costs whatever it is for, checked in its trial."""

from pathlib import Path

import numpy as np

from agent.engine.model import Model
from agent.engine.runtimes import Array, CannotRunError
from wire.twin import Reason

SUM_TOLERANCE = 0.02
EIGHT_BIT_STEP = 1 / 256
MEBIBYTE = 1024 * 1024


def check_probabilities(model: Model, outputs: list[Array], whose: str) -> None:
    """See that scores declared as probabilities sum to 1.

    An 8-bit softmax rounds each by up to half a step, so that the sum may be off by half a step
    for every class.

    Raises:
        CannotRunError: golden_mismatch, with the sum.
    """
    reals = model.real_scores(outputs)
    if reals is None or model.manifest.task.scores_are != "probabilities" or reals.shape[-1] < 2:
        return
    sums = reals.sum(axis=-1)
    # Whether they are numbers at all is another check's: zeros for want of samples may divide.
    sums = sums[np.isfinite(sums)]
    worst = float(sums[np.abs(sums - 1).argmax()]) if sums.size else 1.0
    tolerance = SUM_TOLERANCE + reals.shape[-1] * EIGHT_BIT_STEP / 2
    if abs(worst - 1) > tolerance:
        raise CannotRunError(
            Reason.GOLDEN_MISMATCH,
            f"{whose}: expected probabilities that sum to 1 within {tolerance:.2g}, "
            f"got {worst:.4g}; scores of another kind are declared as logits",
        )


def check_budget(model: Model, invoke_ms: float, memory_bytes: int) -> None:
    """See that a model keeps within what its release allows it.

    Raises:
        CannotRunError: too_slow or out_of_memory, with both figures.
    """
    budget = model.manifest.budget
    if budget is None:
        return
    if budget.invoke_ms is not None and invoke_ms > budget.invoke_ms:
        raise CannotRunError(
            Reason.TOO_SLOW,
            f"a run takes {invoke_ms:.3g} ms here, its budget is {budget.invoke_ms:g} ms",
        )
    if budget.memory_bytes is not None and memory_bytes > budget.memory_bytes:
        raise CannotRunError(
            Reason.OUT_OF_MEMORY,
            f"it takes {memory_bytes / MEBIBYTE:.1f} MiB of memory here, "
            f"its budget is {budget.memory_bytes / MEBIBYTE:.1f} MiB",
        )


def memory_bytes() -> int:
    """Return this process's proportional set size, 0 where the kernel does not tell it."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return 0
    kibibytes = next((line.split()[1] for line in text.splitlines() if line[:4] == "Pss:"), "0")
    return int(kibibytes) * 1024
