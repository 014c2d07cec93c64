"""The local inference API: which request goes where, and what is counted about it."""

import os
import re
import time
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from agent.engine import open_inference, tf_serving
from agent.engine.errors import BusyError, HttpError, bad_request
from agent.engine.hearing import Ear
from agent.engine.http import MAX_BODY_BYTES, Request, Response, refusal
from agent.engine.open_inference import read_object, write_json
from agent.engine.running import Answer, Job, read_then_run, run, run_part
from agent.engine.runtimes import Array
from agent.engine.scoreboard import LabelError, UnknownRequestError
from agent.engine.served import Served
from agent.engine.shared_memory import Regions
from agent.engine.statistics import Statistics
from agent.engine.streams import Streams
from agent.engine.tasks import Item, Read, Told
from agent.engine.tensors import TensorError, check_finite
from wire import VERSION

_CODING = b"accept-encoding"
_HEADER_LENGTH = b"inference-header-content-length"
_ALIVE = {"live": True, "ready": True}
"""Live and ready read alike: clients disagree on which of the two they look for."""

_STABLE = "stable"
"""The label of the version that serves."""

_REGION = re.compile(r"/v2/systemsharedmemory/region/(.+)/(status|register|unregister)")
_UNOFFERED = {
    re.compile(r"/v2/cudasharedmemory/region/.+/register"): (
        "CUDA shared memory is not offered: register a region of system shared memory"
    ),
    re.compile(r"/v2/repository/models/.+/(?:un)?load"): (
        "loading and unloading is not offered here: the fleet decides what a device serves"
    ),
}
_LEAST_COMPRESSED_BYTES = 1024


