"""Which weight each part gets, and what is refused before anything runs."""

from pathlib import Path

import pytest

from diffing.errors import IncompatiblePair, InvalidSetting, UnknownName
from diffing.models.amplification import GROUPS, Amplification, LayerRange
from diffing.models.amplification.resolving import layers_of
from diffing.models.pair import ModelPair
from tests import tiny
from tests.models.amplification.pairs import fresh_lora, full_finetune, rules, weights_of


def test_relative_layers_are_rounded_halves_to_even() -> None:
    assert layers_of(LayerRange(0.0, 0.8), 28) == set(range(23))
    assert layers_of(LayerRange(0.0, 0.8), 30) == set(range(24))
    assert layers_of(LayerRange(0.0, 0.8), 12) == set(range(10))
    assert layers_of(0.5, 26) == {12}  # 12.5
    assert layers_of(0.5, 28) == {14}  # 13.5
    assert layers_of(LayerRange(0.0, 1.0), 28) == set(range(28))
    assert layers_of((3, 0.5, LayerRange(5, 6)), 9) == {3, 4, 5, 6}
    assert layers_of(7, 9) == {7}
    assert layers_of("all", 2) == {None, 0, 1}


def test_a_later_rule_for_attention_leaves_the_mlp_alone(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path)
    found = weights_of(pair, rules((2.0,), (0.0, 3, ("attention",))))
    assert found["model.layers.3.self_attn.q_proj"] == 0.0
    assert found["model.layers.3.mlp.down_proj"] == 2.0
    assert {w for name, w in found.items() if ".3." not in name} == {2.0}


def test_attention_and_mlp_together_are_all_of_a_lora(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path, target_modules="all-linear")
    everything, attention, mlp = (
        weights_of(pair, rules((3.0, "all", (group,)))) for group in ("all", "attention", "mlp")
    )
    named = [{name for name, weight in found.items() if weight == 3.0} for found in (everything, attention, mlp)]
    assert named[0] == named[1] | named[2] == set(everything)
    assert not named[1] & named[2]
    assert len(named[0]) == 7 * tiny.LAYERS


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_groups_partition_the_parameters_of_every_family(family: str, tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base", family)
    moved = full_finetune(tmp_path / "moved", family=family)
    pair = ModelPair(tiny.pair_spec(base, "full", moved), device="cpu")
    parts = list(pair.amplification(Amplification.FINETUNED).weights)
    assert {part.name for part in parts} == {name for name, _ in tiny.model(family).named_parameters()}
    assert all(sum(part.is_of(group) for group in GROUPS) == 1 for part in parts)
    assert not [part.name for part in parts if part.group == "other"]
    for part in parts:
        assert (part.layer is None) == (part.group in ("embedding", "head") or part.module.count("layers") > 0
                                        or part.name.split(".")[1] in ("norm", "ln_f", "final_layer_norm"))  # fmt: skip
    in_blocks = {part.group for part in parts if part.layer == 1}
    assert {"attention", "mlp", "norm"} <= in_blocks


def test_named_projections_can_be_weighted(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path, target_modules=["q_proj", "v_proj", "down_proj"])
    found = weights_of(pair, rules((2.0, "all", ("self_attn.q_proj", "down_proj"))))
    assert all(weight == (1.0 if "v_proj" in name else 2.0) for name, weight in found.items())


def test_an_attention_only_adapter_passes_and_has_no_mlp(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path, target_modules=["q_proj", "v_proj"])
    resolution = pair.amplification(rules((2.0,), (0.0, "all", ("mlp",))))
    assert {row["group"] for row in resolution.rows()} == {"attention"}
    assert set(resolution.weights.values()) == {2.0}
    (unmatched,) = resolution.unmatched
    assert "rule 2 (weight: 0.0, layers: all, modules: mlp)" in unmatched


def test_rows_say_what_is_matched(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path, target_modules=["q_proj", "v_proj", "down_proj"])
    rows = pair.amplification(rules((2.0, 1, ("attention",)))).rows()
    assert rows[2] == {
        "adapter": "", "layer": 1, "group": "attention", "weight": 2.0,
        "modules": ["self_attn.q_proj", "self_attn.v_proj"],
    }  # fmt: skip
    assert [(row["layer"], row["group"]) for row in rows] == [
        (layer, group) for layer in range(tiny.LAYERS) for group in ("attention", "mlp")
    ]


def test_no_modules_and_no_layers_change_nothing(lora_pair: ModelPair) -> None:
    for nothing in (rules((5.0, "all", ())), rules((5.0, ())), rules()):
        resolution = lora_pair.amplification(nothing)
        assert not resolution.changed()
        assert not resolution.unmatched


@pytest.mark.parametrize("layers", [tiny.LAYERS, -1, (0, 99), LayerRange(2, tiny.LAYERS)])
def test_a_layer_that_the_model_has_not_is_refused_with_its_place(lora_pair: ModelPair, layers: object) -> None:
    with pytest.raises(InvalidSetting, match=r"'planted', rule 2 .*is out of range: the model has layers 0 to 3"):
        lora_pair.amplification(rules((2.0,), (1.0, layers)))


def test_an_unknown_module_is_refused_with_its_place(lora_pair: ModelPair) -> None:
    for name in ("atention", "q_prj", "layers", "lora_A", "default", "base_layer"):
        with pytest.raises(UnknownName, match=rf"(?s)unknown module '{name}'.*in amplification 'planted', rule 1"):
            lora_pair.amplification(rules((2.0, "all", (name,))))
    with pytest.raises(UnknownName, match="nearest first: attention"):
        lora_pair.amplification(rules((2.0, "all", ("atention",))))


def test_rules_that_name_nothing_that_was_changed_are_refused(base_folder: Path, tmp_path: Path) -> None:
    pair = fresh_lora(base_folder, tmp_path, target_modules=["q_proj"], layers_to_transform=[1])
    with pytest.raises(InvalidSetting, match=r"'planted': no rule names anything .* it changed attention of layer 1"):
        pair.amplification(rules((2.0, "all", ("mlp",))))
    with pytest.raises(InvalidSetting, match="no rule names anything"):
        pair.amplification(rules((2.0, 2)))


def test_an_identical_pair_refuses_bad_layers_only(identical_pair: ModelPair) -> None:
    assert not identical_pair.amplification(rules((2.0, 1, ("mlp",)))).weights
    with pytest.raises(InvalidSetting, match="out of range"):
        identical_pair.amplification(rules((2.0, 99)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, "trains biases"),
        ({"trainable_token_indices": [5]}, "cannot be amplified"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
    ],
    ids=str,
)
def test_adapters_that_cannot_be_added_are_refused_with_their_name(
    kind: dict, message: str, lora_pair: ModelPair, tmp_path: Path
) -> None:
    other = tiny.save_adapter(tmp_path / "other", tiny.model("qwen2"), **kind)
    with pytest.raises(IncompatiblePair, match=rf"adapter .*other.*{message}"):
        lora_pair.amplification(Amplification.of({"name": "a", "adapters": [{"id": str(other)}]}))


def test_adapters_are_added_to_lora_pairs_only(full_pair: ModelPair, adapter_folder: Path) -> None:
    added = Amplification.of({"name": "a", "adapters": [{"id": str(adapter_folder)}]})
    with pytest.raises(IncompatiblePair, match="of kind full"):
        full_pair.amplification(added)
