"""Names for saving: whatever is asked for, the header stays whole and the ending is the file's."""

import re
import unicodedata
from email.message import Message
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.api.disposition import disposition, is_document, safe_name

# RFC 6266: one quoted string that needs no escapes, and a value as RFC 8187 writes it
HEADER = re.compile(
    r'(inline|attachment); filename="([A-Za-z0-9 !#$&\'()+,.;=@\[\]^_`{}~-]+)"'
    r"(?:; filename\*=UTF-8''((?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+))?"
)


def header(name: str, media_type: str = "image/png", filename: str = "0a1b.png") -> str:
    return disposition(name, filename=filename, media_type=media_type, attachment=True)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("a mug.png", "a mug.png"),
        ("a mug", "a mug.png"),
        ("a mug.PNG", "a mug.PNG"),
        ("", "0a1b.png"),
        ("....", "0a1b.png"),
        (".png", "png.png"),
        ("../../etc/passwd", "_.._etc_passwd.png"),
        ("C:\\Windows\\system32\\x.png", "C__Windows_system32_x.png"),
        ('a"b\\c.png', "a_b_c.png"),
        ("a\r\nSet-Cookie: x=1.png", "aSet-Cookie_ x=1.png"),
        ("a\0b\x7f.png", "ab.png"),
        # looks like `evilexe.png` where the mark is obeyed
        ("evil\u202egnp.exe", "evilgnp.exe.png"),
        ("mug.jpg", "mug.jpg.png"),
        ("mug.html", "mug.html.png"),
        ("CON", "_CON.png"),
        ("nul.tar.png", "_nul.tar.png"),
        ("\ud800x.png", "x.png"),
        (" .hidden. ", "hidden.png"),
        ("x" * 10_000 + ".png", "x" * 150 + ".png"),
        ("ж" * 10_000, "ж" * 75 + ".png"),
    ],
)
def test_a_name_is_made_one_that_can_be_saved_under(name: str, saved: str) -> None:
    assert safe_name(name, filename="0a1b.png", media_type="image/png") == saved


def test_a_plain_name_stands_there_once_and_another_also_as_it_is() -> None:
    assert header("a mug.png") == 'attachment; filename="a mug.png"'
    assert header("é.png") == "attachment; filename=\"e.png\"; filename*=UTF-8''%C3%A9.png"
    assert header("катя.png") == (
        "attachment; filename=\"0a1b.png\"; filename*=UTF-8''%D0%BA%D0%B0%D1%82%D1%8F.png"
    )
    # some browsers take a quoted %41 for an A
    assert header("%41.png") == "attachment; filename=\"_41.png\"; filename*=UTF-8''%2541.png"


@pytest.mark.parametrize(
    ("name", "media_type", "filename", "saved"),
    [
        ("a.jpeg", "image/jpeg", "0.jpg", "a.jpeg"),
        ("a.jpg", "image/jpeg", "0.jpg", "a.jpg"),
        ("a.mov", "video/quicktime", "0.mov", "a.mov"),
        ("a.glb", "model/gltf-binary", "0.glb", "a.glb"),
        ("a", "application/x-unheard-of", "0.bin", "a.bin"),
        ("a", "text/plain", "no-ending", "a"),
    ],
)
def test_the_ending_is_one_of_the_files_type(
    name: str, media_type: str, filename: str, saved: str
) -> None:
    assert safe_name(name, filename=filename, media_type=media_type) == saved


@pytest.mark.parametrize(
    "media_type",
    [
        "text/html",
        "Text/HTML; charset=utf-8",
        "text/xml",
        "application/xml",
        "application/xhtml+xml",
        "image/svg+xml",
        "image/svg+xml;x=y",
    ],
)
def test_what_a_browser_would_run_is_always_for_saving(media_type: str) -> None:
    assert is_document(media_type)
    said = disposition("a", filename="0.svg", media_type=media_type, attachment=False)
    assert said.startswith("attachment; ")


def test_a_picture_is_shown_unless_it_is_to_be_saved() -> None:
    said = disposition("a", filename="0.png", media_type="image/png", attachment=False)
    assert said == 'inline; filename="a.png"'


@given(st.text(max_size=400))
@example("\u202e\u2066\u0000\r\n\"\\/%;'")
def test_no_text_whatever_breaks_the_header(name: str) -> None:
    said = header(name)
    found = HEADER.fullmatch(said)
    assert found is not None, said
    _, plain, extended = found.groups()
    saved = unquote(extended) if extended else plain
    assert saved.lower().endswith(".png")
    assert len(saved.encode()) <= 160
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in saved)
    assert not set(saved) & set('/\\:*?"<>|')
    # and a program that knows the old form alone reads that out of it
    message = Message()
    message["Content-Disposition"] = said
    assert message.get_filename() == plain
