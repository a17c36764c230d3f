"""The network arranged for a GPU: its three transformers in float16, in operations that the runtime has one kernel for.

A small question is paid for in kernels, a large one in what passes through memory between them. GELU adds its bias, a norm the
bias and the residual before it. The runtime's kernels of whole attention are not used: they work in tiles of 64 tokens and more,
of which a dozen fill one corner, and took two thirds of the time (docs/benchmarks.md, an H200). Tokens lie as ``[P, B, d]``, so
that products between the tokens of a row and head read them where they are. The last layer is computed only for the tokens that
are read, as in `quantformer_training.lean`. Everything around the transformers (embeddings, log-odds, codes and their distances,
heads, shortcuts, spread) stays float32.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantformer.forecaster import Forecaster
from quantformer.layers import Block, Transformer
from quantformer_training.export import export_arranged
from quantformer_training.lean import transformers_of

#: Where the runtime keeps operations that ONNX does not have.
_RUNTIME = "com.microsoft"


def float16_graph(forecaster: Forecaster) -> bytes:
    """The serving graph with fused float16 transformers; inputs and outputs as `quantformer_training.export.export_graph`."""
    return export_arranged(fused(forecaster))


def fused(forecaster: Forecaster) -> Forecaster:
    """A copy whose transformers can be exported and not run: outside of an export the runtime's operations say nothing."""
    made = copy.deepcopy(forecaster).eval()
    for holder, length, read in transformers_of(made):
        setattr(holder, "transformer", FusedTransformer(holder.transformer, length=length, read=read))  # noqa: B010
    return made


class FusedTransformer(nn.Module):
    """A `Transformer` of ``length`` tokens of which only ``read`` are wanted, ``[B, P, d]`` to ``[B, len(read), d]``."""

    def __init__(self, transformer: Transformer, *, length: int, read: slice) -> None:
        super().__init__()
        blocks = [block for block in transformer.blocks if isinstance(block, Block)]
        assert len(blocks) == len(transformer.blocks)
        self.read = read
        self.first_norm = copy.deepcopy(blocks[0].attention_norm).half()
        norms = [*(block.attention_norm for block in blocks[1:]), transformer.norm]
        last = len(blocks) - 1
        self.blocks = nn.ModuleList(
            FusedBlock(block, following=norm, read=range(length)[read] if number == last else range(length))
            for number, (block, norm) in enumerate(zip(blocks, norms, strict=True))
        )

    def forward(self, tokens: Tensor, read: slice) -> Tensor:
        """Apply all layers; ``read`` is what the caller wants, and must be what this was made for."""
        assert read == self.read, f"made for the tokens {self.read}, asked for {read}"
        tokens = tokens.half().transpose(0, 1)
        normed = self.first_norm(tokens)
        for block in self.blocks:
            normed, tokens = block(normed, tokens)
        whole: Tensor = normed.transpose(0, 1).float()
        return whole


class FusedBlock(nn.Module):
    """A `Block` on ``[P, B, d]``, which takes its input normed and not and gives, for the tokens ``read``, the same of the
    ``following`` norm's.

    A bias of the keys adds the same to every score of a query, which softmax takes away again; one of the values passes
    through attention as it is, and so into the output's.
    """

    def __init__(self, block: Block, *, following: nn.LayerNorm, read: range) -> None:
        super().__init__()
        self.heads, self.read = block.heads, read
        d = block.attention_out.in_features
        with torch.no_grad():
            query, key, value = block.query_key_value.weight.chunk(3)
            query_bias, _, value_bias = block.query_key_value.bias.chunk(3)
            scale = (d // block.heads) ** -0.5
            out, out_bias = block.attention_out.weight, block.attention_out.bias
            self.query, self.query_bias = _weight(query * scale), _half(query_bias * scale)
            self.key, self.value, self.out = _weight(key), _weight(value), _weight(out)
            self.out_bias = _half(out_bias + out @ value_bias)
            self.expand, self.expand_bias = _weight(block.expand.weight), _half(block.expand.bias)
            self.contract, self.contract_bias = _weight(block.contract.weight), _half(block.contract.bias)
        self.feedforward_norm, self.following = (copy.deepcopy(norm).half() for norm in (block.feedforward_norm, following))

    def forward(self, normed: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[P, B, d]`` normed and as they are, to the following block's."""
        chosen = slice(self.read.start, self.read.stop)
        asking, tokens = (one if len(self.read) == len(one) else one[chosen] for one in (normed, tokens))
        query = self._by_head(asking @ self.query + self.query_bias)
        key, value = self._by_head(normed @ self.key), self._by_head(normed @ self.value)
        asked, length, rows = len(self.read), key.shape[0], key.shape[1]
        scores = _runtime(
            "FusedMatMul", query, key, shape=[rows, self.heads, asked, length], transB=1, transBatchA=1, transBatchB=1
        )
        mixed = _runtime("FusedMatMul", scores.softmax(-1), value, shape=[rows, self.heads, asked, key.shape[3]], transBatchB=1)
        mixed = mixed.permute(2, 0, 1, 3).reshape(asked, -1, self.out.shape[0])
        normed, tokens = _added(mixed @ self.out, tokens, self.feedforward_norm, self.out_bias)
        hidden = normed @ self.expand
        hidden = _runtime("BiasGelu", hidden, self.expand_bias, shape=hidden.shape)
        return _added(hidden @ self.contract, tokens, self.following, self.contract_bias)

    def _by_head(self, projected: Tensor) -> Tensor:
        return projected.reshape(projected.shape[0], -1, self.heads, projected.shape[-1] // self.heads)


def _half(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().half().contiguous(), requires_grad=False)


def _weight(weight: Tensor) -> nn.Parameter:
    """As it is multiplied from the right."""
    return _half(weight.T)


def _runtime(name: str, *inputs: Tensor, shape: Sequence[int | torch.SymInt], **attributes: int) -> Tensor:
    """An operation of the runtime with a float16 result of this shape."""
    return torch.onnx.ops.symbolic(f"{_RUNTIME}::{name}", inputs, {**attributes}, dtype=torch.float16, shape=shape, version=1)


def _added(new: Tensor, before: Tensor, norm: nn.LayerNorm, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of ``new + before + bias``, and that sum."""
    moment = [*new.shape[:-1], 1]
    kinds, shapes = [torch.float16, torch.float32, torch.float32, torch.float16], [new.shape, moment, moment, new.shape]
    normed, _, _, whole = torch.onnx.ops.symbolic_multi_out(
        f"{_RUNTIME}::SkipLayerNormalization", (new, before, norm.weight, norm.bias, bias), {"epsilon": norm.eps},
        dtypes=kinds, shapes=shapes, version=1,
    )  # fmt: skip
    return normed, whole
