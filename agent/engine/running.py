"""From a request that was read to its answer: the lane, the stream's books, and the counts."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from agent.engine.comparison import Outcome
from agent.engine.errors import AnswerError, BusyError, HttpError
from agent.engine.http import Request, Response
from agent.engine.lane import DeadlineError, LaneFullError, Runner, Turn
from agent.engine.runtimes import Array
from agent.engine.served import Served
from agent.engine.statistics import Statistics
from agent.engine.streams import Part, Streams
from agent.engine.tasks import Item, Read, Told
from agent.engine.tasks.desk import Desk
from agent.engine.tasks.detection import boxes_of
from agent.engine.tensors import TensorError, check_finite

Answer = Response | Awaitable[Response]


@dataclass(slots=True)  # not frozen: that would make each five times as slow to make
class Job:
    """A request that was read and is to be run."""

    served: Served
    statistics: Statistics
    request: Request
    id: str
    inputs: list[Array]
    write: Callable[[str, list[Array]], Response]
    read_at: float
    within_s: float | None = None
    items: tuple[Item, ...] = ()
    """What the inputs were read from, where an app sent no tensors."""

    part: Part | None = None
    """Of a stream, where the model listens."""
    told: Told | None = None
    """What the desk made of the answer, where an app sent no tensors."""

    @property
    def runner(self) -> Runner | None:
        """What runs in place of the model alone."""
        if self.part is None:
            return None
        hear = self.part.stream.hear
        return lambda inputs: hear(inputs[0])

    @property
    def expected_ms(self) -> float | None:
        """How long its run takes; None: as its inputs' size tells."""
        if self.part is None:
            return None
        return self.part.stream.expected_ms(self.inputs[0], self.served.lane.invoke_ms)

    @property
    def rows(self) -> int:
        """How many inferences the request asks for."""
        if self.part is not None:
            return 1
        return self.inputs[0].shape[0] if self.served.model.batched else 1

    @property
    def left_s(self) -> float | None:
        """How long its app still waits; None: as long as it takes."""
        if self.within_s is None:
            return None
        return self.within_s - (time.perf_counter() - self.request.came_at)


async def read_then_run(
    served: Served, desk: Desk, items: tuple[Item, ...], job: Callable[[Read], Job]
) -> Response:
    """Have the desk read what an app sent, which takes a while, and run that.

    Raises:
        HttpError: 503, too much waits there already; and what `run` raises.
    """
    try:
        read = await desk.queue(items)
    except BusyError as error:
        served.board.dropped()
        raise HttpError(503, f"model {served.model.spec.model}: {error}") from None
    answer = run(job(read))
    return answer if isinstance(answer, Response) else await answer


def run_part(job: Job, streams: Streams, part: Part) -> Answer:
    """Run a request of a stream, and keep the stream's books whatever comes of it."""
    try:
        answer = run(job)
    except Exception as error:
        _settle(streams, part, error)
        raise
    if isinstance(answer, Response):
        return _parted(answer, streams, part)
    return _wait_for_part(answer, streams, part)


async def _wait_for_part(answer: Awaitable[Response], streams: Streams, part: Part) -> Response:
    try:
        response = await answer
    except Exception as error:
        _settle(streams, part, error)
        raise
    return _parted(response, streams, part)


def _parted(response: Response, streams: Streams, part: Part) -> Response:
    streams.done(part)
    response.stream = part.stream
    return response


def _settle(streams: Streams, part: Part, error: Exception) -> None:
    match error.__cause__:
        case LaneFullError():
            streams.give_back(part)
        case DeadlineError():
            streams.lose(part)
        case _:
            streams.done(part)


def run(job: Job) -> Answer:
    """Run a job: at once where that is quick, else in its turn.

    Raises:
        Exception: there is no answer; what its app is to be told.
    """
    lane = job.served.lane
    left_s = job.left_s if job.within_s is not None else None
    if left_s is not None and left_s <= 0:
        late = DeadlineError()
        raise _failed(job, late) from late
    heard = job.part is not None
    if not lane.is_quick(job.inputs, job.expected_ms if heard else None):
        return _run_later(job, left_s)
    try:
        turn = lane.run(job.inputs, job.runner if heard else None)
    except Exception as error:
        raise _failed(job, error) from error
    return _answer(job, turn)


