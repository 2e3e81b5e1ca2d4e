"""A form whose one part is a file, read as it comes: its bytes are passed on and never kept."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

from fastapi import Request
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.api.forms import FORM, form_body
from gateway.errors import FieldError, InvalidParameters, PayloadTooLarge, UnsupportedMediaType

FIELD = "file"
_AROUND = 64 * 1024
"""Most bytes of a form that are not its file's: boundaries, headers, what follows the end."""
_LONGEST_FIELD = 100
_LENGTH_DIGITS = 18
_AS_IT_IS = frozenset({b"", b"7bit", b"8bit", b"binary"})


class FormReader:
    """Takes a body piece by piece and gives the pieces of its file.

    Every method raises InvalidParameters for a form that is none, or has anything but one file.
    """

    def __init__(self, boundary: bytes) -> None:
        self.name = ""
        """What the caller calls the file; once `begun`."""
        self.begun = False
        """Its headers have been read."""
        self._total = 0
        self._received = 0
        self._ended = False
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _broken() from None

    def feed(self, data: bytes) -> list[bytes]:
        """Read on; the bytes of the file that were in it."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise _broken() from None
        pieces, self._pieces = self._pieces, []
        self._total += len(data)
        self._received += sum(map(len, pieces))
        if self._total - self._received > _AROUND:
            raise _broken()
        return pieces

    def finish(self) -> None:
        """Say that nothing more comes: the form must be whole, with a file in it."""
        # a browser sends an empty part without a name where no file was chosen
        if self._ended and (not self.begun or not (self.name or self._received)):
            _refuse("missing", "is required: send a multipart form with the file in this part")
        if not self._ended:
            raise _broken()
        if not self._received:
            _refuse("empty_file", "has no bytes")

    def _part_begins(self) -> None:
        self._headers = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_ends(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode(errors="replace")
        if kind != b"form-data" or not name:
            raise _broken()
        if name != FIELD:
            _refuse("extra_forbidden", "is not a parameter here: remove it", name[:_LONGEST_FIELD])
        if self.begun:
            _refuse("sent_twice", "send one file only")
        if b"filename" not in options:
            _refuse("file_expected", "must be a file: give the part a file name")
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in _AS_IT_IS:
            _refuse("encoded", "must be sent as it is, without Content-Transfer-Encoding")
        self.name = options[b"filename"].decode(errors="replace")
        self.begun = True

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._ended = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedFile:
    """A file that is still arriving."""

    name: str
    """What the caller calls it; anything at all."""
    expected: int
    """About how many bytes it will have; 0 = nothing was said."""
    chunks: AsyncIterator[bytes]
    """Its bytes, to be read once. Raises InvalidParameters, PayloadTooLarge, ClientDisconnect."""


async def streamed_file(request: Request, *, most: int) -> StreamedFile:
    """Read the body up to where its file begins; `most` = the most bytes of it.

    Raises UnsupportedMediaType, PayloadTooLarge, InvalidParameters and ClientDisconnect.
    """
    stated = request.headers.get("content-length", "")
    length = int(stated) if stated.isdecimal() and len(stated) <= _LENGTH_DIGITS else 0
    if length > most + _AROUND:
        raise _too_large(most)
    reader = FormReader(_boundary(request))
    body = request.stream()
    first: list[bytes] = []
    async for data in body:
        first = reader.feed(data)
        if reader.begun:
            break
    if not reader.begun:
        reader.finish()
    return StreamedFile(
        name=reader.name, expected=length, chunks=_chunks(reader, first, body, most)
    )


def file_body(model: type[BaseModel]) -> dict[str, Any]:
    """Build the `openapi_extra` of a route that reads such a form."""
    return form_body(model, {"a file": {}})


async def _chunks(
    reader: FormReader, first: list[bytes], body: AsyncIterator[bytes], most: int
) -> AsyncIterator[bytes]:
    received = 0
    for piece in first:
        received += len(piece)
        yield piece
    async for data in body:
        for piece in reader.feed(data):
            received += len(piece)
            if received > most:
                raise _too_large(most)
            yield piece
    reader.finish()


def _boundary(request: Request) -> bytes:
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type != FORM.encode():
        raise UnsupportedMediaType(f"Send the file as a form with `Content-Type: {FORM}`.")
    boundary = options.get(b"boundary")
    if not boundary:
        raise _broken()
    return boundary


def _refuse(code: str, message: str, field: str = FIELD) -> NoReturn:
    raise InvalidParameters([FieldError(field=field, code=code, message=message)])


def _broken() -> InvalidParameters:
    message = f"could not be read as a form: send {FORM}, complete, with one file in it"
    return InvalidParameters([FieldError(field="body", code="form_invalid", message=message)])


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"A file may have at most {most} bytes.")
