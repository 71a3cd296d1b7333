"""Leave out shortcuts that networks take for speed; what they compute stays the same within rounding."""

from torch import nn

from synfoc3d.config import SpeedSettings
from synfoc3d.networks.encoders.tiny_vit import TinyAttention
from synfoc3d.networks.encoders.vit_block import ViTBlock
from synfoc3d.networks.lora import Adapter
from synfoc3d.networks.propagation import PropagatingFoundation


def leave_out(networks: nn.Module, speed: SpeedSettings) -> None:
    """Let networks take only the shortcuts that are switched on, in place; names and weights stay as they are.

    Args:
        networks: that have taken all shortcuts so far.
        speed: which ones to take; those that are no network's own are not read here.
    """
    for module in list(networks.modules()):
        if isinstance(module, Adapter | ViTBlock):
            module.keeps_casts = speed.kept_casts
        if isinstance(module, PropagatingFoundation):
            module.merges_adapters = speed.merged_adapters
        if isinstance(module, TinyAttention):
            module.takes_shortcut = speed.attention
        if not speed.attention:
            for name, child in list(module.named_children()):
                if isinstance(child, ViTBlock):
                    setattr(module, name, child.published())
