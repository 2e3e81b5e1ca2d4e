"""What a video or mesh really is, by its first bytes: what its sender calls it proves nothing."""

from gpu_server.media_types import HEAD, mesh_damage, sniff


def media_type_of(data: bytes) -> str | None:
    """Name the media type; None when it is none that a tool reads."""
    found = sniff(data[:HEAD], "")
    if found == "video/x-matroska":
        return "video/webm"  # what it is a kind of
    return found if found.startswith(("video/", "model/")) else None


def damage_of(data: bytes, media_type: str) -> str | None:
    """Say what is wrong with a whole file of that type, as far as its frame tells."""
    return mesh_damage(data[:HEAD], len(data)) if media_type == "model/gltf-binary" else None
