"""Image to 3D: the thing on a picture as a mesh, clean and in the unit cube."""

from typing import Annotated

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import WHOLE, ImageUrl, Prompt, Seed
from gateway.operations import NORMALISE
from gateway.tool import FileParams, Redraw, StyledParams, Tool, ToolResult
from gateway.tools.concept import CONCEPT


class Model3dParams(StyledParams, FileParams):
    """Parameters of `POST /api/model3d`."""

    input_image_url: ImageUrl = Field(description="A picture of one thing, whole.")
    prompt: Prompt | None = Field(
        default=None,
        description="What to make of the picture first: with this or `styleId` it is drawn anew as "
        "`POST /api/concept` does, and the mesh made from that. Absent: from the picture itself.",
        examples=["the same mug with a lid, whole, on a plain white background"],
    )
    seed: Seed | None = Field(
        default=None, description="Absent: drawn at random; the seed used is always reported."
    )
    target_faces: Annotated[int, Field(ge=1000, le=2_000_000), WHOLE] = Field(
        default=200_000, description="Most triangles of the mesh, before holes are closed."
    )
    texture_size: Annotated[int, Field(ge=512, le=4096), WHOLE] = Field(
        default=2048, description="Width and height of each texture in pixels."
    )


class UsedModel3dParams(BaseModel):
    """Every value really used."""

    prompt: str | None = Field(description="As sent, without the words of the style.")
    styleId: str | None  # noqa: N815  # the name existing clients read
    seed: int
    target_faces: int | None = Field(description="Null where the variant takes none.")
    texture_size: int | None = Field(description="Null where the variant takes none.")


class Model3dResult(ToolResult):
    """The mesh."""

    normalized_model_url: str = Field(description="Stable path of the mesh, a GLB.")
    model_params: UsedModel3dParams


MODEL3D = Tool(
    name="model3d",
    summary="Make a 3D model from a picture",
    description="Makes a mesh of the thing on a picture, cleans it (duplicate and degenerate "
    "faces, stray vertices, small holes) and brings it into the unit cube: centred, its longest "
    "side 1, y up.",
    path="/api/model3d",
    files_path="/api/meshes",
    prefix="meshes",
    params=Model3dParams,
    result=Model3dResult,
    url_key="normalized_model_url",
    params_key="model_params",
    reported={name: name for name in UsedModel3dParams.model_fields},
    default_variant="trellis2",
    timeout_s=3600,
    deadline_s=12 * 3600,
    redraw=Redraw(
        tool=CONCEPT,
        picture="input_image_url",
        read_as="image_url",
        values={"type": "image", "count": 1},
    ),
    then=NORMALISE,
    examples={
        "a picture": {"input_image_url": MUG, "target_faces": 10_000, "texture_size": 512},
        "drawn anew": {"input_image_url": MUG, "prompt": "a mug with a lid", "styleId": "clay"},
    },
)
