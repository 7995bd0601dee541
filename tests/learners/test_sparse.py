"""Reconstructions and their gradients, against plain dense ones, differences, and numbers written out."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffing.learners.codes import BatchTopK, Codes, above, top_k
from diffing.learners.sparse import along, autoencode, decode, sparse_pays

Select = Callable[[Tensor], Codes]
BATCH, WIDTH, LATENTS, K = 24, 12, 80, 5


Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""Encoder, its bias, decoder, its bias."""


def weights(dtype: torch.dtype = torch.float32) -> Weights:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random, dtype=torch.float64) / 3).to(dtype).requires_grad_()

    return drawn(LATENTS, WIDTH), drawn(LATENTS), drawn(LATENTS, WIDTH), drawn(WIDTH)


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_()


def score_weight(pre: Tensor) -> Tensor:
    return torch.rand(LATENTS, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(pre.dtype) + 0.5


SELECTIONS: dict[str, Select] = {
    "top_k": lambda pre: top_k(pre, K),
    "batch_top_k": lambda pre: BatchTopK()(pre, K),
    "weighted batch_top_k": lambda pre: BatchTopK()(pre, K, score_weight(pre)),
    "relu": lambda pre: above(pre, 0),
    "a tenth of the rows": lambda pre: above(pre, float(pre.amax(1).quantile(0.9))),
    "none": lambda pre: above(pre, 1e9),
}


def plain(x: Tensor, parameters: Weights, select: Select, centred: bool) -> tuple[Tensor, Tensor]:
    """Reconstruction and dense latent values by autograd alone."""
    encoder, encoder_bias, decoder, decoder_bias = parameters
    pre = (x - decoder_bias if centred else x) @ encoder.T + encoder_bias
    latents = pre * (select(pre.detach()).dense() != 0)
    return latents @ decoder + decoder_bias, latents


def loss(x: Tensor, reconstruction: Tensor, latents: Tensor) -> Tensor:
    """Of the reconstruction and of each latent value by itself."""
    price = torch.linspace(0, 1, LATENTS, dtype=x.dtype)
    return (reconstruction - x).square().sum() / len(x) + (latents * price).sum()


def gradients(value: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    given = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(own) if one is None else one for one, own in zip(given, inputs, strict=True)]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", SELECTIONS)
def test_results_and_gradients_are_those_of_plain_dense_products(name: str, sparse: bool, centred: bool) -> None:
    x, parameters, select = rows(), weights(), SELECTIONS[name]
    expected = plain(x, parameters, select, centred)
    reconstruction, codes = autoencode(x, *parameters, select, centred=centred, sparse=sparse)
    torch.testing.assert_close(reconstruction, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codes.dense(), expected[1], rtol=1e-5, atol=1e-5)
    inputs = [x, *parameters]
    ours, theirs = (gradients(loss(x, *both), inputs) for both in ((reconstruction, codes.dense()), expected))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_gradients_are_those_of_finite_differences(sparse: bool, centred: bool) -> None:
    x, parameters = rows(torch.float64), weights(torch.float64)
    with torch.no_grad():
        fixed = BatchTopK()((x - parameters[3] if centred else x) @ parameters[0].T + parameters[1], K)

    def same(pre: Tensor) -> Codes:  # a difference must not change what is selected
        return replace(fixed, values=pre.take(fixed.places))

    def both(x: Tensor, *parameters: *Weights) -> tuple[Tensor, Tensor]:
        reconstruction, codes = autoencode(x, *parameters, same, centred=centred, sparse=sparse)
        return reconstruction, codes.values

    assert torch.autograd.gradcheck(both, (x, *parameters), rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("sparse", [True, False])
def test_products_in_bfloat16_change_little(sparse: bool) -> None:
    x, parameters = rows(), weights()
    exact, codes = autoencode(x, *parameters, SELECTIONS["batch_top_k"], centred=True, sparse=sparse)

    def same(pre: Tensor) -> Codes:
        assert pre.dtype == torch.bfloat16
        return replace(codes, values=pre.take(codes.places).float())

    rounded, again = autoencode(
        x, *parameters, same, centred=True, sparse=sparse, encoder_dtype=torch.bfloat16
    )  # fmt: skip
    assert rounded.dtype == again.values.dtype == torch.float32
    pairs = [(exact, rounded), *zip(*(gradients(loss(x, *both), parameters) for both in (
        (exact, codes.dense()), (rounded, again.dense())
    )), strict=True)]  # fmt: skip
    for one, other in pairs:
        assert not torch.equal(one, other)
        assert (one - other).norm() <= 2e-2 * one.norm()


@pytest.mark.parametrize("sparse", [True, False])
def test_one_step_is_as_worked_out_by_hand(sparse: bool) -> None:
    """Of pre-activations [[1.5, 1, -2], [2, 3, -3]], k = 1 leaves both places to the second row."""
    x = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    encoder, encoder_bias = torch.tensor([[0.5, 0.5], [0.0, 1.0], [-0.6, -0.8]]), torch.zeros(3)
    decoder, decoder_bias = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]]), torch.zeros(2)
    parameters = (encoder, encoder_bias, decoder, decoder_bias)
    for parameter in parameters:
        parameter.requires_grad_()
    reconstruction, codes = autoencode(x, *parameters, lambda pre: BatchTopK()(pre, 1), centred=True, sparse=sparse)
    assert reconstruction.tolist() == [[0, 0], [2, 3]]
    assert codes.dense().tolist() == [[0, 0, 0], [2, 3, 0]]
    error = (reconstruction - x).square().sum(1).mean()
    assert error.detach() == 3  # (4 + 1 + 1 + 0) / 2
    error.backward()
    expected = [[[1.0, 3.0], [0, 0], [0, 0]], [1.0, 0, 0], [[2.0, 0.0], [3.0, 0.0], [0, 0]], [-1.5, -1.5]]
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.tolist() == gradient
    torch.optim.Adam(parameters, lr=0.125).step()  # the first step is lr against the sign of the gradient
    torch.testing.assert_close(decoder.detach()[:2], torch.tensor([[0.875, 0], [-0.125, 1]]))
    torch.testing.assert_close(decoder_bias.detach(), torch.tensor([0.125, 0.125]))


