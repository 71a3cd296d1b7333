import json
import logging
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synfoc3d.errors import UserError
from synfoc3d.files.declared_labels import DeclaredLabels
from synfoc3d.files.splits import Split, load_splits
from synfoc3d.preprocessing.patients import find_patients, patient_of
from synfoc3d.preprocessing.split_cases import SplitCases, read_split_cases
from synfoc3d.preprocessing.split_rules import describe_splits, read_ids, split_by_count, split_by_ids, write_splits

DESCRIPTION = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "x": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def make_cases(train, extra=(), domain_of=None, unlabeled_files=(), annotated=None):
    """Build cases of names like ``A_patient1_f0``; their domain is the letter unless ``domain_of`` is False."""
    everything = (*sorted(train), *sorted(extra))
    return SplitCases(
        dataset="Dataset501_Test",
        folder=Path("Dataset501_Test"),
        train=tuple(sorted(train)),
        extra=tuple(sorted(extra)),
        patient_of={case: patient_of(case) for case in everything},
        domains=None if domain_of is False else {case: case[0] for case in everything},
        label_files={case: Path(f"{case}.nii.gz") for case in train if case not in unlabeled_files},
        labels=DeclaredLabels({"x": (1,), "y": (2,), "z": (3,)}),
        annotated=annotated or {},
    )


def scans(domain, patients, per_patient=1):
    return [f"{domain}_patient{p}_f{i}" for p in range(patients) for i in range(per_patient)]


@st.composite
def datasets(draw):
    """Datasets with up to three domains, patients with one to three scans, some of them in imagesUn."""
    train, extra = [], []
    for domain in "ABC":
        for patient in range(draw(st.integers(1 if domain == "A" else 0, 6))):
            places = draw(st.lists(st.booleans(), min_size=1, max_size=3))
            for number, is_train in enumerate(places):
                (train if is_train else extra).append(f"{domain}_patient{patient}_f{number}")
    if not any(case.startswith("A") for case in train):
        train.append("A_patient99_f0")
    return make_cases(train, extra)


