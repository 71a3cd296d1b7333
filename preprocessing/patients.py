"""Which patient a case belongs to: by its name, and by scans that are there under two names."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence

from synfoc3d.errors import UserError

log = logging.getLogger(__name__)

# patient002, Pat_7, sub-001, subject-A12: the word must not be the end of another one ("hepat"), and the id behind it
# must hold a digit, or names such as subset_... would all be one patient.
PATIENT = re.compile(r"(?:.*?[^a-z])??(?:patient|subject|sub|pat)(?:\d+|[-_][a-z0-9]*\d[a-z0-9]*)", re.IGNORECASE)
# A part of a name that says when a scan was taken, or which slice it is. Beside a part that counts, another one must
# hold a digit: the cases study_t1, study_t2, ... may as well be different patients.
TIME = re.compile(r"(?:^|[-_. ])(?:ed|es|pre|post|baseline|follow-?up\d*)(?![^-_. ])", re.IGNORECASE)
COUNTED_TIME = re.compile(
    r"(?:^|[-_. ])(?:t\d{1,2}|(?:frame|slice|ses|session|time|timepoint|tp|visit|phase|day|week|month|year)[-_]?\d+)"
    r"(?![^-_. ])",
    re.IGNORECASE,
)
# Parts that may tell scans of one patient apart: the last one (P01_1, P01-left), or a letter behind a digit (P01a).
LAST_PART = re.compile(r"(?P<stem>.+)[-_. ](?P<part>[A-Za-z0-9]+)")
LETTER = re.compile(r"(?P<stem>.*\d)(?P<part>[A-Za-z])")
MOST_SCANS = 4  # of a patient where patients are few; larger groups are rather cases of one site
SHOWN_GROUPS = 5


def find_patients(
    labeled: Sequence[str], unlabeled: Sequence[str], pattern: str | None, same_scans: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Return the patient of every case; names that look like several scans of a patient but are not are warned of.

    Args:
        labeled: cases of imagesTr.
        unlabeled: cases of imagesUn; one in whose name the pattern finds nothing is a patient of its own.
        pattern: see `patient_of`.
        same_scans: cases that hold the same scan, in groups; they belong to one patient, whatever their names.

    Raises:
        UserError: the pattern cannot be used, or is not found in the name of a labeled case.
    """
    patients = {case: patient_of(case, pattern) for case in labeled}
    strangers = [case for case in unlabeled if pattern is not None and not _search(pattern, case)]
    patients |= {case: case if case in strangers else patient_of(case, pattern) for case in unlabeled}
    if strangers:
        log.warning(
            "The patient pattern %r finds nothing in these unlabeled cases, so each is a patient of its own: %s.",
            pattern, ", ".join(strangers),
        )  # fmt: skip
    if pattern is None:
        _tell_suspicious(patients)
    return _join(patients, same_scans)


def patient_of(case: str, pattern: str | None = None) -> str:
    """Return the patient that a case's name tells.

    Args:
        case: name of a case.
        pattern: regular expression that is searched in the name; its one group is the patient. None looks for a leading
            part that ends in patient, subject, sub or pat and an id: ``ACDC_patient002_frame01`` is a scan of
            ``ACDC_patient002``, ``sub-001_ses-02`` one of ``sub-001``. In other names, parts that tell a time or a
            slice are left out: ``A0S9V1_ED`` and ``A0S9V1_ES`` are scans of ``A0S9V1``, ``P7_t1`` one of ``P7``.

    Raises:
        UserError: a pattern that is no regular expression, has not one group, or is not found in the name.
    """
    if pattern is None:
        word = PATIENT.match(case)
        return word[0] if word else _without_time(case)
    found = _search(pattern, case)
    if not found:
        raise UserError(f"The patient pattern {pattern!r} finds no patient in the name of case {case!r}; change it.")
    return found


def _search(pattern: str, case: str) -> str:
    """Return what the pattern's one group finds in a name; empty if nothing."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"The patient pattern {pattern!r} is no regular expression ({error}).") from error
    if expression.groups != 1:
        raise UserError(f"The patient pattern {pattern!r} has {expression.groups} groups, but must have one: (...).")
    found = expression.search(case)
    return (found[1] or "") if found else ""


def _without_time(case: str) -> str:
    """Return a name without the parts that tell a time or a slice, or the name itself if nothing would be left."""
    rest = COUNTED_TIME.sub("", case).strip("-_. ")
    if not re.search(r"\d", rest):
        rest = case
    return TIME.sub("", rest).strip("-_. ") or case


def _join(patients: dict[str, str], same_scans: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the patients, those who share a scan as one."""
    for group in same_scans:
        joined = {patients[case] for case in group if case in patients}
        patients = {case: min(joined) if patient in joined else patient for case, patient in patients.items()}
    return patients


def _tell_suspicious(patients: Mapping[str, str]) -> None:
    """Warn of different patients whose names look like scans of one, and show the pattern that takes them for one."""
    for expression, template in ((LAST_PART, r"^(.+?)(?:[-_. ]{})?$"), (LETTER, r"^(.*?\d|.+){}?$")):
        found = [match for patient in sorted(set(patients.values())) if (match := expression.fullmatch(patient))]
        groups: dict[str, list[str]] = {}
        for match in found:
            groups.setdefault(match["stem"], []).append(match[0])
        pairs = [members for members in groups.values() if len(members) > 1]
        if len(groups) < 2 or not pairs or max(map(len, pairs)) > max(MOST_SCANS, len(groups)):
            continue
        parts = {match["part"] for match in found}
        shown = "; ".join(", ".join(members) for members in pairs[:SHOWN_GROUPS])
        log.warning(
            "These are taken for different patients, but are named like scans of one: %s%s. If they are, one must not "
            "be trained on while another validates: add --patient-pattern '%s'.",
            shown, "; ..." if len(pairs) > SHOWN_GROUPS else "", template.format(_kind(parts)),
        )  # fmt: skip


def _kind(parts: Collection[str]) -> str:
    """Return the regular expression for names' last parts."""
    if all(map(str.isdigit, parts)):
        return r"\d+"
    if all(map(str.isalpha, parts)):
        return "[A-Za-z]" if max(map(len, parts)) == 1 else "[A-Za-z]+"
    return r"\w+"
