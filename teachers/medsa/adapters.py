"""The adapters of Medical SAM Adapter (Wu et al. 2025, arXiv 2304.12620): bottleneck, space and depth, HyP-Adpt.

Each gives the change that it makes, without the residual; with `zero_init` that is nothing until something is learned.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from ...errors import UsageError

Combination = Literal["add", "add_output", "concatenate", "concatenate_halves", "cross", "none"]
Conditioning = Literal["hyper", "add", "concatenate", "none"]
Places = Literal["attention", "mlp", "both"]
HYPER_LAYERS = 3


class Bottleneck(nn.Module):
    """W_up ReLU(W_down x)."""

    def __init__(self, dim: int, rank: int, *, zero_init: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def adapter_parameters(self) -> Iterable[str]:
        return [name for name, _ in self.named_parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.up(self.down(x).relu())


class SpaceDepthAdapter(Bottleneck):
    """The adapter behind an encoder block's attention, where SD-Trans brings space and depth together.

    "add": W_up ReLU(W_down (space + depth)), with no parameter more than the 2-D adapter has. "concatenate": W_down
    reads both. "concatenate_halves", without a parameter: W_down reads the first half of space's channels and the
    second half of depth's. "cross": each token's reduced space embedding attends to the reduced depth embeddings of
    all slices at its place. With all of these the depth branch enters through the adapter only, so that an untrained
    one does not change what SAM computes. "add_output" is the paper's: the depth branch is added to the attention's
    output itself (see `Adapters`), and the adapter reads the sum.
    """

    def __init__(self, dim: int, rank: int, *, combination: Combination, zero_init: bool = True) -> None:
        super().__init__(dim, rank, zero_init=zero_init)
        check_choice("sd_trans", combination, get_args(Combination))
        self.combination = combination
        if combination == "concatenate":
            self.down = nn.Linear(2 * dim, rank)
        if combination == "cross":
            self.query = nn.Linear(rank, rank)
            self.key_value = nn.Linear(rank, 2 * rank)

    def forward(self, x: Tensor, along_depth: Tensor | None = None) -> Tensor:
        """Space and depth branch [B, D, h, w, C] -> [B, D, h, w, C]; with "none" there is no depth branch."""
        if along_depth is None:
            return super().forward(x)
        if self.combination == "add":
            return super().forward(x + along_depth)
        if self.combination == "concatenate_halves":
            half = x.shape[-1] // 2
            return super().forward(torch.cat([x[..., :half], along_depth[..., half:]], dim=-1))
        if self.combination == "concatenate":
            return super().forward(torch.cat([x, along_depth], dim=-1))
        space, depth = (self.down(branch).permute(0, 2, 3, 1, 4) for branch in (x, along_depth))
        found = scaled_dot_product_attention(self.query(space), *self.key_value(depth).chunk(2, dim=-1))
        return self.up((space + found).relu()).permute(0, 3, 1, 2, 4)


class PromptAdapter(Bottleneck):
    """A bottleneck whose reduced embedding e [N, T, r] is changed by the prompt; the paper's HyP-Adpt is "hyper".

    The prompt's tokens are reduced to r and averaged to e_prompt, so that any number of clicks will do; no prompt has a
    learned e_prompt. "hyper": three times e <- ReLU(Norm(e W_n)), where W_n = Reshape(M_n e_prompt) [r, r] and Norm is
    a layer norm over r without parameters. With a `hyper_width` h, e_prompt has the length h and the weights are
    [r, h], [h, h] and [h, r], so that their number grows with r as in the paper's Table 7a, not with its cube. The
    ablations: "add", ReLU(e + e_prompt), "concatenate", ReLU(Linear([e, e_prompt])), and "none", a plain bottleneck.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        conditioning: Conditioning,
        hyper_width: int | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__(dim, rank, zero_init=zero_init)
        check_choice("conditioning", conditioning, get_args(Conditioning))
        self.conditioning = conditioning
        if conditioning == "none":
            return
        width = hyper_width if hyper_width and conditioning == "hyper" else rank
        self.reduce = nn.Linear(dim, width)
        self.no_prompt = nn.Parameter(torch.zeros(width))
        self.shapes = tuple(pairwise((rank, *[width] * (HYPER_LAYERS - 1), rank)))
        if conditioning == "hyper":
            self.hyper = nn.ModuleList(nn.Linear(width, inputs * outputs) for inputs, outputs in self.shapes)
        if conditioning == "concatenate":
            self.merge = nn.Linear(2 * rank, rank)

    def weights(self, prompt: Tensor) -> list[Tensor]:
        """The generated weights for e_prompt [N, h]: three of `shapes`, [N, r, r] each without a width of their own."""
        return [project(prompt).unflatten(-1, shape) for project, shape in zip(self.hyper, self.shapes, strict=True)]

    def summary(self, prompt: Tensor) -> Tensor:
        """The prompt's tokens [N, P, dim] -> e_prompt [N, h]."""
        if prompt.shape[1] == 0:
            return self.no_prompt.expand(len(prompt), -1)
        return self.reduce(prompt).mean(dim=1)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        """x [N, T, dim], the prompt's tokens [N, P, dim] (P may be 0) -> [N, T, dim]."""
        if self.conditioning == "none":
            return super().forward(x)
        e, summary = self.down(x), self.summary(prompt)
        if self.conditioning == "hyper":
            for weight in self.weights(summary):
                e = layer_norm(e @ weight, weight.shape[-1:]).relu()
        elif self.conditioning == "add":
            e = (e + summary[:, None]).relu()
        else:
            e = self.merge(torch.cat([e, summary[:, None].expand(*e.shape[:2], -1)], dim=-1)).relu()
        return self.up(e)


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """UsageError for a value that is not one of the choices."""
    if value not in choices:
        raise UsageError(f"medsa's option {option} is {value!r}: choose one of {', '.join(choices)}")
