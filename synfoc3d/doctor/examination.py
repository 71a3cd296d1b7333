"""``synfoc3d doctor``: what is missing or wrong on this machine, and how to mend it, in about a second.

No check imports torch: versions come from the packages' metadata, devices from the driver's own tool.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from synfoc3d import __version__
from synfoc3d.doctor.dataset import check_dataset
from synfoc3d.doctor.environment import check_environment
from synfoc3d.doctor.findings import Finding, Level
from synfoc3d.doctor.machine import check_machine
from synfoc3d.doctor.software import check_software
from synfoc3d.doctor.weights import check_weights
from synfoc3d.errors import UserError

Report = dict[str, list[Finding]]
MARKS: Mapping[Level, str] = {"ok": "OK", "warning": "WARN", "error": "FAIL"}


def examine(dataset: str | None = None) -> Report:
    """Look at packages, machine, nnU-Net's folders and variables, weight files and, if named, a dataset.

    Args:
        dataset: id or name of a dataset.

    Returns:
        Findings by section, in the order looked at. A check that fails itself is an error of its section.
    """
    sections: dict[str, Callable[[], list[Finding]]] = {
        "software": check_software,
        "machine": check_machine,
        "environment": check_environment,
        "weights": check_weights,
    }
    if dataset is not None:
        sections["dataset"] = partial(check_dataset, dataset)
    return {section: _guarded(section, check) for section, check in sections.items()}


def count(report: Report, level: Level) -> int:
    """Return the number of findings of a level."""
    return sum(finding.level == level for findings in report.values() for finding in findings)


def to_json(report: Report) -> str:
    """Return the report for programs; its form is documented in docs/how-to/doctor.md."""
    sections = {section: [asdict(finding) for finding in findings] for section, findings in report.items()}
    head = {"synfoc3d": __version__, "errors": count(report, "error"), "warnings": count(report, "warning")}
    return json.dumps({**head, "sections": sections}, indent=2)


def to_text(report: Report) -> str:
    """Return the report for people: one aligned line per finding, the mend below a problem, the counts at the end."""
    width = max(len(finding.name) for findings in report.values() for finding in findings)
    lines = []
    for section, findings in report.items():
        lines += [section.capitalize(), *(line for finding in findings for line in _lines(finding, width)), ""]
    return "\n".join([*lines, _summary(count(report, "error"), count(report, "warning"))])


def _lines(finding: Finding, width: int) -> Sequence[str]:
    line = f"  {MARKS[finding.level]:4}  {finding.name:{width}}  {finding.text}"
    return [line, f"{'':{width + 10}}-> {finding.mend}"] if finding.mend else [line]


def _summary(errors: int, warnings: int) -> str:
    if not errors and not warnings:
        return "No problem found."
    parts = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return f"{' and '.join(parts)}."


def _guarded(section: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Run a section's checks; whatever stops them becomes a finding, so that the other sections still come."""
    try:
        return check()
    except UserError as error:
        return [Finding(section, "error", str(error), "Do as the sentence says, then run synfoc3d doctor again.")]
    except Exception as error:  # a broken installation raises anything
        reason = f"could not be examined ({type(error).__name__}: {error})"
        return [Finding(section, "error", reason, "Mend the errors above first; if there are none, report this one.")]
