"""The routes: OpenAI's protocol, a health check and metrics."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from unix_jax import __version__
from unix_jax.errors import UniXError
from unix_jax.extras import needed
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import ProgramBudget
from unix_jax.serving.batches import BatchRunner, GeneratedImages, Piece, Report
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.metrics import CONTENT_TYPE, Metrics
from unix_jax.serving.middleware import (
    CHAT,
    HEALTH,
    IMAGES,
    METRICS,
    MODELS,
    Admission,
    Counted,
    Keyed,
    OpenRequests,
)
from unix_jax.serving.refusals import RequestError, request_error, send_refusal
from unix_jax.serving.requests import Request, RequestReader
from unix_jax.serving.responses import ReportReply, event, images_reply
from unix_jax.serving.scheduler import Job, Scheduler
from unix_jax.web.guard import HostGuard, Receive, Scope, Send
from unix_jax.web.hosts import AllowedHosts

with needed("starlette", "the API server", "unix-jax[serve]"):
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as HttpRequest
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

# Requests that are decoded at a time: an image of 50 megapixels takes 150 MB until it is reduced.
_DECODERS = 2
_CLIENT_LEFT = 499


class Application:
    """The handlers of one server.

    Args:
      pipe: the model.
      limits: limits of the server.
      name: the model's name in the protocol.
    """

    def __init__(self, pipe: UniXPipeline, limits: ServeLimits, name: str) -> None:
        self._limits, self._name, self._created = limits, name, int(time.time())
        self._reader = RequestReader(pipe.loaded, limits, name)
        self.metrics = Metrics(limits.batch_sizes)
        run = BatchRunner(
            pipe,
            limits,
            self.metrics,
            lambda: self.scheduler.closed,
            ProgramBudget(limits.programs),
        )
        self.scheduler = Scheduler(run, limits)
        self.opened = OpenRequests()
        self.metrics.watch(waiting=lambda: self.scheduler.waiting, opened=lambda: self.opened.count)
        self._decoders = asyncio.Semaphore(_DECODERS)

    def starlette(self, hosts: AllowedHosts, key: str | None) -> Starlette:
        """The ASGI application.

        Args:
          hosts: the names of the server.
          key: the API key; None requires none.
        """
        return Starlette(
            routes=[
                Route(CHAT, self._chat, methods=["POST"]),
                Route(IMAGES, self._images, methods=["POST"]),
                Route(MODELS, self._models),
                Route(MODELS + "/{name:path}", self._model),
                Route(HEALTH, self._health),
                Route(METRICS, self._metrics),
            ],
            middleware=[
                Middleware(Counted, metrics=self.metrics),
                Middleware(HostGuard, hosts=hosts, answer=send_refusal),
                Middleware(Keyed, key=key),
                Middleware(
                    Admission,
                    most=self._limits.waiting + self._limits.largest_batch,
                    opened=self.opened,
                ),
            ],
            exception_handlers={
                UniXError: _refused,
                HTTPException: _refused,
                ClientDisconnect: _left,
                Exception: _refused,
            },
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.scheduler.start()
        try:
            yield
        finally:
            await run_in_threadpool(self.scheduler.close)

    # ------------------------------------------------------------------------- small routes

    async def _models(self, http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _model(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        if name != self._name:
            raise RequestError(
                f"model: expected {self._name!r}, found {name!r:.60}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "unix-jax",
        }

    async def _health(self, http: HttpRequest) -> Response:
        alive = self.scheduler.alive and not self.scheduler.closed
        body = {
            "status": "ok" if alive else "stopping",
            "version": __version__,
            "waiting": self.scheduler.waiting,
        }
        return JSONResponse(body, 200 if alive else 503)

    async def _metrics(self, http: HttpRequest) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    # ------------------------------------------------------------------------- computing

    async def _chat(self, http: HttpRequest) -> Response:
        deadline = self._deadline()
        request = await self._read(http, self._reader.report, deadline)
        reply = ReportReply(request, self._name)
        running = self._submit(http, request, deadline)
        if not request.stream:
            async with running:
                report = await running.next()
            assert isinstance(report, Report)
            return JSONResponse(reply.complete(report))
        # Awaited before the status is sent: an error before the first text has a status of its own.
        try:
            first = await running.next()
        except BaseException:
            running.end()
            raise
        return _ReportStream(running, reply, first)

    async def _images(self, http: HttpRequest) -> Response:
        deadline = self._deadline()
        request = await self._read(http, self._reader.images, deadline)
        async with self._submit(http, request, deadline) as running:
            found = await running.next()
        assert isinstance(found, GeneratedImages)
        return JSONResponse(await run_in_threadpool(images_reply, request, found))

    def _submit(self, http: HttpRequest, request: Request, deadline: float) -> "_Running":
        inbox = _Inbox()
        return _Running(self.scheduler.submit(request, inbox.put), inbox, http.receive, deadline)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._limits.seconds

    async def _read(self, http: HttpRequest, read: Callable[[Any], Any], deadline: float) -> Any:
        """The checked body of a request."""
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(
                f"Content-Type: expected application/json, found {kind[:60]!r}", status=415
            )
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                self._check_length(int(http.headers.get("content-length") or 0))
                async for part in http.stream():
                    body += part
                    self._check_length(len(body))
                async with self._decoders:
                    return await run_in_threadpool(_parsed, bytes(body), read)
        except TimeoutError as error:
            raise RequestError("The request took too long to arrive.", status=408) from error

    def _check_length(self, length: int) -> None:
        most = self._limits.body_bytes
        if length > most:
            raise RequestError(f"Expected at most {most} bytes, found {length}.", status=413)


def _parsed(body: bytes, read: Callable[[Any], Any]) -> Any:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("Expected a body of JSON.") from None
    return read(value)


class _Inbox:
    """Carries a job's results from the scheduler's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, item: Any) -> None:
        """Called on the scheduler's thread."""
        # RuntimeError: the loop is closed, and nobody waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> Any:
        """The next item; an exception is raised."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item


class _Running:
    """A submitted job and its client: it ends with the client's connection or at the deadline."""

    def __init__(self, job: Job, inbox: _Inbox, receive: Receive, deadline: float) -> None:
        self._job, self._inbox, self._deadline = job, inbox, deadline
        self._left = asyncio.ensure_future(_until_disconnect(receive))
        self._finished = False

    async def __aenter__(self) -> "_Running":
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.end()

    def end(self) -> None:
        """Cancels the job unless it has finished."""
        self._left.cancel()
        if not self._finished:
            self._job.cancel()

    async def next(self) -> Any:
        """The next piece, or the result.

        Raises:
          ClientDisconnect: the client left.
          RequestError: the deadline has passed, or the computation failed.
        """
        item = asyncio.ensure_future(self._inbox.get())
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait(
                (item, self._left), timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if not item.done():
                item.cancel()
        if item.done() and not item.cancelled():
            self._finished = item.exception() is not None or not isinstance(item.result(), Piece)
            return item.result()
        if self._left.done():
            raise ClientDisconnect
        raise RequestError("The request took too long; it was cancelled.", status=504)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _ReportStream(StreamingResponse):
    """The events of a streamed report."""

    def __init__(self, running: _Running, reply: ReportReply, first: Piece | Report) -> None:
        self._running, self._reply = running, reply
        super().__init__(
            self._events(first),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Not `receive`: `_Running` already waits for the end of the connection.
            await self.stream_response(send)
        finally:
            self._running.end()

    async def _events(self, item: Piece | Report) -> AsyncIterator[bytes]:
        yield self._reply.first_chunk()
        try:
            while isinstance(item, Piece):
                yield self._reply.chunk(item.text)
                item = await self._running.next()
        except ClientDisconnect:
            return
        except Exception as error:
            # The status is already sent: the error is an event, as in OpenAI's API.
            yield event(request_error(error).body)
            return
        for chunk in self._reply.last_chunks(item):
            yield chunk


async def _refused(http: HttpRequest, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        texts = {404: "Not found.", 405: f"{http.method[:20]}: not supported here."}
        text = texts.get(error.status_code, error.detail)
        error = RequestError(text, status=error.status_code)
    found = request_error(error)
    return JSONResponse(found.body, found.status, found.headers)


async def _left(http: HttpRequest, error: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)
