import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.files.annotations import (
    check_annotated_values,
    check_annotations,
    check_any_annotated,
    copy_annotations,
    partly_annotated,
    read_annotations,
    write_annotations,
)
from synfoc3d.files.declared_labels import DeclaredLabels

PLAIN = DeclaredLabels({"LV": (1,), "MYO": (2,), "RV": (3,)}, ignore=4)
REGIONS = DeclaredLabels({"whole": (1, 2), "core": (2,), "far": (3,)}, order=(1, 2, 3))


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a text, or bytes, as a file."""

    def call(content):
        path = tmp_path / "annotated.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_annotations(path)

    return call


class TestReading:
    def test_lines(self, read):
        assert read("case,classes\np2,LV,MYO\np1,RV\n") == {"p2": ("LV", "MYO"), "p1": ("RV",)}

    def test_header_alone(self, read):
        assert read("case,classes\n") == {}

    def test_as_spreadsheets_write_it(self, read):
        text = "\ufeffcase,classes,,\r\np2,LV,MYO,\r\n p1 , RV,,\r\n,,,\r\n"
        assert read(text) == {"p2": ("LV", "MYO"), "p1": ("RV",)}

    def test_names_with_commas_are_quoted(self, read):
        assert read('case,classes\np,"muscle, left",LV\n') == {"p": ("muscle, left", "LV")}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"first line of .*annotated.csv must be case,classes, but is ''"),
            ("case;classes\np;LV\n", "but is 'case;classes'"),
            ("p,LV\n", "but is 'p,LV'"),
            ("case,classes\np\n", "but one is 'p'; a case without any belongs to the unlabeled ones"),
            ("case,classes\n,LV\n", "but one is ',LV'"),
            ("case,classes\np,LV\nq,LV\np,RV\n", "names case 'p' twice; keep one line"),
            ("case,classes\np,LV,RV,LV\n", "names a class of case 'p' twice"),
            (b"case,classes\np,\xff\n", "annotated.csv is no CSV file in UTF-8"),
            ("case,classes\np," + "x" * 200_000, "annotated.csv is no CSV file in UTF-8 .field larger"),
        ],
    )
    def test_other_content_is_refused(self, read, content, message):
        with pytest.raises(UserError, match=message):
            read(content)

    def test_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="annotated.csv cannot be read .No such file"):
            read_annotations(tmp_path / "annotated.csv")


# Names as files and dataset.json have them: no blanks around them, no control characters.
NAMES = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1).filter(
    lambda name: name == name.strip()
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.lists(NAMES, min_size=1, unique=True).map(tuple)))
def test_what_is_written_is_read_again(tmp_path, annotated):
    write_annotations(tmp_path / "annotated.csv", annotated)
    assert read_annotations(tmp_path / "annotated.csv") == annotated


def test_written_lines_are_sorted(tmp_path):
    write_annotations(tmp_path / "annotated.csv", {"b": ("RV", "LV"), "a": ("LV",)})
    assert (tmp_path / "annotated.csv").read_text() == "case,classes\na,LV\nb,RV,LV\n"


class TestNames:
    def check(self, annotated, labeled=("p1", "p2")):
        check_annotations(annotated, PLAIN, labeled, "annotated.csv")

    def test_names_that_fit(self):
        self.check({"p1": ("LV",), "p2": ("MYO", "RV")})
        self.check({"p1": ("LV",)})  # p2 has all
        self.check({})

    @pytest.mark.parametrize(
        ("annotated", "message"),
        [
            ({"p3": ("LV",)}, "annotated.csv names 'p3', which is no labeled case. Known: p1, p2"),
            ({"p1": ("MY0",)}, "annotated.csv names the class 'MY0' for p1. Did you mean 'MYO'"),
            ({"p1": ("background",)}, "names the class 'background' for p1"),
            ({"p1": ("ignore",)}, "names the class 'ignore' for p1"),
            ({"p1": ("LV",), "p2": ("MYO",)}, "By annotated.csv no case was annotated for 'RV'; name it for those"),
        ],
    )
    def test_names_that_do_not_are_refused(self, annotated, message):
        with pytest.raises(UserError, match=message):
            self.check(annotated)


def test_a_case_with_all_classes_is_not_partly_annotated():
    assert partly_annotated({"a": ("RV", "LV", "MYO"), "b": ("RV", "LV")}, PLAIN) == {"b"}


class TestValues:
    @pytest.mark.parametrize(
        ("labels", "names", "found"),
        [
            (PLAIN, ["LV"], [0, 1]),
            (PLAIN, ["LV", "RV"], [0, 1, 3, 4]),
            (PLAIN, ["LV"], []),
            (REGIONS, ["whole"], [0, 1, 2]),
            (REGIONS, ["core", "far"], [0, 2, 3]),
        ],
    )
    def test_values_of_annotated_classes(self, labels, names, found):
        check_annotated_values(names, labels, found, "p.nii.gz", "annotated.csv")

    @pytest.mark.parametrize(
        ("labels", "names", "found", "message"),
        [
            (PLAIN, ["LV"], [0, 1, 3], r"p.nii.gz holds the value 3 \(RV\), which annotated.csv does not name"),
            (REGIONS, ["far"], [0, 2], r"holds the value 2 \(whole, core\)"),
            (REGIONS, ["core"], [0, 1, 2], r"holds the value 1 \(whole\)"),
            (PLAIN, ["LV"], [9], r"holds the value 9 \(no class\)"),
        ],
    )
    def test_values_of_others_are_refused(self, labels, names, found, message):
        with pytest.raises(UserError, match=message):
            check_annotated_values(names, labels, found, "p.nii.gz", "annotated.csv")

    def test_label_file_that_says_nothing_is_refused(self):
        with pytest.raises(UserError, match="Every voxel of p.nii.gz has the ignore label 4; annotate some"):
            check_any_annotated(PLAIN, (4,), "p.nii.gz")

    @pytest.mark.parametrize(("labels", "found"), [(PLAIN, (0, 4)), (PLAIN, (0,)), (REGIONS, (3,))])
    def test_label_file_that_says_something(self, labels, found):
        check_any_annotated(labels, found, "p.nii.gz")


class TestCopy:
    def test_file_is_copied_as_it_is(self, tmp_path):
        content = "\ufeffcase,classes\r\nb,LV\r\na,LV\r\n".encode()
        (tmp_path / "target").mkdir()
        (tmp_path / "annotated.csv").write_bytes(content)
        copy_annotations(tmp_path, tmp_path / "target")
        assert (tmp_path / "target" / "annotated.csv").read_bytes() == content

    def test_stale_copy_is_removed(self, tmp_path):
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "annotated.csv").touch()
        copy_annotations(tmp_path, tmp_path / "target")
        assert not (tmp_path / "target" / "annotated.csv").exists()

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_folder_is_its_own_copy(self, tmp_path, exists):
        if exists:
            (tmp_path / "annotated.csv").write_text("case,classes\n")
        copy_annotations(tmp_path, tmp_path)
        assert (tmp_path / "annotated.csv").exists() == exists
