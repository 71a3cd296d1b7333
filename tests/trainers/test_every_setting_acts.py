"""Every setting changes a training: the tree is walked, and a key without an effect fails.

For each key there is another value than the tests' own, together with what it needs to matter, and where its effect
shows: in the numbers of two tiny steps, unless said otherwise. A new setting fails until it is entered here.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from synfoc3d import config
from synfoc3d.errors import UserError
from synfoc3d.methods.acmt import ACMTSettings
from synfoc3d.methods.cfr import CFRSettings
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuningSettings
from synfoc3d.methods.ect import ECTSettings
from synfoc3d.methods.fine_tuning import FineTuningSettings
from synfoc3d.methods.magicnet import MagicNetSettings
from synfoc3d.methods.mean_teacher import MeanTeacherSettings
from synfoc3d.methods.self_training import SelfTrainingSettings
from synfoc3d.methods.synfoc import SynFoCSettings
from synfoc3d.methods.synfoc_base import SynFoCBaseSettings
from synfoc3d.networks.build import build_foundation
from synfoc3d.networks.foundation import build_sam
from synfoc3d.networks.graphs import Recorder

SYNFOC = "nnUNetTrainerSynFoC"
ECT = "nnUNetTrainerECT"
METHODS = {
    SYNFOC: SynFoCSettings,
    "nnUNetTrainerSynFoCBase": SynFoCBaseSettings,
    "nnUNetTrainerMeanTeacher": MeanTeacherSettings,
    "nnUNetTrainerACMT": ACMTSettings,
    "nnUNetTrainerSelfTraining": SelfTrainingSettings,
    "nnUNetTrainerMagicNet": MagicNetSettings,
    "nnUNetTrainerSAMed": FineTuningSettings,
    "nnUNetTrainerCFRFineTune": CFRFineTuningSettings,
    "nnUNetTrainerCFR": CFRSettings,
    ECT: ECTSettings,
}
SGD = {"name": "sgd", "lr": 1e-3}
ADAPTED = {"foundation.checkpoint": "FILE"}  # a base with weights gets adapters
NEEDS = {ECT: {"foundation.checkpoint": None}}  # of every training: the compact network can answer prompts


class Change(NamedTuple):
    """Another value of a setting, what else must be set for it to matter, and how its effect is observed.

    A setting of a common section is observed with SynFoC, unless it acts in the training of another ``trainer`` alone.
    """

    value: Any
    needs: dict[str, Any] = {}
    observe: str = "numbers"
    configuration: str = "2d"
    trainer: str | None = None


MIXING = {
    "tau": Change(0.1),
    "ema_decay": Change(0.0),
    "lambda_form": Change("paper"),
    "box": Change("prism", configuration="3d_fullres"),
    "window": Change(2, configuration="3d_fullres"),
    "teacher_scope": Change("window", {"method.window": 2}, configuration="3d_fullres"),
    "mask_background": Change(True),
    "bidirectional": Change(True),
}
TEACHER = {
    "consistency_weight": Change(1.0),
    "rampup_length": Change(1, observe="late"),
    "noise": Change(0.5),
    "ema_decay": Change(0.0),
}
LABELED = {"method.labeler": "LABELER"}  # a first stage
ALONE = {"method.network": "foundation"}
OPTIMIZER = {
    "lr": Change(0.02),
    "weight_decay": Change(0.3),
    "schedule": Change("poly_step"),
    "warmup": Change(9),
    "gradient_norm": Change(1e-4),
}
CHANGES = {
    (SYNFOC, ""): {
        "epochs": Change(3),
        "iterations_per_epoch": Change(2),
        "val_iterations_per_epoch": Change(2),
        "batch_size": Change(1),
        "seed": Change(5),
        "precision": Change("bfloat16"),
        "save_every_minutes": Change(60.0, observe="saved"),
    },
    (SYNFOC, "method"): MIXING
    | {
        "ensemble": Change("cps"),
        "consistency": Change("cr"),
        "smc_scope": Change("slice", configuration="3d_fullres"),
        "structures": Change([[1], [1]]),
    },
    ("nnUNetTrainerSynFoCBase", "method"): MIXING
    | {
        "network": Change("foundation"),
        "window": Change(2, ALONE, configuration="3d_fullres"),
        "teacher_scope": Change("window", ALONE | {"method.window": 2}, "seen", "3d_fullres"),
    },
    ("nnUNetTrainerMeanTeacher", "method"): TEACHER | {"consistency_on": Change("all")},
    ("nnUNetTrainerACMT", "method"): TEACHER | {"threshold": Change([0.9, 1.0])},
    ("nnUNetTrainerSelfTraining", "method"): {"rounds": Change(1, {"iterations_per_epoch": 2})},
    ("nnUNetTrainerMagicNet", "method"): TEACHER
    | {
        "rampup_unit": Change(1),
        "location_weight": Change(1.0),
    },
    ("nnUNetTrainerSAMed", "method"): {"dice_weight": Change(0.5), "window": Change(2, configuration="3d_fullres")},
    ("nnUNetTrainerCFRFineTune", "method"): {
        "curve_probability": Change(0.0, configuration="3d_fullres"),
        "curve_range": Change("unit", configuration="3d_fullres"),
        "turn_canvas": Change(False, configuration="3d_fullres"),
        "dice_on_padding": Change(True, configuration="3d_fullres"),
    },
    ("nnUNetTrainerCFR", "method"): {
        "module": Change("acmt", LABELED, configuration="3d_fullres"),
        "module_settings": Change({"noise": 0.5}, LABELED, configuration="3d_fullres"),
        "labeler": Change("LABELER", observe="refused", configuration="3d_fullres"),
        "pseudo_labels": Change("case", LABELED, configuration="3d_fullres"),
        "pseudo_label_weight": Change("ramp", LABELED, configuration="3d_fullres"),
    },
    (ECT, "method"): {
        "streams": Change(1),
        "unlabeled": Change(False),
        "focal_weight": Change(3.0),
        "dice_weight": Change(3.0),
        "consistency_weight": Change(1.0),
        "rampup": Change(1.0),
        "center_share": Change(1.0),
        "unlabeled_point": Change("centroid", {"foundation.image_size": 64}),
        "window": Change(2),
        "cutout": Change([0.5, 0.6]),
    },
    (SYNFOC, "foundation"): {
        "name": Change("sam_vit_b", observe="built"),
        "checkpoint": Change("FILE"),
        "lora": Change("/no/lora.pth", ADAPTED, "refused"),
        "image_size": Change(48),
        "arrangement": Change("canvas", configuration="3d_fullres"),
        "carry": Change(False, trainer=ECT),
        "class_tokens": Change(False, trainer=ECT),
        "adapters": Change("/no/adapters.pth", observe="refused", trainer=ECT),
        "lora_rank": Change(2, ADAPTED),
        "lora_targets": Change("all", ADAPTED),
        "full_finetune": Change(True, ADAPTED),
        "chunk": Change(1, observe="calls"),
        "checkpointing": Change(True, observe="calls"),
        "channels": Change([1, 0, 0], observe="two channels"),
        "intensity": Change("patch"),
        "seen": Change(True, observe="recorded"),
    },
    (SYNFOC, "conventional"): {"loss": Change("paper"), "deep_supervision": Change(False, observe="outputs")},
    (SYNFOC, "optimizers.conventional"): OPTIMIZER
    | {
        "name": Change("adam", {"optimizers.conventional.lr": 0.01}),
        "momentum": Change(0.5),
        "nesterov": Change(False),
    },
    (SYNFOC, "optimizers.foundation"): OPTIMIZER
    | {
        "name": Change("adam", {"optimizers.foundation.lr": 0.01}),
        "schedule": Change("constant"),
        "encoder_lr": Change(0.01),
        "momentum": Change(0.5, {"optimizers.foundation": SGD}),
        "nesterov": Change(True, {"optimizers.foundation": SGD}),
    },
    (SYNFOC, "augmentation"): {
        "brightness": Change([0.5, 0.6]),
        "contrast": Change([0.5, 0.6]),
        "blur": Change([4.0, 5.0]),
        "labeled_intensity": Change(True),
    },
    (SYNFOC, "speed"): {
        "attention": Change(False, observe="operations"),
        "joint_calls": Change(False, observe="operations"),
        "shared_teachers": Change(False, ADAPTED, "storage"),
        "kept_casts": Change(False, ADAPTED | {"precision": "bfloat16"}, "operations"),
        "merged_adapters": Change(False, observe="operations", trainer=ECT),
        "cuda_graphs": Change(True, observe="recorders"),
    },
}
ALL = [(*place, key) for place, changes in CHANGES.items() for key in changes]


def leaves(section, prefix=""):
    """Dotted places of all sections of a tree, each with its keys that are no sections."""
    fields = {key: field.annotation for key, field in section.model_fields.items()}
    below = {key: kind for key, kind in fields.items() if isinstance(kind, type) and issubclass(kind, config.Section)}
    found = {prefix: {key for key in fields if key not in below}}
    for key, kind in below.items():
        found |= leaves(kind, f"{prefix}.{key}".strip("."))
    return found


def test_every_key_of_the_tree_has_its_change():
    tree = {(SYNFOC, place): keys for place, keys in leaves(config.Settings).items() if keys and place != "method"}
    tree |= {(trainer, "method"): set(kind.model_fields) for trainer, kind in METHODS.items()}
    assert {place: set(changes) for place, changes in CHANGES.items()} == tree


@pytest.fixture(scope="module")
def files(project, tmp_path_factory):
    """Files that settings name: FILE, weights of the compact network, and LABELER, a first stage of CFR."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("base") / "base.pth"
    torch.save(build_sam("compact", 32, 2).state_dict(), file)
    trainer = "nnUNetTrainerCFRFineTune"
    with project.active("first_stage"):
        project.trainer(trainer, "3d_fullres", **tree_of({}, {})).run_training()
    return {"FILE": file, "LABELER": project.results("first_stage", trainer, "3d_fullres") / "checkpoint_final.pth"}


