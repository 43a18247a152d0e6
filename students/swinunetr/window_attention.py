"""Swin's window attention, the same function as MONAI's, without its large intermediate tensors."""

from collections.abc import Iterator
from typing import Any

import torch
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

# Score matrices worked on at a time: small enough that they never leave the processor's cache.
CHUNK = 4


class _CachedAttention(torch.autograd.Function):
    """softmax(q^T k + bias + mask) v over small groups of windows; the backward pass recomputes the scores.

    The fused CPU kernel behind `scaled_dot_product_attention` gives no gradient for the bias, and the unfused one
    writes [windows, heads, n, n] several times: for windows of 343 tokens and heads of 4 channels nearly all the time
    of a training step goes into those writes. Channels come before tokens because the matrix products are five times
    faster that way round.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """q (scaled), k, v [heads, B, c, n]; bias [heads, n, n]; mask [windows, n, n] -> [heads, B, c, n]."""
        out = torch.empty_like(v)
        for part, _, scores in _score_groups(q, k, bias, mask):
            weights = torch.softmax(scores, dim=-1, out=scores)
            out[part] = torch.bmm(v[part], weights.transpose(1, 2))
        ctx.save_for_backward(q, k, v, bias, mask)
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, mask = ctx.saved_tensors
        dq, dk, dv, dbias = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.zeros_like(bias)
        grad = grad.contiguous()
        for part, head, scores in _score_groups(q, k, bias, mask):
            weights = torch.softmax(scores, dim=-1, out=scores)
            dv[part] = torch.bmm(grad[part], weights)
            dweights = torch.bmm(grad[part].transpose(1, 2), v[part])
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dbias[head] += dscores.sum(0)
            dq[part] = torch.bmm(k[part], dscores.transpose(1, 2))
            dk[part] = torch.bmm(q[part], dscores)
        return dq, dk, dv, dbias, None


def _score_groups(
    q: Tensor, k: Tensor, bias: Tensor, mask: Tensor | None
) -> Iterator[tuple[tuple[int, slice], int, Tensor]]:
    """((head, windows), head, scores [m, n, n]) for every group of windows; the scores' memory is used again."""
    heads, count, _, n = q.shape
    buffer = q.new_empty(min(CHUNK, count), n, n)
    for head in range(heads):
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            part = (head, slice(start, stop))
            scores = torch.baddbmm(bias[head], q[part].transpose(1, 2), k[part], out=buffer[: stop - start])
            if mask is not None:
                for row, window in enumerate(range(start, stop)):
                    scores[row] += mask[window % len(mask)]
            yield part, head, scores


class FastWindowAttention(WindowAttention):
    """Drop-in for MONAI's `WindowAttention` (no dropout): the same parameters, keys and numbers."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B * windows, n, C], mask [windows, n, n] of 0 and -100 or None -> [B * windows, n, C]."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 3, 0, 4, 1).unbind(0)
        index = self.get_buffer("relative_position_index")[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].reshape(n, n, -1).permute(2, 0, 1)
        exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if x.device.type == "cpu" and torch.is_grad_enabled() and not exporting:
            out = _CachedAttention.apply(
                q.mul(self.scale).contiguous(), k.contiguous(), v.contiguous(), bias.contiguous(), mask
            ).permute(1, 3, 0, 2)
        else:
            added = bias[None]
            if mask is not None:
                added = (added + mask[:, None]).repeat(b // len(mask), 1, 1, 1)
            out = scaled_dot_product_attention(
                *(part.permute(1, 0, 3, 2) for part in (q, k, v)), attn_mask=added.to(q.dtype), scale=self.scale
            ).transpose(1, 2)
        return self.proj(out.reshape(b, n, c))
