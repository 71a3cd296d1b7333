import base64
import io
import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from synfoc3d.errors import UserError
from synfoc3d.inference.report.overlays import (
    CLASS_COLORS,
    case_means,
    choose_cases,
    draw_case,
    find_image_folder,
    find_scan,
)
from synfoc3d.inference.scores.evaluations import CaseResult, Evaluation
from synfoc3d.metrics import CaseMetrics

CLASSES = {"RV": (1,), "LV": (2,)}
SHAPE = (30, 24, 10)  # right, anterior, superior
SPACING = (1.0, 1.0, 4.0)


def labels(shape=SHAPE):
    """Class 1 lies to the right, in front and on top; class 2 opposite."""
    mask = np.zeros(shape, np.uint8)
    mask[20:26, 15:21, 6:9] = 1
    mask[4:10, 3:9, 1:4] = 2
    return mask


def pixels(address):
    """Return the picture in a data: address as (height, width, 3)."""
    kind, data = address.split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)


def colored(address, color):
    """Return the positions (down, across) of the pixels of a color, as shares of the picture's sides."""
    picture = pixels(address)
    direction = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], float)
    direction /= np.linalg.norm(direction)
    length = np.linalg.norm(picture, axis=2)
    return np.argwhere((length > 60) & (picture @ direction > 0.97 * length)) / picture.shape[:2]


def place_of(address, color):
    """Return the mean position of the pixels of a color."""
    return colored(address, color).mean(axis=0)


@pytest.fixture
def write(tmp_path, write_nifti):
    """Return a function that writes an array of the axes right, anterior, superior, stored in another order."""

    def store(name, values, orientation="RAS", spacing=SPACING):
        image = nibabel.Nifti1Image(values, np.diag([*spacing, 1.0]))
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(orientation))
        image = image.as_reoriented(turn)
        return write_nifti(tmp_path / f"{name}.nii.gz", np.asarray(image.dataobj), image.affine)

    return store


def evaluation(dice_by_case):
    cases = [
        CaseResult(
            case, "", Path("r"), Path("p"), {str(i): CaseMetrics({"dice": d}, 9, 9, 0, 100) for i, d in enumerate(dice)}
        )
        for case, dice in dice_by_case.items()
    ]
    return Evaluation(Path("l"), Path("p"), {"0": (1,), "1": (2,)}, tuple(cases), ())


def ranks(dice_by_case):
    return {chosen.rank: chosen.case for chosen in choose_cases(evaluation(dice_by_case))}


def test_classes_absent_from_both_masks_do_not_count():
    dice = case_means(evaluation({"a": (0.5, math.nan), "b": (math.nan, math.nan)}))
    assert dice["a"] == 0.5 and math.isnan(dice["b"])


def test_slices_of_a_case_are_averaged_by_class():
    slices = [*evaluation({"a": (0.5, math.nan)}).cases, *evaluation({"a": (0.7, 0.2)}).cases]
    dice = case_means(replace(evaluation({"a": (1.0, 1.0)}), cases=tuple(slices)))
    assert dice == {"a": pytest.approx((0.6 + 0.2) / 2)}


def test_best_median_and_worst_case():
    cases = {
        "a": (0.5, 0.7),
        "b": (0.1, 0.2),
        "c": (0.9, 0.8),
        "d": (math.nan, math.nan),
        "e": (0.3, 0.3),
        "f": (0.7, 0.7),
    }
    assert ranks(cases) == {"best": "c", "median": "a", "worst": "b"}


def test_few_cases_are_shown_once():
    assert ranks({"a": (0.2, 0.2), "b": (0.5, 0.5)}) == {"best": "b", "worst": "a"}
    assert ranks({"a": (0.2, 0.2)}) == {"best": "a"}
    assert ranks({"a": (math.nan, math.nan)}) == {}


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "ASL"])
def test_right_is_left_and_superior_is_up_however_the_file_is_stored(write, orientation):
    reference = write("reference", labels(), orientation)
    planes = {plane.name: plane for plane in draw_case(reference, {"A": reference}, {"RV": (1,)}, None)}
    seen = {name: np.round(place_of(plane.models["A"], CLASS_COLORS[0])) for name, plane in planes.items()}
    assert list(planes) == ["axial", "coronal", "sagittal"]
    # down, across: right and front are on the left, front (of the axial plane) and top are up
    assert all(place.tolist() == [0, 0] for place in seen.values())


