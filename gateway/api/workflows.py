"""`/api/workflows`: ComfyUI graphs of callers' own, each a tool from the moment it is taken."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response
from fastapi.openapi.models import Example
from pydantic import ValidationError

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.docs import DOCS, OPENAPI
from gateway.api.lookup import JobId, job_of, wait_of, waited
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.prefer import IdempotencyKey, PreferHeader
from gateway.api.problems import SUBMIT_ERRORS, documented, from_pydantic
from gateway.api.tools import run_and_wait, take
from gateway.api.views import LINK_LIFETIME, Submitted, Views, as_json, job_view_of
from gateway.api.workflow_views import (
    OwnCall,
    SendWorkflow,
    WorkflowDetail,
    WorkflowList,
    WorkflowView,
    workflow_detail,
    workflow_view,
)
from gateway.db.cursors import cursor_behind, read_name
from gateway.errors import (
    Conflict,
    InvalidParameters,
    JobCancelled,
    JobFailed,
    NotEnabled,
    NotFound,
    PayloadTooLarge,
    PolicyViolation,
    Unauthorized,
    UnsupportedMediaType,
)
from gateway.own_workflows.example import EXAMPLE
from gateway.own_workflows.reading import MAX_BYTES
from gateway.own_workflows.registry import OwnWorkflow
from gateway.own_workflows.tool import OWN, WORKFLOWS_PATH, OwnResult, tool_name
from gateway.settings import Settings
from gateway.tool import JobOptions, ToolParams

_MOST_INLINE = 5
"""Files inside one call, of the largest size that is taken."""
_LAST_VERSION = 2**31 - 1

# The bounds are stated, not checked: a name of any shape that is none of ours is a 404.
Name = Annotated[str, Path(description="The workflow's name.", json_schema_extra={"maxLength": 64})]
Version = Annotated[
    int | None,
    Query(ge=1, le=_LAST_VERSION, description="A version of it. Absent: the newest."),
]


def largest_own_body(path: str, settings: Settings) -> int:
    """Tell how many bytes a body below `/api/workflows` may have."""
    if path == WORKFLOWS_PATH:
        # text inside JSON may be escaped, and a manifest comes with it
        return 3 * MAX_BYTES
    return 1_000_000 + _MOST_INLINE * int(settings.max_image_size_mb * 1024 * 1024 * 4 / 3)


def workflows_router(context: Context, views: Views) -> APIRouter:
    """Make the routes under `/api/workflows`."""
    router = APIRouter(prefix=WORKFLOWS_PATH, tags=["workflows"])
    _add_send(router, context)
    _add_reads(router, context)
    _add_delete(router, context)
    _add_runs(router, context, views)
    _add_runs_async(router, context)
    _add_status(router, context, views)
    return router


def _add_send(router: APIRouter, context: Context) -> None:
    @router.post(
        "",
        summary="Send a workflow of your own",
        status_code=201,
        response_model=None,
        responses={
            200: {"model": WorkflowView, "description": "It is the newest version already."},
            201: {"model": WorkflowView, "description": "A new version; `Location` is its route."},
            **documented(
                Unauthorized,
                NotEnabled,
                Conflict,
                PayloadTooLarge,
                UnsupportedMediaType,
                InvalidParameters,
                PolicyViolation,
            ),
        },
    )
    async def send_workflow(
        sent: Annotated[
            SendWorkflow,
            Body(openapi_examples={"marked": Example(summary="marked", value=EXAMPLE)}),
        ],
    ) -> Response:
        """Takes a graph in API format; from then on it is a tool at `/api/workflows/{name}/run`.

        Each wrong place of the graph is named. Nodes and models that are missing are listed with
        where to get them, and calls answer 503 until they are there. The same name again makes the
        next version.
        """
        own, new = await context.own.add(CALLER, sent.name, sent.graph, sent.manifest)
        location = {"Location": f"{WORKFLOWS_PATH}/{own.head.name}"}
        return as_json(workflow_view(context.catalogue, own), 201 if new else 200, location)


def _add_reads(router: APIRouter, context: Context) -> None:
    @router.get(
        "",
        summary="List your workflows",
        response_model=None,
        responses={
            200: {"model": WorkflowList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_workflows(cursor: Cursor = None, limit: Limit = PAGE) -> Response:
        """The newest version of each, by name."""
        mine = [head for head in await context.own.rows.heads() if head.caller == CALLER]
        last = None if cursor is None else read_name(cursor)
        page = [head for head in mine if last is None or head.name > last]
        following = cursor_behind(page[limit - 1].name) if len(page) > limit else None
        made = await context.own.made(page[:limit])
        items = [workflow_view(context.catalogue, own) for own in made]
        docs = context.signer.link(OPENAPI, LINK_LIFETIME).replace(OPENAPI, DOCS, 1)
        return as_json(WorkflowList(items=items, next_cursor=following, docs_url=docs))

    @router.get(
        "/{name}",
        summary="A workflow of your own",
        response_model=None,
        responses={
            200: {"model": WorkflowDetail, "description": "The workflow."},
            **documented(Unauthorized, NotFound, InvalidParameters),
        },
    )
    async def get_workflow(name: Name, version: Version = None) -> Response:
        """Graph, manifest, the schema of its parameters, versions and readiness."""
        own = await context.own.find(CALLER, name, version)
        versions = await context.own.rows.versions(name)
        return as_json(workflow_detail(context.catalogue, own, versions))


def _add_delete(router: APIRouter, context: Context) -> None:
    @router.delete(
        "/{name}",
        summary="Delete a workflow of your own",
        status_code=204,
        response_model=None,
        responses={204: {"description": "Gone."}, **documented(Unauthorized, NotFound)},
    )
    async def delete_workflow(name: Name) -> Response:
        """Removes it with all its versions. Jobs that were made with it go on and stay readable."""
        if not await context.own.rows.remove(name, CALLER):
            raise NotFound("There is no such workflow; GET /api/workflows lists yours.")
        return Response(status_code=204)


def _add_runs(router: APIRouter, context: Context, views: Views) -> None:
    errors = documented(*SUBMIT_ERRORS, NotEnabled, NotFound)

    @router.post(
        "/{name}/run",
        summary="Run a workflow of your own",
        response_model=None,
        responses={
            200: {"model": OwnResult, "description": "The result."},
            202: {
                "model": job_view_of(OWN),
                "description": "Not done yet: the job; `Location` is its status route.",
            },
            **errors,
            **documented(JobFailed),
            **_also(errors, JobCancelled),
            504: {**documented(JobFailed)[502], "description": "`deadline_exceeded`"},
        },
    )
    async def run_workflow(
        name: Name,
        call: OwnCall,
        version: Version = None,
        prefer: PreferHeader = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Takes the workflow's own parameters: its own entry here, or `GET`, has their schema."""
        own = await context.own.runnable(CALLER, name, version)
        return await run_and_wait(
            context, views, own.tool, _params(own, call), prefer=prefer, key=idempotency_key
        )


