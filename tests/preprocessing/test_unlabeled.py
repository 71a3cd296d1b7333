"""Preprocessing through nnU-Net itself, on generated scans of 24 x 20 x 12 voxels."""

import json
import os
import pickle
import shutil

import blosc2
import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

from synfoc3d.errors import UserError
from synfoc3d.files.origins import changed_files, read_origins
from synfoc3d.preprocessing import done_cases, stock, unlabeled
from synfoc3d.preprocessing.unlabeled import preprocess_dataset
from synfoc3d.trainers.life_cycle.case_facts import measure_cases

from ..shortcuts import sample_few_voxels, start_no_pools

SHAPE = (24, 20, 12)
AFFINE = np.diag([1.0, 1.2, 3.0, 1.0])
STOCK, OURS = "Dataset501_Stock", "Dataset502_Ours"
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "blob": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "NibabelIOWithReorient",
}


def blob(seed):
    """Return an image and its label: a bright ball in noise."""
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(np.indices(SHAPE) - rng.uniform(5, 7, (3, 1, 1, 1)), axis=0)
    label = (distance < 4).astype(np.uint8)
    return (100 + 50 * label + rng.normal(0, 5, SHAPE)).astype(np.float32), label


def make_raw(folder, write_nifti):
    for case in range(3):
        image, label = blob(case)
        write_nifti(folder / "imagesTr" / f"l{case}_0000.nii.gz", image, AFFINE)
        write_nifti(folder / "labelsTr" / f"l{case}.nii.gz", label, AFFINE)
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))