def test_proportions_are_true(write):
    reference = write("reference", np.pad(labels(), 2))
    for plane in draw_case(reference, {"A": reference}, CLASSES, None):
        assert pixels(plane.models["A"]).shape[:2] == (plane.height, plane.width)
    sizes = {plane.name: (plane.width, plane.height) for plane in draw_case(reference, {}, CLASSES, None)}
    # 34 x 28 x 14 voxels of 1 x 1 x 4 mm, of which the longest side (56 mm) becomes 340 pixels
    assert sizes == {"axial": (206, 170), "coronal": (206, 340), "sagittal": (170, 340)}


def test_slice_that_holds_the_largest_shares_of_the_classes(write):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20, 5:20, 2] = 1
    mask[5:20, 5:19, 3] = 1
    mask[22:24, 10:12, 3] = 2
    reference = write("reference", mask)
    assert draw_case(reference, {}, CLASSES, None)[0].slice_number == (4, 10)


def test_an_empty_reference_shows_where_the_prediction_is(write):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 5:9, 7] = 2
    reference, prediction = write("reference", np.zeros(SHAPE, np.uint8)), write("prediction", mask)
    plane = draw_case(reference, {"A": prediction}, CLASSES, None)[0]
    assert plane.slice_number == (8, 10)
    assert len(colored(plane.models["A"], CLASS_COLORS[1]))


