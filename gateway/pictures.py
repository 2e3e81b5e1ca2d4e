"""A picture that belongs to a template or a style, and where it is served."""

from dataclasses import dataclass

from gateway.job import Source

TEMPLATES_PATH = "/api/templates"
STYLES_PATH = "/api/styles"
PICTURE_PREFIXES = {TEMPLATES_PATH: "templates", STYLES_PATH: "styles"}
"""Routes whose items have pictures, and the key prefix of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture in storage that is no job's file."""

    key: str
    media_type: str
    bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]

    def source(self) -> Source:
        """Make it a file a run reads; it stays when the job goes."""
        return Source(
            key=self.key, media_type=self.media_type, bytes=self.bytes, sha256=self.sha256
        )


def picture_path(path: str, item_id: str) -> str:
    """Where the picture of an item is served; the same for every picture it has had."""
    return f"{path}/{item_id}/image"


def has_picture(method: str, path: str) -> bool:
    """Tell whether the body of a request may be a form with a picture."""
    if method == "POST":
        return path in PICTURE_PREFIXES
    return method == "PUT" and path.rpartition("/")[0] in PICTURE_PREFIXES


def item_of(address: str) -> tuple[str, str] | None:
    """Route and id of the item whose picture an address of ours names; None when it names none."""
    for path in PICTURE_PREFIXES:
        if address.startswith(f"{path}/") and address.endswith("/image"):
            item_id = address[len(path) + 1 : -len("/image")]
            return (path, item_id) if item_id and "/" not in item_id else None
    return None
