"""Texts taken apart into plain words, their disguises taken off. Linear in their length."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gateway.security import policy_words as w

STOP = ","
"""Stands for every punctuation mark between two words."""

_PIECE = re.compile(r"(?:[^\W_]|[@$])+|[.,;:!?()\[\]{}|\n/]")
_WRITTEN_TOGETHER = re.compile(r"([0-9]{1,2})(yo|yrs?|years?)")
_APOSTROPHE = re.compile(r"['\u2019](?:s\b)?")
_STOPS = frozenset(".,;:!?()[]{}|\n/")
_LETTERS_IN_A_ROW = 4


def words(text: str) -> list[str]:
    """Split a text into plain small words and stops, its disguises taken off."""
    found: list[str] = []
    for piece in _PIECE.findall(_APOSTROPHE.sub("", _plain(text))):
        aged = _WRITTEN_TOGETHER.fullmatch(piece)
        if aged is not None:
            found += aged.groups()
        elif piece in _STOPS:
            found.append(STOP)
        elif piece.isalpha():
            found.append(piece)
        else:
            found.append(_spelled(piece))
    return list(_joined(found))


def phrases(lines: Iterable[str]) -> dict[str, list[list[str]]]:
    """Prepare phrases to be looked for, by their first word."""
    found: dict[str, list[list[str]]] = {}
    for line in lines:
        phrase = [word for word in words(line) if word != STOP]
        if phrase:
            found.setdefault(phrase[0], []).append(phrase)
    return found


def says(text: Sequence[str], wanted: Mapping[str, list[list[str]]]) -> bool:
    """Whether a text holds one of the phrases."""
    return any(
        list(text[i : i + len(phrase)]) == phrase
        for i, word in enumerate(text)
        for phrase in wanted.get(word, ())
    )


def _plain(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Marks go first: putting a long row of them into order would take quadratic time.
    whole = unicodedata.normalize("NFKD", _without_marks(text))
    return _without_marks(whole).casefold()


def _without_marks(text: str) -> str:
    return "".join(
        c for c in text if c.isspace() or unicodedata.category(c) not in {"Cc", "Cf", "Mn", "Me"}
    )


def _spelled(piece: str) -> str:
    """Read digits and signs as letters, where a word comes of it that a rule looks for."""
    for table in w.DIGITS_AS_LETTERS:
        read = piece.translate(table)
        if read != piece and (read in w.DISGUISED or read.startswith(w.UNDRESSING)):
            return read
    return piece


def _joined(pieces: Sequence[str]) -> Iterator[str]:
    """Put words together that are written letter by letter, and look-alike letters right."""
    row: list[str] = []
    for piece in (*pieces, ""):
        if len(piece) == 1 and (piece.isalpha() or (piece == STOP and row)):
            row.append(piece)
            continue
        letters = [letter for letter in row if letter.isalpha()]
        yield from [_unmixed("".join(letters))] if len(letters) >= _LETTERS_IN_A_ROW else row
        row.clear()
        if piece:
            yield piece if piece.isascii() else _unmixed(piece)


def _unmixed(word: str) -> str:
    read = word.translate(w.CONFUSABLES)
    return read if read.isascii() else word
