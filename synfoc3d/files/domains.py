"""Which case comes from which domain (scanner, vendor or site): the file ``domains.csv``."""

import csv
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from synfoc3d.errors import UserError, did_you_mean
from synfoc3d.files.tables import read_cells

log = logging.getLogger(__name__)

HEADER = ("case", "domain")
ALL_CASES, MEAN_OF_DOMAINS = "all cases", "mean of domains"  # in tables, in the place of a domain


def read_domains(path: Path) -> dict[str, str]:
    """Return the domain of each case from a CSV file with the header ``case,domain``.

    Raises:
        UserError: no such file, no UTF-8 text, another header, a line without case or domain, a case twice,
            domains that differ in capitals alone, or one that is named like a mean in tables.
    """
    domains: dict[str, str] = {}
    for row in _read_rows(path):
        if len(row) != len(HEADER) or not all(row):
            raise UserError(f"A line of the domains file {path} must be case,domain, but one is {','.join(row)!r}.")
        case, domain = row
        if case in domains:
            raise UserError(f"The domains file {path} names case {case!r} twice; keep one line.")
        domains[case] = domain
    _check_spelling(domains, path)
    return domains


def _read_rows(path: Path) -> list[list[str]]:
    """Return the cells of every line below the header, without blanks around them."""
    if not path.is_file():
        raise UserError(f"The domains file {path} does not exist; write a CSV file with the header case,domain.")
    rows = read_cells(path)
    if not rows or tuple(rows[0]) != HEADER:
        found = ",".join(rows[0]) if rows else "nothing"
        raise UserError(f"The first line of the domains file {path} must be case,domain, but is {found!r}.")
    return rows[1:]


def _check_spelling(domains: Mapping[str, str], path: Path) -> None:
    """Refuse names that differ in capitals alone: means over domains would count one scanner as two.

    And those of means: the figures of such a domain would be taken for theirs.
    """
    seen: dict[str, str] = {}
    for domain in domains.values():
        if domain.casefold() in (ALL_CASES, MEAN_OF_DOMAINS):
            raise UserError(
                f"The domains file {path} names the domain {domain!r}, as tables call a mean over several; give it "
                "another name."
            )
        other = seen.setdefault(domain.casefold(), domain)
        if other != domain:
            raise UserError(
                f"The domains file {path} names the domains {other!r} and {domain!r}, which differ in capitals alone; "
                "write both alike, or give them other names."
            )


def check_domains(domains: dict[str, str], cases: Collection[str], path: Path) -> None:
    """Check that the domains file ``path`` names exactly the cases of the dataset.

    Raises:
        UserError: a case without a domain, or a domain for an unknown case.
    """
    for case in domains:
        if case not in cases:
            raise UserError(f"The domains file {path} names an unknown case {case!r}.{did_you_mean(case, cases)}")
    for case in sorted(cases):
        if case not in domains:
            raise UserError(f"The domains file {path} has no line for case {case!r}; add one.")


def domains_of_cases(domains: dict[str, str], cases: Collection[str], path: Path) -> dict[str, str]:
    """Return the domains of the cases; a warning names the other lines of the domains file ``path``.

    Raises:
        UserError: a case without a domain.
    """
    others = [case for case in domains if case not in cases]
    for case in sorted(cases):
        if case not in domains:
            hint = did_you_mean(case, others) if others else ""
            raise UserError(f"The domains file {path} has no line for case {case!r}; add one.{hint}")
    if others:
        log.warning("These lines of %s are left out, as no such case is imported: %s.", path, ", ".join(others))
    return {case: domain for case, domain in domains.items() if case in cases}


def write_domains(path: Path, domains: dict[str, str]) -> None:
    """Write a new CSV file with the header ``case,domain`` and one line per case, sorted by case."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(sorted(domains.items()))
