"""Images whose label file lies there under another name."""

import re
from pathlib import Path

import pytest

from synfoc3d.errors import UserError
from synfoc3d.preprocessing.case_checks import pair_labels
from synfoc3d.preprocessing.near_names import find_near


def refusal(images: list[str], labels: list[str]) -> str:
    """Return what is said of images and label files of these names."""

    def case_of(name: str) -> str:
        return name.removesuffix(".gz").rpartition(".")[0]

    with pytest.raises(UserError) as error:
        pair_labels(
            {re.sub(r"_\d{4}$", "", case_of(name)): (Path("images", name),) for name in images},
            {case_of(name): Path("labels", name) for name in labels},
        )
    return str(error.value)


@pytest.mark.parametrize(
    ("image", "label", "wanted"),
    [
        ("case.nrrd", "case.seg.nrrd", "case.nrrd"),
        ("case.nii.gz", "case_seg.nii.gz", "case.nii.gz"),
        ("case_0000.nii.gz", "case_0000.nii.gz", "case.nii.gz"),
        ("case.nrrd", "Case-label.nrrd", "case.nrrd"),
        ("patient001_frame01.nii.gz", "patient001_frame01_gt.nii.gz", "patient001_frame01.nii.gz"),
        ("img0001.nii.gz", "label0001.nii.gz", "img0001.nii.gz"),
        ("P1_image.nii", "P1_ground-truth.nii", "P1_image.nii"),
    ],
)
def test_label_that_may_be_meant_is_named_with_its_right_name(image: str, label: str, wanted: str) -> None:
    assert refusal([image, "b.nii.gz"], [label, "b.nii.gz"]).endswith(
        f"images/{image} has no label file; if labels/{label} is meant, rename it to {wanted}, as nnU-Net names labels "
        f"like their case."
    )


@pytest.mark.parametrize("names", [["case.nrrd", "case.seg.nrrd"], ["case.seg.nrrd", "case.nrrd"]])
def test_label_among_the_images_is_named(names: list[str]) -> None:
    said = refusal([*names, "b.nrrd"], ["b.nrrd"])
    assert said.endswith(
        "has no label file; if images/case.seg.nrrd is the label of images/case.nrrd, move it to the folder of labels "
        "as case.nrrd."
    )


@pytest.mark.parametrize(("name", "others"), [("a", ["b", "b_seg"]), ("a1", ["a1_seg", "a1.gt"]), ("seg", ["label"])])
def test_without_one_near_name_there_is_none(name: str, others: list[str]) -> None:
    assert find_near(name, others) is None


def test_image_without_any_label_is_to_be_moved() -> None:
    assert refusal(["a.nii", "b.nii"], ["a.nii"]).endswith("add it, or move the image to the unlabeled ones.")
