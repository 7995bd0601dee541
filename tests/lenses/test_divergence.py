"""Divergences against closed forms, float64 references and full forward passes."""

from dataclasses import dataclass, field
from math import exp, inf, log
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from diffing.axes import Side
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting, NonFiniteActivations
from diffing.lenses import divergence
from diffing.lenses.divergence import Divergence, VocabularySums, batch_divergences, divergences, text_divergences
from diffing.models.pair import ModelPair
from diffing.models.sites import Logits
from diffing.models.sources import pin
from diffing.specs import VariantSpec
from diffing.text.windows import TokenBatch, pad, token_sequences
from tests import tiny

KINDS = list(Divergence)
FORWARD, REVERSE, SYMMETRIC = KINDS
UNIFORM = [0.0, 0.0, 0.0, 0.0]


class Given(Logits):
    """Logits that are what they are given."""

    def rows(self, rows: slice, out: Tensor | None = None, chunk: int = 32_768) -> Tensor:
        assert out is not None
        return out.copy_(self.normed[rows])


def logits(values: Tensor) -> Logits:
    return Given(values, torch.empty(values.shape[1], values.shape[1]))


def of(base: list[float], finetuned: list[float], kind: Divergence = FORWARD) -> float:
    return float(divergences(logits(torch.tensor([base])), logits(torch.tensor([finetuned])), [kind]))


def exact(base: Tensor, finetuned: Tensor) -> Tensor:
    """All kinds in float64, from the definitions."""
    q, p = base.double().log_softmax(-1), finetuned.double().log_softmax(-1)
    mean = torch.logaddexp(p, q) - log(2)
    kl = [(x.exp() * (x - y)).sum(-1) for x, y in ((p, q), (q, p), (p, mean), (q, mean))]
    return torch.stack([kl[0], kl[1], (kl[2] + kl[3]) / 2], dim=-1)


def drawn(n: int, vocab: int, change: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    base = 12 + 4 * torch.randn(n, vocab, generator=random)
    return base, base + change * torch.randn(n, vocab, generator=random)


def sequences() -> list[list[int]]:
    return list(token_sequences(tiny.TEXTS, tiny.tokenizer(), max_tokens=40))


def logits_of(pair: ModelPair, side: Side, tokens: TokenBatch) -> Tensor:
    """A plain forward pass of the whole model."""
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "position_ids": tokens.position_ids}
    with torch.no_grad(), pair.using(side) as model:
        return model(**inputs).logits


def test_identical_logits_give_exactly_zero() -> None:
    base, _ = drawn(50, 1000, 1.0)
    assert not divergences(logits(base), logits(base.clone()), KINDS).any()


@pytest.mark.parametrize(
    ("base", "finetuned", "expected"),
    [
        ([log(0.5), log(0.5)], [log(0.9), log(0.1)], 0.368064),
        ([log(0.9), log(0.1)], [log(0.5), log(0.5)], 0.510826),
        ([2.0, 0.0, -1.0], [1.0, 1.0, -1.0], 0.411222),
        (UNIFORM, [log(3), 0.0, 0.0, 0.0], log(2) / 2 + log(2 / 3) / 2),
        ([log(0.2), log(0.8)], [log(0.2) + 1.5, log(0.8)], 0.264122),
    ],
)
def test_closed_forms_in_their_direction(base: list[float], finetuned: list[float], expected: float) -> None:
    assert of(base, finetuned) == pytest.approx(expected, abs=1e-6)
    assert of(finetuned, base, REVERSE) == pytest.approx(expected, abs=1e-6)


def test_the_sum_of_the_divergence_of_a_tilt_is_as_derived() -> None:
    p, c = 0.2, 1.5
    tilted = p * exp(c) / (1 - p + p * exp(c))
    assert tilted == pytest.approx(0.528396, abs=1e-6)
    assert of([log(p), log(1 - p)], [log(p) + c, log(1 - p)]) == pytest.approx(tilted * c - log(1 - p + p * exp(c)))


