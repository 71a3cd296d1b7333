import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from synfoc3d.errors import UserError
from synfoc3d.preprocessing.generated.anatomy import LABELS, MIN_SHAPE, Canvas, Outline, Tissue, draw_anatomy
from synfoc3d.preprocessing.generated.generate import StorageOptions, generate_case, generate_dataset
from synfoc3d.preprocessing.generated.scanners import SCANNERS, acquire

SHAPE = (40, 32, 7)
FOREGROUND = [value for name, value in LABELS.items() if name != "background"]
MIXED = StorageOptions(shape=SHAPE, orientations=("RAS", "LPI", "ASL"))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def load(path: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(load(path).dataobj)


def read_domains(folder: Path) -> list[list[str]]:
    with open(folder / "domains.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "data"
    storage = StorageOptions(shape=SHAPE, num_channels=2)
    generate_dataset(folder, {"A": 3, "D": 1}, {"A": 2}, test_per_scanner=1, seed=5, storage=storage)
    return folder


# The anatomy


@pytest.mark.parametrize("seed", range(8))
def test_every_structure_is_present_and_the_end_slices_are_empty(seed: int) -> None:
    label = draw_anatomy(SHAPE, rng(seed)).label
    assert set(np.unique(label)) == set(LABELS.values())
    assert not label[:, :, [0, -1]].any()


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_shape_still_holds_the_ring_and_the_side_chamber(seed: int) -> None:
    label = draw_anatomy(MIN_SHAPE, rng(seed)).label
    assert set(np.unique(label)) == set(LABELS.values())


@pytest.mark.parametrize("seed", range(8))
def test_the_wall_encloses_the_cavity_in_every_slice(seed: int) -> None:
    label = draw_anatomy((72, 64, 10), rng(seed)).label
    cavity = label == LABELS["cavity"]
    around = ndimage.binary_dilation(cavity, np.ones((3, 3, 1))) & ~cavity
    assert (label[around] == LABELS["wall"]).all()


def test_labels_lie_on_their_tissues() -> None:
    anatomy = draw_anatomy(SHAPE, rng())
    assert (anatomy.tissue[anatomy.label == LABELS["wall"]] == Tissue.HEART_MUSCLE).all()
    assert (anatomy.tissue[anatomy.label > LABELS["wall"]] == Tissue.BLOOD).all()


@pytest.mark.parametrize("tissue", [Tissue.BLOOD, Tissue.HEART_MUSCLE])
def test_unlabeled_organs_share_the_tissues_of_the_heart(tissue: Tissue) -> None:
    anatomy = draw_anatomy((72, 64, 10), rng())
    assert ((anatomy.tissue == tissue) & (anatomy.label == 0)).sum() > 50


def test_outline_measures_an_ellipse_along_its_rotated_axes() -> None:
    outline = Outline(center=(1.0, 2.0), radii=(2.0, 0.5), angle=np.pi / 2)
    u, v = np.array([1.0, 1.0, 1.5, 0.5]), np.array([2.0, 4.0, 2.0, 1.0])
    np.testing.assert_allclose(outline.distance(u, v), [0, 1, 1, np.hypot(0.5, 1)])


def test_outline_wobble_lengthens_the_radius_where_its_harmonic_peaks() -> None:
    outline = Outline(center=(0.0, 0.0), radii=(1.0, 1.0), wobble=((0.25, 0.0),))
    np.testing.assert_allclose(outline.distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])), [1 / 1.25, 1 / 0.75])


def test_units_are_half_the_smaller_side_along_both_axes() -> None:
    canvas = Canvas((80, 40, 4), rng())
    assert np.ptp(canvas.u.mean(axis=(1, 2))) == pytest.approx(79 / 20, rel=0.1)
    assert np.ptp(canvas.v.mean(axis=(0, 2))) == pytest.approx(39 / 20, rel=0.1)


# The scanners


def test_scanners_show_the_same_anatomy() -> None:
    labels = [generate_case(scanner, rng(3), SHAPE).label for scanner in SCANNERS.values()]
    assert all(np.array_equal(label, labels[0]) for label in labels)


def mean_z_scored_tissues(name: str) -> np.ndarray:
    anatomy = draw_anatomy((72, 64, 10), rng(1))
    image = acquire(anatomy.tissue, SCANNERS[name], rng(1))[0].astype(float)
    return ndimage.mean((image - image.mean()) / image.std(), anatomy.tissue, list(Tissue))


@pytest.mark.parametrize("name", ["B", "C", "D"])
def test_z_scoring_does_not_undo_the_contrast_of_a_domain(name: str) -> None:
    assert np.abs(mean_z_scored_tissues(name) - mean_z_scored_tissues("A")).max() > 0.4


