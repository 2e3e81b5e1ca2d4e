"""The GPU service as a backend, against a double that misbehaves on the wire."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from gateway.backends import gpu_service, sidecar
from gateway.backends.base import (
    BackendError,
    BackendFull,
    BackendUnreachable,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
)
from gateway.backends.sidecar import Sidecar
from gateway.job import Produced
from gpu_server.protocol import Event, Failure, InputFile, RunRequest, RunStatus
from gpu_server.workflow import Workflow, make_workflow
from tests.support.asgi import serving
from tests.support.gpu_double import (
    BREAK,
    CHECKPOINT,
    FILE,
    RUN,
    TOKEN,
    WORKFLOW,
    WORKFLOWS,
    Changes,
    Double,
    ended,
    new_http,
    order,
    problem,
    progress,
)
from tests.support.stack import free_port


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with new_http() as client:
        yield client


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
async def backend(double: Double, http: httpx.AsyncClient) -> AsyncIterator[Sidecar]:
    async with serving(double.app()) as url:
        yield Sidecar("gpu-0", url, TOKEN, http, WORKFLOWS)


async def followed(backend: Sidecar) -> list[Progressed | Produced]:
    return [event async for event in backend.follow(RUN, RUN)]


async def test_start_sends_the_whole_order_and_again_adopts(
    backend: Sidecar, double: Double
) -> None:
    assert await backend.start(order()) == RUN
    assert await backend.start(order()) == RUN
    first = double.puts[0]
    assert first == double.puts[1]
    assert first.workflow is not None
    assert (first.workflow.name, first.workflow.digest) == (WORKFLOW.name, WORKFLOW.digest)
    assert first.graph is None
    assert first.params == {"prompt": "a lighthouse", "seed": 7, "loras": None}
    assert [slot.name for slot in first.outputs] == ["images/0"]
    assert first.timeout_s == 60
    # older services know fewer fields: what is not used is not sent
    assert "inputs" not in first.model_fields_set


async def test_the_files_a_run_reads_are_sent_with_its_start(
    backend: Sidecar, double: Double
) -> None:
    mug = InputFile(url="http://127.0.0.1:8000/x", media_type="image/png", sha256="a" * 64)
    hat = InputFile(url="https://example.com/y", media_type="image/jpeg")
    await backend.start(replace(order(), inputs={"image_url": (mug,), "faces": (mug, hat)}))
    assert double.puts[0].inputs == {"image_url": [mug], "faces": [mug, hat]}


async def test_a_service_with_another_workflow_is_sent_ours_once(
    backend: Sidecar, double: Double
) -> None:
    def answer(wanted: RunRequest) -> Response:
        if wanted.graph is None or wanted.manifest is None:
            return problem(409, "workflow_mismatch")
        found = make_workflow("sent", wanted.graph, wanted.manifest, digest="c" * 64)
        assert found.manifest == WORKFLOW.manifest
        return JSONResponse(RunStatus(run_id=RUN, state="queued").model_dump(mode="json"), 201)

    double.put_answer = answer
    assert await backend.start(order()) == RUN
    assert [put.graph is not None for put in double.puts] == [False, True]


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS.keys())
async def test_every_workflow_survives_being_sent_along(
    backend: Sidecar, double: Double, workflow: Workflow
) -> None:
    double.put_answer = lambda _: problem(409, "workflow_mismatch")
    with pytest.raises(BackendUnreachable):
        await backend.start(order(workflow))
    sent = double.puts[1]
    assert len(double.puts) == 2
    again = make_workflow("sent", sent.graph, sent.manifest, digest=workflow.digest)
    assert again.graph == workflow.graph
    assert again.manifest == workflow.manifest


async def test_a_job_of_a_workflow_that_changed_since_fails_with_what_to_do(
    backend: Sidecar, double: Double
) -> None:
    double.put_answer = lambda _: problem(409, "workflow_mismatch")
    old = Workflow(
        name=WORKFLOW.name, digest="d" * 64, graph=WORKFLOW.graph, manifest=WORKFLOW.manifest
    )
    with pytest.raises(RunFailed) as caught:
        await backend.start(order(old))
    assert caught.value.failure.code == "workflow_changed"
    assert not caught.value.executed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (problem(429, "at_capacity"), BackendFull),
        (problem(503, "comfyui_unavailable"), BackendFull),
        (problem(503, "something_else"), BackendUnreachable),
        (problem(500, "internal_error"), BackendUnreachable),
        (Response("<h1>Bad gateway</h1>", 502), BackendUnreachable),
        (Response("<h1>Not found</h1>", 404), BackendUnreachable),
        (Response("{}", 200), BackendUnreachable),
        (problem(422, "invalid_request"), RunFailed),
        (problem(413, "too_large"), RunFailed),
    ],
)
async def test_what_an_answer_to_start_means(
    backend: Sidecar, double: Double, answer: Response, expected: type[BackendError]
) -> None:
    double.put_answer = lambda _: answer
    with pytest.raises(expected) as caught:
        await backend.start(order())
    assert type(caught.value) is expected
    assert TOKEN not in str(caught.value)


async def test_a_refused_request_is_our_fault_and_cost_nothing(
    backend: Sidecar, double: Double
) -> None:
    double.put_answer = lambda _: problem(422, "invalid_request", "params: too deep")
    with pytest.raises(RunFailed) as caught:
        await backend.start(order())
    failure = Failure(kind="fatal", code="invalid_request", message="params: too deep")
    assert (caught.value.failure, caught.value.executed) == (failure, False)


async def test_nobody_there_is_unreachable_in_every_call(http: httpx.AsyncClient) -> None:
    backend = Sidecar("gpu-0", f"http://127.0.0.1:{free_port()}", TOKEN, http, WORKFLOWS)
    with pytest.raises(BackendUnreachable):
        await backend.start(order())
    with pytest.raises(BackendUnreachable):
        await followed(backend)
    with pytest.raises(BackendUnreachable):
        await backend.cancel(RUN, None)
    with pytest.raises(BackendUnreachable):
        await backend.forget(RUN, RUN)


async def test_a_wrong_token_says_which_setting_and_not_its_value(
    backend: Sidecar, double: Double
) -> None:
    double.token = "another"
    double.scripts = [[ended("completed")]]
    for call in (backend.start(order()), followed(backend), backend.cancel(RUN, None)):
        with pytest.raises(BackendUnreachable, match="GPU_SERVICE_TOKEN") as caught:
            await call
        assert TOKEN not in str(caught.value)
    await backend.look()
    assert backend.capacity == 0
    assert "GPU_SERVICE_TOKEN" in (backend.trouble or "")


async def test_follow_tells_progress_and_ends_with_what_was_produced(
    backend: Sidecar, double: Double
) -> None:
    output = Event(type="output", output=FILE)
    double.scripts = [[progress(0), progress(0.25), progress(0.5), output, ended("completed")]]
    *steps, last = await followed(backend)
    assert steps == [Progressed(fraction=f) for f in (0, 0.25, 0.5)]
    assert last == Produced(
        outputs=(FILE,), params={"seed": 7}, engine="simulator", duration_seconds=1.5
    )
    assert double.streams == 1


async def test_a_run_that_is_over_already_ends_at_once(backend: Sidecar, double: Double) -> None:
    double.scripts = [[ended("completed")]]
    assert [type(event) for event in await followed(backend)] == [Produced]


async def test_a_dropped_stream_is_opened_again_and_progress_never_goes_back(
    backend: Sidecar, double: Double
) -> None:
    double.scripts = [
        [progress(0), progress(0.5), BREAK],
        [progress(0.25), progress(0.75)],
        [progress(0.75), progress(0.8), BREAK],
        [progress(0.8), ended("completed")],
    ]
    *steps, last = await followed(backend)
    fractions = [step.fraction for step in steps if isinstance(step, Progressed)]
    assert fractions == [0, 0.5, 0.75, 0.8]
    assert isinstance(last, Produced)
    assert double.streams == 4


async def test_streams_that_keep_breaking_without_news_are_unreachable(
    backend: Sidecar, double: Double
) -> None:
    double.scripts = [[progress(0.5), BREAK]]
    with pytest.raises(BackendUnreachable):
        await followed(backend)
    assert double.streams == 4


async def test_silence_longer_than_the_heartbeat_is_a_dead_connection(
    backend: Sidecar, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_service, "_EVENTS", httpx.Timeout(0.3, connect=5))
    double.silent = True
    double.scripts = [[progress(0.5)], [progress(0.5), ended("completed")]]
    # the runner's patience must see it: a frozen service accepts connections for ever
    with pytest.raises(BackendUnreachable):
        await followed(backend)
    assert [type(event) for event in await followed(backend)] == [Progressed, Produced]
    assert double.streams == 2


async def test_events_of_a_later_version_are_passed_over(backend: Sidecar, double: Double) -> None:
    async def lines() -> AsyncIterator[bytes]:
        yield b'event: thumbnail\ndata: {"image":\ndata: "x"}\n\n'
        yield b"retry: 5\r\nid: 9\r\n\r\n"
        last = json.dumps(json.loads(ended("completed").model_dump_json(exclude_none=True)))
        yield f"event:completed\ndata:{last}\n\n".encode()

    double.events_answer = lambda: StreamingResponse(lines(), media_type="text/event-stream")
    assert [type(event) for event in await followed(backend)] == [Produced]


LOST = Failure(kind="transient", code="lost", message="ComfyUI lost the run")
WEDGED = Failure(kind="transient", code="comfyui_wedged", message="it hangs")
MEMORY = Failure(kind="transient", code="out_of_memory", message="too large")


async def test_a_failed_run_keeps_its_failure(backend: Sidecar, double: Double) -> None:
    double.scripts = [[ended("failed", MEMORY)]]
    with pytest.raises(RunFailed) as caught:
        await followed(backend)
    assert (caught.value.failure, caught.value.executed) == (MEMORY, True)


@pytest.mark.parametrize("failure", [LOST, WEDGED])
@pytest.mark.parametrize("executed", [True, False])
async def test_a_run_that_comfyui_took_down_with_it_is_lost(
    backend: Sidecar, double: Double, failure: Failure, *, executed: bool
) -> None:
    double.scripts = [[progress(0.5), ended("failed", failure, executed=executed)]]
    with pytest.raises(RunLost) as caught:
        await followed(backend)
    assert caught.value.executed is executed


async def test_a_cancelled_run_says_so(backend: Sidecar, double: Double) -> None:
    double.scripts = [[ended("cancelled")]]
    with pytest.raises(RunCancelled):
        await followed(backend)


async def test_only_the_services_own_word_makes_a_run_lost(
    backend: Sidecar, double: Double
) -> None:
    double.events_answer = lambda: problem(404, "run_not_found")
    with pytest.raises(RunLost):
        await followed(backend)
    double.events_answer = lambda: Response("<h1>no such pod</h1>", 404)
    with pytest.raises(BackendUnreachable):
        await followed(backend)


async def test_a_last_event_without_its_status_is_no_end(backend: Sidecar, double: Double) -> None:
    double.scripts = [[Event(type="completed")]]
    with pytest.raises(BackendUnreachable):
        await followed(backend)


async def test_cancel_and_forget_delete_and_an_unknown_run_is_no_error(
    backend: Sidecar, double: Double
) -> None:
    await backend.cancel(RUN, None)
    double.delete_answer = lambda: problem(404, "run_not_found")
    await backend.forget(RUN, RUN)
    assert double.deletes == [RUN, RUN]
    double.delete_answer = lambda: problem(500, "internal_error")
    with pytest.raises(BackendUnreachable):
        await backend.forget(RUN, RUN)


async def test_a_service_that_restarts_between_calls_is_not_missed(
    double: Double, http: httpx.AsyncClient
) -> None:
    port = free_port()
    backend = Sidecar("gpu-0", f"http://127.0.0.1:{port}", TOKEN, http, WORKFLOWS)
    for _ in range(3):
        async with serving(double.app(), port=port):
            await backend.start(order())
    assert len(double.puts) == 3


async def test_before_the_first_look_nothing_is_known(http: httpx.AsyncClient) -> None:
    backend = Sidecar("gpu-0", "http://127.0.0.1:1", None, http, WORKFLOWS)
    assert (backend.name, backend.capacity, backend.engine) == ("gpu-0", 0, None)
    assert (backend.installed, backend.health, backend.trouble) == (None, None, None)
    assert backend.readiness(WORKFLOW.name, WORKFLOW.digest).readiness == "unknown"


async def test_a_look_tells_capacity_models_and_readiness(backend: Sidecar, double: Double) -> None:
    await backend.look()
    assert (backend.capacity, backend.engine, backend.trouble) == (2, "simulator", None)
    assert backend.installed == {"checkpoints": frozenset({CHECKPOINT}), "loras": frozenset()}
    assert backend.readiness(WORKFLOW.name, WORKFLOW.digest).readiness == "ready"
    assert backend.readiness("flux1-dev", "e" * 64).readiness == "unknown"
    double.readiness = "missing"
    await backend.look()
    readiness = backend.readiness(WORKFLOW.name, WORKFLOW.digest)
    assert readiness.readiness == "missing"
    assert [missing.name for missing in readiness.missing] == ["x.safetensors"]


async def test_a_service_without_its_comfyui_has_no_capacity(
    backend: Sidecar, double: Double
) -> None:
    double.available = False
    await backend.look()
    assert backend.capacity == 0
    assert backend.health is not None
    assert backend.health.status == "degraded"


async def test_watching_tells_when_the_service_comes_goes_and_comes_back(
    double: Double, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(sidecar, "_LOOK_WHILE_AWAY_S", 0.05)
    port = free_port()
    backend = Sidecar("gpu-0", f"http://127.0.0.1:{port}", TOKEN, http, WORKFLOWS)
    changes = Changes(backend)
    await backend.start_watching()
    for _ in range(2):
        async with serving(double.app(), port=port):
            await changes.until_capacity(2)
            assert backend.trouble is None
        await changes.until_capacity(0)
        assert backend.trouble is not None
        assert backend.engine == "simulator"
    assert changes.count == 4
    await backend.close()


async def test_a_call_that_finds_nobody_makes_the_watcher_look_at_once(
    double: Double, http: httpx.AsyncClient
) -> None:
    port = free_port()
    backend = Sidecar("gpu-0", f"http://127.0.0.1:{port}", TOKEN, http, WORKFLOWS)
    changes = Changes(backend)
    async with serving(double.app(), port=port):
        await backend.start_watching()
        await changes.until_capacity(2)
    with pytest.raises(BackendUnreachable):
        await backend.start(order())
    await changes.until_capacity(0)
    await backend.close()
