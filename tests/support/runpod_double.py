"""RunPod on the wire: its production API for callers, and the one its SDK's worker loop speaks.

    async with runpod() as double:
        double.base_url      # RUNPOD_ENDPOINT_BASE_URL; the endpoint is double.endpoint_id
        double.worker_env("w1")   # what makes the real SDK take its jobs here

What RunPod documents is done as documented; where the documents are silent (what a purged job's
status is, that a payload too large is 400), the comment says so.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.asgi import serving
from tests.support.runpod_jobs import MB, Endpoint, Job, Json

API_KEY = "rpa_a-key-no-text-may-show"
WORKER_KEY = "a-worker-key-no-text-may-show"
ENDPOINT_ID = "ep0test"
RATES = {"run": 1000, "runsync": 2000, "status": 2000, "stream": 2000, "cancel": 100, "purge": 2}
"""Calls in ten seconds."""
_WINDOW_S = 10
_TICK_S = 0.02
_POLICY_MS = {"executionTimeout": (5_000, 604_800_000), "ttl": (10_000, 604_800_000)}
Route_ = Callable[[Request], Awaitable[Response]]


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next calls of one operation."""

    op: str
    """`run`, `status`, `cancel`, …"""
    status: int | None = 500
    """What is answered; None: the connection is cut."""
    after: bool = False
    """The call was carried out all the same."""
    times: int = 1


