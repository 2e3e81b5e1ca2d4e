"""Files as the GPU service hands them over: what they show, in which format, without metadata."""

import base64
import io
import json
import struct
import uuid
from collections.abc import AsyncIterator, Iterator

import av
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tests.support.gpu import Gpu, Json, gpu_stack
from tests.support.recordings import bundled
from tests.support.slots import Slots, Taken
from tests.support.stack import Stack

SOFTWARE, MODEL = 0x0131, 0x0110
MARK = {"engine": "simulator"}
VIDEO = {"prompt": "it moves", "width": 256, "height": 256, "length": 9, "steps": 1}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "data" / "finishing" / "finish-killed").mkdir(parents=True)
    (folder / "data" / "finishing" / "finish-killed" / "came").write_bytes(b"half a file")
    with gpu_stack(folder, "simulator", "gpu_server") as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=1)
        yield gpu
        await gpu.tidy()


async def made(
    gpu: Gpu, slots: Slots, name: str, params: Json, *, details: bool = True, **wanted: object
) -> tuple[Json, Taken]:
    """Run a workflow: what the service says of its first file, and what arrived."""
    workflow = bundled()[name]
    (output,) = workflow.outputs
    run_id = str(uuid.uuid4())
    content = io.BytesIO()
    Image.new("RGB", (256, 192), "red").save(content, "PNG")
    slots.files["/in.png"] = content.getvalue()
    file = {"url": f"{slots.url}/in.png", "media_type": "image/png"}
    request: Json = {
        "workflow": {"name": name, "digest": workflow.digest},
        "params": params,
        "inputs": {p: [file] for p, param in workflow.manifest.params.items() if param.upload},
        "outputs": [slot | wanted for slot in slots.slots(run_id, 1, output)],
    }
    request |= {"details": True} if details else {}
    status = await gpu.end(await gpu.start(request, run_id))
    assert status["state"] == "completed", status["failure"]
    (told,) = status["outputs"]
    taken = slots.taken[f"/{run_id}/{output}/0"]
    assert (told["bytes"], told["sha256"]) == (taken.count, taken.sha256)
    assert taken.length == str(taken.count), "a bucket takes nothing of unknown length"
    assert told["media_type"] == taken.media_type
    return told, taken


async def picture(gpu: Gpu, slots: Slots, **wanted: object) -> tuple[Json, Image.Image]:
    params = {"prompt": "a lighthouse", "checkpoint": "tiny-sd15.ckpt", "num_inference_steps": 1}
    told, taken = await made(
        gpu, slots, "checkpoint", params | {"width": 128, "height": 96}, **wanted
    )
    shown = Image.open(io.BytesIO(taken.content))
    shown.load()
    return told, shown


async def test_a_picture_says_of_itself_only_that_it_is_simulated(gpu: Gpu, slots: Slots) -> None:
    told, shown = await picture(gpu, slots)
    assert (told["media_type"], told["width"], told["height"]) == ("image/png", 128, 96)
    assert isinstance(shown, PngImageFile)
    assert (shown.size, shown.text) == ((128, 96), MARK)


async def test_a_picture_keeps_its_prompt_where_that_is_wanted(gpu: Gpu, slots: Slots) -> None:
    _, shown = await picture(gpu, slots, keep_metadata=True)
    assert isinstance(shown, PngImageFile)
    assert "a lighthouse" in shown.text["prompt"]


@pytest.mark.parametrize("wanted", ["webp", "jpeg"])
async def test_a_picture_comes_in_the_format_wanted(gpu: Gpu, slots: Slots, wanted: str) -> None:
    _, plain = await picture(gpu, slots)
    told, shown = await picture(gpu, slots, format=wanted)
    assert (told["media_type"], told["width"], told["height"]) == (f"image/{wanted}", 128, 96)
    assert (shown.format, shown.size) == (wanted.upper(), plain.size)
    assert dict(shown.getexif()) == {SOFTWARE: "simulator"}
    coarse, _ = await picture(gpu, slots, format=wanted, quality=5)
    assert coarse["bytes"] < told["bytes"]