def test_scanners_reverse_the_order_of_tissues() -> None:
    def order(name: str) -> list[int]:
        return list(np.argsort(mean_z_scored_tissues(name)))

    assert order("A") != order("D")


def test_gain_and_offset_change_the_stored_scale_only() -> None:
    tissue = draw_anatomy(SHAPE, rng()).tissue
    plain = replace(SCANNERS["A"], gain=1.0, offset=0.0)
    image = acquire(tissue, plain, rng())[0]
    scaled = acquire(tissue, replace(plain, gain=2.0, offset=50.0), rng())[0]
    np.testing.assert_allclose(scaled, 2.0 * image + 50, atol=1.5)


def test_noise_is_rician_so_air_has_the_mean_of_its_amplitude() -> None:
    air = np.zeros((64, 48, 10), np.uint8)
    scanner = replace(SCANNERS["A"], noise=0.1, coarseness=1.0, gain=1.0, offset=0.0)
    assert acquire(air, scanner, rng())[0].mean() == pytest.approx(100 * np.sqrt(np.pi / 2), rel=0.02)


def edge_width_mm(scanner_changes: dict[str, float]) -> float:
    tissue = np.full((64, 48, 4), Tissue.LUNG, np.uint8)
    tissue[32:] = Tissue.BLOOD
    quiet = replace(SCANNERS["A"], **({"noise": 0.0, "bias": 0.0, "blur_mm": 0.1} | scanner_changes))
    profile = np.diff(acquire(tissue, quiet, rng())[0].astype(float).mean(axis=(1, 2)))[26:37]
    position = np.arange(26, 37) * quiet.spacing_mm[0]
    center = np.average(position, weights=np.abs(profile))
    return float(np.sqrt(np.average((position - center) ** 2, weights=np.abs(profile))))


def test_blur_is_a_gaussian_in_millimetres() -> None:
    assert edge_width_mm({"blur_mm": 4.0}) == pytest.approx(4.0, rel=0.15)


def test_a_coarser_acquisition_widens_edges() -> None:
    assert edge_width_mm({"coarseness": 2.0}) > edge_width_mm({}) + 0.3


@pytest.mark.parametrize("coarseness", [1.0, 1.3, 2.0])
def test_a_coarser_acquisition_leaves_objects_in_place(coarseness: float) -> None:
    tissue = np.full((40, 32, 4), Tissue.AIR, np.uint8)
    tissue[10:20, 8:18] = Tissue.BLOOD
    image = acquire(tissue, replace(SCANNERS["A"], noise=0.0, bias=0.0, coarseness=coarseness), rng())[0]
    np.testing.assert_allclose(ndimage.center_of_mass(image)[:2], (14.5, 12.5), atol=0.2)


def test_bias_field_shades_a_uniform_body() -> None:
    tissue = np.full(SHAPE, Tissue.LIVER, np.uint8)
    quiet = replace(SCANNERS["A"], noise=0.0, bias=0.0, gain=10.0)
    shaded, flat = (acquire(tissue, replace(quiet, bias=bias), rng())[0] for bias in (0.3, 0.0))
    log_shading = np.log(shaded / flat)
    assert log_shading.std() == pytest.approx(0.3, rel=0.02)
    assert np.abs(np.diff(log_shading, axis=0)).max() < 0.1


# One case


@pytest.mark.parametrize("name", SCANNERS)
def test_a_case_has_the_shape_types_and_anisotropic_spacing_of_its_scanner(name: str) -> None:
    images, label, affine = generate_case(SCANNERS[name], rng(), SHAPE, num_channels=2)
    assert [(image.shape, image.dtype) for image in images] == [(SHAPE, np.int16)] * 2
    assert (label.shape, label.dtype) == (SHAPE, np.uint8)
    assert tuple(np.diag(affine)[:3]) == SCANNERS[name].spacing_mm
    assert affine[2, 2] > 3 * affine[0, 0]


