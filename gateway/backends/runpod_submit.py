"""Submitting a run to RunPod so that it is paid for once, whatever becomes of the answer."""

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

from pydantic import JsonValue

from gateway.backends.base import BackendFull, BackendUnreachable, Order, RunFailed
from gateway.backends.runpod_api import LARGEST_REQUEST, RunpodApi
from gateway.backends.runpod_follow import (
    Receipts,
    Rows,
    execution_limit,
    noted,
    some_unaccounted,
)
from gateway.clock import Clock
from gateway.job import Run
from gpu_server.protocol import (
    VERSION,
    Failure,
    InputFile,
    Receipt,
    RunRequest,
    Slot,
    WorkflowRef,
)
from gpu_server.workflow import Workflow

SETTLING_S = 10.0
"""How long a submit that was not answered may take to show."""

_File = TypeVar("_File", InputFile, Slot)
_LEAST_TTL_S, _MOST_S = 10.0, 7 * 86_400.0
_LEAST_EXECUTION_S = 5.0
_AFTER_DEADLINE_S = 30.0
"""The job ends by our deadline, and only where nobody ends it by RunPod's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """What a worker is told beside its order."""

    receipt: Callable[[str, timedelta], Receipt]
    """Where a run's receipt lies, for so long."""
    reach: Callable[[str], str]
    """An address of ours as a worker reaches it."""
    webhook: Callable[[str], str | None]
    """Where RunPod tells that a run's job is over; None: it can't."""


class Submits:
    """The submits of one endpoint.

    A run whose submit went unanswered is looked for first: in its receipt, which names the job
    that took it, then among the endpoint's counts. Only when no job there is unaccounted for is it
    submitted again.
    """

    def __init__(
        self,
        api: RunpodApi,
        *,
        receipts: Receipts,
        rows: Rows,
        addresses: Addresses,
        workflows: Mapping[str, Workflow],
        clock: Clock,
        previews: bool = True,
        settling_s: float = SETTLING_S,
    ) -> None:
        self._api = api
        self._receipts = receipts
        self._rows = rows
        self._addresses = addresses
        self._workflows = workflows
        self._clock = clock
        self._previews = previews
        self._settling_s = settling_s
        self._doubtful: dict[str, float] = {}
        self._certain: set[str] = set()

    async def start(self, order: Order) -> str:
        """The job that carries the run out. Raises BackendUnreachable, BackendFull, RunFailed."""
        if not order.again and order.run_id not in self._doubtful:
            job = await self._submit(order)
            self._certain.add(order.run_id)
            return job
        note = await noted(self._receipts, order.run_id)
        if note.job is not None:
            self._doubtful.pop(order.run_id, None)
            return note.job
        now = asyncio.get_running_loop().time()
        if now - self._doubtful.setdefault(order.run_id, now) < self._settling_s:
            raise BackendUnreachable(f"{self._api.name}: an earlier submit may yet show")
        if await some_unaccounted(self._api, self._rows):
            raise BackendUnreachable(f"{self._api.name}: an earlier submit may have been taken")
        return await self._submit(order)

    def only_once(self, run_id: str) -> bool:
        """Whether no other job can have been made of a run; it is not asked for again."""
        certain = run_id in self._certain
        self.forget(run_id)
        return certain

    def forget(self, run_id: str) -> None:
        """The run is over."""
        self._certain.discard(run_id)
        self._doubtful.pop(run_id, None)

    async def _submit(self, order: Order) -> str:
        run = await self._rows.run(order.run_id)
        content = self._content(order, run)
        if len(content) > LARGEST_REQUEST:
            raise _refused(
                "request_too_large", "The call is larger than a serverless endpoint takes."
            )
        self._doubtful[order.run_id] = asyncio.get_running_loop().time()
        try:
            job = await self._api.run(content)
        except (BackendFull, RunFailed):
            self._doubtful.pop(order.run_id)
            raise
        self._doubtful.pop(order.run_id)
        return job

    def _content(self, order: Order, run: Run | None) -> bytes:
        left_s = _MOST_S if run is None else self._left_s(run)
        execution_s = _MOST_S if run is None else execution_limit(run)
        lifetime = timedelta(seconds=left_s + _AFTER_DEADLINE_S)
        asked: dict[str, JsonValue] = {
            "input": {**self._request(order, lifetime), "run_id": order.run_id},
            "policy": {
                "executionTimeout": _milliseconds(execution_s, _LEAST_EXECUTION_S),
                # by then a job nobody knows of is gone
                "ttl": _milliseconds(left_s + _AFTER_DEADLINE_S, _LEAST_TTL_S),
            },
        }
        webhook = self._addresses.webhook(order.run_id)
        if webhook is not None:
            asked["webhook"] = webhook
        return json.dumps(asked, separators=(",", ":"), ensure_ascii=False).encode()

    def _left_s(self, run: Run) -> float:
        return (run.deadline_at - self._clock.now()).total_seconds()

    def _request(self, order: Order, lifetime: timedelta) -> dict[str, JsonValue]:
        call, reach = order.call, self._addresses.reach
        workflow = self._workflows.get(call.workflow)
        if workflow is None or workflow.digest != call.digest:
            raise _refused(
                "workflow_changed",
                "The workflow changed after this job was accepted; submit it again.",
            )
        receipt = self._addresses.receipt(order.run_id, lifetime)
        request = RunRequest(
            version=VERSION,
            workflow=WorkflowRef(name=call.workflow, digest=call.digest),
            graph=cast("dict[str, JsonValue]", workflow.graph),
            manifest=workflow.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True),
            params=call.params,
            inputs={param: [_at(reach, f) for f in files] for param, files in order.inputs.items()},
            outputs=[_at(reach, slot) for slot in order.slots],
            timeout_s=call.timeout_s,
            details=True,
            receipt=Receipt(get=reach(receipt.get), put=reach(receipt.put)),
        )
        if self._previews:
            request = request.model_copy(update={"previews": True})
        return request.model_dump(mode="json", exclude_unset=True)


def _at(reach: Callable[[str], str], file: _File) -> _File:
    return file.model_copy(update={"url": reach(file.url)})


def _milliseconds(seconds: float, least_s: float) -> int:
    return math.floor(1000 * min(max(seconds, least_s), _MOST_S))


def _refused(code: str, message: str) -> RunFailed:
    return RunFailed(Failure(kind="fatal", code=code, message=message), executed=False)