def test_high_temperature_gives_half_the_variance_of_the_change() -> None:
    assert 1e4 * of([0.02, 0.0, -0.01], [0.01, 0.01, -0.01]) == pytest.approx(0.335527, abs=2e-3)


def test_a_small_change_gives_half_its_variance_under_the_base() -> None:
    base, change = torch.tensor([2.0, 0.0, -1.0]), 1e-3 * torch.tensor([1.0, -2.0, 0.5])
    found = of(base.tolist(), (base + change).tolist())
    assert found == pytest.approx(4.5235e-7, abs=1e-7)
    p = base.softmax(-1)
    assert found == pytest.approx(float((p * change**2).sum() - (p * change).sum() ** 2) / 2, abs=1e-7)


def test_what_one_side_rules_out_is_infinite_in_one_direction_only() -> None:
    narrow = [0.0, 0.0, -inf, -inf, -inf]
    assert of([0.0] * 5, narrow) == pytest.approx(log(5 / 2), abs=1e-6)
    assert of([0.0] * 5, narrow, REVERSE) == inf
    assert of(narrow, [0.0] * 5) == inf
    expected = 0.5 * (log(0.5 / 0.35) + 0.4 * log(0.2 / 0.35) + 0.6 * log(2))
    assert of([0.0] * 5, narrow, SYMMETRIC) == pytest.approx(expected, abs=1e-6)
    assert all(of(narrow, narrow, kind) == 0 for kind in KINDS)


def test_nothing_in_common_is_ln_2_apart() -> None:
    assert of([0.0, -200.0], [-200.0, 0.0], SYMMETRIC) == pytest.approx(log(2), abs=1e-6)
    assert of([0.0, -200.0], [-200.0, 0.0]) == pytest.approx(200, rel=1e-6)


def test_a_shift_of_all_logits_and_an_order_of_the_vocabulary_change_nothing() -> None:
    base, finetuned = drawn(20, 500, 0.5)
    expected = divergences(logits(base), logits(finetuned), KINDS)
    shifts = torch.linspace(-30, 30, 20)[:, None]
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    shifted = divergences(logits(base + shifts), logits(finetuned - shifts), KINDS)
    permuted = divergences(logits(base[:, order]), logits(finetuned[:, order]), KINDS)
    torch.testing.assert_close(shifted, expected, rtol=1e-4, atol=1e-5)  # the shifted logits are rounded
    # Sums in another order: each of the two is within 2e-6 and 2e-7 of the exact value.
    torch.testing.assert_close(permuted, expected, rtol=4e-6, atol=4e-7)


@pytest.mark.parametrize("change", [1e-3, 1e-2, 0.1, 1.0, 5.0])
def test_random_pairs_are_within_float32_rounding_of_float64(change: float) -> None:
    base, finetuned = drawn(2_000, 300, change)
    found = divergences(logits(base), logits(finetuned), KINDS)
    torch.testing.assert_close(found.double(), exact(base, finetuned), rtol=2e-6, atol=2e-7)
    assert found.min() >= 0


@pytest.mark.parametrize(("at_once", "compared"), [(1, 1), (700, 100), (4_000, 1_300), (10**9, 10**9)])
def test_no_size_of_chunks_changes_the_result(at_once: int, compared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = drawn(37, 100, 0.5)
    expected, expected_sums = divergences(logits(base), logits(finetuned), KINDS), VocabularySums.zero(100)
    divergences(logits(base), logits(finetuned), KINDS, expected_sums)
    monkeypatch.setattr(divergence, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(divergence, "COMPARED_AT_ONCE", compared)
    sums = VocabularySums.zero(100)
    found = divergences(logits(base), logits(finetuned), KINDS, sums)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sums.contribution, expected_sums.contribution, rtol=1e-6, atol=1e-6)
    assert sums.n_tokens == 37


@dataclass(frozen=True, eq=False)
class Watched(Logits):
    asked: list[int] = field(default_factory=list)

    def rows(self, rows: slice, out: Tensor | None = None, chunk: int = 32_768) -> Tensor:
        assert out is not None
        self.asked.append(out.numel())
        return super().rows(rows, out, chunk)


def test_no_more_logits_are_held_than_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "LOGITS_AT_ONCE", 1_050)
    base, finetuned = (Watched(values, torch.eye(100)) for values in drawn(37, 100, 0.5))
    divergences(base, finetuned, KINDS)
    assert base.asked == finetuned.asked == [1_000, 1_000, 1_000, 700]