class TestCountsForAllDatasets:
    # A shared machine may be slow at any moment.
    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(cases=datasets(), folds=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
    def test_every_rule(self, cases, folds, seed, data):
        domain = data.draw(st.sampled_from(["A", None]))
        pool = cases.patients(case for case in cases.train if domain is None or case[0] == domain)
        num_labeled = data.draw(st.none() | st.integers(1, len(pool)))
        splits = split_by_count(cases, num_labeled, domain, folds=folds, seed=seed)
        assert splits == split_by_count(cases, num_labeled, domain, folds=folds, seed=seed)
        assert 1 <= len(splits) <= folds
        for split in splits:
            self.check(cases, split, num_labeled, domain)
        counts = Counter(patient for split in splits for patient in cases.patients(split.val))
        assert set(counts.values()) <= {1}  # nobody is validated on twice

    @staticmethod
    def check(cases, split, num_labeled, domain):
        labeled, unlabeled, val = (cases.patients(part) for part in (split.labeled, split.unlabeled, split.val))
        hidden = cases.patients(case for case in split.unlabeled if case in cases.train)
        assert not set(labeled) & set(val)
        assert not set(unlabeled) & set(val)
        assert not set(labeled) & set(hidden)
        assert num_labeled is None or len(labeled) == num_labeled
        assert domain is None or {case[0] for case in split.labeled} == {domain}
        assert {*split.labeled, *split.val} <= set(cases.train)
        listed = [*split.labeled, *split.unlabeled, *split.val]
        assert len(listed) == len(set(listed))
        missing = set(cases.all) - set(listed)
        assert all(case in cases.extra and cases.patient_of[case] in val for case in missing)


class TestCounts:
    def test_two_domains_by_hand(self):
        splits = split_by_count(make_cases(scans("A", 5) + scans("B", 10), scans("C", 3)), 2, "A", folds=5)
        assert [[Counter(case[0] for case in part) for part in (s.labeled, s.unlabeled, s.val)] for s in splits] == [
            [{"A": 2}, {"A": 2, "B": 8, "C": 3}, {"A": 1, "B": 2}]
        ] * 5

    def test_folds_together_validate_on_everyone(self):
        cases = make_cases(scans("A", 7, 2))
        splits = split_by_count(cases, 2, folds=3)
        assert sorted(case for split in splits for case in split.val) == list(cases.train)

    def test_seeds_differ(self):
        cases = make_cases(scans("A", 20))
        assert split_by_count(cases, 3, seed=0) != split_by_count(cases, 3, seed=1)

    def test_patients_count_not_scans(self):
        split = split_by_count(make_cases(scans("A", 6, 3)), 2)[0]
        assert len(split.labeled) == 6

    def test_single_fold_keeps_a_fifth(self):
        (split,) = split_by_count(make_cases(scans("A", 20)), 3, folds=1)
        assert (len(split.labeled), len(split.unlabeled), len(split.val)) == (3, 13, 4)

    def test_everybody_else_is_labeled_without_a_number(self):
        (first, *_) = split_by_count(make_cases(scans("A", 10), scans("B", 4)), folds=5)
        assert (len(first.labeled), len(first.unlabeled), len(first.val)) == (8, 4, 2)

    def test_one_labeled_case_has_no_validation(self, caplog):
        with caplog.at_level(logging.WARNING):
            splits = split_by_count(make_cases(["A_patient0"], scans("B", 2)), 1)
        assert splits == [Split(("A_patient0",), ("B_patient0_f0", "B_patient1_f0"), ())]
        assert "No patient is left for validation, because the labeled cases take all 1 of imagesTr" in caplog.text
        assert "Label fewer (--num-labeled)" in caplog.text

    def test_fewer_patients_than_folds(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert len(split_by_count(make_cases(scans("A", 3)), 1, folds=5)) == 3
        assert "3 folds instead of 5" in caplog.text

    def test_labeled_domain_without_spare_patients_is_not_validated_on(self):
        splits = split_by_count(make_cases(scans("A", 1) + scans("B", 10)), 1, "A", folds=5)
        assert [split.labeled for split in splits] == [("A_patient0_f0",)] * 5
        assert [len(split.val) for split in splits] == [2] * 5

    def test_unlabeled_scans_of_a_validation_patient_are_left_out(self):
        cases = make_cases(["A_patient0_f0", "A_patient1_f0"], ["A_patient0_f1", "A_patient1_f1"])
        for split in split_by_count(cases, 1, folds=2):
            number = split.labeled[0][len("A_patient")]
            assert split.unlabeled == (f"A_patient{number}_f1",)

    def test_deleted_labels_of_hidden_cases_change_nothing(self):
        train = scans("A", 10)
        splits = split_by_count(make_cases(train), 2, folds=1)
        assert split_by_count(make_cases(train, unlabeled_files=splits[0].unlabeled), 2, folds=1) == splits

    def test_missing_label_of_a_chosen_case_is_refused(self):
        train = scans("A", 10)
        labeled = split_by_count(make_cases(train), 2, folds=1)[0].labeled
        with pytest.raises(UserError, match=f"labeled case '{labeled[0]}' .* has no label file"):
            split_by_count(make_cases(train, unlabeled_files=labeled), 2, folds=1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_labeled": 0}, "number of labeled patients must be at least 1, but is 0"),
            ({"folds": 0}, "number of folds must be at least 1, but is 0"),
            ({"num_labeled": 8}, "8 labeled patients are needed, but the dataset has 7 in imagesTr"),
            ({"num_labeled": 5, "labeled_domain": "A"}, "5 labeled patients are needed, but domain 'A' has 4"),
            ({"labeled_domain": "C"}, "1 labeled patients are needed, but domain 'C' has 0"),
            ({"labeled_domain": "D"}, "no domain 'D'. Known: A, B, C"),
        ],
    )
    def test_impossible_wishes_are_refused(self, arguments, message):
        with pytest.raises(UserError, match=message):
            split_by_count(make_cases(scans("A", 4) + scans("B", 3), scans("C", 2)), **arguments)

    def test_labeled_domain_needs_domains(self):
        with pytest.raises(UserError, match="has no domains.csv"):
            split_by_count(make_cases(scans("A", 4), domain_of=False), 1, "A")


class TestIds:
    CASES = make_cases(scans("A", 4, 2), ["A_patient0_f9", "A_patient3_f9", "B_patient8"])

    def test_explicit_lists(self):
        parts = (["A_patient0_f0", "A_patient0_f1"], ["B_patient8"], ["A_patient1_f0"])
        assert split_by_ids(self.CASES, *parts) == [Split(*map(tuple, parts))]

    def test_unlabeled_default_is_all_that_is_allowed(self, caplog):
        with caplog.at_level(logging.WARNING):
            (split,) = split_by_ids(self.CASES, ["A_patient0_f0"], val=["A_patient3_f0", "A_patient3_f1"])
        others = [f"A_patient{p}_f{f}" for p in (1, 2) for f in (0, 1)]
        assert split.unlabeled == (*others, "A_patient0_f9", "B_patient8")
        assert "2 cases are left out" in caplog.text  # A_patient0_f1 and A_patient3_f9

    def test_missing_validation_is_told(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert split_by_ids(self.CASES, ["A_patient0_f0"])[0].val == ()
        assert "No case is left for validation: " in caplog.text and "List some (--val-ids)" in caplog.text

    def test_more_scans_of_a_labeled_patient_in_images_un(self):
        (split,) = split_by_ids(self.CASES, ["A_patient0_f0"], ["A_patient0_f9"], [])
        assert split.unlabeled == ("A_patient0_f9",)

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ((["A_patient0_f0"], None, ["A_patient0_f1"]), "'A_patient0_f0' is labeled and 'A_patient0_f1' is val"),
            ((["A_patient0_f0"], ["A_patient0_f1"], []), "'A_patient0_f0' is labeled and 'A_patient0_f1' is unlabeled"),
            ((["A_patient0_f0"], ["A_patient3_f9"], ["A_patient3_f0"]), "Patient 'A_patient3' straddles"),
            ((["A_patient0_f0"], None, ["A_patient0_f0"]), "lists case 'A_patient0_f0' 2 times"),
            ((["A_patient0_f0", "A_patient0_f0"], None, []), "lists case 'A_patient0_f0' 2 times"),
            (([], None, []), "has no labeled case"),
            ((["B_patient8"], None, []), "'B_patient8' is in imagesUn and has no label"),
            ((["A_patient0_f0"], None, ["B_patient8"]), "'B_patient8' is in imagesUn and has no label"),
            ((["A_patient0_f7"], None, []), "no case 'A_patient0_f7' in the dataset. Did you mean 'A_patient0_f"),
        ],
    )
    def test_impossible_lists_are_refused(self, parts, message):
        with pytest.raises(UserError, match=message):
            split_by_ids(self.CASES, *parts)

    def test_case_without_label_file_is_refused(self):
        cases = make_cases(scans("A", 3), unlabeled_files=["A_patient1_f0"])
        with pytest.raises(UserError, match="The validation case 'A_patient1_f0' .* has no label file"):
            split_by_ids(cases, ["A_patient0_f0"], val=["A_patient1_f0"])


