import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media import MAX_PROMPT
from gateway.templates import KEYWORD, Malformed, TooLong, Unresolved, fill, variables_in

words = st.text(max_size=20)
names = st.from_regex(r"[a-z_][a-z0-9_.-]{0,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("a photo of TOK", "a photo of MUG"),
        ("TOK, and TOK again: TOKs", "MUG, and MUG again: MUGs"),
        ("TOK on a {surface}", "MUG on a table"),
        ("{surface}{surface}", "tabletable"),
        ("{{surface}} is no gap", "{surface} is no gap"),
        ("{{{surface}}}", "{table}"),
        ('{{"a": "{surface}"}}', '{"a": "table"}'),
        ("{long-name.2}", "7"),
        ("{größe}", "klein"),
        ("nothing to fill", "nothing to fill"),
    ],
)
def test_each_gap_gets_its_value(text: str, filled: str) -> None:
    values = {"surface": "table", "long-name.2": "7", "größe": "klein"}
    assert fill(text, values, keyword="TOK", word="MUG") == filled


def test_what_a_value_says_is_never_read_again() -> None:
    values = {"a": "{b} TOK {{", "b": "b"}
    assert fill("{a}, {b}, TOK", values, keyword="TOK", word="{a} TOK") == "{b} TOK {{, b, {a} TOK"


def test_a_keyword_may_look_like_a_variable_and_is_no_part_of_one() -> None:
    assert fill("{it} on {it}s", {}, keyword="{it}", word="a mug") == "a mug on a mugs"
    assert fill("{{it}}", {}, keyword="{it}", word="a mug") == "{it}"
    assert fill("a {name}", {"name": "x"}, keyword="name", word="y") == "a x"


@pytest.mark.parametrize("keyword", ["{", "}", "{{", "a{b", "{a b}", "{}", "{a}{b}"])
def test_a_keyword_with_other_braces_is_none(keyword: str) -> None:
    assert KEYWORD.fullmatch(keyword) is None


@pytest.mark.parametrize(
    ("text", "place"),
    [("a { b", 3), ("a } b", 3), ("{a b}", 1), ("{}", 1), ("{{a}", 4), ("{" + "a" * 65 + "}", 1)],
)
def test_a_brace_that_stands_alone_is_said_with_its_place(text: str, place: int) -> None:
    for read in (variables_in, lambda given: fill(given, {})):
        with pytest.raises(Malformed, match=f"at character {place} "):
            read(text)


def test_every_variable_without_a_value_is_named_once() -> None:
    with pytest.raises(Unresolved) as caught:
        fill("{b} {a} {b} {c}", {"c": "x", "other": "y"})
    assert caught.value.names == ("b", "a")


def test_a_text_that_grows_too_long_is_refused_on_the_way() -> None:
    assert len(fill("{a}", {"a": "x" * MAX_PROMPT})) == MAX_PROMPT
    with pytest.raises(TooLong):
        fill("{a}" * 2000, {"a": "x" * MAX_PROMPT})


@given(parts=st.lists(st.tuples(words, names, words), max_size=6))
def test_doubling_braces_keeps_any_text_and_values_come_in_as_they_are(
    parts: list[tuple[str, str, str]],
) -> None:
    def literal(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    values = {name: value for _, name, value in parts}
    text = "".join(f"{literal(plain)}{{{name}}}" for plain, name, _ in parts)
    assert fill(text, values) == "".join(f"{plain}{values[name]}" for plain, name, _ in parts)
    assert set(variables_in(text)) == set(values)
