"""Regions, sparse and partial labels: every method trains on them, and nothing that is not annotated is learned."""

import csv
import json
from itertools import product

import blosc2
import numpy as np
import pytest
import torch
from torch import nn

from synfoc3d.errors import UserError
from synfoc3d.files.layout import ANNOTATIONS_FILE, DESCRIPTION_FILE, digests_file
from synfoc3d.inference.models import ModelChoice, load_model
from synfoc3d.networks.lora import Adapter

METHODS = {
    "supervised": ("nnUNetTrainerSupervised", {}),
    "mean teacher": ("nnUNetTrainerMeanTeacher", {}),
    "ACMT": ("nnUNetTrainerACMT", {}),
    "self-training": ("nnUNetTrainerSelfTraining", {}),
    "MagicNet": ("nnUNetTrainerMagicNet", {}),
    "SynFoC": ("nnUNetTrainerSynFoC", {"method": {"tau": 0.4}}),
    "conventional alone": ("nnUNetTrainerSynFoCBase", {"method": {"network": "conventional", "tau": 0.4}}),
    "foundation alone": ("nnUNetTrainerSynFoCBase", {"method": {"network": "foundation", "tau": 0.4}}),
    "SAMed": ("nnUNetTrainerSAMed", {}),
    "CFR fine-tuning": ("nnUNetTrainerCFRFineTune", {}),
    "ECT": ("nnUNetTrainerECT", {"foundation": {"name": "compact", "image_size": 32}}),
}
CONFIGURATIONS = ("2d", "3d_fullres")


@pytest.fixture(scope="session")
def altered(of_kind, tmp_path_factory):
    """Return a function that makes a copy of the project of a kind, once, whose unknown labels are others."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = of_kind(kind).copy(tmp_path_factory.mktemp(f"{kind}_altered"))
            for configuration in CONFIGURATIONS:
                alter(made[kind], configuration)
        return made[kind]

    return make


def alter(project, configuration):
    """Give every voxel of preprocessed labels that nothing may depend on another value."""
    annotated = {}
    if (project.raw / ANNOTATIONS_FILE).is_file():
        rows = csv.reader((project.raw / ANNOTATIONS_FILE).read_text().splitlines()[1:])
        annotated = {case: names for case, *names in rows}
    declared = json.loads((project.raw / DESCRIPTION_FILE).read_text())["labels"]
    random = np.random.default_rng(0)
    for file in sorted((project.preprocessed / f"nnUNetPlans_{configuration}").glob("*_seg.b2nd")):
        case = file.name.removesuffix("_seg.b2nd")
        values = blosc2.open(str(file))[:]
        if case == "Atrain004":
            values = random.integers(0, 4, values.shape).astype(values.dtype)  # hidden: nothing of them counts
        elif case in annotated:
            values = same_for(values, [np.atleast_1d(declared[name]) for name in annotated[case]], random)
        file.unlink()
        blosc2.asarray(np.ascontiguousarray(values), urlpath=str(file))
    digests_file(file.parent).unlink()  # which would tell


def same_for(values, classes, random):
    """Exchange label values of 0 to 3 that are in the same ones of the annotated classes."""
    changed = values.copy()
    for value in range(4):
        alike = [other for other in range(4) if all((value in c) == (other in c) for c in classes)]
        where = values == value
        changed[where] = random.choice(alike, int(where.sum()))
    return changed


def begin_adapters(network):
    """Let adapters correct something: at the start of a training B is 0, and A has no gradient."""
    for layer in network.modules():
        if isinstance(layer, Adapter):
            nn.init.normal_(layer.b.weight, std=0.01)


def step(project, method, configuration):
    """Take a step half-way through a run; return the trainer, what it logged, and the gradients of all students."""
    name, settings = METHODS[method]
    with project.active(f"step_{method}"):
        trainer = project.trainer(name, configuration, **settings)
        trainer.initialize()
        begin_adapters(trainer.method)
        batch = next(trainer.get_dataloaders()[0])
        trainer.step = trainer.num_epochs * trainer.num_iterations_per_epoch // 2
        logs = trainer.train_step(batch)
    gradients = {
        f"{student}.{key}": parameter.grad
        for student, network in trainer.students.items()
        for key, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    return trainer, logs, gradients


KINDS = ("regions", "sparse", "partial", "sparse and partial", "everything")
FLAT = [method for method in METHODS if method != "CFR fine-tuning"]  # which sees volumes alone
CASES = [*product(METHODS, KINDS, ["3d_fullres"]), *product(FLAT, KINDS, ["2d"])]


@pytest.mark.parametrize(("method", "kind", "configuration"), CASES, ids=["-".join(case) for case in CASES])
def test_step_trains_every_network_and_nothing_unknown_matters(method, kind, configuration, of_kind, altered):
    trainer, logs, gradients = step(of_kind(kind), method, configuration)
    assert np.isfinite([value for name, value in logs.items() if "loss" in name]).all()
    for student in trainer.students:
        own = [gradient for key, gradient in gradients.items() if key.startswith(f"{student}.")]
        assert all(gradient is None or gradient.isfinite().all() for gradient in own)
        assert sum(bool(gradient.any()) for gradient in own if gradient is not None) > 0.7 * len(own)
    _, _, others = step(altered(kind), method, configuration)
    assert all(gradient is None or torch.equal(gradient, others[key]) for key, gradient in gradients.items())


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("kind", ["regions", "sparse"])
def test_supervised_step_is_nnunets_on_the_same_batch(kind, configuration, of_kind):
    """nnU-Net's own network, loss and targets."""
    project = of_kind(kind)
    trainer, _, gradients = step(project, "supervised", configuration)
    with project.active("nnunets_loss"):
        fresh = project.trainer("nnUNetTrainerSupervised", configuration)
        fresh.initialize()
        batch = next(fresh.get_dataloaders()[0])
        fresh.loss(fresh.network(batch["data"]), batch["target"]).backward()
    for key, parameter in fresh.network.named_parameters():
        ours = gradients[f"conventional.{key}"]
        assert ours is parameter.grad is None or torch.equal(ours, parameter.grad)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_supervised_step_on_partial_labels_is_nnunets_on_merged_probabilities(configuration, of_kind):
    project = of_kind("partial")
    trainer, _, gradients = step(project, "supervised", configuration)
    with project.active("nnunets_loss"):
        fresh = project.trainer("nnUNetTrainerSupervised", configuration)
        fresh.initialize()
        batch = next(fresh.get_dataloaders()[0])
        merged = [merge(output.softmax(1), batch["known"]).log() for output in fresh.network(batch["data"])]
        fresh.loss(merged, batch["target"]).backward()
    assert not batch["known"].all()
    for key, parameter in fresh.network.named_parameters():
        ours = gradients[f"conventional.{key}"]
        if parameter.grad is not None:
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-6)


