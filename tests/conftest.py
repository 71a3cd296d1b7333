"""A tiny dataset with nnU-Net's folders of its own, and trainings on it that several test files share."""

import contextlib
import csv
import json
import os
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from .shortcuts import (
    build_small_networks,
    sample_few_voxels,
    scale_networks,
    search_trainers_once,
    skip_pictures,
    start_no_pools,
)

os.environ.setdefault("nnUNet_def_n_proc", "1")  # read once, when nnU-Net is imported
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background would never be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # a forked worker hangs in its first parallel region if its parent had one

DATASET = "501"
SHAPE = (7, 6, 5)
SPACING = (1.0, 1.5, 4.0)
SETTINGS = {
    "epochs": 2,
    "iterations_per_epoch": 2,
    "val_iterations_per_epoch": 1,
    "batch_size": 2,
    "precision": "float32",
    "save_every_minutes": 0,
    "foundation": {"name": "compact", "image_size": 32, "checkpoint": "random"},
}
SPLIT = {"labeled": ["Atrain001", "Atrain002"], "hidden": ["Atrain003", "Atrain004"], "val": ["Btrain001"]}
SPLIT_OF_THREE = {"labeled": ["Atrain001", "Atrain002", "Atrain003"], "hidden": ["Atrain004"]}
SMALLER = 4  # times fewer features than nnU-Net planned
UNLABELED_SCANS = ["Btrain002", "Btrain003"]


@dataclass(frozen=True)
class Project:
    """A dataset, preprocessed and split, in folders of its own; results go where a training says.

    Its networks are small, unless it is :meth:`full_size`.
    """

    root: Path
    small: bool = True

    @property
    def raw(self):
        return self.root / "nnUNet_raw" / "Dataset501_Tiny"

    @property
    def preprocessed(self):
        return self.root / "nnUNet_preprocessed" / "Dataset501_Tiny"

    def results(self, name="nnUNet_results", trainer="nnUNetTrainerSynFoC", configuration="2d"):
        return self.root / name / "Dataset501_Tiny" / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"

    def settings(self, **changes):
        """Write a settings file and return it."""
        file = self.root / f"settings_{abs(hash(str(changes)))}.yaml"
        if not file.is_file():  # several processes may ask for it at the same time
            file.write_text(yaml.safe_dump(SETTINGS | changes))
        return file

    @contextlib.contextmanager
    def active(self, results="nnUNet_results", pictures=False):
        """nnU-Net's variables point to these folders, and what takes it long is made short; see ``shortcuts.py``."""
        with pytest.MonkeyPatch.context() as patch:
            for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
                patch.setenv(variable, str(self.root / variable))
            patch.setenv("nnUNet_results", str(self.root / results))
            patch.setenv("nnUNet_n_proc_DA", "0")
            patch.delenv("SYNFOC3D_CONFIG", raising=False)
            patch.setenv("nnUNet_extTrainer", "")
            (self.root / results).mkdir(parents=True, exist_ok=True)
            start_no_pools(patch)
            sample_few_voxels(patch)
            search_trainers_once(patch)
            if not pictures:
                skip_pictures(patch)
            if self.small:
                build_small_networks(patch)
            yield patch

    def trainer(self, name="nnUNetTrainerSynFoC", configuration="2d", resume=False, **changes):
        """Return a trainer object; call it within :meth:`active`."""
        from nnunetv2.run.run_training import get_trainer_from_args

        from synfoc3d.nnunet.training import register_trainers

        register_trainers()
        os.environ["SYNFOC3D_CONFIG"] = "" if resume else str(self.settings(**changes))
        return get_trainer_from_args(DATASET, configuration, 0, name, "nnUNetPlans", resume, torch.device("cpu"))

    def train(self, results, name="nnUNetTrainerSynFoC", configuration="2d", **changes):
        """Train without checkpoints and final validation; return the trainer."""
        with self.active(results):
            trainer = self.trainer(name, configuration, **changes)
            trainer.disable_checkpointing = True
            trainer.run_training()
        return trainer

    def kill_and_continue(self, results, name="nnUNetTrainerSynFoC", configuration="2d", **changes):
        """Train until the first checkpoint_latest.pth lies there, die, and continue; return the trainer."""
        from synfoc3d import checkpoint as checkpoints

        def save_and_die(checkpoint, file):
            save(checkpoint, file)
            if file.name == "checkpoint_latest.pth":
                raise KeyboardInterrupt

        save = checkpoints.save_atomic
        with self.active(results):
            with pytest.MonkeyPatch.context() as kill:
                kill.setattr(checkpoints, "save_atomic", save_and_die)
                with pytest.raises(KeyboardInterrupt):
                    self.trainer(name, configuration, **changes).run_training()
            trainer = self.trainer(name, configuration, resume=True)
            trainer.load_checkpoint(str(self.results(results, name, configuration) / "checkpoint_latest.pth"))
            trainer.run_training()
        return trainer

    def command(self, *arguments, results="nnUNet_results", pictures=False):
        """Run a command of the command line in this process."""
        from synfoc3d.cli import main

        with self.active(results, pictures):
            main([str(argument) for argument in arguments])

    def copy(self, root):
        """A project whose raw and preprocessed files may be changed."""
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            shutil.copytree(self.root / name, root / name)
        return replace(self, root=root)

    def full_size(self, root):
        """A copy whose networks have the sizes that a user's have."""
        copy = replace(self.copy(root), small=False)
        scale_networks(copy.preprocessed / "nnUNetPlans.json", SMALLER)
        return copy

    def hidden_labels(self, configuration="2d"):
        """Every file that tells something about the labels of the unlabeled cases."""
        return [
            (
                self.preprocessed / f"nnUNetPlans_{configuration}" / f"{case}_seg.b2nd",
                self.preprocessed / "gt_segmentations" / f"{case}.nii.gz",
                self.raw / "labelsTr" / f"{case}.nii.gz",
            )
            for case in SPLIT["hidden"]
        ]

    def copy_without_hidden_labels(self, root, configuration="2d"):
        """A copy whose unlabeled cases have no label file at all."""
        copy = self.copy(root)
        for files in copy.hidden_labels(configuration):
            for file in files:
                file.unlink()
        return copy


