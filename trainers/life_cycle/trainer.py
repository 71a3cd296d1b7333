"""nnU-Net's life cycle around a Method: data streams, optimizers, precision, checkpoints, curves, validation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d import config
from synfoc3d.errors import UserError
from synfoc3d.files import layout
from synfoc3d.files.atomic import atomic_write_text
from synfoc3d.files.splits import Split, read_splits
from synfoc3d.losses.segmentation import segmentation_loss
from synfoc3d.methods.augmentation import is_color, strong_view
from synfoc3d.methods.base import Labeled, Method, Panel, Progress, full_resolution
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import arranged
from synfoc3d.networks.in_plane import in_plane_size
from synfoc3d.networks.optimizers import current_learning_rate, learning_rate, make_optimizer, set_learning_rate
from synfoc3d.networks.precision import autocast, resolve_precision
from synfoc3d.networks.weights.provenance import provenance
from synfoc3d.nnunet.labels import DatasetLabels
from synfoc3d.nnunet.training import data_facts, refuse_stage
from synfoc3d.trainers.life_cycle.batches import labeled_stream, make_batch
from synfoc3d.trainers.life_cycle.best_epoch import BestEpoch
from synfoc3d.trainers.life_cycle.building import make_builder
from synfoc3d.trainers.life_cycle.curves import EpochLog, epoch_means
from synfoc3d.trainers.life_cycle.data import UnlabeledCases, seed_everything
from synfoc3d.trainers.life_cycle.duration import DurationLog
from synfoc3d.trainers.life_cycle.earlier_stage import with_foundation_of
from synfoc3d.trainers.life_cycle.final_validation import validate_rest
from synfoc3d.trainers.life_cycle.loaders import paired_loaders
from synfoc3d.trainers.life_cycle.raw_changes import note_origins, warn_of_changes
from synfoc3d.trainers.life_cycle.saving import checkpoint_of, restore
from synfoc3d.trainers.life_cycle.validation import (
    HITS,
    count_hits,
    logits_on_net_grid,
    mean_dice,
)
from synfoc3d.trainers.life_cycle.whole_volumes import VOLUMES, Views, in_plane_views, whole_volumes


class SemiSupervisedTrainer(nnUNetTrainer):
    """Base of every synfoc3d trainer; a subclass names its :class:`~synfoc3d.methods.base.Method`.

    Settings arrive through the environment variable SYNFOC3D_CONFIG, since nnU-Net fixes the constructor's parameters;
    a continued training takes them from its checkpoint.
    """

    method_class: ClassVar[type[Method]]
    configuration_manager: ConfigurationManager

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        self.data_facts = data_facts(plans, configuration, dataset_json)
        # before nnU-Net makes folders
        settings = self.complete(config.from_environment(self.method_class.Settings, self.data_facts))
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:
            raise UserError("synfoc3d trainers run on one device: leave out -num_gpus.")
        refuse_stage(self.plans_manager, configuration)
        if self.method_class.walks_volumes:
            self.configuration_manager = whole_volumes(self.plans_manager, self.configuration_manager)
            self.oversample_foreground_percent = 0.0  # nnU-Net would shift the volume to center a class
        folder = Path(self.preprocessed_dataset_folder_base)
        self.labels = DatasetLabels(self.label_manager, dataset_json, folder)
        self.foundation_identity: dict[str, Any] = {
            "name": None,
            "checkpoint": None,
            "sha256": None,
            "in_checkpoint": True,
        }
        self.labeled_cases: list[str] = []  # known once there are data
        self.earlier_stage: dict[str, str] | None = None  # the training whose network this one learns from
        self.training_id: str | None = uuid4().hex  # tells the checkpoints of this training from those of another
        self.resume_random_state: Mapping[str, Any] | None = None
        self.last_save = time()
        self.duration = DurationLog(self)
        self.apply_settings(settings)

    # --- settings -------------------------------------------------------------------------------------------------

    def complete(self, settings: config.Settings) -> config.Settings:
        """Fill in what the method decides where the settings leave it open.

        Raises:
            UserError: settings that the method or the configuration does not allow.
        """
        foundation = arranged(settings.foundation, self.method_class.arrangement, self.data_facts.patch_size)
        return settings.model_copy(update={"foundation": foundation})

    def apply_settings(self, settings: config.Settings) -> None:
        """Hand the settings to nnU-Net's own attributes; called before anything is built."""
        self.settings = settings
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.val_iterations_per_epoch
        # the network that nnU-Net builds for its patches has no part in a training on volumes
        self.enable_deep_supervision = settings.conventional.deep_supervision and not self.method_class.walks_volumes
        self.initial_lr = settings.optimizers.conventional.lr
        self.weight_decay = settings.optimizers.conventional.weight_decay
        if resolve_precision(settings.precision, self.device.type) != "float16" or self.device.type != "cuda":
            self.grad_scaler = None  # only float16 needs its losses scaled

    def _set_batch_size_and_oversample(self) -> None:
        by_plan = VOLUMES if self.method_class.walks_volumes else self.configuration_manager.batch_size
        self.batch_size = self.settings.batch_size or by_plan

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Views:
        """Return nnU-Net's choice of the weak view; all slices of a volume of a 2d plan are turned alike."""
        of_patches = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size
        walks = self.method_class.walks_volumes
        return in_plane_views(self.configuration_manager, of_patches) if walks else of_patches()

    def _do_i_compile(self) -> bool:
        """Return False: teachers are copies of students, which a compiled network does not allow."""
        return False

    # --- networks and optimizers ----------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Build everything from the seed."""
        seed_everything(self.settings.seed)
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, _NoSchedule]:
        """Build the method around nnU-Net's network, and one optimizer per student; returns the first one's."""
        self.method = self.method_class(self.settings.method, make_builder(self)).to(self.device)
        if self.method.remark:
            self.print_to_log_file(self.method.remark)
        self.students = dict(self.method.students())
        self.trained = self.students | dict(self.method.auxiliaries())
        self.optimizers = {name: self._optimizer(network) for name, network in self.trained.items()}
        self.first = next(iter(self.students))  # whose best epoch nnU-Net follows itself
        self.best_epochs = {name: BestEpoch() for name in self.students if name != self.first}
        first = next(iter(self.optimizers.values()))
        return first, _NoSchedule()

    def _optimizer_settings(self, network: nn.Module) -> config.OptimizerSettings:
        kinds = self.settings.optimizers
        return kinds.foundation if isinstance(network, Arrangement) else kinds.conventional

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(network, self._optimizer_settings(network))

    def supervised_loss(self, output: Tensor | list[Tensor], labeled: Labeled) -> Tensor:
        """Compute the labeled loss of the conventional network (scalar): nnU-Net's own, or the paper's CE + Dice."""
        known = labeled.target.known
        if self.settings.conventional.loss == "paper":
            return segmentation_loss(full_resolution(output), labeled.target, self.labels.space)
        if self.enable_deep_supervision:
            return self.loss([self.labels.space.marginal(level, known) for level in output], labeled.pyramid)
        return self.loss(self.labels.space.marginal(full_resolution(output), known), labeled.pyramid[0])

    # --- data -----------------------------------------------------------------------------------------------------

    @property
    def preprocessed(self) -> Path:
        """Folder of this configuration's preprocessed labeled cases."""
        return Path(self.preprocessed_dataset_folder)

    @property
    def preprocessed_unlabeled(self) -> Path:
        """Folder of this configuration's preprocessed unlabeled cases."""
        return layout.unlabeled_folder(self.preprocessed)

    def split(self) -> Split:
        """Return the semi-supervised split of this fold."""
        return read_splits(Path(self.preprocessed_dataset_folder_base), self.fold)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return labeled and validation cases; without any of the latter the labeled ones, as nnU-Net's fold all."""
        split = self.split()
        if not split.val:
            self.print_to_log_file("The split holds no validation case: curves and validation show the training cases.")
        return list(split.labeled), list(split.val or split.labeled)

    def unlabeled_folders(self) -> dict[str, Path]:
        """Return where each unlabeled case of this fold was preprocessed."""
        if not self.method_class.uses_unlabeled:
            return {}
        in_own_folder = set(UnlabeledCases.get_identifiers(str(self.preprocessed_unlabeled)))
        cases = self.split().unlabeled
        if not cases:
            raise UserError(f"The split of fold {self.fold} holds no unlabeled case: run synfoc3d split anew.")
        return {c: self.preprocessed_unlabeled if c in in_own_folder else self.preprocessed for c in cases}

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Make batches of training and online validation from here on; labeled and unlabeled share the workers."""
        return paired_loaders(self)

    def strong_view(self, weak: Tensor, value_range: Tensor) -> Tensor:
        """Make the strong view of weak patches (B, C, [D,] H, W) with their ranges (B, C, 2), as the settings say."""
        color = is_color(self.configuration_manager.normalization_schemes)
        shown = self.shown_size(in_plane_size(weak))
        return strong_view(weak, value_range, self.settings.augmentation, shown=shown, color=color)

    def shown_size(self, in_plane: tuple[int, int]) -> tuple[int, int]:
        """Return at which size in pixels, to which the strong view's blur refers, a foundation student sees a slice."""
        sizes = [student.shown_size(in_plane) for student in self.students.values() if isinstance(student, Arrangement)]
        side = self.settings.foundation.image_size or max(self.configuration_manager.patch_size)
        return sizes[0] if sizes else (side, side)

    # --- training -------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Start as nnU-Net does, with the resolved settings written beside the results."""
        super().on_train_start()
        foundation = self.foundation_identity | self._provenance()
        facts = {"earlier_stage": self.earlier_stage} if self.earlier_stage else {}
        note_origins(self)
        text = config.to_yaml(self.settings, trainer=type(self).__name__, foundation=foundation, **facts)
        atomic_write_text(Path(self.output_folder) / layout.SETTINGS_FILE, text)
        self.curves = EpochLog(Path(self.output_folder), self.panels(), self.current_epoch)
        if self.resume_random_state is not None:
            checkpoints.restore_random_state(self.resume_random_state)
            self.resume_random_state = None

    def _provenance(self) -> dict[str, str]:
        """Say where the foundation weights come from and whether they have seen this dataset, and return it."""
        dataset = self.plans_manager.dataset_name
        found = provenance(self.settings.foundation.model_dump(), self.foundation_identity, dataset)
        if found is None:
            return {}
        self.print_to_log_file(found.sentence(dataset))
        return found.facts()

    def panels(self) -> list[Panel]:
        """Return the curves of this training's picture: the loss, the method's own, validation and learning rates."""
        val_dice = tuple(f"val_dice_{name}" for name in self.students)
        rates = tuple(f"lr_{name}" for name in self.trained)
        validation = Panel("validation Dice", val_dice, is_share=True)
        return [Panel("loss", ("loss",)), *self.method.panels, validation, Panel("learning rate", rates)]

    def on_train_epoch_start(self) -> None:
        """Start an epoch as nnU-Net does, every network in train mode and every learning rate at this epoch."""
        self.step = self.current_epoch * self.num_iterations_per_epoch
        self._set_learning_rates()
        super().on_train_epoch_start()
        self.method.train()
        self.duration.start_epoch()

    def train_step(self, batch: dict) -> dict:
        """Take one step of every student; return plain numbers to log."""
        self._set_learning_rates()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        total = self.num_epochs * self.num_iterations_per_epoch
        # in full precision: a blur with weights of 8 bits shifts the gray values
        views = make_batch(
            batch, self.device, self.settings.foundation.intensity, self.method.strong_view, self.labels.space
        )
        with autocast(self.settings.precision, self.device.type):
            loss, logs = self.method.training_step(views, Progress(self.step, total))
        if self.grad_scaler is None:
            loss.backward()
        else:
            self.grad_scaler.scale(loss).backward()
        for name, optimizer in self.optimizers.items():
            self._optimize(optimizer, self.trained[name])
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        self.method.update_teachers(self.step)
        self.step += 1
        scalars = [
            torch.as_tensor(value, dtype=torch.float32, device=loss.device) for value in (loss.detach(), *logs.values())
        ]
        values = torch.stack(scalars).cpu().tolist()  # one transfer
        self.duration.count_step()
        return dict(zip(("loss", *logs), values, strict=True))

    def _set_learning_rates(self) -> None:
        for name, optimizer in self.optimizers.items():
            settings = self._optimizer_settings(self.trained[name])
            rate = learning_rate(
                settings, step=self.step, steps_per_epoch=self.num_iterations_per_epoch, epochs=self.num_epochs
            )
            set_learning_rate(optimizer, rate)

    def _optimize(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(optimizer)
        largest = self._optimizer_settings(network).gradient_norm
        if largest is not None:
            nn.utils.clip_grad_norm_(network.parameters(), largest)
        if self.grad_scaler is None:
            optimizer.step()
        else:
            self.grad_scaler.step(optimizer)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log as nnU-Net does, and the means of our own values."""
        super().on_train_epoch_end([{"loss": output["loss"]} for output in train_outputs])
        means = epoch_means(train_outputs)
        means |= {f"lr_{name}": current_learning_rate(o) for name, o in self.optimizers.items()}
        self.curves.add(self.current_epoch, means)
        for name, value in means.items():
            self.print_to_log_file(f"{name} {value:.4g}", also_print_to_console=False)

    # --- online validation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Put every student into evaluation mode."""
        self.method.eval()

    def validation_step(self, batch: dict) -> dict:
        """Do nnU-Net's step for the conventional student, and count the same for all others, named before each key."""
        image, pyramid, value_range, known = labeled_stream(batch, self.device, self.labels.space)
        target = self.labels.space.target(pyramid[0], known)
        result: dict[str, np.ndarray] = {}
        for name, student in self.students.items():
            with autocast(self.settings.precision, self.device.type):
                logits = logits_on_net_grid(student, image, value_range)
            result |= {f"{name}/{key}": value for key, value in count_hits(logits, target, self.labels.space).items()}
        return result

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Feed nnU-Net's log by the first student, the curves by every student's mean foreground Dice."""
        of_first = [{key: output[f"{self.first}/{key}"] for key in HITS} for output in val_outputs]
        super().on_validation_epoch_end(of_first)
        self.val_dice = {name: mean_dice(val_outputs, name) for name in self.students}
        self.curves.add(self.current_epoch, {f"val_dice_{name}": dice for name, dice in self.val_dice.items()})

    def on_epoch_end(self) -> None:
        """End as nnU-Net does, but write checkpoint_latest by the clock; add curves and every student's best epoch."""
        due = time() - self.last_save >= 60 * self.settings.save_every_minutes
        self.save_every = 1 if due else sys.maxsize
        self.curves.write()  # before the checkpoint, so that a kill in between loses no row of the table
        for name, best in self.best_epochs.items():
            if best.is_reached(self.val_dice[name]):
                self.print_to_log_file(f"New best EMA pseudo Dice ({name}): {best.best:.4f}")
                self.save_checkpoint(str(Path(self.output_folder) / layout.best_checkpoint(name, self.first)))
        super().on_epoch_end()
        if due:
            self.last_save = time()
        self.duration.end_epoch()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Write a valid nnU-Net checkpoint with our section: networks without frozen base, optimizers, random state."""
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoints.save_atomic(checkpoint_of(self), Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue exactly where a checkpoint was written, with its settings.

        Raises:
            UserError: unreadable checkpoint, changed base weights, or settings given that differ from its own.
        """
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = checkpoints.load(Path(checkpoint))
        section = checkpoints.section_of(checkpoint, type(self).__name__)
        if not self.was_initialized:
            saved = self.complete(checkpoints.saved_settings(section, self.method_class.Settings, self.data_facts))
            given = self.settings
            if section.get("earlier_stage"):
                given = with_foundation_of(saved, given, self.complete(config.Settings()).foundation)
            config.refuse_difference(given=given, saved=saved)
            self.apply_settings(saved)
            self.initialize()
        restore(self, checkpoint)

    # --- final validation -----------------------------------------------------------------------------------------

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate nnU-Net's network as nnU-Net does, then every other way to predict; keep which of them is best."""
        warn_of_changes(self)
        self.method.eval()
        if any(student is self.network for student in self.students.values()):
            super().perform_actual_validation(save_probabilities)
        validate_rest(self)


class _NoSchedule:
    """Stands in nnU-Net's slot for one scheduler; learning rates are set at every step."""

    def step(self, epoch: int) -> None:
        """Do nothing."""
