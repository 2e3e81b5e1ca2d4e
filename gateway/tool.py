"""What a tool is: declared once, and everything callers see of it follows from the declaration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, create_model

from gateway.media import DECIMAL, WHOLE, ModelFileName, VariantName, WebAddress
from gateway.styles import StyleId
from gpu_server.protocol import FileOptions, PictureFormat
from gpu_server.workflow import Workflow

Strength = Annotated[float, Field(ge=-10, le=10), DECIMAL]
ModelNumber = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]


class ToolParams(BaseModel):
    """Base of every tool's parameters: closed, frozen, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"variant"})
    """Fields that steer the call and are never bound into a graph as they are.

    A class names its own; those of the classes it is made of are added.
    """

    def __init_subclass__(cls, **more: Any) -> None:  # noqa: ANN401 - Pydantic's own
        super().__init_subclass__(**more)
        named = [vars(base).get("OPTIONS", frozenset[str]()) for base in cls.__mro__]
        cls.OPTIONS = frozenset[str]().union(*named)

    variant: VariantName | None = Field(
        default=None,
        description="Which workflow carries it out; `GET /api/tools` lists them with their "
        "defaults, limits and readiness. Absent: the tool's default variant.",
    )

    def chosen_variant(self) -> str | None:
        """Name the variant the caller asked for."""
        return self.variant

    def variant_field(self) -> str:
        """Name the field in which the caller asked for it."""
        return "variant"

    def bound(self) -> dict[str, JsonValue]:
        """Collect what the caller set of the workflow's own parameters."""
        sent = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        return {name: value for name, value in sent.items() if name not in self.OPTIONS}

    def file_options(self) -> FileOptions:
        """Say how the files made are to be handed over."""
        return FileOptions()


class FileParams(ToolParams):
    """What tools take that make files."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"keep_metadata"})

    keep_metadata: StrictBool = Field(
        default=False,
        description="Leave in the files what ComfyUI writes there: the prompt and the whole "
        "workflow. Else it is taken out, the pixels as they are.",
    )

    def file_options(self) -> FileOptions:
        """Say how the files made are to be handed over."""
        return FileOptions(keep_metadata=self.keep_metadata)


class CompressedParams(FileParams):
    """What tools take that make pictures, whichever formats they have."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"output_format", "output_quality"})

    output_quality: Annotated[int, Field(ge=1, le=100), WHOLE] = Field(
        default=90, description="Of `webp` and `jpeg`: more is larger and finer."
    )

    def file_options(self) -> FileOptions:
        """Say how the files made are to be handed over."""
        # which formats there are, each class below says itself
        wanted = cast("PictureFormat", getattr(self, "output_format", "png"))
        if wanted == "png":
            # what ComfyUI makes anyway
            return super().file_options()
        return FileOptions(
            format=wanted, quality=self.output_quality, keep_metadata=self.keep_metadata
        )


class PictureParams(CompressedParams):
    """What tools take that make pictures without transparency."""

    output_format: Literal["png", "webp", "jpeg"] = Field(
        default="png",
        description="Format of the pictures. `png` loses nothing; a `jpeg` has no transparency: "
        "what was clear is white.",
    )


class CutoutParams(CompressedParams):
    """What tools take whose pictures are partly transparent."""

    output_format: Literal["png", "webp"] = Field(
        default="png", description="Format of the pictures; both keep the transparency."
    )


class LoraUse(BaseModel):
    """One LoRA on top of the base model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ModelFileName = Field(
        description="File name of an installed LoRA, as ComfyUI lists it.",
        examples=["my_trained_lora.safetensors"],
    )
    scale: Strength | None = Field(
        default=None,
        description="Strength on model and CLIP. Absent: `lora_scale`.",
    )


class LoraParams(ToolParams):
    """What tools take whose workflows can load LoRAs."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"variant", "model_id", "loras", "lora_scale"})

    model_id: ModelNumber | None = Field(
        default=None,
        description="A trained model of `GET /api/models`: its LoRA is loaded before `loras`. Its "
        "trigger word is not added to the prompt: write it there. Absent: the base model alone.",
    )
    loras: tuple[LoraUse, ...] = Field(
        default=(),
        max_length=4,
        description="Installed LoRAs to load, in this order; at most 4 with the one of `model_id`.",
    )
    lora_scale: Strength = Field(
        default=1.0,
        description="Strength, on model and CLIP, of the LoRA of `model_id` and of every one in "
        "`loras` that has no `scale` of its own.",
    )