def merge(p, known):
    """Class by class and sample by sample: what was not annotated is background; never quite 0, for the logarithm."""
    samples = []
    for sample, annotated in zip(p, known, strict=True):
        background = sample[0] + sum(sample[c] for c in range(1, 4) if not annotated[c])
        others = [sample[c] if annotated[c] else torch.full_like(sample[c], 1e-30) for c in range(1, 4)]
        samples.append(torch.stack([background, *others]))
    return torch.stack(samples)


def test_ignored_voxels_are_left_out_of_the_online_validation(of_kind):
    project = of_kind("sparse")
    with project.active("online"):
        trainer = project.trainer()
        trainer.initialize()
        raw = next(trainer.get_dataloaders()[1])
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            outputs = trainer.validation_step(raw)
    annotated = int((raw["target"][0] != 4).sum())
    for student in ("conventional", "foundation"):
        counts = [outputs[f"{student}/{key}"] for key in ("tp_hard", "fp_hard", "fn_hard")]
        assert 0 < sum(int(count.sum()) for count in counts) <= 2 * annotated


def test_changed_annotations_are_refused(of_kind, tmp_path):
    copy = of_kind("partial").copy(tmp_path)
    (copy.raw / ANNOTATIONS_FILE).write_text("case,classes\nAtrain001,wall\n")
    with copy.active(), pytest.raises(UserError, match=r"annotated.csv has changed .* synfoc3d split -d 501 anew"):
        trainer = copy.trainer()
        trainer.initialize()
        trainer.get_dataloaders()


@pytest.fixture
def partly(of_kind, tmp_path):
    """A copy of the project with partial labels, trained for an epoch of two and validated."""
    copy = of_kind("partial").copy(tmp_path)
    with copy.active():
        copy.trainer("nnUNetTrainerSupervised", epochs=1, iterations_per_epoch=1).run_training()
        trainer = copy.trainer("nnUNetTrainerSupervised", resume=True)
        trainer.load_checkpoint(str(copy.results(trainer="nnUNetTrainerSupervised") / "checkpoint_final.pth"))
        trainer.perform_actual_validation()
    return copy


