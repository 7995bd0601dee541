"""The bridge and recovered loss, against full forward passes with an edited block and planted differences."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import isnan
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffing.axes import Side, Stream
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting
from diffing.learners.base import Recipe
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.lenses import faithfulness, replay
from diffing.lenses.faithfulness import Effect, Patch, bridge, controls, growing, ranked, recovered
from diffing.models.pair import ModelPair
from diffing.models.sites import decoder_blocks, editing, residuals
from diffing.models.sources import pin
from diffing.text.windows import TokenBatch, pad
from tests import tiny

LAYER, LATENTS = 1, 24
SEQUENCES = [[7, 30, 31, 5, 99, 200, 14], [1, 2, 3], [250, 8, 8, 41, 60], [5, 6, 7, 8, 9, 10, 11, 12]]


def dictionary_of(
    stream: Stream | None, layer: int = LAYER, n_latents: int = LATENTS, width: int = tiny.WIDTH
) -> Dictionary:
    """A ReLU dictionary with weights 0."""
    made, kind = (Crosscoder, "crosscoder") if stream is None else (SAE, "sae")
    settings = made.settings_of(Sparsity(n_latents, None, "relu"))
    return made(Recipe(kind, "pair", "base and finetuned", layer, stream, width, [], settings))


def random_dictionary(stream: Stream | None, layer: int = LAYER, seed: int = 0) -> Dictionary:
    dictionary, draw = dictionary_of(stream, layer), torch.Generator().manual_seed(seed)
    for weight in (dictionary.encoder, dictionary.decoder, dictionary.encoder_bias, dictionary.decoder_bias):
        weight.copy_(torch.randn(weight.shape, generator=draw) * 0.3)
    dictionary.mean.copy_(torch.randn(dictionary.mean.shape, generator=draw))
    dictionary.scale.copy_(0.2 + torch.rand(dictionary.scale.shape, generator=draw))
    return dictionary


def batch(side: str = "right") -> TokenBatch:
    return pad(SEQUENCES, 0, side)


def logits_of(
    pair: ModelPair, side: Side, tokens: TokenBatch, edit: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """A plain forward pass, all of the model, with the output of a block replaced."""
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "position_ids": tokens.position_ids}
    with torch.no_grad(), pair.using(side) as model, editing(model, LAYER, edit or (lambda hidden: hidden)):
        return model(**inputs).logits.float()


def effect_of(own: Tensor, other: Tensor, tokens: TokenBatch, skip_first: int = 0) -> Effect:
    """KL and cross-entropy of whole logits, sequence by sequence in float64."""
    kls, losses = [], []
    for row, sequence in enumerate(tokens.ids):
        real = tokens.mask[row]
        ids = sequence[real]
        p, q = (side[row, real].double().log_softmax(-1) for side in (own, other))
        kls.append(functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)[skip_first:])
        losses.append(functional.nll_loss(q[:-1], ids[1:], reduction="none")[skip_first:])
    return Effect(float(torch.cat(kls).mean()), float(torch.cat(losses).mean()))


def assert_close(found: Effect, expected: Effect, tolerance: float = 1e-4) -> None:
    assert found.kl == pytest.approx(expected.kl, rel=tolerance, abs=1e-6)
    assert found.loss == pytest.approx(expected.loss, rel=tolerance, nan_ok=True)


def family_pair(root: Path, family: str) -> ModelPair:
    """A full finetune of a tiny model: the same weights, some percent off."""
    base = tiny.save_model(root / "base", family)
    changed = tiny.model(family)
    torch.manual_seed(1)
    for weight in changed.parameters():
        weight.mul_(1 + 0.1 * torch.randn_like(weight))
    changed.save_pretrained(root / "finetuned")
    tiny.tokenizer().save_pretrained(root / "finetuned")
    return ModelPair(pin(tiny.pair_spec(base, "full", root / "finetuned")), device="cpu")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_replacement_has_the_effect_of_editing_the_block_in_a_full_forward(tmp_path: Path, family: str):
    pair, tokens = family_pair(tmp_path, family), batch("left")
    found = recovered(pair, dictionary_of(None), [tokens], skip_first=0)
    own = logits_of(pair, Side.FINETUNED, tokens)
    with pair.using(Side.BASE) as model:
        base = residuals(model, tokens, [LAYER])[LAYER]
    assert_close(found.original, effect_of(own, own, tokens))
    assert_close(found.base, effect_of(own, logits_of(pair, Side.FINETUNED, tokens, lambda _: base), tokens))
    zeroed = logits_of(pair, Side.FINETUNED, tokens, torch.zeros_like)
    assert_close(found.zero, effect_of(own, zeroed, tokens))
    assert found.original.kl == 0
    assert found.base.kl > 1e-3


@pytest.mark.parametrize("stream", [None, Stream.DIFFERENCE])
def test_a_set_of_latents_adds_what_the_definition_says(lora_pair: ModelPair, stream: Stream | None):
    dictionary, tokens = random_dictionary(stream), batch()
    chosen = torch.arange(LATENTS) % 3 == 0
    found = bridge(lora_pair, dictionary, [tokens], {"some": Patch(chosen)}, skip_first=0)
    sides = []
    for side in Side:
        with lora_pair.using(side) as model:
            sides.append(residuals(model, tokens, [LAYER])[LAYER])
    base, finetuned = sides
    f = dictionary.encode(dictionary.recipe.rows(base.flatten(0, 1), finetuned.flatten(0, 1))).unflatten(
        0, base.shape[:2]
    )
    added = dictionary.directions(Side.FINETUNED)
    if stream is None:
        added = added - dictionary.directions(Side.BASE)
    moved = base + (f * chosen) @ added
    own = logits_of(lora_pair, Side.FINETUNED, tokens)
    assert_close(found["some"], effect_of(own, logits_of(lora_pair, Side.FINETUNED, tokens, lambda _: moved), tokens))
    assert found["some"].kl > 1e-3


@pytest.mark.parametrize("stream", [None, Stream.DIFFERENCE])
@pytest.mark.parametrize("layer", [0, LAYER, tiny.LAYERS - 1])
def test_everything_is_the_finetuned_model(lora_pair: ModelPair, stream: Stream | None, layer: int):
    found = bridge(lora_pair, random_dictionary(stream, layer), [batch()], controls(LATENTS), skip_first=0)
    assert abs(found["everything"].kl) <= 1e-6
    own = logits_of(lora_pair, Side.FINETUNED, batch())
    assert found["everything"].loss == pytest.approx(effect_of(own, own, batch()).loss, rel=1e-5)
    assert all(effect.kl > 1e-3 for name, effect in found.items() if name != "everything")


def test_everything_is_the_finetuned_model_in_bfloat16(base_folder: Path, merged_folder: Path):
    spec = tiny.pair_spec(base_folder, "full", merged_folder)
    pair = ModelPair(pin(replace(spec, base=tiny.model_spec(base_folder, dtype="bfloat16"))), device="cpu")
    found = bridge(pair, random_dictionary(None), [batch()], controls(LATENTS))
    assert abs(found["everything"].kl) <= 1e-6 < found["nothing"].kl


def test_nothing_is_the_base_model_where_only_lower_blocks_were_finetuned(tmp_path: Path):
    base, changed = tiny.save_model(tmp_path / "base"), tiny.model()
    for block in decoder_blocks(changed)[: LAYER + 1]:
        for weight in block.parameters():
            weight.mul_(1.2)
    changed.save_pretrained(tmp_path / "finetuned")
    pair = ModelPair(pin(tiny.pair_spec(base, "full", tmp_path / "finetuned")), device="cpu")
    found = bridge(pair, random_dictionary(None), [batch()], controls(LATENTS), skip_first=0)
    own, other = (logits_of(pair, side, batch()) for side in (Side.FINETUNED, Side.BASE))
    assert_close(found["nothing"], effect_of(own, other, batch()))


def steered_pair(base_folder: Path, tmp_path: Path, vector: Tensor) -> ModelPair:
    torch.save(vector, tmp_path / "vector.pt")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "vector.pt", layer=LAYER)
    return ModelPair(pin(spec), device="cpu")


def test_nested_planted_sets_close_the_gap_step_by_step(base_folder: Path, tmp_path: Path):
    parts = torch.linalg.qr(torch.randn(tiny.WIDTH, 6, generator=torch.Generator().manual_seed(0)))[0].T
    sizes = torch.tensor([3.0, 1.0, 2.0, 0.5, 1.5, 0.7])
    pair = steered_pair(base_folder, tmp_path, sizes @ parts)
    dictionary = dictionary_of(Stream.DIFFERENCE, n_latents=6)
    dictionary.encoder.copy_(parts)
    dictionary.decoder.copy_(parts)
    patches = growing(ranked(sizes), range(7), 6)
    found = bridge(pair, dictionary, [batch()], {str(size): patch for size, patch in patches.items()})
    kls = [found[str(size)].kl for size in range(7)]
    assert all(more < less for less, more in pairwise(kls))
    assert kls[0] > 1e-3
    assert abs(kls[6]) <= 1e-6
    assert recovered(pair, dictionary, [batch()]).reconstruction.kl <= 1e-6


def test_recovered_is_1_for_the_activations_and_0_for_the_reference(lora_pair: ModelPair):
    identity = torch.eye(2 * tiny.WIDTH)
    exact = dictionary_of(None, n_latents=4 * tiny.WIDTH)
    exact.encoder.copy_(torch.cat([identity, -identity]))
    exact.decoder.copy_(exact.encoder)
    found = recovered(lora_pair, exact, [batch()])
    for reference in (found.base, found.zero):
        assert found.kl(reference) == pytest.approx(1, abs=1e-5)
        assert found.loss(reference) == pytest.approx(1, abs=1e-4)
    # A crosscoder that is 0 everywhere is zero ablation; an SAE of the difference that is, the base's activations.
    zero = recovered(lora_pair, dictionary_of(None), [batch()])
    assert zero.kl(zero.zero) == zero.loss(zero.zero) == 0
    base = recovered(lora_pair, dictionary_of(Stream.DIFFERENCE), [batch()])
    assert base.kl(base.base) == base.loss(base.base) == 0


def test_recovered_of_identical_models_is_nan_against_the_base(identical_pair: ModelPair):
    found = recovered(identical_pair, random_dictionary(None), [batch()])
    assert found.base.kl == 0
    assert isnan(found.kl(found.base))
    assert isnan(found.loss(found.base))
    assert found.kl(found.zero) < 1


@pytest.mark.parametrize("stream", [None, Stream.DIFFERENCE])
def test_padding_and_batches_change_nothing(
    lora_pair: ModelPair, stream: Stream | None, monkeypatch: pytest.MonkeyPatch
):
    dictionary = random_dictionary(stream)
    patches = controls(LATENTS)
    expected = bridge(lora_pair, dictionary, [pad([one], 0, "right") for one in SEQUENCES], patches)
    done: list[int] = []
    halves = [pad(SEQUENCES[:1], 0, "left"), pad(SEQUENCES[1:], 0, "left")]
    found = [
        bridge(lora_pair, dictionary, [batch("left")], patches),
        bridge(lora_pair, dictionary, [batch("right")], patches),
        bridge(lora_pair, dictionary, halves, patches, on_batch=done.append),
    ]
    assert done == [1, 3]
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 3 * tiny.VOCAB)
    found.append(bridge(lora_pair, dictionary, [batch("right")], patches))
    for effects in found:
        for name, effect in effects.items():
            assert_close(effect, expected[name])


def test_skipped_tokens_keep_the_finetuned_activations_and_are_not_measured(lora_pair: ModelPair):
    tokens, skipped = batch(), 2
    found = recovered(lora_pair, dictionary_of(None), [tokens], skip_first=skipped)
    own = logits_of(lora_pair, Side.FINETUNED, tokens)

    def zero(hidden: Tensor) -> Tensor:
        return torch.where((tokens.position_ids < skipped)[..., None], hidden, 0.0)

    assert_close(found.zero, effect_of(own, logits_of(lora_pair, Side.FINETUNED, tokens, zero), tokens, skipped))


def test_each_set_costs_one_pass_of_the_upper_half_and_a_few_logits(
    full_pair: ModelPair, monkeypatch: pytest.MonkeyPatch
):
    ran: list[tuple[Side, int]] = []
    handles = []
    for side in Side:
        with full_pair.using(side) as model:
            for layer, block in enumerate(decoder_blocks(model)):
                handles.append(block.register_forward_hook(lambda *_, at=(side, layer): ran.append(at)))
    rows: list[int] = []
    unembed = faithfulness.unembed
    monkeypatch.setattr(
        faithfulness, "unembed", lambda model, hidden: rows.append(len(hidden)) or unembed(model, hidden)
    )
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 5 * tiny.VOCAB)
    patches = controls(LATENTS)
    bridge(full_pair, random_dictionary(None), [batch()], patches)
    for handle in handles:
        handle.remove()
    for layer in range(tiny.LAYERS):
        assert ran.count((Side.BASE, layer)) == (layer <= LAYER)
        assert ran.count((Side.FINETUNED, layer)) == (1 if layer <= LAYER else 1 + len(patches))
    assert max(rows) == 5
    assert sum(rows) == (1 + len(patches)) * sum(len(one) - 1 for one in SEQUENCES)


def test_no_hook_stays(full_pair: ModelPair):
    bridge(full_pair, random_dictionary(None), [batch()], controls(LATENTS))
    for side in Side:
        with full_pair.using(side) as model:
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_ranked_leaves_out_nan_and_breaks_ties_by_number():
    values = torch.tensor([1.0, torch.nan, 3.0, 1.0, torch.inf])
    assert ranked(values).tolist() == [4, 2, 0, 3]
    assert growing(ranked(values), [0, 2], 5)[2].latents.nonzero()[:, 0].tolist() == [2, 4]


def test_what_cannot_be_measured_is_refused(lora_pair: ModelPair):
    with pytest.raises(InvalidSetting, match="5 latents"):
        growing(torch.arange(4), [5], 8)
    with pytest.raises(EmptyCorpus, match="no token"):
        recovered(lora_pair, random_dictionary(None), [pad([[3]], 0, "right")])
    with pytest.raises(IncompatiblePair, match="layer 9"):
        recovered(lora_pair, dictionary_of(None, layer=9), [batch()])
    with pytest.raises(IncompatiblePair, match="width 31"):
        recovered(lora_pair, dictionary_of(None, width=31), [batch()])
    with pytest.raises(InvalidSetting, match="base"):
        bridge(lora_pair, dictionary_of(Stream.BASE), [batch()], controls(LATENTS))
