"""Taking a batch: every item is checked, then all are written or none."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi.openapi.models import Example
from pydantic import AfterValidator, Field, JsonValue, ValidationError
from pydantic_core import PydanticKnownError

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.problems import MAX_ERRORS, from_pydantic
from gateway.errors import FieldError, GatewayError, InvalidParameters, NotFound
from gateway.job import NewJob, new_job_id
from gateway.jobs.batches import Batch, NewBatch
from gateway.media import WHOLE
from gateway.own_workflows.tool import is_own, workflow_name
from gateway.submission import Origin, Submission, request_hash
from gateway.tool import AnyTool, JobOptions

BATCHES_PATH = "/api/batches"
MAX_BATCH_BODY = 8_000_000
"""Most bytes of a batch's body."""
MOST_ITEMS = 10_000
"""What `BATCH_MAX_ITEMS` may be raised to."""
PRIORITY = -10
LEAST_DEADLINE_S = 24 * 3600
"""A batch without a deadline of its own may last this long: it waits behind everything else."""

_CHECKED_AT_ONCE = 20


def _some(items: tuple[dict[str, JsonValue], ...]) -> tuple[dict[str, JsonValue], ...]:
    # Pydantic's own check of the length counts only what is an object: it would call [1] empty.
    if not items:
        context = {"field_type": "Tuple", "min_length": 1, "actual_length": 0}
        raise PydanticKnownError("too_short", context)
    return items


class BatchBody(JobOptions):
    """Many jobs of one tool, taken whole or not at all."""

    tool: str = Field(
        min_length=1,
        max_length=100,
        description="A tool's `name` in `GET /api/tools`, or `workflows/<name>` for one of "
        "`GET /api/workflows`.",
    )
    items: Annotated[tuple[dict[str, JsonValue], ...], AfterValidator(_some)] = Field(
        max_length=MOST_ITEMS,
        json_schema_extra={"minItems": 1},
        description="The parameters of each job, as the tool's own route takes them; at most "
        "`BATCH_MAX_ITEMS`.",
    )
    priority: Annotated[int, Field(ge=-100, le=100), WHOLE] = Field(
        default=PRIORITY,
        description="As for a single job; by default below every call that does not say otherwise.",
    )


def examples(tools: Sequence[AnyTool]) -> dict[str, Example]:
    """A batch of each tool, out of the tool's own examples."""
    return {
        tool.name: Example(
            summary=tool.name,
            value={"tool": tool.name, "items": list(tool.examples.values())[:2]},
        )
        for tool in tools
    }


async def submitted(context: Context, body: BatchBody, key: str | None) -> Batch:
    """Check a batch and write it, or find the one its Idempotency-Key stands for.

    Raises InvalidParameters, NotReady, StorageFull, QuotaExceeded, QueueFull, DeadlineUnreachable
    and IdempotencyKeyReused.
    """
    sent = body.model_dump(mode="json", exclude_unset=True)
    origin = Origin(caller=CALLER, route=BATCHES_PATH, body=sent)
    hashed = await request_hash(origin) if key else None
    batches = context.jobs.batches
    # what the installation has may have changed since: the first answer still stands
    if key and (made := await batches.find(CALLER, key, hashed)) is not None:
        return made
    await context.disk.require()
    await context.quota.require(CALLER)
    tool = await _tool(context, body)
    submission = context.submission
    if body.webhook_url is not None:
        await submission.check_webhook(body.webhook_url)
    batch_id = new_job_id()
    jobs: list[NewJob] = []
    try:
        await _prepare(context, tool, body, origin, batch_id, jobs=jobs)
        await submission.limits.let_in(CALLER, len(jobs))
    except GatewayError:
        await _discard(submission, jobs)
        raise
    new = NewBatch(
        id=batch_id,
        caller=CALLER,
        tool=tool.name,
        jobs=tuple(jobs),
        webhook_url=body.webhook_url,
        idempotency_key=key,
        request_hash=hashed,
    )
    try:
        batch = await context.jobs.batches.submit(new)
    except GatewayError:
        await _discard(submission, jobs)
        raise
    if batch.id != batch_id:
        # another call with its key was quicker
        await _discard(submission, jobs)
        return batch
    for job in jobs:
        submission.etas.taken(job)
    return batch


async def _discard(submission: Submission, jobs: Iterable[NewJob]) -> None:
    """Remove the files of jobs that were not written."""
    for job in jobs:
        await submission.discard(job)


async def _tool(context: Context, body: BatchBody) -> AnyTool:
    most = context.settings.batch_max_items
    if len(body.items) > most:
        raise _refused("items", "too_long", f"must have at most {most} items")
    tools = {tool.name: tool for tool in context.catalogue.tools}
    if is_own(body.tool):
        try:
            return (await context.own.runnable(CALLER, workflow_name(body.tool))).tool
        except NotFound as error:
            raise _refused("tool", "unknown_tool", error.detail) from None
    if body.tool not in tools:
        raise _refused("tool", "unknown_tool", f"must be one of {', '.join(sorted(tools))}")
    return tools[body.tool]


async def _prepare(
    context: Context,
    tool: AnyTool,
    body: BatchBody,
    origin: Origin,
    batch_id: str,
    *,
    jobs: list[NewJob],
) -> None:
    """Make the jobs, added one by one: whoever gives up knows which have been made."""
    options = JobOptions(
        priority=body.priority,
        deadline_s=body.deadline_s or max(LEAST_DEADLINE_S, tool.deadline_s),
        backend=body.backend,
    )
    errors: list[FieldError] = []
    for n, item in enumerate(body.items):
        if n % _CHECKED_AT_ONCE == 0:
            # a long batch must not keep everybody else from being served
            await asyncio.sleep(0)
        try:
            params = tool.params.model_validate(item)
            job = await context.submission.prepare(tool, params, origin, options)
        except ValidationError as error:
            errors += from_pydantic(error, f"items.{n}").errors
        except InvalidParameters as error:
            if JobOptions.model_fields.keys() & {one.field for one in error.errors}:
                # said once for all of them, so it is no item's fault
                raise
            errors += [
                one.model_copy(update={"field": f"items.{n}.{one.field}"}) for one in error.errors
            ]
        else:
            jobs.append(replace(job, batch_id=batch_id, batch_n=n))
        if len(errors) >= MAX_ERRORS:
            break
    if errors:
        raise InvalidParameters(errors[:MAX_ERRORS])


def _refused(field: str, code: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field=field, code=code, message=message)])