def test_empty_masks_show_the_middle_of_the_scan(write):
    empty = write("reference", np.zeros(SHAPE, np.uint8))
    scan = write("scan", np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    plane = draw_case(empty, {"A": empty}, CLASSES, scan)[0]
    assert plane.slice_number == (6, 10)
    assert pixels(plane.scan).max() > 240


def test_the_scan_is_seen_in_every_plane(write):
    reference = write("reference", labels())
    assert all(plane.scan is None for plane in draw_case(reference, {}, CLASSES, None))
    scan = write("scan", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    assert all(np.ptp(pixels(plane.scan)) > 200 for plane in draw_case(reference, {}, CLASSES, scan))


def test_voxels_that_are_no_numbers_are_drawn_black(write):
    values = np.full(SHAPE, np.nan, np.float32)
    reference, scan = write("reference", labels()), write("scan", values)
    assert pixels(draw_case(reference, {}, CLASSES, scan)[0].scan).max() < 5


def test_a_scan_on_another_grid_is_left_out(write, caplog):
    reference, scan = write("reference", labels()), write("scan", np.zeros((3, 4, 5), np.float32))
    assert draw_case(reference, {}, CLASSES, scan)[0].scan is None
    assert "resample one of them" in caplog.text


def test_a_scan_at_another_place_is_left_out(write, caplog):
    reference, scan = write("reference", labels()), write("scan", np.zeros(SHAPE, np.float32), "LAS")
    assert draw_case(reference, {}, CLASSES, scan)[0].scan is None
    assert "store both along the same ones" in caplog.text


def test_a_damaged_scan_is_left_out(write, tmp_path, caplog):
    (tmp_path / "scan.nii.gz").write_bytes(b"no scan")
    assert draw_case(write("reference", labels()), {}, CLASSES, tmp_path / "scan.nii.gz")[0].scan is None
    assert "cannot be read" in caplog.text


def test_a_damaged_mask_is_an_error(write, tmp_path):
    (tmp_path / "mask.nii.gz").write_bytes(b"no mask")
    with pytest.raises(UserError, match=r"mask\.nii\.gz cannot be read"):
        draw_case(write("reference", labels()), {"A": tmp_path / "mask.nii.gz"}, CLASSES, None)


def test_a_2d_image_in_colors(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[4:10, 40:50] = 1
    colors = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(colors).save(tmp_path / "scan.png")
    mask_file = tmp_path / "mask.png"
    (plane,) = draw_case(mask_file, {"A": mask_file}, {"RV": (1,)}, tmp_path / "scan.png")
    assert (plane.name, plane.slice_number) == ("image", (1, 1))
    assert np.ptp(pixels(plane.scan)) > 200


def test_a_2d_image_is_shown_as_it_is_stored(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[2:8, 50:58], mask[30:38, 2:8] = 1, 2
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (plane,) = draw_case(tmp_path / "mask.png", {"A": tmp_path / "mask.png"}, CLASSES, None)
    assert np.round(place_of(plane.models["A"], CLASS_COLORS[0])).tolist() == [0, 1]
    assert np.round(place_of(plane.models["A"], CLASS_COLORS[1])).tolist() == [1, 0]


def test_a_single_slice_of_another_plane(write):
    reference = write("reference", labels()[:, 17:18])
    (plane,) = draw_case(reference, {"A": reference}, CLASSES, None)
    assert plane.name == "coronal"


def test_thick_slices_keep_their_thickness(write):
    mask = np.zeros((20, 20, 2), np.uint8)
    mask[8:12, 8:12] = 1
    planes = draw_case(write("reference", mask, spacing=(1, 1, 10)), {}, CLASSES, None)
    assert [(plane.width, plane.height) for plane in planes][1] == (272, 340)  # 16 x 20 mm


def test_more_classes_than_colors(write):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:22, 4:20, 5] = np.arange(1, 21)[:, None]
    reference = write("reference", mask)
    classes = {str(value): (value,) for value in range(1, 21)}
    assert len(draw_case(reference, {"A": reference}, classes, None)) == 3


def test_a_region_of_several_values_has_one_color(write):
    reference = write("reference", labels())
    plane = draw_case(reference, {"A": reference}, {"heart": (1, 2)}, None)[2]
    assert not len(colored(plane.models["A"], CLASS_COLORS[1]))


def test_pictures_of_a_large_volume_are_small(write):
    shape = (300, 280, 60)
    mask = np.zeros(shape, np.uint8)
    mask[20:280, 20:260, 5:55] = 1
    scan = write("scan", np.random.default_rng(0).integers(-1000, 2000, shape).astype(np.int16))
    planes = draw_case(write("reference", mask), {"A": write("prediction", mask)}, CLASSES, scan)
    assert all(max(plane.width, plane.height) == 340 for plane in planes[:1])
    assert sum(len(plane.scan) + len(plane.models["A"]) for plane in planes) < 600_000


def test_folders_of_scans_beside_the_labels(tmp_path):
    assert find_image_folder(tmp_path / "labels") is None
    for name in ("images", "imagesTs", "imagesTr"):
        (tmp_path / name).mkdir()
        assert find_image_folder(tmp_path / "labels") == tmp_path / name


def test_scan_of_a_case(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b.png"):
        (tmp_path / name).touch()
    assert find_scan("a", tmp_path) == tmp_path / "a_0000.nii.gz"
    assert find_scan("b", tmp_path) == tmp_path / "b.png"
    assert find_scan("c", tmp_path) is None


# ---- regions, ignored voxels, partly annotated cases

NESTED = {"whole": (1, 2), "core": (2,)}


def test_of_nested_regions_the_innermost_is_filled(write):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:26, 4:20, 2:8], mask[8:22, 8:16, 2:8] = 1, 2
    reference, nothing = write("reference", mask), write("prediction", np.zeros(SHAPE, np.uint8))
    picture = pixels(draw_case(reference, {"A": nothing}, NESTED, None)[0].models["A"])
    height, width = picture.shape[:2]
    outer, inner = picture[height // 2, width // 4], picture[height // 2, width // 2]
    for color, place in zip(CLASS_COLORS, (outer, inner), strict=False):
        assert np.abs(place - 0.35 * 255 * np.array(to_rgb(color))).max() < 8  # on black


@pytest.mark.parametrize("order", [["whole", "core"], ["core", "whole"]])
def test_lines_of_nested_regions_are_seen_where_they_coincide(write, order):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20, 5:20, 2:8] = 2  # the core is all there is of the whole
    nothing, prediction = write("reference", np.zeros(SHAPE, np.uint8)), write("prediction", mask)
    classes = {name: NESTED[name] for name in order}
    address = draw_case(nothing, {"A": prediction}, classes, None)[0].models["A"]
    seen = [len(colored(address, CLASS_COLORS[index])) for index in range(2)]
    assert min(seen) > 100


def test_ignored_voxels_are_hatched(write):
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:22, 6:12, 3:7], mask[8:22, 12:18, 3:7] = 1, 3
    reference, nothing = write("reference", mask), write("prediction", np.zeros(SHAPE, np.uint8))
    plane = draw_case(reference, {"A": nothing}, CLASSES, None, 3)[0]
    picture = pixels(plane.models["A"]).max(axis=2)
    # cut out are 6 voxels around the class, x in [2, 28) and y in [0, 18), drawn from front (top) to back
    box = (slice(0, plane.height // 3), slice(plane.width * 6 // 26, plane.width * 20 // 26))
    assert 0.05 < (picture[box] > 60).mean() < 0.5
    assert picture[box[0], : plane.width * 5 // 26].max() < 30
    assert picture[plane.height * 3 // 4 :].max() < 30


def test_slices_of_ignored_voxels_are_not_chosen(write):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 5:9, 3] = 1
    mask[:, :, 6:] = 3
    assert draw_case(write("reference", mask), {}, CLASSES, None, 3)[0].slice_number == (4, 10)


def test_classes_that_were_not_annotated_do_not_count():
    result = evaluation({"a": (0.5, 0.7), "b": (0.9, 0.1)})
    one = replace(result.cases[1], metrics={"0": result.cases[1].metrics["0"]})
    assert case_means(replace(result, cases=(result.cases[0], one))) == {"a": pytest.approx(0.6), "b": 0.9}
