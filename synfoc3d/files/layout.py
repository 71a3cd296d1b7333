"""Names of the files and folders that several parts of this package know, each in one place.

Those marked as nnU-Net's are given; the others are this package's own.
"""

from pathlib import Path

# nnUNet_raw/Dataset501_Name
DESCRIPTION_FILE = "dataset.json"  # nnU-Net's; copies of it lie beside plans and predictions
SAME_SCANS = "same_scans"  # entry of it: groups of cases that hold the same scan
IMAGES, LABELS = "imagesTr", "labelsTr"  # nnU-Net's
UNLABELED_IMAGES = "imagesUn"
DOMAINS_FILE = "domains.csv"
ANNOTATIONS_FILE = "annotated.csv"
CHECKED_FILE = "synfoc3d_checked.json"
REORIENTING_READER = "NibabelIOWithReorient"  # nnU-Net's name of the reader for mixed orientations

# nnUNet_preprocessed/Dataset501_Name
SPLITS_FILE = "splits_semi.json"
STOCK_SPLITS_FILE = "splits_final.json"  # nnU-Net's
REFERENCES = "gt_segmentations"  # nnU-Net's
CASE_ENDINGS = IMAGE_ENDING, LABEL_ENDING, PROPERTIES_ENDING = (  # nnU-Net's, in the order it writes them
    ".b2nd",
    "_seg.b2nd",
    ".pkl",
)

UNLABELED = "_unlabeled"  # behind the name of a configuration's folder

# nnUNet_results/Dataset501_Name/Trainer__Plans__configuration, and fold_X in it
PLANS_FILE = "plans.json"  # nnU-Net's, beside predictions too
CHECKPOINTS = CHECKPOINT_FINAL, CHECKPOINT_LATEST, CHECKPOINT_BEST = (  # nnU-Net's
    "checkpoint_final.pth",
    "checkpoint_latest.pth",
    "checkpoint_best.pth",
)
SETTINGS_FILE = "synfoc3d.yaml"
LOG_FILE = "synfoc3d_log.csv"
CURVES_FILE = "synfoc3d_progress.png"
VALIDATION_FILE = "synfoc3d_validation.json"
CASES_FILE = "synfoc3d_cases.json"

# a folder of masks
NNUNETS_PREDICTION_FILE = "predict_from_raw_data_args.json"  # beside the masks of nnUNetv2_predict
PREDICTION_FILE = "synfoc3d_predict.json"
SUMMARY_FILE = "summary.json"  # nnU-Net's
SCANS = ".synfoc3d_scans"  # folder: of which scan each mask was made
SHARED_PREDICTION = ".synfoc3d_predict"  # while its scans are shared out


def preprocessing_lock(preprocessed: Path) -> Path:
    """Return the file that is there while a dataset is preprocessed.

    Beside its folder, not in it: a folder that is new goes where preprocessing fails.
    """
    return preprocessed.with_name(f".{preprocessed.name}.lock")


def unlabeled_folder(preprocessed: Path) -> Path:
    """Return where the unlabeled cases of a configuration are preprocessed, beside its labeled ones."""
    return preprocessed.with_name(preprocessed.name + UNLABELED)


def origins_file(cases: Path) -> Path:
    """Return where it is kept of which raw files the cases in a folder of preprocessed ones were made.

    Beside the folder, not in it: nnU-Net tells the storage format of a folder by the endings of its files.
    """
    name = cases.name if cases.name.endswith(UNLABELED) else f"{cases.name}_labeled"
    return cases.with_name(f"{name}.json")


def digests_file(cases: Path) -> Path:
    """Return where it is kept what the files in a folder of preprocessed cases hold; beside it, as their origins."""
    return cases.with_name(f"{cases.name}_digests.json")


def intensity_cache(preprocessed: Path) -> Path:
    """Return where the intensity ranges of a configuration's cases are remembered."""
    return preprocessed.with_name(f"{preprocessed.name}_intensity.json")


def fold_folder(model: Path, fold: int | str) -> Path:
    """Return the folder of one fold of a trained model; the fold may be nnU-Net's ``all``."""
    return model / f"fold_{fold}"


def training_lock(fold: Path) -> Path:
    """Return the file that shows that a fold is being trained; it lies beside the fold's folder, which may be moved."""
    return fold.with_name(f".{fold.name}.lock")


def replaced_folder(fold: Path, when: str) -> Path:
    """Return where the results of an earlier training of a fold go; nnU-Net takes ``fold_...`` for more folds."""
    return fold.with_name(f"replaced_{fold.name}_{when}")


def evaluated_files(output: Path) -> Path:
    """Return where it is kept of which files an evaluation was made, beside its result."""
    return output.with_name(f".{output.stem}_made_of.json")


def shared_evaluation(output: Path) -> Path:
    """Return the folder beside an evaluation's result that is there while its cases are shared out."""
    return output.with_name(f".synfoc3d_evaluate_{output.stem}")


def pseudo_labels_folder(training: Path, labeler: str) -> Path:
    """Return where a training keeps pseudo-labels of whole cases, by the SHA-256 of the checkpoint that made them."""
    return training / f"pseudo_labels_{labeler[:12]}"


def best_checkpoint(student: str, first: str) -> str:
    """Return the name of the file that holds the best epoch of a student, beside those of the other students.

    Args:
        student: its name.
        first: name of the training's first student, whose best epoch is nnU-Net's own file.
    """
    return CHECKPOINT_BEST if student == first else f"checkpoint_best_{student}.pth"


def validation_folder(mode: str) -> str:
    """Return the name of the folder of a prediction mode's validation masks; that of the conventional is nnU-Net's."""
    return "validation" if mode == "conventional" else f"validation_{mode}"


def claim_of(run: Path) -> Path:
    """Return the file that shows that a process works on a run of an experiment, given by its folder."""
    return run / ".claim"


def failure_of(run: Path) -> Path:
    """Return the file that says how a run of an experiment has failed, given by its folder."""
    return run / "failure.json"
