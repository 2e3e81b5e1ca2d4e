"""Which variants each tool has, and whether a GPU service can carry them out now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from gateway.backends.base import Backend, Readiness, WorkflowReadiness
from gateway.choices import Choices, Order, at_once, in_use, tiers
from gateway.errors import (
    FieldError,
    ModelNotInstalled,
    NoBackend,
    NotReady,
    UnknownBackend,
    UnknownVariant,
)
from gateway.job import Call
from gateway.operations import OPERATIONS
from gateway.tool import AnyTool
from gpu_server.protocol import Missing
from gpu_server.workflow import Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """What follows the colon of a variant: the parameter it fills, and where the file must lie."""

    param: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to carry out a tool."""

    name: str
    workflow: Workflow
    argument: Argument | None = None
    file: str | None = None
    """The file after the colon, for a variant that names one."""

    @property
    def pattern(self) -> str:
        """The name as documentation writes it."""
        return f"{self.workflow.variant}:<file>" if self.argument else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Tools, workflows and backends, looked at together."""

    tools: Sequence[AnyTool]
    workflows: Mapping[str, Workflow]
    backends: Sequence[Backend]
    choices: Choices = field(default_factory=Choices)

    def families(self, tool: AnyTool) -> list[Variant]:
        """List a tool's variants as declared: a family that names a file counts once."""
        if tool.workflow is not None:
            return [Variant(name=tool.default_variant, workflow=tool.workflow)]
        found = [
            Variant(name=w.variant or w.name, workflow=w, argument=argument_of(w))
            for w in self.workflows.values()
            if w.tool == tool.name
        ]
        return sorted(found, key=lambda v: (v.name != tool.default_variant, v.name))

    def variants(self, tool: AnyTool) -> list[Variant]:
        """List a tool's variants as a caller may name them now."""
        found: list[Variant] = []
        for family in self.families(tool):
            if family.argument is None:
                found.append(family)
                continue
            folder = family.argument.folder
            files = sorted((self.installed(folder) or frozenset()) - self._parts(folder))
            found += [_of_file(family, file) for file in files] or [_of_file(family, "<file>")]
        return found

    def find(self, tool: AnyTool, name: str, *, field: str = "variant") -> Variant:
        """Find the variant of that name; raises UnknownVariant, ModelNotInstalled."""
        stem, _, file = name.partition(":")
        family = next((v for v in self.families(tool) if v.name == stem), None)
        if family is None or (family.argument is None) != (not file):
            known = ", ".join(v.pattern for v in self.families(tool))
            raise UnknownVariant(
                [FieldError(field=field, code="unknown_variant", message=f"use one of {known}")]
            )
        if family.argument is None:
            return family
        folder = family.argument.folder
        if file in self._parts(folder):
            message = f"{file!r} is a part of another workflow, and not what {stem} takes"
            raise UnknownVariant([FieldError(field=field, code="unknown_variant", message=message)])
        self.require_installed(field, folder, file)
        return _of_file(family, file)

    def first_ready(self, tool: AnyTool, places: Order | None = None) -> Variant:
        """Find the default variant, or another one while that cannot run."""
        families = self.families(tool)
        able = (v for v in families if self.readiness(v, places).readiness != "missing")
        return next(able, families[0])

    def _parts(self, folder: str) -> frozenset[str]:
        """Collect the files of a folder that belong to a workflow: no caller may choose them."""
        every = (model for workflow in self.workflows.values() for model in workflow.models)
        return frozenset(model.name for model in every if model.directory == folder)

    def installed(self, folder: str) -> frozenset[str] | None:
        """Collect the model files of a folder over all backends; None while none is known."""
        known = [b.installed for b in self.backends if b.installed is not None]
        if not known:
            return None
        return frozenset[str]().union(*(lists.get(folder, frozenset()) for lists in known))

    def require_installed(self, field: str, folder: str, file: str) -> None:
        """Raise ModelNotInstalled unless some backend lists the file or none is known yet."""
        known = self.installed(folder)
        # Nothing known: the GPU service checks again before it binds the name into a graph.
        if known is None or file in known:
            return
        message = f"{file!r} is not among the {folder} of any GPU service; put the file there first"
        raise ModelNotInstalled(
            [FieldError(field=field, code="model_not_installed", message=message)]
        )

    def readiness(self, variant: Variant, places: Order | None = None) -> WorkflowReadiness:
        """Judge a variant over the backends it may go to: one that is ready suffices.

        Args:
            variant: the variant.
            places: backends that a call asks for; None: those of the settings.
        """
        seen = self._seen(variant, places)
        if not seen:
            # without any backend nothing is known; those there are never change their minds
            return WorkflowReadiness(readiness="missing" if self.backends else "unknown")
        if variant.file == "<file>":
            return self._without_file(variant)
        for wanted in ("ready", "unknown"):
            if any(s.readiness == wanted for s in seen):
                return WorkflowReadiness(readiness=wanted)
        return min(seen, key=lambda s: len(s.missing))

    def _seen(self, variant: Variant, places: Order | None) -> list[WorkflowReadiness]:
        """What the backends it may go to say of it; none where it is nobody's own."""
        name, digest = variant.workflow.name, variant.workflow.digest
        order = places or self.choices.of_workflow(name)
        found = tiers(self.backends, order, name, digest)
        asked = [backend.readiness(name, digest) for tier in found for backend in tier]
        return [state for state in asked if state is not None]

    def require_ready(self, tool: AnyTool, variant: Variant, places: Order | None = None) -> None:
        """Raise NotReady when every backend it may go to lacks something the variant needs.

        NoBackend where it may go to none at all.
        """
        state = self.readiness(variant, places)
        if state.readiness != "missing":
            return
        needs = "; ".join(_described(item) for item in state.missing) or "something"
        able = (v for v in self.variants(tool) if self.readiness(v, places).readiness == "ready")
        ready = [v.name for v in able]
        others = f"Ready now: {', '.join(ready)}." if ready else "No variant is ready now."
        if not self._seen(variant, places):
            raise NoBackend(
                f"{variant.name} cannot run: none of the backends that are set up for {tool.name} "
                f"carries it out (BACKENDS, TOOL_BACKENDS, RUNPOD_*). {others}"
            )
        where = f"no backend of {places[0]}" if places else "no GPU service"
        raise NotReady(
            f"{variant.name} cannot run: {where} has {needs}. {others}",
            [shown_missing(item) for item in state.missing],
        )

    def require_backend(self, word: str, call: Call) -> None:
        """Raise UnknownBackend unless some backend of that name or kind may carry out a call.

        Of a call with several stages, those for which it needs a GPU, where there is any such.
        """
        stages = [stage for stage in call.stages if stage.workflow not in OPERATIONS]
        able = [
            backend
            for backend in self.backends
            if (backend.kind == "cpu") == (not stages)
            and all(
                backend.readiness(stage.workflow, stage.digest) is not None
                for stage in stages or call.stages
            )
        ]
        words = dict.fromkeys([*(b.kind for b in able), *(b.name for b in able)])
        if word not in words:
            known = f"use one of {', '.join(words)}" if words else "there is none at present"
            raise UnknownBackend(
                [FieldError(field="backend", code="unknown_backend", message=known)]
            )

    def executes_at_once(self, tool: str | None) -> int:
        """Count how many jobs of a tool execute at the same time; None: of all that need a GPU."""
        return sum(at_once(backend) for backend in self._in_use(tool))

    def share_places(self, one: str, other: str) -> bool:
        """Tell whether jobs of two tools wait for the same places."""
        others = self._in_use(other)
        return any(backend in others for backend in self._in_use(one)) or one == other

    def goes_as_usual(self, tool: str, places: Order) -> bool:
        """Tell whether what a call asks for is where the tool's jobs go at present."""
        return in_use(self.backends, places) == self._in_use(tool)

    def _in_use(self, tool: str | None) -> Sequence[Backend]:
        on_cpu = any(operation.tool == tool for operation in OPERATIONS.values())
        order = ("cpu",) if on_cpu else self.choices.of_tool(tool)
        return in_use(self.backends, order)

    def _without_file(self, variant: Variant) -> WorkflowReadiness:
        folder = variant.argument.folder if variant.argument else ""
        if self.installed(folder) is None:
            return WorkflowReadiness(readiness="unknown")
        nothing = Missing(kind="model", name="<file>", directory=folder, detail="any one of them")
        return WorkflowReadiness(readiness="missing", missing=(nothing,))


