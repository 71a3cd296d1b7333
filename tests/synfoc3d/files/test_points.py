"""The file in which a user says where structures are."""

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.places import check_places, read_places
from synfoc3d.files.points import POINTS, Position

CLASSES = ("wall", "cavity")


@pytest.fixture
def points_file(tmp_path):
    """Return a function that writes a file of points."""

    def write(text):
        (tmp_path / "points.csv").write_text(text, encoding="utf-8")
        return tmp_path / "points.csv"

    return write


def test_points_are_read(points_file):
    file = points_file("\ufeffcase,class,x,y,z\na, wall ,1,2.5,3\na,cavity,,,\n,,,,\nb,wall,4,5,6\n")
    assert read_places(file, POINTS) == {
        "a": {"wall": Position(1, 2.5, 3), "cavity": None},
        "b": {"wall": Position(4, 5, 6)},
    }


def test_unit_is_voxel_unless_said(points_file):
    file = points_file(
        "case,class,x,y,z,unit\na,wall,-1.5,2,3,mm\na,cavity,1,2,3,\nb,wall,1,2,3,voxel\nb,cavity,,,,mm\n"
    )
    assert read_places(file, POINTS) == {
        "a": {"wall": Position(-1.5, 2, 3, "mm"), "cavity": Position(1, 2, 3, "voxel")},
        "b": {"wall": Position(1, 2, 3), "cavity": None},
    }


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        read_places(tmp_path / "none.csv", POINTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The first line of {} must be case,class,x,y,z or case,class,x,y,z,unit, but is ''."),
        (
            "case,x,y,z\n",
            "The first line of {} must be case,class,x,y,z or case,class,x,y,z,unit, but is 'case,x,y,z'.",
        ),
        ("case,class,x,y,z\na,wall,1,2\n", "A line of {} must be case,class,x,y,z, but one is 'a,wall,1,2'."),
        ("case,class,x,y,z\n,wall,1,2,3\n", "A line of {} must be case,class,x,y,z, but one is ',wall,1,2,3'."),
        ("case,class,x,y,z\na,wall,1,2,3\na,wall,,,\n", "{} has 'wall' of case 'a' twice; keep one point."),
        *(
            (
                f"case,class,x,y,z\na,wall,{numbers}\n",
                f"{{}} gives '{numbers}' as the point of 'wall' in 'a'; write 3 numbers, or none where the class "
                "is absent.",
            )
            for numbers in ("1,,3", "1,two,3", "1,nan,3", "1,2,inf")
        ),
        (
            "case,class,x,y,z,unit\na,wall,1,2,3,cm\n",
            "{} gives '1,2,3,cm' as the point of 'wall' in 'a'; write voxel or mm as the unit.",
        ),
    ],
)
def test_bad_file_is_refused(points_file, text, message):
    file = points_file(text)
    with pytest.raises(UserError) as caught:
        read_places(file, POINTS)
    assert str(caught.value) == message.format(file)


def checked(points, cases=("a",), all_cases=True):
    with pytest.raises(UserError) as caught:
        check_places(points, POINTS, CLASSES, cases, "P", all_cases=all_cases)
    return str(caught.value)


HERE = Position(1, 2, 3)
GOOD = {"a": {"wall": HERE, "cavity": None}}


def test_points_that_fit_are_accepted():
    check_places(GOOD, POINTS, CLASSES, ["a"], "P", all_cases=True)


def test_points_that_do_not_fit_are_refused():
    assert checked(GOOD | {"aa": {}}) == "P names 'aa', but there is no such scan. Did you mean 'a'?"
    assert checked({"a": {"wall": HERE, "Cavity": HERE}}) == (
        "P names the class 'Cavity' for 'a', which the model does not know. Did you mean 'cavity'?"
    )
    assert checked(GOOD, ["a", "b"]) == "P has no point for scan 'b'; add one for every class."
    assert checked({"a": {"wall": HERE}}) == (
        "P has no point of 'cavity' for 'a'; add one, or the line a,cavity,,, if it is absent."
    )


def test_file_for_one_scan_may_speak_of_others():
    check_places(GOOD | {"b": {"wall": HERE}}, POINTS, CLASSES, ["a"], "P", all_cases=False)