def test_decoding_is_the_dense_product_with_its_gradients() -> None:
    _, _, decoder, bias = weights()
    codes = above(torch.randn(BATCH, LATENTS, generator=torch.Generator().manual_seed(3)), 1)
    codes = replace(codes, values=codes.values.requires_grad_())
    ours, theirs = decode(codes, decoder, bias), codes.dense() @ decoder + bias
    torch.testing.assert_close(ours, theirs)
    inputs = [codes.values, decoder, bias]
    for own, other in zip(gradients(ours.cos().sum(), inputs), gradients(theirs.cos().sum(), inputs), strict=True):
        torch.testing.assert_close(own, other)


def test_products_along_active_directions_are_entries_of_the_dense_product() -> None:
    decoder = weights()[2].detach()
    codes = top_k(torch.randn(BATCH, LATENTS, generator=torch.Generator().manual_seed(3)), K)
    x = rows().detach()
    torch.testing.assert_close(along(codes, x, decoder), (x @ decoder.T).take(codes.places))


def test_selection_sees_pre_activations_without_gradient() -> None:
    x, parameters = rows(), weights()
    for sparse in (True, False):
        seen: list[Tensor] = []

        def watch(pre: Tensor, seen: list[Tensor] = seen) -> Codes:
            seen.append(pre)
            return top_k(pre, K)

        autoencode(x, *parameters, watch, centred=False, sparse=sparse)
        assert not seen[0].requires_grad
        torch.testing.assert_close(seen[0], functional.linear(x, *parameters[:2]).detach())


def test_gathers_pay_where_few_of_many_are_active_and_memory_keeps_up_with_products() -> None:
    assert sparse_pays(32, 4608, "cpu")
    assert not sparse_pays(1024, 4608, "cpu")
    assert sparse_pays(100, 73_728, "cuda:1")
    assert not sparse_pays(100, 4608, torch.device("cuda"))
    assert not sparse_pays(1, 4608, "meta")
