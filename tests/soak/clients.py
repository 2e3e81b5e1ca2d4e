"""Callers: each asks any gateway, and asks again under the same key when it does not answer."""

import asyncio
import hashlib
import json
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.soak.plan import BATCH, Work
from tests.support.stack import KEY

TERMINAL = {"completed", "failed", "cancelled"}
ANSWER_S = 15
PATIENCE_S = 180
BATCH_PATIENCE_S = 1200
"""A batch waits behind everything else."""
AT_ONCE = 24
Json = dict[str, Any]


@dataclass(kw_only=True)
class Told:
    """What one caller was told of its job."""

    work: Work
    key: str
    job_id: str = ""
    ends: list[str] = field(default_factory=list[str])
    """Every end it was told of; they must all be the same."""
    cancel_answer: str = ""
    """State in the answer to its cancel."""
    numbers: list[int] = field(default_factory=list[int])
    """Of the log entries it followed."""


class Clients:
    """Carries out the works of a plan, a few at a time."""

    def __init__(self, gateways: Sequence[str], hooks: str, works: Sequence[Work]) -> None:
        self._gateways = gateways
        self._hooks = hooks
        self._works = iter(works)
        self._any = random.Random()
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=httpx.Timeout(ANSWER_S, connect=3),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
            trust_env=False,
        )
        self.told: list[Told] = []
        self.wrong: list[str] = []
        self.batch_id = ""
        self.tried_again = 0

    def ended(self) -> int:
        """How many callers have seen their job end."""
        return sum(1 for each in self.told if each.ends)

    async def run(self) -> None:
        """Return when every job has ended."""
        batch = [next(self._works) for _ in range(BATCH)]
        async with self._http, asyncio.TaskGroup() as group:
            group.create_task(self._submit_batch(batch))
            for _ in range(AT_ONCE):
                group.create_task(self._client())

    async def _client(self) -> None:
        for work in self._works:
            told = Told(work=work, key=str(uuid.uuid4()))
            self.told.append(told)
            await self._carry_out(told)

    async def _carry_out(self, told: Told) -> None:
        match told.work.way:
            case "sync":
                await self._sync(told)
            case "watch":
                await self._submit(told)
                await self._watch(told)
            case "cancel":
                await self._submit(told)
                await asyncio.sleep(told.work.cancel_after_s)
                answer = await self._ask("POST", f"/api/jobs/{told.job_id}/cancel")
                told.cancel_answer = answer.json()["status"]
            case _:
                await self._submit(told)
        await self._until_over(told)
        if told.work.replayed:
            await self._replay(told)

    def _body(self, work: Work) -> Json:
        return work.body | ({"webhook_url": self._hooks} if work.webhook else {})

    async def _submit(self, told: Told) -> None:
        answer = await self._ask(
            "POST", "/api/generate/async", self._body(told.work), {"Idempotency-Key": told.key}
        )
        assert answer.status_code == 202, answer.text
        self._is(told, answer.json()["job_id"])

    async def _sync(self, told: Told) -> None:
        headers = {"Idempotency-Key": told.key, "Prefer": "wait=5"}
        answer = await self._ask("POST", "/api/generate", self._body(told.work), headers)
        said = answer.json()
        self._is(told, said["job_id"])
        match answer.status_code:
            case 200:
                told.ends.append("completed")
            case 202:
                if said["status"] in TERMINAL:
                    self.wrong.append(f"{told.job_id}: 202 with {said['status']}")
            case _:
                told.ends.append("failed")

    async def _replay(self, told: Told) -> None:
        headers = {"Idempotency-Key": told.key}
        body = self._body(told.work)
        again = await self._ask("POST", "/api/generate/async", body, headers)
        if again.status_code != 202 or again.json()["job_id"] != told.job_id:
            self.wrong.append(f"{told.job_id}: its key gave {again.status_code} {again.text}")
        other = body | {"prompt": "something else"}
        refused = await self._ask("POST", "/api/generate/async", other, headers)
        if refused.status_code != 422:
            self.wrong.append(f"{told.job_id}: its key with another body: {refused.status_code}")

    def _is(self, told: Told, job_id: str) -> None:
        if told.job_id not in {"", job_id}:
            self.wrong.append(f"one key made two jobs: {told.job_id}, {job_id}")
        told.job_id = job_id

    async def _until_over(self, told: Told) -> None:
        patience_s = BATCH_PATIENCE_S if told.work.way == "batch" else PATIENCE_S
        deadline = time.monotonic() + patience_s
        while True:
            path = f"/api/generate/{told.job_id}?wait=8"
            job = (await self._ask("GET", path)).json()
            if job["status"] in TERMINAL:
                told.ends.append(job["status"])
                await self._look_at_files(told, job)
                return
            if time.monotonic() > deadline:
                self.wrong.append(f"{told.job_id} hangs: {job}")
                return

    async def _look_at_files(self, told: Told, job: Json) -> None:
        """Fetch what it made, from any gateway."""
        if job["status"] != "completed":
            return
        if job["result"]["engine"] != "simulator":
            self.wrong.append(f"{told.job_id}: engine {job['result']['engine']}")
        for file in job["result"]["files"]:
            answer = await self._ask("GET", file["url"])
            digest = hashlib.sha256(answer.content).hexdigest()
            if answer.status_code != 200 or digest != file["sha256"]:
                self.wrong.append(f"{told.job_id}: {file['url']}: {answer.status_code} {digest}")

    async def _watch(self, told: Told) -> None:
        """Follow its events to the last, from another gateway after each break."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            last = told.numbers[-1] if told.numbers else 0
            url = f"{self._any.choice(self._gateways)}/api/jobs/{told.job_id}/events"
            try:
                async with self._http.stream(
                    "GET", url, headers={"Last-Event-ID": str(last)}
                ) as answer:
                    if answer.status_code == 200 and await _read(answer, told):
                        return
            except httpx.TransportError:
                self.tried_again += 1
            await asyncio.sleep(0.1)
        self.wrong.append(f"{told.job_id}: its events have no end")

    async def _submit_batch(self, works: Sequence[Work]) -> None:
        items = [work.body for work in works]
        body = {"tool": "generate", "items": items, "webhook_url": self._hooks}
        key = {"Idempotency-Key": str(uuid.uuid4())}
        answer = await self._ask("POST", "/api/batches", body, key)
        assert answer.status_code == 202, answer.text
        self.batch_id = answer.json()["batch_id"]
        batch = (await self._ask("GET", f"/api/batches/{self.batch_id}")).json()
        for item, work in zip(batch["items"], works, strict=True):
            self.told.append(Told(work=work, key="", job_id=item["job_id"]))
        for told in [each for each in self.told if each.work.way == "batch"]:
            await self._until_over(told)

    async def _ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Ask gateways until one answers."""
        deadline = time.monotonic() + PATIENCE_S
        why = ""
        while time.monotonic() < deadline:
            url = self._any.choice(self._gateways) + path
            try:
                answer = await self._http.request(method, url, json=body, headers=headers)
            except httpx.TransportError as error:
                why = repr(error)
            else:
                if answer.status_code == 500:
                    self.wrong.append(f"500 from {method} {path}: {answer.text}")
                elif not _not_now(answer):
                    return answer
                why = answer.text
            self.tried_again += 1
            await asyncio.sleep(self._any.uniform(0.1, 0.5))
        raise AssertionError(f"{method} {path}: no gateway answers: {why}")


def _not_now(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and answer.json()["code"] == "unavailable"


async def _read(answer: httpx.Response, told: Told) -> bool:
    """Read events; True when the last one of the job was among them."""
    event = number = ""
    async for line in answer.aiter_lines():
        field_name, _, value = line.partition(": ")
        if field_name == "event":
            event = value
        elif field_name == "id":
            number = value
        elif field_name == "data":
            json.loads(value)
        elif not line and event:
            if event != "progress":
                told.numbers.append(int(number))
            if event in TERMINAL:
                told.ends.append(event)
                return True
            event = ""
    return False