def argument_of(workflow: Workflow) -> Argument | None:
    """Find the parameter that a variant's name carries: a required choice of installed files."""
    for name, param in workflow.manifest.params.items():
        if param.required and param.choices is not None:
            return Argument(param=name, folder=param.choices)
    return None


def shown_missing(item: Missing) -> dict[str, JsonValue]:
    """Shape one missing thing for a caller."""
    return item.model_dump(mode="json", exclude_none=True)


def overall(states: Sequence[Readiness]) -> Readiness:
    """Judge several variants as one: ready when one is."""
    for wanted in ("ready", "unknown"):
        if wanted in states:
            return wanted
    return "missing"


def _of_file(family: Variant, file: str) -> Variant:
    return Variant(
        name=f"{family.name}:{file}", workflow=family.workflow, argument=family.argument, file=file
    )


def _described(item: Missing) -> str:
    if item.kind == "node":
        return f"the node {item.name}"
    if item.kind == "invalid":
        return f"a graph that fits its ComfyUI ({item.name})"
    where = f"{item.directory}/{item.name}" if item.directory else item.name
    facts = [
        f"{item.bytes / 1e9:.1f} GB" if item.bytes else None,
        f"from {item.url}" if item.url else None,
        f"licence {item.license}" if item.license else None,
    ]
    said = ", ".join(fact for fact in facts if fact)
    return f"the file {where} ({said})" if said else f"the file {where}"
