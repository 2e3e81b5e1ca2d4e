"""The catalogue: every tool, and the modes of the first clients' route, listed by hand."""

from gateway.tool import AnyTool, Mode
from gateway.tools.generate import GENERATE

TOOLS: tuple[AnyTool, ...] = (GENERATE,)

MODES: tuple[Mode, ...] = (
    Mode(name="free", summary="A picture from a prompt (image generation)", tool=GENERATE),
)
