"""Files that must do no harm, each made here, and what it gets by each way in."""

import struct
import zlib

from tests.support import hostile_pictures as made
from tests.support import uploads
from tests.support.hostile_file import KIND, PAGE, TAKEN, all_alike, got, none_of_ours, text
from tests.support.hostile_pictures import SCRIPT
from tests.support.hostile_stills import BOMBS, DAMAGED_FILES, MOVING

SOMETHING_ELSE = (
    got("ZIP as .png", made.archive, "its name proves nothing", KIND, KIND, KIND, TAKEN),
    text("web page as .png", lambda: b"<!doctype html>" + SCRIPT, "would run on our origin"),
    text("SVG with a script", made.svg, "would run on our origin"),
    text(
        "SVG that reads a file",
        lambda: made.svg(b'<image href="file:///etc/passwd"/>'),
        "would read our disk",
    ),
    text(
        "SVG that asks a server",
        lambda: made.svg(b'<image href="http://127.0.0.1/"/>'),
        "would ask our network",
    ),
    text("XML that unfolds", made.laughs, "3 GB of laughter"),
    none_of_ours(
        "SVG, compressed",
        lambda: b"\x1f\x8b\x08\0" + bytes(6) + zlib.compress(made.svg()),
        "an SVG all the same",
    ),
    none_of_ours("PDF with a script", made.pdf, "programs of its own"),
    none_of_ours(
        "PDF with a PNG in it",
        lambda: made.pdf(made.saved("PNG")),
        "what its beginning says it is counts",
    ),
    none_of_ours(
        "PostScript",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        "Ghostscript would run it",
    ),
    none_of_ours(
        "EPS with a preview",
        lambda: b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0\n",
        "Ghostscript would run it",
    ),
    none_of_ours(
        "PSD",
        lambda: b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300),
        "one of many decoders, none of them needed",
    ),
    none_of_ours("TIFF", lambda: made.saved("TIFF"), "one of many decoders, none of them needed"),
    none_of_ours("BMP", lambda: made.saved("BMP"), "one of many decoders, none of them needed"),
    none_of_ours(
        "ICO", lambda: made.saved("ICO", (32, 32)), "one of many decoders, none of them needed"
    ),
    none_of_ours(
        "JPEG 2000",
        lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200),
        "one of many decoders, none of them needed",
    ),
    none_of_ours("TGA", lambda: made.saved("TGA"), "it has no signature: anything could be one"),
    none_of_ours("HEIC", lambda: made.boxed(b"heic"), "begins as a video does"),
    none_of_ours("AVIF", lambda: made.boxed(b"avif"), "begins as a video does"),
    none_of_ours(
        "RIFF that is no WebP",
        lambda: b"RIFF\x20\0\0\0AVI LIST" + bytes(99),
        "its name proves nothing",
    ),
    none_of_ours("WebP without RIFF", lambda: b"AAAAAAAAWEBPVP8 " + bytes(99), "half a signature"),
    none_of_ours("program", lambda: b"\x7fELF\x02\x01\x01" + bytes(200), "runs"),
    none_of_ours("program of Windows", lambda: b"MZ\x90\0" + bytes(200), "runs"),
    none_of_ours("shell script", lambda: b"#!/bin/sh\nid\n", "runs"),
    none_of_ours("pickle", lambda: b"\x80\x04cos\nsystem\n(S'id'\ntR.", "runs when it is loaded"),
)

BESIDES = (
    all_alike(
        "PNG with a web page behind it",
        lambda: made.saved("PNG") + SCRIPT,
        TAKEN,
        "served as image/png with `nosniff`: no browser reads on",
    ),
    all_alike(
        "PNG with a program in its text",
        lambda: made.with_chunk(b"tEXt", b"Comment\0<?php system($_GET[0]); ?>"),
        TAKEN,
        "nothing here runs what it serves",
    ),
    all_alike(
        "PNG with a ZIP behind it",
        lambda: made.saved("PNG") + made.archive(),
        TAKEN,
        "served as image/png; nothing unpacks it",
    ),
    all_alike(
        "JPEG with a ZIP behind it",
        lambda: made.saved("JPEG") + made.archive(),
        TAKEN,
        "served as image/jpeg; nothing unpacks it",
    ),
    all_alike(
        "JPEG with a script as its comment",
        lambda: made.jpeg_with(b"\xff\xfe\0\x29" + SCRIPT),
        TAKEN,
        "served as image/jpeg with `nosniff`",
    ),
    all_alike(
        "GIF that is a Java archive (GIFAR)",
        lambda: made.saved("GIF") + made.archive(),
        TAKEN,
        "served as image/gif; nothing unpacks it",
    ),
    all_alike(
        "GIF that is JavaScript",
        lambda: made.saved("GIF") + b"*/=1;alert(1);/*",
        TAKEN,
        "served as image/gif with `nosniff`: no browser runs it",
    ),
)

