"""Which variants each tool has, and whether a GPU service can carry them out now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from gateway.backends.base import Backend, Readiness, WorkflowReadiness
from gateway.errors import FieldError, ModelNotInstalled, NotReady, UnknownVariant
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

    def first_ready(self, tool: AnyTool) -> Variant:
        """Find the default variant, or another one while that cannot run."""
        families = self.families(tool)
        able = (v for v in families if self.readiness(v).readiness != "missing")
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

    def readiness(self, variant: Variant) -> WorkflowReadiness:
        """Judge a variant over all backends: one that is ready suffices."""
        if variant.file == "<file>":
            return self._without_file(variant)
        name, digest = variant.workflow.name, variant.workflow.digest
        asked = [backend.readiness(name, digest) for backend in self.backends]
        seen = [state for state in asked if state is not None]
        for wanted in ("ready", "unknown"):
            if any(s.readiness == wanted for s in seen):
                return WorkflowReadiness(readiness=wanted)
        if not seen:
            return WorkflowReadiness(readiness="unknown")
        return min(seen, key=lambda s: len(s.missing))

    def require_ready(self, tool: AnyTool, variant: Variant) -> None:
        """Raise NotReady when every backend lacks something the variant needs."""
        state = self.readiness(variant)
        if state.readiness != "missing":
            return
        needs = "; ".join(_described(item) for item in state.missing) or "something"
        ready = [v.name for v in self.variants(tool) if self.readiness(v).readiness == "ready"]
        others = f"Ready now: {', '.join(ready)}." if ready else "No variant is ready now."
        raise NotReady(
            f"{variant.name} cannot run: no GPU service has {needs}. {others}",
            [shown_missing(item) for item in state.missing],
        )

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
