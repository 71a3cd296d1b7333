"""Packages that are missing, too old, or do not fit together."""

import pytest

from synfoc3d.doctor.software import (
    Build,
    check_optional,
    check_packages,
    check_pair,
    check_python,
    check_software,
    installed_build,
    parse_build,
    version_of,
)

REQUIREMENTS = ["torch!=2.9.*,>=2.4", "nnunetv2<2.9,>=2.8", "torchvision", 'pytest>=8; extra == "test"']
INSTALLED = {"torch": "2.8.0", "nnunetv2": "2.8.1", "torchvision": "0.23.0"}


def examine(**changes):
    """Findings by name for the installed versions, some of them changed."""
    found = check_packages(REQUIREMENTS, {**INSTALLED, **changes}.get)
    return {finding.name: finding for finding in found}


def test_good_versions_are_good():
    assert [(f.level, f.text) for f in examine().values()] == [("ok", "2.8.0"), ("ok", "2.8.1"), ("ok", "0.23.0")]


def test_missing_package_is_named():
    finding = examine(torchvision=None)["torchvision"]
    assert (finding.level, finding.text) == ("error", "is not installed (needed: any version)")
    assert finding.mend == "Run: pip install 'torchvision'"


@pytest.mark.parametrize("version", ["2.3.1", "2.9.0", "2.9.1+cu130"])
def test_refused_torch_is_named(version):
    finding = examine(torch=version)["torch"]
    assert (finding.level, finding.text) == ("error", f"{version}, but synfoc3d needs !=2.9.*,>=2.4")
    assert finding.details == {"version": version, "required": "!=2.9.*,>=2.4"}


def test_nnunet_of_another_line_is_named():
    assert "2.9.0, but synfoc3d needs <2.9,>=2.8" in examine(nnunetv2="2.9.0")["nnunetv2"].text


def test_nightly_build_counts_as_its_version():
    assert examine(torch="2.10.0.dev20250901+cu128")["torch"].level == "ok"


def test_old_python_is_named():
    assert check_python("3.10.4", ">=3.10").level == "ok"
    assert check_python("3.9.18", ">=3.10").text == "3.9.18, but synfoc3d needs >=3.10"


@pytest.mark.parametrize("declared", ["torch==2.7.1", "torch (==2.7.1)"])
def test_torchvision_of_another_torch_is_named(declared):
    finding = check_pair(Build("2.8.0+cu126", "12.6"), Build("0.22.1+cu126", "12.6"), ["numpy", declared])
    assert finding.level == "error"
    assert finding.text == "torchvision 0.22.1+cu126 needs torch ==2.7.1, but it is 2.8.0+cu126"


@pytest.mark.parametrize("cuda", ["none", "11.8"])
def test_torchvision_for_other_devices_is_named(cuda):
    finding = check_pair(Build("2.8.0+cu126", "12.6"), Build("0.23.0", cuda), ["torch==2.8.0"])
    assert (finding.level, finding.text) == ("error", f"torch is compiled for CUDA 12.6, torchvision for {cuda}")


@pytest.mark.parametrize("cuda", ["12.6", "12.8", ""])
def test_fitting_pair_is_good(cuda):
    assert check_pair(Build("2.8.0+cu126", "12.6"), Build("0.23.0", cuda), ["torch==2.8.0"]).level == "ok"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.15.0+cu132'\ncuda: Optional[str] = '13.2'\n", ("2.15.0+cu132", "13.2")),
        ("__version__ = '2.8.0+cpu'\ncuda: Optional[str] = None\n", ("2.8.0+cpu", "none")),
        ("__version__ = '2.8.0'\ncuda: Optional[str] = '12.4'\n", ("2.8.0", "12.4")),
        ("__version__ = '0.23.0+cu118'\ncuda = _check_cuda_version()\n", ("0.23.0+cu118", "11.8")),
        ("__version__ = '0.23.0+cpu'\n", ("0.23.0+cpu", "none")),
        ("__version__ = '0.23.0'\n", ("0.23.0", "")),
    ],
)
def test_build_is_read_from_version_file(text, expected):
    assert parse_build(text) == Build(*expected)


def test_installed_build_is_what_the_package_says():
    import torch

    build = installed_build("torch")
    assert (build.version, build.cuda) == (torch.__version__, torch.version.cuda or "none")


def test_package_that_is_not_installed_has_no_version():
    assert version_of("no-such-package-here") is None and installed_build("no_such_package_here") is None


def test_this_installation_is_good():
    assert {finding.level for finding in check_software()} == {"ok"}


def test_copy_without_installation_is_named(monkeypatch):
    monkeypatch.setattr("synfoc3d.doctor.software.PROJECT", "synfoc3d-of-nobody")
    assert check_software()[-1].text == "is not installed"


OPTIONAL = ['transformers<6,>=5; extra == "sam2"', 'pytest>=8; extra == "test"', 'transformers<6,>=5; extra == "test"']


@pytest.mark.parametrize(
    ("version", "level", "text"),
    [
        (None, "ok", 'not installed; only SAM 2 and MedSAM2 need it: pip install "synfoc3d[sam2]"'),
        ("5.24.0", "ok", "5.24.0"),
        ("4.57.1", "error", "4.57.1, but synfoc3d needs <6,>=5"),
    ],
)
def test_package_of_sam_2_may_be_missing(version, level, text):
    (finding,) = check_optional([*REQUIREMENTS, *OPTIONAL], {"transformers": version}.get)
    assert (finding.name, finding.level, finding.text) == ("transformers", level, text)
