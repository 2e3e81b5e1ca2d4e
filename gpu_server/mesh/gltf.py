"""The parts of a glTF 2.0 document that the work needs; everything else is carried along."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpu_server.mesh.errors import MeshError

T = TypeVar("T")
Index = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Vec3 = tuple[Number, Number, Number]
Vec4 = tuple[Number, Number, Number, Number]
Matrix = Annotated[tuple[Number, ...], Field(min_length=16, max_length=16)]

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
"""numpy's name of each component type."""
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
TRIANGLES, STRIP, FAN = 4, 5, 6


class Part(BaseModel):
    """An object of the document; properties it does not name come out as they went in."""

    # a stranger's document: what an extension added must survive
    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True
    )

    def plain(self) -> dict[str, Any]:
        """The object as JSON knows it, only with what was set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Buffer(Part):
    """The bytes everything lies in."""

    byte_length: Index
    uri: str | None = None


class BufferView(Part):
    """A slice of the buffer."""

    buffer: Index
    byte_offset: Index = 0
    byte_length: Annotated[int, Field(ge=1, strict=True)]
    byte_stride: Annotated[int, Field(ge=4, le=252, multiple_of=4, strict=True)] | None = None


class Accessor(Part):
    """Rows of numbers in a buffer view."""

    buffer_view: Index | None = None
    byte_offset: Index = 0
    component_type: Literal[5120, 5121, 5122, 5123, 5125, 5126]
    normalized: bool = False
    count: Annotated[int, Field(ge=1, strict=True)]
    type: Literal["SCALAR", "VEC2", "VEC3", "VEC4", "MAT2", "MAT3", "MAT4"]
    sparse: dict[str, Any] | None = None


class Primitive(Part):
    """What is drawn in one go with one material."""

    attributes: Annotated[dict[str, Index], Field(max_length=64)]
    indices: Index | None = None
    mode: Annotated[int, Field(ge=0, le=6, strict=True)] = TRIANGLES
    material: Index | None = None
    targets: tuple[Any, ...] = ()


class Mesh(Part):
    """Primitives that belong together."""

    name: str | None = None
    primitives: Annotated[tuple[Primitive, ...], Field(min_length=1)]


class Node(Part):
    """A place in the scene."""

    name: str | None = None
    children: tuple[Index, ...] = ()
    mesh: Index | None = None
    skin: Index | None = None
    matrix: Matrix | None = None
    translation: Vec3 = (0, 0, 0)
    rotation: Vec4 = (0, 0, 0, 1)
    scale: Vec3 = (1, 1, 1)


class Scene(Part):
    """Nodes that are shown together."""

    nodes: tuple[Index, ...] = ()


class Image(Part):
    """A texture's file."""

    buffer_view: Index | None = None
    mime_type: str | None = None
    uri: str | None = None


class WebP(Part):
    """An image that goes before the texture's own."""

    source: Index | None = None


class TextureExtensions(Part):
    """The one extension of textures that names another image."""

    webp: WebP | None = Field(default=None, alias="EXT_texture_webp")


class Texture(Part):
    """An image and how it is sampled."""

    source: Index | None = None
    extensions: TextureExtensions = TextureExtensions()

    def image(self) -> int | None:
        """The image that is shown; WebP goes before what stands in for it."""
        webp = self.extensions.webp
        return self.source if webp is None or webp.source is None else webp.source


class TextureUse(Part):
    """A material's reference to a texture."""

    index: Index


class Metallic(Part):
    """Base colour, metal and roughness."""

    base_color_factor: Vec4 = (1, 1, 1, 1)
    base_color_texture: TextureUse | None = None
    metallic_factor: Number = 1
    roughness_factor: Number = 1
    metallic_roughness_texture: TextureUse | None = None


class Material(Part):
    """What a surface looks like."""

    pbr_metallic_roughness: Metallic = Metallic()
    normal_texture: TextureUse | None = None
    occlusion_texture: TextureUse | None = None
    emissive_texture: TextureUse | None = None
    emissive_factor: Vec3 = (0, 0, 0)


class Asset(Part):
    """Which glTF this is."""

    version: Annotated[str, Field(pattern=r"^2\.\d+$")]


class Document(Part):
    """A whole glTF document."""

    asset: Asset
    scene: Index | None = None
    scenes: tuple[Scene, ...] = ()
    nodes: tuple[Node, ...] = ()
    meshes: tuple[Mesh, ...] = ()
    accessors: tuple[Accessor, ...] = ()
    buffer_views: tuple[BufferView, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    images: tuple[Image, ...] = ()
    textures: tuple[Texture, ...] = ()
    materials: tuple[Material, ...] = ()
    skins: tuple[Any, ...] = ()
    animations: tuple[Any, ...] = ()
    extensions_used: tuple[str, ...] = ()
    extensions_required: tuple[str, ...] = ()

    def roots(self) -> tuple[int, ...]:
        """The nodes of the scene that is shown; without scenes, all that are nobody's child."""
        if self.scenes:
            return self.scenes[self.scene or 0].nodes
        children = {child for node in self.nodes for child in node.children}
        return tuple(n for n in range(len(self.nodes)) if n not in children)


def item(items: Sequence[T], index: int, what: str) -> T:
    """Look an item up; a reference to nothing is the file's fault."""
    if index >= len(items):
        raise MeshError("mesh_invalid", f"The glTF document refers to a {what} it does not have.")
    return items[index]
