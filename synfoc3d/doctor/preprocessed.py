"""Checks of one dataset's preprocessed files and of its split."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from synfoc3d.doctor.cascades import cascade_stages, check_cascades, data_folders
from synfoc3d.doctor.findings import Finding, some
from synfoc3d.errors import UserError
from synfoc3d.files.annotations import read_annotations
from synfoc3d.files.json_files import parse_json
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE, SPLITS_FILE, unlabeled_folder
from synfoc3d.files.preprocessed_files import is_complete
from synfoc3d.files.splits import Split, load_splits


def load_plans(preprocessed: Path) -> dict[str, dict[str, Any]]:
    """Read the plans in a dataset's folder, by file name; those of a damaged file are empty."""
    return {file.stem: _load(file) for file in sorted(preprocessed.glob("*Plans.json"))}


def _load(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_preprocessed(
    folder: Path,
    dataset_id: int,
    plans: Mapping[str, Mapping[str, Any]],
    *,
    labeled: Collection[str],
    unlabeled: Collection[str],
) -> list[Finding]:
    """Look at plans, preprocessed cases and split of a dataset.

    Args:
        folder: the dataset's folder in nnUNet_preprocessed.
        dataset_id: its id.
        plans: what :func:`load_plans` returned.
        labeled: cases of imagesTr; empty where the raw data is not there.
        unlabeled: cases of imagesUn.
    """
    findings: list[Finding] = []
    cascades: list[Finding] = []
    run = f"Run: synfoc3d preprocess -d {dataset_id}"
    for name, content in plans.items():
        if not isinstance(content.get("configurations"), dict):
            mend = f"Delete {folder} and run: synfoc3d preprocess -d {dataset_id}"
            findings.append(Finding(f"{name}.json", "error", "is damaged: it names no configurations", mend))
            continue
        configurations = content["configurations"]
        cascades += check_cascades(folder, configurations)
        stages = cascade_stages(configurations)
        for configuration, identifier in data_folders(configurations).items():
            if configuration not in stages and (folder / identifier).is_dir():
                mend = f"{run} -c {configuration}" + ("" if name == "nnUNetPlans" else f" -p {name}")
                findings.append(
                    _check_cases(folder, configuration, identifier, labeled=labeled, unlabeled=unlabeled, mend=mend)
                )
    if not findings:
        findings.append(Finding("preprocessed", "warning", "no configuration is preprocessed", run))
    return [*findings, *cascades, *check_split(folder, dataset_id, {*labeled}, {*unlabeled})]


def _check_cases(
    folder: Path, name: str, identifier: str, *, labeled: Collection[str], unlabeled: Collection[str], mend: str
) -> Finding:
    """Compare one configuration's preprocessed cases with the raw ones."""
    done = preprocessed_cases(folder / identifier)
    done_unlabeled = preprocessed_cases(unlabeled_folder(folder / identifier))
    missing, missing_unlabeled = set(labeled) - done, set(unlabeled) - done_unlabeled
    details = {"labeled": len(done), "unlabeled": len(done_unlabeled)}
    details |= {"missing_labeled": len(missing), "missing_unlabeled": len(missing_unlabeled)}
    damaged = [*_damaged(folder / identifier, done), *_damaged(unlabeled_folder(folder / identifier), done_unlabeled)]
    if damaged:
        text = f"files of {some(damaged)} do not hold any more what was written there"
        return Finding(f"preprocessed {name}", "error", text, mend, details | {"damaged": damaged})
    if missing or missing_unlabeled:
        first = min(missing or missing_unlabeled)
        text = (
            f"{len(missing)} of {len(labeled)} labeled and {len(missing_unlabeled)} of {len(unlabeled)} unlabeled "
            f"cases are not preprocessed, for example {first}"
        )
        return Finding(f"preprocessed {name}", "warning", text, mend, details)
    text = f"{len(done)} labeled and {len(done_unlabeled)} unlabeled cases"
    return Finding(f"preprocessed {name}", "ok", text, details=details)


def _damaged(folder: Path, done: Collection[str]) -> list[str]:
    """Return the cases whose files changed since they were made; those of nobody knows what is not looked at."""
    from synfoc3d.files.case_record import CaseRecord

    record = CaseRecord(folder)
    found = record.damaged([case for case in sorted(done) if case in record])
    record.save()
    return found


def preprocessed_cases(folder: Path) -> set[str]:
    """Return the cases all of whose files are whole in a folder of preprocessed data."""
    return {file.stem for file in folder.glob("*.pkl") if is_complete(folder, file.stem)}


def check_labels_copy(description: Mapping[str, Any], folder: Path) -> list[Finding]:
    """Compare the labels that trainings read with those of the raw dataset.

    Args:
        description: content of the raw dataset.json.
        folder: the dataset's folder in nnUNet_preprocessed.
    """
    copy = folder / DESCRIPTION_FILE
    content = _load(copy)
    keys = ("labels", "regions_class_order")
    if not content or all(content.get(key) == description.get(key) for key in keys):
        return []
    text = f"{copy} declares other labels than the raw dataset.json, and trainings read {copy.name} there"
    mend = f"Run: synfoc3d preprocess -d {folder.name.removeprefix('Dataset')[:3]}; then train anew."
    return [Finding("copy of dataset.json", "warning", text, mend)]


def check_annotations_copy(raw: Path, folder: Path, dataset_id: int) -> list[Finding]:
    """Compare the annotated.csv beside the splits with the raw dataset's.

    Args:
        raw: the dataset's folder in nnUNet_raw.
        folder: its folder in nnUNet_preprocessed.
        dataset_id: its id.
    """
    original, copy = raw / ANNOTATIONS_FILE, folder / ANNOTATIONS_FILE
    if not (folder / SPLITS_FILE).is_file():
        return []
    if not original.is_file():
        text = f"{copy} is left over: {raw} has none" if copy.is_file() else ""
    elif not copy.is_file():
        text = f"is missing in {folder}"
    else:
        text = "" if _annotations(original) == _annotations(copy) else f"{copy} differs from {original}"
    mend = f"Run: synfoc3d split -d {dataset_id}"
    return [Finding(f"copy of {ANNOTATIONS_FILE}", "warning", text, mend)] if text else []


def _annotations(file: Path) -> Mapping[str, Collection[str]] | None:
    """Return the annotated classes by case, without an order; None if the file is damaged."""
    try:
        return {case: set(names) for case, names in read_annotations(file).items()}
    except UserError:
        return None


# --- split -----------------------------------------------------------------------------------------------------------


def check_split(folder: Path, dataset_id: int, labeled: set[str], unlabeled: set[str]) -> list[Finding]:
    """Look at splits_semi.json: is it there, whole, and does it name cases that exist?

    Args:
        folder: the dataset's folder in nnUNet_preprocessed.
        dataset_id: its id.
        labeled: cases of imagesTr; where it is empty, names are not compared.
        unlabeled: cases of imagesUn.
    """
    anew = f"Run: synfoc3d split -d {dataset_id}"
    if not (folder / SPLITS_FILE).is_file():
        return [Finding(SPLITS_FILE, "warning", "does not exist; training needs it", anew)]
    try:
        splits = load_splits(folder)
    except UserError as error:
        return [Finding(SPLITS_FILE, "error", str(error), anew)]
    if not splits:
        return [Finding(SPLITS_FILE, "error", "holds no fold", anew)]
    return [_check_folds(splits, labeled, unlabeled, anew)]


def _check_folds(splits: Sequence[Split], labeled: set[str], unlabeled: set[str], anew: str) -> Finding:
    """Compare the folds with the cases there are; ``anew`` tells how to make the splits anew."""
    unknown = {case for split in splits for case in _unknown(split, labeled, unlabeled)} if labeled else set()
    if unknown:
        text = f"names {some(unknown)} that the dataset does not have with the labels needed"
        return Finding(SPLITS_FILE, "error", text, anew, {"cases": sorted(unknown)})
    bare = [fold for fold, split in enumerate(splits) if not split.unlabeled]
    if bare:
        mend = "Import unlabeled scans, or hide labels with: synfoc3d split --num-labeled N"
        return Finding(SPLITS_FILE, "warning", f"fold {bare[0]} has no unlabeled case", mend)
    return _describe_folds(splits)


def _describe_folds(splits: Sequence[Split]) -> Finding:
    """Count the cases of the folds."""
    numbers = [{key: len(getattr(split, key)) for key in ("labeled", "unlabeled", "val", "both")} for split in splits]
    first = "{labeled} labeled, {unlabeled} unlabeled, {val} validation".format(**numbers[0])
    if numbers[0]["both"]:
        first += f", {numbers[0]['both']} both labeled and unlabeled"
    text = f"{len(splits)} fold{'s' if len(splits) > 1 else ''}; fold 0: {first}"
    return Finding(SPLITS_FILE, "ok", text, details={"folds": numbers})


def _unknown(split: Split, labeled: set[str], unlabeled: set[str]) -> set[str]:
    """Return the cases of a split that have no label where one is needed, or do not exist."""
    return ({*split.labeled, *split.val} - labeled) | (set(split.unlabeled) - labeled - unlabeled)
