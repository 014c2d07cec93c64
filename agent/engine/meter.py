"""Processor time, counted and rationed.

Wall time is no evidence of what a model costs: a challenger runs at low priority, and waits.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.engine.runtimes import Array, Runtime

BURST_S = 0.25
"""An allowance that was not used is kept for so long."""


@dataclass(slots=True)
class _Count:
    rows: int = 0
    cpu_ns: int = 0


class Metered:
    """A runtime that counts the processor time of the threads that call it.

    With a pool of threads that is a share of the whole, and the same share for every model.
    """

    def __init__(self, inner: Runtime, count: "_Count | None" = None) -> None:
        self.inner = inner
        self._count = count or _Count()
        self.name, self.version, self.fallback = inner.name, inner.version, inner.fallback
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self._batched = inner.inputs[0].shape[:1] in ((-1,), (1,))

    @property
    def rows(self) -> int:
        """How many were run."""
        return self._count.rows

    @property
    def cpu_us(self) -> int:
        """Microseconds of all rows together."""
        return self._count.cpu_ns // 1000

    def beside(self, inner: Runtime) -> "Metered":
        """Return another interpreter of the same model, counted together with this one."""
        return Metered(inner, self._count)

    @property
    def interrupt(self) -> Callable[[], None] | None:
        """Ends the run under way, where that can be done."""
        return self.inner.interrupt

    def run(self, inputs: list[Array]) -> list[Array]:
        """Run, and count it if it succeeds."""
        began = time.thread_time_ns()
        outputs = self.inner.run(inputs)
        self._count.cpu_ns += time.thread_time_ns() - began
        self._count.rows += inputs[0].shape[0] if self._batched else 1
        return outputs


class Ration:
    """A share of one core: what was taken too fast is to be rested off."""

    def __init__(self, share: float, now: float, cpu_s: float) -> None:
        """Begin at `now` on any clock, with `cpu_s` taken so far."""
        self._share = share
        self._paid_until = now
        self._taken = cpu_s

    def rest_s(self, now: float, cpu_s: float) -> float:
        """Return for how long to take no more, after `cpu_s` in all."""
        self._paid_until = max(self._paid_until, now - BURST_S)
        self._paid_until += (cpu_s - self._taken) / self._share
        self._taken = cpu_s
        return max(self._paid_until - now, 0.0)
