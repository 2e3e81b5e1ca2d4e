"""What `python -m gateway doctor` finds, in this process and in one of its own."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from gateway.doctor.examination import examine
from gateway.doctor.findings import Finding, Report
from gateway.settings import Settings
from tests.support.stack import ROOT, free_port

PATIENCE_S = 120


async def doctored(folder: Path, *, webhook_url: str | None = None, **env: object) -> Report:
    """What it finds with these settings; nobody answers at addresses that are not among them."""
    nobody = f"http://127.0.0.1:{free_port()}"
    values = {
        "workspace": folder,
        "backend_host": "127.0.0.1",
        "backend_port": free_port(),
        "gpu_service_url": nobody,
        "min_free_disk_mb": 1,
        **{name.lower(): value for name, value in env.items()},
    }
    return await examine(lambda: Settings.model_validate(values), webhook_url=webhook_url)


def found(report: Report, group: str, check: str) -> Finding:
    """The one finding of that name."""
    one, *more = findings(report, group, check) or [None]
    assert one is not None, report.findings
    assert not more
    return one


def findings(report: Report, group: str, check: str) -> list[Finding]:
    """Every finding of that name."""
    return [f for f in report.findings if (f.group, f.check) == (group, check)]


def told(finding: Finding) -> str:
    """All of its words."""
    return " ".join((finding.said, *finding.fix))


def everything(report: Report) -> str:
    """Every word of a report."""
    return "\n".join(f"{f.group} {f.check} {told(f)}" for f in report.findings)


def run_doctor(
    env: Mapping[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The command as somebody types it, in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
