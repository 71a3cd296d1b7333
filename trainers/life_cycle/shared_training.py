"""nnU-Net's trainer as one of several processes that train together, in another way than nnU-Net's own."""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d.nnunet.ranks import Ranks
from synfoc3d.nnunet.shared_loss import over_ranks


class SharedTraining(nnUNetTrainer):
    """Writes files by the first process alone; nnU-Net takes every process for the only one.

    nnU-Net's way of several processes wraps its one network, counts on equal parts of a batch, and takes a process's
    number for that of a GPU.
    """

    ranks: Ranks

    def find_ranks(self) -> None:
        """Find the processes that this one is among, before anything is written."""
        self.ranks = Ranks.around()
        self.parallel: nn.Module | None = None  # the method, once the first step of this process has shown what learns
        if not self.ranks.is_first:
            os.environ["nnUNet_wandb_enabled"] = "0"  # the first one reports

    def join_ranks(self, device: torch.device) -> None:
        """Take the place among them; called when nnU-Net has looked whether there are any.

        Args:
            device: that was asked for.

        Raises:
            UserError: there are not enough GPUs.
        """
        self.is_ddp, self.local_rank = False, self.ranks.rank
        if self.ranks.count > 1:
            self.device = self.ranks.device(device)
            self.ranks.connect(self.device)

    def print_to_log_file(self, *args: object, **options: bool) -> None:
        """Write into the log and onto the screen, by the first process alone."""
        if self.ranks.is_first:
            super().print_to_log_file(*args, **options)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Turn the auxiliary outputs of nnU-Net's network on or off, which no process has wrapped."""
        self.network.decoder.deep_supervision = enabled

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        return loss if self.ranks.count == 1 else over_ranks(loss)

    def on_train_start(self) -> None:
        """Start as nnU-Net does; all processes from the same random numbers."""
        if self.ranks.is_first:
            super().on_train_start()
        else:  # the same without files
            if not self.was_initialized:
                self.initialize()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
            self.set_deep_supervision_enabled(self.enable_deep_supervision)
        if self.ranks.count > 1:
            checkpoints.restore_random_state(self.ranks.of_first(checkpoints.random_state()))
