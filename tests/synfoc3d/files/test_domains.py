import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.domains import check_domains, domains_of_cases, read_domains, write_domains


@pytest.fixture
def domains_file(tmp_path):
    path = tmp_path / "domains.csv"

    def write(text):
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_domains_are_read(domains_file):
    assert read_domains(domains_file("case,domain\na, Siemens\n\nb,GE\n")) == {"a": "Siemens", "b": "GE"}


def test_byte_order_mark_of_spreadsheets_is_skipped(domains_file):
    assert read_domains(domains_file("\ufeffcase,domain\na,GE\n")) == {"a": "GE"}


def test_empty_lines_of_spreadsheets_are_skipped(domains_file):
    assert read_domains(domains_file("case,domain\na,GE\n , \n,\n")) == {"a": "GE"}


def test_written_domains_are_read_again(tmp_path):
    write_domains(tmp_path / "d.csv", {"b": "a, b", "a": "GE"})
    assert read_domains(tmp_path / "d.csv") == {"a": "GE", "b": "a, b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be case,domain, but is 'nothing'"),
        ("id,site\na,b\n", "must be case,domain, but is 'id,site'"),
        ("case,domain\na\n", "but one is 'a'"),
        ("case,domain\na,\n", "but one is 'a,'"),
        ("case,domain\na,x\na,y\n", "names case 'a' twice"),
        ("case,domain\na,GE\nb,all cases\n", "names the domain 'all cases', as tables call a mean over several"),
        ("case,domain\na,Mean of Domains\n", "names the domain 'Mean of Domains', as tables call a mean over several"),
        ("case,domain\na,GE\nb,ge\n", "names the domains 'GE' and 'ge', which differ in capitals alone"),
    ],
)
def test_damaged_files_are_refused(domains_file, text, message):
    with pytest.raises(UserError, match=message):
        read_domains(domains_file(text))


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="none.csv does not exist"):
        read_domains(tmp_path / "none.csv")


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "d.csv").write_bytes("case,domain\na,Köln\n".encode("latin-1"))
    with pytest.raises(UserError, match="is no CSV file in UTF-8"):
        read_domains(tmp_path / "d.csv")


def test_unknown_case_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown case 'patient1'. Did you mean 'patient_1'?"):
        check_domains({"patient1": "x"}, {"patient_1"}, tmp_path / "d.csv")


def test_case_without_domain_is_refused(tmp_path):
    with pytest.raises(UserError, match="no line for case 'b'"):
        check_domains({"a": "x"}, {"a", "b"}, tmp_path / "d.csv")


def test_misspelled_line_is_shown_for_a_case_without_one(tmp_path):
    with pytest.raises(UserError, match=r"no line for case 'patient_1'; add one. Did you mean 'patient1'\?"):
        domains_of_cases({"patient1": "x", "a": "x"}, {"patient_1", "a"}, tmp_path / "d.csv")
