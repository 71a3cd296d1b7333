"""TinyViT's image encoder with SAM's neck, written down a second time: slow, and straight from the file's names.

Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", 2022, as MobileSAM and LiteMedSAM
released it. Depths, heads and windows are read off the entries, and every entry is used where its name occurs below;
nothing is cached, folded or fused. Everything is computed in the images' dtype: give float64 for a reference.

Names are those after ``image_encoder.`` in the released files.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BATCH_NORM_EPS = 1e-5
TOKEN_NORM_EPS = 1e-5
NECK_NORM_EPS = 1e-6
EXPANSION = 4  # of the convolution blocks and of the perceptrons

State = Mapping[str, Tensor]


def slow_embedding(state: State, images: Tensor, *, stem_stride: int, last_stride: int) -> Tensor:
    """Return the embedding (N, 256, e, e) of images (N, 3, S, S).

    Args:
        state: the encoder's entries; others (a classification head) are not looked at.
        images: float32 or float64, as the network expects them.
        stem_stride: of each of the stem's two convolutions: 1 in LiteMedSAM (e = S / 4), 2 in MobileSAM (e = S / 16).
        last_stride: of the merging before the last stage: 1 in both, 2 in TinyViT as a classifier.
    """
    state = {name: value.to(images.dtype) for name, value in state.items() if value.is_floating_point()}
    x = _gelu(_conv_norm(state, "patch_embed.seq.0", images, stem_stride))
    x = _conv_norm(state, "patch_embed.seq.2", x, stem_stride)
    stages = _count(state, "layers")
    for stage in range(stages):
        for block in range(_count(state, f"layers.{stage}.blocks")):
            x = _block(state, f"layers.{stage}.blocks.{block}", x)
        if stage < stages - 1:
            x = _merging(state, f"layers.{stage}.downsample", x, last_stride if stage == stages - 2 else 2)
    return _neck(state, x)


def window_attention(state: State, name: str, tokens: Tensor) -> Tensor:
    """Attention within one window: (w, w, C) -> (w, w, C), its layer norm included.

    The fused projection is laid out (heads, [q, k, v], C / heads).
    """
    window, _, width = tokens.shape
    biases = state[f"{name}.attention_biases"]
    heads, key_width = len(biases), width // len(biases)
    x = _layer_norm(state, f"{name}.norm", tokens.reshape(-1, width), TOKEN_NORM_EPS)
    projected = _linear(state, f"{name}.qkv", x)
    answers = []
    for head in range(heads):
        q, k, v = projected[:, 3 * head * key_width : 3 * (head + 1) * key_width].split(key_width, dim=1)
        logits = q @ k.T / math.sqrt(key_width) + biases[head][_offsets(window)]
        weights = (logits - logits.amax(1, keepdim=True)).exp()
        answers.append(weights / weights.sum(1, keepdim=True) @ v)
    return _linear(state, f"{name}.proj", torch.cat(answers, dim=1)).reshape(tokens.shape)


def windowed(state: State, name: str, x: Tensor) -> Tensor:
    """Attention of (N, C, H, W) within windows; at the right and the bottom, windows are filled up with zeros.

    The zeros are tokens like any other: the layer norm turns them into its bias, and real tokens attend to them.
    """
    window = math.isqrt(state[f"{name}.attention_biases"].shape[1])
    height, width = x.shape[-2:]
    padded = x.new_zeros(*x.shape[:2], math.ceil(height / window) * window, math.ceil(width / window) * window)
    padded[..., :height, :width] = x
    answer = torch.empty_like(padded)
    for image in range(len(padded)):
        for top in range(0, padded.shape[2], window):
            for left in range(0, padded.shape[3], window):
                here = (image, slice(None), slice(top, top + window), slice(left, left + window))
                answer[here] = window_attention(state, name, padded[here].permute(1, 2, 0)).permute(2, 0, 1)
    return answer[..., :height, :width]


def _offsets(window: int) -> Tensor:
    """Index (w * w, w * w) of the bias of each pair of tokens.

    One per distance (rows, columns), numbered as they first appear: the first token meets them all, row by row.
    """
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    return (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()


def _block(state: State, name: str, x: Tensor) -> Tensor:
    """Convolution block of the first stage, or attention, depthwise convolution and perceptron of the others."""
    if f"{name}.conv1.c.weight" in state:
        y = _gelu(_conv_norm(state, f"{name}.conv1", x))
        y = _gelu(_conv_norm(state, f"{name}.conv2", y))
        return _gelu(_conv_norm(state, f"{name}.conv3", y) + x)
    x = x + windowed(state, f"{name}.attn", x)
    x = _conv_norm(state, f"{name}.local_conv", x)
    tokens = x.permute(0, 2, 3, 1)
    y = _layer_norm(state, f"{name}.mlp.norm", tokens, TOKEN_NORM_EPS)
    y = _linear(state, f"{name}.mlp.fc2", _gelu(_linear(state, f"{name}.mlp.fc1", y)))
    return (tokens + y).permute(0, 3, 1, 2)


def _merging(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    x = _gelu(_conv_norm(state, f"{name}.conv1", x))
    x = _gelu(_conv_norm(state, f"{name}.conv2", x, stride))
    return _conv_norm(state, f"{name}.conv3", x)


def _neck(state: State, x: Tensor) -> Tensor:
    """Two convolutions, each followed by a normalization over the channels of each pixel."""
    for convolution, norm in (("neck.0", "neck.1"), ("neck.2", "neck.3")):
        tokens = _convolution(state[f"{convolution}.weight"], x).permute(0, 2, 3, 1)
        x = _layer_norm(state, norm, tokens, NECK_NORM_EPS).permute(0, 3, 1, 2)
    return x


def _conv_norm(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution, then batch normalization by the running statistics."""
    x = _convolution(state[f"{name}.c.weight"], x, stride)
    statistics = ("running_mean", "running_var", "weight", "bias")
    mean, variance, gamma, beta = (state[f"{name}.bn.{entry}"][:, None, None] for entry in statistics)
    return (x - mean) / (variance + BATCH_NORM_EPS).sqrt() * gamma + beta


