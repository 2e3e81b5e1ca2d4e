"""The report as people and programs read it."""

import json
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.doctor.findings import Finding, Report, Verdict

# the word beside the sign: neither colour nor sign must be needed to read it
MARKS: Final[dict[Verdict, str]] = {"ok": "✓ ok", "warning": "! look", "failed": "✗ failed"}
_COLOURS: Final[dict[Verdict, str]] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def as_json(report: Report) -> str:
    """One object: `ok`, the counts, and every finding."""
    return json.dumps(
        {
            "ok": report.ok,
            "failed": report.count("failed"),
            "warnings": report.count("warning"),
            "findings": [
                {
                    "group": one.group,
                    "check": one.check,
                    "verdict": one.verdict,
                    "said": one.said,
                    "fix": list(one.fix),
                }
                for one in report.findings
            ],
        },
        indent=2,
        ensure_ascii=False,
    )


def as_lines(report: Report) -> str:
    """One line a check, indented ones below it where there is something to do."""
    lines: list[str] = []
    for one in report.findings:
        lines.append(f"{MARKS[one.verdict]:<9} {_name(one)}: {_one_line(one.said)}")
        lines += [f"          fix: {_one_line(fix)}" for fix in one.fix]
    return "\n".join([*lines, "", summary(report)])


def show(report: Report, console: Console) -> None:
    """Draw a table on a terminal."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=2)
    table.add_column(ratio=7, overflow="fold")
    group = ""
    for one in report.findings:
        if group and one.group != group:
            table.add_row()
        group = one.group
        fixes = "".join(f"\n[bold]fix:[/] {escape(fix)}" for fix in one.fix)
        mark = f"[{_COLOURS[one.verdict]}]{MARKS[one.verdict]}[/]"
        table.add_row(mark, escape(_name(one)), escape(one.said) + fixes)
    console.print(table)
    console.print()
    console.print(summary(report), markup=False)


def summary(report: Report) -> str:
    """Say in one line how it stands."""
    failed, look = report.count("failed"), report.count("warning")
    if not failed and not look:
        return "Everything that was checked works."
    parts = [f"{failed} failed" if failed else "", f"{look} to look at" if look else ""]
    works = report.count("ok")
    return f"{', '.join(part for part in parts if part)}; {works} ok."


def _name(one: Finding) -> str:
    return one.check if one.group == one.check else f"{one.group} · {one.check}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
