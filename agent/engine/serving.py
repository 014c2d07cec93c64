"""The local inference API: which request goes where, and what is counted about it."""

import os
import time
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agent.engine import open_inference, tf_serving
from agent.engine.errors import HttpError, bad_request
from agent.engine.http import MAX_BODY_BYTES, Request, Response, refusal
from agent.engine.lane import LaneFullError
from agent.engine.open_inference import read_object, write_json
from agent.engine.runtimes import Array
from agent.engine.scoreboard import LabelError, UnknownRequestError
from agent.engine.served import Served
from agent.engine.tensors import TensorError
from wire import VERSION

Answer = Response | Awaitable[Response]

_HEADER_LENGTH = b"inference-header-content-length"
_ALIVE = {"live": True, "ready": True}
"""Live and ready read alike: clients disagree on which of the two they look for."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that was read and is to be run."""

    served: Served
    request: Request
    id: str
    inputs: list[Array]
    write: Callable[[str, list[Array]], Response]


class Api:
    """Answers requests for the models of one generation."""

    def __init__(self, models: dict[str, Served]) -> None:
        self._models = models
        # Ids must differ between generations: a label may come after a swap.
        self._prefix = os.urandom(5).hex()
        self._count = 0
        self._routes: dict[str, dict[str, Callable[[Request], Answer]]] = {
            "/v2": {"GET": lambda _: _json(_server_metadata())},
            "/v2/health/live": {"GET": lambda _: _json(_ALIVE)},
            "/v2/health/ready": {"GET": lambda _: _json(_ALIVE)},
            "/v2/feedback": {"POST": self._feedback},
        }
        for served in models.values():
            self._add_routes(served)

    def handle(self, request: Request) -> Answer:
        """Answer a request; errors are answers too."""
        try:
            answer = self._route(request)(request)
        except Exception as error:
            return _refuse(error)
        return answer if isinstance(answer, Response) else _guard(answer)

    def _add_routes(self, served: Served) -> None:
        model = served.model
        described = write_json(open_inference.model_metadata(model))
        name = model.spec.model
        for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{model.spec.version}"):
            self._routes[base] = {"GET": lambda _: Response(200, described)}
            self._routes[f"{base}/ready"] = {"GET": lambda _: _json({"name": name, **_ALIVE})}
            self._routes[f"{base}/infer"] = {"POST": lambda request: self._infer(served, request)}
            self._routes[f"{base}/shadow"] = {"GET": lambda _: _shadow(served)}
        for base in (f"/v1/models/{name}", f"/v1/models/{name}/versions/{model.spec.version}"):
            self._routes[base] = {"GET": lambda _: _json(tf_serving.status(model))}
            self._routes[f"{base}/metadata"] = {"GET": lambda _: _json(tf_serving.metadata(model))}
            self._routes[f"{base}:predict"] = {
                "POST": lambda request: self._predict(served, request)
            }

    def _route(self, request: Request) -> Callable[[Request], Answer]:
        methods = self._routes.get(request.target) or self._routes.get(_path(request.target))
        if methods is None:
            raise HttpError(404, self._not_found(_path(request.target)))
        handler = methods.get(request.method)
        if handler is None:
            allowed = ", ".join(methods)
            raise HttpError(
                405, f"{request.target[:200]}: expected {allowed}, got {request.method}"
            )
        return handler

    def _not_found(self, path: str) -> str:
        match path.split("/"):
            case ["", "v1" | "v2", "models", named, *_] if named.split(":")[0] in self._models:
                model = self._models[named.split(":")[0]].model
                return (
                    f"{path[:200]}: model {model.spec.model} is there in version "
                    f"{model.spec.version}, and has no such resource"
                )
            case ["", "v1" | "v2", "models", named, *_]:
                return f"model {named[:80]!r} is not served; expected one of {list(self._models)}"
        return f"{path[:200]!r}: no such resource; see GET /v2 and GET /v2/models/NAME"

    def _infer(self, served: Served, request: Request) -> Answer:
        header_length = request.headers.get(_HEADER_LENGTH)
        body = _inflated(request)
        asked = open_inference.read_inference(served.model, header_length, body)
        return self._run(
            _Job(
                served,
                request,
                asked.id or self._new_id(),
                asked.inputs,
                lambda id, outputs: open_inference.write_answer(served.model, asked, id, outputs),
            )
        )

    def _predict(self, served: Served, request: Request) -> Answer:
        asked = tf_serving.read_prediction(served.model, _inflated(request))
        id = request.headers.get(b"x-request-id", b"").decode("latin-1")
        if not id.isascii() or not (id.isprintable() and len(id) <= 200):
            raise bad_request("X-Request-Id: expected up to 200 printable ASCII characters")
        return self._run(
            _Job(
                served,
                request,
                id or self._new_id(),
                asked.inputs,
                lambda id, outputs: tf_serving.write_answer(served.model, asked, id, outputs),
            )
        )

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"

    def _run(self, job: _Job) -> Answer:
        lane = job.served.lane
        if not lane.is_quick(job.inputs):
            return _run_later(job)
        try:
            outputs = lane.model.run(job.inputs)
        except Exception as error:
            raise _failed(job.served, error) from error
        return _answer(job, outputs)

    def _feedback(self, request: Request) -> Response:
        fields = read_object(_inflated(request))
        id = fields.get("request_id", fields.get("id"))
        if not isinstance(id, str) or not id:
            raise bad_request("request_id: expected the id of an answered request")
        served = self._served_for(fields.get("model"), id)
        labels = served.read_labels(fields.get("label"))
        try:
            served.board.label(id, labels)
        except UnknownRequestError:
            raise HttpError(404, f"request {id[:80]!r} is not, or no longer, remembered") from None
        return _json({"request_id": id, "model": served.model.spec.model, "labelled": len(labels)})

    def _served_for(self, name: Any, id: str) -> Served:
        """Return the model that a label is for: the named one, or the one that knows the id."""
        if name is not None:
            if name not in self._models:
                raise HttpError(
                    404, f"model {str(name)[:80]!r}: expected one of {list(self._models)}"
                )
            return self._models[name]
        models = list(self._models.values())
        if len(models) == 1:
            return models[0]
        for served in models:
            if served.board.remembers(id):
                return served
        raise HttpError(
            404, f"request {id[:80]!r} is not, or no longer, remembered; name its model too"
        )


