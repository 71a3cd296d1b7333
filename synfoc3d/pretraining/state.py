"""The state of a pre-training: networks, optimizer and curves, in one file that is written whole or not at all."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synfoc3d.checkpoint import save_atomic
from synfoc3d.errors import UserError
from synfoc3d.networks.architectures import find_architecture
from synfoc3d.networks.foundation import FoundationNetwork, build_sam
from synfoc3d.networks.weights.loading import load_checkpoint
from synfoc3d.pretraining.settings import PretrainSettings, resolve_pretraining
from synfoc3d.sections import differences, merge

ARCHITECTURE = "compact"


class PretrainingState:
    """What changes during a pre-training.

    Args:
        settings: of the run.
        device: of networks and optimizer.
        start: weights to start from, in segment-anything's names; None starts from random ones.

    Attributes:
        network: trained by gradients.
        average: moving average of its weights, which is validated and shipped.
        step: steps done.
        seconds: time spent on them.
        rows: of the curves, one dict of numbers per validation.
        started_from: SHA-256 of the weights it started from, or None.
    """

    def __init__(self, settings: PretrainSettings, device: str, start: Path | None = None) -> None:
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.network: FoundationNetwork = build_sam(
            ARCHITECTURE, settings.image_size, find_architecture(ARCHITECTURE).mask_tokens
        )
        self.started_from = load_checkpoint(self.network, start) if start else None
        self.network.to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.step = 0
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []

    def update(self, loss: Tensor) -> None:
        """Take one step of the optimizer and of the average; the learning rate rises linearly, then stays."""
        settings = self.settings
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (self.step + 1) / (settings.warmup_steps + 1))
        self.optimizer.step()
        self.step += 1
        # early on, the average forgets the random weights faster than its decay says
        decay = min(settings.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)

    def save(self, file: Path) -> None:
        """Write all of it, so that a continued run goes on as if never interrupted."""
        save_atomic(
            {
                "settings": self.settings.model_dump(mode="json"),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "rows": self.rows,
                "started_from": self.started_from,
            },
            file,
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the average's weights in half precision, in segment-anything's names."""
        return {name: value.detach().half().cpu() for name, value in self.average.state_dict().items()}


def load_state(file: Path, given: Mapping[str, Any], device: str) -> PretrainingState:
    """Read the state of an interrupted run. More steps may be asked for; everything else stays as it was.

    Args:
        file: ``checkpoint_latest.pth``.
        given: settings the user gave now, a partial tree.
        device: of networks and optimizer.

    Raises:
        UserError: no such file, damaged, no checkpoint of a pre-training, or other settings were given.
    """
    content = _read(file)
    saved = resolve_pretraining(content["settings"], str(file))
    settings = resolve_pretraining(merge(content["settings"], given))
    changed = [key for key in differences(settings, saved) if key != "steps"]
    if changed:
        raise UserError(
            f"{file} was trained with other settings ({', '.join(changed)}): continue with those (only steps may "
            "change), or train into another folder."
        )
    state = PretrainingState(settings, device)
    state.network.load_state_dict(content["network"])
    state.average.load_state_dict(content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.seconds = content["step"], content["seconds"]
    state.rows, state.started_from = content["rows"], content["started_from"]
    return state


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} does not exist, so there is nothing to continue: pre-train without --c.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = " ".join(str(error).split("\n")[:1]) or type(error).__name__
        raise UserError(f"{file} cannot be read ({reason}): pre-train anew, without --c.") from None
    if not isinstance(content, dict) or not {"settings", "average", "optimizer"} <= set(content):
        raise UserError(f"{file} is no checkpoint of a pre-training: give the folder of one with -o.")
    return content
