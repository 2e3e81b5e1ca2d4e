"""`python reading_gateway.py serve`: the gateway, with a tool more that reads a file."""

import gateway.tools
from tests.support.reading import INVERT

# before anything else has read them
gateway.tools.TOOLS = (*gateway.tools.TOOLS, INVERT)

from gateway.cli import cli  # noqa: E402 - see above

cli()
