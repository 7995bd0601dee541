"""The two sides of a pair, and what does not make a pair."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from diffing.axes import Side
from diffing.errors import IncompatiblePair, InvalidSetting, MissingInput, SchemaMismatch, UnknownName
from diffing.models.pair import ModelPair, common_vocabulary
from diffing.models.sites import residuals
from diffing.models.sources import pin
from diffing.text.windows import pad
from tests import tiny

IDS = torch.tensor([[5, 9, 40, 7, 300, 11]])


def logits(pair: ModelPair, side: Side) -> torch.Tensor:
    with pair.using(side) as model:
        return model(IDS).logits


def test_a_lora_pair_gives_base_and_adapted_logits(lora_pair: ModelPair, adapter_folder: Path) -> None:
    base = tiny.model()
    plain = base(IDS).logits
    adapted = PeftModel.from_pretrained(base, adapter_folder)(IDS).logits
    for _ in range(2):  # switching back and forth leaves no trace
        torch.testing.assert_close(logits(lora_pair, Side.BASE), plain, rtol=0, atol=0)
        torch.testing.assert_close(logits(lora_pair, Side.FINETUNED), adapted, rtol=0, atol=0)
    assert not torch.allclose(plain, adapted, atol=1e-2)


@pytest.mark.parametrize(
    "kind",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_every_kind_of_adapter_is_switched_on_and_off(kind: dict, base_folder: Path, tmp_path: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "adapter", tiny.model(), **kind)
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter)), device="cpu")
    adapted = PeftModel.from_pretrained(tiny.model(), adapter).eval()(IDS).logits
    torch.testing.assert_close(logits(pair, Side.FINETUNED), adapted, rtol=0, atol=0)
    torch.testing.assert_close(logits(pair, Side.BASE), tiny.model()(IDS).logits, rtol=0, atol=0)


def test_a_lora_pair_holds_one_copy_of_the_base(lora_pair: ModelPair) -> None:
    pointers = {}
    for side in Side:
        with lora_pair.using(side) as model:
            pointers[side] = {p.data_ptr(): p.numel() for n, p in model.named_parameters() if "lora_" not in n}
    assert pointers[Side.BASE] == pointers[Side.FINETUNED]
    assert sum(pointers[Side.BASE].values()) == sum(p.numel() for p in tiny.model().parameters())


def test_a_merged_full_finetune_equals_its_lora_pair(lora_pair: ModelPair, full_pair: ModelPair) -> None:
    for side in Side:
        torch.testing.assert_close(logits(lora_pair, side), logits(full_pair, side), rtol=1e-4, atol=1e-4)


def test_an_identical_pair_gives_the_same_logits_to_the_bit(identical_pair: ModelPair) -> None:
    assert torch.equal(logits(identical_pair, Side.BASE), logits(identical_pair, Side.FINETUNED))


def test_only_the_finetuned_side_of_a_steering_vector_pair_is_steered(base_folder: Path, tmp_path: Path) -> None:
    vector = torch.randn(tiny.WIDTH)
    save_file({"v": vector}, tmp_path / "v.safetensors")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=1, strength=2.0)
    pair, batch, found = ModelPair(pin(spec), device="cpu"), pad(IDS.tolist(), 0, "right"), {}
    for side in Side:
        with pair.using(side) as model:
            found[side] = residuals(model, batch, [0, 1])
    assert torch.equal(found[Side.BASE][0], found[Side.FINETUNED][0])
    torch.testing.assert_close(found[Side.FINETUNED][1], found[Side.BASE][1] + 2.0 * vector, rtol=0, atol=0)


def test_a_pair_first_touched_in_inference_mode_works_inside_and_after_it(lora_pair: ModelPair) -> None:
    with torch.inference_mode():
        inside = logits(lora_pair, Side.FINETUNED)
    torch.testing.assert_close(logits(lora_pair, Side.FINETUNED), inside, rtol=0, atol=0)
    with lora_pair.using(Side.BASE) as model:
        assert not any(parameter.is_inference() for parameter in model.parameters())


def test_using_both_sides_at_once_is_refused(lora_pair: ModelPair) -> None:
    with lora_pair.using(Side.BASE), pytest.raises(RuntimeError, match="base side"), lora_pair.using(Side.FINETUNED):
        pass
    with lora_pair.using(Side.FINETUNED), lora_pair.using(Side.FINETUNED):
        pass


def test_an_adapter_of_another_width_names_both(tmp_path: Path, base_folder: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "wide", tiny.model(hidden_size=64))
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter)), device="cpu")
    with pytest.raises(IncompatiblePair, match=r"wide.*tiny"):
        logits(pair, Side.FINETUNED)


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path: Path, base_folder: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "deep", tiny.model(num_hidden_layers=6))
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter)), device="cpu")
    with pytest.raises(IncompatiblePair, match="8 stored tensors have no place"):
        logits(pair, Side.FINETUNED)


def test_an_adapter_of_another_family_is_refused(tmp_path: Path, base_folder: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "other", tiny.model("gpt2"), target_modules=["c_attn"])
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", adapter)), device="cpu")
    with pytest.raises(IncompatiblePair, match="do not fit together"):
        logits(pair, Side.FINETUNED)


def test_a_torn_adapter_file_is_refused(tmp_path: Path, base_folder: Path, adapter_folder: Path) -> None:
    tensors = load_file(adapter_folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    (tmp_path / "adapter_config.json").write_bytes((adapter_folder / "adapter_config.json").read_bytes())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", tmp_path)), device="cpu")
    with pytest.raises(IncompatiblePair, match="1 places have no tensor"):
        logits(pair, Side.FINETUNED)


def test_a_full_model_given_as_an_adapter_is_refused(base_folder: Path, merged_folder: Path) -> None:
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "lora", merged_folder)), device="cpu")
    with pytest.raises(SchemaMismatch, match=r"no adapter_config\.json"):
        logits(pair, Side.FINETUNED)


def test_a_full_finetune_of_another_depth_is_refused(tmp_path: Path, base_folder: Path) -> None:
    deep = tiny.save_model(tmp_path / "deep", num_hidden_layers=5)
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", deep)), device="cpu")
    with pytest.raises(IncompatiblePair, match=r"tiny has 4 layers.*deep has 5"):
        logits(pair, Side.FINETUNED)


def test_a_finetune_with_another_tokenizer_is_refused_with_both_names(tmp_path: Path, base_folder: Path) -> None:
    other = tiny.save_model(tmp_path / "other")
    text = (other / "tokenizer.json").read_text("utf-8").replace('"<s>"', '"<start>"')
    (other / "tokenizer.json").write_text(text, "utf-8")
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", other)), device="cpu")
    with pytest.raises(IncompatiblePair, match=r"tiny and .*other disagree: token 1 is '<s>'"):
        _ = pair.tokenizer


def test_tokens_added_at_the_end_leave_the_common_prefix() -> None:
    base, more = tiny.tokenizer(), tiny.tokenizer.__wrapped__()
    more.add_tokens(["<extra_1>", "<extra_2>"])
    assert common_vocabulary(base, more, ("a", "b")) == len(base) == len(more) - 2


def test_the_finetunes_chat_template_is_used_when_the_base_has_none(tmp_path: Path, merged_folder: Path) -> None:
    bare = tiny.save_model(tmp_path / "bare")
    for path in (bare / "chat_template.jinja", bare / "tokenizer_config.json"):
        if path.name == "chat_template.jinja":
            path.unlink()
    pair = ModelPair(pin(tiny.pair_spec(bare, "full", merged_folder)), device="cpu")
    assert pair.tokenizer.chat_template == tiny.CHATML


def test_a_steering_vector_of_another_width_is_refused(tmp_path: Path, base_folder: Path) -> None:
    save_file({"v": torch.randn(7)}, tmp_path / "v.safetensors")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=1)
    with pytest.raises(IncompatiblePair, match=r"shape \[7\].*needs \[32\]"):
        logits(ModelPair(pin(spec), device="cpu"), Side.FINETUNED)


def test_an_unknown_dtype_is_refused(base_folder: Path) -> None:
    spec = tiny.pair_spec(base_folder)
    pair = ModelPair(type(spec)(tiny.model_spec(base_folder, dtype="float12"), spec.finetuned, "planted"), device="cpu")
    with pytest.raises(InvalidSetting, match=r"model\.dtype=float12"):
        logits(pair, Side.BASE)


def test_pinning_records_the_content_of_local_weights(tmp_path: Path, base_folder: Path) -> None:
    first = pin(tiny.pair_spec(base_folder, "lora", tiny.save_adapter(tmp_path / "a", tiny.model(), seed=1)))
    again = pin(tiny.pair_spec(base_folder, "lora", tmp_path / "a"))
    other = pin(tiny.pair_spec(base_folder, "lora", tiny.save_adapter(tmp_path / "a", tiny.model(), seed=2)))
    assert first == again
    assert first.digest != other.digest
    assert str(first.finetuned.revision).startswith("sha256:")


def test_a_missing_path_lists_its_neighbours(tmp_path: Path, base_folder: Path) -> None:
    (tmp_path / "adapter_one").mkdir()
    with pytest.raises(UnknownName, match="adapter_one"):
        pin(tiny.pair_spec(base_folder, "lora", tmp_path / "adapter_on"))


def test_an_unreachable_hub_id_says_what_to_do(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec = tiny.pair_spec(base_folder)
    missing = type(spec)(tiny.model_spec(base_folder, id="nobody/nothing"), spec.finetuned, "planted")
    with pytest.raises(MissingInput, match="local folder"):
        pin(missing)
