"""Windows and health reports that nobody saw yet, made fewer: sums stay, times get coarser."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from wire.telemetry import Estimate, Golden, Health, ScoreWindow, Shadow

K = TypeVar("K", int, str)
Mergeable = ScoreWindow | Health


def compact(items: Sequence[Mergeable]) -> list[Mergeable]:
    """Return fewer items that say the same of all of them together.

    Windows of one release in one run of the agent add up; of the health reports the latest stays.
    Given is a stretch of the sequence, ascending, of which nothing was ever sent. Each item that
    remains keeps its number, and stands for all numbers since the one before it.
    """
    merged: dict[object, Mergeable] = {}
    for item in items:
        key = _identity(item)
        before = merged.pop(key, None)
        both = isinstance(item, ScoreWindow) and isinstance(before, ScoreWindow)
        merged[key] = merge(before, item) if both else item  # type: ignore[arg-type]
    return _numbered(items[0].first or items[0].seq, list(merged.values()))


def _numbered(first: int, items: list[Mergeable]) -> list[Mergeable]:
    numbered: list[Mergeable] = []
    for item in items:
        since = None if first == item.seq else first
        numbered.append(item if item.first == since else item.model_copy(update={"first": since}))
        first = item.seq + 1
    return numbered


def _identity(item: Mergeable) -> object:
    """Return what windows must have in common to be added up."""
    if isinstance(item, Health):
        return None
    challenger = item.shadow.challenger if item.shadow is not None else ""
    return (item.boot, item.model, item.version, item.manifest, item.variant, challenger,
            item.epsilon)  # fmt: skip


_SUMS = (
    "requests", "errors", "drops", "labelled", "correct", "confidence_sum", "slo_misses",
    "orphan_labels", "epsilon_windows",
)  # fmt: skip
_MAPS = ("predicted", "confidence", "confusion", "outcomes", "noised")


def merge(one: ScoreWindow, other: ScoreWindow) -> ScoreWindow:
    """Return both windows as one, under the number of the later; they are of one release."""
    later = max(one, other, key=lambda window: window.seq)
    errors = [w.value_errors for w in (one, other) if w.value_errors is not None]
    return later.model_copy(
        update={
            **{name: getattr(one, name) + getattr(other, name) for name in _SUMS},
            **{name: _added(getattr(one, name), getattr(other, name)) for name in _MAPS},
            "first": min(one.first or one.seq, other.first or other.seq),
            "start": min(one.start, other.start),
            "end": max(one.end, other.end),
            "latency": one.latency.merge(other.latency),
            "value_errors": errors[0].merge(errors[1]) if len(errors) == 2 else (*errors, None)[0],
            "calibration": _joined(one.calibration, other.calibration),
            "drift": _joined(one.drift, other.drift),
            "estimate": _part(Estimate, one.estimate, other.estimate),
            "golden": _part(Golden, one.golden, other.golden),
            "shadow": _part(Shadow, one.shadow, other.shadow),
        }
    )


def _added(one: Mapping[K, int], other: Mapping[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def _joined(
    one: Mapping[int, tuple[int, ...]], other: Mapping[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    return {
        key: tuple(a + b for a, b in zip_longest(one.get(key, ()), other.get(key, ()), fillvalue=0))
        for key in {**one, **other}
    }


def _part(kind: type[Any], one: Any, other: Any) -> Any:
    """Return the sums of two parts, of which either may be missing."""
    if one is None or other is None:
        return one if other is None else other
    names = [name for name, field in kind.model_fields.items() if not field.is_required()]
    return one.model_copy(
        update={name: getattr(one, name) + getattr(other, name) for name in names}
    )
