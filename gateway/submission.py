"""From validated parameters to a job: variant, defaults, limits, LoRAs, readiness, seed."""

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from pydantic import JsonValue

from gateway.calls import Loras, check_files, check_sizes, refused, values_of
from gateway.catalogue import Catalogue, Variant
from gateway.chains import Redrawing, stages_of
from gateway.choices import Order
from gateway.errors import DeadlineUnreachable, GatewayError
from gateway.inputs import Checked, Inputs, sizes_of
from gateway.job import Call, Job, NewJob, Source, TrainedModel, new_job_id
from gateway.jobs.eta import Estimate, Etas
from gateway.jobs.limits import QueueLimits
from gateway.media import plain
from gateway.own_workflows.texts import seen_by_policy
from gateway.quota import Quota
from gateway.security.policy import Policy, PolicyCall, enforce
from gateway.storage.disk import DiskSpace
from gateway.styles import STYLE_IMAGE, StyleBook, styled
from gateway.tool import AnyTool, JobOptions, LoraParams, StyledParams, ToolParams

MAX_LORAS = 4
MEASURED_TO_REFUSE = 3
"""Jobs that must have been measured before an estimate refuses one."""
NO_OPTIONS = JobOptions()
_LONG = 10_000
"""Characters of a text that is hashed by itself; no prompt has as many."""


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
class _Style:
    """What a style makes of a call."""

    given: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What is shown again: the prompt as it was."""
    sent: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What the model is told."""
    files: Mapping[str, tuple[Source, ...]] = field(default_factory=dict[str, tuple[Source, ...]])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A call as it would be carried out, its files not stored yet."""

    call: Call
    given: dict[str, JsonValue]
    """What is shown again."""
    files: Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Takes calls: everything that can be refused is refused here, before anything is queued."""

    catalogue: Catalogue
    models: ModelRegistry
    styles: StyleBook
    jobs: JobTaker
    limits: QueueLimits
    etas: Etas
    disk: DiskSpace
    quota: Quota
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

        Raises what `prepare` raises, StorageFull, QuotaExceeded, QueueFull and
        IdempotencyKeyReused.
        """
        key, new = origin.idempotency_key, None
        try:
            await self.disk.require()
            await self.quota.require(origin.caller)
            new = await self.prepare(tool, params, origin, options)
            await self.limits.let_in(new.caller)
        except GatewayError:
            if new is not None:
                await self.discard(new)
            # What the installation has may have changed since: the first answer still stands.
            # Where nothing is refused, the write itself finds out: a read less for each call.
            if key is not None:
                made = await self.jobs.find(origin.caller, key, await request_hash(origin))
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

        Raises InvalidParameters, UnknownVariant, UnknownBackend, ModelNotInstalled,
        PolicyViolation, NotReady, DeadlineUnreachable, StorageFull and StorageError.
        """
        if options.webhook_url is not None:
            await self.check_webhook(options.webhook_url)
        loras = await self._loras(params)
        variant = self._variant(tool, params, loras.model)
        places = None if options.backend is None else (options.backend,)
        asked = await self._asked(tool, variant, params, loras, origin, places=places)
        size = tool.size(asked.call.params)
        eta: Estimate | None = None
        # the queue elsewhere says nothing of a place the call chose itself
        if places is None or self.catalogue.goes_as_usual(tool.name, places):
            work, caller = (tool.name, variant.name), origin.caller
            eta = await self.etas.expect(work, size, caller=caller, priority=options.priority)
        deadline_s = options.deadline_s or tool.deadline_s
        if eta is not None:
            _require_in_time(eta, deadline_s)
        job_id = new_job_id()
        # last of all: what is refused stores nothing
        kept = await self.inputs.keep(asked.files, job_id)
        return NewJob(
            id=job_id,
            tool=tool.name,
            variant=variant.name,
            caller=origin.caller,
            params=asked.given,
            call=replace(asked.call, inputs=kept) if kept else asked.call,
            deadline_s=deadline_s,
            priority=options.priority,
            places=places,
            size=size,
            eta_seconds=None if eta is None else round(eta.seconds, 1),
            webhook_url=options.webhook_url,
            idempotency_key=origin.idempotency_key,
            request_hash=await request_hash(origin) if origin.idempotency_key else None,
        )

    async def _asked(
        self,
        tool: AnyTool,
        variant: Variant,
        params: ToolParams,
        loras: Loras,
        origin: Origin,
        *,
        places: Order | None,
    ) -> _Asked:
        """Make what a call asks for, of values and files that may be used; nothing is stored."""
        timeout_s = self._timeout_s(tool)
        files = await self.inputs.check(params, origin.caller)
        check_files(variant, files)
        sent = values_of(params)
        redrawing = self._redrawing(tool, params, places)
        # the first stage reads the prompt, and the files
        first = redrawing.variant if redrawing else variant
        style = await self._style(params, first, sent)
        given = {**sent, **loras.given, **style.given}
        files, sent = {**files, **style.files}, {**sent, **style.sent}
        await self._allow(tool, variant, origin, {**given, **style.sent}, files)
        as_asked = params.file_options()
        call = stages_of(tool, variant, sent, loras, timeout_s, files=as_asked, redrawing=redrawing)
        if places is not None:
            self.catalogue.require_backend(places[0], call)
        if redrawing is not None:
            files = redrawing.files(files)
            self.catalogue.require_ready(redrawing.how.tool, redrawing.variant, places)
        check_sizes(first, call, sizes_of(files))
        self.catalogue.require_ready(tool, variant, places)
        return _Asked(call=call, given=given, files=files)

    def _redrawing(
        self, tool: AnyTool, params: ToolParams, places: Order | None
    ) -> Redrawing | None:
        asked = params.model_fields_set & {"prompt", "styleId"}
        if tool.redraw is None or all(getattr(params, name) is None for name in asked):
            return None
        other = tool.redraw.tool
        return Redrawing(
            how=tool.redraw,
            variant=self.catalogue.first_ready(other, places),
            timeout_s=self._timeout_s(other),
        )

    def _timeout_s(self, tool: AnyTool) -> float:
        return self.timeouts.get(tool.name, tool.timeout_s)

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
            params=given if tool.workflow is None else seen_by_policy(tool.workflow, given),
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

    async def _style(
        self, params: ToolParams, variant: Variant, sent: Mapping[str, JsonValue]
    ) -> _Style:
        """Put the call's prompt into its style. Raises InvalidParameters."""
        if not isinstance(params, StyledParams) or params.styleId is None:
            return _Style()
        taken = variant.workflow.manifest.params
        if "prompt" not in taken:
            message = f"{variant.name} takes no prompt, so no style: leave it out"
            raise refused("styleId", "not_taken", message)
        prompt = str(sent.get("prompt") or variant.workflow.defaults.get("prompt") or "")
        found = await styled(self.styles, params.styleId, prompt)
        files: dict[str, tuple[Source, ...]] = {}
        if found.reference is not None and STYLE_IMAGE in taken:
            files[STYLE_IMAGE] = (found.reference,)
        return _Style(
            given={"styleId": params.styleId, "prompt": prompt},
            sent={"prompt": found.text},
            files=files,
        )

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


async def request_hash(origin: Origin) -> str:
    """Tell one request from another that comes with the same Idempotency-Key.

    In a thread, which lets others run while it hashes: a call may hold many megabytes of files.
    """
    return await asyncio.to_thread(_hashed, origin)


def _hashed(origin: Origin) -> str:
    short = _shortened(dict(origin.body))
    body = json.dumps(short, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{origin.route}\n{body}".encode()).hexdigest()


def _shortened(value: JsonValue) -> JsonValue:
    """Put a hash in the place of each long text: to write it as JSON would hold up all threads."""
    match value:
        case dict():
            return {name: _shortened(each) for name, each in value.items()}
        case list():
            return [_shortened(each) for each in value]
        case str() if len(value) > _LONG:
            digest = hashlib.sha256(value.encode("utf-8", "surrogatepass"))
            return f"\0{digest.hexdigest()}"
        case _:
            return value