def tree_of(assignments, files):
    """Nested settings from dotted keys."""
    foundation = {"name": "compact", "image_size": 32, "checkpoint": "random"}
    tree = {"epochs": 2, "iterations_per_epoch": 1, "foundation": foundation}
    for key, value in assignments.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = str(files[value]) if isinstance(value, str) and value in files else value
    return tree


@pytest.fixture(scope="module")
def observe(project, two_channels, files):
    """Return a function that trains with some settings and says what is to be seen of them; each is trained once."""
    known = {}

    def look(trainer, configuration, how, assignments):
        key = (trainer, configuration, how, repr(assignments))
        if key not in known:
            place = two_channels if how == "two channels" else project
            known[key] = OBSERVATIONS[how](place, trainer, configuration, tree_of(assignments, files))
        return known[key]

    return look


def started(project, trainer, configuration, tree):
    made = project.trainer(trainer, configuration, **tree)
    made.disable_checkpointing = True
    made.initialize()
    return made


def numbers(project, trainer, configuration, tree):
    """Logged values, and a checksum of all weights of students and teachers, after a short training."""
    made = project.train("settings", trainer, configuration, **tree)
    weights = [value.double().abs().sum().item() for value in made.method.state_dict().values()]
    return made.curves.rows, weights


def saved(project, trainer, configuration, tree):
    """Names of the checkpoints that a training writes."""
    with project.active("settings") as patch:
        written = []
        patch.setattr("synfoc3d.checkpoint.save_atomic", lambda _, file: written.append(file.name))
        patch.setattr("synfoc3d.checkpoint.copy_atomic", lambda _, file: written.append(file.name))
        made = project.trainer(trainer, configuration, **tree)
        made.run_training()
    return written


