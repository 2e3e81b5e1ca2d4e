"""From validated parameters to a job: variant, defaults, limits, LoRAs, readiness, seed."""

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from pydantic import JsonValue

from gateway.calls import Loras, call_of, check_files, refused, values_of
from gateway.catalogue import Catalogue, Variant
from gateway.errors import DeadlineUnreachable, GatewayError
from gateway.inputs import Inputs
from gateway.job import Job, NewJob, TrainedModel, new_job_id
from gateway.jobs.eta import Estimate, Etas
from gateway.jobs.limits import QueueLimits
from gateway.media import plain
from gateway.security.policy import Policy, PolicyCall, enforce
from gateway.storage.disk import DiskSpace
from gateway.tool import AnyTool, JobOptions, LoraParams, ToolParams

MAX_LORAS = 4
MEASURED_TO_REFUSE = 3
"""Jobs that must have been measured before an estimate refuses one."""
NO_OPTIONS = JobOptions()


class ModelRegistry(Protocol):
    """What submission asks of the registry of trained models."""

    async def get(self, number: int, /) -> TrainedModel | None:
        """Look up the model with that id."""
        ...


class JobTaker(Protocol):
    """What submission asks of the jobs."""

    async def find(self, caller: str, key: str, request_hash: str | None, /) -> Job | None:
        """Look up the job that key stands for; raises IdempotencyKeyReused."""
        ...

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Write the job; True when the idempotency key already had one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a call came from, for fairness and for its Idempotency-Key."""

    caller: str
    route: str
    body: Mapping[str, JsonValue]
    """What the caller sent, as validated, options included."""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Takes calls: everything that can be refused is refused here, before anything is queued."""

    catalogue: Catalogue
    models: ModelRegistry
    jobs: JobTaker
    limits: QueueLimits
    etas: Etas
    disk: DiskSpace
    inputs: Inputs
    policy: Policy
    check_webhook: Callable[[str], Awaitable[None]]
    """Raises InvalidParameters for an address webhooks never go to."""
    timeouts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Most seconds of an execution, by tool, where it is not the tool's own."""

    async def submit(
        self,
        tool: AnyTool,
        params: ToolParams,
        origin: Origin,
        options: JobOptions = NO_OPTIONS,
    ) -> tuple[Job, bool]:
        """Check the call and write its job; True when its Idempotency-Key already had one.

        Raises what `prepare` raises, StorageFull, QueueFull and IdempotencyKeyReused.
        """
        key, new = origin.idempotency_key, None
        try:
            await self.disk.require()
            new = await self.prepare(tool, params, origin, options)
            await self.limits.let_in(new.caller)
        except GatewayError:
            if new is not None:
                await self.discard(new)
            # What the installation has may have changed since: the first answer still stands.
            # Where nothing is refused, the write itself finds out: a read less for each call.
            if key is not None:
                made = await self.jobs.find(origin.caller, key, request_hash(origin))
                if made is not None:
                    return made, True
            raise
        try:
            job, known = await self.jobs.submit(new)
        except GatewayError:
            # it is known not to be written, as it is not when the database does not answer
            await self.discard(new)
            raise
        if known:
            await self.discard(new)
        else:
            self.etas.taken(new)
        return job, known

    async def discard(self, new: NewJob) -> None:
        """Remove what `prepare` has stored for a job that is not written after all."""
        await self.inputs.discard(new.call.inputs)

    async def prepare(
        self,
        tool: AnyTool,
        params: ToolParams,
        origin: Origin,
        options: JobOptions = NO_OPTIONS,
    ) -> NewJob:
        """Do everything but the write; files inside the call are in storage afterwards.

        Raises InvalidParameters, UnknownVariant, ModelNotInstalled, PolicyViolation, NotReady,
        DeadlineUnreachable, StorageFull and StorageError.
        """
        if options.webhook_url is not None:
            await self.check_webhook(options.webhook_url)
        loras = await self._loras(params)
        variant = self._variant(tool, params, loras.model)
        timeout_s = self.timeouts.get(tool.name, tool.timeout_s)
        files = await self.inputs.check(params, origin.caller)
        check_files(variant, files)
        sent = values_of(params)
        given = {**sent, **loras.given}
        await self._allow(tool, variant, origin, given, files)
        call = call_of(tool, variant, sent, loras, timeout_s)
        self.catalogue.require_ready(tool, variant)
        size = tool.size(call.params)
        work = (tool.name, variant.name)
        eta = await self.etas.expect(work, size, caller=origin.caller, priority=options.priority)
        deadline_s = options.deadline_s or tool.deadline_s
        if eta is not None:
            _require_in_time(eta, deadline_s)
        job_id = new_job_id()
        # last of all: what is refused stores nothing
        kept = await self.inputs.keep(files, job_id)
        return NewJob(
            id=job_id,
            tool=tool.name,
            variant=variant.name,
            caller=origin.caller,
            params=given,
            call=replace(call, inputs=kept) if kept else call,
            deadline_s=deadline_s,
            priority=options.priority,
            size=size,
            eta_seconds=None if eta is None else round(eta.seconds, 1),
            webhook_url=options.webhook_url,
            idempotency_key=origin.idempotency_key,
            request_hash=request_hash(origin) if origin.idempotency_key else None,
        )

    async def _allow(
        self,
        tool: AnyTool,
        variant: Variant,
        origin: Origin,
        given: Mapping[str, JsonValue],
        files: Collection[str],
    ) -> None:
        """Ask the policy. Raises PolicyViolation."""
        asked = PolicyCall(
            tool=tool.name,
            variant=variant.name,
            caller=origin.caller,
            params=given,
            files=frozenset(files),
        )
        await enforce(self.policy, asked)

    def _variant(self, tool: AnyTool, params: ToolParams, model: TrainedModel | None) -> Variant:
        chosen, named = params.chosen_variant(), params.variant_field()
        if model is None:
            return self.catalogue.find(tool, chosen or tool.default_variant, field=named)
        if chosen is not None and chosen != model.base_model:
            message = f"model {model.id} was trained on {model.base_model}: use that or leave out"
            raise refused(named, "wrong_base_model", f"{message} {named}")
        return self.catalogue.find(tool, model.base_model, field=named if chosen else "model_id")

    async def _loras(self, params: ToolParams) -> Loras:
        if not isinstance(params, LoraParams):
            return Loras()
        model = await self._model(params.model_id)
        used: list[dict[str, JsonValue]] = []
        if model is not None:
            self.catalogue.require_installed("model_id", "loras", model.lora)
            used.append({"name": model.lora, "scale": params.lora_scale})
        for n, lora in enumerate(params.loras):
            self.catalogue.require_installed(f"loras.{n}.name", "loras", lora.name)
            scale = params.lora_scale if lora.scale is None else lora.scale
            used.append({"name": lora.name, "scale": scale})
        if len(used) > MAX_LORAS:
            message = f"at most {MAX_LORAS}, the one of model_id included"
            raise refused("loras", "too_long", message)
        given: dict[str, JsonValue] = {
            "model_id": params.model_id,
            "lora_scale": params.lora_scale,
            "loras": list[JsonValue](used),
        }
        return Loras(model=model, used=tuple(used), given=given)

    async def _model(self, model_id: int | None) -> TrainedModel | None:
        if model_id is None:
            return None
        model = await self.models.get(model_id)
        if model is None:
            message = "no trained model has that id; GET /api/models lists them"
            raise refused("model_id", "unknown_model", message)
        return model


def _require_in_time(eta: Estimate, deadline_s: float) -> None:
    """Refuse what would only fail later; one slow job by itself proves nothing."""
    if eta.measured < MEASURED_TO_REFUSE or eta.seconds <= deadline_s:
        return
    needed, given = math.ceil(eta.seconds), plain(round(deadline_s, 1))
    if eta.execution_s > deadline_s:
        message = (
            f"this alone takes about {math.ceil(eta.execution_s)} s once it runs, and {given} s "
            "are given: ask for less or give it more time"
        )
        raise refused("deadline_s", "too_short", message)
    raise DeadlineUnreachable(
        f"It would be done in about {needed} s, and its deadline is in {given} s: send it later, "
        "or with a longer deadline_s.",
        retry_after=max(1, math.ceil(eta.seconds - deadline_s)),
    )


def request_hash(origin: Origin) -> str:
    """Tell one request from another that comes with the same Idempotency-Key."""
    body = json.dumps(origin.body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{origin.route}\n{body}".encode()).hexdigest()
