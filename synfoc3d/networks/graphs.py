"""Networks whose kernels a GPU starts by itself: recorded as CUDA graphs, and replayed in every step.

A step of SynFoC starts thousands of small kernels, one after the other, for which Python needs several times as long as
a large GPU needs to compute them. A recording holds the same kernels on the same memory. It is believed only if, on the
patches that it was made with, it gives what the network gives.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from synfoc3d.errors import UserError
from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.base import FoundationNetwork

WARM_UP = 3  # calls before a kind of call is recorded, since it seems to come again
TOLERANCE = 0.02  # largest difference between what is replayed and computed, as a share: kernels add up in any order
MANY = 8  # different kinds of calls, beyond which shapes are no longer expected to come again


class Recorder:
    """Takes the place of a network's ``forward``, and replays what it did for patches of the same shape.

    Calls are computed as ever that cannot be replayed: on a CPU, in evaluation mode, with other arguments than one
    tensor, or while the gradient of an earlier call, which uses the same memory, is still to come.

    Args:
        network: whose calls depend on nothing but its argument, its parameters and its buffers.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.forward = network.forward
        self.parts: list[Tensor] = [*network.parameters(), *network.buffers()]
        self.recordings: dict[tuple[Any, ...], _Recording] = {}
        self.calls: Counter[tuple[Any, ...]] = Counter()
        self.places: list[int] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the network takes and returns
        """Do what the network does."""
        if not self._is_recordable(arguments, named):
            return self.forward(*arguments, **named)
        (images,) = arguments
        if self.recordings and self._places() != self.places:
            self.forget()  # its weights lie elsewhere now
        kind = _kind_of_call(images)
        recording = self.recordings.get(kind)
        if recording is None:
            self.calls[kind] += 1
            if self.calls[kind] <= WARM_UP or len(self.calls) > MANY or not _has_room():
                return self.forward(images)
            self.places = self._places()
            recording = self.recordings[kind] = _record(self.network, images)
        return self.forward(images) if recording.is_pending else recording.replay(images)

    def forget(self) -> bool:
        """Free the memory of all recordings; return whether there were any."""
        any_there = bool(self.recordings)
        self.recordings.clear()
        self.calls.clear()
        return any_there

    def _is_recordable(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        if named or len(arguments) != 1 or not isinstance(arguments[0], Tensor) or not self.network.training:
            return False
        return arguments[0].is_cuda and not arguments[0].requires_grad

    def _places(self) -> list[int]:
        return [part.data_ptr() for part in self.parts]


@dataclass
class _Recording:
    """The kernels of one kind of call, and the memory that they read and write.

    Attributes:
        images: where its argument lies.
        outputs: where its tensors lie; ``structure`` is what they are part of.
        forward: the kernels.
        parameters: that get a gradient, which lie in ``gradients`` (None: of those that have none), computed by
            ``backward`` from that of the outputs, in ``asked``. Without gradients, ``backward`` is None.
        is_pending: its gradient is still to come.
    """

    images: Tensor
    outputs: list[Tensor]
    structure: Any
    forward: torch.cuda.CUDAGraph
    parameters: list[Tensor]
    asked: list[Tensor]
    gradients: tuple[Tensor | None, ...]
    backward: torch.cuda.CUDAGraph | None
    is_pending: bool = False

    @classmethod
    def of(cls, network: nn.Module, images: Tensor) -> "_Recording":
        """Record a call, and compare it with one that is computed.

        Raises:
            RuntimeError: something that cannot be recorded, too little memory, or another result.
        """
        images, parameters = images.clone(), dict[str, Tensor](network.named_parameters())
        learned = [parameter for parameter in parameters.values() if parameter.requires_grad]
        # kernels are chosen for all that will be recorded, also for outputs of which a training asks no gradient
        with torch.cuda.stream(_after_this_one()):
            outputs, structure, aliases = _call(network, parameters, images)
            # of a size whose sums neither overflow nor vanish in float16
            asked = [torch.full_like(o, o.numel() ** -0.5) for o in outputs if o.requires_grad]
            computed = [output.detach() for output in outputs], _differentiate(outputs, aliases, asked)
        if asked and len(asked) < len(outputs):
            raise RuntimeError("some of its outputs have no gradient")
        del outputs, aliases
        torch.cuda.synchronize()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph() if asked else None
        gradients: tuple[Tensor | None, ...] = ()
        # other threads go on as they are: one pins the memory of the next batch
        with torch.cuda.graph(forward, capture_error_mode="thread_local"):
            outputs, _, aliases = _call(network, parameters, images)
        if backward is not None:
            with torch.cuda.graph(backward, pool=forward.pool(), capture_error_mode="thread_local"):
                gradients = _differentiate(outputs, aliases, asked)
        outputs = [output.detach() for output in outputs]  # what autograd had kept is the graphs' own now
        made = cls(images, outputs, structure, forward, learned, asked, gradients, backward)
        made.compare(*computed)
        return made

    def compare(self, outputs: list[Tensor], gradients: tuple[Tensor | None, ...]) -> None:
        """Replay the call that was recorded, and compare the results with those that were computed.

        Raises:
            RuntimeError: they differ.
        """
        self.forward.replay()
        if self.backward is not None:
            self.backward.replay()
        # all gradients as one: that of a bias before a norm is nothing but rounding
        are_outputs_close = all(_are_close([a], [b]) for a, b in zip(self.outputs, outputs, strict=True))
        if not are_outputs_close or not _are_close(self.gradients, gradients):
            raise RuntimeError("what is replayed differs from what is computed")

    def replay(self, images: Tensor) -> Any:  # noqa: ANN401 - whatever the network returns
        """Return what the network does for other images, in memory of its own."""
        if self.backward is None:
            return tree_unflatten(self.run(images), self.structure)
        return tree_unflatten(list(_Replay.apply(self, images, *self.parameters)), self.structure)

    def run(self, images: Tensor) -> list[Tensor]:
        """Start the kernels."""
        self.images.copy_(images)
        self.forward.replay()
        return [output.clone() for output in self.outputs]


class _Replay(torch.autograd.Function):
    """A replayed call as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, images: Tensor, *_: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.recording = recording
        recording.is_pending = True
        return tuple(recording.run(images))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        recording: _Recording = ctx.recording
        assert recording.is_pending and recording.backward is not None, "the gradient of a call is computed once"
        for place, gradient in zip(recording.asked, gradients, strict=True):
            place.copy_(gradient)
        recording.backward.replay()
        recording.is_pending = False
        return None, None, *(None if value is None else value.detach() for value in recording.gradients)


class _Plain(nn.Module):
    """A network without what stands in for its ``forward``, and without its hooks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:  # noqa: ANN401 - whatever the network returns
        return type(self.network).forward(self.network, images)


def _call(network: nn.Module, parameters: dict[str, Tensor], images: Tensor) -> tuple[list[Tensor], Any, list[Tensor]]:
    """Call a network with aliases of its parameters: the same memory, but nothing that autograd holds of other calls.

    Returns:
        Its outputs, their structure, and the aliases of what trains.
    """
    aliases = {name: part.detach().requires_grad_(part.requires_grad) for name, part in parameters.items()}
    with _weights_converted_anew():
        outputs, structure = tree_flatten(functional_call(network, aliases, (images,)))
    return outputs, structure, [alias for alias in aliases.values() if alias.requires_grad]


def _differentiate(outputs: list[Tensor], parameters: list[Tensor], asked: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of parameters, given those of the outputs that have one."""
    learning = [output for output in outputs if output.requires_grad]
    return torch.autograd.grad(learning, parameters, asked, allow_unused=True) if learning else ()


def _are_close(replayed: Sequence[Tensor | None], computed: Sequence[Tensor | None]) -> bool:
    """Tell whether tensors differ, taken as one, by no more than rounding; None is equal to None alone."""
    if [value is None for value in replayed] != [value is None for value in computed]:
        return False
    pairs = [(a.float(), b.float()) for a, b in zip(replayed, computed, strict=True) if a is not None and b is not None]
    difference = nn.utils.get_total_norm([a - b for a, b in pairs])
    return bool(difference <= TOLERANCE * nn.utils.get_total_norm([b for _, b in pairs]))


def _after_this_one() -> torch.cuda.Stream:
    """Return a stream that begins when the current one has done its work."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return stream


def _record(network: nn.Module, images: Tensor) -> _Recording:
    """Record a call of a network.

    Raises:
        UserError: it cannot be recorded. The training must not go on: torch may still be in the middle of a recording.
    """
    try:
        return _Recording.of(_Plain(network), images)
    except RuntimeError as error:  # which torch raises for whatever is not allowed, and without memory
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The GPU cannot record what {type(network).__name__} does ({reason}): train with speed.cuda_graphs=false."
        ) from error


def record_networks(networks: nn.Module) -> None:
    """Let a method's networks on a GPU record themselves, in place; names, weights and results stay as they are.

    Not those that walk through a volume, whose way depends on what they see, those that recompute their blocks, and
    those that keep statistics of what they have seen, which the call that a recording is compared with would change.

    Args:
        networks: a method, whose children they are.
    """
    for network in networks.children():
        recomputes = any(isinstance(part, FoundationNetwork) and part.checkpointing for part in network.modules())
        walks = isinstance(network, Arrangement) and network.takes_prompts
        keeps = any(isinstance(part, _BatchNorm) and part.track_running_stats for part in network.modules())
        if not (recomputes or walks or keeps):
            network.forward = Recorder(network)


def forget_recordings(networks: nn.Module) -> bool:
    """Let networks compute every call as ever from here on; return whether that frees memory."""
    freed = False
    for network in networks.children():
        recorder = network.__dict__.get("forward")
        if isinstance(recorder, Recorder):
            del network.__dict__["forward"]
            freed |= recorder.forget()
    return freed


def _kind_of_call(images: Tensor) -> tuple[Any, ...]:
    precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return images.shape, images.dtype, images.device, torch.is_grad_enabled(), precision


def _weights_converted_anew() -> torch.autocast:
    """Keep mixed precision, but not its store of converted weights, which change from step to step."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )


def _has_room() -> bool:
    """Tell whether a recording, whose memory is its own for good, surely fits: all that was ever needed would."""
    free, _ = torch.cuda.mem_get_info()
    return free > torch.cuda.max_memory_allocated()
