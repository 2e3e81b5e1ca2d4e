"""A gateway over the double of RunPod, served on loopback in the test's own loop."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from gateway.backends.runpod import Runpod as Backend
from gateway.db import migrate
from gateway.main import create_app
from gateway.runtime import Runtime, build
from gateway.settings import Settings
from tests.support.asgi import serving
from tests.support.runpod_double import API_KEY, Runpod
from tests.support.runpod_jobs import Job
from tests.support.stack import KEY, free_port

BODY: dict[str, Any] = {
    "prompt": "a lighthouse",
    "variant": "checkpoint:tiny-sd15.ckpt",
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
}
PATIENCE_S = 240


def endpoint_env(double: Runpod) -> dict[str, Any]:
    """Settings of a gateway whose only backend is the double's endpoint."""
    return {
        "runpod_api_url": double.base_url,
        "runpod_api_key": API_KEY,
        "runpod_endpoint_id": double.endpoint_id,
        "backends": ("runpod",),
    }


@dataclass(frozen=True, kw_only=True)
class ServedGateway:
    """A gateway at work."""

    url: str
    runtime: Runtime
    double: Runpod
    http: httpx.AsyncClient

    @property
    def backend(self) -> Backend:
        (backend,) = self.runtime.built.serverless
        return backend

    async def submit(self, **changes: Any) -> str:
        answer = await self.http.post("/api/generate/async", json=BODY | changes)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    async def job(self, job_id: str, wait: int = 0) -> dict[str, Any]:
        answer = await self.http.get(f"/api/generate/{job_id}", params={"wait": wait})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def end_of(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self.job(job_id, wait=10)
                if job["status"] in {"completed", "failed", "cancelled"}:
                    return job

    async def at_runpod(self, job_id: str) -> Job:
        """The one job there that carries the run out."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = [
                    job
                    for job in self.double.endpoint.jobs.values()
                    if job.input["run_id"] == job_id
                ]
                if found:
                    (job,) = found
                    return job
                await asyncio.sleep(0.02)

    async def events(self, job_id: str) -> list[str]:
        """The log of an ended job, as lines."""
        answer = await self.http.get(f"/api/jobs/{job_id}/events")
        return answer.text.splitlines()


@asynccontextmanager
async def serverless_gateway(
    folder: Path, double: Runpod, **settings: Any
) -> AsyncGenerator[ServedGateway]:
    """A gateway with the double's endpoint; `settings` over those that lead there."""
    port = free_port()
    asked = {
        "workspace": folder,
        "backend_port": port,
        "gateway_api_key": SecretStr(KEY),
        **endpoint_env(double),
        **settings,
    }
    built = Settings.model_validate(asked)
    built.data.mkdir(parents=True, exist_ok=True)
    await asyncio.to_thread(migrate, built.database)
    runtime = build(built)
    app = create_app(built, runtime)
    async with runtime.running(), serving(app, port=port) as url:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_S
        ) as http:
            yield ServedGateway(url=url, runtime=runtime, double=double, http=http)
