"""Checkpoints of version 0.1 still predict and continue.

The files beside this one are two such checkpoints of the tiny dataset, with the shape of each tensor in its place; the
tests put random numbers there.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch

from synfoc3d import checkpoint as checkpoints
from synfoc3d.errors import UserError

FOLDER = Path(__file__).parent / "checkpoints_0_1"
MODELS = {
    "synfoc": ("nnUNetTrainerSynFoC", ("conventional", "foundation", "ensemble")),
    "samed": ("nnUNetTrainerSAMed", ("foundation",)),
}


def rebuild(value):
    """Put tensors, tuples and devices back."""
    if isinstance(value, list):
        return [rebuild(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        dtype, shape = value["__tensor__"]
        return (torch.rand(shape) * 0.02).to(getattr(torch, dtype))
    if "__pairs__" in value:
        return {key: rebuild(item) for key, item in value["__pairs__"]}
    if "__tuple__" in value:
        return tuple(rebuild(item) for item in value["__tuple__"])
    return torch.device(value["__device__"]) if "__device__" in value else {k: rebuild(v) for k, v in value.items()}


@pytest.fixture(scope="module")
def full_size(project, tmp_path_factory):
    """The project with networks of the sizes that version 0.1 trained."""
    return project.full_size(tmp_path_factory.mktemp("full_size"))


@pytest.fixture
def old(full_size):
    """Return a function that lays an old checkpoint into a results folder; gives the project there and its file."""

    def lay(name):
        torch.manual_seed(0)
        content = rebuild(json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes())))
        content["synfoc3d"]["random"] = checkpoints.random_state()
        folder = full_size.results(f"old_{name}", MODELS[name][0])
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("plans.json", "dataset.json"):
            source = full_size.preprocessed / {"plans.json": "nnUNetPlans.json"}.get(file, file)
            (folder.parent / file).write_text(source.read_text())
        torch.save(content, folder / "checkpoint_final.pth")
        return folder / "checkpoint_final.pth"

    return lay


@pytest.mark.parametrize(("name", "model"), [(name, model) for name, (_, models) in MODELS.items() for model in models])
def test_old_checkpoint_predicts(old, full_size, project, tmp_path, name, model):
    old(name)
    scans = project.root / "scans" / "unlabeled"
    full_size.command(
        "predict", "-i", scans, "-o", tmp_path / "masks", "-d", "501", "-c", "2d", "-tr", MODELS[name][0],
        "--model", model, "-device", "cpu", "-npp", "1", "-nps", "1", results=f"old_{name}",
    )  # fmt: skip
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == len(list(scans.glob("*.nii.gz")))


@pytest.mark.parametrize("name", MODELS)
def test_old_checkpoint_continues(old, full_size, name):
    file = old(name)
    with full_size.active(f"old_{name}"):
        trainer = full_size.trainer(MODELS[name][0], resume=True)
        trainer.load_checkpoint(str(file))
        weights = {key: value.clone() for key, value in trainer.method.state_dict().items()}
        trainer.num_epochs, trainer.disable_checkpointing = 3, True
        trainer.run_training()
    assert trainer.current_epoch == 3
    assert any(not torch.equal(value, weights[key]) for key, value in trainer.method.state_dict().items())


def test_old_setting_of_the_warm_up_is_the_optimizers_now(old, full_size):
    file = old("samed")
    with full_size.active("old_samed"):
        trainer = full_size.trainer(MODELS["samed"][0], resume=True)
        trainer.load_checkpoint(str(file))
    assert trainer.settings.optimizers.foundation.warmup == 250


@pytest.mark.parametrize("network", ["conventional", "foundation"])
def test_old_training_of_one_network_is_the_bases_now(old, full_size, network):
    file = old("synfoc")
    content = torch.load(file, weights_only=True)
    section = content["synfoc3d"]
    section["settings"]["method"]["base"] = network
    for part in ("students", "optimizers"):
        section[part] = {network: section[part][network]}
    section["method"] = {key: value for key, value in section["method"].items() if key.startswith(network)}
    torch.save(content, file)
    with full_size.active("old_synfoc"):
        with pytest.raises(UserError, match="continue with -tr nnUNetTrainerSynFoCBase"):
            full_size.trainer(resume=True).load_checkpoint(str(file))
        trainer = full_size.trainer("nnUNetTrainerSynFoCBase", resume=True)
        trainer.load_checkpoint(str(file))
    assert trainer.settings.method.network == network
    # nnU-Net's network has several names for most of its tensors, which hold different random numbers here
    loaded = {k: v for k, v in trainer.method.state_dict().items() if network == "foundation" or "seg_layers" in k}
    assert loaded and all(torch.equal(value, section["method"][key]) for key, value in loaded.items())
