"""What became of every frame: taken = answered + dropped + failed + those still waiting."""

import threading
from collections import Counter
from typing import Any


class Counts:
    """One pipeline's counters since this process began; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._answered = 0
        self._retries = 0
        self._restarts = 0
        self._dropped: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def took(self) -> None:
        """Count a frame that came."""
        with self._lock:
            self._taken += 1

    def answered(self) -> None:
        """Count a frame whose answer the sink has."""
        with self._lock:
            self._answered += 1

    def dropped(self, reason: str) -> None:
        """Count a frame that was let go unasked."""
        with self._lock:
            self._dropped[reason] += 1

    def failed(self, reason: str) -> None:
        """Count a frame that the model has no answer for."""
        with self._lock:
            self._failed[reason] += 1

    def retried(self) -> None:
        """Count a question that is put again."""
        with self._lock:
            self._retries += 1

    def restarted(self) -> None:
        """Count a command that is started again."""
        with self._lock:
            self._restarts += 1

    def values(self) -> dict[str, Any]:
        """Return all of them, for JSON."""
        with self._lock:
            return {
                "taken": self._taken,
                "answered": self._answered,
                "dropped": dict(self._dropped),
                "failed": dict(self._failed),
                "retries": self._retries,
                "restarts": self._restarts,
            }


def words(values: dict[str, Any]) -> str:
    """Return counters as a line of the log shows them."""
    parts = [f"{values['taken']} taken", f"{values['answered']} answered"]
    for name in ("dropped", "failed"):
        reasons: dict[str, int] = values[name]
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        parts.append(f"{sum(reasons.values())} {name}" + (f" ({why})" if why else ""))
    parts += [f"{values[name]} {name}" for name in ("retries", "restarts") if values[name]]
    return ", ".join(parts)