def test_bf16_weights_are_widened_before_the_product() -> None:
    random = torch.Generator().manual_seed(0)
    weight = (torch.randn(2_000, 64, generator=random) / 3).bfloat16()
    base = torch.randn(40, 64, generator=random) * 2
    finetuned = base + 0.05 * torch.randn(40, 64, generator=random)
    z = [hidden.double() @ weight.double().T for hidden in (base, finetuned)]
    expected = exact(*z)
    found = divergences(Logits(base, weight), Logits(finetuned, weight), KINDS)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    rounded = exact(*(side.bfloat16() for side in z))
    assert ((rounded - expected).abs() / expected).max() > 1e-2  # what it would be from bf16 logits


def test_contributions_and_probabilities_of_items_are_those_of_float64() -> None:
    base, finetuned = drawn(50, 200, 1.0)
    sums = VocabularySums.zero(200)
    for part in (slice(20), slice(20, None)):
        divergences(logits(base[part]), logits(finetuned[part]), [REVERSE], sums)
    q, p = base.double().log_softmax(-1), finetuned.double().log_softmax(-1)
    torch.testing.assert_close(sums.contribution, (p.exp() * (p - q)).sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.probability_base, q.exp().sum(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sums.probability_finetuned, p.exp().sum(0), rtol=1e-5, atol=1e-7)
    assert float(sums.contribution.sum()) == pytest.approx(float(exact(base, finetuned)[:, 0].sum()), rel=1e-5)
    assert sums.n_tokens == 50
    parts = (p.exp() * (p - q) - p.exp() + q.exp()).sum(0)
    torch.testing.assert_close(sums.parts, parts, rtol=1e-4, atol=1e-5)
    assert float(sums.parts.sum()) == pytest.approx(float(sums.contribution.sum()), rel=1e-5)


def adapted_pair(root: Path, family: str, **lora: object) -> ModelPair:
    modules = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True} if family == "gpt2" else {}
    base = tiny.save_model(root / "base", family)
    adapter = tiny.save_adapter(root / "adapter", tiny.model(family), **(modules | lora))
    return ModelPair(pin(tiny.pair_spec(base, "lora", adapter)), "cpu")


