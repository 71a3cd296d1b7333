"""The state of a pre-training: networks, optimizer and curves, in one file that is written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synfoc3d.checkpoint import save_atomic
from synfoc3d.errors import UserError
from synfoc3d.files.checksums import compare_torch_checksums
from synfoc3d.networks.lora import load_trainable_state, trainable_state
from synfoc3d.pretraining.objectives import Structures
from synfoc3d.pretraining.propagation import Propagation
from synfoc3d.pretraining.settings import PROPAGATION, SETTINGS, STRUCTURES, RunSettings, resolve_pretraining
from synfoc3d.pretraining.task import Task
from synfoc3d.sections import differences, merge

TASKS: dict[str, type[Task[Any, Any]]] = {STRUCTURES: Structures, PROPAGATION: Propagation}


class PretrainingState:
    """What changes during a pre-training.

    Args:
        settings: of the run; their class is that of the objective.
        device: of networks and optimizer.
        start: weights to start from; None is the objective's own start.

    Attributes:
        task: the objective.
        network: trained by gradients.
        average: moving average of what trains, which is validated and shipped.
        step: steps done.
        seconds: time spent on them.
        rows: of the curves, one dict of numbers per validation.
        started_from: SHA-256 of the weights it started from, or None.
    """

    def __init__(self, settings: RunSettings, device: str, start: Path | None = None) -> None:
        self.settings = settings
        self.objective = next(name for name, kind in SETTINGS.items() if type(settings) is kind)
        self.task = TASKS[self.objective](settings)
        torch.manual_seed(settings.seed)
        self.network, self.started_from = self.task.build(start)
        self.network.to(device)
        self.average: nn.Module = self.task.copy(self.network)
        self.optimizer = torch.optim.AdamW(
            _trained(self.network), settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.step = 0
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []

    def update(self, loss: Tensor) -> None:
        """Step the optimizer and the average for a loss (scalar); the learning rate rises linearly, then stays."""
        settings = self.settings
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(_trained(self.network), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (self.step + 1) / (settings.warmup_steps + 1))
        self.optimizer.step()
        self.step += 1
        # early on, the average forgets the random weights faster than its decay says
        decay = min(settings.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, weight in zip(_trained(self.average), _trained(self.network), strict=True):
                mean.lerp_(weight, 1 - decay)

    def save(self, file: Path) -> None:
        """Write all of it, so that a continued run goes on as if never interrupted."""
        save_atomic(
            {
                "objective": self.objective,
                "settings": self.settings.model_dump(mode="json"),
                "network": trainable_state(self.network),
                "average": trainable_state(self.average),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "rows": self.rows,
                "started_from": self.started_from,
            },
            file,
        )


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def load_state(file: Path, given: Mapping[str, Any], objective: str | None, device: str) -> PretrainingState:
    """Read the state of an interrupted run. More steps may be asked for; everything else stays as it was.

    Args:
        file: ``checkpoint_latest.pth``.
        given: settings the user gave now, a partial tree.
        objective: what the user named now, if anything.
        device: of networks and optimizer.

    Raises:
        UserError: no such file, damaged, no checkpoint of a pre-training, or other settings were given.
    """
    content = _read(file)
    own = content.get("objective", STRUCTURES)  # version 0.1 had one objective
    if objective not in (None, own):
        raise UserError(f"{file} is of --objective {own}: continue it without --objective {objective}.")
    saved = resolve_pretraining(content["settings"], str(file), own)
    settings = resolve_pretraining(merge(content["settings"], given), objective=own)
    changed = [key for key in differences(settings, saved) if key != "steps"]
    if changed:
        raise UserError(
            f"{file} was trained with other settings ({', '.join(changed)}): continue with those (only steps may "
            "change), or train into another folder."
        )
    state = PretrainingState(settings, device)
    if state.started_from not in (None, content["started_from"]):
        raise UserError(
            f"{file} was trained on weights of SHA-256 {content['started_from']}, but those that are found now have "
            f"{state.started_from}: restore them, or train into another folder."
        )
    load_trainable_state(state.network, content["network"])
    load_trainable_state(state.average, content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.seconds = content["step"], content["seconds"]
    state.rows, state.started_from = content["rows"], content["started_from"]
    return state


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} does not exist, so there is nothing to continue: pre-train without --c.")
    try:
        compare_torch_checksums(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = " ".join(str(error).split("\n")[:1]) or type(error).__name__
        raise UserError(f"{file} cannot be read ({reason}): pre-train anew, without --c.") from None
    if not isinstance(content, dict) or not {"settings", "average", "optimizer"} <= set(content):
        raise UserError(f"{file} is no checkpoint of a pre-training: give the folder of one with -o.")
    return content
