"""The whole report: its sections, both of its forms, and that it comes whatever is broken."""

import json
import subprocess
import sys

import pytest

from synfoc3d import __version__
from synfoc3d.doctor import examination as doctor
from synfoc3d.doctor.findings import Finding
from synfoc3d.errors import UserError

REPORT = {
    "machine": [Finding("RAM", "ok", "8 GiB"), Finding("GPU", "warning", "none", "Buy one.", {"count": 0})],
    "environment": [Finding("nnUNet_raw", "error", "is not set", "Set it.")],
}


def test_text_is_aligned_and_names_each_mend():
    assert doctor.to_text(REPORT).splitlines() == [
        "Machine",
        "  OK    RAM         8 GiB",
        "  WARN  GPU         none",
        "                    -> Buy one.",
        "",
        "Environment",
        "  FAIL  nnUNet_raw  is not set",
        "                    -> Set it.",
        "",
        "1 error and 1 warning.",
    ]


@pytest.mark.parametrize(
    ("levels", "last"),
    [
        (["ok"], "No problem found."),
        (["warning", "warning"], "2 warnings."),
        (["error", "error", "ok"], "2 errors."),
    ],
)
def test_last_line_counts_problems(levels, last):
    findings = [Finding("x", level, "text", "" if level == "ok" else "Mend.") for level in levels]
    assert doctor.to_text({"machine": findings}).splitlines()[-1] == last


def test_json_holds_every_finding():
    found = json.loads(doctor.to_json(REPORT))
    assert (found["synfoc3d"], found["errors"], found["warnings"]) == (__version__, 1, 1)
    gpu = {"name": "GPU", "level": "warning", "text": "none", "mend": "Buy one.", "details": {"count": 0}}
    assert found["sections"]["machine"][1] == gpu
    assert list(found["sections"]) == ["machine", "environment"]


def test_every_section_of_this_machine_is_examined():
    report = doctor.examine()
    assert list(report) == ["software", "machine", "environment", "weights"]
    assert all(report.values()) and json.loads(doctor.to_json(report))


def test_unknown_dataset_is_an_error_of_its_section(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    finding = doctor.examine("Dataset999_Nothing")["dataset"][0]
    assert finding.level == "error" and "There is no dataset 'Dataset999_Nothing'" in finding.text


def test_check_that_breaks_does_not_stop_the_others(monkeypatch):
    def fail():
        raise ModuleNotFoundError("No module named 'yaml'")

    monkeypatch.setattr(doctor, "check_environment", fail)
    report = doctor.examine()
    assert report["environment"][0].level == "error" and report["weights"]
    assert "(ModuleNotFoundError: No module named 'yaml')" in report["environment"][0].text


def test_user_error_of_a_check_is_its_text(monkeypatch):
    def refuse():
        raise UserError("The folder is locked; unlock it.")

    monkeypatch.setattr(doctor, "check_weights", refuse)
    assert doctor.examine()["weights"][0].text == "The folder is locked; unlock it."


@pytest.mark.parametrize(("level", "mend"), [("ok", "Do it."), ("error", "")])
def test_a_problem_and_only_a_problem_has_a_mend(level, mend):
    with pytest.raises(AssertionError, match="x: every problem has its mend"):
        Finding("x", level, "text", mend)


def test_torch_is_not_imported():
    code = (
        "import sys; from synfoc3d.doctor.examination import examine; examine('501'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