async def _run_later(job: Job, left_s: float | None) -> Response:
    try:
        turn = await job.served.lane.queue(job.inputs, left_s, job.runner)
    except Exception as error:
        raise _failed(job, error) from error
    return _answer(job, turn)


def _answer(job: Job, turn: Turn) -> Response:
    served = job.served
    try:
        scores = served.model.few_scores(turn.outputs)
        classified = served.model.classify(turn.outputs) if scores is None else None
        response = job.write(job.id, turn.outputs)
    except Exception as error:
        raise _failed(job, error) from error
    written_at = time.perf_counter()
    if scores is not None and served.alone:
        response.after = partial(_note, job, turn, scores, written_at)
    else:
        classified = classified or served.model.classify(turn.outputs)
        response.after = partial(_count, job, turn, *classified, written_at)
    return response


def _note(job: Job, turn: Turn, scores: Array, written_at: float) -> None:
    """Note what was answered, for when there is more of it."""
    came_at = job.request.came_at
    job.served.board.noted(job.id, (written_at - came_at) * 1e6, scores, job.inputs)
    job.statistics.answered(
        job.rows, (came_at, job.read_at, turn.began_at, turn.ended_at, written_at)
    )


def _count(
    job: Job, turn: Turn, classes: tuple[int, ...], tops: list[float], written_at: float
) -> None:
    """Note what was answered, and show it to the challenger."""
    served, came_at = job.served, job.request.came_at
    board, latency_us = served.board, (written_at - came_at) * 1e6
    if job.told is None:
        outcome = board.answered(job.id, latency_us, classes, tops, job.inputs)
    else:
        found = boxes_of(job.told) if served.model.detector is not None else None
        outcome = board.answered(job.id, latency_us, classes, tops, job.inputs, found=found)
    if served.model.classes is None:
        board.values.answered(outcome, turn.outputs[0])
    if job.part is not None:
        _count_heard(job.part, served, turn, outcome)
    job.statistics.answered(
        job.rows, (came_at, job.read_at, turn.began_at, turn.ended_at, written_at)
    )
    if served.feed is not None and job.part is not None:
        served.feed.offer_part(job.part, job.inputs[0], turn.outputs, outcome)
    elif served.feed is not None:
        served.feed.offer(job.inputs, turn.outputs, outcome, job.items)
    for capture in served.captures:
        capture.answered(job.id, job.inputs, job.items, classes, tops)


def _count_heard(part: Part, served: Served, turn: Turn, outcome: Outcome) -> None:
    """Note what of a stream was heard, and each yes that began with it."""
    frame_s = served.frame_s
    if frame_s is not None:
        outcome.accepts = part.stream.accepts(outcome.classes)
        frames = len(turn.outputs[part.stream.visible[0]])
        served.board.heard(frame_s, frames, len(outcome.accepts))


def _failed(job: Job, error: Exception) -> Exception:
    """Count a request without an answer by whose fault it is; return what its app is told."""
    served = job.served
    job.statistics.failed(time.perf_counter() - job.request.came_at)
    match error:
        case HttpError():
            return error
        case LaneFullError():
            served.board.dropped()
            return HttpError(503, str(error))
        case DeadlineError():
            served.board.dropped()
            return HttpError(
                503,
                f"model {served.model.spec.model}: no answer within the timeout of "
                f"{(job.within_s or 0) * 1e6:.0f} microseconds",
            )
        case AnswerError() | TensorError() if job.part is None:
            try:
                check_finite(served.model.manifest.inputs, job.inputs)
            except TensorError as given:
                return given
    served.board.failed()
    if isinstance(error, MemoryError):
        return HttpError(
            503, f"model {served.model.spec.model}: out of memory; send less at a time"
        )
    text = " ".join(str(error).split())[:400] or type(error).__name__
    return HttpError(500, f"model {served.model.spec.model}: {text}")