def test_a_case_is_repeatable_and_depends_on_the_random_stream() -> None:
    first, again, other = (generate_case(SCANNERS["B"], rng(seed), SHAPE).images[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_second_channel_exchanges_bright_and_dark_tissues() -> None:
    bright_blood, dark_blood = generate_case(SCANNERS["A"], rng(), SHAPE, num_channels=2).images
    assert bright_blood.shape == dark_blood.shape
    body = bright_blood > np.percentile(bright_blood, 50)
    assert np.corrcoef(bright_blood[body], dark_blood[body])[0, 1] < -0.5


@pytest.mark.parametrize("shape", [(15, 32, 7), (40, 32, 3), (40, 32)])
def test_a_shape_too_small_for_the_anatomy_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"shape \(\d+, .*at least \(16, 16, 4\)"):
        generate_case(SCANNERS["A"], rng(), shape)


@pytest.mark.parametrize("num_channels", [0, 3])
def test_a_number_of_channels_no_scanner_has_is_refused(num_channels: int) -> None:
    with pytest.raises(UserError, match=f"1 to 2 channels, not {num_channels}"):
        generate_case(SCANNERS["A"], rng(), SHAPE, num_channels)


# The data set on disk


def test_the_layout_is_the_one_the_import_command_reads(dataset: Path) -> None:
    channels = ["_0000.nii.gz", "_0001.nii.gz"]
    labeled, unlabeled, test = ["Atrain001", "Atrain002"], ["Atrain003", "Dtrain001"], ["Atest001", "Dtest001"]
    expected = ["domains.csv", "labeled/dataset.json"]
    expected += [f"labeled/images/{case}{channel}" for case in labeled for channel in channels]
    expected += [f"labeled/labels/{case}.nii.gz" for case in labeled]
    expected += [f"unlabeled/{case}{channel}" for case in unlabeled for channel in channels]
    expected += [f"test/images/{case}{channel}" for case in test for channel in channels]
    expected += [f"test/labels/{case}.nii.gz" for case in test]
    assert files_below(dataset) == sorted(expected)


def test_dataset_json_describes_the_labeled_folder(dataset: Path) -> None:
    assert json.loads((dataset / "labeled" / "dataset.json").read_text()) == {
        "channel_names": {"0": "bright_blood", "1": "dark_blood"},
        "labels": {"background": 0, "wall": 1, "cavity": 2, "side_chamber": 3},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def test_domains_csv_lists_every_case(dataset: Path) -> None:
    cases = ["Atrain001", "Atrain002", "Atrain003", "Atest001", "Dtrain001", "Dtest001"]
    assert read_domains(dataset) == [["case", "domain"], *([case, case[0]] for case in cases)]


def test_stored_labels_and_images_share_geometry_and_unequal_axes(dataset: Path) -> None:
    image = load(dataset / "labeled" / "images" / "Atrain001_0001.nii.gz")
    label = load(dataset / "labeled" / "labels" / "Atrain001.nii.gz")
    assert image.shape == label.shape and len(set(label.shape)) == 3
    np.testing.assert_array_equal(image.affine, label.affine)
    assert set(np.unique(voxels(dataset / "labeled" / "labels" / "Atrain001.nii.gz"))) == {0, *FOREGROUND}


def test_qform_and_sform_agree_on_millimetres(dataset: Path) -> None:
    image = load(dataset / "test" / "images" / "Dtest001_0000.nii.gz")
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.header.get_zooms(), SCANNERS["D"].spacing_mm)


def test_sides_vary_a_little_between_cases(tmp_path: Path) -> None:
    generate_dataset(tmp_path, {"A": 6}, {"A": 6}, storage=StorageOptions(shape=SHAPE))
    shapes = [voxels(path).shape for path in (tmp_path / "labeled" / "labels").iterdir()]
    assert len(set(shapes)) > 1
    assert (np.abs(np.subtract(shapes, SHAPE)) <= (3, 3, 1)).all()


def test_the_smallest_shape_is_never_undercut(tmp_path: Path) -> None:
    generate_dataset(tmp_path, {"A": 4}, {"A": 4}, storage=StorageOptions(shape=MIN_SHAPE))
    shapes = [voxels(path).shape for path in (tmp_path / "labeled" / "labels").iterdir()]
    assert (np.subtract(shapes, MIN_SHAPE) >= 0).all()


def test_a_case_is_unchanged_when_others_are_added_or_lose_their_labels(tmp_path: Path) -> None:
    storage = StorageOptions(shape=SHAPE)
    generate_dataset(tmp_path / "few", {"B": 2}, {"B": 2}, seed=9, storage=storage)
    generate_dataset(tmp_path / "many", 2, {"A": 1}, test_per_scanner=1, seed=9, storage=storage)
    few = voxels(tmp_path / "few" / "labeled" / "images" / "Btrain002_0000.nii.gz")
    assert np.array_equal(few, voxels(tmp_path / "many" / "unlabeled" / "Btrain002_0000.nii.gz"))


def test_training_and_test_cases_and_seeds_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        generate_dataset(
            tmp_path / str(seed), {"A": 1}, {"A": 1}, test_per_scanner=1, seed=seed, storage=StorageOptions(shape=SHAPE)
        )
    training = voxels(tmp_path / "0" / "labeled" / "labels" / "Atrain001.nii.gz")
    assert not np.array_equal(training, voxels(tmp_path / "0" / "test" / "labels" / "Atest001.nii.gz"))
    assert not np.array_equal(training, voxels(tmp_path / "1" / "labeled" / "labels" / "Atrain001.nii.gz"))


def test_an_int_asks_for_so_many_cases_of_every_scanner(tmp_path: Path) -> None:
    cases = generate_dataset(tmp_path, 1, {"C": 1}, storage=StorageOptions(shape=MIN_SHAPE))
    assert cases == ["Atrain001", "Btrain001", "Ctrain001", "Dtrain001"]


@pytest.fixture(scope="module")
def mixed_and_plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    folders = [tmp_path_factory.mktemp("orientations") / name for name in ("mixed", "plain")]
    for folder, storage in zip(folders, (MIXED, replace(MIXED, orientations=("RAS",))), strict=True):
        generate_dataset(folder, {"A": 3}, {"A": 3}, storage=storage)
    mixed, plain = (sorted(folder.rglob("*.nii.gz")) for folder in folders)
    return mixed, plain


def test_orientations_are_dealt_out_in_turn(mixed_and_plain: tuple[list[Path], list[Path]]) -> None:
    labels = [path for path in mixed_and_plain[0] if path.parent.name == "labels"]
    assert ["".join(nib.aff2axcodes(load(path).affine)) for path in labels] == ["RAS", "LPI", "ASL"]


def test_orientations_keep_every_voxel_in_its_place_in_the_world(
    mixed_and_plain: tuple[list[Path], list[Path]],
) -> None:
    for mixed, plain in zip(*mixed_and_plain, strict=True):
        canonical, expected = nib.as_closest_canonical(load(mixed)), load(plain)
        np.testing.assert_allclose(canonical.affine, expected.affine, atol=1e-3)
        assert np.array_equal(canonical.get_fdata(), expected.get_fdata())


# Mistakes


@pytest.mark.parametrize("arguments", [({"E": 1}, {"A": 1}), (1, {"E": 1})])
def test_an_unknown_scanner_is_refused(tmp_path: Path, arguments: tuple) -> None:
    with pytest.raises(UserError, match="no generated scanner 'E'.*Known: A, B, C, D"):
        generate_dataset(tmp_path, *arguments)


@pytest.mark.parametrize(("cases", "labeled", "test"), [(-1, {"A": 1}, 0), (1, {"A": -1}, 0), (1, {"A": 1}, -1)])
def test_negative_numbers_of_cases_are_refused(tmp_path: Path, cases: int, labeled: dict, test: int) -> None:
    with pytest.raises(UserError, match="cannot be negative.*-1"):
        generate_dataset(tmp_path, cases, labeled, test_per_scanner=test)


@pytest.mark.parametrize("counts", [1, {"A": 1}])
def test_more_labels_than_cases_are_refused(tmp_path: Path, counts: int | dict[str, int]) -> None:
    with pytest.raises(UserError, match="'A' has 1 training cases, so 2 of them"):
        generate_dataset(tmp_path, counts, {"A": 2})


@pytest.mark.parametrize("labeled", [{}, {"A": 0}])
def test_a_data_set_without_labels_is_refused(tmp_path: Path, labeled: dict[str, int]) -> None:
    with pytest.raises(UserError, match="No case would be labeled"):
        generate_dataset(tmp_path, 1, labeled)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed must be at least 0, but is -1"):
        generate_dataset(tmp_path, 1, {"A": 1}, seed=-1)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").touch()
    with pytest.raises(UserError, match=f"{tmp_path}: it is not an empty folder"):
        generate_dataset(tmp_path, 1, {"A": 1})


@pytest.mark.parametrize("code", ["RA", "RAX", "RLS", "RASS"])
def test_a_code_that_is_no_orientation_is_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(UserError, match=f"'{code}' is no orientation"):
        generate_dataset(tmp_path, 1, {"A": 1}, storage=StorageOptions(orientations=("RAS", code)))


@pytest.mark.parametrize("orientations", ["RAS", ()])
def test_orientations_must_be_a_list(tmp_path: Path, orientations: str | tuple) -> None:
    with pytest.raises(UserError, match="list of at least one axis code"):
        generate_dataset(tmp_path, 1, {"A": 1}, storage=StorageOptions(orientations=orientations))


def test_bad_appearance_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="channels, not 5"):
        generate_dataset(tmp_path / "new", 1, {"A": 1}, storage=StorageOptions(num_channels=5))
    assert not (tmp_path / "new").exists()
