"""The catalogue: every tool, and the modes of the first clients' route, listed by hand."""

from gateway.tool import AnyTool, Mode
from gateway.tools.background_removal import BACKGROUND_REMOVAL
from gateway.tools.caption import CAPTION
from gateway.tools.control import CONTROL
from gateway.tools.generate import GENERATE
from gateway.tools.inpaint import INPAINT
from gateway.tools.mask import MASK
from gateway.tools.portrait import PORTRAIT
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
)

MODES: tuple[Mode, ...] = (
    Mode(name="free", summary="A picture from a prompt (image generation)", tool=GENERATE),
)
