"""A model in service, with everything that is kept about it."""

import asyncio
from typing import Any

from agent.control import Window
from agent.engine.comparison import Comparison
from agent.engine.errors import bad_request
from agent.engine.hearing import Ear
from agent.engine.lane import Lane
from agent.engine.meter import Metered
from agent.engine.scoreboard import Scoreboard
from agent.engine.shadow import Say, ShadowFeed
from agent.engine.streams import Streams
from agent.engine.trial import Passed

MAX_UNREPORTED = 8
"""Ended comparisons whose last counts wait for a report."""


class Served:
    """One model of this generation: its lane, its scoreboard, its challenger."""

    def __init__(self, passed: Passed, now: int) -> None:
        self.model = passed.model
        self.lane = Lane(passed.model, passed.loaded.invoke_ms, passed.warm_bytes)
        self.ear: Ear | None = None
        self.streams: Streams | None = None
        """Both where the model listens, neither where each request stands for itself."""
        if passed.model.framing is not None:
            self.ear, self.streams = Ear(passed.model), Streams(passed.model)
        self.board = Scoreboard(passed.model.spec, now)
        self.feed: ShadowFeed | None = None
        self.comparison: Comparison | None = None
        """The running one or the last."""
        self._unreported: list[Comparison] = []

    def begin(self) -> None:
        """Serve from now on: streams of a former generation go on here."""
        if self.streams is not None:
            self.streams.adopt()
            self._sweeping = asyncio.create_task(self.streams.sweep())

    def start_shadow(self, path: str, challenger: str, say: Say) -> None:
        """Copy live inputs to a challenger from now on; an earlier comparison ends."""
        self.stop_shadow()
        self.comparison = Comparison(self.model.spec.model, challenger)
        self._unreported = [*self._unreported, self.comparison][-MAX_UNREPORTED:]
        self.comparison.champion = self.model.runtime = Metered(self.model.runtime)
        self.feed = ShadowFeed(self.model, path, self.comparison, say)

    def stop_shadow(self) -> None:
        """Stop copying; the comparison stays readable."""
        if self.feed is not None:
            self.feed.stop()
            self.feed = None
        if isinstance(self.model.runtime, Metered):
            self.model.runtime = self.model.runtime.inner

    def comparisons(self) -> list[Comparison]:
        """Return the running comparison and those that ended since the last windows."""
        return list(self._unreported)

    def take_windows(self, now: int) -> list[Window]:
        """Return what happened since the last time; ended comparisons are reported with it."""
        shadows = [comparison.increments() for comparison in self._unreported]
        self._unreported = [item for item in self._unreported if not item.ended]
        windows = [self.board.take(now, shadow) for shadow in shadows if shadow is not None]
        return [window for window in windows or [self.board.take(now, None)] if window is not None]

    def read_labels(self, given: Any) -> tuple[int, ...]:
        """Return the true classes that an app names by number or by label, one a row.

        Raises:
            HttpError: they are no classes of this model.
        """
        if self.model.classes is None:
            raise bad_request(
                f"model {self.model.spec.model} has no classes to label: post its true value"
            )
        items = given if isinstance(given, list) else [given]
        if not items:
            raise bad_request("label: expected a class for every row, got none")
        return tuple(self._class_of(item) for item in items)

    def _class_of(self, item: Any) -> int:
        labels = self.model.class_names
        if isinstance(item, str):
            renamed = self.model.manifest.task.label_map or {}
            # An app sends back what it was told; a class of that very name comes first.
            for names in (labels, [renamed.get(label, label) for label in labels]):
                if item in names:
                    return names.index(item)
        classes = self.model.classes
        assert classes is not None
        most = classes if classes > 0 else len(labels)
        if type(item) is int and item >= 0 and (item < most or most == 0):
            return item
        named = f" or one of {labels[:20]}" if labels else ""
        raise bad_request(
            f"label: expected a class from 0 to {most - 1}{named}, got {str(item)[:80]!r}"
        )
