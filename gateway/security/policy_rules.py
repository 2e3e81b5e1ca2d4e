"""What the default policy reads in one text. Pure, and linear in the length of the text."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

from gateway.security import policy_words as w
from gateway.security.policy_text import STOP

Mark = Literal[
    "undressing",
    "minor",
    "maybe_minor",
    "explicit",
    "anatomy",
    "clinical",
    "carved",
    "suggestive",
    "revealing",
    "put_into",
    "person",
    "likeness",
]
"""What a text speaks of."""

_REACH = 8
"""Most words a rule looks past the one it began at: it keeps the reading linear."""


def marks(text: Sequence[str]) -> set[Mark]:
    """Tell what a text speaks of."""
    found: set[Mark] = set()
    for i, word in enumerate(text):
        for mark, rule in _RULES.get(word, ()):
            if mark not in found and rule(text, i):
                found.add(mark)
        if word.startswith(w.UNDRESSING) and _undresses(text, i):
            found.add("undressing")
    return found


def _at(text: Sequence[str], i: int) -> str:
    return text[i] if 0 <= i < len(text) else ""


def _past(text: Sequence[str], i: int, *passed: Collection[str]) -> int:
    """Find the first word from `i` on that is none of those."""
    end = i + _REACH
    while i < end and any(_at(text, i) in some for some in passed):
        i += 1
    return i


def _near(text: Sequence[str], i: int) -> Iterator[str]:
    """List the words of the same phrase from `i` on."""
    for word in text[i : i + _REACH]:
        if word == STOP:
            return
        yield word


def _somebody(text: Sequence[str], start: int, end: int) -> bool:
    return any(word in w.POSERS for word in text[start:end])


def _worn(text: Sequence[str], i: int) -> int | None:
    """Find the end of a garment from `i` on that stands for itself and that somebody may wear."""
    j = _past(text, i, w.FILLERS, w.POSERS)
    owned = any(word in w.OWNERS for word in text[i:j])
    word = _at(text, j)
    if word not in w.EITHER_GARMENT:
        # `top` is a filler too: it is a garment only as somebody's
        alone = _at(text, j - 1) == "top" and owned and (not word or word in w.AFTER_GARMENT)
        return j if alone else None
    while _at(text, j + 1) in w.EITHER_GARMENT:
        j += 1
    after = _past(text, j + 1, w.PIECES)
    follows = _at(text, after)
    if _at(text, j) in w.GARMENTS:
        itself = follows not in w.PARTS_OF_GARMENTS
    else:
        itself = not follows or follows in w.AFTER_GARMENT
    return after if itself and (owned or not _lies_about(text, after)) else None


def _lies_about(text: Sequence[str], i: int) -> bool:
    """Whether what stands before `i` lies or hangs somewhere, and nobody wears it."""
    if _at(text, i) not in w.AWAY:
        return False
    near = set(_near(text, i + 1))
    return not near.isdisjoint(w.PLACES) and near.isdisjoint(w.POSERS)


def _undresses(text: Sequence[str], i: int) -> bool:
    thing = _at(text, _past(text, i + 1, w.FILLERS))
    return text[i] != "unclothed" and thing not in w.UNDRESSED_THINGS


def _removes(text: Sequence[str], i: int) -> bool:
    end = _worn(text, i + 1)
    if end is None:
        return False
    return not (text[i] in w.STRIP and _at(text, end) == "of")


def _takes_off(text: Sequence[str], i: int) -> bool:
    if _at(text, i + 1) in w.OWNERS and list(text[i + 2 : i + 4]) == ["top", "off"]:
        return True
    end = _worn(text, i + 1)
    if end is None:
        return False
    return _at(text, i + 1) == "off" or (_at(text, end) == "off" and not _lies_about(text, end))


def _strips(text: Sequence[str], i: int) -> bool:
    if _at(text, i + 1) in w.BARE or _at(text, i - 1) in w.STRIPS:
        return _at(text, i + 1) in w.BARE
    who = _past(text, i + 1, {"the", "this", "that", "off"})
    if _at(text, who) not in w.POSERS:
        return False
    follows = _at(text, who + 1)
    if _at(text, who) in {"them", "they", "their"}:
        return follows in w.BARE
    return not follows or follows in w.AFTER_STRIPPED


def _is_removed(text: Sequence[str], i: int) -> bool:
    before = next((k for k in range(i - 1, i - 4, -1) if _at(text, k) not in w.FILLERS), i)
    owned = _at(text, i - 1) in w.OWNERS
    if not owned and (text[i] not in w.GARMENTS or _at(text, before) in w.AWAY | {"in", "for"}):
        return False
    j = _past(text, i + 1, w.BEING)
    if _at(text, j) == "off":
        return _at(text, j + 1) in {"", STOP}
    return _at(text, j) in {"removed", "removal", "remover"} and not _lies_about(text, j + 1)


def _makes_bare(text: Sequence[str], i: int) -> bool:
    j = _past(text, i + 1, w.FILLERS, w.POSERS)
    if not _somebody(text, i + 1, j):
        return False
    k = _past(text, j, w.LOOKING, {"wear", "wearing"})
    if _at(text, k) in w.BARE:
        return _is_bare(text, k)
    if _is_without(text, k) or _at(text, k) == "nothing":
        return True
    if _at(text, j) not in w.EITHER_GARMENT:
        return False
    return _at(text, _past(text, j + 1, w.LOOKING)) in w.SHOW_THROUGH


def _sees_through(text: Sequence[str], i: int) -> bool:
    j = _past(text, i + 1, w.FILLERS, w.POSERS)
    return _somebody(text, i + 1, j) and _at(text, j) in w.EITHER_GARMENT


def _bare_version(text: Sequence[str], i: int) -> bool:
    if _at(text, i + 1) not in {"version", "versions", "edit"} or _at(text, i + 2) != "of":
        return False
    return _somebody(text, i + 3, _past(text, i + 3, w.FILLERS, w.POSERS))


def _is_bare(text: Sequence[str], i: int) -> bool:
    """Whether a word of nakedness is about a body: neither the colour nor a thing."""
    word, follows = text[i], _at(text, i + 1)
    if follows in w.NAKED_THINGS:
        return False
    if word not in {"nude", "nudes"}:
        return True
    if follows in w.COLOURS_OF_NUDE or follows in w.BESIDE_NUDE:
        return False
    second = _at(text, i + 2)
    if follows in {"and", "or"} and second in w.BESIDE_NUDE:
        return False
    if follows in w.FINISHES and second in w.COLOURS_OF_NUDE:
        return False
    back = next((k for k in range(i - 1, i - 4, -1) if _at(text, k) not in _BEFORE_COLOUR), i)
    return _at(text, back) not in w.COLOURED_NUDE


_BEFORE_COLOUR = frozenset({"in", "of", "a", "the", "soft", STOP})


def _is_carved(text: Sequence[str], i: int) -> bool:
    return _is_bare(text, i) and not w.STATUES.isdisjoint(text[max(0, i - 4) : i + 5])


def _is_flesh(text: Sequence[str], i: int) -> bool:
    return _is_bare(text, i) and not _is_carved(text, i)


def _is_without(text: Sequence[str], i: int) -> bool:
    if _at(text, i) not in {"no", "without", "zero"}:
        return False
    worn = _worn(text, i + 1)
    return worn is not None and w.PLACES.isdisjoint(text[max(0, i - _REACH) : i])


def _wears_nothing(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) == "nothing" and _at(text, i + 2) != "but"


def _explicit(text: Sequence[str], i: int) -> bool:
    word, follows = text[i], _at(text, i + 1)
    if follows in w.HARMLESS_AFTER.get(word, ()):
        return False
    if word == "sex" and follows == STOP and _at(text, i + 2) in {"male", "female", "m", "f"}:
        return False
    return _at(text, i - 1) not in w.HARMLESS_BEFORE.get(word, ())


def _anatomy(text: Sequence[str], i: int) -> bool:
    return not (
        text[i].startswith("nipple")
        and not w.BOTTLES.isdisjoint(text[max(0, i - _REACH) : i + _REACH])
    )


def _exposed(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in w.BODY


def _poses(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in {"pose", "poses", "posing"}


def _reveals(text: Sequence[str], i: int) -> bool:
    if text[i] == "through":
        return _at(text, i - 1) == "see" and _at(text, i + 1) in w.EITHER_GARMENT
    return _at(text, i - 1) not in w.FITTED and _at(text, i + 1) not in {"sandal", "sandals"}


def _puts_into(text: Sequence[str], i: int) -> bool:
    shown = _at(text, i + 1) in {"this", "that"} and _at(text, i + 2) in w.POSERS
    if not shown and _at(text, i + 1) not in w.OWNERS:
        return False
    return any(word in w.BEACHWEAR for word in _near(text, i + 2))


def _kid(text: Sequence[str], i: int) -> bool:
    return not (text[i] == "kid" and _at(text, i + 1) in w.KID_THINGS)


def _maybe_minor(text: Sequence[str], i: int) -> bool:
    return not (text[i] == "baby" and _at(text, i + 1) in w.BABY_THINGS)


def _small(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in w.SMALL_ONES


def _at_school(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in {"school", "schooler", "schoolers", "schools"}


def _in_grade(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in w.GRADES


def _aged(text: Sequence[str], i: int) -> bool:
    return _at(text, i + (2 if _at(text, i + 1) == STOP else 1)) in w.NUMBERS


def _years_old(text: Sequence[str], i: int) -> bool:
    after = [word for word in text[i + 1 : i + 6] if word != STOP][:3]
    after += [""] * 3
    if after[0] in w.YEARS and after[1] in w.OLD:
        return after[2] not in w.AGED_THINGS
    if after[:2] == ["y", "o"]:
        return True
    return after[0] in w.YEARS_OLD and after[1] not in w.AGED_THINGS


def _of_mine(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in w.MINE


def _real(text: Sequence[str], i: int) -> bool:
    return _at(text, i + 1) in w.POSERS


def _always(text: Sequence[str], i: int) -> bool:
    del text, i
    return True


_Rule = Callable[[Sequence[str], int], bool]
_TABLE: tuple[tuple[Mark, Collection[str], _Rule], ...] = (
    ("undressing", w.REMOVE, _removes),
    ("undressing", w.TAKE, _takes_off),
    ("undressing", w.STRIP, _strips),
    ("undressing", w.EITHER_GARMENT, _is_removed),
    ("undressing", w.MAKE, _makes_bare),
    ("undressing", {"through"}, _sees_through),
    ("undressing", w.BARE, _bare_version),
    ("explicit", w.BARE, _is_flesh),
    ("carved", w.BARE, _is_carved),
    ("explicit", w.EXPLICIT - w.BARE, _explicit),
    ("explicit", w.EXPOSED, _exposed),
    ("explicit", {"no", "without", "zero"}, _is_without),
    ("explicit", {"wearing", "wears", "wear"}, _wears_nothing),
    ("anatomy", w.ANATOMY, _anatomy),
    ("clinical", w.MEDICAL, _always),
    ("suggestive", w.SUGGESTIVE, _always),
    ("suggestive", w.POSES, _poses),
    ("revealing", {*w.REVEALING, "through"}, _reveals),
    ("put_into", w.PUT, _puts_into),
    ("person", w.PEOPLE, _always),
    ("minor", w.MINORS, _kid),
    ("minor", w.SMALL, _small),
    ("minor", w.SCHOOLS, _at_school),
    ("minor", w.ORDINALS, _in_grade),
    ("minor", w.AGED, _aged),
    ("minor", w.NUMBERS, _years_old),
    ("maybe_minor", w.MAYBE_MINORS, _maybe_minor),
    ("likeness", w.LIKENESSES, _always),
    ("likeness", w.REAL, _real),
    ("likeness", {"my"}, _of_mine),
)


def _by_word() -> dict[str, list[tuple[Mark, _Rule]]]:
    found: dict[str, list[tuple[Mark, _Rule]]] = {}
    for mark, triggers, rule in _TABLE:
        for word in triggers:
            found.setdefault(word, []).append((mark, rule))
    return found


_RULES = _by_word()
