"""`docs/hostile.md`, written from the tables that tests go by: `-m tests.support.hostile_page`."""

from collections.abc import Iterator
from pathlib import Path

from tests.support.hostile_file import HostileFile
from tests.support.hostile_files import BESIDES, HOSTILE_FILES, MESHES, SOMETHING_ELSE, VIDEOS
from tests.support.hostile_stills import BOMBS, DAMAGED_FILES, MOVING
from tests.support.hostile_urls import (
    HOSTILE_URLS,
    LED,
    LITERALS,
    LOOKED_UP,
    OURS,
    SCHEMES,
    SPELLINGS,
    HostileUrl,
)

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"
_URLS = {
    "Addresses written as numbers": LITERALS,
    "Names and spellings": SPELLINGS,
    "Other schemes": SCHEMES,
    "Ours and stores": OURS,
    "Names that lead inside": LOOKED_UP,
    "Hosts that answer badly": LED,
}
_FILES = {
    "Bombs": BOMBS,
    "Damaged": DAMAGED_FILES,
    "Several frames": MOVING,
    "Something else": SOMETHING_ELSE,
    "Two things at once": BESIDES,
    "Videos": VIDEOS,
    "Meshes": MESHES,
}
_TOP = f"""\
<!-- Written by `python -m tests.support.hostile_page` from the tables in tests/support. -->

# Hostile addresses and files

What calls may name and send is nobody's to trust. These are the {len(HOSTILE_URLS)} addresses and
{len(HOSTILE_FILES)} files that the tests send to running services, each with what it gets. While
the addresses are sent, a server listens on every address of the machine: nothing ever connects to
it. Limits and codes are explained in [inputs](inputs.md), uploads in [uploads](uploads.md).

## Addresses

*call*: as a file of a tool, a `422` with this code, or `taken`, as only a look-up or the host's
answer tells. *fetch*: the code a GPU service ends the run with when it is told to fetch the address
all the same. *webhook*: as `webhook_url`. `<port>` is the port of the server that must hear
nothing, and is allowed by `FETCH_PORTS`; `<web>` that of one that may be asked, to which
`cdn.example` leads.
"""
_FILES_TOP = """
## Files

*call*: inside a call as a `data:` URI. *fetch*: from an address, by the GPU service. *media*:
`POST /api/media/upload`. *file*: `POST /api/files`. Codes are those of a `422`, of *fetch* the
job's. Of what is refused nothing stays, neither in storage nor in a cache, and no process ends or
grows by more than 600 MB. What is `taken` is served as what it is, with `nosniff`.
"""


def page() -> str:
    """Write the page."""
    return "\n".join([_TOP, *_urls(), _FILES_TOP, *_files()]) + "\n"


def _urls() -> Iterator[str]:
    for title, urls in _URLS.items():
        yield from (f"### {title}", "")
        yield "| what | address | why | call | fetch | webhook |"
        yield "| --- | --- | --- | --- | --- | --- |"
        yield from (_url(each) for each in urls)
        yield ""


def _url(each: HostileUrl) -> str:
    shown = each.url.format(port="<port>", web="<web>").encode("unicode_escape").decode()
    # letters beyond ASCII are what is meant; only what would break the line is spelled out
    if all(character.isprintable() for character in each.url):
        shown = each.url.format(port="<port>", web="<web>")
    address = f"`{shown}`" if len(shown) < 90 else f"`{shown[:60]}…`"
    webhook = _code(each.webhook) if each.webhook else "-"
    cells = (each.name, address, each.why, _code(each.call), _code(each.fetch), webhook)
    return _row(cells)


def _files() -> Iterator[str]:
    for title, files in _FILES.items():
        yield from (f"### {title}", "")
        yield "| what | why | call | fetch | media | file |"
        yield "| --- | --- | --- | --- | --- | --- |"
        yield from (_file(each) for each in files)
        yield ""


def _file(each: HostileFile) -> str:
    codes = (each.call, each.fetch, each.media, each.file)
    return _row((each.name, each.why, *map(_code, codes)))


def _code(code: str) -> str:
    return code if code == "taken" else f"`{code}`"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
