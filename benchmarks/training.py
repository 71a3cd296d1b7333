"""A training on random data for measurements of its step: as a trainer makes it, or plain."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from synfoc3d.config import RANDOM, SpeedSettings, resolve
from synfoc3d.losses.label_space import Classes
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.acmt import ACMT
from synfoc3d.methods.augmentation import strong_view
from synfoc3d.methods.base import Builder, Method, full_resolution
from synfoc3d.methods.cfr import CFR
from synfoc3d.methods.cfr_fine_tuning import CFRFineTuning
from synfoc3d.methods.ect import ECT
from synfoc3d.methods.magicnet import MagicNet
from synfoc3d.methods.mean_teacher import MeanTeacher
from synfoc3d.methods.self_training import SelfTraining
from synfoc3d.methods.supervised import Supervised
from synfoc3d.methods.synfoc import SynFoC
from synfoc3d.methods.synfoc_base import SynFoCBase
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import arranged, build_foundation
from synfoc3d.networks.graphs import record_networks
from synfoc3d.networks.optimizers import make_optimizer
from synfoc3d.networks.shortcuts import leave_out
from synfoc3d.nnunet.ranks import Ranks
from synfoc3d.trainers.life_cycle.steps import take_step

METHODS: dict[str, type[Method]] = {
    m.__name__: m
    for m in (Supervised, MeanTeacher, SelfTraining, ACMT, MagicNet, SynFoC, SynFoCBase, CFRFineTuning, CFR, ECT)
}

PLAIN = dict.fromkeys(SpeedSettings.model_fields, False)
"""Settings ``speed`` without any shortcut."""


@dataclass(frozen=True)
class Task:
    """What a step is measured on.

    Attributes:
        method: its class's name.
        network: of SynFoCBase, ``conventional`` or ``foundation``.
        patch: ([D,] H, W) voxels.
        batch: labeled patches, and as many unlabeled ones.
        classes: K, with background.
        foundation: name of the foundation network.
        checkpoint: its weights; None: as found.
        image_size: side at which it sees a slice; None: its default.
        window: slices that it learns from; 0: all.
        checkpointing: recompute its blocks.
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: of the settings.
        plain: measure the step as one would first write it, without all that the settings ``speed`` switch.
        cuda_graphs: the setting ``speed.cuda_graphs``, of steps that are not plain.
    """

    method: str = "SynFoC"
    network: str | None = None
    patch: tuple[int, ...] = (256, 224)
    batch: int = 2
    classes: int = 4
    foundation: str = "compact"
    checkpoint: str | None = RANDOM
    image_size: int | None = None
    window: int = 0
    checkpointing: bool = False
    device: str = "cpu"
    precision: str = "auto"
    plain: bool = False
    cuda_graphs: bool = False


def unet(dimensions: int, classes: int, stages: int = 5) -> nn.Module:
    """Build a U-Net as nnU-Net plans it."""
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions]
    features = [min(32 * 2**i, 512 if dimensions == 2 else 320) for i in range(stages)]
    strides = [1] + [2] * (stages - 1)
    return PlainConvUNet(
        1, stages, features, convolution, 3, strides, 2, classes, 2, True, norm, {"affine": True}, nonlin=nn.LeakyReLU
    )


def training(task: Task, ranks: Ranks | None = None) -> Any:  # noqa: ANN401 - what a step needs of a trainer
    """Build a training, its networks alike in every process."""
    torch.manual_seed(0)
    ranks, kind, device = ranks or Ranks(), METHODS[task.method], torch.device(task.device)
    given = {"name": task.foundation, "checkpointing": task.checkpointing}
    given |= {"image_size": task.image_size} if task.image_size else {}
    if kind.arrangement != "propagation" or task.checkpoint != RANDOM:
        given |= {"checkpoint": task.checkpoint} if task.checkpoint else {}
        given |= {"full_finetune": False} if task.checkpoint == RANDOM else {}  # random weights would train as a whole
    own = {"window": task.window} if "window" in kind.Settings.model_fields else {}
    own |= {"network": task.network} if task.network else {}
    tree = {
        "foundation": given,
        "method": own,
        "precision": task.precision,
        "speed": PLAIN if task.plain else {"cuda_graphs": task.cuda_graphs},
    }
    settings = resolve(tree, kind.Settings)
    foundation, labels = arranged(settings.foundation, kind.arrangement, task.patch), Classes(task.classes)

    def network() -> Arrangement:
        return build_foundation(foundation, task.classes, task.patch)[0]

    build = Builder(
        labels,
        lambda: unet(len(task.patch), task.classes),
        network,
        lambda output, labeled: segmentation_loss(full_resolution(output), labeled.target, labels),
        lambda weak, bounds: strong_view(weak, bounds, settings.augmentation, shown=task.patch[-2:]),
        task.patch,
        lambda *_: network().requires_grad_(False).eval(),
        settings.speed,
    )
    method = kind(settings.method, build).to(device)
    leave_out(method, settings.speed)
    if settings.speed.cuda_graphs and ranks.count == 1:
        record_networks(method)
    trained = {**method.students(), **method.auxiliaries()}
    of_network = {
        name: settings.optimizers.foundation if isinstance(part, Arrangement) else settings.optimizers.conventional
        for name, part in trained.items()
    }
    return SimpleNamespace(
        method=method, students=method.students(), trained=trained, settings=settings, device=device,
        grad_scaler=torch.amp.GradScaler(device.type) if device.type == "cuda" else None, parallel=None,
        labels=SimpleNamespace(space=labels), step=0, num_epochs=100, num_iterations_per_epoch=250, ranks=ranks,
        optimizer_settings=lambda part: next(of_network[name] for name in trained if trained[name] is part),
        optimizers={name: make_optimizer(part, of_network[name]) for name, part in trained.items()},
        part=ranks.part_of(task.batch), batch_size=task.batch,
    )  # fmt: skip


def batch_of(task: Task, trainer: Any) -> Mapping[str, Tensor]:  # noqa: ANN401
    """Draw what a loader would give, as far as it is this process's."""
    own = slice(trainer.part.start, trainer.part.stop)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(task.batch, 1, *task.patch, generator=generator)[own]
    label = torch.randint(task.classes, (task.batch, 1, *task.patch), generator=generator)[own]
    bounds = torch.tensor([-2.0, 2.0]).expand(len(image), 1, 2)
    half = {"data": image, "target": label, "value_range": bounds}
    return half | {f"unlabeled_{key}": value for key, value in half.items()}


def step(trainer: Any, task: Task, batch: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Take one step, and wait for its end."""
    take_step(trainer, dict(batch))
    trainer.step += 1
    if task.device == "cuda":
        torch.cuda.synchronize()


def variants(task: Task) -> dict[str, Task]:
    """Return what a step of SynFoC is compared with, by name."""
    alone = {
        f"{network} alone": replace(task, method="SynFoCBase", network=network)
        for network in ("conventional", "foundation")
    }
    exact = replace(task, precision="float32")
    return {"plain": replace(exact, plain=True), "ours, float32": exact, "ours": task, **alone}
