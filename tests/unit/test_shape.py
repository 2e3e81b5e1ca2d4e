"""The house rules that a machine can check: size, names, suppressions."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("gateway/**/*.py"), *ROOT.glob("gpu_server/**/*.py")])
EVERYTHING = [*SHIPPED, *sorted(ROOT.glob("tests/**/*.py")), *sorted(ROOT.glob("benchmarks/*.py"))]
FORBIDDEN_NAMES = {"utils", "helpers", "common", "services", "managers", "core", "misc"}
IGNORE = re.compile(r"#\s*(type|pyright): ignore(?!\[\w+(, *\w+)*\])|#\s*noqa(?!: [A-Z]+\d+)")


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_is_longer_than_50_lines(path: Path) -> None:
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 50
    ]
    assert not long


def test_no_module_is_a_grab_bag() -> None:
    assert not [
        p for p in SHIPPED if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in p.parts}
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_suppression_names_its_rule(path: Path) -> None:
    bare = [line for line in path.read_text().splitlines() if IGNORE.search(line)]
    assert not bare


def test_no_exception_is_swallowed_silently() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SHIPPED
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(s, ast.Pass) for s in node.body)
    ]
    assert not found


def test_lock_files_carry_hashes_and_no_addresses() -> None:
    for path in ROOT.glob("requirements/*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert "--index-url" not in text
        pins = [line for line in text.splitlines() if "==" in line]
        assert pins
        assert all(line.rstrip().endswith("\\") for line in pins), path