class TestReadIds:
    KNOWN = ("a", "b", "case_c")

    def write(self, tmp_path, name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / name)

    def test_text_file(self, tmp_path):
        source = self.write(tmp_path, "ids.txt", "# mine\nb\n\n a \n")
        assert read_ids(source, self.KNOWN) == ["b", "a"]

    def test_json_list(self, tmp_path):
        assert read_ids(self.write(tmp_path, "ids.json", ["b", "a"]), self.KNOWN) == ["b", "a"]

    def test_list_in_a_json_object(self, tmp_path):
        source = self.write(tmp_path, "s.json", {"labeled_7": ["b"], "val": ["a"]})
        assert read_ids(f"{source}:labeled_7", self.KNOWN) == ["b"]

    @pytest.mark.parametrize(
        ("name", "content", "key", "message"),
        [
            ("i.txt", "case_d", "", "there is no case 'case_d' in the dataset. Did you mean 'case_c'?"),
            ("i.txt", "# nothing\n", "", "is empty"),
            ("i.json", "[", "", "is no valid JSON"),
            ("i.json", ["a", 1], "", "must hold a list of case names"),
            ("i.json", {"val": ["a"]}, "", "i.json:KEY. Known: val"),
            ("i.json", {"val": ["a"]}, ":vla", "has no list 'vla'. Did you mean 'val'?"),
            ("i.json", ["a"], ":val", "holds no lists by name"),
            ("i.json", '{"val": ["a"], "val": ["b"]}', ":val", "'val' is there 2 times in one object"),
        ],
    )
    def test_other_content_is_refused(self, tmp_path, name, content, key, message):
        with pytest.raises(UserError, match=message):
            read_ids(self.write(tmp_path, name, content) + key, self.KNOWN)

    def test_missing_file_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="none.txt cannot be read"):
            read_ids(str(tmp_path / "none.txt"), self.KNOWN)