def add_unlabeled(folder, write_nifti):
    """Add u0, the very image of l0, and u1, another one with a spacing of its own."""
    (folder / "imagesUn").mkdir()
    shutil.copy(folder / "imagesTr" / "l0_0000.nii.gz", folder / "imagesUn" / "u0_0000.nii.gz")
    write_nifti(folder / "imagesUn" / "u1_0000.nii.gz", blob(7)[0], np.diag([1.5, 1.2, 3.0, 1.0]))
    lines = ["case,domain", "l0,x", "l1,x", "l2,x", "u0,y", "u1,y"]
    (folder / "domains.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_nifti):
    """Two datasets with the same scans: one planned by the stock API without imagesUn, both then done by us."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, root)
        for name in (STOCK, OURS):
            make_raw(root / "nnUNet_raw" / name, write_nifti)
        with pytest.MonkeyPatch.context() as inner:
            start_no_pools(inner)
            sample_few_voxels(inner)
            extract_fingerprints([501], num_processes=1, verbose=False)
            plan_experiments([501])
            preprocess([501], configurations=["2d"], num_processes=[1])
            shutil.copytree(root / "nnUNet_preprocessed" / STOCK, root / "after_stock")
            for name in (STOCK, OURS):
                add_unlabeled(root / "nnUNet_raw" / name, write_nifti)
            preprocess_dataset(502, ["2d"], num_processes=1)
        preprocess_dataset(STOCK, ["2d"], num_processes=2)
    return root


def set_folders(patch, root):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(name, str(root / name))


@pytest.fixture
def dataset(prepared, tmp_path, monkeypatch):
    """The second dataset as a copy of its own: its raw and its preprocessed folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(prepared / name / OURS, tmp_path / name / OURS)
    set_folders(monkeypatch, tmp_path)
    return tmp_path / "nnUNet_raw" / OURS, tmp_path / "nnUNet_preprocessed" / OURS


@pytest.fixture
def jobs(monkeypatch):
    """The cases that are preprocessed during the test."""
    done = []
    original = unlabeled._preprocess_case

    def note(case, *arguments, **named):
        done.append(case)
        return original(case, *arguments, **named)

    monkeypatch.setattr(unlabeled, "_preprocess_case", note)
    return done


def run(**changes):
    preprocess_dataset(**({"dataset_id_or_name": 502, "configurations": ["2d"], "num_processes": 1} | changes))


def load(folder, case):
    read = [np.asarray(blosc2.open(str(folder / f"{case}{ending}"))[:]) for ending in (".b2nd", "_seg.b2nd")]
    return (*read, pickle.loads((folder / f"{case}.pkl").read_bytes()))


def change_voxel(file):
    """Write a preprocessed file anew, one voxel of which is another one."""
    values = np.array(blosc2.open(str(file))[:])
    values[0, 5, 4, 3] += 1
    file.unlink()
    blosc2.asarray(values, urlpath=str(file))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestResult:
    @pytest.mark.parametrize("name", [STOCK, OURS])
    def test_image_is_preprocessed_as_nnunet_does_it(self, prepared, name):
        folder = prepared / "nnUNet_preprocessed" / name
        labeled, seg, properties = load(folder / "nnUNetPlans_2d", "l0")
        image, no_seg, unlabeled_properties = load(folder / "nnUNetPlans_2d_unlabeled", "u0")
        np.testing.assert_array_equal(image, labeled)
        assert image.dtype == np.float32
        assert unlabeled_properties["spacing"] == properties["spacing"]
        assert no_seg.shape == seg.shape
        assert set(np.unique(no_seg)) <= {-1, 0}

    def test_storage_is_that_of_nnunet(self, prepared):
        folder = prepared / "nnUNet_preprocessed" / OURS
        ours, stock = (
            blosc2.open(str(folder / name)) for name in ("nnUNetPlans_2d_unlabeled/u0.b2nd", "nnUNetPlans_2d/l0.b2nd")
        )
        assert (ours.chunks, ours.blocks) == (stock.chunks, stock.blocks)

    def test_unlabeled_scan_is_resampled_to_the_plans_spacing(self, prepared):
        folder = prepared / "nnUNet_preprocessed" / OURS
        image, _, _ = load(folder / "nnUNetPlans_2d_unlabeled", "u1")
        assert image.shape == (1, 12, 20, 36)  # x: 24 voxels of 1.5 mm at a spacing of 1 mm

    def test_pool_of_processes_gives_the_same(self, prepared):
        folders = [prepared / "nnUNet_preprocessed" / name / "nnUNetPlans_2d_unlabeled" for name in (STOCK, OURS)]
        assert sorted(contents(folders[0])) == sorted(contents(folders[1]))
        np.testing.assert_array_equal(load(folders[0], "u1")[0], load(folders[1], "u1")[0])

    def test_nothing_temporary_stays(self, prepared):
        folder = prepared / "nnUNet_preprocessed" / OURS
        assert not list(folder.glob("*.partial")) + list(folder.rglob("*.tmp"))

    def test_nnunet_recognizes_the_storage_format(self, prepared):
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        folder = prepared / "nnUNet_preprocessed" / OURS / "nnUNetPlans_2d_unlabeled"
        assert sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder))) == ["u0", "u1"]

    def test_domains_come_along(self, prepared):
        copies = [prepared / root / OURS / "domains.csv" for root in ("nnUNet_raw", "nnUNet_preprocessed")]
        assert copies[0].read_text() == copies[1].read_text()


class TestStockPart:
    def test_what_the_stock_command_did_is_untouched(self, prepared):
        now = contents(prepared / "nnUNet_preprocessed" / STOCK)
        for name, before in contents(prepared / "after_stock").items():
            assert now[name] == before, name

    @pytest.mark.parametrize("name", ["nnUNetPlans.json", "dataset_fingerprint.json"])
    def test_unlabeled_scans_do_not_touch_the_plans(self, prepared, name):
        without = (prepared / "after_stock" / name).read_text()
        ours = (prepared / "nnUNet_preprocessed" / OURS / name).read_text()
        assert json.loads(ours.replace(OURS, STOCK)) == json.loads(without)

    def test_incomplete_configuration_is_done_again(self, dataset, monkeypatch):
        _, preprocessed = dataset
        missing = preprocessed / "nnUNetPlans_2d" / "l1.pkl"
        content = missing.read_bytes()
        missing.unlink()
        calls = []

        def preprocess(*arguments):
            calls.append(arguments)
            missing.write_bytes(content)

        monkeypatch.setattr(stock, "preprocess", preprocess)
        run()
        assert calls == [([502], "nnUNetPlans", ["2d"], [1])]


class TestResume:
    @pytest.mark.parametrize("file", ["nnUNetPlans_2d/l1.b2nd", "nnUNetPlans_2d_unlabeled/u1.pkl"])
    def test_case_that_is_cut_short_is_done_again(self, dataset, file):
        whole = (dataset[1] / file).read_bytes()
        os.truncate(dataset[1] / file, len(whole) // 2)
        run()
        assert len((dataset[1] / file).read_bytes()) == len(whole)

    def test_second_preprocessing_at_a_time_is_refused(self, dataset, jobs):
        shutil.rmtree(dataset[1] / "nnUNetPlans_2d_unlabeled")
        with stock.only_preprocessing(dataset[1]), pytest.raises(UserError, match=f"preprocesses {OURS} since"):
            run()
        assert jobs == []
        run()
        assert sorted(jobs) == ["u0", "u1"]
        assert [path.name for path in dataset[1].parent.iterdir()] == [OURS]

    def test_finished_cases_are_skipped(self, dataset, jobs):
        run()  # reads the files, which were copied
        before = contents(dataset[1])
        run()
        assert jobs == []
        assert contents(dataset[1]) == before

    @pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
    def test_half_written_case_is_done_again(self, dataset, jobs, ending):
        folder = dataset[1] / "nnUNetPlans_2d_unlabeled"
        before = load(folder, "u1")[0]
        (folder / f"u1{ending}").unlink()
        run()
        assert jobs == ["u1"]
        np.testing.assert_array_equal(load(folder, "u1")[0], before)

    def test_left_over_temporary_files_do_not_matter(self, dataset, jobs):
        folder = dataset[1] / "nnUNetPlans_2d_unlabeled"
        (folder / "u1.pkl").unlink()
        partial = folder.with_name("nnUNetPlans_2d_unlabeled.partial")
        partial.mkdir()
        (partial / "u1.b2nd").write_text("half")
        run()
        assert jobs == ["u1"]
        assert not partial.exists()

    def test_changed_image_is_done_again(self, dataset, jobs, write_nifti):
        raw, preprocessed = dataset
        before = load(preprocessed / "nnUNetPlans_2d_unlabeled", "u0")[0]
        write_nifti(raw / "imagesUn" / "u0_0000.nii.gz", blob(8)[0], AFFINE)
        run()
        assert jobs == ["u0"]
        assert not np.array_equal(load(preprocessed / "nnUNetPlans_2d_unlabeled", "u0")[0], before)

    @pytest.mark.parametrize(
        ("key", "value", "expected"), [("patch_size", [8, 8], ["u0", "u1"]), ("batch_size", 1, [])]
    )
    def test_changed_plans_are_followed_where_they_matter(self, dataset, jobs, key, value, expected):
        path = dataset[1] / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["2d"][key] = value
        path.write_text(json.dumps(plans))
        run()
        assert sorted(jobs) == expected

    def test_removed_image_takes_its_result_along(self, dataset, jobs):
        raw, preprocessed = dataset
        (raw / "imagesUn" / "u1_0000.nii.gz").unlink()
        (raw / "domains.csv").unlink()
        run()
        assert sorted(os.listdir(preprocessed / "nnUNetPlans_2d_unlabeled")) == ["u0.b2nd", "u0.pkl", "u0_seg.b2nd"]
        assert jobs == []

    def test_label_files_of_unlabeled_cases_are_not_read(self, dataset, jobs):
        raw, preprocessed = dataset
        folder = preprocessed / "nnUNetPlans_2d_unlabeled"
        before = {case: load(folder, case) for case in ("u0", "u1")}
        (raw / "labelsUn").mkdir()
        for place in ("labelsTr", "labelsUn"):
            (raw / place / "u0.nii.gz").write_text("garbage")
        shutil.rmtree(folder)
        run()
        assert sorted(jobs) == ["u0", "u1"]
        for case, parts in before.items():
            for now, then in zip(load(folder, case), parts, strict=True):
                np.testing.assert_equal(now, then)

    @pytest.mark.parametrize("is_split", [False, True])
    def test_annotations_come_along_until_a_split_has_its_own(self, dataset, jobs, is_split):
        raw, preprocessed = dataset
        (raw / "annotated.csv").write_text("case,classes\nl0,blob\n")
        if is_split:
            (preprocessed / "splits_semi.json").write_text("[]")
        run()
        assert (preprocessed / "annotated.csv").is_file() != is_split

    def test_dataset_without_unlabeled_scans(self, dataset, jobs):
        shutil.rmtree(dataset[0] / "imagesUn")
        (dataset[0] / "domains.csv").unlink()
        run()
        assert jobs == []


@pytest.fixture
def stock_runs(monkeypatch):
    """Nothing may be left to nnU-Net, which preprocesses all cases or none."""
    monkeypatch.setattr(stock, "preprocess", lambda *_: pytest.fail("nnU-Net preprocesses everything"))


@pytest.mark.usefixtures("stock_runs")
class TestChanged:
    """Files of labeled cases that were corrected after they had been preprocessed."""

    @staticmethod
    def correct(raw, write_nifti, case="l1"):
        """Make the ball of a label larger; return its file."""
        label = blob(int(case[1:]))[1]
        label[8:, 8:, 8:] = 1
        return write_nifti(raw / "labelsTr" / f"{case}.nii.gz", label, AFFINE)

    @staticmethod
    def by_nnunet(raw, preprocessed, root):
        """What nnU-Net's own command makes of the raw data as they are now, by these plans."""
        for source, name in ((raw, "nnUNet_raw"), (preprocessed, "nnUNet_preprocessed")):
            shutil.copytree(source, root / name / OURS)
        with pytest.MonkeyPatch.context() as patch:
            set_folders(patch, root)
            start_no_pools(patch)
            shutil.rmtree(root / "nnUNet_preprocessed" / OURS / "nnUNetPlans_2d")
            preprocess([502], configurations=["2d"], num_processes=[1])
        return root / "nnUNet_preprocessed" / OURS / "nnUNetPlans_2d"

    def test_label(self, dataset, jobs, write_nifti, tmp_path, caplog):
        raw, preprocessed = dataset
        caplog.set_level("INFO")
        file = self.correct(raw, write_nifti)
        run()
        assert jobs == ["l1"]
        assert "l1 is preprocessed anew (2d), because these changed: labelsTr/l1.nii.gz." in caplog.text
        assert (preprocessed / "gt_segmentations" / "l1.nii.gz").read_bytes() == file.read_bytes()
        expected = self.by_nnunet(raw, preprocessed, tmp_path / "nnunet")
        for case in ("l0", "l1", "l2"):
            for now, then in zip(load(preprocessed / "nnUNetPlans_2d", case), load(expected, case), strict=True):
                np.testing.assert_equal(now, then)
        jobs.clear()
        run()
        assert jobs == []

    def test_image(self, dataset, jobs, write_nifti):
        raw, preprocessed = dataset
        write_nifti(raw / "imagesTr" / "l2_0000.nii.gz", blob(8)[0], AFFINE)
        run()
        assert jobs == ["l2"]
        image, voxels = load(preprocessed / "nnUNetPlans_2d", "l2")[0], blob(8)[0].transpose(2, 1, 0)[None]
        np.testing.assert_allclose(image, (voxels - voxels.mean()) / voxels.std(), atol=1e-4)

    @pytest.mark.parametrize("folder", ["imagesTr", "imagesUn"])
    def test_two_images_that_change_places(self, dataset, jobs, folder):
        first, second = sorted((dataset[0] / folder).iterdir())[:2]
        size = max(file.stat().st_size for file in (first, second))
        for file in (first, second):
            file.write_bytes(file.read_bytes().ljust(size, b"\0"))  # nothing but zeros may follow a gzip stream
            os.utime(file, ns=(10**18, 10**18))
        run()
        jobs.clear()
        first.rename(spare := dataset[0] / "spare")
        second.rename(first)
        spare.rename(second)
        run()
        assert sorted(jobs) == sorted(file.name.removesuffix("_0000.nii.gz") for file in (first, second))

    def test_declared_labels(self, dataset, jobs, caplog):
        raw, preprocessed = dataset
        caplog.set_level("INFO")
        description = DATASET_JSON | {"labels": {"background": 0, "blob": 1, "ignore": 2}}
        (raw / "dataset.json").write_text(json.dumps(description))
        run()
        assert sorted(jobs) == ["l0", "l1", "l2"]
        assert "dataset.json has changed (labels): its copy" in caplog.text
        assert json.loads((preprocessed / "dataset.json").read_text()) == description
        assert (-1, 0, 1) in load(preprocessed / "nnUNetPlans_2d", "l0")[2]["class_locations"]  # what is not ignored

    def test_touched_file_is_the_same(self, dataset, jobs):
        raw, preprocessed = dataset
        before = contents(preprocessed / "nnUNetPlans_2d")
        os.utime(raw / "labelsTr" / "l1.nii.gz", ns=(10**9, 10**9))
        run()
        assert jobs == [] and contents(preprocessed / "nnUNetPlans_2d") == before
        assert not changed_files(preprocessed / "nnUNetPlans_2d", raw)

    @pytest.mark.parametrize("seconds", [-(10**6), 10**6])
    def test_label_of_what_the_stock_command_made(self, dataset, jobs, write_nifti, seconds):
        raw, preprocessed = dataset
        (preprocessed / "nnUNetPlans_2d_labeled.json").unlink()
        file = self.correct(raw, write_nifti)
        time = file.stat().st_mtime_ns + seconds * 10**9
        os.utime(file, ns=(time, time))  # copied with its time, which may be earlier
        run()
        assert jobs == ["l1"]

    def test_declared_labels_of_what_the_stock_command_made(self, dataset, jobs):
        raw, preprocessed = dataset
        (preprocessed / "nnUNetPlans_2d_labeled.json").unlink()
        (raw / "dataset.json").write_text(
            json.dumps(DATASET_JSON | {"labels": {"background": 0, "blob": 1, "ignore": 2}})
        )
        run()
        assert sorted(jobs) == ["l0", "l1", "l2"]

    def test_case_that_is_gone(self, dataset, jobs, caplog):
        raw, preprocessed = dataset
        caplog.set_level("INFO")
        for file in ("imagesTr/l1_0000.nii.gz", "labelsTr/l1.nii.gz", "domains.csv"):
            (raw / file).unlink()
        run()
        assert not [name for name in contents(preprocessed) if "l1" in name]
        assert "nnUNetPlans_2d, as nnUNet_raw does not hold them whole any more: l1." in caplog.text

    @pytest.mark.parametrize(("key", "value", "redone"), [("spacing", [1.2, 1.2], True), ("batch_size", 1, False)])
    def test_plans(self, dataset, jobs, key, value, redone):
        plans = json.loads((dataset[1] / "nnUNetPlans.json").read_text())
        plans["configurations"]["2d"][key] = value
        (dataset[1] / "nnUNetPlans.json").write_text(json.dumps(plans))
        run()
        assert sorted(jobs) == (["l0", "l1", "l2", "u0", "u1"] if redone else [])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"channel_names": {"0": "CT"}},
                "channel_names that are normalized otherwise, but .* was planned",
            ),
            (
                {"overwrite_image_reader_writer": "SimpleITKIO"},
                "the reader SimpleITKIO, but .* was planned without; delete",
            ),
        ],
    )
    def test_what_only_new_plans_can_give_is_refused(self, dataset, change, message):
        raw, preprocessed = dataset
        before = contents(preprocessed)
        (raw / "dataset.json").write_text(json.dumps(DATASET_JSON | change))
        with pytest.raises(UserError, match=message):
            run()
        assert contents(preprocessed) == before

    def test_case_that_fails_is_not_taken_for_done(self, dataset, monkeypatch, write_nifti):
        raw, preprocessed = dataset
        self.correct(raw, write_nifti)
        with monkeypatch.context() as patch:
            patch.setattr(unlabeled, "_preprocess_case", lambda *_, **__: 1 / 0)
            with pytest.raises(UserError, match=r"1 of 3 cases in .*imagesTr could not be preprocessed \(l1: division"):
                run()
        assert list(changed_files(preprocessed / "nnUNetPlans_2d", raw)) == []
        assert "l1" not in read_origins(preprocessed / "nnUNetPlans_2d")


def test_nnunet_keeps_no_older_reference(dataset, write_nifti):
    """Its copy of a label file whose time is earlier than that of the copy stays the former one."""
    raw, preprocessed = dataset
    file = TestChanged.correct(raw, write_nifti)
    os.utime(file, ns=(10**9, 10**9))
    shutil.rmtree(preprocessed / "nnUNetPlans_2d")
    with pytest.MonkeyPatch.context() as patch:
        start_no_pools(patch)
        run()
    assert (preprocessed / "gt_segmentations" / "l1.nii.gz").read_bytes() == file.read_bytes()


@pytest.mark.usefixtures("stock_runs")
class TestDamaged:
    """Preprocessed files that do not hold any more what was written there."""

    @pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd"])
    @pytest.mark.parametrize("case", ["l1", "u1"])
    def test_voxel(self, dataset, jobs, caplog, case, ending):
        folder = dataset[1] / ("nnUNetPlans_2d" if case == "l1" else "nnUNetPlans_2d_unlabeled")
        before = load(folder, case)
        change_voxel(folder / f"{case}{ending}")
        run()
        assert jobs == [case]
        assert f"Preprocessed anew (2d), as files in {folder} do not hold any more" in caplog.text
        assert "The plans of" not in caplog.text
        for now, then in zip(load(folder, case), before, strict=True):
            np.testing.assert_equal(now, then)
        jobs.clear()
        run()
        assert jobs == []

    @pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd"])
    def test_two_cases_that_change_places(self, dataset, jobs, ending):
        folder = dataset[1] / "nnUNetPlans_2d"
        first, second = (folder / f"{case}{ending}" for case in ("l0", "l2"))
        before = load(folder, "l0"), load(folder, "l2")
        first.rename(folder / "aside")
        second.rename(first)
        (folder / "aside").rename(second)
        run()
        assert sorted(jobs) == ["l0", "l2"]
        np.testing.assert_equal((load(folder, "l0"), load(folder, "l2")), before)

    def test_voxels_of_what_the_stock_command_made_once_a_training_has_read_them(self, dataset, jobs):
        folder = dataset[1] / "nnUNetPlans_2d"
        for record in ("labeled", "digests"):
            (dataset[1] / f"nnUNetPlans_2d_{record}.json").unlink()
        measure_cases(dict.fromkeys(["l0", "l1"], folder), ["l0"], dataset[1] / "cache.json")
        for case in ("l0", "l1", "l2"):
            change_voxel(folder / f"{case}.b2nd")
        run()
        assert sorted(jobs) == ["l0", "l1"]  # and nobody can know of l2

    def test_copy_of_a_label(self, dataset, jobs):
        copy = dataset[1] / "gt_segmentations" / "l1.nii.gz"
        before = copy.read_bytes()
        for content in (before[:-8] + bytes([before[-8] ^ 1]) + before[-7:], (copy.parent / "l0.nii.gz").read_bytes()):
            copy.write_bytes(content)
            run()
            assert copy.read_bytes() == before and jobs == []

    def test_training_refuses_them_until_they_are_done_again(self, dataset, jobs):
        folder, cache = dataset[1] / "nnUNetPlans_2d", dataset[1] / "cache.json"
        before = measure_cases({"l1": folder}, ["l1"], cache)["l1"]
        change_voxel(folder / "l1_seg.b2nd")
        with pytest.raises(UserError, match="l1_seg.b2nd does not hold any more what it was written with"):
            measure_cases({"l1": folder}, ["l1"], cache)
        run()
        after = measure_cases({"l1": folder}, ["l1"], cache)["l1"]
        assert after[1:] == before[1:] and np.array_equal(after.value_range, before.value_range)


