"""A model in service, with everything that is kept about it."""

import asyncio
import os
from typing import TYPE_CHECKING, Any

from agent import control
from agent.control import Window
from agent.engine.comparison import Comparison
from agent.engine.errors import bad_request
from agent.engine.hearing import Ear
from agent.engine.judging import IOU
from agent.engine.lane import Lane
from agent.engine.meter import Metered
from agent.engine.scoreboard import Scoreboard
from agent.engine.shadow import Say, ShadowFeed
from agent.engine.streams import Streams
from agent.engine.tasks.detection import Box
from agent.engine.trial import Passed

if TYPE_CHECKING:
    from agent.engine.capture import Capture

PRIVACY_VARIABLE = "FARFLUNG_PRIVACY"

MAX_TRUE_BOXES = 256
"""Of one request."""

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
        self.board = Scoreboard(
            passed.model.spec, now, passed.model.manifest, passed.model.classify_few
        )
        if PRIVACY_VARIABLE in os.environ:
            from agent.engine.privacy import ClassCounts, Privacy  # 1 MB, where it is asked for

            privacy = Privacy.of_text(os.environ[PRIVACY_VARIABLE])
            self.board.guard(ClassCounts(privacy, passed.model.manifest, passed.model.classes))
        self.frame_s: float | None = None
        """How far apart the frames are of a stream that says yes or no; None for any other."""
        if passed.model.framing is not None and passed.model.is_yes_or_no:
            framing = passed.model.framing
            self.frame_s = framing.hop_samples / framing.stream.rate_hz
        self.feed: ShadowFeed | None = None
        self.comparison: Comparison | None = None
        """The running one or the last."""
        self._unreported: list[Comparison] = []
        self.captures: tuple[Capture, ...] = ()
        """Orders to keep some of the inputs; none unless the device consents."""

    @property
    def alone(self) -> bool:
        """Whether nobody else looks at each of its answers."""
        return self.feed is None and not self.captures

    def begin(self) -> None:
        """Serve from now on: streams of a former generation go on here."""
        if self.streams is not None:
            self.streams.adopt()
            self._sweeping = asyncio.create_task(self.streams.sweep())

    def start_shadow(self, path: str, challenger: str, say: Say) -> None:
        """Copy live inputs to a challenger from now on; an earlier comparison ends."""
        self.stop_shadow()
        task = self.model.manifest.task
        self.comparison = Comparison(
            self.model.spec.model, challenger, iou=task.iou or IOU, tolerance=task.tolerance
        )
        self._unreported = [*self._unreported, self.comparison][-MAX_UNREPORTED:]
        self.comparison.champion = self.model.runtime = Metered(self.model.runtime)
        self.feed = ShadowFeed(self.model, path, self.comparison, say)

    def capture(self, order: control.Capture, say: Say) -> None:
        """Follow an order to keep inputs, or end it."""
        from agent.engine.capture import Capture  # only where there is an order

        for capture in self.captures:
            if capture.request == order.request:
                capture.stop()
        kept = [one for one in self.captures if one.request != order.request and not one.gone]
        new = [Capture(order, self.model, say)] if order.count > 0 else []
        self.captures = (*kept, *new)

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

    def take_windows(self, now: int, *, last: bool = False) -> list[Window]:
        """Return what happened since the last time; ended comparisons are reported with it.

        `last`: nothing will be taken after it.
        """
        shadows = [comparison.increments() for comparison in self._unreported]
        self._unreported = [item for item in self._unreported if not item.ended]
        told: list[dict[str, Any] | None] = [each for each in shadows if each is not None]
        windows = [self.board.take(now, shadow, last=last) for shadow in told or [None]]
        return [window for window in windows if window is not None]

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

    def read_boxes(self, given: Any) -> list[list[Box]]:
        """Return the true boxes that an app tells of: of one picture, or a list of such lists.

        Raises:
            HttpError: they are no boxes of this model.
        """
        if self.model.detector is None:
            raise bad_request(f"model {self.model.spec.model} finds no boxes: post a label")
        if not isinstance(given, list):
            raise bad_request("boxes: expected a list of objects, or one for every picture")
        pictures = given if given and all(isinstance(each, list) for each in given) else [given]
        return [[self._box_of(each) for each in picture] for picture in _few(pictures)]

    def _box_of(self, given: Any) -> Box:
        if not isinstance(given, dict):
            raise bad_request('boxes: expected {"label": ..., "box": [x1, y1, x2, y2]} each')
        corners = given.get("box")
        if not (
            isinstance(corners, list)
            and len(corners) == 4
            and all(type(each) in (int, float) and abs(each) <= 1e9 for each in corners)
            and corners[0] < corners[2]
            and corners[1] < corners[3]
        ):
            raise bad_request(
                "box: expected [x1, y1, x2, y2] in pixels, the second corner right of and below "
                f"the first, got {str(corners)[:80]}"
            )
        assert self.model.detector is not None
        named = given.get("label", given.get("class"))
        if named is None and self.model.detector.classes == 1:
            named = 0
        left, top, right, bottom = map(float, corners)
        return self._class_of(named), left, top, right, bottom

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


def _few(pictures: list[list[Any]]) -> list[list[Any]]:
    count = sum(map(len, pictures))
    if count > MAX_TRUE_BOXES:
        raise bad_request(f"boxes: expected up to {MAX_TRUE_BOXES} in a request, got {count}")
    return pictures