class TestPatients:
    @pytest.mark.parametrize(
        ("case", "patient"),
        [
            ("ACDC_patient002_frame01", "ACDC_patient002"),
            ("sub-001_ses-02", "sub-001"),
            ("Pat_7_left", "Pat_7"),
            ("site2-Subject-A12-b", "site2-Subject-A12"),
            ("patient002frame01", "patient002"),
            ("hippocampus_001", "hippocampus_001"),
            ("hepatic_001", "hepatic_001"),
            ("hepat_001", "hepat_001"),
            ("subset_a_1", "subset_a_1"),
            ("path_1", "path_1"),
            ("A0S9V1_ED", "A0S9V1"),
            ("x_es", "x"),
            ("ED-017", "017"),
            ("P7_t1", "P7"),
            ("case1_T50", "case1"),
            ("P_01_frame_3", "P_01"),
            ("P01_slice012", "P01"),
            ("brain3_baseline.nii", "brain3.nii"),
            ("brain3_follow-up2", "brain3"),
            ("brain3_visit-2_pre", "brain3"),
            ("ED", "ED"),
            ("study_t1", "study_t1"),
            ("t_001", "t_001"),
            ("presto_1", "presto_1"),
        ],
    )
    def test_default_pattern(self, case, patient):
        assert patient_of(case) == patient

    def test_own_pattern(self):
        assert patient_of("scan-7-left", r"^scan-(\d+)") == "7"

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("(", "no regular expression"),
            (r"\d", "has 0 groups"),
            (r"x(\d)", "finds no patient in the name of case 'a1'"),
        ],
    )
    def test_useless_patterns_are_refused(self, pattern, message):
        with pytest.raises(UserError, match=message):
            patient_of("a1", pattern)

    def test_unlabeled_case_of_another_name_is_its_own_patient(self, caplog):
        found = find_patients(["a1_x", "a1_y"], ["a2_x", "other"], r"^a(\d)", [])
        assert found == {"a1_x": "1", "a1_y": "1", "a2_x": "2", "other": "other"}
        assert "each is a patient of its own: other." in caplog.text

    def test_labeled_case_of_another_name_is_refused(self):
        with pytest.raises(UserError, match="finds no patient in the name of case 'b'"):
            find_patients(["a1", "b"], [], r"^a(\d)", [])

    @pytest.mark.parametrize("pattern", ["(", r"\d"])
    def test_useless_pattern_is_refused_for_unlabeled_cases(self, pattern):
        with pytest.raises(UserError, match="The patient pattern"):
            find_patients([], ["a1"], pattern, [])

    def test_those_who_share_a_scan_are_one(self):
        same = [["patient1_a", "x"], ["patient2_b", "x"], ["gone", "y"]]
        found = find_patients(["patient1_a", "patient1_c", "patient2_b"], ["x", "y"], None, same)
        assert found == {**dict.fromkeys(["patient1_a", "patient1_c", "patient2_b", "x"], "patient1"), "y": "y"}

    @pytest.mark.parametrize(
        ("names", "shown"),
        [
            (["P01_1", "P01_2", "P02_1", "P03"], "P01_1, P01_2."),
            (["P01-left", "P01-right", "P02-left", "x_0"], "P01-left, P01-right."),
            (["7a", "7b", "8a", "8b", "9"], "7a, 7b; 8a, 8b."),
            (["ab_t1", "ab_t2", "cd_t1"], "ab_t1, ab_t2."),
            ([f"p{p}_{s}" for p in range(12) for s in range(10)], "; ..."),
        ],
    )
    def test_names_like_scans_of_one_patient_are_shown_with_a_pattern_that_joins_them(self, caplog, names, shown):
        assert find_patients(names, [], None, []) == {name: name for name in names}
        assert shown in caplog.text
        pattern = caplog.text.rsplit("--patient-pattern '", 1)[1].split("'")[0]
        joined = find_patients(names, [], pattern, [])
        stems = {name: name.rstrip("ab") if name[0].isdigit() else re.split("[-_]", name)[0] for name in names}
        assert Counter(joined.values()) == Counter(stems.values())

    @pytest.mark.parametrize(
        "names",
        [
            ["hippocampus_001", "hippocampus_002"],
            [f"site{s}_{n:03d}" for s in range(3) for n in range(20)],
            ["Atrain001", "Btrain001", "Btrain002"],
            ["patient1_a", "patient1_b", "patient2_a"],
        ],
    )
    def test_other_names_are_not_suspected(self, caplog, names):
        find_patients(names, [], None, [])
        assert not caplog.messages

    def test_own_pattern_is_not_doubted(self, caplog):
        find_patients(["P01_1", "P01_2", "P02_1"], [], "(.+)", [])
        assert not caplog.messages


