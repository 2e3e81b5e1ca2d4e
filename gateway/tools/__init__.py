"""The catalogue: every tool, and the modes of the first clients' route, listed by hand."""

from gateway.tool import AnyTool, Mode
from gateway.tools.background_removal import BACKGROUND_REMOVAL
from gateway.tools.caption import CAPTION
from gateway.tools.concept import CONCEPT
from gateway.tools.control import CONTROL
from gateway.tools.generate import GENERATE
from gateway.tools.inpaint import INPAINT
from gateway.tools.mask import MASK
from gateway.tools.model3d import MODEL3D
from gateway.tools.portrait import PORTRAIT
from gateway.tools.rescale import RESCALE
from gateway.tools.upscale import UPSCALE
from gateway.tools.video import VIDEO

TOOLS: tuple[AnyTool, ...] = (
    GENERATE,
    MASK,
    INPAINT,
    VIDEO,
    BACKGROUND_REMOVAL,
    CAPTION,
    UPSCALE,
    PORTRAIT,
    CONTROL,
    CONCEPT,
    MODEL3D,
    RESCALE,
)

MODES: tuple[Mode, ...] = (
    Mode(name="free", summary="A picture from a prompt (image generation)", tool=GENERATE),
    Mode(
        name="portrait",
        summary="A portrait of the person on `face_images`",
        tool=PORTRAIT,
        faces="face_images",
    ),
    Mode(
        name="guided",
        summary="A picture along the lines of `target_image`",
        tool=CONTROL,
        target="image_url",
    ),
    Mode(
        name="concept",
        summary="One thing from a prompt, in a `style` (2D concept)",
        tool=CONCEPT,
        presets={"count": 1},
    ),
    Mode(
        name="edit",
        summary="`target_image`, changed as the prompt says",
        tool=CONCEPT,
        target="image_url",
        presets={"type": "image", "count": 1},
    ),
    Mode(
        name="cutout",
        summary="`target_image` without its background",
        tool=BACKGROUND_REMOVAL,
        target="image_url",
    ),
    Mode(name="upscale", summary="`target_image`, larger", tool=UPSCALE, target="image_url"),
)