def make_project(root, configurations, num_channels=1, orientations=("RAS",), labels="plain", change=None):
    """Generate, import, preprocess and split: five labeled cases, of which two hide their label, two unlabeled.

    Cases whose labels are sparse or partial are labeled and unlabeled. ``change`` is given the folder of the labeled
    scans before they are imported.
    """
    from synfoc3d.files.layout import ANNOTATIONS_FILE
    from synfoc3d.files.splits import Split, save_splits
    from synfoc3d.preprocessing.generated.generate import StorageOptions, generate_dataset
    from synfoc3d.preprocessing.importing import import_dataset
    from synfoc3d.preprocessing.unlabeled import preprocess_dataset

    project, scans = Project(root), root / "scans"
    storage = StorageOptions((24, 20, 6), num_channels, orientations)
    generate_dataset(scans, {"A": 4, "B": 3}, {"A": 4, "B": 1}, seed=0, storage=storage, labels=labels)
    if change is not None:
        change(scans / "labeled")
    with project.active() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")
        (root / "nnUNet_raw").mkdir()
        (root / "nnUNet_preprocessed").mkdir()
        import_dataset(int(DATASET), "Tiny", scans / "labeled", scans / "unlabeled", domains=scans / "domains.csv")
        preprocess_dataset(DATASET, configurations, num_processes=1)
    scale_networks(project.preprocessed / "nnUNetPlans.json", 1 / SMALLER)
    if (project.raw / ANNOTATIONS_FILE).is_file():
        shutil.copy(project.raw / ANNOTATIONS_FILE, project.preprocessed)  # as synfoc3d split does
    cases = SPLIT if labels == "plain" else SPLIT | SPLIT_OF_THREE
    both = cases["labeled"] if labels in ("sparse", "partial") else ()
    unlabeled = (*both, *cases["hidden"], *UNLABELED_SCANS)
    save_splits(project.preprocessed, [Split(tuple(cases["labeled"]), unlabeled, tuple(cases["val"]))])
    return project


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """One channel, stored in one orientation, planned for 2d and 3d_fullres."""
    return make_project(tmp_path_factory.mktemp("project"), ["2d", "3d_fullres"])


@pytest.fixture(scope="session")
def mixed_project(tmp_path_factory):
    """The same scans stored in mixed orientations, planned for 2d."""
    return make_project(tmp_path_factory.mktemp("mixed"), ["2d"], orientations=("RAS", "LPI", "PRS", "LAS", "ASL"))


@pytest.fixture(scope="session")
def two_channels(tmp_path_factory):
    """Two channels, trained in 2d for one step."""
    project = make_project(tmp_path_factory.mktemp("two"), ["2d"], num_channels=2)
    with project.active():
        project.trainer(epochs=1, iterations_per_epoch=1).run_training()
    return project


