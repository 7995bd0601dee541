"""Amplified logits, with keys and values of both sides kept."""

from pathlib import Path

import pytest
import torch

from diffing.axes import Side
from diffing.errors import IncompatiblePair
from diffing.models.amplification import Amplification
from diffing.models.generation import Sampling, Steering, generate
from diffing.models.pair import ModelPair
from tests import tiny
from tests.models.amplification.pairs import IDS, TOLERANCE, fresh_lora, full_finetune, logits

PROMPTS = [[5, 9, 40], [7], [5, 9, 40], [300, 11, 12, 13, 14]]


def of(strength: float) -> Amplification:
    return Amplification("z", logits=strength)


@pytest.fixture(params=["lora", "full"])
def pair(request: pytest.FixtureRequest, base_folder: Path, tmp_path: Path) -> ModelPair:
    if request.param == "lora":
        return fresh_lora(base_folder, tmp_path / "a")
    return ModelPair(tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f")), device="cpu")


def test_strength_0_is_the_finetuned_model_and_minus_1_the_base(pair: ModelPair) -> None:
    assert torch.equal(logits(pair, of(0)), logits(pair, Side.FINETUNED))
    torch.testing.assert_close(logits(pair, of(-1)), logits(pair, Side.BASE), **TOLERANCE)


def test_logits_are_extrapolated(pair: ModelPair) -> None:
    base, finetuned = logits(pair, Side.BASE), logits(pair, Side.FINETUNED)
    torch.testing.assert_close(logits(pair, of(1.5)), finetuned + 1.5 * (finetuned - base), **TOLERANCE)


def test_a_shift_of_one_sides_logits_changes_no_probability(pair: ModelPair) -> None:
    expected = logits(pair, of(2)).softmax(-1)
    with pair.using(Side.BASE) as model:
        head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: output + 3.0)
    try:
        torch.testing.assert_close(logits(pair, of(2)).softmax(-1), expected, **TOLERANCE)
    finally:
        handle.remove()


@pytest.mark.parametrize("strength", [-3.0, 0.5, 40.0])
def test_identical_models_are_not_changed_by_any_strength(identical_pair: ModelPair, strength: float) -> None:
    assert torch.equal(logits(identical_pair, of(strength)), logits(identical_pair, Side.BASE))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_cached_generation_says_what_whole_passes_do(family: str, tmp_path: Path) -> None:
    base, moved = tiny.save_model(tmp_path / "b", family), full_finetune(tmp_path / "f", family=family)
    pair = ModelPair(tiny.pair_spec(base, "full", moved), device="cpu")
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        for _ in range(20):
            with pair.using(Side.BASE) as model, torch.no_grad():
                z_base = model(ids).logits[0, -1]
            with pair.using(Side.FINETUNED) as model, torch.no_grad():
                z = model(ids).logits[0, -1]
            token = int((z + 0.7 * (z - z_base)).argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
            if token == pair.tokenizer.eos_token_id:
                break
        expected.append(pair.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True))
    for batch_size in (1, 4):
        with pair.amplified(of(0.7)) as model:
            greedy = Sampling(max_new_tokens=20, temperature=0.0)
            assert generate(model, pair.tokenizer, PROMPTS, greedy, batch_size=batch_size) == expected


def test_sampling_from_strength_0_draws_the_finetuned_models_texts(pair: ModelPair) -> None:
    sampling = Sampling(max_new_tokens=8, seed=3)
    with pair.using(Side.FINETUNED) as model:
        expected = generate(model, pair.tokenizer, PROMPTS, sampling)
    with pair.amplified(of(0)) as model:
        assert generate(model, pair.tokenizer, PROMPTS, sampling) == expected


def test_tokens_that_one_side_added_keep_their_logits(tmp_path: Path, base_folder: Path) -> None:
    pair = ModelPair(
        tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f", vocab_size=tiny.VOCAB + 3)), device="cpu"
    )
    finetuned, found = logits(pair, Side.FINETUNED), logits(pair, of(2))
    assert torch.equal(found[..., tiny.VOCAB :], finetuned[..., tiny.VOCAB :])
    assert not torch.allclose(found[..., : tiny.VOCAB], finetuned[..., : tiny.VOCAB], atol=1e-2)


def test_two_models_in_one_cannot_be_steered(pair: ModelPair) -> None:
    steering = Steering(1, torch.zeros(1, tiny.WIDTH))
    with pair.amplified(of(1)) as model, pytest.raises(IncompatiblePair, match="decoder blocks not found"):
        generate(model, pair.tokenizer, [IDS[0].tolist()], Sampling(max_new_tokens=1), steering=steering)
