"""The GPU service's surface: health, token, plain calls, bad requests, and death."""

import asyncio
import base64
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.gpu import TOKEN, Gpu, Json, blended, gpu_stack
from tests.support.slots import Slots
from tests.support.stack import Stack, free_port

SMALL: Json = {
    "prompt": "x",
    "checkpoint": "tiny-sd15.ckpt",
    "num_inference_steps": 1,
    "width": 64,
    "height": 64,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gpu_stack(
        tmp_path_factory.mktemp("gpu"), "simulator", "gpu_server", SIM_STEP_MS="1"
    ) as stack:
        yield stack


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Not started; to be harmed."""
    with gpu_stack(tmp_path, SIM_STEP_MS="1") as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        yield gpu


async def test_health_tells_a_stranger_little_and_the_gateway_all(gpu: Gpu) -> None:
    full = await gpu.http.get("/health")
    assert full.status_code == 200
    assert full.json()["status"] == "healthy"
    assert full.json()["protocol"] == ["v1", "previews", "files", "check", "ours", "sized"]
    assert full.json()["engine"] == "simulator"
    assert full.json()["capacity"] == 2
    public = await gpu.http.get("/health", headers={"authorization": ""})
    assert public.json() == {
        "status": "healthy",
        "comfyui_available": True,
        "service": "gpu_server",
        "version": full.json()["version"],
    }


@pytest.mark.parametrize("token", ["", f"Basic {TOKEN}", "Bearer wrong", f"Bearer {TOKEN}x"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"/runs/{uuid.UUID(int=0)}"),
        ("GET", f"/runs/{uuid.UUID(int=0)}"),
        ("GET", f"/runs/{uuid.UUID(int=0)}/events"),
        ("DELETE", f"/runs/{uuid.UUID(int=0)}"),
        ("GET", "/workflows"),
        ("POST", "/generate"),
    ],
)
async def test_without_the_token_nothing_but_health_is_open(
    gpu: Gpu, method: str, path: str, token: str
) -> None:
    answer = await gpu.http.request(method, path, headers={"authorization": token})
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("{", "body"),
        ("[]", "body"),
        ("{}", "body"),
        ('{"version": 2, "graph": {}, "manifest": {}}', "version"),
        ('{"workflow": {"name": "../etc", "digest": "x"}}', "workflow.name"),
        ('{"graph": {}, "manifest": {}, "surprise": 1}', "surprise"),
        ('{"graph": {}, "manifest": {}, "timeout_s": 0}', "timeout_s"),
        ('{"graph": {}, "manifest": {}, "outputs": [{"name": "../x", "url": "y"}]}', "outputs.0"),
    ],
)
async def test_a_bad_request_is_422_and_names_the_field(gpu: Gpu, body: str, place: str) -> None:
    answer = await gpu.http.put(f"/runs/{uuid.uuid4()}", content=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["param"].startswith(place)


async def test_a_run_id_that_is_no_uuid_is_422(gpu: Gpu) -> None:
    assert (await gpu.put("job-1", {})).status_code == 422
    assert (await gpu.http.get("/runs/..%2f..")).status_code in {404, 422}


async def test_an_enormous_request_is_413(gpu: Gpu) -> None:
    answer = await gpu.http.put(f"/runs/{uuid.uuid4()}", content=b" " * (9 * 1024**2))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_no_page_is_open_without_the_token(gpu: Gpu) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/"):
        answer = await gpu.http.get(path, headers={"authorization": ""})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_an_unknown_run_is_404(gpu: Gpu) -> None:
    run_id = uuid.uuid4()
    for path in (f"/runs/{run_id}", f"/runs/{run_id}/events"):
        answer = await gpu.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")


async def test_a_plain_call_answers_with_the_picture(gpu: Gpu) -> None:
    answer = await gpu.http.post("/generate", json={"workflow": "checkpoint", "params": SMALL})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["error"], body["engine"]) == ("done", None, "simulator")
    assert base64.b64decode(body["image"]).startswith(b"\x89PNG")
    assert body["params"]["seed"] >= 0


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"width": 833}, "width"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"seed": -1}, "seed"),
        ({"prompt": 1}, "prompt"),
        ({"colour": "red"}, "colour"),
        ({"checkpoint": "nope.ckpt"}, "checkpoint"),
    ],
)
async def test_a_plain_call_with_a_bad_value_is_422_and_names_it(
    gpu: Gpu, params: Json, param: str
) -> None:
    before = gpu.sim()["prompts"]
    answer = await gpu.http.post(
        "/generate", json={"workflow": "checkpoint", "params": SMALL | params}
    )
    assert (answer.status_code, answer.json()["param"]) == (422, param)
    assert gpu.sim()["prompts"] == before


async def test_a_plain_call_of_an_unknown_workflow_is_404_and_lists_the_known(gpu: Gpu) -> None:
    answer = await gpu.http.post("/generate", json={"workflow": "nope"})
    assert answer.status_code == 404
    assert "flux1-dev" in answer.json()["detail"]


async def test_a_plain_call_that_fails_says_so_without_comfyuis_words(gpu: Gpu) -> None:
    gpu.sim(failing_nodes={"VAEDecode": {"message": "/secret/path", "times": 1}})
    answer = await gpu.http.post("/generate", json={"workflow": "checkpoint", "params": SMALL})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"]
    assert "secret" not in answer.text


async def test_without_comfyui_the_service_is_degraded_and_takes_nothing(
    own_stack: Stack, slots: Slots
) -> None:
    own_stack.start("gpu_server")
    async with Gpu(own_stack) as gpu:
        assert (await gpu.http.get("/workflows")).json()["installed"] is None
        health = await gpu.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["comfyui_available"] is False
        refusals = [
            await gpu.http.get("/ready"),
            await gpu.put(str(uuid.uuid4()), gpu.request(slots.slots("a"))),
            await gpu.http.post("/generate", json={"workflow": "checkpoint", "params": SMALL}),
        ]
        assert [r.status_code for r in refusals] == [503] * 3
        assert {r.json()["code"] for r in refusals} == {"comfyui_unavailable"}
        assert all("retry-after" in r.headers for r in refusals)
        report = (await gpu.http.get("/workflows")).json()
        assert {w["readiness"] for w in report["workflows"]} == {"unknown"}
        own_stack.start("simulator")
        await gpu.connected()
        assert (await gpu.run(gpu.request(slots.slots("a"))))["state"] == "completed"
        listed = (await gpu.http.get("/workflows")).json()["installed"]
        assert "tiny-sd15.ckpt" in listed["checkpoints"]
        own_stack.kill("simulator")
        while (await gpu.http.get("/ready")).status_code == 200:
            pass
        assert (await gpu.http.get("/workflows")).json()["installed"] == listed


async def test_a_journal_that_cant_be_written_is_unhealthy(own_stack: Stack) -> None:
    own_stack.start("gpu_server")
    async with Gpu(own_stack) as gpu:
        with sqlite3.connect(own_stack.workspace / "data" / "gpu_server.sqlite") as other:
            other.execute("BEGIN IMMEDIATE")
            locked = await gpu.http.get("/health")
        other.close()
        freed = await gpu.http.get("/health")
    assert (locked.status_code, locked.json()["status"]) == (503, "unhealthy")
    assert (freed.status_code, freed.json()["status"]) == (200, "degraded")


async def test_a_bad_workflow_file_is_reported_and_the_others_work(
    own_stack: Stack, tmp_path: Path, slots: Slots
) -> None:
    source = Path(__file__).parents[2] / "workflows"
    folder = tmp_path / "flows"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "flux1-dev.yaml").write_text("manifest: 1\ntool: generate\n")
    own_stack.extra_env["WORKFLOWS_PATH"] = str(folder)
    own_stack.start("simulator", "gpu_server")
    async with Gpu(own_stack) as gpu:
        await gpu.connected()
        report = (await gpu.http.get("/workflows")).json()
        (bad,) = [w for w in report["workflows"] if w["name"] == "flux1-dev"]
        assert (bad["readiness"], bad["missing"][0]["kind"]) == ("missing", "invalid")
        assert (await gpu.run(gpu.request(slots.slots("a"))))["state"] == "completed"


async def test_killed_in_the_middle_the_next_process_finishes_the_run_by_itself(
    own_stack: Stack, slots: Slots
) -> None:
    own_stack.start("simulator", "gpu_server")
    async with Gpu(own_stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=100)
        request = gpu.request(slots.slots("a"), num_inference_steps=60)
        run_id = await gpu.start(request)
        await gpu.stepping(run_id)
        own_stack.kill("gpu_server")
        own_stack.start("gpu_server")
        again = await gpu.put(run_id, request)
        assert again.status_code == 200
        gpu.sim(step_ms=1)
        status = await gpu.end(run_id)
        assert status["state"] == "completed"
        assert status["params"]["seed"] == 7
        assert slots.taken["/a/images/0"].sha256 == status["outputs"][0]["sha256"]
        assert gpu.sim()["executions"] == 1


async def test_killed_while_comfyui_finishes_the_output_is_delivered_after_the_restart(
    own_stack: Stack, slots: Slots
) -> None:
    own_stack.start("simulator", "gpu_server")
    async with Gpu(own_stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=100)
        run_id = await gpu.start(gpu.request(slots.slots("a"), num_inference_steps=10))
        await gpu.stepping(run_id)
        own_stack.kill("gpu_server")
        gpu.sim(step_ms=1)
        async with httpx.AsyncClient(base_url=own_stack.comfyui, trust_env=False) as comfyui:
            while (await comfyui.get(f"/history/{run_id}")).json() == {}:  # noqa: ASYNC110  # a server's state
                await asyncio.sleep(0.05)
        own_stack.start("gpu_server")
        assert (await gpu.end(run_id))["state"] == "completed"
        assert gpu.sim()["executions"] == 1


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_run_that_is_over_is_over_for_the_next_process_too(
    own_stack: Stack, slots: Slots, state: str
) -> None:
    own_stack.start("simulator", "gpu_server")
    async with Gpu(own_stack) as gpu:
        await gpu.connected()
        if state == "failed":
            gpu.sim(failing_nodes={"VAEDecode": {"message": "x", "times": 1}})
        request = gpu.request(slots.slots("a"))
        run_id = await gpu.start(request)
        status = await gpu.end(run_id)
        assert status["state"] == state
        before, puts = gpu.sim(), slots.puts
        # Without ComfyUI first: what is over needs none.
        own_stack.kill("gpu_server")
        own_stack.ports["simulator"], port = free_port(), own_stack.ports["simulator"]
        away = f"http://127.0.0.1:{own_stack.ports['simulator']}"
        own_stack.extra_env["COMFYUI_API_URL"] = away
        own_stack.start("gpu_server")
        await told_as_before(gpu, run_id, request, status)
        own_stack.kill("gpu_server")
        own_stack.ports["simulator"] = port
        own_stack.extra_env["COMFYUI_API_URL"] = own_stack.comfyui
        own_stack.start("gpu_server")
        await gpu.connected()
        await told_as_before(gpu, run_id, request, status)
        after = gpu.sim()
        assert (after["executions"], after["prompts"]) == (before["executions"], before["prompts"])
        assert slots.puts == puts
        assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 204
        own_stack.kill("gpu_server")
        own_stack.start("gpu_server")
        assert (await gpu.http.get(f"/runs/{run_id}")).json()["state"] == "cancelled"


async def told_as_before(gpu: Gpu, run_id: str, request: Json, status: Json) -> None:
    assert (await gpu.http.get(f"/runs/{run_id}")).json() == status
    assert await gpu.end(run_id) == status
    again = await gpu.put(run_id, request)
    assert (again.status_code, again.json()) == (200, status)


async def test_a_clean_stop_leaves_the_run_to_comfyui_and_the_next_process(
    own_stack: Stack, slots: Slots
) -> None:
    own_stack.start("simulator", "gpu_server")
    async with Gpu(own_stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=100)
        run_id = await gpu.start(gpu.request(slots.slots("a"), num_inference_steps=60))
        await gpu.stepping(run_id)
        process = own_stack.processes.pop("gpu_server")
        process.terminate()
        assert process.wait(30) in {0, -15}
        own_stack.start("gpu_server")
        gpu.sim(step_ms=1)
        assert (await gpu.end(run_id))["state"] == "completed"
        assert gpu.sim()["executions"] == 1


async def test_killed_while_inputs_are_fetched_the_next_process_begins_again(
    own_stack: Stack, slots: Slots
) -> None:
    own_stack.start("simulator", "gpu_server")
    async with Gpu(own_stack) as gpu:
        await gpu.connected()
        plain = {"workflow": "checkpoint", "params": SMALL}
        image = (await gpu.http.post("/generate", json=plain)).json()["image"]
        slots.files["/in.png"] = base64.b64decode(image)
        slots.gate = asyncio.Event()
        run_id = await gpu.start(blended(slots, f"{slots.url}/in.png"))
        await slots.asked.wait()
        own_stack.kill("gpu_server")
        own_stack.start("gpu_server")
        slots.gate.set()
        assert (await gpu.end(run_id))["state"] == "completed"


async def test_an_input_name_that_is_a_path_is_refused(gpu: Gpu, slots: Slots) -> None:
    file = {"url": f"{slots.url}/in.png", "media_type": "image/png"}
    request = gpu.request(slots.slots("a")) | {"inputs": {"../../victim": [file]}}
    answer = await gpu.put(str(uuid.uuid4()), request)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert not slots.asked.is_set()


async def test_a_second_service_on_the_same_workspace_refuses_to_start(stack: Stack) -> None:
    env = stack.env() | {"GPU_SERVER_PORT": "0"}
    second = await asyncio.create_subprocess_exec(
        *stack.command("gpu_server"), env=env, stderr=asyncio.subprocess.PIPE
    )
    _, told = await second.communicate()
    assert second.returncode == 1
    assert told.decode().startswith("Another GPU service works with ")
    assert told.count(b"\n") == 1
