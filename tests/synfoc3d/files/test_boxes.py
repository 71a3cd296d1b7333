"""The file in which a user says which boxes structures are in."""

import pytest

from synfoc3d.errors import UserError
from synfoc3d.files.boxes import BOXES, BoxPosition
from synfoc3d.files.places import check_places, read_places

HEADER = "case,class,z,x0,y0,x1,y1"


@pytest.fixture
def boxes_file(tmp_path):
    """Return a function that writes a file of boxes."""

    def write(text):
        (tmp_path / "boxes.csv").write_text(text, encoding="utf-8")
        return tmp_path / "boxes.csv"

    return write


def test_boxes_are_read(boxes_file):
    file = boxes_file(f"{HEADER}\na,wall,3,1,2.5,8,9\na,cavity,,,,,\nb,wall,0,4,5,4,5\n")
    assert read_places(file, BOXES) == {
        "a": {"wall": BoxPosition(z=3, x0=1, y0=2.5, x1=8, y1=9), "cavity": None},
        "b": {"wall": BoxPosition(0, 4, 5, 4, 5)},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,class,x,y,z\n", f"The first line of {{}} must be {HEADER}, but is 'case,class,x,y,z'."),
        (f"{HEADER}\na,wall,3,1,2,8\n", f"A line of {{}} must be {HEADER}, but one is 'a,wall,3,1,2,8'."),
        (f"{HEADER}\na,wall,3,1,2,8,9\na,wall,,,,,\n", "{} has 'wall' of case 'a' twice; keep one box."),
        (
            f"{HEADER}\na,wall,,1,2,8,9\n",
            "{} gives ',1,2,8,9' as the box of 'wall' in 'a'; write 5 numbers, or none where the class is absent.",
        ),
        *(
            (
                f"{HEADER}\na,wall,{numbers}\n",
                f"{{}} gives '{numbers}' as the box of 'wall' in 'a'; write the smaller of two numbers as x0 and y0, "
                "the larger as x1 and y1.",
            )
            for numbers in ("3,8,2,1,9", "3,1,9,8,2")
        ),
    ],
)
def test_bad_file_is_refused(boxes_file, text, message):
    file = boxes_file(text)
    with pytest.raises(UserError) as caught:
        read_places(file, BOXES)
    assert str(caught.value) == message.format(file)


def test_missing_line_is_refused_with_the_line_of_an_absent_class():
    with pytest.raises(UserError) as caught:
        check_places({"a": {"wall": None}}, BOXES, ("wall", "cavity"), ["a"], "B", all_cases=True)
    assert str(caught.value) == "B has no box of 'cavity' for 'a'; add one, or the line a,cavity,,,,, if it is absent."