def built(project, trainer, configuration, tree):
    """Number of parameters of the foundation network."""
    settings = config.resolve(tree, SynFoCSettings).foundation
    return sum(p.numel() for p in build_foundation(settings, 2)[0].parameters())


def refused(project, trainer, configuration, tree):
    """The sentence that refuses to start, if there is one."""
    try:
        with project.active("settings"):
            started(project, trainer, configuration, tree)
    except UserError as error:
        return str(error)
    return ""


def calls(project, trainer, configuration, tree):
    """How often the foundation student and its first block are called in a step."""
    counts = {"network": 0, "block": 0}

    def count(name):
        counts[name] += 1

    with project.active("settings"):
        made = started(project, trainer, configuration, tree)
        network = made.students["foundation"].network
        network.register_forward_pre_hook(lambda *_: count("network"))
        network.image_encoder.blocks[0].register_forward_pre_hook(lambda *_: count("block"))
        batch = next(made.get_dataloaders()[0])
        made.on_train_epoch_start()
        made.train_step(batch)
    return counts


def recorders(project, trainer, configuration, tree):
    """How many networks record what a GPU does for them."""
    with project.active("settings"):
        made = started(project, trainer, configuration, tree)
    return sum(isinstance(network.forward, Recorder) for network in made.method.children())


