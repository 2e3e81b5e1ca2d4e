"""The routes of each tool, derived from its declaration."""

import inspect
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Response
from fastapi.openapi.models import Example

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.lookup import JobId, job_of, wait_of, waited
from gateway.api.prefer import IdempotencyKey, PreferHeader, preference
from gateway.api.problems import SUBMIT_ERRORS, documented
from gateway.api.views import Submitted, Views, as_json, failure, job_view_of
from gateway.errors import (
    InvalidParameters,
    JobCancelled,
    JobFailed,
    NotFound,
    Unauthorized,
)
from gateway.job import Job
from gateway.own_workflows.making import TOOL
from gateway.submission import Origin
from gateway.tool import AnyTool, ToolParams, body_of, options_in


class _ParamsBody:
    """A dependency whose body is the tool's own parameters and the job's options.

    The route is typed with the base class; FastAPI reads the concrete one from the signature.
    """

    def __init__(self, tool: AnyTool) -> None:
        examples = {name: Example(summary=name, value=v) for name, v in tool.examples.items()}
        body = Annotated[body_of(tool), Body(openapi_examples=examples)]
        parameter = inspect.Parameter(
            "params", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=body
        )
        self.__signature__ = inspect.Signature([parameter])

    # async, or FastAPI would send each call through a thread
    async def __call__(self, params: ToolParams) -> ToolParams:
        return params


def tool_router(tool: AnyTool, context: Context, views: Views) -> APIRouter:
    """Make the sync, async and status routes of one tool."""
    router = APIRouter(tags=[tool.name if tool.workflow is None else TOOL])
    _add_run(router, tool, context, views)
    _add_run_async(router, tool, context)
    _add_status(router, tool, context, views)
    return router


def _add_run(router: APIRouter, tool: AnyTool, context: Context, views: Views) -> None:
    body = _ParamsBody(tool)

    async def run(
        params: Annotated[ToolParams, Depends(body)],
        prefer: PreferHeader = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        return await run_and_wait(context, views, tool, params, prefer=prefer, key=idempotency_key)

    router.add_api_route(
        tool.path,
        run,
        methods=["POST"],
        name=_operation(tool),
        summary=tool.summary,
        description=tool.description,
        response_model=None,
        responses={
            200: {"model": tool.result, "description": "The result."},
            202: {
                "model": job_view_of(tool),
                "description": "Not done yet: the job; `Location` is its status route.",
            },
            **documented(*SUBMIT_ERRORS, JobCancelled, JobFailed),
            504: {**documented(JobFailed)[502], "description": "`deadline_exceeded`"},
        },
    )


def _add_run_async(router: APIRouter, tool: AnyTool, context: Context) -> None:
    body = _ParamsBody(tool)

    async def run_async(
        params: Annotated[ToolParams, Depends(body)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        return await take(context, tool, params, idempotency_key)

    router.add_api_route(
        f"{tool.path}/async",
        run_async,
        methods=["POST"],
        name=f"{_operation(tool)}_async",
        summary=f"{tool.summary}, without waiting",
        description=f"Takes the job and answers with its id at once. Parameters: `{tool.path}`.",
        status_code=202,
        response_model=None,
        responses={
            202: {"model": Submitted, "description": "Taken; `Location` is its status route."},
            **documented(*SUBMIT_ERRORS),
        },
    )


def _add_status(router: APIRouter, tool: AnyTool, context: Context, views: Views) -> None:
    wait_query = wait_of(context.settings)

    async def status(job_id: JobId, wait: Annotated[float, wait_query] = 0) -> Response:
        job = await waited(context, await job_of(context, job_id, tool.name), wait)
        return as_json(views.job(job, await context.submission.etas.left(job)))

    router.add_api_route(
        f"{tool.path}/{{job_id}}",
        status,
        methods=["GET"],
        name=f"{_operation(tool)}_status",
        summary=f"{tool.summary}: state and result",
        description="The job as it is; with `wait`, as it is when it ends or time is up.",
        response_model=None,
        responses={
            200: {"model": job_view_of(tool), "description": "The job."},
            **documented(Unauthorized, NotFound, InvalidParameters),
        },
    )


async def run_and_wait(
    context: Context,
    views: Views,
    tool: AnyTool,
    params: ToolParams,
    *,
    prefer: str | None,
    key: str | None,
) -> Response:
    """Take a call, and answer with its result, or with the job where that takes longer."""
    settings = context.settings
    wanted = preference(prefer, default=settings.default_wait, longest=settings.request_timeout)
    taken = await _submit(context, tool, params, key)
    job = await waited(context, taken, wanted.wait)
    headers = {"Preference-Applied": wanted.applied} if wanted.applied else {}
    if (error := failure(job)) is not None:
        raise error
    result = views.result(job)
    if result is not None:
        return as_json(result, headers=headers)
    view = views.job(job, await context.submission.etas.left(job))
    return as_json(view, 202, headers | _location(tool, job))


async def take(context: Context, tool: AnyTool, params: ToolParams, key: str | None) -> Response:
    """Take a call, and answer with the id of its job."""
    job = await _submit(context, tool, params, key)
    eta = await context.submission.etas.left(job)
    submitted = Submitted(job_id=job.id, status=job.status, eta_seconds=eta)
    return as_json(submitted, 202, _location(tool, job))


async def _submit(context: Context, tool: AnyTool, params: ToolParams, key: str | None) -> Job:
    sent = params.model_dump(mode="json", exclude_unset=True)
    origin = Origin(caller=CALLER, route=tool.path, body=sent, idempotency_key=key)
    job, _ = await context.submission.submit(tool, params, origin, options_in(params))
    return job


def _operation(tool: AnyTool) -> str:
    """Name a tool as clients generated from the document can."""
    return tool.name.replace("/", "_")


def _location(tool: AnyTool, job: Job) -> dict[str, str]:
    return {"Location": f"{tool.path}/{job.id}"}
