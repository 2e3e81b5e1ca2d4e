"""What a job is answered with: JSON that RunPod can carry."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from gpu_server.blank import is_blank
from gpu_server.comfy import ComfyClient, ComfyFile, RunFailed
from gpu_server.finish import Finishing
from gpu_server.protocol import OutputFile, RunStatus
from gpu_server.run import Run
from gpu_server.serverless.bucket import Bucket
from gpu_server.serverless.calls import Call
from gpu_server.serverless.failing import TOO_LARGE, CallFailed
from gpu_server.serverless.tools import CONCEPT, MODEL3D
from gpu_server.workflow.manifest import Output

Result = dict[str, JsonValue]
_LISTS = {"image": "images", "video": "videos"}
SMALL = "set STORAGE_URL and its keys on the endpoint, so that files go into a bucket"


def checked(result: Result, most_bytes: int) -> Result:
    """Return the result if RunPod can carry it; raises CallFailed."""
    try:
        written = json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise CallFailed("fatal", "internal_error", "the result is no JSON") from None
    if len(written) > most_bytes:
        raise too_large(most_bytes, "ask for less at once")
    return result


def of_request(status: RunStatus) -> Result:
    """The answer to a RunRequest: its `RunStatus`."""
    return cast("Result", status.model_dump(mode="json", exclude_none=True))


def in_receipt(run_id: str) -> Result:
    """The answer to a RunRequest whose `RunStatus` is too large: its receipt has it."""
    return {"run_id": run_id, "receipt": True}


async def in_bucket(call: Call, status: RunStatus, bucket: Bucket, link_s: float) -> Result:
    """The answer to a plain call whose files are in the bucket, each seen to lie there."""
    files = [
        (sent.slot, await linked(sent, call.keys[sent.slot], bucket, link_s))
        for sent in status.outputs
    ]
    return answer(call, status, files)


async def linked(sent: OutputFile, key: str, bucket: Bucket, link_s: float) -> Result:
    """What is told of a file that went into the bucket; raises CallFailed unless it lies there."""
    if await bucket.size(key) != sent.bytes:
        message = f"{sent.slot} does not lie in the bucket as it was sent"
        raise CallFailed("transient", "delivery_failed", message)
    link = await bucket.link(key, link_s)
    return {**told(sent), "address": bucket.address(key), "url": link}


async def inside(
    call: Call, run: Run, comfy: ComfyClient, *, folder: Path, most_bytes: int
) -> Result:
    """The answer to a plain call that carries its files; raises CallFailed, RunFailed.

    `folder`: where files lie that have to be made first.
    """
    files: list[tuple[str, Result]] = []
    left = most_bytes
    for name, output in call.workflow.outputs.items():
        for n, file in enumerate(made(run, output)):
            if output.blank_is_nothing and await is_blank(comfy, file):
                raise RunFailed(
                    "usage", "object_not_found", "there is no such thing in the picture"
                )
            content = bytearray()
            async with Finishing(comfy, file, call.files, folder) as finishing:
                async with finishing.opened() as body:
                    async for chunk in body.chunks():
                        content += chunk
                        # in base64 three bytes become four
                        if 4 * len(content) > 3 * left:
                            raise too_large(most_bytes, SMALL)
                sent = OutputFile(slot=f"{name}/{n}", **body.told)
            data = base64.b64encode(content).decode("ascii")
            left -= len(data)
            files.append((sent.slot, {**told(sent), "data": data}))
    return answer(call, run.status, files)


def made(run: Run, output: Output) -> list[ComfyFile]:
    """Which files of a run are those of an output."""
    return [f for f in run.produced if f.node == output.node and output.key in (None, f.key)]


def told(sent: OutputFile) -> Result:
    """What is told of every file."""
    known = cast("Result", sent.model_dump(mode="json", exclude_none=True))
    return {"name": known.pop("slot"), **known}


def answer(call: Call, status: RunStatus, files: Sequence[tuple[str, Result]]) -> Result:
    """The answer to a plain call, with what is told of each file by its slot."""
    lists: dict[str, list[JsonValue]] = {}
    for slot, file in files:
        kind = call.workflow.outputs[slot.rpartition("/")[0]].kind
        lists.setdefault(_LISTS.get(kind, "files"), []).append(file)
    result: Result = {
        **cast("Result", lists),
        "params": {**status.params},
        "workflow": call.workflow.name,
        "engine": status.engine,
        "duration_seconds": status.duration_seconds,
    }
    for name, texts in status.texts.items():
        result[name] = "\n".join(texts)
    links = [file["url"] for _, file in files if "url" in file]
    if links and call.workflow.tool == CONCEPT:
        result["concept_urls"] = links
    if links and call.workflow.tool == MODEL3D:
        result["normalized_model_url"] = links[0]
    return result


def too_large(most_bytes: int, advice: str) -> CallFailed:
    """Why RunPod can't carry a result, and what to do about it."""
    message = f"the result is larger than the {most_bytes} bytes that RunPod carries: {advice}"
    return CallFailed("fatal", TOO_LARGE, message)