async def test_prompt_and_format_go_together(gpu: Gpu, slots: Slots) -> None:
    _, shown = await picture(gpu, slots, format="webp", keep_metadata=True)
    kept = shown.getexif()[MODEL]
    assert "a lighthouse" in json.dumps(json.loads(kept.removeprefix("prompt:")))


async def test_a_mask_carries_the_mark_as_metadata_alone(gpu: Gpu, slots: Slots) -> None:
    _, taken = await made(gpu, slots, "mask-sam3", {"object_name": "mug"})
    shown = Image.open(io.BytesIO(taken.content))
    assert isinstance(shown, PngImageFile)
    assert shown.text == MARK


@pytest.mark.parametrize("keep", [False, True])
async def test_a_video_tells_size_frames_and_duration(
    gpu: Gpu, slots: Slots, *, keep: bool
) -> None:
    told, taken = await made(gpu, slots, "video-wan2.1-480p", VIDEO, keep_metadata=keep)
    assert (told["media_type"], told["width"], told["height"]) == ("video/mp4", 256, 256)
    assert (told["frames"], told["duration_s"]) == (9, pytest.approx(9 / 16, abs=0.01))
    with av.open(io.BytesIO(taken.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
        assert container.metadata["engine"] == "simulator"
        assert ("prompt" in container.metadata) is keep
    assert (b"it moves" in taken.content) is keep
    assert taken.content.index(b"moov") < taken.content.index(b"mdat")


@pytest.mark.parametrize("keep", [False, True])
async def test_a_mesh_tells_its_faces(gpu: Gpu, slots: Slots, *, keep: bool) -> None:
    told, taken = await made(gpu, slots, "model3d-trellis2", {}, keep_metadata=keep)
    length, _ = struct.unpack_from("<I4s", taken.content, 12)
    document = json.loads(taken.content[20 : 20 + length])
    (primitive,) = document["meshes"][0]["primitives"]
    assert told["faces"] == document["accessors"][primitive["indices"]]["count"] // 3
    assert document["asset"]["generator"].startswith("SIMULATED")
    assert document["asset"]["extras"].items() >= MARK.items()
    assert ("prompt" in document["asset"]["extras"]) is keep
    assert struct.unpack_from("<I", taken.content, 8) == (taken.count,)


async def test_a_former_gateway_hears_nothing_it_would_refuse(gpu: Gpu, slots: Slots) -> None:
    known = {"slot", "media_type", "bytes", "sha256", "width", "height", "frames"}
    for name, params in (("video-wan2.1-480p", VIDEO), ("model3d-trellis2", {})):
        told, _ = await made(gpu, slots, name, params, details=False)
        assert told.keys() <= known


@pytest.mark.parametrize("keep", [False, True])
async def test_a_plain_call_answers_with_a_picture_of_the_same_kind(
    gpu: Gpu, *, keep: bool
) -> None:
    params = {"prompt": "a lighthouse", "checkpoint": "tiny-sd15.ckpt", "num_inference_steps": 1}
    body = {"workflow": "checkpoint", "params": params | {"width": 64, "height": 64}}
    body |= {"keep_metadata": True} if keep else {}
    answer = (await gpu.http.post("/generate", json=body)).json()
    shown = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert isinstance(shown, PngImageFile)
    assert ("prompt" in shown.text) is keep


async def test_a_quality_that_is_none_is_refused_with_its_place(gpu: Gpu, slots: Slots) -> None:
    request = gpu.request([slots.slots("a")[0] | {"format": "webp", "quality": 0}])
    answer = await gpu.put(str(uuid.uuid4()), request)
    assert (answer.status_code, answer.json()["param"]) == (422, "outputs.0.quality")


async def test_files_under_work_lie_in_the_services_own_folder_and_none_stays(
    gpu: Gpu, slots: Slots, stack: Stack
) -> None:
    folder = stack.workspace / "data" / "finishing"
    assert not (folder / "finish-killed").exists()
    folder.rmdir()
    params = {"prompt": "x", "checkpoint": "tiny-sd15.ckpt", "num_inference_steps": 1}
    told, _ = await made(gpu, slots, "checkpoint", params, format="webp")
    assert told["media_type"] == "image/webp"
    assert list(folder.iterdir()) == []
