"""A form with one file, cut into pieces anywhere."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.streamed_form import FormReader
from gateway.errors import InvalidParameters

BOUNDARY = b"----boundary7MA4YWxkTrZu0gW"
FILE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) + b"\r\n--" + BOUNDARY[:-1] + b"\r\n\r\n--\r"


def part(data: bytes, *headers: str) -> bytes:
    lines = headers or ('Content-Disposition: form-data; name="file"; filename="mug.png"',)
    head = "\r\n".join(lines).encode()
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def read(pieces: Iterable[bytes]) -> tuple[bytes, str]:
    """The file of a form, and what it is called."""
    reader = FormReader(BOUNDARY)
    found = b"".join(piece for data in pieces for piece in reader.feed(data))
    reader.finish()
    return found, reader.name


def cut(body: bytes, places: Iterable[int]) -> Iterator[bytes]:
    last = 0
    for place in sorted(places):
        yield body[last:place]
        last = place
    yield body[last:]


def refusal(*pieces: bytes) -> tuple[str, str]:
    with pytest.raises(InvalidParameters) as raised:
        read(pieces)
    (error,) = raised.value.errors
    return error.field, error.code


def test_the_file_is_the_same_wherever_the_body_is_cut_in_two() -> None:
    body = form(part(FILE))
    for place in range(len(body) + 1):
        assert read(cut(body, [place])) == (FILE, "mug.png"), place


def test_the_file_is_the_same_byte_by_byte() -> None:
    body = form(part(FILE))
    assert read(body[n : n + 1] for n in range(len(body))) == (FILE, "mug.png")


@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"\r", b"\n", b"--", b"\r\n--", b"\r\n--" + BOUNDARY[:9]]),
        ),
        min_size=1,
    ).map(b"".join),
    places=st.sets(st.integers(0, 600)),
)
def test_any_file_comes_through_any_cut(data: bytes, places: set[int]) -> None:
    if data:
        assert read(cut(form(part(data)), places)) == (data, "mug.png")


@given(st.binary(max_size=300), st.sets(st.integers(0, 300)))
def test_what_is_no_form_is_refused_and_nothing_else(body: bytes, places: set[int]) -> None:
    assert refusal(*cut(b"--" + BOUNDARY + body, places))


def test_what_follows_the_end_is_passed_over() -> None:
    assert read([form(part(FILE)), b"more\r\n"]) == (FILE, "mug.png")


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        (b"", "body", "form_invalid"),
        (form(), "file", "missing"),
        (form(part(b"", 'Content-Disposition: form-data; name="file"; filename=""')),
         "file", "missing"),
        (form(part(b"")), "file", "empty_file"),
        (form(part(FILE), part(FILE)), "file", "sent_twice"),
        (form(part(b"x", 'Content-Disposition: form-data; name="file"')),
         "file", "file_expected"),
        (form(part(b"x", 'Content-Disposition: form-data; name="card"')),
         "card", "extra_forbidden"),
        (form(part(FILE), part(b"x", 'Content-Disposition: form-data; name="card"')),
         "card", "extra_forbidden"),
        (form(part(b"x", 'Content-Disposition: attachment; name="file"; filename="x"')),
         "body", "form_invalid"),
        (form(part(b"x", "Content-Type: image/png")), "body", "form_invalid"),
        (form(part(b"eA==", 'Content-Disposition: form-data; name="file"; filename="x"',
                   "Content-Transfer-Encoding: base64")), "file", "encoded"),
        (form(part(FILE))[:-6], "body", "form_invalid"),
        (part(FILE), "body", "form_invalid"),
        (b"no form at all", "body", "form_invalid"),
        (part(b"x", "X: " + "y" * 9000), "body", "form_invalid"),
        (part(b"x", *[f"X{n}: y" for n in range(99)]), "body", "form_invalid"),
    ],
)  # fmt: skip
def test_what_is_not_a_form_with_one_file_is_refused(body: bytes, field: str, code: str) -> None:
    assert refusal(body) == (field, code)
    assert refusal(*(body[n : n + 1] for n in range(len(body)))) == (field, code)


def test_a_form_is_not_read_on_for_ever() -> None:
    assert refusal(*[b"\r\n" * 1000] * 100) == ("body", "form_invalid")
    assert refusal(form(part(FILE)), *[b"x" * 1000] * 100) == ("body", "form_invalid")


def test_a_boundary_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidParameters):
        FormReader(b"x" * 1000)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ('filename="mug.png"', "mug.png"),
        ("filename=mug.png", "mug.png"),
        ('filename="Größe.png"', "Größe.png"),
        ('filename="a;b.png"', "a;b.png"),
        ('filename="..\\\\..\\\\x.png"', "..\\..\\x.png"),
    ],
)
def test_the_name_is_as_it_was_sent(sent: str, name: str) -> None:
    header = f'Content-Disposition: form-data; name="file"; {sent}'
    assert read([form(part(FILE, header))]) == (FILE, name)
