"""Pairs of each kind, and what they must be left as."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from diffing.axes import Side
from diffing.models.amplification import Amplification, Rule
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from tests import tiny

IDS = torch.tensor([[5, 9, 40, 7, 300, 11]])
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def lora_pair(base: Path, adapter: Path) -> ModelPair:
    return ModelPair(pin(tiny.pair_spec(base, "lora", adapter)), device="cpu")


def fresh_lora(base: Path, folder: Path, **lora: object) -> ModelPair:
    """A pair with an adapter of its own kind, whose factors are small enough that logits are of order 1."""
    return lora_pair(base, tiny.save_adapter(folder, tiny.model(), scale=0.1, **lora))


def full_finetune(folder: Path, **changes: object) -> Path:
    """A model of which every tensor, norms and embeddings too, was moved a little."""
    model = tiny.model(**changes)
    generator = torch.Generator().manual_seed(7)
    for value in model.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=generator)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def rules(*given: tuple) -> Amplification:
    """Of (weight, layers, modules) each."""
    return Amplification("planted", tuple(Rule(*each) for each in given))


def uniform(weight: float) -> Amplification:
    return Amplification.uniform(weight)


@torch.no_grad()
def logits(pair: ModelPair, of: Side | Amplification) -> torch.Tensor:
    with pair.using(of) if isinstance(of, Side) else pair.amplified(of) as model:
        return model(input_ids=IDS).logits.clone()


def state(pair: ModelPair) -> dict[str, object]:
    """Everything that an amplification may touch: names, bits and scales."""
    found: dict[str, object] = {}
    for side in Side:
        with pair.using(side) as model:
            found |= {f"{side} {name}": value.clone() for name, value in model.state_dict().items()}
            for name, module in model.named_modules():
                found[f"{side} {name} is"] = type(module).__name__
                found[f"{side} {name} hooks"] = len(module._forward_hooks)
                if isinstance(module, LoraLayer):
                    found[f"{side} {name} scale"] = dict(module.scaling)
                    found[f"{side} {name} active"] = list(module.active_adapters)
            found |= {f"{side} {name} grad": value.requires_grad for name, value in model.named_parameters()}
        found[f"{side} logits"] = logits(pair, side)
    return found


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        assert same, name


def weights_of(pair: ModelPair, amplification: Amplification) -> dict[str, float]:
    return {part.name: weight for part, weight in pair.amplification(amplification).weights.items()}


KINDS: Sequence[dict] = (
    {},
    {"use_rslora": True, "r": 4},
    {"use_dora": True},
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"modules_to_save": ["lm_head", "norm"]},
    {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
)
