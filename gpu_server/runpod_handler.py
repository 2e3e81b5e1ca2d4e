"""`python -m gpu_server.runpod_handler`: a worker of RunPod serverless beside ComfyUI.

The only module that imports RunPod's SDK, which takes two seconds and brings a hundred packages.
"""

import asyncio
import importlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from types import FrameType
from typing import NoReturn, Protocol, cast

from pydantic import JsonValue, ValidationError

from gpu_server import logs
from gpu_server.serverless.fitness import check
from gpu_server.serverless.previews import Chunk, Post
from gpu_server.serverless.progress import Tell, Update
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.serverless.worker import Job, Worker

_UPDATES_S = 5
"""How long a result waits for the progress updates before it."""


class _Sdk(Protocol):
    """As much of `runpod.serverless` as is used here; it has no types."""

    def start(self, config: dict[str, object]) -> None: ...

    def progress_update(self, job: Job, progress: dict[str, JsonValue]) -> None: ...

    def register_fitness_check(self, check: Callable[[], Awaitable[None]]) -> object: ...


class _Streams(Protocol):
    """`runpod.serverless.modules.rp_http`, by which the SDK sends what a generator yields."""

    def stream_result(
        self, session: object, job_data: dict[str, JsonValue], job: Job
    ) -> Awaitable[None]: ...


class _Sessions(Protocol):
    """`runpod.http_client`."""

    def AsyncClientSession(  # noqa: N802 - the SDK's name
        self, *, trace_configs: list["_Trace"]
    ) -> AbstractAsyncContextManager[object]: ...


class _Trace(Protocol):
    """`aiohttp.TraceConfig`."""

    on_request_end: list[Callable[[object, object, "_Answered"], Awaitable[None]]]


class _Answered(Protocol):
    """What is known of a request that was answered."""

    @property
    def response(self) -> "_Status": ...


class _Status(Protocol):
    @property
    def status(self) -> int: ...


def main() -> None:
    """Serve jobs until the SDK says to stop, or carry out the one of `--test_input`."""
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        # The input stays out: it may be a secret.
        wrong = error.errors(include_url=False, include_input=False)
        sys.exit("\n".join(f"{'.'.join(map(str, e['loc'])).upper()} {e['msg']}" for e in wrong))
    # At its own default, DEBUG, the SDK prints every result, signed links included.
    if not {"RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"} & os.environ.keys():
        os.environ["RUNPOD_LOG_LEVEL"] = "INFO"
    sdk = cast("_Sdk", importlib.import_module("runpod").serverless)
    # after the import, which sets up logging its own way
    logs.configure(settings.log_level, settings.log_format)
    # Else a job of `--test_input` or `--rp_serve_api` would go on in ComfyUI; the loop that takes
    # jobs sets a handler of its own.
    signal.signal(signal.SIGTERM, _stop)
    worker = Worker(settings, teller=_teller(sdk), settled=_settled, poster=_poster)

    async def comfyui_and_models() -> None:
        await check(settings)

    def concurrency(_now: int) -> int:
        return settings.max_concurrent_tasks

    sdk.register_fitness_check(comfyui_and_models)
    sdk.start({"handler": worker.handle, "concurrency_modifier": concurrency})


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _teller(sdk: _Sdk) -> Callable[[Job], Tell]:
    # Without it the SDK posts to no address at all, three times, and logs each.
    heard = "RUNPOD_WEBHOOK_POST_OUTPUT" in os.environ

    def teller(job: Job) -> Tell:
        def tell(update: Update) -> None:
            if heard:
                sdk.progress_update(job, update)

        return tell

    return teller


def _poster(job: Job) -> Post | None:
    # elsewhere the SDK has no address for it, either
    if "RUNPOD_WEBHOOK_POST_STREAM" not in os.environ:
        return None

    async def post(chunk: Chunk) -> bool:
        return await _streamed(job, chunk)

    return post


async def _streamed(job: Job, chunk: Chunk) -> bool:
    """Put a chunk into a job's stream, as the SDK does for a handler that is a generator.

    Whether it arrived: the SDK tries three times and then only logs what it was answered. It is no
    documented part of the SDK; one without it raises.
    """
    modules = "runpod.serverless.modules.rp_http", "runpod.http_client", "aiohttp"
    streams, sessions, aiohttp = map(importlib.import_module, modules)
    answers: list[int] = []

    async def note(_session: object, _context: object, answered: _Answered) -> None:
        answers.append(answered.response.status)

    trace = cast("_Trace", aiohttp.TraceConfig())
    trace.on_request_end.append(note)
    # of its own: the SDK writes the job's id into its headers
    session = cast("_Sessions", sessions).AsyncClientSession(trace_configs=[trace])
    async with session as opened:
        await cast("_Streams", streams).stream_result(opened, {"output": chunk}, job)
    return bool(answers) and answers[-1] < HTTPStatus.BAD_REQUEST


async def _settled() -> None:
    """Wait for the threads in which the SDK sends updates: it keeps no hold of them itself."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _UPDATES_S
    for thread in threading.enumerate():
        if thread.name.endswith("(_thread_target)"):
            await asyncio.to_thread(thread.join, max(0.0, until - loop.time()))


if __name__ == "__main__":
    main()