async def _run_later(job: _Job) -> Response:
    try:
        outputs = await job.served.lane.queue(job.inputs)
    except LaneFullError as error:
        job.served.board.dropped()
        raise HttpError(503, str(error)) from None
    except Exception as error:
        raise _failed(job.served, error) from error
    return _answer(job, outputs)


def _answer(job: _Job, outputs: list[Array]) -> Response:
    served = job.served
    try:
        classes, tops = served.model.classify(outputs)
        response = job.write(job.id, outputs)
    except Exception as error:
        raise _failed(served, error) from error
    latency_us = (time.perf_counter() - job.request.came_at) * 1e6
    outcome = served.board.answered(job.id, latency_us, classes, tops)
    if served.feed is not None:
        served.feed.offer(job.inputs, outputs, outcome)
    return response


def _failed(served: Served, error: Exception) -> Exception:
    served.board.failed()
    if isinstance(error, MemoryError):
        return HttpError(
            503, f"model {served.model.spec.model}: out of memory; send less at a time"
        )
    text = " ".join(str(error).split())[:400] or type(error).__name__
    return HttpError(500, f"model {served.model.spec.model}: {text}")


async def _guard(answer: Awaitable[Response]) -> Response:
    try:
        return await answer
    except Exception as error:
        return _refuse(error)


def _refuse(error: Exception) -> Response:
    match error:
        case HttpError():
            return refusal(error.status, error.error)
        case TensorError() | LabelError():
            return refusal(400, str(error))
        case MemoryError():
            return refusal(503, "out of memory; send less at a time")
    return refusal(500, f"a fault of the engine: {type(error).__name__}: {str(error)[:200]}")


def _shadow(served: Served) -> Response:
    comparison = served.comparison
    if comparison is None:
        raise HttpError(404, f"model {served.model.spec.model}: no challenger has shadowed it yet")
    return _json(
        {
            "model": comparison.model,
            "challenger": comparison.challenger,
            "running": not comparison.ended,
            "tally": comparison.counts.values(),
            "disagreements": comparison.disagreements(),
        }
    )


def _json(value: Any) -> Response:
    return Response(200, write_json(value))


def _server_metadata() -> dict[str, Any]:
    return {
        "name": "farflung",
        "version": VERSION,
        "extensions": ["binary_tensor_data"],
    }


def _path(target: str) -> str:
    """Return the path that a target names, as it stands in the table of routes."""
    if not target.startswith("/"):
        target = urllib.parse.urlsplit(target).path
    path = urllib.parse.unquote(target.split("?")[0].split("#")[0])
    # TensorFlow Serving does not mind the case of its paths.
    return path.lower() if path[:4].lower() == "/v1/" else path


def _inflated(request: Request) -> bytes:
    encoding = request.headers.get(b"content-encoding", b"identity").lower()
    if encoding == b"identity":
        return request.body
    if encoding not in (b"gzip", b"deflate"):
        raise bad_request(
            f"Content-Encoding: expected gzip, deflate or none, got {encoding.decode('latin-1')!r}"
        )
    # 32 + 15: a gzip or a zlib head, whichever comes.
    inflater = zlib.decompressobj(47)
    try:
        body = inflater.decompress(request.body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise bad_request(f"body: expected {encoding.decode()}: {error}") from None
    if not inflater.eof:
        raise HttpError(
            413, f"body: expected at most {MAX_BODY_BYTES} bytes inflated, or it is cut"
        )
    return body
