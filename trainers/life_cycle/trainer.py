"""nnU-Net's life cycle around a Method: data streams, optimizers, precision, checkpoints, curves, validation."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from time import time
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from synfoc3d import checkpoint as checkpoints
from synfoc3d import config
from synfoc3d.errors import UserError
from synfoc3d.files import layout
from synfoc3d.files.locks import Lock
from synfoc3d.files.splits import Split, read_splits
from synfoc3d.methods.augmentation import is_color, strong_view
from synfoc3d.methods.base import Method
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.build import arranged
from synfoc3d.networks.graphs import record_networks
from synfoc3d.networks.in_plane import in_plane_size
from synfoc3d.networks.optimizers import current_learning_rate, learning_rate, make_optimizer, set_learning_rate
from synfoc3d.networks.precision import autocast, resolve_precision
from synfoc3d.networks.shortcuts import leave_out
from synfoc3d.nnunet.labels import DatasetLabels
from synfoc3d.nnunet.training import data_facts, refuse_stage
from synfoc3d.optimizer_settings import OptimizerSettings
from synfoc3d.trainers.life_cycle.batches import labeled_stream
from synfoc3d.trainers.life_cycle.best_epoch import BestEpoch
from synfoc3d.trainers.life_cycle.building import make_builder
from synfoc3d.trainers.life_cycle.continuing import open_checkpoint, settings_to_continue
from synfoc3d.trainers.life_cycle.curves import EpochLog, epoch_means
from synfoc3d.trainers.life_cycle.data import UnlabeledCases, seed_everything
from synfoc3d.trainers.life_cycle.dependencies import refuse_other_training, tell_other_machine
from synfoc3d.trainers.life_cycle.duration import DurationLog
from synfoc3d.trainers.life_cycle.final_validation import validate
from synfoc3d.trainers.life_cycle.health import Health
from synfoc3d.trainers.life_cycle.loaders import paired_loaders
from synfoc3d.trainers.life_cycle.parallel import check_equal, refuse_unshared
from synfoc3d.trainers.life_cycle.plain_log import AVERAGE, PlainLog
from synfoc3d.trainers.life_cycle.raw_changes import note_origins, warn_of_changes
from synfoc3d.trainers.life_cycle.records import make_curves, write_settings
from synfoc3d.trainers.life_cycle.run_folder import only_training, refuse_other_folds, remove_scores
from synfoc3d.trainers.life_cycle.running import run
from synfoc3d.trainers.life_cycle.saving import Continued, checkpoint_of, restore, save_best
from synfoc3d.trainers.life_cycle.shared_training import SharedTraining
from synfoc3d.trainers.life_cycle.steps import take_step
from synfoc3d.trainers.life_cycle.validation import HITS, count_hits, logits_on_net_grid, mean_dice
from synfoc3d.trainers.life_cycle.whole_volumes import VOLUMES, Views, in_plane_views, whole_volumes

NO_FOUNDATION = {"name": None, "checkpoint": None, "sha256": None, "in_checkpoint": True}


class SemiSupervisedTrainer(SharedTraining):
    """Base of every synfoc3d trainer; a subclass names its :class:`~synfoc3d.methods.base.Method`.

    Settings arrive through the environment variable SYNFOC3D_CONFIG, since nnU-Net fixes the constructor's parameters;
    a continued training takes them from its checkpoint.
    """

    method_class: ClassVar[type[Method]]
    configuration_manager: ConfigurationManager
    _best_ema: float | None  # nnU-Net's

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        self.continues = bool(plans.get("continue_training"))  # which nnU-Net takes out
        self.data_facts = data_facts(plans, configuration, dataset_json)
        # before nnU-Net makes folders
        settings = self.complete(config.from_environment(self.method_class.Settings, self.data_facts))
        self.find_ranks()
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.join_ranks(device)
        refuse_stage(self.plans_manager, configuration)
        if self.method_class.walks_volumes:
            self.configuration_manager = whole_volumes(self.plans_manager, self.configuration_manager)
            self.oversample_foreground_percent = 0.0  # nnU-Net would shift the volume to center a class
        self.labels = DatasetLabels(self.label_manager, dataset_json, Path(self.preprocessed_dataset_folder_base))
        self.foundation_identity: dict[str, Any] = NO_FOUNDATION
        self.labeled_cases: list[str] = []  # known, as what follows, once there are data
        self.depends_on: dict[str, Any] = {}  # what, besides settings, a continued training must find as it was
        self.earlier_stage: dict[str, str] | None = None  # the training whose network this one learns from
        self.training_id: str | None = uuid4().hex  # tells the checkpoints of this training from those of another
        self.continued: Continued | None = None
        self.lock: Lock | None = None  # of the folder, while it is trained
        self.epochs_done = 0
        self.steps_of_epoch: list[dict[str, float]] = []  # what they have logged
        self.random_after_steps: dict[str, Any] | None = None  # while validation, which changes nothing, goes on
        self.last_save = time()
        self.duration, self.health = DurationLog(self), Health(self)
        self.logger.__class__ = PlainLog  # nnU-Net made it, perhaps with a connection to a server
        self.curves = EpochLog(Path(self.output_folder))
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
        self.part = self.ranks.part_of(self.settings.batch_size or by_plan)
        self.batch_size = self.part.size

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
        leave_out(self.method, self.settings.speed)
        if self.settings.speed.cuda_graphs and self.ranks.count == 1:
            record_networks(self.method)
        if self.method.remark:
            self.print_to_log_file(self.method.remark)
        self.students = dict(self.method.students())
        self.trained = self.students | dict(self.method.auxiliaries())
        self.optimizers = {name: self._optimizer(network) for name, network in self.trained.items()}
        self.first = next(iter(self.students))  # whose best epoch nnU-Net follows itself
        self.best_epochs = {name: BestEpoch() for name in self.students if name != self.first}
        refuse_unshared(self)
        first = next(iter(self.optimizers.values()))
        return first, _NoSchedule()

    def optimizer_settings(self, network: nn.Module) -> OptimizerSettings:
        """Return the settings of a network's optimizer."""
        kinds = self.settings.optimizers
        return kinds.foundation if isinstance(network, Arrangement) else kinds.conventional

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(network, self.optimizer_settings(network))

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

    def run_training(self) -> None:
        """Train in a folder that is this training's alone; see :func:`~synfoc3d.trainers.life_cycle.running.run`."""
        run(self)

    def on_train_start(self) -> None:
        """Start as nnU-Net does, with the resolved settings written beside the results."""
        if self.ranks.is_first:
            refuse_other_folds(self)
        super().on_train_start()
        if self.ranks.is_first:
            note_origins(self)
            write_settings(self)
        self.curves = make_curves(self)
        if self.continued is not None:
            tell_other_machine(self, self.continued.depends_on)
            self.steps_of_epoch = list(self.continued.steps)
            checkpoints.restore_random_state(self.continued.random)

    def on_train_epoch_start(self) -> None:
        """Start an epoch as nnU-Net does, every network in train mode and every learning rate at this epoch."""
        self.step = self.current_epoch * self.num_iterations_per_epoch
        self._set_learning_rates()
        super().on_train_epoch_start()
        self.step += len(self.steps_of_epoch)
        self.method.train()
        self.duration.start_epoch()

    def train_step(self, batch: dict) -> dict:
        """Take one step of every student; return plain numbers to log.

        Raises:
            UserError: the training cannot be right any more, or the device has too little memory.
        """
        self._set_learning_rates()
        values, views = take_step(self, batch)
        self.step += 1
        self.health.check_step(values, views)
        self.duration.count_step()
        return values

    def _set_learning_rates(self) -> None:
        for name, optimizer in self.optimizers.items():
            settings = self.optimizer_settings(self.trained[name])
            rate = learning_rate(
                settings, step=self.step, steps_per_epoch=self.num_iterations_per_epoch, epochs=self.num_epochs
            )
            set_learning_rate(optimizer, rate)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log as nnU-Net does, and the means of our own values."""
        super().on_train_epoch_end([{"loss": output["loss"]} for output in train_outputs])
        means = epoch_means(train_outputs)
        means |= {f"lr_{name}": current_learning_rate(o) for name, o in self.optimizers.items()}
        self.curves.add(self.current_epoch, means)
        for name, value in means.items():
            self.print_to_log_file(f"{name} {value:.4g}", also_print_to_console=False)
        if doubt := self.method.doubt_about(means):
            self.print_to_log_file(doubt)

    # --- online validation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Put every student into evaluation mode."""
        self.method.eval()

    def validation_step(self, batch: dict) -> dict:
        """Count loss, hits and misses of every student as nnU-Net's step does, in voxels, as ``<student>/<key>``."""
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
        """End as nnU-Net does; write curves, every student's best epoch, and checkpoint_latest by the clock."""
        self.health.check_state()
        check_equal(self)
        self.epochs_done = self.current_epoch + 1
        self.steps_of_epoch, self.random_after_steps = [], None
        if self.ranks.is_first:
            self.logger.draws = self.curves.write(is_last=self.epochs_done == self.num_epochs)
        best = self._new_best()
        self.save_every = sys.maxsize  # what nnU-Net would save here lacks the end of the epoch
        super().on_epoch_end()
        for name, average in best.items():
            self.print_to_log_file(f"New best EMA pseudo Dice ({name}): {average:.4f}")
        save_best(self, best)
        if self.epochs_done < self.num_epochs and time() - self.last_save >= 60 * self.settings.save_every_minutes:
            self.save_checkpoint(str(Path(self.output_folder) / layout.CHECKPOINT_LATEST))
            self.last_save = time()
        self.duration.end_epoch()

    def _new_best(self) -> dict[str, float | None]:
        """Return the average of each student that is at its best; nnU-Net's own, from which one may go on, is last."""
        best = {name: one.best for name, one in self.best_epochs.items() if one.is_reached(self.val_dice[name])}
        average = self.logger.get_value(AVERAGE, -1)
        if self._best_ema is None or math.isnan(self._best_ema) or average > self._best_ema:
            self._best_ema = best[self.first] = average
        return best

    def on_train_end(self) -> None:
        """End as nnU-Net does; figures of a final validation before it are of another final epoch."""
        if self.ranks.is_first and self.continued is not None and self.epochs_done > self.continued.epochs:
            remove_scores(self)
        super().on_train_end()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Write a valid nnU-Net checkpoint with our section: networks without frozen base, optimizers, random state.

        Raises:
            UserError: a weight is no number, or the folder is another process's by now.
        """
        if not self.ranks.is_first:  # all have the same
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        if self.lock is not None:
            self.lock.check()
        self.health.check_state()
        checkpoints.save_atomic(checkpoint_of(self), Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Continue exactly where a checkpoint was written, with its settings.

        Raises:
            UserError: unreadable checkpoint, one of another training or of other data, changed base weights, or
                settings given that differ from its own.
        """
        checkpoint, file = open_checkpoint(filename_or_checkpoint, furthest=self.continues)
        with checkpoints.as_written(file):
            section = checkpoints.section_of(checkpoint, type(self).__name__)
            refuse_other_training(self, checkpoint, file)
            saved = self.complete(checkpoints.saved_settings(section, self.method_class.Settings, self.data_facts))
        if not self.was_initialized:
            self.apply_settings(settings_to_continue(self, saved))
            self.initialize()
        with checkpoints.as_written(file):
            restore(self, checkpoint)

    # --- final validation -----------------------------------------------------------------------------------------

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate every way to predict, nnU-Net's network as nnU-Net does; keep which of them is best.

        Raises:
            UserError: another process is at work in the folder.
        """
        warn_of_changes(self)
        self.method.eval()
        with self.ranks.only_first(only_training(Path(self.output_folder))), self.ranks.ending_together():
            validate(self, save_probabilities=save_probabilities)


class _NoSchedule:
    """Stands in nnU-Net's slot for one scheduler; learning rates are set at every step."""

    def step(self, epoch: int) -> None:
        """Do nothing."""