def _convolution(weight: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution padded by half its kernel; depthwise where the weight has one input channel."""
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])


def _layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Normalization over the last axis."""
    centered = x - x.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + eps).sqrt()
    return centered / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _count(state: State, name: str) -> int:
    """How many numbered parts a list of modules has."""
    depth = name.count(".") + 1
    return 1 + max(int(entry.split(".")[depth]) for entry in state if entry.startswith(f"{name}."))


def random_state(
    widths: Sequence[int] = (64, 128, 160, 320),
    depths: Sequence[int] = (2, 2, 6, 2),
    heads: Sequence[int] = (2, 4, 5, 10),
    windows: Sequence[int] = (7, 7, 14, 7),
    *,
    stem_kernel: int = 1,
    neck_width: int = 256,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return a float32 state with the released files' names, shapes and order, and values in which every mistake shows.

    Running variances spread from 1e-6 to 10, where the epsilon decides and where it does not matter; the scales of
    normalizations have both signs; no bias, mean or attention bias is zero. Each convolution's weights and running mean
    fit its running variance, so that values keep their size through the network.

    Args:
        widths: of the stages; the stem's first convolution has half the first one.
        depths: blocks per stage.
        heads: per stage; the first stage has convolutions only, and its entry is not used, as in ``timm``.
        windows: side per stage, in tokens; the first one is not used.
        stem_kernel: 1 in LiteMedSAM, 3 in MobileSAM.
        neck_width: channels of the embedding, 256 in every released file.
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(_shapes(widths, depths, heads, windows, stem_kernel, neck_width))
    state = {name: _values(name, shape, generator) for name, shape in shapes.items()}
    for name, variance in state.items():
        if name.endswith(".bn.running_var"):
            layer = name.removesuffix(".bn.running_var")
            state[f"{layer}.c.weight"] *= variance.sqrt()[:, None, None, None]
            state[f"{layer}.bn.running_mean"] *= variance.sqrt()
    return state


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def either_sign(low: float, high: float) -> Tensor:
        return uniform(low, high) * (2 * torch.randint(2, shape, generator=generator) - 1)

    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if name.endswith("running_var"):
        return 10 ** uniform(-6, 1)
    if name.endswith("attention_biases"):
        return either_sign(0.5, 2)
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    return either_sign(0.5, 1.5) if name.endswith("weight") else either_sign(0.1, 0.5)


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _shapes(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    windows: Sequence[int],
    stem_kernel: int,
    neck_width: int,
) -> Shapes:
    """Names and shapes, in the files' order."""
    yield from _conv_norm_shapes("patch_embed.seq.0", 3, widths[0] // 2, stem_kernel)
    yield from _conv_norm_shapes("patch_embed.seq.2", widths[0] // 2, widths[0], stem_kernel)
    for stage, width in enumerate(widths):
        for block in range(depths[stage]):
            name = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                yield from _bottleneck_shapes(name, width, EXPANSION * width, width)
            else:
                yield from _attention_block_shapes(name, width, heads[stage], windows[stage])
        if stage < len(widths) - 1:
            merged = widths[stage + 1]
            yield from _bottleneck_shapes(f"layers.{stage}.downsample", width, merged, merged)
    yield "neck.0.weight", (neck_width, widths[-1], 1, 1)
    yield from _norm_shapes("neck.1", neck_width)
    yield "neck.2.weight", (neck_width, neck_width, 3, 3)
    yield from _norm_shapes("neck.3", neck_width)


def _attention_block_shapes(name: str, width: int, heads: int, window: int) -> Shapes:
    yield f"{name}.attn.attention_biases", (heads, window**2)
    yield from _norm_shapes(f"{name}.attn.norm", width)
    yield from _linear_shapes(f"{name}.attn.qkv", width, 3 * width)
    yield from _linear_shapes(f"{name}.attn.proj", width, width)
    yield from _norm_shapes(f"{name}.mlp.norm", width)
    yield from _linear_shapes(f"{name}.mlp.fc1", width, EXPANSION * width)
    yield from _linear_shapes(f"{name}.mlp.fc2", EXPANSION * width, width)
    yield from _conv_norm_shapes(f"{name}.local_conv", 1, width, 3)


def _bottleneck_shapes(name: str, inputs: int, hidden: int, outputs: int) -> Shapes:
    """Pointwise, depthwise, pointwise: the convolution block and the merging."""
    yield from _conv_norm_shapes(f"{name}.conv1", inputs, hidden, 1)
    yield from _conv_norm_shapes(f"{name}.conv2", 1, hidden, 3)
    yield from _conv_norm_shapes(f"{name}.conv3", hidden, outputs, 1)


def _conv_norm_shapes(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    yield f"{name}.c.weight", (outputs, inputs, kernel, kernel)
    yield from _norm_shapes(f"{name}.bn", outputs)
    yield f"{name}.bn.running_mean", (outputs,)
    yield f"{name}.bn.running_var", (outputs,)
    yield f"{name}.bn.num_batches_tracked", ()


def _linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm_shapes(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
