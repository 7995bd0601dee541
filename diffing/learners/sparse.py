"""From rows to their reconstruction through a few active latents, and the gradients of that.

After the product that gives the pre-activations, only the active latents matter. With `sparse`, what follows touches
only these: gathers of decoder rows forward, products sampled at the active places and sums over the active rows
backward. Without, it is three products over all latents, which is faster where matrix products are cheap next to memory
(`sparse_pays`). Both give the same to rounding. The selection has no gradient; what it selects has.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from diffing.learners.codes import Codes

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")

CROSSOVER = {"cpu": 0.1, "cuda": 0.0027}
"""Share of active latents below which gathers beat products, by type of device.

Measured on a CPU at width 576 and 4,608 latents: 0.12 if the products are bfloat16, 0.3 if they are float32. Computed
for an H200: memory bandwidth / (2 * rate of bfloat16 products), the share at which float32 gathers take as long.
"""


def autoencode(
    x: Float[Tensor, "batch width"],
    encoder: Float[Tensor, "latent width"],
    encoder_bias: Float[Tensor, " latent"],
    decoder: Float[Tensor, "latent width"],
    decoder_bias: Float[Tensor, " width"],
    select: Callable[[Float[Tensor, "batch latent"]], Codes],
    *,
    centred: bool,
    encoder_dtype: torch.dtype | None = None,
    sparse: bool,
) -> tuple[Float[Tensor, "batch width"], Codes]:
    """The reconstruction and the codes it is made of, both with gradients; the codes' are on their values.

    `select` gets pre-activations without gradient, `(x - decoder_bias) @ encoder.T + encoder_bias` if centred, else
    the same of `x`. `encoder_dtype` is that of the products over all latents (None: that of `x`).
    """
    rows = x - decoder_bias if centred else x
    if sparse:
        with torch.no_grad():
            codes = select(_pre(rows, encoder, encoder_bias, encoder_dtype))
        reconstruction, values = _Sparse.apply(rows, encoder, encoder_bias, decoder, decoder_bias, codes)
        return reconstruction, replace(codes, values=values)
    pre = _pre(rows, encoder, encoder_bias, encoder_dtype)
    codes = select(pre.detach())
    values = pre.flatten().gather(0, codes.places).to(codes.values.dtype)
    codes = replace(codes, values=values)
    dtype = encoder_dtype or x.dtype
    reconstruction = (codes.dense().to(dtype) @ decoder.to(dtype)).to(decoder.dtype) + decoder_bias
    return reconstruction, codes


def decode(
    codes: Codes, decoder: Float[Tensor, "latent width"], decoder_bias: Float[Tensor, " width"]
) -> Float[Tensor, "batch width"]:
    """Sums of decoder rows, and the bias. Gradients reach all three."""
    return _bags(codes.offsets, codes.latents, codes.values, decoder) + decoder_bias


def sparse_pays(k: float | int, n_latents: int, device: torch.device | str) -> bool:
    """Whether `sparse` is the faster way for k active latents a row. On other devices than `CROSSOVER`'s, never."""
    return k / n_latents < CROSSOVER.get(torch.device(device).type, 0.0)


def along(
    codes: Codes, rows: Float[Tensor, "batch width"], directions: Float[Tensor, "latent width"]
) -> Float[Tensor, " active"]:
    """The dot product of each active latent's direction with its row. No gradients."""
    pattern = torch.sparse_csr_tensor(
        codes.offsets, codes.latents, rows.new_zeros(len(codes.latents)), (len(rows), len(directions)),
        check_invariants=False,
    )  # fmt: skip
    return torch.sparse.sampled_addmm(pattern, rows.contiguous(), directions.T, beta=0.0).values()


class _Sparse(torch.autograd.Function):
    """Decodes given codes. Backward also goes through the encoder that gave them, at their places alone."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor,
        decoder: Tensor,
        decoder_bias: Tensor,
        codes: Codes,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, encoder, decoder)
        ctx.codes = codes
        return decode(codes, decoder, decoder_bias), codes.values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        rows, encoder, decoder = ctx.saved_tensors
        codes: Codes = ctx.codes
        grad_values = grad_values + along(codes, grad, decoder)
        order = codes.latents.argsort(stable=True)
        starts = functional.pad(codes.latents.bincount(minlength=codes.n_latents).cumsum(0), (1, 0))
        numbers = codes.rows[order]
        return (
            _bags(codes.offsets, codes.latents, grad_values, encoder) if ctx.needs_input_grad[0] else None,
            _bags(starts, numbers, grad_values[order], rows),
            torch.zeros_like(encoder[:, 0]).index_add_(0, codes.latents, grad_values),
            _bags(starts, numbers, codes.values[order], grad),
            grad.sum(0),
            None,
        )


def _pre(rows: Tensor, encoder: Tensor, encoder_bias: Tensor, dtype: torch.dtype | None) -> Tensor:
    dtype = dtype or rows.dtype
    return functional.linear(rows.to(dtype), encoder.to(dtype), encoder_bias.to(dtype))


def _bags(offsets: Tensor, latents: Tensor, values: Tensor, directions: Tensor) -> Tensor:
    """For each row, the sum of its latents' directions times their values."""
    return functional.embedding_bag(
        latents, directions, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )
