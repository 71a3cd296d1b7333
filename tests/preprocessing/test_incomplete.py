"""Splits of datasets with sparsely or partly annotated cases."""

import hashlib
import json
import logging
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.splits import Split, load_splits
from synfoc3d.preprocessing import incomplete
from synfoc3d.preprocessing.incomplete import add_incomplete
from synfoc3d.preprocessing.patients import patient_of
from synfoc3d.preprocessing.split_cases import SplitCases, read_split_cases
from synfoc3d.preprocessing.split_rules import describe_splits, split_by_count, split_by_ids, write_splits

CLASSES = DeclaredLabels({"x": (1,), "y": (2,), "z": (3,)})


def scans(domain, patients, per_patient=1):
    return [f"{domain}_patient{p}_f{i}" for p in range(patients) for i in range(per_patient)]


def make_cases(train, extra=(), annotated=None):
    """Build cases without files; the domain is the first letter."""
    everything = (*sorted(train), *sorted(extra))
    return SplitCases(
        dataset="Dataset501_Test",
        folder=Path("Dataset501_Test"),
        train=tuple(sorted(train)),
        extra=tuple(sorted(extra)),
        patient_of={case: patient_of(case) for case in everything},
        domains={case: case[0] for case in everything},
        label_files={case: Path(f"{case}.nii.gz") for case in train},
        labels=CLASSES,
        annotated=annotated or {},
    )


def test_classes_that_validation_says_nothing_of_are_named(caplog):
    cases = make_cases(["a", "b", "c"], annotated={"b": ("x",), "c": ("x", "y")})
    for val in (("a",), ()):
        incomplete._tell_unknown(cases, Split(("a",), (), val), 0)
    assert not caplog.messages
    incomplete._tell_unknown(cases, Split(("a",), (), ("b", "c")), 2)
    incomplete._tell_unknown(cases, Split(("a",), (), ("b",)), 3)
    assert caplog.messages == [
        "Fold 2: no validation case was annotated for z.",
        "Fold 3: no validation case was annotated for y, z.",
    ]


class TestDraws:
    @pytest.mark.parametrize("annotated", [{}, {"A_patient0_f0": ("z", "x", "y")}])
    @pytest.mark.parametrize(
        ("number", "domain", "folds", "seed", "digest"),
        [
            (4, None, 5, 3, "afe1b41e3aebf88a"),
            (3, "A", 1, 7, "75d829253a70f265"),
            (None, "B", 3, 0, "40c6e0e93b56873a"),
        ],
    )
    def test_complete_datasets_are_drawn_as_before(self, annotated, number, domain, folds, seed, digest):
        """The digests were made before there were annotated.csv files."""
        cases = make_cases(scans("A", 9, 2) + scans("B", 12), scans("C", 3), annotated)
        splits = split_by_count(cases, number, domain, folds=folds, seed=seed)
        text = json.dumps([asdict(split) for split in splits])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        groups=st.lists(st.sets(st.sampled_from("xyz"), min_size=1), min_size=1, max_size=7),
        per_patient=st.integers(1, 2),
        folds=st.integers(1, 5),
        data=st.data(),
    )
    def test_every_class_is_annotated_where_any_draw_has_it(self, groups, per_patient, folds, data):
        # Where patients have two scans, the second was annotated for the last class alone.
        train = scans("A", len(groups), per_patient)
        annotated = {
            case: tuple(sorted(groups[index // per_patient])) if index % per_patient == 0 else ("z",)
            for index, case in enumerate(train)
        }
        cases = make_cases(train, annotated=annotated)
        number = data.draw(st.integers(1, len(groups)))
        splits = split_by_count(cases, number, folds=folds, seed=data.draw(st.integers(0, 9)))
        whole = [group | {"z"} if per_patient == 2 else group for group in groups]
        possible = any(set().union(*chosen) == set("xyz") for chosen in combinations(whole, number))
        validated = [patient for split in splits for patient in cases.patients(split.val)]
        assert len(validated) == len(set(validated))
        for split in splits:
            labeled, val = cases.patients(split.labeled), cases.patients(split.val)
            assert len(labeled) == number and not set(labeled) & set(val)
            assert (cases.classes_of(split.labeled) == set("xyz")) == possible

    def test_indispensable_patient_is_not_validated_on(self, caplog):
        train = scans("A", 10)
        annotated = {case: ("x", "y") if case != "A_patient4_f0" else ("z",) for case in train}
        with caplog.at_level(logging.WARNING):
            splits = split_by_count(make_cases(train, annotated=annotated), 2, folds=5)
        assert sorted(case for split in splits for case in split.val) == [c for c in train if c != "A_patient4_f0"]
        assert all("A_patient4_f0" in split.labeled for split in splits)
        assert "Not validated on, because no others were annotated for the same classes: A_patient4." in caplog.text

    def test_nobody_is_left_for_validation(self):
        train = scans("A", 3)
        cases = make_cases(train, annotated=dict(zip(train, [("x",), ("y",), ("z",)], strict=True)))
        assert split_by_count(cases, folds=3) == [Split(tuple(train), (), ())]

    def test_chance_alone_would_hardly_find_every_class(self):
        """72 patients with two of nine classes each, or of nine others: five of either are needed, ten in all."""
        names = [f"c{i:02}" for i in range(18)]
        pairs = [*combinations(names[::2], 2), *combinations(names[1::2], 2)]
        train = scans("A", len(pairs))
        annotated = dict(zip(train, pairs, strict=True))
        cases = make_cases(train, annotated=annotated)
        cases = SplitCases(**{**vars(cases), "labels": DeclaredLabels({n: (i,) for i, n in enumerate(names, 1)})})
        splits = split_by_count(cases, 10, folds=5)
        assert all(cases.classes_of(split.labeled) == set(names) for split in splits)


@pytest.fixture
def raw(nnunet_folders, write_image, write_label):
    """Cases a to d with x and y each, of which c is sparsely annotated, and u without label."""
    folder = nnunet_folders / "nnUNet_raw" / "Dataset501_Test"
    for case, values in {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1, 2, 3), "d": (0, 1, 2)}.items():
        write_image(folder / "imagesTr" / f"{case}_0000.nii.gz")
        write_label(folder / "labelsTr" / f"{case}.nii.gz", values)
    write_image(folder / "imagesUn" / "u_0000.nii.gz")
    describe(folder, {"x": 1, "y": 2, "ignore": 3})
    return folder


def describe(folder, labels, **more):
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **labels}, "numTraining": 4, **more}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))


