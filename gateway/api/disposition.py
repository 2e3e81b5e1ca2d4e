"""`Content-Disposition` for any name whatever (RFC 6266): what a file is called when it is saved.

A name comes from whoever uploaded the file, or from whoever wrote the link. It can neither break
the header nor pass one kind of file for another: its ending is always one of the file's own type.
"""

import mimetypes
import re
import unicodedata
from urllib.parse import quote

_LONGEST = 150
"""Bytes of UTF-8: with its ending it fits every file system."""
# what a browser would run as a document of ours is only offered as a download
_DOCUMENTS = re.compile(r"(text/html|text/xml|application/(.*\+)?xml|image/svg\+xml)\b.*")
# path separators, and what Windows takes no file name with
_SEPARATORS = re.compile(r'[/\\:*?"<>|]')
# controls, and marks that are not seen: one of them turns the rest of the text round
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_UNQUOTED = re.compile(r"[^A-Za-z0-9 !#$&'()+,.;=@\[\]^_`{}~-]")
# what Windows takes for a device, whatever its ending
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAMES_OF = {"image/jpeg": {".jpg", ".jpeg"}, "video/quicktime": {".mov", ".qt"}}


def is_document(media_type: str) -> bool:
    """Whether a browser that is given the file would run what is in it."""
    return _DOCUMENTS.fullmatch(media_type.strip().lower()) is not None


def disposition(name: str, *, filename: str, media_type: str, attachment: bool) -> str:
    """The header's value; `filename` is what the file is called here, for want of a better name."""
    kind = "attachment" if attachment or is_document(media_type) else "inline"
    safe = safe_name(name, filename=filename, media_type=media_type)
    if (plain := _in_ascii(safe)) == safe:
        return f'{kind}; filename="{safe}"'
    extended = quote(safe, safe="")
    return f"{kind}; filename=\"{plain or filename}\"; filename*=UTF-8''{extended}"


def _in_ascii(name: str) -> str:
    """What old programs are told: the nearest there is in ASCII; empty where that says nothing."""
    stem, dot, ending = name.rpartition(".")
    stem, ending = (stem, dot + ending) if dot else (ending, "")
    folded = (unicodedata.normalize("NFKD", part) for part in (stem, ending))
    plain = [_UNQUOTED.sub("_", part.encode("ascii", "ignore").decode()) for part in folded]
    told = plain[0].strip(" .")
    return told + plain[1] if told.strip("_ ") else ""


def safe_name(name: str, *, filename: str, media_type: str) -> str:
    """A name that can be saved under, ending as a file of that type does."""
    # the rest of a very long one is not even looked at
    text = unicodedata.normalize("NFC", name[: 4 * _LONGEST])
    text = "".join(c for c in text if unicodedata.category(c) not in _UNSEEN)
    text = _SEPARATORS.sub("_", text).strip(" .")
    ending = filename[filename.rfind(".") :] if "." in filename else ""
    stem, own = _split(text, _endings(media_type, ending))
    stem = stem.encode()[:_LONGEST].decode(errors="ignore").rstrip(" .")
    stem = f"_{stem}" if _DEVICES.fullmatch(stem) else stem
    return f"{stem}{own or ending}" if stem else filename


def _endings(media_type: str, ending: str) -> frozenset[str]:
    """Endings, lower case, that a file of that type may have."""
    known = _NAMES_OF.get(media_type) or mimetypes.guess_all_extensions(media_type)
    return frozenset({*known, ending.lower()} - {""})


def _split(text: str, endings: frozenset[str]) -> tuple[str, str]:
    at = text.rfind(".")
    return (text[:at], text[at:]) if at > 0 and text[at:].lower() in endings else (text, "")
