"""The GPU service as a backend: gateway's side here, service and simulator as processes."""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from gateway.api.files import files_router
from gateway.backends.base import Order, Progressed, RunCancelled, RunFailed
from gateway.backends.sidecar import Sidecar
from gateway.job import Artifact, Call, Produced
from gateway.security.api_keys import RequireKey
from gateway.security.signing import SignedFileNames, Signer
from gateway.storage.local import LocalStorage
from gpu_server.protocol import Slot
from gpu_server.workflow import Workflow
from tests.support.asgi import serving
from tests.support.gpu_double import CHECKPOINT, WORKFLOW, WORKFLOWS, Changes, new_http
from tests.support.stack import Stack


class NoFiles:
    async def file(self, filename: str) -> Artifact | None:
        raise AssertionError(filename)

    async def takes_files(self, job_id: str) -> bool:
        return bool(job_id)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A GPU service and a simulator, as processes."""
    stack = Stack(tmp_path_factory.mktemp("gpu"), SIM_STEP_MS="20")
    try:
        stack.start("simulator", "gpu_server")
        yield stack
    finally:
        stack.stop()


@dataclass
class Site:
    """The part of a gateway that a run touches."""

    backend: Sidecar
    storage: LocalStorage
    names: SignedFileNames

    def order(self, **params: Any) -> tuple[Order, str]:
        run_id = str(uuid.uuid4())
        key = self.names.key(
            prefix="generated",
            day=datetime.now(UTC).date(),
            job_id=run_id,
            run_id=run_id,
            slot="images/0",
            ext="png",
        )
        url = self.storage.slot(key, timedelta(hours=1))
        call = Call(
            workflow=WORKFLOW.name,
            digest=WORKFLOW.digest,
            params={"prompt": "a lighthouse", "checkpoint": CHECKPOINT, "seed": 7, "width": 64}
            | {"height": 64, "num_inference_steps": 4}
            | params,
            outputs=("images/0",),
            prefix="generated",
        )
        return Order(run_id=run_id, call=call, slots=(Slot(name="images/0", url=url),)), key


@pytest.fixture
async def site(gpu: Stack, tmp_path: Path) -> AsyncIterator[Site]:
    signer = Signer(bytes(32))
    app = FastAPI()
    url = f"http://127.0.0.1:{gpu.ports['gpu_server']}"
    async with serving(app) as gateway, new_http() as http:
        storage = LocalStorage(tmp_path, signer, gateway)
        app.include_router(
            files_router([], jobs=NoFiles(), storage=storage, signer=signer, key=RequireKey(None))
        )
        backend = Sidecar("gpu-0", url, "test-token-of-the-stack", http, WORKFLOWS)
        changes = Changes(backend)
        await backend.start_watching()
        await changes.until_capacity(2)
        yield Site(backend, storage, SignedFileNames(signer))
        await backend.close()


async def test_a_real_run_ends_with_its_file_in_storage(site: Site) -> None:
    assert site.backend.engine == "simulator"
    assert CHECKPOINT in (site.backend.installed or {})["checkpoints"]
    assert site.backend.readiness(WORKFLOW.name, WORKFLOW.digest).readiness == "ready"
    wanted, key = site.order()
    reference = await site.backend.start(wanted)
    assert await site.backend.start(wanted) == reference
    events = [event async for event in site.backend.follow(wanted.run_id, reference)]
    produced = events[-1]
    assert isinstance(produced, Produced)
    fractions = [event.fraction for event in events if isinstance(event, Progressed)]
    assert fractions == sorted(fractions)
    assert (produced.engine, produced.params["seed"]) == ("simulator", 7)
    stored = await site.storage.stat(key)
    assert stored is not None
    told = produced.outputs[0]
    assert (told.bytes, told.sha256, told.media_type) == (stored.bytes, stored.sha256, "image/png")
    assert (told.width, told.height) == (64, 64)
    await site.backend.forget(wanted.run_id, reference)
    with pytest.raises(RunCancelled):
        await anext(site.backend.follow(wanted.run_id, reference))


async def test_a_real_run_is_cancelled(site: Site) -> None:
    wanted, key = site.order(num_inference_steps=150)
    reference = await site.backend.start(wanted)
    events = site.backend.follow(wanted.run_id, reference)
    await anext(events)
    await site.backend.cancel(wanted.run_id, reference)
    with pytest.raises(RunCancelled):
        async for _ in events:
            pass
    assert await site.storage.stat(key) is None


async def test_a_real_service_runs_a_workflow_it_does_not_have(site: Site) -> None:
    wanted, key = site.order()
    renamed = Workflow(
        name="renamed", digest="f" * 64, graph=WORKFLOW.graph, manifest=WORKFLOW.manifest
    )
    site.backend._workflows = {"renamed": renamed}
    call = Call(
        workflow="renamed",
        digest=renamed.digest,
        params=wanted.call.params,
        outputs=wanted.call.outputs,
        prefix=wanted.call.prefix,
    )
    wanted = Order(run_id=wanted.run_id, call=call, slots=wanted.slots)
    reference = await site.backend.start(wanted)
    events = [event async for event in site.backend.follow(wanted.run_id, reference)]
    assert isinstance(events[-1], Produced)
    assert await site.storage.stat(key) is not None


async def test_a_real_refusal_of_a_parameter_is_the_callers_fault(site: Site) -> None:
    wanted, _ = site.order(checkpoint="not-installed.safetensors")
    reference = await site.backend.start(wanted)
    with pytest.raises(RunFailed) as caught:
        async for _ in site.backend.follow(wanted.run_id, reference):
            pass
    assert caught.value.failure.kind == "usage"
    assert caught.value.failure.code == "model_not_installed"
    assert not caught.value.executed