class StyledParams(ToolParams):
    """What tools take whose prompt can be put into a style; submission does the rest."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"styleId"})

    styleId: StyleId | None = Field(  # noqa: N815  # the name existing clients send
        default=None,
        description="A style of `GET /api/styles`: words around the prompt and, where the variant "
        "can take it, a reference picture. Absent: the prompt alone.",
        examples=["clay"],
    )


MAX_DEADLINE_S = 7 * 24 * 3600


class JobOptions(BaseModel):
    """What every call may say of its job, beside the tool's own parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    webhook_url: WebAddress | None = Field(
        default=None,
        description="Address that is sent the job once it has ended, signed as Standard Webhooks "
        "describe. Absent: none.",
        examples=["https://example.com/hooks/media"],
    )
    priority: Annotated[int, Field(ge=-100, le=100), WHOLE] = Field(
        default=0,
        description="Jobs of a higher priority begin first, those of the same in the order they "
        "came. Batches have -10 unless they say otherwise.",
    )
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S), DECIMAL] | None = Field(
        default=None,
        description="Seconds within which the job must be done, waiting included. One that can "
        "foreseeably not be is refused at once. Absent: the tool's own, of `GET /api/tools`.",
        examples=[600],
    )
    backend: str | None = Field(
        default=None,
        max_length=100,
        description="Where it must be carried out: `gpu`, `runpod`, or the name of a backend as "
        "`/health` shows it; it waits for that one. Absent: as the settings say.",
        examples=["runpod"],
    )


class FileView(BaseModel):
    """One file of a result."""

    url: str = Field(description="Stable path; readable with the API key.")
    link: str = Field(description="The same path signed for 24 hours, for `<img>` and downloads.")
    r2_path: str = Field(description="Storage address.")
    media_type: str
    bytes: int
    sha256: str
    width: int | None = Field(default=None, description="Of a picture or a video, in pixels.")
    height: int | None = Field(default=None, description="Of a picture or a video, in pixels.")
    frames: int | None = Field(default=None, description="Of a video or a moving picture.")
    duration_s: float | None = Field(default=None, description="Of a video or a sound, in seconds.")
    faces: int | None = Field(default=None, description="Triangles of a mesh.")


class ToolResult(BaseModel):
    """What every result says."""

    success: Literal[True] = True
    job_id: str
    r2_path: str | None = Field(description="Storage address of the first file.")
    files: list[FileView] = Field(description="Every file of the result.")
    duration_seconds: float = Field(description="Seconds of execution.")
    engine: str = Field(
        description="`comfyui`, `simulator` where nothing was generated, or `cpu` where no GPU was "
        "needed."
    )
    backend: str = Field(description="The place that carried it out.")
    variant: str


P_co = TypeVar("P_co", bound=ToolParams, covariant=True)
R_co = TypeVar("R_co", bound=ToolResult, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Generic[P_co, R_co]):
    """One thing a caller can ask for."""

    name: str
    """Also the `tool` its workflows' manifests name."""
    summary: str
    description: str
    path: str
    files_path: str | None
    """Where its files are served; None = it makes text alone."""
    prefix: str
    """Key prefix of its files."""
    params: type[P_co]
    result: type[R_co]
    url_key: str | None = None
    """Field of the result that holds the first file's path."""
    urls_key: str | None = None
    """Field of the result that holds the paths of all files."""
    text_key: str | None = None
    """Field of the result that holds the text it made; the workflow's output has the same name."""
    by_output: bool = False
    """The result tells every value used, and files and texts by the workflow's names for them."""
    workflow: Workflow | None = None
    """The caller's own that carries it out; None = one of those here that name the tool."""
    params_key: str
    """Field of the result that holds the values really used."""
    reported: Mapping[str, str]
    """Name in `params_key` to the parameter it reports."""
    echoed: tuple[str, ...] = ()
    """Parameters repeated at the top of the result."""
    default_variant: str
    timeout_s: float
    """Most seconds one execution may take."""
    deadline_s: float
    """Most seconds from the call to its end, waiting included."""
    redraw: "Redraw | None" = None
    """How its picture is drawn anew before it is read, where the call has a prompt or a style."""
    then: str | None = None
    """Operation of `gateway.operations` that its first file goes through before it is a result."""
    size: Callable[[Mapping[str, JsonValue]], float] = lambda _: 1.0
    """How much work a call is, from every value used; estimates take time to grow with it."""
    examples: Mapping[str, dict[str, JsonValue]] = field(
        default_factory=dict[str, dict[str, JsonValue]]
    )
    """Bodies that run as they stand; the first is the smallest."""


AnyTool = Tool[ToolParams, ToolResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redraw:
    """Another tool's default variant, as a stage before a tool's own workflow."""

    tool: AnyTool
    picture: str
    """Parameter of the tool itself whose picture it is."""
    read_as: str
    """Parameter of the other tool that takes the picture, beside `prompt` and `seed`."""
    values: Mapping[str, JsonValue]
    """Further parameters of the other tool."""


def body_of(tool: AnyTool) -> type[ToolParams]:
    """Make what a call's body may hold: the tool's parameters, and the options of its job."""
    # a name callers generate code from: it stays that of the parameters
    made = create_model(tool.params.__name__, __base__=(JobOptions, tool.params))
    body = cast("type[ToolParams]", made)
    body.__doc__ = tool.params.__doc__
    body.OPTIONS = tool.params.OPTIONS | JobOptions.model_fields.keys()
    return body


def options_in(body: BaseModel) -> JobOptions:
    """Take the options of the job out of a call's body."""
    sent = body.model_dump(include=set(JobOptions.model_fields), exclude_unset=True)
    return JobOptions.model_validate(sent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A name of the first clients' route for a tool with presets."""

    name: str
    summary: str
    tool: AnyTool
    faces: str | None = None
    """Parameter of the tool that `face_images` fill."""
    target: str | None = None
    """Parameter of the tool that `target_image` fills."""
    presets: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