class Api:
    """Answers requests for the models of one generation."""

    def __init__(self, models: dict[str, Served], regions: Regions) -> None:
        self._models = models
        self._statistics = {name: Statistics() for name in models}
        self._regions = regions
        # Ids must differ between generations: a label may come after a swap.
        self._prefix = os.urandom(5).hex()
        self._count = 0
        self._routes: dict[str, dict[str, Callable[[Request], Answer]]] = {
            "/v2": {"GET": lambda _: _json(_server_metadata())},
            "/v2/health/live": {"GET": lambda _: _json(_ALIVE)},
            "/v2/health/ready": {"GET": lambda _: _json(_ALIVE)},
            "/v2/feedback": {"POST": self._feedback},
            "/v2/repository/index": {"POST": self._index, "GET": self._index},
            "/v2/models/stats": {"GET": lambda _: self._stats(*models.values())},
            "/v2/systemsharedmemory/status": {"GET": lambda _: _json(self._regions.status())},
            "/v2/systemsharedmemory/unregister": {"POST": self._unregister_all},
            # Clients begin by clearing away what an earlier run may have left: here it is nothing.
            "/v2/cudasharedmemory/status": {"GET": lambda _: _json([])},
            "/v2/cudasharedmemory/unregister": {"POST": lambda _: Response(200, b"")},
        }
        for served in models.values():
            self._add_routes(served)
            if served.ear is not None and served.streams is not None:
                self._add_stream_routes(served, served.ear, served.streams)

    def handle(self, request: Request) -> Answer:
        """Answer a request; errors are answers too."""
        try:
            methods = self._routes.get(request.target)
            handler = methods.get(request.method) if methods is not None else None
            answer = (handler or self._route(request))(request)
        except Exception as error:
            answer = _refuse(error)
        if isinstance(answer, Response):
            return _compressed(request, answer) if _CODING in request.headers else answer
        return _guard(request, answer)

    def _add_routes(self, served: Served) -> None:
        model = served.model
        described = write_json(open_inference.model_metadata(model))
        name = model.spec.model
        for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{model.spec.version}"):
            self._routes[base] = {"GET": lambda _: Response(200, described)}
            self._routes[f"{base}/ready"] = {"GET": lambda _: _json({"name": name, **_ALIVE})}
            self._routes[f"{base}/stats"] = {"GET": lambda _: self._stats(served)}
            self._routes[f"{base}/infer"] = {"POST": partial(self._infer, served)}
            self._routes[f"{base}/shadow"] = {"GET": lambda _: _shadow(served)}
        for place in ("", f"/versions/{model.spec.version}", f"/labels/{_STABLE}"):
            base = f"/v1/models/{name}{place}"
            self._routes[base] = {"GET": lambda _: _json(tf_serving.status(model))}
            self._routes[f"{base}/metadata"] = {"GET": lambda _: _json(tf_serving.metadata(model))}
            self._routes[f"{base}:predict"] = {
                "POST": lambda request: self._predict(served, request)
            }

    def _add_stream_routes(self, served: Served, ear: Ear, streams: Streams) -> None:
        """Put those of a model that listens in place of the ordinary ones."""
        metadata = open_inference.model_metadata(served.model)
        described = write_json({**metadata, "inputs": ear.inputs, "outputs": ear.outputs})
        name, version = served.model.spec.model, served.model.spec.version
        for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
            self._routes[base] = {"GET": lambda _: Response(200, described)}
            self._routes[f"{base}/infer"] = {
                "POST": lambda request: self._hear(served, ear, streams, request)
            }
        for place in ("", f"/versions/{version}", f"/labels/{_STABLE}"):
            self._routes[f"/v1/models/{name}{place}:predict"] = {"POST": _cannot_predict}

    def _route(self, request: Request) -> Callable[[Request], Answer]:
        methods = self._routes.get(request.target)
        if methods is None:
            path = _path(request.target)
            methods = self._routes.get(path) or self._unlisted(path)
        handler = methods.get(request.method)
        if handler is None:
            allowed = ", ".join(methods)
            raise HttpError(
                405, f"{request.target[:200]}: expected {allowed}, got {request.method}"
            )
        return handler

    def _unlisted(self, path: str) -> dict[str, Callable[[Request], Answer]]:
        """Return the methods of a path that is not in the table, since it holds a name.

        Raises:
            HttpError: there is no such resource, or it is known and not offered.
        """
        if found := _REGION.fullmatch(path):
            name, verb = found.groups()
            match verb:
                case "status":
                    return {"GET": lambda _: _json(self._regions.status(name))}
                case "register":
                    return {"POST": lambda request: self._register(name, request)}
            return {"POST": lambda _: self._unregister(name)}
        for pattern, why in _UNOFFERED.items():
            if pattern.fullmatch(path):
                raise HttpError(501, why)
        raise HttpError(404, self._not_found(path))

    def _not_found(self, path: str) -> str:
        match path.split("/"):
            case ["", "v1" | "v2", "models", named, *_] if named.split(":")[0] in self._models:
                model = self._models[named.split(":")[0]].model
                return (
                    f"{path[:200]}: model {model.spec.model} is there in version "
                    f"{model.spec.version}, labelled {_STABLE}, and has no such resource"
                )
            case ["", "v1" | "v2", "models", named, *_]:
                return f"model {named[:80]!r} is not served; expected one of {list(self._models)}"
        return f"{path[:200]!r}: no such resource; see GET /v2 and GET /v2/models/NAME"

    def _infer(self, served: Served, request: Request) -> Answer:
        header_length = request.headers.get(_HEADER_LENGTH)
        body = _inflated(request)
        model = served.model
        desk = model.desk
        if (
            desk is not None
            and header_length is None
            and desk.takes(request.headers.get(b"content-type", b""))
        ):
            return self._infer_from(served, request, bytes(body))
        asked = open_inference.read_inference(model, self._regions, header_length, body)
        if asked.items:
            return self._run_items(
                served,
                request,
                asked.id or self._new_id(),
                asked.items,
                write=lambda id, told: open_inference.write_answer(model, asked, id, told.tensors),
                within_s=asked.within_s,
            )
        return run(
            Job(
                served,
                self._statistics[served.model.spec.model],
                request,
                asked.id or self._new_id(),
                asked.inputs,
                lambda id, outputs: open_inference.write_answer(served.model, asked, id, outputs),
                time.perf_counter(),
                asked.within_s,
            )
        )

    def _predict(self, served: Served, request: Request) -> Answer:
        model = served.model
        asked = tf_serving.read_prediction(model, _inflated(request))
        id = _given_id(request)
        if asked.items:
            return self._run_items(
                served,
                request,
                id or self._new_id(),
                asked.items,
                write=lambda id, told: tf_serving.write_told(model, asked, id, told),
            )
        return run(
            Job(
                served,
                self._statistics[served.model.spec.model],
                request,
                id or self._new_id(),
                asked.inputs,
                lambda id, outputs: tf_serving.write_answer(served.model, asked, id, outputs),
                time.perf_counter(),
            )
        )

    def _infer_from(self, served: Served, request: Request, item: bytes) -> Answer:
        """Answer a body that is one picture or text, in the plainest form."""
        spec = served.model.spec
        head = {"model_name": spec.model, "model_version": str(spec.version)}
        return self._run_items(
            served,
            request,
            _given_id(request) or self._new_id(),
            (item,),
            write=lambda id, told: _json({**head, "id": id, **told.rows[0]}),
        )

    def _run_items(
        self,
        served: Served,
        request: Request,
        id: str,
        items: tuple[Item, ...],
        *,
        write: Callable[[str, Told], Response],
        within_s: float | None = None,
    ) -> Answer:
        """Have the model's desk read, run the model, and have the desk tell of the answer."""
        desk = served.model.desk
        assert desk is not None

        def job(read: Read) -> Job:
            if served.model.finite_only:
                check_finite(served.model.manifest.inputs, read.inputs)

            def tell(id: str, outputs: list[Array]) -> Response:
                made.told = told = desk.teller.tell(outputs, read.frames)
                return write(id, told)

            made = Job(
                served,
                self._statistics[served.model.spec.model],
                request,
                id,
                read.inputs,
                tell,
                time.perf_counter(),
                within_s,
                items,
            )
            return made

        if desk.reader.is_quick(items):
            return run(job(desk.reader.read(items)))
        return read_then_run(served, desk, items, job)

    def _hear(self, served: Served, ear: Ear, streams: Streams, request: Request) -> Answer:
        """Answer a request of a stream."""
        asked = ear.read(self._regions, request.headers.get(_HEADER_LENGTH), _inflated(request))
        try:
            part = streams.take(asked.sequence)
        except BusyError as error:
            served.board.dropped()
            raise HttpError(503, str(error)) from None

        def write(id: str, outputs: list[Array]) -> Response:
            told = ear.tell(outputs)
            return ear.write(asked, id, told, restarted=part.stream.tell_restarted())

        job = Job(
            served,
            self._statistics[served.model.spec.model],
            request,
            asked.id or self._new_id(),
            [asked.sound],
            write,
            time.perf_counter(),
            asked.within_s,
            part=part,
        )
        return run_part(job, streams, part)

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"

    def _index(self, request: Request) -> Response:
        fields = read_object(_inflated(request)) if request.body else {}
        if not isinstance(fields.get("ready", False), bool):
            raise bad_request("ready: expected true or false")
        # What is here serves: there is nothing that a wish for the ready ones would leave out.
        return _json([open_inference.index_entry(one.model) for one in self._models.values()])

    def _stats(self, *served: Served) -> Response:
        specs = [one.model.spec for one in served]
        entries = [self._statistics[spec.model].as_json(spec.model, spec.version) for spec in specs]
        return _json({"model_stats": entries})

    async def _register(self, name: str, request: Request) -> Response:
        # A web page must not reach into the memory that apps share.
        if b"origin" in request.headers:
            raise HttpError(403, "shared memory is not for web pages (the request has an Origin)")
        await self._regions.register(name, read_object(_inflated(request)))
        return Response(200, b"")

    async def _unregister(self, name: str) -> Response:
        await self._regions.unregister(name)
        return Response(200, b"")

    async def _unregister_all(self, _: Request) -> Response:
        await self._regions.unregister_all()
        return Response(200, b"")

    def _feedback(self, request: Request) -> Response:
        fields = read_object(_inflated(request))
        id = fields.get("request_id", fields.get("id"))
        if not isinstance(id, str) or not id:
            raise bad_request("request_id: expected the id of an answered request")
        served = self._served_for(fields.get("model"), id)
        name = served.model.spec.model
        if served.model.classes is None and "value" in fields:
            count = served.board.values.compare(id, fields["value"])
            return _json({"request_id": id, "model": name, "compared": count})
        try:
            if "boxes" in fields:
                told = served.board.label_boxes(id, served.read_boxes(fields["boxes"]))
                return _json({"request_id": id, "model": name, **asdict(told)})
            labels = served.read_labels(fields.get("label"))
            served.board.label(id, labels, served.frame_s)
            for capture in served.captures:
                capture.labelled(id, labels)
        except UnknownRequestError:
            raise HttpError(404, f"request {id[:80]!r} is not, or no longer, remembered") from None
        return _json({"request_id": id, "model": name, "labelled": len(labels)})

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


