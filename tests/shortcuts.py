"""What nnU-Net spends seconds on that no test looks at, made short."""

import json
import multiprocessing
import os
from multiprocessing.context import ForkContext
from multiprocessing.pool import ThreadPool

import pytest


class Workers(ForkContext):
    """Forks processes, as each spawned one takes seconds, and makes threads of the many pools that nnU-Net opens."""

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None):
        return ThreadPool(processes, initializer, initargs)


def start_no_pools(patch):
    """Let what asks for new processes have :class:`Workers`."""
    workers = Workers()
    patch.setattr(multiprocessing, "get_context", lambda method=None: workers)
    patch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)  # twelve processes, to list the cases of a folder


def sample_few_voxels(patch):
    """Describe intensities by 1000 voxels of a case, not by a hundred million of a dataset, which are drawn anew."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    collect = DatasetFingerprintExtractor.collect_foreground_intensities

    def collect_few(segmentation, images, seed=1234, num_samples=1000):
        return collect(segmentation, images, seed, min(num_samples, 1000))

    patch.setattr(DatasetFingerprintExtractor, "collect_foreground_intensities", staticmethod(collect_few))


def skip_pictures(patch):
    """Draw no curves after an epoch: it takes longer than the training of a tiny network."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from synfoc3d.trainers.life_cycle.curves import EpochLog

    patch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)
    patch.setattr(EpochLog, "_draw", lambda *_: None)


def build_small_networks(patch):
    """Give a compact network that starts from random weights two narrow blocks in place of its six."""
    from synfoc3d import checkpoint as checkpoints
    from synfoc3d.config import RANDOM
    from synfoc3d.networks import build
    from synfoc3d.networks.architectures import ARCHITECTURES, Architecture
    from synfoc3d.networks.encoders.vit import ViTSizes

    blocks = ViTSizes(embed_dim=48, depth=2, num_heads=3, global_attn_indexes=(1,), window_size=8)
    small = Architecture(blocks, decoder_width=32, decoder_mlp=48, default_image_size=256, mask_tokens=2, answer=1)
    named, rebuild = build.architecture_of, checkpoints.rebuild_foundation

    def architecture_of(settings):
        name = named(settings)
        return "small" if name == "compact" and settings.checkpoint == RANDOM else name

    def rebuild_foundation(checkpoint, *arguments):
        """Built from random weights too, whatever the training started from."""
        with pytest.MonkeyPatch.context() as as_trained:
            if checkpoint["synfoc3d"]["settings"].get("foundation", {}).get("checkpoint") != RANDOM:
                as_trained.setattr(build, "architecture_of", named)
            return rebuild(checkpoint, *arguments)

    patch.setitem(ARCHITECTURES, "small", small)
    patch.setattr(build, "architecture_of", architecture_of)
    patch.setattr(checkpoints, "rebuild_foundation", rebuild_foundation)


FOUND_TRAINERS = {}


def search_trainers_once(patch):
    """Remember the class that nnU-Net found for a name: each search looks at every module of this process."""
    from nnunetv2.run import run_training
    from nnunetv2.utilities import find_objects

    search = find_objects.recursive_find_trainer_class_by_name

    def find(name):
        key = name, os.environ.get("nnUNet_extTrainer")
        if key not in FOUND_TRAINERS:
            FOUND_TRAINERS[key] = search(name)
        return FOUND_TRAINERS[key]

    for module in (run_training, find_objects):
        patch.setattr(module, "recursive_find_trainer_class_by_name", find)


def scale_networks(plans, factor):
    """Change how many features nnU-Net's networks have; with few of them, steps and checkpoints are small.

    Args:
        plans: the file of the plans, which is written anew.
        factor: of the features of each stage.
    """
    content = json.loads(plans.read_text())
    for configuration in content["configurations"].values():
        if "architecture" in configuration:
            sizes = configuration["architecture"]["arch_kwargs"]
            sizes["features_per_stage"] = [int(features * factor) for features in sizes["features_per_stage"]]
    plans.write_text(json.dumps(content))