def annotate_partly(raw, write_label, lines="a,x\n"):
    """Take the ignore label away, and x or y from two cases."""
    describe(raw, {"x": 1, "y": 2})
    write_label(raw / "labelsTr" / "a.nii.gz", (0, 1))
    write_label(raw / "labelsTr" / "c.nii.gz", (0, 2))
    (raw / "annotated.csv").write_text(f"case,classes\n{lines}")


class TestTwice:
    """Cases that stand in both lists, by their label files."""

    @staticmethod
    def split(labeled, unlabeled=None, val=(), **options):
        cases = read_split_cases(501)
        return add_incomplete(cases, split_by_ids(cases, labeled, unlabeled, val), **options)[0]

    def test_sparse_case_is_unlabeled_too(self, raw):
        assert self.split(["a", "c"], None, ["d"]) == Split(("a", "c"), ("b", "u", "c"), ("d",))

    def test_partly_annotated_case_is_unlabeled_too(self, raw, write_label):
        annotate_partly(raw, write_label, "a,x\nc,y,x\n")  # c has all
        assert self.split(["a", "c"], None, ["d"]) == Split(("a", "c"), ("b", "u", "a"), ("d",))

    def test_it_may_be_switched_off(self, raw):
        assert self.split(["a", "c"], also_unlabeled=False) == Split(("a", "c"), ("b", "d", "u"), ())

    @pytest.mark.parametrize("also_unlabeled", [True, False])
    def test_sparse_case_may_be_listed_twice(self, raw, also_unlabeled):
        listed = self.split(["a", "c"], ["c", "u"], also_unlabeled=also_unlabeled)
        assert listed == Split(("a", "c"), ("c", "u"), ())

    @pytest.mark.parametrize("also_unlabeled", [True, False])
    def test_complete_case_may_not(self, raw, also_unlabeled):
        with pytest.raises(
            UserError, match="Fold 0 lists case 'a' as labeled and as unlabeled, but it is annotated com"
        ):
            self.split(["a", "c"], ["a", "u"], also_unlabeled=also_unlabeled)

    def test_folds_by_number_as_well(self, raw):
        cases = read_split_cases(501)
        for split in add_incomplete(cases, split_by_count(cases, 2, folds=4)):
            assert split.both == (("c",) if "c" in split.labeled else ())

    def test_label_files_of_plain_datasets_are_not_read(self, raw, monkeypatch):
        describe(raw, {"x": 1, "y": 2})
        monkeypatch.setattr(incomplete, "read_label_values", lambda files: dict.fromkeys(files, pytest.fail))
        assert self.split(["a"]).both == ()

    def test_hidden_label_files_are_not_read(self, raw):
        for case in "bd":
            (raw / "labelsTr" / f"{case}.nii.gz").unlink()
        assert self.split(["a", "c"]).unlabeled == ("b", "d", "u", "c")

    @pytest.mark.parametrize(("labeled", "val"), [(["a", "b"], []), (["a"], ["b"])])
    def test_case_with_every_voxel_ignored_is_refused(self, raw, write_label, labeled, val):
        write_label(raw / "labelsTr" / "b.nii.gz", (3,))
        with pytest.raises(UserError, match="Every voxel of .*labelsTr/b.nii.gz has the ignore label 3"):
            self.split(labeled, None, val)

    def test_value_of_a_class_not_annotated_is_refused(self, raw, write_label):
        annotate_partly(raw, write_label, "b,x\n")
        with pytest.raises(UserError, match=r"b.nii.gz holds the value 2 \(y\), which .*raw/.*annotated.csv does not"):
            self.split(["a"])

    def test_names_that_do_not_fit_are_refused(self, raw, write_label):
        annotate_partly(raw, write_label, "u,x\n")
        with pytest.raises(UserError, match="annotated.csv names 'u', which is no labeled case"):
            read_split_cases(501)

    def test_labels_that_nnunet_refuses_are_refused(self, raw):
        describe(raw, {"whole": [1, 2], "core": 2}, regions_class_order=[1])
        with pytest.raises(UserError, match="declares 2 regions, but 1 values as regions_class_order"):
            read_split_cases(501)

    def test_fold_without_a_class_is_refused(self, raw, write_label):
        annotate_partly(raw, write_label)
        with pytest.raises(
            UserError, match=r"Fold 0 has no labeled case that was annotated for 'y', by .*annotated.csv"
        ):
            self.split(["a"])

    def test_too_few_labeled_for_all_classes_are_refused(self, raw, write_label):
        annotate_partly(raw, write_label, "a,x\nb,x\nc,y\nd,x\n")
        for case in "bd":
            write_label(raw / "labelsTr" / f"{case}.nii.gz", (0, 1))
        cases = read_split_cases(501)
        with pytest.raises(UserError, match=r"for '[xy]', .*; label more patients \(--num-labeled\), draw others"):
            add_incomplete(cases, split_by_count(cases, 1, folds=2))

    def test_table_counts_them(self, raw):
        cases = read_split_cases(501)
        assert describe_splits(cases, [self.split(["a", "c"], None, ["d"])]).splitlines() == [
            "cases (patients)",
            "fold  domain  labeled  unlabeled  val    labeled and unlabeled",
            "0     all     2 (2)    3 (3)      1 (1)  1 (1)",
        ]

    def test_regions_are_plain_to_a_split(self, raw, write_label):
        write_label(raw / "labelsTr" / "c.nii.gz", (0, 1, 2))
        describe(raw, {"whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
        assert self.split(["a", "c"], None, ["d"]) == Split(("a", "c"), ("b", "u"), ("d",))


class TestCopies:
    """What lies beside splits_semi.json, and what a preprocessed copy alone can do."""

    @pytest.fixture
    def preprocessed(self, raw):
        folder = raw.parents[1] / "nnUNet_preprocessed" / raw.name
        folder.mkdir()
        return folder

    @staticmethod
    def write(labeled):
        cases = read_split_cases(501)
        write_splits(cases, add_incomplete(cases, split_by_ids(cases, labeled)))

    def test_annotations_lie_beside_the_splits(self, raw, preprocessed, write_label):
        annotate_partly(raw, write_label)
        self.write(["a", "b"])
        assert (preprocessed / "annotated.csv").read_bytes() == (raw / "annotated.csv").read_bytes()
        assert load_splits(preprocessed)[0].both == ("a",)

    def test_stale_copy_is_removed(self, raw, preprocessed):
        (preprocessed / "annotated.csv").write_text("case,classes\na,x\n")
        self.write(["a", "b"])
        assert not (preprocessed / "annotated.csv").exists()

    @pytest.fixture
    def alone(self, raw, preprocessed, write_label):
        """The preprocessed copy of a partly annotated dataset without the raw one."""
        annotate_partly(raw, write_label)
        (raw / "labelsTr").rename(preprocessed / "gt_segmentations")
        for name in ("dataset.json", "annotated.csv"):
            (raw / name).rename(preprocessed / name)
        raw.rename(raw.parents[1] / "moved")
        return preprocessed

    def test_preprocessed_copy_alone(self, alone):
        self.write(["a", "b"])
        assert load_splits(alone) == [Split(("a", "b"), ("c", "d", "a"), ())]
        assert (alone / "annotated.csv").read_text() == "case,classes\na,x\n"

    def test_values_are_checked_in_a_preprocessed_copy_alone(self, alone, write_label):
        write_label(alone / "gt_segmentations" / "a.nii.gz", (0, 1, 2))
        with pytest.raises(UserError, match=r"gt_segmentations/a.nii.gz holds the value 2 \(y\)"):
            self.write(["a", "b"])

    def test_sparse_case_of_a_preprocessed_copy_alone(self, alone, write_label):
        describe(alone, {"x": 1, "y": 2, "ignore": 3})
        (alone / "annotated.csv").unlink()
        write_label(alone / "gt_segmentations" / "b.nii.gz", (0, 3))
        self.write(["a", "b"])
        assert load_splits(alone)[0].both == ("b",)
