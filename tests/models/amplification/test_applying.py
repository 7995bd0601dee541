"""Weights set in place: closed forms, other implementations, and what is left when the block ends."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from diffing.axes import Side
from diffing.errors import IncompatiblePair
from diffing.models.amplification import PRESETS, Amplification
from diffing.models.amplification.applying import weighted_layer
from diffing.models.generation import Sampling, generate
from diffing.models.pair import ModelPair
from diffing.models.sites import reading
from diffing.models.sources import pin
from tests import tiny
from tests.models.amplification.pairs import (
    IDS,
    KINDS,
    TOLERANCE,
    assert_same,
    fresh_lora,
    full_finetune,
    logits,
    lora_pair,
    rules,
    state,
    uniform,
)


@pytest.mark.parametrize(("weight", "expected"), [(-1, (-17, 7)), (0, (1, 1)), (1, (19, -5)), (2, (37, -11))])
def test_one_layer_by_hand(weight: float, expected: tuple) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    adapted = get_peft_model(model, LoraConfig(r=1, lora_alpha=2, target_modules=["0"])).eval()
    layer = adapted.get_base_model()[0]
    layer.base_layer.weight.data = torch.eye(2)
    layer.lora_A["default"].weight.data = torch.tensor([[1.0, 2.0]])
    layer.lora_B["default"].weight.data = torch.tensor([[3.0], [-1.0]])
    with weighted_layer(layer, {"default": float(weight)}):
        assert layer(torch.ones(1, 2)).tolist() == [list(map(float, expected))]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_weight_1_is_the_finetuned_model_and_weight_0_the_base(kind: dict, base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a", **kind)
    adapted = PeftModel.from_pretrained(tiny.model(), tmp_path / "a").eval()(IDS).logits
    assert torch.equal(logits(pair, uniform(1)), adapted)
    torch.testing.assert_close(logits(pair, uniform(0)), tiny.model()(IDS).logits, **TOLERANCE)
    assert not torch.allclose(adapted, tiny.model()(IDS).logits, atol=1e-2)


def test_weight_0_and_1_of_a_full_finetune_are_the_two_sides_to_the_bit(base_folder: Path, tmp_path: Path) -> None:
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f"))), device="cpu")
    assert torch.equal(logits(pair, uniform(1)), logits(pair, Side.FINETUNED))
    assert torch.equal(logits(pair, uniform(0)), logits(pair, Side.BASE))
    assert not torch.allclose(logits(pair, Side.BASE), logits(pair, Side.FINETUNED), atol=1e-2)


def test_the_opposite_is_the_adapter_with_negated_b(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a")
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    negated = {name: -value if "lora_B" in name else value for name, value in stored.items()}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_config.json").write_bytes((tmp_path / "a" / "adapter_config.json").read_bytes())
    save_file(negated, tmp_path / "b" / "adapter_model.safetensors")
    opposite = lora_pair(base_folder, tmp_path / "b")
    torch.testing.assert_close(logits(pair, PRESETS["-1x"]), logits(opposite, Side.FINETUNED), **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("weight", [-1.0, 0.5, 3.0])
def test_every_kind_of_adapter_is_base_plus_weighted_change(
    kind: dict, weight: float, base_folder: Path, tmp_path: Path
) -> None:
    """The second implementation merges the adapter, and interpolates the merged weights."""
    pair = fresh_lora(base_folder, tmp_path / "a", **kind)
    merged = PeftModel.from_pretrained(tiny.model(), tmp_path / "a").merge_and_unload()
    base = dict(tiny.model().named_parameters())
    for name, value in merged.named_parameters():
        value.data = base[name] + weight * (value - base[name])
    torch.testing.assert_close(logits(pair, uniform(weight)), merged(IDS).logits, rtol=1e-4, atol=1e-4)


def test_hidden_states_up_to_the_amplified_layer_are_the_finetuned_ones(base_folder: Path, tmp_path: Path) -> None:
    pair, found = fresh_lora(base_folder, tmp_path / "a"), {}
    for of in (Side.FINETUNED, rules((3.0, 2))):
        using = pair.using(of) if isinstance(of, Side) else pair.amplified(of)
        with using as model, reading(model, [0, 1, 2, 3]) as streams:
            model(IDS)
        found[isinstance(of, Side)] = dict(streams)
    assert all(torch.equal(found[True][layer], found[False][layer]) for layer in (0, 1))
    assert all(not torch.allclose(found[True][layer], found[False][layer], atol=1e-3) for layer in (2, 3))


def test_logits_are_affine_in_the_weight_of_the_head(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a", target_modules=["lm_head"])
    z = [logits(pair, uniform(weight)) for weight in (0, 1, 2, -1)]
    for step in (z[2] - z[1], z[0] - z[3]):
        torch.testing.assert_close(step, z[1] - z[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("second", [{}, {"target_modules": ["v_proj", "q_proj"], "r": 5}, {"use_dora": True}], ids=str)
def test_two_adapters_add_up_exactly(second: dict, base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a", target_modules=["q_proj", "down_proj"])
    tiny.save_adapter(tmp_path / "b", tiny.model(), seed=2, scale=0.1, **second)
    expected = tiny.model()
    for folder, weight in ((tmp_path / "a", 2.0), (tmp_path / "b", -0.5)):
        base = dict(tiny.model().named_parameters())
        merged = dict(PeftModel.from_pretrained(tiny.model(), folder).merge_and_unload().named_parameters())
        for name, value in expected.named_parameters():
            value.data += weight * (merged[name] - base[name])
    both = _both(2.0, -0.5, tmp_path / "b")
    torch.testing.assert_close(logits(pair, both), expected(IDS).logits, rtol=1e-4, atol=1e-4)
    swapped = lora_pair(base_folder, tmp_path / "b")
    torch.testing.assert_close(
        logits(swapped, _both(-0.5, 2.0, tmp_path / "a")), logits(pair, both), rtol=1e-4, atol=1e-4
    )


def test_two_adapters_are_pefts_cat_merge(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a")
    tiny.save_adapter(tmp_path / "b", tiny.model(), seed=2, scale=0.1, r=3)
    peft = PeftModel.from_pretrained(tiny.model(), tmp_path / "a", adapter_name="a")
    peft.load_adapter(tmp_path / "b", "b")
    peft.add_weighted_adapter(["a", "b"], [2.0, 0.5], "both", combination_type="cat")
    peft.set_adapter("both")
    torch.testing.assert_close(
        logits(pair, _both(2.0, 0.5, tmp_path / "b")), peft.eval()(IDS).logits, rtol=1e-4, atol=1e-4
    )


def test_the_midpoint_of_a_full_finetune_is_the_mean_of_the_weights(base_folder: Path, tmp_path: Path) -> None:
    pair = ModelPair(tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f")), device="cpu")
    with pair.using(Side.BASE) as base, pair.using(Side.BASE):
        before = {name: value.clone() for name, value in base.named_parameters()}
    with pair.using(Side.FINETUNED) as finetuned:
        after = {name: value.clone() for name, value in finetuned.named_parameters()}
    with pair.amplified(uniform(0.5)) as model:
        for name, value in model.named_parameters():
            torch.testing.assert_close(value.data, (before[name] + after[name]) / 2, rtol=0, atol=1e-6)


def test_groups_of_a_full_finetune_are_weighted_alone(base_folder: Path, tmp_path: Path) -> None:
    pair = ModelPair(tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f")), device="cpu")
    base, finetuned = (dict(_model(pair, side).named_parameters()) for side in Side)
    finetuned = {name: value.clone() for name, value in finetuned.items()}
    with pair.amplified(rules((0.0, "all", ("norm",)), (0.0, 1, ("mlp",)), (0.0, "all", ("embedding",)))) as model:
        restored = {name for name, value in model.named_parameters() if torch.equal(value, base[name])}
        kept = {name for name, value in model.named_parameters() if torch.equal(value, finetuned[name])}
    assert restored | kept == set(base)
    assert restored == {name for name in base if "norm" in name or ".1.mlp" in name or "embed" in name}


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base", tie_word_embeddings=True)
    moved = full_finetune(tmp_path / "moved", tie_word_embeddings=True)
    pair = ModelPair(tiny.pair_spec(base, "full", moved), device="cpu")
    with pair.amplified(uniform(2)) as model:
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        amplified = model.get_input_embeddings().weight.clone()
    embeddings = [_model(pair, side).get_input_embeddings().weight for side in Side]
    torch.testing.assert_close(amplified, 2 * embeddings[1] - embeddings[0], **TOLERANCE)


def test_a_finetune_with_parameters_of_another_shape_is_refused_with_its_name(
    base_folder: Path, tmp_path: Path
) -> None:
    moved = full_finetune(tmp_path / "moved", intermediate_size=56)
    pair = ModelPair(tiny.pair_spec(base_folder, "full", moved), device="cpu")
    with pytest.raises(
        IncompatiblePair, match=r"layers\.0\.mlp\.down_proj\.weight: \(32, 48\) in the base, \(32, 56\)"
    ):
        logits(pair, uniform(2))


def test_bfloat16_weights_are_interpolated_in_float32(tmp_path: Path, base_folder: Path) -> None:
    from dataclasses import replace

    spec = tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f"))
    pair = ModelPair(replace(spec, base=replace(spec.base, dtype="bfloat16")), device="cpu")
    base, finetuned = ({name: value.float() for name, value in _model(pair, side).named_parameters()} for side in Side)
    with pair.amplified(uniform(2.5)) as model:
        for name, value in model.named_parameters():
            exact = base[name] + 2.5 * (finetuned[name] - base[name])
            assert torch.equal(value, exact.bfloat16())


def test_a_steering_vector_is_scaled(base_folder: Path, tmp_path: Path) -> None:
    save_file({"v": torch.randn(tiny.WIDTH)}, tmp_path / "v.safetensors")
    found = []
    for strength, weight in ((2.0, 1.5), (3.0, 1.0)):
        spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=1, strength=strength)
        found.append(logits(ModelPair(spec, device="cpu"), uniform(weight)))
    torch.testing.assert_close(found[0], found[1], **TOLERANCE)
    assert not torch.allclose(found[0], tiny.model()(IDS).logits, atol=1e-2)


def test_an_identical_pair_is_the_base_at_every_weight(identical_pair: ModelPair) -> None:
    for amplification in (uniform(5), PRESETS["-1x"], Amplification("a", logits=7.0)):
        assert torch.equal(logits(identical_pair, amplification), logits(identical_pair, Side.BASE))


@pytest.mark.parametrize("by", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", [*KINDS, "added", "added dora", "full", "steering_vector", "logits"], ids=str)
def test_whatever_ends_the_block_leaves_the_pair_as_it_was(
    kind: dict | str, by: type[BaseException] | None, base_folder: Path, tmp_path: Path
) -> None:
    if kind == "full":
        pair = ModelPair(tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f")), device="cpu")
    elif kind == "steering_vector":
        save_file({"v": torch.randn(tiny.WIDTH)}, tmp_path / "v.safetensors")
        spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=1)
        pair = ModelPair(spec, device="cpu")
    else:
        pair = fresh_lora(base_folder, tmp_path / "a", **(kind if isinstance(kind, dict) else {}))
    amplification = uniform(2.5) if kind != "logits" else Amplification("z", logits=2.0)
    if isinstance(kind, str) and kind.startswith("added"):
        targets = {"target_modules": ["v_proj", "q_proj"], "use_dora": kind == "added dora"}
        amplification = _both(2.0, 3.0, tiny.save_adapter(tmp_path / "b", tiny.model(), seed=2, **targets))
    before = state(pair)
    with nullcontext() if by is None else pytest.raises(by), pair.amplified(amplification) as model:
        generate(model, pair.tokenizer, [[5, 6], [7]], Sampling(max_new_tokens=3))
        if by is not None:
            raise by("in the middle")
    assert not torch.equal(logits(pair, amplification), logits(pair, Side.FINETUNED))
    assert_same(before, state(pair))


def test_an_interrupt_while_tensors_are_set_leaves_the_pair_as_it_was(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffing.models.amplification.applying as applying

    pair = ModelPair(tiny.pair_spec(base_folder, "full", full_finetune(tmp_path / "f")), device="cpu")
    before, done, between = state(pair), [], applying.between

    def interrupted(base: torch.Tensor, value: torch.Tensor, weight: float) -> torch.Tensor:
        done.append(1)
        if len(done) > 5:
            raise KeyboardInterrupt
        return between(base, value, weight)

    monkeypatch.setattr(applying, "between", interrupted)
    with pytest.raises(KeyboardInterrupt), pair.amplified(uniform(3)):
        pass
    assert len(done) == 6
    assert_same(before, state(pair))


def test_blocks_of_different_models_are_not_nested(lora_pair: ModelPair) -> None:
    twice, same = uniform(2), Amplification.of({"name": "weight 2", "rules": [{"weight": 2}]})
    with lora_pair.amplified(twice) as outer:
        before = outer(IDS).logits
        with lora_pair.amplified(same) as inner:
            assert torch.equal(inner(IDS).logits, before)
        assert torch.equal(outer(IDS).logits, before)
        for other in (lambda: lora_pair.using(Side.BASE), lambda: lora_pair.amplified(uniform(3))):
            with pytest.raises(RuntimeError, match="inside a block that uses amplification 'weight 2'"), other():
                pass
    with lora_pair.using(Side.BASE), pytest.raises(RuntimeError, match="the base side"), lora_pair.amplified(twice):
        pass


def _both(own: float, other: float, folder: Path) -> Amplification:
    added = {"id": str(folder), "rules": [{"weight": other}]}
    return Amplification.of({"name": "both", "rules": [{"weight": own}], "adapters": [added]})


def _model(pair: ModelPair, side: Side) -> nn.Module:
    with pair.using(side) as model:
        return model