def refused(project, act):
    with project.active(), pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def load(project):
    trainer = project.trainer("nnUNetTrainerSupervised", resume=True)
    trainer.load_checkpoint(str(project.results(trainer="nnUNetTrainerSupervised") / "checkpoint_final.pth"))


def test_summary_of_the_validation_leaves_out_what_was_not_annotated(partly):
    folder = partly.results(trainer="nnUNetTrainerSupervised") / "validation"
    summary = json.loads((folder / "summary.json").read_text())
    rows = csv.reader((partly.raw / ANNOTATIONS_FILE).read_text().splitlines())
    annotated = {case: names for case, *names in rows}["Btrain001"]
    declared = json.loads((partly.raw / DESCRIPTION_FILE).read_text())["labels"]
    of_case = summary["metric_per_case"][0]["metrics"]
    for name, value in declared.items():
        if value:
            assert np.isnan(of_case[str(value)]["Dice"]) == (name not in annotated)
    (known,) = (of_case[str(declared[name])]["Dice"] for name in annotated)
    assert summary["foreground_mean"]["Dice"] == known


def test_training_does_not_go_on_with_other_annotations(partly):
    for folder in (partly.raw, partly.preprocessed):
        (folder / ANNOTATIONS_FILE).unlink()
    assert "The training began with other labels, or another annotated.csv" in refused(partly, lambda: load(partly))


def test_training_does_not_go_on_with_other_labels(partly):
    for folder in (partly.raw, partly.preprocessed):
        (folder / ANNOTATIONS_FILE).unlink()
    file = partly.preprocessed / DESCRIPTION_FILE
    regions = {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": [3], "d": [3]}
    content = json.loads(file.read_text()) | {"labels": regions, "regions_class_order": [1, 2, 3, 3]}
    file.write_text(json.dumps(content))
    assert "The training began with other labels" in refused(partly, lambda: load(partly))


def test_training_does_not_go_on_with_names_that_were_exchanged(partly):
    for folder in (partly.raw, partly.preprocessed):
        file = folder / DESCRIPTION_FILE
        content = json.loads(file.read_text())
        names, values = zip(*[label for label in content["labels"].items() if label[1]], strict=True)
        exchanged = {"background": 0, **dict(zip(names[::-1], values, strict=True))}
        file.write_text(json.dumps(content | {"labels": exchanged}))
    assert "The training began with other labels" in refused(partly, lambda: load(partly))


def test_model_is_not_read_by_other_labels(partly):
    """A later training of another fold writes the description of its own labels beside the model."""
    file = partly.results(trainer="nnUNetTrainerSupervised").parent / DESCRIPTION_FILE
    regions = {"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": [3], "d": [3]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": regions, "regions_class_order": [1, 2, 3, 3]}))
    choice = ModelChoice("501", "2d", trainer="nnUNetTrainerSupervised")
    message = refused(partly, lambda: load_model(choice))
    assert "checkpoint_final.pth was trained for other labels than" in message


def test_model_is_read_by_new_names_but_not_by_each_others(partly):
    """Masks would carry the names of other structures."""
    file = partly.results(trainer="nnUNetTrainerSupervised").parent / DESCRIPTION_FILE
    content = json.loads(file.read_text())
    names, values = zip(*[label for label in content["labels"].items() if label[1]], strict=True)
    choice = ModelChoice("501", "2d", trainer="nnUNetTrainerSupervised")

    def call(names):
        labels = {"background": 0, **dict(zip(names, values, strict=True))}
        file.write_text(json.dumps(content | {"labels": labels}))

    call([f"new {name}" for name in names])
    with partly.active():
        load_model(choice)
    call(names[::-1])
    message = refused(partly, lambda: load_model(choice))
    assert "checkpoint_final.pth was trained for other labels than" in message


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        (("Atrain001",), ("Atrain003",), "No labeled case of the split was annotated for"),
        (("Atrain001", "Atrain002", "Atrain003", "x"), ("x",), "The split lists 'x' as labeled and unlabeled"),
    ],
)
def test_splits_by_hand_are_checked(labeled, unlabeled, message, of_kind):
    project = of_kind("partial")
    with project.active():
        labels = project.trainer("nnUNetTrainerSupervised").labels
        with pytest.raises(UserError, match=message):
            labels.check(labeled, unlabeled)