def _add_runs_async(router: APIRouter, context: Context) -> None:
    @router.post(
        "/{name}/run/async",
        summary="Run a workflow of your own, without waiting",
        status_code=202,
        response_model=None,
        responses={
            202: {"model": Submitted, "description": "Taken; `Location` is its status route."},
            **documented(*SUBMIT_ERRORS, NotEnabled, NotFound),
        },
    )
    async def run_workflow_async(
        name: Name,
        call: OwnCall,
        version: Version = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Takes the job and answers with its id at once."""
        own = await context.own.runnable(CALLER, name, version)
        return await take(context, own.tool, _params(own, call), idempotency_key)


def _also(known: dict[int | str, Any], error: type[JobCancelled]) -> dict[int | str, Any]:
    return {status: one for status, one in documented(error).items() if status not in known}


def _add_status(router: APIRouter, context: Context, views: Views) -> None:
    wait_query = wait_of(context.settings)

    @router.get(
        "/{name}/run/{job_id}",
        summary="Run of a workflow of your own: state and result",
        response_model=None,
        responses={
            200: {"model": job_view_of(OWN), "description": "The job."},
            **documented(Unauthorized, NotFound, InvalidParameters),
        },
    )
    async def workflow_status(
        name: Name, job_id: JobId, wait: Annotated[float, wait_query] = 0
    ) -> Response:
        """The job as it is; with `wait`, as it is when it ends. Deleted workflows' jobs, too."""
        found = await job_of(context, job_id, tool_name(name))
        job = await waited(context, found, wait)
        return as_json(views.job(job, await context.submission.etas.left(job)))


def _params(own: OwnWorkflow, call: OwnCall) -> ToolParams:
    """Check a call by the workflow's own parameters. Raises InvalidParameters."""
    options = call.model_dump(include=set(JobOptions.model_fields), exclude_unset=True)
    try:
        return own.body.model_validate({**(call.model_extra or {}), **options})
    except ValidationError as error:
        raise from_pydantic(error, "") from None