@pytest.mark.parametrize(
    ("family", "lora"),
    [("llama", {}), ("gemma2", {}), ("gpt2", {}), ("qwen2", {"target_modules": ["q_proj", "lm_head"]})],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pair_gives_what_full_forward_passes_give(family: str, lora: dict, side: str, tmp_path: Path) -> None:
    pair = adapted_pair(tmp_path, family, **lora)
    texts = sequences()
    batch = pad(texts, 0, side)  # gemma2 has a soft-cap; the other pairs have none
    z = [logits_of(pair, each, batch) for each in Side]
    found = batch_divergences(pair, batch, KINDS, None)
    assert [len(each) for each in found] == [len(text) for text in texts]
    for row, each in enumerate(found):
        expected = exact(*(side[row, batch.mask[row]] for side in z))
        torch.testing.assert_close(each.double(), expected, rtol=1e-4, atol=1e-5)
        assert each.mean() > 0.01


def test_batch_size_and_padding_change_nothing(lora_pair: ModelPair) -> None:
    texts = sequences()
    expected = torch.cat([batch_divergences(lora_pair, pad([text], 0, "right"), KINDS, None)[0] for text in texts])
    assert expected.shape == (sum(map(len, texts)), len(KINDS))
    for size in (1, 4, 16):
        found = text_divergences(lora_pair, texts, KINDS, batch_size=size)
        torch.testing.assert_close(torch.cat(list(found.values)), expected, rtol=1e-4, atol=1e-5)
        assert found.sums.n_tokens == len(expected)
        assert float(found.sums.contribution.sum()) == pytest.approx(float(expected[:, 0].sum()), rel=1e-4)
    wide = pad([*texts, [7] * 60], 0, "right")
    for batch in (pad(texts, 0, "left"), pad(texts, 250, "left"), pad(texts, 250, "right"), wide):
        found = torch.cat(batch_divergences(lora_pair, batch, KINDS, None)[: len(texts)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_token_changes_nothing_before_it(lora_pair: ModelPair) -> None:
    text = sequences()[0]
    edited = [*text[:5], 250, *text[6:]]
    first, second = batch_divergences(lora_pair, pad([text, edited], 0, "right"), KINDS, None)
    torch.testing.assert_close(first[:5], second[:5], rtol=0, atol=0)
    assert (first[5:] != second[5:]).any()


def test_leading_tokens_can_be_left_out_and_short_texts_have_none(lora_pair: ModelPair) -> None:
    texts = [[5, 6], *sequences()[:3], [9, 10, 11]]
    told: list[int] = []
    all_of = text_divergences(lora_pair, texts, KINDS, batch_size=2)
    found = text_divergences(lora_pair, texts, KINDS, batch_size=2, skip_first=3, on_texts=told.append)
    assert [len(each) for each in found.values] == [max(len(text) - 3, 0) for text in texts]
    for skipped, whole in zip(found.values, all_of.values, strict=True):
        torch.testing.assert_close(skipped, whole[3:], rtol=1e-4, atol=1e-6)
    assert sum(told) == len(texts)


def test_identical_pairs_and_an_adapter_without_effect_give_exactly_zero(
    identical_pair: ModelPair, base_folder: Path, tmp_path: Path
) -> None:
    modules = ["q_proj", "down_proj", "lm_head"]
    get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=modules)).save_pretrained(tmp_path / "lora")
    without_effect = ModelPair(pin(tiny.pair_spec(base_folder, "lora", tmp_path / "lora")), "cpu")
    copied = ModelPair(pin(tiny.pair_spec(base_folder, "full", base_folder)), "cpu")
    for pair in (identical_pair, without_effect, copied):
        found = text_divergences(pair, sequences(), KINDS, batch_size=4)
        assert not torch.cat(list(found.values)).any()
        assert not found.sums.contribution.any()


def test_vocabularies_of_different_size_are_refused_with_both_sizes(base_folder: Path, tmp_path: Path) -> None:
    larger = tiny.save_model(tmp_path / "larger", vocab_size=tiny.VOCAB + 4)
    spec = tiny.pair_spec(base_folder, "full", larger)
    assert spec.finetuned == VariantSpec("full", str(larger))
    with pytest.raises(IncompatiblePair, match=r"320 .* 324"):
        text_divergences(ModelPair(pin(spec), "cpu"), sequences(), KINDS, batch_size=4)


def test_texts_without_a_measured_token_are_refused(lora_pair: ModelPair) -> None:
    with pytest.raises(EmptyCorpus, match="the longest has 3"):
        text_divergences(lora_pair, [[5, 6], [7, 8, 9]], KINDS, batch_size=2, skip_first=3)
    with pytest.raises(EmptyCorpus, match="0 texts"):
        text_divergences(lora_pair, [], KINDS, batch_size=2)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"skip_first": -1}, {"kinds": []}])
def test_settings_out_of_range_are_refused(lora_pair: ModelPair, wrong: dict) -> None:
    settings = {"batch_size": 2, "kinds": KINDS} | wrong
    with pytest.raises(InvalidSetting):
        text_divergences(lora_pair, [[5, 6]], settings.pop("kinds"), **settings)


def test_weights_that_give_nan_are_not_averaged(identical_pair: ModelPair) -> None:
    with identical_pair.using(Side.BASE) as model:
        model.lm_head.weight[7, 3] = torch.nan
    with pytest.raises(NonFiniteActivations, match="check the weights"):
        text_divergences(identical_pair, sequences(), KINDS, batch_size=4)
