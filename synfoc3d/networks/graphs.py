"""Networks whose kernels a GPU starts by itself: recorded as CUDA graphs, and replayed in every step.

A step of SynFoC starts thousands of small kernels, one after the other, for which Python needs several times as long as
a large GPU needs to compute them. A recording holds the same kernels on the same memory: results are the same to the
last bit, as far as the kernels' are.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from synfoc3d.networks.arrangement import Arrangement
from synfoc3d.networks.base import FoundationNetwork

log = logging.getLogger(__name__)
WARM_UP = 3  # calls until torch has chosen its kernels and converted what it keeps
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
        self.has_failed = False

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
            recording = self._record(kind, images)
        if recording is None or recording.is_pending:
            return self.forward(images)
        return recording.replay(images)

    def forget(self) -> bool:
        """Free the memory of all recordings; return whether there were any."""
        any_there = bool(self.recordings)
        self.recordings.clear()
        self.calls.clear()
        return any_there

    def _is_recordable(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        if named or len(arguments) != 1 or not isinstance(arguments[0], Tensor) or not self.network.training:
            return False
        return arguments[0].is_cuda and not arguments[0].requires_grad and not self.has_failed

    def _places(self) -> list[int]:
        return [part.data_ptr() for part in self.parts]

    def _record(self, kind: tuple[Any, ...], images: Tensor) -> "_Recording | None":
        """Record a call; return None, and never try again, where a network does what cannot be recorded."""
        self.places = self._places()
        try:
            self.recordings[kind] = _Recording.of(_Plain(self.network), images)
        except RuntimeError as error:  # which torch raises for whatever is not allowed, and without memory
            self.has_failed = True
            self.forget()
            reason = str(error).partition("\n")[0]
            log.warning(
                "%s cannot be recorded for the GPU, which takes time only: %s", type(self.network).__name__, reason
            )
        return self.recordings.get(kind)


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
        """Record a call; nothing is computed yet."""
        parameters = dict(network.named_parameters())
        # the same memory, but nothing that autograd may still hold of earlier calls, which ran in another stream
        aliases = {name: part.detach().requires_grad_(part.requires_grad) for name, part in parameters.items()}
        learned = [name for name, part in parameters.items() if part.requires_grad]
        images = images.clone()
        forward = torch.cuda.CUDAGraph()
        # other threads go on as they are: one pins the memory of the next batch
        with torch.cuda.graph(forward, capture_error_mode="thread_local"), _weights_converted_anew():
            answer = functional_call(network, aliases, (images,))
        outputs, structure = tree_flatten(answer)
        learning = [output for output in outputs if output.requires_grad]
        asked = [torch.empty_like(output) for output in learning]
        backward: torch.cuda.CUDAGraph | None = None
        gradients: tuple[Tensor | None, ...] = ()
        if learning:
            backward = torch.cuda.CUDAGraph()
            with torch.cuda.graph(backward, pool=forward.pool(), capture_error_mode="thread_local"):
                gradients = torch.autograd.grad(learning, [aliases[name] for name in learned], asked, allow_unused=True)
        outputs = [output.detach() for output in outputs]  # what autograd had kept is the graphs' own now
        return cls(images, outputs, structure, forward, [parameters[n] for n in learned], asked, gradients, backward)

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


def record_networks(networks: nn.Module) -> None:
    """Let a method's networks on a GPU record themselves, in place; names, weights and results stay as they are.

    Not those that walk through a volume, whose way depends on what they see, nor those that recompute their blocks.

    Args:
        networks: a method, whose children they are.
    """
    for network in networks.children():
        recomputes = any(isinstance(part, FoundationNetwork) and part.checkpointing for part in network.modules())
        walks = isinstance(network, Arrangement) and network.takes_prompts
        if not recomputes and not walks:
            network.forward = Recorder(network)


def forget_recordings(networks: nn.Module) -> bool:
    """Let networks compute every call as ever from here on; return whether that frees memory."""
    freed = False
    for network in networks.children():
        recorder = network.__dict__.pop("forward", None)
        freed |= isinstance(recorder, Recorder) and recorder.forget()
    return freed


def _kind_of_call(images: Tensor) -> tuple[Any, ...]:
    formats = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return images.shape, images.dtype, images.device, torch.is_grad_enabled(), formats


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