def test_preprocessing_that_nnunet_does_anew_is_written_down(dataset, jobs, monkeypatch):
    def preprocess(*_):
        change_voxel(dataset[1] / "nnUNetPlans_2d" / "l0.b2nd")  # stands for other voxels
        (dataset[1] / "nnUNetPlans_2d" / "l1.pkl").write_bytes(content)

    content = (dataset[1] / "nnUNetPlans_2d" / "l1.pkl").read_bytes()
    (dataset[1] / "nnUNetPlans_2d" / "l1.pkl").unlink()
    monkeypatch.setattr(stock, "preprocess", preprocess)
    run()
    run()
    assert jobs == []


class TestRefused:
    def test_failed_cases_are_listed_after_the_others_are_done(self, dataset):
        raw, preprocessed = dataset
        path = raw / "imagesUn" / "u0_0000.nii.gz"
        path.write_bytes(path.read_bytes()[:1000])
        (preprocessed / "nnUNetPlans_2d_unlabeled" / "u1.pkl").unlink()
        with pytest.raises(UserError, match=r"1 of 2 cases in .*imagesUn could not be preprocessed \(u0: .+\)"):
            run()
        assert sorted(os.listdir(preprocessed / "nnUNetPlans_2d_unlabeled")) == ["u1.b2nd", "u1.pkl", "u1_seg.b2nd"]

    def test_wrong_checksum_is_named(self, dataset, flip_bit):
        path = flip_bit(dataset[0] / "imagesUn" / "u0_0000.nii.gz")
        with pytest.raises(UserError, match=f"1 of 2 cases .* could not be preprocessed .u0: {path} cannot be read"):
            run()

    def test_unknown_configuration(self, dataset):
        with pytest.raises(UserError, match="no configuration '3d_fulres'. Did you mean '3d_fullres'?"):
            run(configurations=["3d_fulres"])

    @pytest.mark.parametrize("configuration", ["3d_lowres", "3d_cascade_fullres", "mine"])
    def test_stage_of_a_cascade(self, dataset, configuration):
        path = dataset[1] / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        planned = plans["configurations"]
        planned["3d_lowres"] = {**planned["2d"], "data_identifier": "low", "next_stage": "3d_cascade_fullres"}
        planned["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        planned["mine"] = {"inherits_from": "3d_lowres", "batch_size": 1}
        path.write_text(json.dumps(plans))
        before = contents(dataset[1])
        with pytest.raises(UserError) as caught:
            run(configurations=["2d", configuration])
        assert str(caught.value) == (
            f"Configuration {configuration} is a stage of a cascade, which the trainers do not support: use 2d or "
            f"3d_fullres."
        )
        assert contents(dataset[1]) == before

    def test_unknown_plans(self, dataset):
        with pytest.raises(UserError, match=r"no plans .*MyPlans.json; make them with nnUNetv2_plan_experiment -d 502"):
            run(plans="MyPlans")

    def test_number_of_processes(self, dataset):
        with pytest.raises(UserError, match="processes must be at least 1, but is 0"):
            run(num_processes=0)

    def test_dataset_without_raw_data(self, dataset):
        shutil.rmtree(dataset[0])
        with pytest.raises(UserError, match="dataset.json cannot be read"):
            run()

    def test_case_both_labeled_and_unlabeled(self, dataset, write_nifti):
        write_nifti(dataset[0] / "imagesUn" / "l0_0000.nii.gz", blob(0)[0], AFFINE)
        with pytest.raises(UserError, match="Case 'l0' is in both imagesTr and imagesUn"):
            run()

    def test_other_number_of_channels(self, dataset, write_nifti):
        write_nifti(dataset[0] / "imagesUn" / "u0_0001.nii.gz", blob(0)[0], AFFINE)
        with pytest.raises(UserError, match="Case 'u0' has 2 files .*but the labeled cases have 1"):
            run()

    def test_annotations_that_do_not_fit(self, dataset):
        (dataset[0] / "annotated.csv").write_text("case,classes\nu0,blob\n")
        with pytest.raises(UserError, match="annotated.csv names 'u0', which is no labeled case"):
            preprocess_dataset(OURS, num_processes=1)

    def test_labels_that_nnunet_refuses(self, dataset):
        (dataset[0] / "dataset.json").write_text(json.dumps(DATASET_JSON | {"labels": {"background": 0, "blob": 2}}))
        with pytest.raises(UserError, match=r"dataset.json declares the label values \[0, 2\]"):
            preprocess_dataset(OURS, num_processes=1)

    def test_domains_that_do_not_fit(self, dataset):
        (dataset[0] / "domains.csv").write_text("case,domain\nl0,x\n")
        with pytest.raises(UserError, match="no line for case 'l1'"):
            run()


class TestOrientation:
    @pytest.fixture
    def mixed(self, dataset, write_nifti):
        raw, preprocessed = dataset
        flipped = AFFINE @ np.diag([-1.0, 1.0, 1.0, 1.0])
        write_nifti(raw / "imagesUn" / "u1_0000.nii.gz", blob(7)[0], flipped)
        return raw, preprocessed

    @pytest.mark.parametrize("planned", [True, False])
    def test_mix_that_is_not_reoriented_is_refused(self, mixed, planned):
        raw, preprocessed = mixed
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans | {"image_reader_writer": "SimpleITKIO"}))
        if not planned:
            shutil.rmtree(preprocessed)
            description = {key: value for key, value in DATASET_JSON.items() if key != "overwrite_image_reader_writer"}
            (raw / "dataset.json").write_text(json.dumps(description))
        with pytest.raises(
            UserError, match=r'\(RAS\) and .*\(LAS\); add "overwrite_image_reader_writer": "NibabelIOWith'
        ):
            run()

    def test_mix_is_reoriented(self, mixed, jobs):
        _, preprocessed = mixed
        run()
        assert jobs == ["u1"]
        image, _, _ = load(preprocessed / "nnUNetPlans_2d_unlabeled", "u1")
        voxels = blob(7)[0][::-1].transpose(2, 1, 0)[None]  # z, y, x with x to the right
        np.testing.assert_allclose(image, (voxels - voxels.mean()) / voxels.std(), atol=1e-4)


