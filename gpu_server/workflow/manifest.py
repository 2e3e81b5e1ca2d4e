"""The manifest beside a workflow graph: where each parameter goes, and what the graph needs.

The format is described with examples in `docs/workflows.md`.
"""

from typing import Annotated, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpu_server.workflow.param_schema import ParamSchema

PREFIX_ROOT = "jobs/{run_id}/"
"""Every file prefix begins with this, so that a run's files lie in a folder of their own."""

LONGEST_TEMPLATE = 8000
MOST_REPEATS = 10
"""Most times a template says its value."""

ModelFolder = Literal["checkpoints", "loras"]
OutputKind = Literal["image", "video", "audio", "model", "text", "file"]


class Closed(BaseModel):
    """Base of the manifest's parts: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRequirement(Closed):
    """A model file the graph names, under ComfyUI's own keys, where to get it, and its terms."""

    name: str
    url: str
    directory: str
    hash: str | None = None
    hash_type: str | None = None
    bytes: int | None = Field(default=None, ge=0)
    license: str
    commercial: bool
    """The licence allows commercial use."""
    gated: bool = False
    """The download asks for an account that accepted the licence."""


class Pack(Closed):
    """A custom node pack by its registry id."""

    cnr_id: str
    ver: str | None = None
    repo: str | None = None


class ComfyVersions(Closed):
    """Versions of ComfyUI this workflow is known to run on."""

    min: str
    tested: tuple[str, ...] = ()


class Limits(Closed):
    """Bounds narrower than the tool's own, for this workflow's model family."""

    minimum: float | None = None
    maximum: float | None = None
    multiple_of: float | None = Field(default=None, gt=0)


class Within(Closed):
    """A bound that grows with a picture; what is above it is lowered to it, and so reported.

    It is `scale` times the picture's shorter side, plus `offset`, rounded down; at least 0.
    """

    picture: str
    """The parameter that is the picture."""
    scale: float = Field(gt=0)
    offset: float = 0


class PictureRule(Closed):
    """Which sizes of a picture fit; checked before anything is queued."""

    max_ratio: float | None = Field(default=None, ge=1)
    """Longest side in shortest sides."""
    unless: tuple[str, ...] = ()
    """Parameters that, all of them given, make `max_ratio` needless."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Of what it becomes where `enlarged` says so."""
    enlarged: str | None = None
    """The parameter that holds how many times as wide and as high it becomes."""
    same_size_as: str | None = None
    """The parameter whose picture it lies over."""


class Target(Closed):
    """One graph input a parameter goes to, and what happens to the value on its way."""

    to: str
    """`<node id>.<input>`, or `title:<node title>.<input>` when exactly one node has that title."""
    scale: float = 1
    offset: float = 0
    clamp: tuple[float, float] | None = None
    map: dict[str, str | int | float | bool] | None = None
    """Value (as text) to what the graph gets; any other value is refused."""
    template: str | None = Field(default=None, max_length=LONGEST_TEMPLATE)
    """Text in which `{value}` is replaced."""
    append: bool = False
    """The text is added to what the input holds by then: the graph's, or an earlier parameter's."""
    over_link: bool = False
    """The input holds a link, which stays when the parameter is not given."""

    @property
    def transforms(self) -> bool:
        """The number is changed on its way."""
        return self.scale != 1 or self.offset != 0 or self.clamp is not None

    @model_validator(mode="after")
    def _one_operation(self) -> "Target":
        if sum((self.transforms, self.map is not None, self.template is not None)) > 1:
            raise ValueError("scale/offset/clamp, map and template exclude one another")
        if self.scale == 0:
            raise ValueError("scale must not be 0")
        if self.append and (self.transforms or self.over_link):
            raise ValueError("append adds text to text")
        if self.template is not None and "{value}" not in self.template:
            raise ValueError("template needs {value}")
        if self.template is not None and self.template.count("{value}") > MOST_REPEATS:
            raise ValueError(f"template has {{value}} more than {MOST_REPEATS} times")
        if self.map is not None and not self.map:
            raise ValueError("map needs at least one value")
        return self


class Chain(Closed):
    """A group of nodes repeated once per list item; without items it is bypassed."""

    nodes: tuple[str, ...] = Field(min_length=1)
    links: dict[str, str] = Field(min_length=1)
    """`<node>:<output slot>` of one copy feeds `<node>.<input>` of the next."""
    set: dict[str, str] = Field(min_length=1)
    """Graph input to the item's key; `.` is the item itself. A key left out keeps the literal."""
    choices: dict[str, ModelFolder] = Field(default_factory=dict)
    """Item key to the folder whose installed files it may name."""
    max_items: int = Field(default=8, ge=1, le=64)


class Change(Closed):
    """What becomes of inputs and nodes; the three happen in this order."""

    unset: tuple[str, ...] = ()
    """Optional inputs that are removed."""
    drop: tuple[str, ...] = ()
    """Nodes that are removed; what read them must be unset or dropped in the same change."""
    bypass: tuple[str, ...] = ()
    """Nodes that are taken out, their consumers reading what they read."""

    @property
    def is_empty(self) -> bool:
        """The graph stays as it is."""
        return not (self.unset or self.drop or self.bypass)


class Absent(Change):
    """What happens to the graph when an optional parameter is not given."""


class Case(Change):
    """What happens to the graph when a parameter has one certain value."""

    equals: str | int | float | bool

    def matches(self, value: object) -> bool:
        """Tell whether this is the value; true and 1 are not one another."""
        return isinstance(value, bool) == isinstance(self.equals, bool) and value == self.equals