_PLAYLIST = b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
_CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"


def _large_video() -> bytes:
    """A video whose description states 100,000 on a side."""
    whole = bytearray(uploads.video())
    track, sample = whole.index(b"tkhd"), whole.index(b"mp4v", whole.index(b"stsd"))
    whole[track + 80 : track + 88] = struct.pack(">HHHH", 65_535, 0, 65_535, 0)
    whole[sample + 28 : sample + 32] = struct.pack(">HH", 65_535, 65_535)
    return bytes(whole)


def _glb(text: bytes, *, length: int | None = None, version: int = 2) -> bytes:
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    return struct.pack("<4sII", b"glTF", version, length or 12 + len(body)) + body


_BAD_VIDEO = "unreadable_video"
VIDEOS = (
    got(
        "playlist as .mp4",
        lambda: _PLAYLIST,
        "would read our disk",
        KIND,
        KIND,
        KIND,
        KIND,
        reads="video",
    ),
    got(
        "list of files as .mp4",
        lambda: _CONCAT,
        "would read our disk",
        KIND,
        KIND,
        KIND,
        KIND,
        reads="video",
    ),
    got(
        "web page as .mp4",
        lambda: b"<html>" + SCRIPT,
        "would run on our origin",
        KIND,
        PAGE,
        KIND,
        KIND,
        reads="video",
    ),
    got(
        "MP4 without its description",
        lambda: uploads.video()[: uploads.video().index(b"moov") - 4],
        "no player reads it; ComfyUI says so",
        TAKEN,
        TAKEN,
        _BAD_VIDEO,
        _BAD_VIDEO,
        reads="video",
    ),
    got(
        "MP4 cut off",
        lambda: uploads.video()[:500],
        "no player reads it; ComfyUI says so",
        TAKEN,
        TAKEN,
        _BAD_VIDEO,
        _BAD_VIDEO,
        reads="video",
    ),
    got(
        "MP4 of 65535 on a side",
        _large_video,
        "what it states is not what it has: the size of its pixels counts",
        TAKEN,
        TAKEN,
        TAKEN,
        TAKEN,
        reads="video",
    ),
    got(
        "WebM of a header alone",
        lambda: b"\x1aE\xdf\xa3\x84\x42\x82\x81w",
        "no player reads it; ComfyUI says so",
        TAKEN,
        TAKEN,
        _BAD_VIDEO,
        _BAD_VIDEO,
        reads="video",
    ),
)

MESHES = (
    got(
        "GLB of another length",
        lambda: _glb(b"{}", length=2**31),
        "states 2 GB",
        "damaged_file",
        "damaged_file",
        KIND,
        "damaged_file",
        reads="model",
    ),
    got(
        "GLB of version 1",
        lambda: _glb(b"{}", version=1),
        "another format",
        "damaged_file",
        "damaged_file",
        KIND,
        KIND,
        reads="model",
    ),
    got(
        "GLB of four bytes",
        lambda: b"glTF",
        "half a header",
        "damaged_file",
        "damaged_file",
        KIND,
        "damaged_file",
        reads="model",
    ),
    got(
        "GLB that names a file",
        lambda: _glb(
            b'{"asset":{"version":"2.0"},"buffers":[{"uri":"file:///etc/passwd","byteLength":9}]}'
        ),
        "refused when it is read: only what is inside counts",
        TAKEN,
        TAKEN,
        KIND,
        TAKEN,
        reads="model",
    ),
    got(
        "GLB that names a server",
        lambda: _glb(b'{"asset":{"version":"2.0"},"images":[{"uri":"http://127.0.0.1/"}]}'),
        "refused when it is read: only what is inside counts",
        TAKEN,
        TAKEN,
        KIND,
        TAKEN,
        reads="model",
    ),
    got(
        "GLB nested 100,000 deep",
        lambda: _glb(b"[" * 100_000),
        "refused when it is read, in a process of its own",
        TAKEN,
        TAKEN,
        KIND,
        TAKEN,
        reads="model",
    ),
)

HOSTILE_FILES = (
    *BOMBS,
    *DAMAGED_FILES,
    *MOVING,
    *SOMETHING_ELSE,
    *BESIDES,
    *VIDEOS,
    *MESHES,
)