class TestFiles:
    @pytest.fixture
    def raw(self, nnunet_folders):
        folder = nnunet_folders / "nnUNet_raw" / "Dataset501_Test"
        for name in ("imagesTr/a_0000", "imagesTr/b_0000", "labelsTr/a", "imagesUn/u_0000"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.nii.gz").touch()
        (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
        return folder

    @pytest.mark.parametrize("dataset", [501, "501", "Dataset501_Test"])
    def test_cases_of_a_raw_dataset(self, raw, dataset):
        cases = read_split_cases(dataset)
        assert (cases.train, cases.extra) == (("a", "b"), ("u",))
        assert cases.label_files == {"a": raw / "labelsTr" / "a.nii.gz"}

    def test_domains_of_a_raw_dataset(self, raw):
        (raw / "domains.csv").write_text("case,domain\na,x\nb,y\nu,y\n")
        assert read_split_cases(501).domain("u") == "y"

    def test_cases_of_a_preprocessed_copy(self, nnunet_folders, monkeypatch):
        monkeypatch.delenv("nnUNet_raw")
        folder = nnunet_folders / "nnUNet_preprocessed" / "Dataset501_Test"
        for name in ("gt_segmentations/a.nii.gz", "nnUNetPlans_2d/a.pkl", "nnUNetPlans_2d_unlabeled/u.pkl"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
        cases = read_split_cases(501)
        assert (cases.train, cases.extra) == (("a",), ("u",))
        assert cases.label_files == {"a": folder / "gt_segmentations" / "a.nii.gz"}

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (7, "no dataset with id 7"),
            (0, "from 1 to 999, but is 0"),
            ("Dataset501_Tset", "no dataset 'Dataset501_Tset' in .* Did you mean 'Dataset501_Test'?"),
        ],
    )
    def test_unknown_dataset_is_refused(self, raw, dataset, message):
        with pytest.raises(UserError, match=message):
            read_split_cases(dataset)

    def test_folders_must_be_set(self, raw, monkeypatch):
        monkeypatch.delenv("nnUNet_raw")
        monkeypatch.delenv("nnUNet_preprocessed")
        with pytest.raises(UserError, match="The environment variable nnUNet_raw is not set"):
            read_split_cases(501)

    def test_shared_id_is_refused(self, raw):
        (raw.parent / "Dataset501_Other").mkdir()
        with pytest.raises(UserError, match="Dataset501_Other, Dataset501_Test share the id 501"):
            read_split_cases(501)

    def test_case_in_both_folders_is_refused(self, raw):
        (raw / "imagesUn" / "a_0000.nii.gz").touch()
        with pytest.raises(UserError, match="Case 'a' .* is both labeled and unlabeled"):
            read_split_cases(501)

    def test_dataset_json_without_an_entry_is_refused(self, raw):
        (raw / "dataset.json").write_text("{}")
        with pytest.raises(UserError, match="dataset.json lacks channel_names"):
            read_split_cases(501)

    def test_splits_go_to_the_preprocessed_dataset(self, raw):
        splits = split_by_ids(read_split_cases(501), ["a"])
        path = write_splits(read_split_cases(501), splits)
        assert path == raw.parents[1] / "nnUNet_preprocessed" / "Dataset501_Test" / "splits_semi.json"
        assert load_splits(path.parent) == splits


def test_description_counts_cases_and_patients():
    cases = make_cases(scans("A", 2, 2) + scans("B", 1), scans("C", 1))
    splits = [Split(("A_patient0_f0", "A_patient0_f1"), ("B_patient0_f0", "C_patient0_f0"), ("A_patient1_f0",))]
    assert describe_splits(cases, splits).splitlines() == [
        "cases (patients)",
        "fold  domain  labeled  unlabeled  val",
        "0     A       2 (1)    0 (0)      1 (1)",
        "0     B       0 (0)    1 (1)      0 (0)",
        "0     C       0 (0)    1 (1)      0 (0)",
    ]


@pytest.mark.parametrize(
    ("prepared", "shown"),
    [
        ([], "synfoc3d preprocess -d 501"),
        (["2d"], "synfoc3d train 501 2d 0"),
        (["2d", "3d_fullres"], "synfoc3d train 501 3d_fullres 0"),
    ],
)
def test_next_command_fits_what_is_prepared(nnunet_folders, capsys, write_image, write_label, prepared, shown):
    from synfoc3d.cli import main

    raw, folder = (nnunet_folders / f"nnUNet_{kind}" / "Dataset501_Test" for kind in ("raw", "preprocessed"))
    for case in "ab":
        write_image(raw / "imagesTr" / f"{case}_0000.nii.gz")
        write_label(raw / "labelsTr" / f"{case}.nii.gz", (0, 1))
    (raw / "dataset.json").write_text(json.dumps(DESCRIPTION))
    if prepared:
        planned = {name: {"data_identifier": f"Plans_{name}"} for name in ("2d", "3d_fullres")}
        for name in prepared:
            (folder / planned[name]["data_identifier"]).mkdir(parents=True)
        (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": planned}))
    main(["split", "-d", "501", "--folds", "1"])
    assert capsys.readouterr().out.endswith(f"\nNext: {shown}\n")