def _several(value: object) -> list[object]:
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else [value]


def _targets(value: object) -> object:
    return [{"to": item} if isinstance(item, str) else item for item in _several(value)]


Targets = Annotated[tuple[Target, ...], BeforeValidator(_targets)]


class Item(Closed):
    """Where one file of a list goes: the first file to the first item, and so on."""

    bind: Targets = Field(min_length=1)
    absent: Absent | None = None
    """What happens when the list has no file for it."""


class Param(Closed):
    """How one parameter changes the graph."""

    bind: Targets = ()
    required: bool = False
    seed: bool = False
    """Drawn at random when absent; always reported."""
    upload: Literal["image", "mask", "audio", "video", "model"] | None = None
    """The value is a file, uploaded to ComfyUI; the graph gets the name ComfyUI returned."""
    choices: ModelFolder | None = None
    """The value must be an installed file of this folder."""
    chain: Chain | None = None
    items: tuple[Item, ...] = ()
    """Places for a list of files, each with its own absence."""
    limits: Limits | None = None
    within: Within | None = None
    picture: PictureRule | None = None
    background: Literal["white"] | None = None
    """What shows through a picture: ComfyUI's LoadImage would show the colours below its alpha."""
    absent: Absent | None = None
    when: Annotated[tuple[Case, ...], BeforeValidator(_several)] = ()
    """Values that change the graph. Without `bind` these are the only values taken."""
    json_schema: ParamSchema | None = Field(default=None, alias="schema")
    """What it takes, in a caller's own workflow; bundled ones have their tool's parameters."""

    @property
    def is_picture(self) -> bool:
        """Its files are pictures."""
        return self.upload in {"image", "mask"}

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every graph input a plain value or a file goes to."""
        return (*self.bind, *(target for item in self.items for target in item.bind))

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change it can make to the graph."""
        absent = (self.absent, *(item.absent for item in self.items))
        return (*(change for change in absent if change is not None), *self.when)

    @property
    def most(self) -> int:
        """Most files or list items it takes."""
        if self.chain is not None:
            return self.chain.max_items
        return len(self.items) or 1

    @model_validator(mode="after")
    def _does_something(self) -> "Param":
        forms = sum((bool(self.bind), self.chain is not None, bool(self.items)))
        if forms > 1:
            raise ValueError("a parameter has one of bind, chain and items")
        if not (forms or self.seed or self.when):
            raise ValueError("a parameter has either bind or chain")
        if self.seed and self.required:
            raise ValueError("a seed is never required: it is drawn when absent")
        if self.required and self.absent is not None:
            raise ValueError("a required parameter is never absent")
        if self.items and self.upload is None:
            raise ValueError("items are places for uploaded files")
        if self.when and (self.upload is not None or self.chain is not None):
            raise ValueError("when compares a plain value: not a file, not a list")
        if not self.bind and not self.seed and (self.choices or self.limits):
            raise ValueError("choices and limits are about a value that is bound")
        values = [(isinstance(case.equals, bool), case.equals) for case in self.when]
        if len(set(values)) != len(values):
            raise ValueError("two cases of when have the same value")
        return self

    @model_validator(mode="after")
    def _pictures_are_meant(self) -> "Param":
        if self.picture is not None and not self.is_picture:
            raise ValueError("picture is about an uploaded image or mask")
        if self.background is not None and self.upload != "image":
            raise ValueError("background is about an uploaded image")
        if self.within is not None and self.limits is None:
            raise ValueError("within narrows limits: it needs them")
        return self


class Output(Closed):
    """What a run delivers under one name."""

    node: str
    kind: OutputKind
    key: str | None = None
    """Only files under this key of the node's output; absent = every file of the node."""
    min: int = Field(default=1, ge=0)
    max: int | str = 16
    """A number, or the parameter that holds it."""
    blank_is_nothing: bool = False
    """A picture that is black all over means that nothing was found: the run fails."""


class Manifest(Closed):
    """The file `<name>.yaml` beside `<name>.json`."""

    manifest: Literal[1]
    tool: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    variant: str | None = None
    title: str
    comfyui: ComfyVersions | None = None
    models: tuple[ModelRequirement, ...] = ()
    packs: tuple[Pack, ...] = ()
    vram_gb: float | None = None
    guard: dict[str, str] = Field(default_factory=dict)
    """Node id to the class_type it must have: a re-exported graph cannot be bound wrongly."""
    params: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Param]
    fixed: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Graph input to a value; `{run_id}` is replaced."""
    outputs: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Output] = Field(min_length=1)

    @model_validator(mode="after")
    def _outputs_count(self) -> "Manifest":
        for name, output in self.outputs.items():
            if isinstance(output.max, str) and output.max not in self.params:
                raise ValueError(f"outputs.{name}.max names no parameter: {output.max}")
        return self

    @model_validator(mode="after")
    def _pictures_are_known(self) -> "Manifest":
        pictures = {name for name, param in self.params.items() if param.is_picture}
        for name, param in self.params.items():
            rule, within = param.picture or PictureRule(), param.within
            read = [rule.same_size_as, within.picture if within else None]
            values = [rule.enlarged, *rule.unless]
            known = [each in pictures for each in read if each is not None]
            known += [each in self.params.keys() - pictures for each in values if each is not None]
            if not all(known):
                raise ValueError(f"params.{name} compares with a parameter that is none")
        return self