REGIONS = {"background": 0, "heart": [1, 2, 3], "main": [1, 2], "cavity": 2, "ignore": 4}


def scribbles_of_some_classes(labeled):
    """Name one class of each case's sparse labels, and make background of the others."""
    lines, values = ["case,classes"], {"wall": 1, "cavity": 2, "side_chamber": 3}
    for number, file in enumerate(sorted((labeled / "labels").glob("*.nii.gz"))):
        name = list(values)[number % 3]
        image = nibabel.load(file)
        label = np.asarray(image.dataobj).copy()
        label[~np.isin(label, (0, values[name], 4))] = 0
        file.unlink()
        nibabel.save(nibabel.Nifti1Image(label, image.affine), file)
        lines.append(f"{file.name.removesuffix('.nii.gz')},{name}")
    (labeled / "annotated.csv").write_text("\n".join(lines) + "\n")


def everything(labeled):
    """Declare regions over sparse labels, of which some cases have some regions only."""
    file = labeled / "dataset.json"
    content = json.loads(file.read_text()) | {"labels": REGIONS, "regions_class_order": [3, 1, 2]}
    file.write_text(json.dumps(content))
    lines = ("case,classes", "Atrain001,heart", "Atrain002,heart,main", "Atrain003,heart,cavity")
    (labeled / "annotated.csv").write_text("\n".join(lines) + "\n")


MIXED_KINDS = {"everything": ("sparse", everything), "sparse and partial": ("sparse", scribbles_of_some_classes)}


@pytest.fixture(scope="session")
def of_kind(tmp_path_factory):
    """Return a function that makes a project with regions, sparse or partial labels, or everything at once, once."""
    made = {}

    def make(kind):
        if kind not in made:
            labels, change = MIXED_KINDS.get(kind, (kind, None))
            root = tmp_path_factory.mktemp(kind)
            made[kind] = make_project(root, ["2d", "3d_fullres"], labels=labels, change=change)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def trained(project):
    """The project after ``synfoc3d train`` of SynFoC in 2d."""
    project.command("train", DATASET, "2d", "0", "--config", project.settings(), "-device", "cpu",
                    pictures=True)  # fmt: skip
    return project


@pytest.fixture(scope="session")
def trained_3d(project):
    """The project after ``synfoc3d train`` of SynFoC in 3d_fullres."""
    project.command("train", DATASET, "3d_fullres", "0", "--config", project.settings(), "-device", "cpu",
                    pictures=True)  # fmt: skip
    return project


@pytest.fixture(scope="session")
def read_log():
    """Return a function that reads synfoc3d_log.csv in a folder as one dict of texts per epoch."""

    def read(folder):
        with (folder / "synfoc3d_log.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def same_weights():
    """Return a function that compares two state dicts bit for bit."""

    def compare(first, second):
        return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)

    return compare


@pytest.fixture(scope="session")
def write_nifti():
    """Return a function that writes an array of the axes x, y, z as NIfTI, creating the folder."""

    def write(path, values, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([*SPACING, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(np.asarray(values), affine), path)
        return path

    return write


@pytest.fixture(scope="session")
def flip_bit():
    """Return a function that flips a bit of a file, by default one of the checksum at the end of a gzip file."""

    def flip(path, byte=-8, bit=0):
        content = bytearray(path.read_bytes())
        content[byte] ^= 1 << bit
        path.write_bytes(content)
        return path

    return flip


@pytest.fixture(scope="module")
def four_metrics():
    """The only metrics, for tests with figures made by hand: one that is added later does not concern them."""
    from synfoc3d.metrics import METRICS

    with pytest.MonkeyPatch.context() as patch:
        for key in set(METRICS) - {"dice", "jaccard", "hd95", "asd"}:
            patch.delitem(METRICS, key)
        yield


@pytest.fixture
def write_image(write_nifti):
    """Return a function that writes an image of random voxels."""

    def write(path, seed=0, shape=SHAPE, affine=None):
        return write_nifti(path, np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32), affine)

    return write


@pytest.fixture
def write_label(write_nifti):
    """Return a function that writes a label map that holds the given values."""

    def write(path, values=(0, 1, 2), shape=SHAPE, affine=None, dtype=np.uint8):
        return write_nifti(path, np.resize(np.asarray(values, dtype), shape), affine)

    return write
