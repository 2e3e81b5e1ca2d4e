"""The GPU service over a simulator: real processes, real files, the whole wire."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.support.gpu import Gpu, Json, blended, gpu_stack, inline
from tests.support.recordings import bundled, files
from tests.support.slots import Slots, receiving
from tests.support.stack import Stack

SLOW: dict[str, Any] = {"num_inference_steps": 150}
SLOW_MS = 300


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gpu_stack(tmp_path_factory.mktemp("gpu"), "simulator", "gpu_server") as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=1, hide=[], output_bytes=0)
        yield gpu
        await gpu.tidy()


BASE: Json = {"prompt": "x", "checkpoint": "tiny-sd15.ckpt", "num_inference_steps": 1}
SMALL: Json = BASE | {"width": 64, "height": 64}


async def test_a_run_delivers_its_pictures_and_says_what_it_used(gpu: Gpu, slots: Slots) -> None:
    run_id = str(uuid.uuid4())
    request = gpu.request(slots.slots(run_id, 2), num_images=2, width=128, seed=None)
    status = await gpu.end(await gpu.start(request, run_id))
    assert status["state"] == "completed"
    assert status["engine"] == "simulator"
    assert status["executed"] is True
    assert status["progress"]["fraction"] == 1
    assert isinstance(status["params"]["seed"], int)
    assert status["params"]["guidance_scale"] == 7.0
    assert [o["slot"] for o in status["outputs"]] == ["images/0", "images/1"]
    for output in status["outputs"]:
        taken = slots.taken[f"/{run_id}/{output['slot']}"]
        assert (output["media_type"], output["width"], output["height"]) == ("image/png", 128, 64)
        assert (output["bytes"], output["sha256"]) == (taken.count, taken.sha256)
        assert taken.length == str(taken.count)
        assert taken.media_type == "image/png"
        assert taken.head.startswith(b"\x89PNG")


async def test_events_tell_progress_then_the_output_then_the_end(gpu: Gpu, slots: Slots) -> None:
    run_id = await gpu.start(gpu.request(slots.slots("a"), num_inference_steps=5))
    events = [event async for event in gpu.events(run_id)]
    fractions = [e["progress"]["fraction"] for e in events if e["type"] == "progress"]
    assert fractions == sorted(fractions)
    assert [e["type"] for e in events][-2:] == ["output", "completed"]


async def test_a_follower_who_comes_late_is_told_the_whole_end(gpu: Gpu, slots: Slots) -> None:
    run_id = await gpu.start(gpu.request(slots.slots("a")))
    first = await gpu.end(run_id)
    late = [event async for event in gpu.events(run_id)]
    assert [e["type"] for e in late] == ["output", "completed"]
    assert late[-1]["status"] == first
    assert (await gpu.http.get(f"/runs/{run_id}")).json() == first


async def test_many_followers_are_told_the_same_end(gpu: Gpu, slots: Slots) -> None:
    run_id = await gpu.start(gpu.request(slots.slots("a"), num_inference_steps=10))
    ends = await asyncio.gather(*(gpu.end(run_id) for _ in range(5)))
    assert all(end == ends[0] for end in ends)


async def test_the_same_id_again_is_the_same_run(gpu: Gpu, slots: Slots) -> None:
    request = gpu.request(slots.slots("a"))
    before = gpu.sim()["executions"]
    run_id = await gpu.start(request)
    again = await gpu.put(run_id, request)
    assert (again.status_code, again.json()["run_id"]) == (200, run_id)
    end = await gpu.end(run_id)
    once_more = await gpu.put(run_id, request)
    assert (once_more.status_code, once_more.json()) == (200, end)
    assert gpu.sim()["executions"] == before + 1


def pixels_of(folder: Path) -> bytes:
    (path,) = folder.iterdir()
    with Image.open(path) as picture:
        return picture.tobytes()


async def test_loras_change_the_picture_and_equal_seeds_do_not(gpu: Gpu, slots: Slots) -> None:
    lora = {"name": "tiny-sd15-lora.safetensors", "scale": 1.0}
    choices: list[Json] = [{}, {"prompt": "something else"}, {}, {"loras": [lora]}]
    pixels: list[bytes] = []
    for params in choices:
        status = await gpu.run(gpu.request(slots.slots("a"), **params))
        assert status["state"] == "completed", str(status)
        folder = gpu.stack.workspace / "simulator" / "output" / "jobs" / status["run_id"]
        pixels.append(pixels_of(folder))
    assert pixels[0] == pixels[2]
    assert len(set(pixels)) == 3


async def test_more_runs_than_comfyui_shall_hold_are_429(gpu: Gpu, slots: Slots) -> None:
    gpu.sim(step_ms=SLOW_MS)
    running = [await gpu.start(gpu.request(slots.slots(str(n)), seed=n, **SLOW)) for n in range(2)]
    refused = await gpu.put(str(uuid.uuid4()), gpu.request(slots.slots("c")))
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "at_capacity"
    assert (await gpu.put(running[0], gpu.request([]))).status_code == 200
    for run_id in reversed(running):
        assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 200
    for run_id in running:
        assert (await gpu.end(run_id))["state"] == "cancelled"
    assert slots.puts == 0


async def test_cancel_stops_within_a_step(gpu: Gpu, slots: Slots) -> None:
    gpu.sim(step_ms=SLOW_MS)
    run_id = await gpu.start(gpu.request(slots.slots("a"), **SLOW))
    assert await gpu.stepping(run_id) < 0.5
    answer = await gpu.http.delete(f"/runs/{run_id}")
    assert answer.status_code == 200
    status = await gpu.end(run_id)
    assert (status["state"], status["outputs"]) == ("cancelled", [])
    assert status["progress"]["fraction"] < 0.9
    assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 204


async def test_cancelling_while_inputs_are_fetched_never_reaches_comfyui(
    gpu: Gpu, slots: Slots
) -> None:
    slots.gate = asyncio.Event()
    before = gpu.sim()["prompts"]
    run_id = await gpu.start(blended(slots, f"{slots.url}/in.png"))
    await slots.asked.wait()
    await gpu.http.delete(f"/runs/{run_id}")
    assert (await gpu.end(run_id))["state"] == "cancelled"
    slots.gate.set()
    assert gpu.sim()["prompts"] == before


async def test_a_finished_run_is_removed_with_its_files(gpu: Gpu, slots: Slots) -> None:
    run_id = await gpu.start(gpu.request(slots.slots("a")))
    await gpu.end(run_id)
    folder = gpu.stack.workspace / "simulator" / "output" / "jobs" / run_id
    assert folder.is_dir()
    assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 204
    assert not folder.exists()
    # its id stays known: a start that comes late must not execute it again
    assert (await gpu.http.get(f"/runs/{run_id}")).json()["state"] == "cancelled"
    assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 204


async def test_another_digest_is_409_and_the_same_run_inline_is_taken(
    gpu: Gpu, slots: Slots
) -> None:
    run_id = str(uuid.uuid4())
    request = gpu.request(slots.slots("a"))
    request["workflow"]["digest"] = "0" * 64
    refused = await gpu.put(run_id, request)
    assert (refused.status_code, refused.json()["code"]) == (409, "workflow_mismatch")
    graph, manifest = files("checkpoint")
    await gpu.start(request | {"graph": graph, "manifest": manifest}, run_id)
    assert (await gpu.end(run_id))["state"] == "completed"


async def test_an_inline_workflow_that_does_not_fit_is_422_with_the_place(gpu: Gpu) -> None:
    def change(_graph: Json, manifest: Json) -> None:
        manifest["params"]["prompt"] = {"bind": "8.filename_prefix"}

    answer = await gpu.put(str(uuid.uuid4()), inline("checkpoint", [], SMALL, change))
    assert (answer.status_code, answer.json()["code"]) == (422, "workflow_invalid")
    assert "filename_prefix" in answer.json()["detail"]


async def picture(gpu: Gpu) -> bytes:
    """A PNG, made by the service itself."""
    answer = await gpu.http.post("/generate", json={"workflow": "checkpoint", "params": SMALL})
    return base64.b64decode(answer.json()["image"])


async def test_an_input_file_is_fetched_and_uploaded(gpu: Gpu, slots: Slots) -> None:
    slots.files["/in.png"] = await picture(gpu)
    status = await gpu.run(blended(slots, f"{slots.url}/in.png"))
    assert status["state"] == "completed", str(status)
    assert (status["outputs"][0]["width"], status["outputs"][0]["height"]) == (64, 64)


async def test_an_input_on_a_private_address_of_others_is_refused(gpu: Gpu, slots: Slots) -> None:
    async with receiving() as others:
        status = await gpu.run(blended(slots, f"{others.url}/in.png"))
        assert not others.asked.is_set()
    assert status["failure"]["kind"] == "usage"
    assert status["failure"]["code"] == "url_refused"


@pytest.mark.parametrize(
    ("path", "code"), [("/page", "unreadable_input"), ("/none", "file_not_found")]
)
async def test_an_input_that_cannot_be_had_is_named_with_its_parameter(
    gpu: Gpu, slots: Slots, path: str, code: str
) -> None:
    slots.files["/page"] = b"\n<!doctype html><title>Sign in</title>"
    failure = (await gpu.run(blended(slots, slots.url + path)))["failure"]
    assert (failure["kind"], failure["code"]) == ("usage", code)
    assert failure["message"].startswith("picture: ")


async def test_of_several_inputs_the_one_that_fails_is_numbered(gpu: Gpu, slots: Slots) -> None:
    slots.files["/in.png"] = await picture(gpu)
    request = blended(slots, f"{slots.url}/in.png")
    request["inputs"]["picture"].append({"url": f"{slots.url}/none", "media_type": "image/png"})
    failure = (await gpu.run(request))["failure"]
    assert failure["code"] == "file_not_found"
    assert failure["message"].startswith("picture.1: ")


async def test_an_input_that_is_not_what_was_announced_fails_the_run(
    gpu: Gpu, slots: Slots
) -> None:
    slots.files["/in.png"] = await picture(gpu)
    status = await gpu.run(blended(slots, f"{slots.url}/in.png", sha256="0" * 64))
    assert status["failure"]["code"] == "input_changed"


async def test_an_output_is_delivered_while_later_nodes_still_run(gpu: Gpu, slots: Slots) -> None:
    def change(graph: Json, manifest: Json) -> None:
        graph["0"] = {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0},
        }
        graph["01"] = {
            "class_type": "SaveImage",
            "inputs": {"images": ["0", 0], "filename_prefix": "x"},
        }
        manifest["fixed"]["01.filename_prefix"] = "jobs/{run_id}/early"
        manifest["outputs"]["early"] = {"node": "01", "kind": "image", "max": 1}

    gpu.sim(step_ms=SLOW_MS)
    places = slots.slots("a") + slots.slots("a", output="early")
    run_id = await gpu.start(inline("checkpoint", places, SMALL | SLOW, change))
    assert (await gpu.until(run_id, "output"))["output"]["slot"] == "early/0"
    await gpu.http.delete(f"/runs/{run_id}")
    assert (await gpu.end(run_id))["state"] == "cancelled"


async def test_a_slot_that_stumbles_gets_the_file_at_the_next_try(gpu: Gpu, slots: Slots) -> None:
    slots.answers = [503, 500]
    status = await gpu.run(gpu.request(slots.slots("a")))
    assert status["state"] == "completed"
    assert slots.puts == 3


async def test_a_slot_that_refuses_ends_the_run_as_undelivered(gpu: Gpu, slots: Slots) -> None:
    slots.answers = [403]
    failure = (await gpu.run(gpu.request(slots.slots("a"))))["failure"]
    assert (failure["kind"], failure["code"]) == ("transient", "delivery_failed")
    assert slots.url not in str(failure)
    assert slots.puts == 1


async def test_more_files_than_slots_is_a_failure(gpu: Gpu, slots: Slots) -> None:
    status = await gpu.run(gpu.request(slots.slots("a"), num_images=2))
    assert status["failure"]["code"] == "too_many_outputs"


async def test_a_run_without_output_is_a_failure(gpu: Gpu, slots: Slots) -> None:
    def change(_graph: Json, manifest: Json) -> None:
        manifest["outputs"]["images"]["key"] = "gifs"

    status = await gpu.run(inline("checkpoint", slots.slots("a"), SMALL, change))
    assert (status["failure"]["kind"], status["failure"]["code"]) == ("fatal", "no_output")


@pytest.mark.parametrize(
    ("params", "code", "word"),
    [
        ({"width": 833}, "invalid_param", "width"),
        ({"colour": "red"}, "unknown_param", "colour"),
        ({"checkpoint": "nope.ckpt"}, "model_not_installed", "nope.ckpt"),
        ({"loras": [{"name": "../x"}]}, "model_not_installed", "../x"),
    ],
)
async def test_a_value_that_does_not_fit_fails_the_run_as_the_callers_fault(
    gpu: Gpu, slots: Slots, params: Json, code: str, word: str
) -> None:
    failure = (await gpu.run(gpu.request(slots.slots("a"), **params)))["failure"]
    assert (failure["kind"], failure["code"]) == ("usage", code)
    assert word in failure["message"]
    assert "tiny-sd15.ckpt" not in failure["message"]


async def test_models_to_fetch_are_refused_clearly(gpu: Gpu, slots: Slots) -> None:
    model = {
        "directory": "loras",
        "name": "x.safetensors",
        "url": "https://example.org/x",
        "sha256": "0" * 64,
        "bytes": 1,
    }
    status = await gpu.run(gpu.request(slots.slots("a")) | {"models": [model]})
    assert (status["failure"]["kind"], status["failure"]["code"]) == ("usage", "unsupported")


async def test_a_missing_model_is_named_and_found_again_once_it_is_there(
    gpu: Gpu, slots: Slots
) -> None:
    request = gpu.request(slots.slots("a"), "z-image-turbo", width=256, height=256)
    gpu.sim(hide=["qwen_3_4b.safetensors"])
    await gpu.http.get("/workflows")
    status = await gpu.run(gpu.request(slots.slots("b"), checkpoint="not there"))
    assert status["state"] == "failed"
    report = (await gpu.http.get("/workflows")).json()
    (entry,) = [w for w in report["workflows"] if w["name"] == "z-image-turbo"]
    assert entry["readiness"] == "missing"
    assert entry["missing"][0]["name"] == "qwen_3_4b.safetensors"
    assert entry["missing"][0]["bytes"] == 8_044_982_048
    failure = (await gpu.run(request))["failure"]
    assert failure["code"] == "missing_model"
    assert "https://" in failure["message"]
    gpu.sim(hide=[])
    assert (await gpu.run(request))["state"] == "completed"


async def test_workflows_tell_readiness_and_what_may_be_chosen(gpu: Gpu) -> None:
    report = (await gpu.http.get("/workflows")).json()
    digests = {w["name"]: w["digest"] for w in report["workflows"]}
    assert digests == {name: w.digest for name, w in bundled().items()}
    assert {w["readiness"] for w in report["workflows"]} == {"ready"}
    assert "tiny-sd15.ckpt" in report["installed"]["checkpoints"]
    assert "tiny-sd15-lora.safetensors" in report["installed"]["loras"]


async def test_a_large_file_does_not_grow_the_service(gpu: Gpu, slots: Slots, stack: Stack) -> None:
    size = 150 * 1024**2
    process = psutil.Process(stack.processes["gpu_server"].pid)
    await gpu.run(gpu.request(slots.slots("warm")))
    before = process.memory_info().rss
    gpu.sim(output_bytes=size)
    run_id = await gpu.start(gpu.request(slots.slots("large")))
    highest = before
    ending = asyncio.create_task(gpu.end(run_id))
    while not ending.done():
        highest = max(highest, process.memory_info().rss)
        await asyncio.sleep(0.02)
    status = await ending
    assert status["state"] == "completed", str(status)
    # the texts in it were left out
    assert size - 64 * 1024 < status["outputs"][0]["bytes"] <= size
    assert slots.taken["/large/images/0"].sha256 == status["outputs"][0]["sha256"]
    assert highest - before < 64 * 1024**2


def test_the_journal_lies_in_the_workspace(stack: Stack) -> None:
    assert Path(stack.workspace, "data", "gpu_server.sqlite").is_file()
