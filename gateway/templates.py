"""Prompts with gaps: a trigger keyword, `{name}` for a variable, braces doubled for braces."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from gateway.media import MAX_PROMPT
from gateway.pictures import Picture

DEFAULT_KEYWORD = "TRIGGER_WORD"
KEYWORD = re.compile(r"[^{}]+|\{\w[\w.-]{0,63}\}")
"""What may be a trigger keyword: text without braces, or what looks like a variable."""
TRIGGER_WORD = "trigger_word"
"""The variable that stands for the trigger word unless it is given another value."""

_PARTS = r"\{\{|\}\}|\{(\w[\w.-]{0,63})\}|[{}]"


class Malformed(Exception):
    """A brace stands alone; the message says where and what to do."""


class Unresolved(Exception):
    """Variables of the text have no value."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(", ".join(names))
        self.names = names


class TooLong(Exception):
    """The text would be longer than a prompt may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A prompt to be used again, for whatever the trigger word stands for."""

    id: str
    name: str
    prompt: str
    trigger_keyword: str
    image: Picture
    created_at: datetime
    updated_at: datetime

    def resolve(self, trigger_word: str, variables: Mapping[str, str]) -> str:
        """Fill every gap. Raises Malformed, Unresolved and TooLong."""
        values = {TRIGGER_WORD: trigger_word, **variables}
        return fill(self.prompt, values, keyword=self.trigger_keyword, word=trigger_word)


def variables_in(text: str, keyword: str | None = None) -> tuple[str, ...]:
    """List the variables of a text, each once. Raises Malformed."""
    found = (name for kind, name in _gaps(text, keyword) if kind == "variable")
    return tuple(dict.fromkeys(found))


def fill(
    text: str, variables: Mapping[str, str], *, keyword: str | None = None, word: str = ""
) -> str:
    """Put values into a text, in one pass: what a value says is never read again.

    Raises Malformed, Unresolved and TooLong.
    """
    missing = tuple(n for n in variables_in(text, keyword) if n not in variables)
    if missing:
        raise Unresolved(missing)
    made: list[str] = []
    length = 0
    for kind, part in _gaps(text, keyword):
        piece = {"variable": variables.get(part, ""), "keyword": word}.get(kind, part)
        length += len(piece)
        # counted on the way: a short text may name a long value a thousand times
        if length > MAX_PROMPT:
            raise TooLong
        made.append(piece)
    return "".join(made)


def _gaps(text: str, keyword: str | None) -> Iterator[tuple[str, str]]:
    """Cut a text into (`text` | `variable` | `keyword`, content). Raises Malformed."""
    pattern = re.compile(f"({re.escape(keyword)})|{_PARTS}" if keyword else f"(?!)()|{_PARTS}")
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            yield "text", text[end : match.start()]
        end = match.end()
        if match[1]:
            yield "keyword", match[1]
        elif match[2]:
            yield "variable", match[2]
        elif len(match[0]) > 1:
            yield "text", match[0][0]
        else:
            raise Malformed(
                f"has a {match[0]} at character {match.start() + 1} that belongs to no {{name}}: "
                f"write it twice to mean itself"
            )
    if end < len(text):
        yield "text", text[end:]