async def _guard(request: Request, answer: Awaitable[Response]) -> Response:
    try:
        response = await answer
    except Exception as error:
        response = _refuse(error)
    return _compressed(request, response)


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


def _cannot_predict(_: Request) -> Response:
    raise HttpError(
        501, "the model listens: expected POST /v2/models/NAME/infer, with a sequence_id"
    )


def _json(value: Any) -> Response:
    return Response(200, write_json(value))


def _server_metadata() -> dict[str, Any]:
    return {
        "name": "farflung",
        "version": VERSION,
        "extensions": open_inference.EXTENSIONS,
    }


def _path(target: str) -> str:
    """Return the path that a target names, as it stands in the table of routes."""
    if not target.startswith("/"):
        target = urllib.parse.urlsplit(target).path
    path = urllib.parse.unquote(target.split("?")[0].split("#")[0])
    # TensorFlow Serving does not mind the case of its paths.
    return path.lower() if path[:4].lower() == "/v1/" else path


def _compressed(request: Request, response: Response) -> Response:
    """Compress an answer for who accepts a single coding and nothing else.

    Those ask for it. Most clients only list what they could read; between two processes of one
    device, compression costs them more than it saves.
    """
    coding = request.headers.get(_CODING)
    if coding not in (b"gzip", b"deflate") or len(response.body) < _LEAST_COMPRESSED_BYTES:
        return response
    packer = zlib.compressobj(1, wbits=31 if coding == b"gzip" else 15)
    response.body = packer.compress(response.body) + packer.flush()
    response.headers += b"Content-Encoding: %s\r\n" % coding
    return response


def _given_id(request: Request) -> str:
    """Return the request's id as a header names it, "" without one."""
    id = request.headers.get(b"x-request-id", b"").decode("latin-1")
    if not id.isascii() or not (id.isprintable() and len(id) <= 200):
        raise bad_request("X-Request-Id: expected up to 200 printable ASCII characters")
    return id


def _inflated(request: Request) -> bytes | memoryview:
    encoding = request.headers.get(b"content-encoding")
    if encoding is None or (encoding := encoding.lower()) == b"identity":
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
