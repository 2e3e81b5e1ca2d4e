import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from gateway.observability.logging import JsonFormatter, configure, request_line


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], level = before
    root.setLevel(level)


def test_a_request_line_names_the_template_and_never_the_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("INFO", "json")
    request_line("id-1", "GET", "/api/images/{filename}", 200, 1.234)
    line = json.loads(stream.getvalue())
    assert line["route"] == "/api/images/{filename}"
    assert (line["status"], line["ms"], line["request_id"]) == (200, 1.2, "id-1")


def test_the_standard_form_is_one_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("WARNING", "standard")
    request_line("id-1", "GET", "/x", 200, 1)
    logging.getLogger("a").warning("careful")
    assert stream.getvalue().endswith("WARNING a: careful\n")
    assert stream.getvalue().count("\n") == 1


def test_an_exception_stays_inside_its_json_line() -> None:
    error = RuntimeError("broken")
    info = (type(error), error, None)
    record = logging.LogRecord("a", logging.ERROR, "", 1, "oh", None, info)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "RuntimeError: broken" in json.loads(text)["exception"]
