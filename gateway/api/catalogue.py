"""`/api/tools`: what can be asked for, with which values, and whether it can run now."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field, JsonValue

from gateway.api.context import Context
from gateway.api.problems import documented
from gateway.api.views import as_json
from gateway.backends.base import Readiness
from gateway.catalogue import Catalogue, Variant, overall, shown_missing
from gateway.errors import NotFound, Unauthorized
from gateway.styles import STYLE_IMAGE
from gateway.tool import AnyTool


class LicenceView(BaseModel):
    """The terms of one model file."""

    model: str
    licence: str
    commercial: bool = Field(description="Commercial use is allowed.")


class VariantView(BaseModel):
    """One way to carry out a tool."""

    name: str = Field(description="What to send as `variant`.")
    title: str
    readiness: Readiness = Field(
        description="`ready`; `missing`: calls answer 503; `unknown`: no GPU service was seen yet, "
        "calls wait."
    )
    missing: list[dict[str, JsonValue]] = Field(description="What is missing and where to get it.")
    params: list[str] = Field(description="Parameters this variant takes.")
    defaults: dict[str, JsonValue] = Field(description="Values of the parameters not sent.")
    limits: dict[str, dict[str, float]] = Field(
        description="Bounds of this variant, the tool's own included."
    )
    licences: list[LicenceView]
    commercial: bool | None = Field(
        description="All of its models allow commercial use; null where that depends on the file."
    )
    vram_gb: float | None = Field(description="GPU memory it was made for.")


class ToolView(BaseModel):
    """One tool."""

    name: str
    summary: str
    description: str
    path: str
    async_path: str
    status_path: str
    files_path: str | None = Field(description="Null where the result is text alone.")
    default_variant: str
    readiness: Readiness
    variants: list[VariantView]
    timeout_s: float = Field(description="Most seconds one execution may take.")
    deadline_s: float = Field(
        description="Seconds within which a job must be done that says nothing of its own, waiting "
        "included."
    )
    params_schema: dict[str, Any] = Field(description="JSON Schema of the parameters.")
    examples: dict[str, dict[str, JsonValue]] = Field(description="Bodies that run as they stand.")


class ToolList(BaseModel):
    """Every tool."""

    items: list[ToolView]
    next_cursor: None = None


def catalogue_router(context: Context) -> APIRouter:
    """Make the routes under `/api/tools`."""
    router = APIRouter(prefix="/api/tools", tags=["tools"])
    catalogue, timeouts = context.catalogue, context.submission.timeouts

    def shown(tool: AnyTool) -> ToolView:
        return tool_view(catalogue, tool, timeouts.get(tool.name, tool.timeout_s))

    @router.get(
        "",
        summary="List the tools",
        response_model=None,
        responses={
            200: {"model": ToolList, "description": "Every tool."},
            **documented(Unauthorized),
        },
    )
    async def list_tools() -> Response:
        """Each tool with its parameters, variants, readiness and licences."""
        return as_json(ToolList(items=[shown(tool) for tool in catalogue.tools]))

    @router.get(
        "/{name}",
        summary="A tool",
        response_model=None,
        responses={
            200: {"model": ToolView, "description": "The tool."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def get_tool(
        name: Annotated[
            str, Path(json_schema_extra={"maxLength": 100}, description="The tool's name.")
        ],
    ) -> Response:
        """One tool with its parameters, variants, readiness and licences."""
        for tool in catalogue.tools:
            if tool.name == name:
                return as_json(shown(tool))
        raise NotFound("There is no such tool; GET /api/tools lists them.")

    return router


def tool_view(catalogue: Catalogue, tool: AnyTool, timeout_s: float) -> ToolView:
    """Shape a tool for callers."""
    variants = [variant_view(catalogue, tool, variant) for variant in catalogue.variants(tool)]
    return ToolView(
        name=tool.name,
        summary=tool.summary,
        description=tool.description,
        path=tool.path,
        async_path=f"{tool.path}/async",
        status_path=f"{tool.path}/{{job_id}}",
        files_path=tool.files_path,
        default_variant=tool.default_variant,
        timeout_s=timeout_s,
        deadline_s=tool.deadline_s,
        readiness=overall([variant.readiness for variant in variants]),
        variants=variants,
        params_schema=tool.params.model_json_schema(),
        examples=dict(tool.examples),
    )


def variant_view(catalogue: Catalogue, tool: AnyTool, variant: Variant) -> VariantView:
    """Shape a variant for callers."""
    workflow, state = variant.workflow, catalogue.readiness(variant)
    # what no caller sends as such: it is in the variant's name, or comes with a style
    hidden = {STYLE_IMAGE, variant.argument.param if variant.argument else None}
    return VariantView(
        name=variant.name,
        title=workflow.title,
        readiness=state.readiness,
        missing=[shown_missing(item) for item in state.missing],
        params=[name for name in workflow.manifest.params if name not in hidden]
        + (["prompt"] if tool.redraw else []),
        defaults=workflow.defaults,
        limits=_limits(tool, variant),
        licences=[
            LicenceView(model=f"{m.directory}/{m.name}", licence=m.license, commercial=m.commercial)
            for m in workflow.models
        ],
        commercial=None if variant.argument else all(m.commercial for m in workflow.models),
        vram_gb=workflow.manifest.vram_gb,
    )


def _limits(tool: AnyTool, variant: Variant) -> dict[str, dict[str, float]]:
    """Combine the tool's bounds with the variant's: a call must keep to both."""
    properties = cast(
        "dict[str, dict[str, Any]]", tool.params.model_json_schema().get("properties", {})
    )
    found: dict[str, dict[str, float]] = {}
    for name, own in variant.workflow.limits.items():
        schema = properties.get(name, {})
        bounds = {
            "minimum": _both(max, own.minimum, schema.get("minimum")),
            "maximum": _both(min, own.maximum, schema.get("maximum")),
            "multiple_of": _both(_common_step, own.multiple_of, schema.get("multipleOf")),
        }
        found[name] = {bound: value for bound, value in bounds.items() if value is not None}
    return found


def _both(
    combine: Callable[[float, float], float], one: float | None, other: float | None
) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return functools.reduce(combine, known) if known else None


def _common_step(one: float, other: float) -> float:
    whole = one.is_integer() and float(other).is_integer()
    return float(math.lcm(int(one), int(other))) if whole else max(one, other)
