"""Amplified adapters as PEFT folders, read back by PEFT alone."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.models.amplification import PRESETS, Amplification
from diffing.models.pair import ModelPair
from tests import tiny
from tests.models.amplification.pairs import IDS, KINDS, fresh_lora, logits, lora_pair, rules, uniform

PLAIN = [kind for kind in KINDS if "use_dora" not in kind]


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_scales_files_and_merged_weights_agree(kind: dict, base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a", **kind)
    amplification = rules((2.0,), (-0.5, 1, ("attention",)), (0.0, 3))
    expected = logits(pair, amplification)
    pair.export_amplified(amplification, tmp_path / "out")
    reread = PeftModel.from_pretrained(tiny.model(), tmp_path / "out").eval()
    torch.testing.assert_close(reread(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reread.merge_and_unload()(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_only_matched_b_factors_change(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a", use_rslora=True)
    pair.export_amplified(rules((2.0, 1, ("attention",))), tmp_path / "out")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "out"))
    assert before.keys() == after.keys()
    matched = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    for name, value in before.items():
        assert torch.equal(after[name], 2 * value if name == matched else value)
        assert after[name].dtype == value.dtype
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == (
        tmp_path / "a" / "adapter_config.json"
    ).read_bytes()


def test_an_export_is_stable_under_peft(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a")
    pair.export_amplified(PRESETS["2x"], tmp_path / "out")
    PeftModel.from_pretrained(tiny.model(), tmp_path / "out").save_pretrained(tmp_path / "again")
    first, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_bfloat16_factors_are_multiplied_in_float32_and_kept_in_bfloat16(base_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tiny.save_adapter(tmp_path / "a", tiny.model())
    path = tmp_path / "a" / "adapter_model.safetensors"
    stored = {name: value.bfloat16() for name, value in load_file(path).items()}
    save_file(stored, path)
    lora_pair(base_folder, tmp_path / "a").export_amplified(uniform(1.7), tmp_path / "out")
    for name, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        expected = (1.7 * stored[name].float()).bfloat16() if "lora_B" in name else stored[name]
        assert torch.equal(value, expected)


@pytest.mark.parametrize(
    "second",
    [{"r": 3}, {"target_modules": ["v_proj", "down_proj"], "use_rslora": True}, {"alpha_pattern": {"q_proj": 9}}],
    ids=str,
)
def test_several_adapters_are_exported_as_one(second: dict, base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path / "a")
    tiny.save_adapter(tmp_path / "b", tiny.model(), seed=2, scale=0.1, **second)
    added = {"id": str(tmp_path / "b"), "rules": [{"weight": -0.5}]}
    both = Amplification.of({"name": "both", "rules": [{"weight": 2}], "adapters": [added]})
    pair.export_amplified(both, tmp_path / "out")
    reread = lora_pair(base_folder, tmp_path / "out")
    torch.testing.assert_close(logits(reread, Side.FINETUNED), logits(pair, both), rtol=1e-4, atol=1e-4)
    ranks = {
        len(value)
        for name, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items()
        if "lora_A" in name
    }
    assert ranks == {json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"]}


def test_an_export_records_what_was_amplified(lora_pair: ModelPair, tmp_path: Path) -> None:
    lora_pair.export_amplified(PRESETS["3x"], tmp_path / "out")
    record = json.loads((tmp_path / "out" / "amplification.json").read_text("utf-8"))
    assert Amplification.of(record["amplification"]) == PRESETS["3x"]
    assert record["weights"] == lora_pair.amplification(PRESETS["3x"]).rows()


def test_what_is_no_adapter_is_not_exported(
    lora_pair: ModelPair, full_pair: ModelPair, base_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSetting, match="'z' is of logits"):
        lora_pair.export_amplified(Amplification("z", logits=1.0), tmp_path / "out")
    with pytest.raises(InvalidSetting, match="of kind full"):
        full_pair.export_amplified(uniform(2), tmp_path / "out")
    dora = fresh_lora(base_folder, tmp_path / "a", use_dora=True)
    with pytest.raises(InvalidSetting, match=r"down_proj: a DoRA at weight 2"):
        dora.export_amplified(uniform(2), tmp_path / "out")
    dora.export_amplified(uniform(1), tmp_path / "out")
    torch.testing.assert_close(
        logits(dora, Side.FINETUNED), PeftModel.from_pretrained(tiny.model(), tmp_path / "out").eval()(IDS).logits
    )
