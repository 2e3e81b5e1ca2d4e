"""From validated parameters to a job: variant, defaults, limits, LoRAs, readiness, seed."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from gateway.catalogue import Catalogue, Variant
from gateway.errors import FieldError, InvalidParameters
from gateway.job import Call, Job, NewJob, TrainedModel, new_job_id
from gateway.media import MAX_SEED, plain, step_message
from gateway.tool import AnyTool, LoraParams, ToolParams
from gpu_server.workflow import Limits, Workflow

MAX_LORAS = 4

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
    """What the caller sent, as validated."""
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

    async def submit(self, tool: AnyTool, params: ToolParams, origin: Origin) -> tuple[Job, bool]:
        """Check the call and write its job.

        Raises InvalidParameters, UnknownVariant, ModelNotInstalled, NotReady and
        IdempotencyKeyReused.
        """
        key = origin.idempotency_key
        request_hash = _request_hash(origin) if key else None
        # What the installation has may have changed since: the first answer still stands.
        if key and (made := await self.jobs.find(origin.caller, key, request_hash)) is not None:
            return made, True
        loras = await self._loras(params)
        variant = self._variant(tool, params, loras.model)
        call = _call(tool, variant, params, loras)
        self.catalogue.require_ready(tool, variant)
        new = NewJob(
            id=new_job_id(),
            tool=tool.name,
            variant=variant.name,
            caller=origin.caller,
            params={**params.bound(), **loras.given},
            call=call,
            deadline_s=tool.deadline_s,
            idempotency_key=key,
            request_hash=request_hash,
        )
        return await self.jobs.submit(new)

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


def _call(tool: AnyTool, variant: Variant, params: ToolParams, loras: _Loras) -> Call:
    workflow = variant.workflow
    sent = params.bound()
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
        timeout_s=tool.timeout_s,
    )


def _check_sent(variant: Variant, sent: Mapping[str, JsonValue]) -> None:
    """Refuse what the variant does not take, or takes only within narrower bounds."""
    params, limits = variant.workflow.manifest.params, variant.workflow.limits
    errors: list[FieldError] = []
    for name, value in sent.items():
        if name not in params:
            message = f"{variant.name} has no such parameter: leave it out or take another variant"
            errors.append(FieldError(field=name, code="not_taken", message=message))
        elif name in limits and (found := _outside(limits[name], value)) is not None:
            code, message = found
            message = f"{message} (for {variant.name})"
            errors.append(FieldError(field=name, code=code, message=message))
    if errors:
        raise InvalidParameters(errors)


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


def _request_hash(origin: Origin) -> str:
    body = json.dumps(origin.body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{origin.route}\n{body}".encode()).hexdigest()
