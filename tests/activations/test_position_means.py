"""The streamed pass against brute force with `output_hidden_states`, and against closed forms."""

import pytest
import torch
from torch import Tensor

from diffing.activations.position_means import SKIPPED, PositionMeans, position_means
from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting, NonFiniteActivations
from diffing.models.pair import ModelPair
from diffing.models.sites import decoder_blocks
from diffing.text.windows import pad
from tests import tiny

LAYERS = [1, 2]
N = 12


def texts() -> list[list[int]]:
    tokenizer = tiny.tokenizer()
    return [tokenizer(text)["input_ids"][:N] for text in tiny.TEXTS * 3] + [[7, 8, 9]]


def brute_force(pair: ModelPair, rows: list[list[int]], layer: int) -> dict[str, Tensor]:
    """One text at a time, whole hidden states, float64 lists; nothing shared with the streamed pass."""
    states: dict[Side, list[Tensor]] = {side: [] for side in Side}
    for side in Side:
        with pair.using(side) as model:
            for ids in rows:
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
                states[side].append(hidden[layer + 1][0].double())
    means: dict[str, list[Tensor]] = {"base": [], "finetuned": [], "difference": []}
    for position in range(max(len(ids) for ids in rows)):
        at = {side: torch.stack([s[position] for s in states[side] if len(s) > position]) for side in Side}
        means["base"].append(at[Side.BASE].mean(0))
        means["finetuned"].append(at[Side.FINETUNED].mean(0))
        means["difference"].append((at[Side.FINETUNED] - at[Side.BASE]).mean(0))
    norms = torch.cat([s[SKIPPED:].norm(dim=-1) for s in states[Side.FINETUNED]])
    return {key: torch.stack(value) for key, value in means.items()} | {"residual_norm": norms.mean()}


def streamed(pair: ModelPair, rows: list[list[int]], batch_size: int, side: str) -> dict[int, PositionMeans]:
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return position_means(pair, [pad(chunk, 0, side) for chunk in chunks], LAYERS, N)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("kind", ["lora_pair", "full_pair"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_streamed_means_equal_brute_force(
    kind: str, side: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    pair = request.getfixturevalue(kind)
    found = streamed(pair, texts(), batch_size, side)
    for layer in LAYERS:
        expected = brute_force(pair, texts(), layer)
        for key in ("base", "finetuned", "difference"):
            assert relative(getattr(found[layer], key), expected[key]) < 1e-5, key
        assert found[layer].residual_norm == pytest.approx(expected["residual_norm"].item(), rel=1e-5)


def test_mean_of_differences_is_the_difference_of_means(lora_pair: ModelPair) -> None:
    means = streamed(lora_pair, texts(), 4, "right")[1]
    torch.testing.assert_close(means.difference, means.finetuned - means.base, rtol=1e-6, atol=1e-6)


def test_counts_are_the_texts_that_reach_a_position(lora_pair: ModelPair) -> None:
    rows = texts()
    means = streamed(lora_pair, rows, 5, "left")[1]
    assert means.n_texts.tolist() == [sum(len(ids) > position for ids in rows) for position in range(N)]


def test_identical_sides_differ_by_exactly_nothing(identical_pair: ModelPair) -> None:
    means = streamed(identical_pair, texts(), 4, "left")[2]
    assert not means.difference.any()
    assert not means.norm_difference.any()
    assert not means.consistency.any()


def test_a_constant_shift_is_found_with_full_consistency(base_folder, tmp_path) -> None:
    from safetensors.torch import save_file

    from diffing.models.sources import pin

    planted = torch.randn(tiny.WIDTH) * 3
    save_file({"v": planted}, tmp_path / "v.safetensors")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=1)
    means = streamed(ModelPair(pin(spec), device="cpu"), texts(), 4, "right")[1]
    torch.testing.assert_close(means.difference, planted.double().expand(N, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(means.consistency, torch.ones(N, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_running_sums_of_bf16_weights_keep_full_precision(base_folder, adapter_folder) -> None:
    from diffing.models.sources import pin

    spec = tiny.pair_spec(base_folder, "lora", adapter_folder)
    spec = type(spec)(tiny.model_spec(base_folder, dtype="bfloat16"), spec.finetuned, "planted")
    pair, ids = ModelPair(pin(spec), device="cpu"), texts()[0]
    once = streamed(pair, [ids] * 16, 16, "right")[1]
    many = streamed(pair, [ids] * 16 * 64, 16, "right")[1]  # a bf16 sum would have stopped growing by now
    torch.testing.assert_close(many.base, once.base, rtol=1e-12, atol=1e-12)


def test_nan_activations_name_the_side_and_the_layer(base_folder, merged_folder) -> None:
    from diffing.models.sources import pin

    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", merged_folder)), device="cpu")
    with pair.using(Side.FINETUNED) as model:
        decoder_blocks(model)[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteActivations, match="finetuned model at layer 1"):
        streamed(pair, texts(), 4, "right")


def test_texts_too_short_for_a_residual_norm_are_refused(lora_pair: ModelPair) -> None:
    with pytest.raises(EmptyCorpus, match=f"position {SKIPPED}"):
        streamed(lora_pair, [[5, 6, 7]], 1, "right")
    with pytest.raises(InvalidSetting, match="3 positions"):
        position_means(lora_pair, [], LAYERS, 3)
    with pytest.raises(EmptyCorpus, match="no batch"):
        position_means(lora_pair, [], LAYERS, N)


@pytest.mark.real_model
@pytest.mark.parametrize(("side", "batch_size"), [("left", 16), ("right", 16), ("right", 1)])
def test_streamed_means_equal_brute_force_on_the_real_pair(real_pair: ModelPair, side: str, batch_size: int) -> None:
    rows = [real_pair.tokenizer(text)["input_ids"][:N] for text in tiny.TEXTS]
    found = streamed(real_pair, rows, batch_size, side)[LAYERS[0]]
    expected = brute_force(real_pair, rows, LAYERS[0])
    assert relative(found.difference, expected["difference"]) < 1e-5