def outputs(project, trainer, configuration, tree):
    """Whether nnU-Net's network gives several outputs; here all but the finest have no weight in the loss."""
    with project.active("settings"):
        made = started(project, trainer, configuration, tree)
        return type(made.network(torch.zeros(1, 1, 24, 24)))


def late(project, trainer, configuration, tree):
    """Logged values of a step far into a training."""
    with project.active("settings"):
        made = started(project, trainer, configuration, tree | {"epochs": 9, "iterations_per_epoch": 200})
        made.current_epoch = 5
        batch = next(made.get_dataloaders()[0])
        made.on_train_epoch_start()
        return made.train_step(batch)


def seen(project, trainer, configuration, tree):
    """Number of slices that the foundation teacher sees in a step."""
    slices = []
    with project.active("settings"):
        made = started(project, trainer, configuration, tree)
        made.method.teacher.register_forward_pre_hook(lambda _, inputs: slices.append(inputs[0].shape[2]))
        batch = next(made.get_dataloaders()[0])
        made.on_train_epoch_start()
        made.train_step(batch)
    return slices


def recorded(project, trainer, configuration, tree):
    """What the record of a training says of its foundation weights."""
    made = project.train("settings", trainer, configuration, **tree)
    return yaml.safe_load((Path(made.output_folder) / "synfoc3d.yaml").read_text())["foundation"]


class Operations(TorchDispatchMode):
    """Counts what is computed, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[str(function)] += 1
        return function(*args, **(kwargs or {}))


def operations(project, trainer, configuration, tree):
    """How often a step computes what."""
    with project.active("settings"):
        made = started(project, trainer, configuration, tree)
        batch = next(made.get_dataloaders()[0])
        made.on_train_epoch_start()
        with Operations() as operations:
            made.train_step(batch)
    return operations.count


def storage(project, trainer, configuration, tree):
    """How many numbers the networks hold."""
    with project.active("settings"):
        made = started(project, trainer, configuration, tree)
        return sum(parameter.numel() for parameter in made.method.parameters())


OBSERVATIONS = {
    "operations": operations,
    "storage": storage,
    "numbers": numbers,
    "two channels": numbers,
    "recorded": recorded,
    "recorders": recorders,
    "saved": saved,
    "built": built,
    "refused": refused,
    "calls": calls,
    "late": late,
    "outputs": outputs,
    "seen": seen,
}


@pytest.mark.parametrize(("trainer", "place", "key"), ALL, ids=[".".join(filter(None, parts)) for parts in ALL])
def test_setting_acts(trainer, place, key, observe):
    change = CHANGES[trainer, place][key]
    trainer = change.trainer or trainer
    name, needs = f"{place}.{key}".strip("."), NEEDS.get(trainer, {}) | change.needs
    before = observe(trainer, change.configuration, change.observe, needs)
    after = observe(trainer, change.configuration, change.observe, needs | {name: change.value})
    assert before != after