@pytest.mark.parametrize("place", ["imagesTr/l0_0000.nii.gz", "imagesUn/u1_0000.nii.gz"])
def test_scan_in_micrometers_is_refused(dataset, place):
    file = dataset[0] / place
    for one in {file, dataset[0] / "labelsTr" / "l0.nii.gz"} if place.startswith("imagesTr") else {file}:
        image = nibabel.load(one)
        image.header.set_xyzt_units("micron")
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), one)
    with pytest.raises(UserError, match=rf"The header of {file} has lengths in micron, but nnU-Net would take its"):
        run()


def test_planner_is_not_told_to_use_no_process(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(stock, "extract_fingerprints", lambda *_, **__: None)
    monkeypatch.setattr(stock, "convert_dataset_name_to_id", lambda _: 501)
    monkeypatch.setattr(stock, "plan_experiments", lambda _: seen.append(os.environ["nnUNet_n_proc_DA"]))
    with pytest.raises(UserError):  # nothing was planned
        stock.plan_if_needed(tmp_path / "raw", tmp_path, "nnUNetPlans", cases=[], num_processes=1)
    assert seen == ["1"] and os.environ["nnUNet_n_proc_DA"] == "0"


def test_what_a_kill_took_from_the_notes_is_made_again(dataset, jobs, monkeypatch):
    for file in (dataset[1] / "nnUNetPlans_2d_unlabeled").glob("u*"):
        file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(done_cases.DoneCases, "add", lambda *_: None)  # the files are there, and nobody says of what
        run()
    del jobs[:]
    run()
    assert jobs == ["u0", "u1"]
