"""The stages of a job: a tool's own call, what goes before it, and what follows it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import JsonValue

from gateway.calls import Loras, call_of
from gateway.catalogue import Variant
from gateway.job import Call, Source
from gateway.operations import OPERATIONS
from gateway.tool import AnyTool, Redraw
from gpu_server.mesh.calls import extension
from gpu_server.protocol import FileOptions

MESH_TIMEOUT_S = 900.0
REDRAW_SHARE = 0.2
GPU_SHARE = 0.9
"""How far a job is when its GPU has done its part."""

F = TypeVar("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class Redrawing:
    """A picture is drawn anew before a tool reads it."""

    how: Redraw
    variant: Variant
    """That of the other tool, which draws it."""
    timeout_s: float

    def files(self, files: Mapping[str, F]) -> dict[str, F]:
        """Name the files of the call as the first stage reads them."""
        names = {self.how.picture: self.how.read_as}
        return {names.get(name, name): file for name, file in files.items()}

    def before(self, call: Call, prompt: Mapping[str, JsonValue]) -> Call:
        """Make it the stage before a call. Raises InvalidParameters."""
        seed: dict[str, JsonValue] = {"seed": call.params.get("seed")}
        sent = {**self.how.values, **prompt, **seed}
        tool = self.how.tool
        drawn = call_of(tool, self.variant, sent, Loras(), self.timeout_s)
        made = Source(slot=drawn.outputs[0], media_type="image/png")
        sent_as = {self.how.read_as: self.how.picture}
        after = replace(call, inputs={self.how.picture: (made,)})
        return replace(drawn, ends_at=REDRAW_SHARE, then=after, sent_as=sent_as)


def stages_of(
    tool: AnyTool,
    variant: Variant,
    sent: Mapping[str, JsonValue],
    loras: Loras,
    timeout_s: float,
    *,
    files: FileOptions,
    redrawing: Redrawing | None,
) -> Call:
    """Make a call with all its stages; `inputs` of the first are the caller's files.

    Raises InvalidParameters.
    """
    prompt = {name: sent[name] for name in ("prompt",) if name in sent and redrawing}
    own = {name: value for name, value in sent.items() if name not in prompt}
    call = _named(call_of(tool, variant, own, loras, timeout_s, files=files))
    if tool.then is not None:
        call = _finished_by(call, tool.then)
    return call if redrawing is None else redrawing.before(call, prompt)


def _named(call: Call) -> Call:
    """Name the file of an operation by the format it was asked for."""
    if call.workflow not in OPERATIONS:
        # a parameter of that name may mean anything there
        return call
    ending = extension(str(call.params.get("format") or "glb"))
    return replace(call, extensions={**call.extensions, "models": ending})


def _finished_by(call: Call, operation: str) -> Call:
    """Let an operation work on the first file a call makes; the job's result is what it makes."""
    (name,) = OPERATIONS[operation].outputs
    after = Call(
        workflow=operation,
        digest=OPERATIONS[operation].digest,
        params={},
        outputs=(f"{name}/0",),
        prefix=call.prefix,
        extensions={name: "glb"},
        timeout_s=MESH_TIMEOUT_S,
        inputs={"model_url": (Source(slot=call.outputs[0], media_type="model/gltf-binary"),)},
    )
    return replace(call, ends_at=GPU_SHARE, then=after)