@dataclass(kw_only=True)
class Runpod:
    """One endpoint and everything asked of it."""

    endpoint: Endpoint = field(default_factory=Endpoint)
    endpoint_id: str = ENDPOINT_ID
    origin: str = ""
    rates: dict[str, int] = field(default_factory=lambda: dict(RATES))
    payload_bytes: int = 10 * MB
    sync_payload_bytes: int = 20 * MB
    poll_s: float = 2
    """How long a worker's question for a job is held."""
    updates_take_s: list[float] = field(default_factory=list[float])
    """How long the next progress updates are under way, one each."""
    updates_under_way: int = 0
    stream_repeats: bool = False
    """`/stream` hands out every chunk each time, not once: the documents do not say which."""
    chunk_status: int = 200
    """What workers are answered who put something into a stream."""
    chunk_takes_s: float = 0
    """How long a chunk is under way."""
    chunks_refused: int = 0
    faults: list[Fault] = field(default_factory=list[Fault])
    calls: Counter[str] = field(default_factory=Counter[str])
    """Every call of a caller, by operation, refused ones too."""
    _times: dict[str, deque[float]] = field(default_factory=dict[str, deque[float]])
    closing: bool = False
    """Nobody is kept waiting any more."""

    @property
    def base_url(self) -> str:
        return f"{self.origin}/v2"

    @property
    def url(self) -> str:
        return f"{self.base_url}/{self.endpoint_id}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {API_KEY}"}

    def worker_env(self, name: str) -> dict[str, str]:
        """Environment that ties the SDK's worker loop to this endpoint."""
        tail = "?gpu=none"
        return {
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_POD_ID": name,
            "RUNPOD_AI_API_KEY": WORKER_KEY,
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID{tail}",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID{tail}",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID{tail}",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID{tail}",
        }

    def app(self) -> Starlette:
        at = "/v2/{endpoint}"
        caller: list[tuple[str, str, str, Route_]] = [
            ("run", "POST", "/run", self._run),
            ("runsync", "POST", "/runsync", self._run),
            ("status", "GET", "/status/{job}", self._of_job),
            ("status", "POST", "/status/{job}", self._of_job),
            ("stream", "GET", "/stream/{job}", self._stream),
            ("cancel", "POST", "/cancel/{job}", self._cancel),
            ("retry", "POST", "/retry/{job}", self._retry),
            ("purge", "POST", "/purge-queue", self._purge),
            ("health", "GET", "/health", self._health),
        ]
        worker: list[tuple[str, str, Route_]] = [
            ("GET", "/job-take/{worker}", self._take),
            ("GET", "/job-take-batch/{worker}", self._take),
            ("GET", "/job-stop/{worker}", self._stop),
            ("POST", "/job-done/{worker}/{job}", self._done),
            ("POST", "/job-stream/{worker}/{job}", self._chunk),
            ("GET", "/ping/{worker}", self._ping),
        ]
        routes = [
            Route(at + path, self._called(op, route), methods=[method])
            for op, method, path, route in caller
        ]
        routes += [Route(at + p, self._worked(route), methods=[m]) for m, p, route in worker]
        return Starlette(routes=routes)

    def _called(self, op: str, route: Route_) -> Route_:
        async def answer(request: Request) -> Response:
            self.calls[op] += 1
            given = request.headers.get("authorization", "")
            if given not in (f"Bearer {API_KEY}", API_KEY):
                return _error(401, "unauthorized")
            if request.path_params["endpoint"] != self.endpoint_id:
                return _error(404, "endpoint not found")
            if not self._within_rate(op):
                return _error(429, "too many requests")
            fault = next((f for f in self.faults if f.op == op and f.times > 0), None)
            if fault is None:
                return await route(request)
            fault.times -= 1
            if fault.after:
                await route(request)
            if fault.status is None:
                return _Cut()
            return _error(fault.status, "a fault that the test asked for")

        return answer

    def _worked(self, route: Route_) -> Route_:
        async def answer(request: Request) -> Response:
            if request.headers.get("authorization") != WORKER_KEY:
                return _error(401, "unauthorized")
            return await route(request)

        return answer

    def _within_rate(self, op: str) -> bool:
        times, now = self._times.setdefault(op, deque()), time.monotonic()
        while times and now - times[0] > _WINDOW_S:
            times.popleft()
        times.append(now)
        return op not in self.rates or len(times) <= self.rates[op]

    async def _run(self, request: Request) -> Response:
        sync = request.url.path.endswith("/runsync")
        body = await request.body()
        # the documents name no status for it
        if len(body) > (self.sync_payload_bytes if sync else self.payload_bytes):
            return _error(400, "request body too large")
        try:
            asked = json.loads(body)
        except ValueError:
            return _error(400, "invalid JSON")
        if not isinstance(asked, dict) or not isinstance(cast("Json", asked).get("input"), dict):
            return _error(400, "input is required")
        wrong = _wrong_policy(cast("Json", asked))
        if wrong:
            return _error(400, wrong)
        job = self.endpoint.accept(cast("Json", asked), sync=sync)
        if sync:
            wait_s = float(request.query_params.get("wait", 90_000)) / 1000
            await self._until(lambda: job.over, wait_s)
            return JSONResponse(job.told())
        return JSONResponse({"id": job.id, "status": job.status})

    async def _of_job(self, request: Request) -> Response:
        job = self._job(request)
        return JSONResponse(job.told()) if job else _error(404, "job not found")

    async def _stream(self, request: Request) -> Response:
        job = self._job(request)
        if job is None:
            return _error(404, "job not found")
        first = 0 if self.stream_repeats else job.chunks_given
        job.chunks_given = len(job.chunks)
        return JSONResponse({"status": job.status, "stream": job.chunks[first:]})

    async def _cancel(self, request: Request) -> Response:
        job = self._job(request)
        if job is None:
            return _error(404, "job not found")
        self.endpoint.cancel(job)
        return JSONResponse({"id": job.id, "status": job.status})

    async def _retry(self, request: Request) -> Response:
        job = self._job(request)
        if job is None:
            return _error(404, "job not found")
        if job.status not in ("FAILED", "TIMED_OUT"):
            return _error(400, f"a job that is {job.status} can't be retried")
        self.endpoint.retry(job)
        return JSONResponse({"id": job.id, "status": job.status})

    async def _purge(self, _request: Request) -> Response:
        # that a purged job is answered 404 is not documented
        return JSONResponse({"removed": self.endpoint.purge(), "status": "completed"})

    async def _health(self, _request: Request) -> Response:
        self.endpoint.sweep()
        return JSONResponse(self.endpoint.health())

    async def _take(self, request: Request) -> Response:
        worker = request.path_params["worker"]
        several = request.query_params.get("batch_size")
        taken: list[Job] = []

        def take() -> bool:
            while len(taken) < int(several or 1):
                job = self.endpoint.take(worker)
                if job is None:
                    break
                taken.append(job)
            return bool(taken)

        await self._until(take, self.poll_s, request)
        if not taken:
            return Response(status_code=204)
        given = [{"id": job.id, "input": job.input, "webhook": job.webhook} for job in taken]
        return JSONResponse(given if several else given[0])

    async def _stop(self, request: Request) -> Response:
        worker, ids = request.path_params["worker"], list[str]()

        def stops() -> bool:
            ids.extend(self.endpoint.stops(worker))
            return bool(ids)

        await self._until(stops, self.poll_s, request)
        return JSONResponse({"jobsToStop": ids}) if ids else Response(status_code=204)

    async def _done(self, request: Request) -> Response:
        body = await request.body()
        worker, job = request.path_params["worker"], request.path_params["job"]
        # a form by its content type, JSON by what it is
        said = json.loads(body)
        if said.get("status") == "IN_PROGRESS":
            self.updates_under_way += 1
            await asyncio.sleep(self.updates_take_s.pop(0) if self.updates_take_s else 0)
            self.updates_under_way -= 1
        status = self.endpoint.done(worker, job, said, len(body))
        return Response(status_code=status)

    async def _chunk(self, request: Request) -> Response:
        job, body = self._job(request), await request.body()
        # that a handler which is no generator may put something there is not documented
        if self.chunk_status != 200 or len(body) > MB:
            self.chunks_refused += 1
            return Response(status_code=400 if len(body) > MB else self.chunk_status)
        await asyncio.sleep(self.chunk_takes_s)
        if job is not None:
            job.chunks.append(json.loads(body))
            job.late_chunks += job.over
        return Response(status_code=200)

    async def _ping(self, request: Request) -> Response:
        self.endpoint.seen(request.path_params["worker"])
        if request.query_params.get("status") == "unhealthy":
            self.endpoint.unhealthy.append(dict(request.query_params))
        return Response(status_code=200)

    def _job(self, request: Request) -> Job | None:
        return self.endpoint.find(request.path_params["job"])

    async def _until(
        self, there: Callable[[], bool], within_s: float, request: Request | None = None
    ) -> None:
        until = time.monotonic() + within_s
        while not self.closing and not (request and await request.is_disconnected()):
            if there() or time.monotonic() >= until:
                return
            await asyncio.sleep(_TICK_S)


class _Cut(Response):
    """Promises a body and breaks off."""

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _wrong_policy(asked: Json) -> str | None:
    policy: Any = asked.get("policy") or {}
    for name, (least, most) in _POLICY_MS.items():
        value = policy.get(name)
        if value is not None and not least <= value <= most:
            return f"policy.{name} must be within {least} and {most}"
    return None


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


@asynccontextmanager
async def runpod(*, port: int = 0, **settings: Any) -> AsyncGenerator[Runpod]:
    """An endpoint that is served, in the test's own loop."""
    double = Runpod(endpoint=Endpoint(**settings))
    passing = asyncio.create_task(double.endpoint.passing())
    try:
        async with serving(double.app(), port=port) as url:
            double.origin = url
            try:
                yield double
            finally:
                double.closing = True
    finally:
        passing.cancel()
        await double.endpoint.close()
