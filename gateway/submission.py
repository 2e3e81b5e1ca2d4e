"""From validated parameters to a job: variant, defaults, limits, LoRAs, readiness, seed."""

import hashlib
import json
import math
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Protocol

from pydantic import JsonValue

from gateway.catalogue import Catalogue, Variant
from gateway.errors import DeadlineUnreachable, FieldError, GatewayError, InvalidParameters
from gateway.inputs import Inputs
from gateway.job import Call, Job, NewJob, TrainedModel, new_job_id
from gateway.jobs.eta import Estimate, Etas
from gateway.jobs.limits import QueueLimits
from gateway.media import MAX_SEED, media_fields, plain, step_message
from gateway.security.policy import Policy, PolicyCall, enforce
from gateway.storage.disk import DiskSpace
from gateway.tool import AnyTool, JobOptions, LoraParams, ToolParams
from gpu_server.workflow import Limits, Workflow

MAX_LORAS = 4
MEASURED_TO_REFUSE = 3
"""Jobs that must have been measured before an estimate refuses one."""
NO_OPTIONS = JobOptions()

_EXTENSIONS = {
    "image": "png",
    "video": "mp4",
    "audio": "flac",
    "model": "glb",
    "text": "txt",
    "file": "bin",
}


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
class _Loras:
    model: TrainedModel | None = None
    used: tuple[dict[str, JsonValue], ...] = ()
    given: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])


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
        _check_files(variant, files)
        sent = _values(params)
        given = {**sent, **loras.given}
        await self._allow(tool, variant, origin, given, files)
        call = _call(tool, variant, sent, loras, timeout_s)
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
            raise _refused(named, "wrong_base_model", f"{message} {named}")
        return self.catalogue.find(tool, model.base_model, field=named if chosen else "model_id")

    async def _loras(self, params: ToolParams) -> _Loras:
        if not isinstance(params, LoraParams):
            return _Loras()
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
            raise _refused("loras", "too_long", message)
        given: dict[str, JsonValue] = {
            "model_id": params.model_id,
            "lora_scale": params.lora_scale,
            "loras": list[JsonValue](used),
        }
        return _Loras(model=model, used=tuple(used), given=given)

    async def _model(self, model_id: int | None) -> TrainedModel | None:
        if model_id is None:
            return None
        model = await self.models.get(model_id)
        if model is None:
            message = "no trained model has that id; GET /api/models lists them"
            raise _refused("model_id", "unknown_model", message)
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
        raise _refused("deadline_s", "too_short", message)
    raise DeadlineUnreachable(
        f"It would be done in about {needed} s, and its deadline is in {given} s: send it later, "
        "or with a longer deadline_s.",
        retry_after=max(1, math.ceil(eta.seconds - deadline_s)),
    )


def _values(params: ToolParams) -> dict[str, JsonValue]:
    """Collect what the caller set, without files: addresses are no values of a graph."""
    files = media_fields(type(params))
    return {name: value for name, value in params.bound().items() if name not in files}


def _call(
    tool: AnyTool,
    variant: Variant,
    sent: Mapping[str, JsonValue],
    loras: _Loras,
    timeout_s: float,
) -> Call:
    workflow = variant.workflow
    _check_sent(variant, sent)
    values: dict[str, JsonValue] = {**workflow.defaults, **sent}
    if variant.argument is not None:
        values[variant.argument.param] = variant.file
    if loras.used:
        if "loras" not in workflow.manifest.params:
            raise _refused("loras", "not_taken", f"{variant.name} loads no LoRAs: leave it out")
        values["loras"] = list[JsonValue](loras.used)
    for name, param in workflow.manifest.params.items():
        if param.seed and values.get(name) is None:
            values[name] = secrets.randbelow(MAX_SEED + 1)
    return Call(
        workflow=workflow.name,
        digest=workflow.digest,
        params=values,
        outputs=_slots(workflow, values),
        prefix=tool.prefix,
        models=_model_files(variant, loras),
        extensions={name: _EXTENSIONS[output.kind] for name, output in workflow.outputs.items()},
        timeout_s=timeout_s,
    )


def _check_sent(variant: Variant, sent: Mapping[str, JsonValue]) -> None:
    """Refuse what the variant does not take, or takes only within narrower bounds."""
    params, limits = variant.workflow.manifest.params, variant.workflow.limits
    choices = variant.workflow.choices
    errors: list[FieldError] = []
    for name, value in sent.items():
        if name not in params:
            errors.append(_not_taken(variant, name))
        elif name in limits and (found := _outside(limits[name], value)) is not None:
            code, message = found
            message = f"{message} (for {variant.name})"
            errors.append(FieldError(field=name, code=code, message=message))
        elif value not in choices.get(name, (value,)):
            message = f"must be one of {', '.join(map(str, choices[name]))} (for {variant.name})"
            errors.append(FieldError(field=name, code="literal_error", message=message))
    if errors:
        raise InvalidParameters(errors)


def _check_files(variant: Variant, files: Mapping[str, Sized]) -> None:
    """Refuse files the variant does not read, or not so many, and a call without one it needs."""
    params = variant.workflow.manifest.params
    read = {name: param for name, param in params.items() if param.upload is not None}
    errors = [_not_taken(variant, name) for name in files if name not in read]
    for name, most in variant.workflow.files.items():
        if len(files.get(name, ())) > most:
            message = f"at most {most} (for {variant.name})"
            errors.append(FieldError(field=name, code="too_long", message=message))
    for name, param in read.items():
        if param.required and name not in files:
            message = f"is required (for {variant.name})"
            errors.append(FieldError(field=name, code="missing", message=message))
    if errors:
        raise InvalidParameters(errors)


def _not_taken(variant: Variant, name: str) -> FieldError:
    message = f"{variant.name} has no such parameter: leave it out or take another variant"
    return FieldError(field=name, code="not_taken", message=message)


def _outside(limits: Limits, value: JsonValue) -> tuple[str, str] | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if limits.minimum is not None and value < limits.minimum:
        return "greater_than_equal", f"must be at least {plain(limits.minimum)}"
    if limits.maximum is not None and value > limits.maximum:
        return "less_than_equal", f"must be at most {plain(limits.maximum)}"
    if limits.multiple_of is not None and value % limits.multiple_of:
        return "multiple_of", step_message(value, limits.multiple_of)
    return None


def _slots(workflow: Workflow, values: Mapping[str, JsonValue]) -> tuple[str, ...]:
    names: list[str] = []
    for output, spec in workflow.outputs.items():
        most = values.get(spec.max) if isinstance(spec.max, str) else spec.max
        names += [f"{output}/{n}" for n in range(most if isinstance(most, int) else 1)]
    return tuple(names)


def _model_files(variant: Variant, loras: _Loras) -> tuple[str, ...]:
    files = [f"{m.directory}/{m.name}" for m in variant.workflow.models]
    if variant.argument is not None:
        files.append(f"{variant.argument.folder}/{variant.file}")
    return (*files, *(f"loras/{lora['name']}" for lora in loras.used))


def _refused(field_name: str, code: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field=field_name, code=code, message=message)])


def request_hash(origin: Origin) -> str:
    """Tell one request from another that comes with the same Idempotency-Key."""
    body = json.dumps(origin.body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{origin.route}\n{body}".encode()).hexdigest()
