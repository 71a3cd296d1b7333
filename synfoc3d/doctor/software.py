"""Checks of Python and the installed packages, from their metadata alone."""

import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from synfoc3d.doctor.findings import Finding
from synfoc3d.networks.weights.known import KNOWN

PROJECT = "synfoc3d"
SAM2 = "sam2"  # the extra


@dataclass(frozen=True)
class Build:
    """What a package's ``version.py`` says about how it was compiled.

    Attributes:
        version: such as ``2.8.0+cu126``.
        cuda: CUDA version such as ``12.6``; ``none`` for a build without; empty where it is not told.
    """

    version: str
    cuda: str


def check_software() -> list[Finding]:
    """Look at Python, at the packages this project requires, and at whether torch and torchvision fit.

    Packages of which only a weight file is read are left to the look at weights: another place may have the file.
    """
    required_python, requirements = _own_metadata()
    if required_python is None:
        mend = "Install it with: pip install . (in its folder)."
        return [check_python(platform.python_version(), ">=3.10"), Finding(PROJECT, "error", "is not installed", mend)]
    for_weights = {Requirement(known.shipment.requirement).name for known in KNOWN.values() if known.shipment}
    run = [one for one in map(Requirement, requirements) if one.name not in for_weights]
    findings = [check_python(platform.python_version(), required_python), *check_packages(map(str, run), version_of)]
    findings += check_optional(requirements, version_of)
    torch, torchvision = installed_build("torch"), installed_build("torchvision")
    if torch and torchvision:
        findings.append(check_pair(torch, torchvision, metadata.requires("torchvision") or ()))
    return findings


def check_python(version: str, required: str) -> Finding:
    """Compare Python's version with a requirement such as ``>=3.10``."""
    details = {"version": version, "required": required}
    if Version(version) in SpecifierSet(required, prereleases=True):
        return Finding("Python", "ok", version, details=details)
    mend = f"Make a virtual environment with Python {required} and install synfoc3d there."
    return Finding("Python", "error", f"{version}, but synfoc3d needs {required}", mend, details)


def check_packages(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> list[Finding]:
    """Compare installed versions with requirements such as ``torch>=2.4,!=2.9.*``.

    Args:
        requirements: as in a package's metadata; those of extras are left out.
        version_of: installed version of a package, None where it is missing.
    """
    parsed = map(Requirement, requirements)
    wanted = [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [_check_package(requirement, version_of(requirement.name)) for requirement in wanted]


def check_optional(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> list[Finding]:
    """Look at the packages that only networks of the SAM 2 family need; it is no mistake not to have them.

    Args:
        requirements: see :func:`check_packages`.
        version_of: see :func:`check_packages`.
    """
    marked = ((one, one.marker) for one in map(Requirement, requirements) if one.marker)
    wanted = [one for one, marker in marked if marker.evaluate({"extra": SAM2}) > marker.evaluate({"extra": ""})]
    text = f'not installed; only SAM 2 and MedSAM2 need it: pip install "{PROJECT}[{SAM2}]"'
    return [
        _check_package(one, version) if (version := version_of(one.name)) else Finding(one.name, "ok", text)
        for one in wanted
    ]


def _check_package(requirement: Requirement, version: str | None) -> Finding:
    name, specifier = requirement.name, str(requirement.specifier)
    details = {"version": version, "required": specifier}
    mend = f"Run: pip install '{name}{specifier}'"
    if version is None:
        return Finding(name, "error", f"is not installed (needed: {specifier or 'any version'})", mend, details)
    if not requirement.specifier.contains(Version(version), prereleases=True):
        return Finding(name, "error", f"{version}, but synfoc3d needs {specifier}", mend, details)
    return Finding(name, "ok", version, details=details)


def check_pair(torch: Build, torchvision: Build, declared: Iterable[str]) -> Finding:
    """Say whether torchvision was made for this torch; segment-anything imports it.

    Args:
        torch: the installed one.
        torchvision: the installed one.
        declared: torchvision's own requirements, among them that of torch.
    """
    name = "torch + torchvision"
    details = {"torch": torch.version, "torchvision": torchvision.version}
    for requirement in map(Requirement, declared):
        if requirement.name == "torch" and not requirement.specifier.contains(torch.version, prereleases=True):
            text = f"torchvision {torchvision.version} needs torch {requirement.specifier}, but it is {torch.version}"
            return Finding(name, "error", text, "Install both at once: pip install -U torch torchvision", details)
    if torch.cuda and torchvision.cuda and _major(torch.cuda) != _major(torchvision.cuda):
        text = f"torch is compiled for CUDA {torch.cuda}, torchvision for {torchvision.cuda}"
        mend = "Install both at once from the same index: pip install --force-reinstall torch torchvision"
        return Finding(name, "error", text, mend, details)
    return Finding(name, "ok", f"fit (torch for CUDA: {torch.cuda or 'unknown'})", details=details)


def _major(version: str) -> str:
    return version.partition(".")[0]


def parse_build(text: str) -> Build:
    """Read the text of ``torch/version.py`` or ``torchvision/version.py``."""
    version = _assigned(text, "__version__")
    variant = version.partition("+")[2]
    numbered = re.fullmatch(r"cu(\d+)(\d)", variant)
    if re.search(r"^cuda\b.*= *None$", text, re.MULTILINE) or variant == "cpu":
        cuda = "none"
    else:
        cuda = f"{numbered[1]}.{numbered[2]}" if numbered else _assigned(text, "cuda")
    return Build(version, cuda)


def _assigned(text: str, name: str) -> str:
    found = re.search(rf"^{name}\b[^=\n]*= *['\"](.+?)['\"]", text, re.MULTILINE)
    return found[1] if found else ""


def installed_build(package: str) -> Build | None:
    """Return how an installed package was compiled; None where it is missing or does not tell."""
    spec = find_spec(package)
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return parse_build(file.read_text(encoding="utf-8")) if file and file.is_file() else None


def version_of(package: str) -> str | None:
    """Return the installed version of a package, None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _own_metadata() -> tuple[str | None, list[str]]:
    """Return what this project requires: Python versions (None where it is not installed), and packages."""
    try:
        return metadata.metadata(PROJECT)["Requires-Python"], metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return None, []
