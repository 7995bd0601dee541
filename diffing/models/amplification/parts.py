"""What a finetune changed, part by part: the places at which a weight can be set."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from diffing.errors import IncompatiblePair
from diffing.models.amplification.grammar import GROUPS
from diffing.models.sites import decoder_blocks

OWN = "default"
"""PEFT's name of the adapter that a pair has."""
_NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)
_ATTENTION, _MLP = re.compile(r"attn|attention", re.IGNORECASE), re.compile(r"mlp|ffn|feed_forward|moe", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One tensor, or one pair of low-rank factors, that the finetune changed."""

    name: str
    """Path of the module (`low_rank`) or of the parameter in the base model."""
    kind: Literal["low_rank", "tensor", "vector"]
    layer: int | None
    """Absolute; None outside of the decoder blocks."""
    group: str
    """One of `GROUPS`."""
    module: str
    """Path of the module below its block, or below the model outside of the blocks."""
    adapter: str = ""
    """The added adapter it is of; the pair's own finetune has no name."""

    def is_of(self, named: str) -> bool:
        """Whether a group, or a name such as `q_proj` or `self_attn.q_proj`, covers it."""
        return named == self.group if named in GROUPS else _within(named, self.module)


class Places:
    """Where parameters of a model are: what of its parts is in which decoder block."""

    def __init__(self, model: PreTrainedModel):
        blocks = decoder_blocks(model)
        self.n_layers = len(blocks)
        self._blocks = next(name for name, module in model.named_modules() if module is blocks)
        heads = {"head": model.get_output_embeddings(), "embedding": model.get_input_embeddings()}
        self._outside: dict[str, str] = {}
        self._paths: set[str] = set()
        inside = re.compile(re.escape(self._blocks) + r"\.\d+\.")
        for name, module in model.named_modules():
            plain = _plain(name)
            if group := next((group for group, of in heads.items() if module is of), None):
                self._outside[plain] = group
            if inside.match(name) or not (self._blocks.startswith(plain) or plain.startswith(self._blocks)):
                self._paths.add(inside.sub("", plain))

    def part(self, name: str, kind: Literal["low_rank", "tensor"], adapter: str = "") -> Part:
        """The part at a module (`low_rank`) or a parameter (`tensor`) of that path."""
        module, _, leaf = (name, "", "weight") if kind == "low_rank" else name.rpartition(".")
        below = re.match(re.escape(self._blocks) + r"\.(\d+)\.(.+)", module)
        inner = below[2] if below else module
        return Part(name, kind, int(below[1]) if below else None, self._group(inner, leaf, bool(below)), inner, adapter)

    def _group(self, module: str, leaf: str, in_block: bool) -> str:
        components = module.split(".")
        if _NORM.search(components[-1]) or (in_block and _NORM.search(components[0])):
            return "norm"
        if leaf == "bias":
            return "bias"
        if not in_block:
            return self._outside.get(module, "embedding" if components[-1] in ("wpe", "embed_positions") else "other")
        if _ATTENTION.search(components[0]):
            return "attention"
        return "mlp" if _MLP.search(components[0]) else "other"

    def names(self) -> list[str]:
        """Names by which modules of the model can be asked for, beside groups."""
        return sorted({component for path in self._paths for component in path.split(".") if not component.isdigit()})

    def has(self, named: str) -> bool:
        """Whether a module has this name, in any block or outside of them."""
        return any(_within(named, path) for path in self._paths)


def adapter_parts(places: Places, folder: Path, adapter: str = "") -> list[Part]:
    """Parts of a LoRA adapter, as its files list them. Raises IncompatiblePair for kinds that no weight can scale."""
    from peft import LoraConfig, PeftConfig
    from peft.utils import load_peft_weights

    label = adapter or folder.name
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise IncompatiblePair(f"adapter {label} is of type {config.peft_type}; only LoRA adapters can be amplified")
    if config.bias != "none":
        raise IncompatiblePair(
            f"adapter {label} trains biases (bias={config.bias}), which PEFT puts in place of the base's: "
            "there is no base left to weigh them against"
        )
    found: dict[str, Part] = {}
    for key in load_peft_weights(str(folder), device="cpu"):
        name = key.removeprefix("base_model.model.")
        module, factor = re.fullmatch(r"(.*?)(?:\.(lora_[A-Za-z_]+|base_layer|token_adapter)(?:\..*)?)?", name).groups()  # type: ignore[union-attr]
        if factor in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"):
            found[module] = places.part(module, "low_rank", adapter)
        elif factor is None and adapter:
            raise IncompatiblePair(f"adapter {label} trains whole modules ({name}); it cannot be added to another")
        elif factor is None:
            found[name] = places.part(name, "tensor", adapter)
        elif factor != "base_layer":
            raise IncompatiblePair(f"adapter {label} has {key}: trained like this, it cannot be amplified")
    return list(found.values())


def changed_tensors(base: PreTrainedModel, finetuned: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name and both values of each parameter that a full finetune changed; tied ones once.

    Raises IncompatiblePair if the two models have other parameters, or parameters of other shapes.
    """
    before = dict(base.named_parameters(remove_duplicate=False))
    after = dict(finetuned.named_parameters(remove_duplicate=False))
    for name in sorted(before.keys() | after.keys()):
        shapes = [tuple(side[name].shape) if name in side else "no such parameter" for side in (before, after)]
        if shapes[0] != shapes[1]:
            raise IncompatiblePair(
                f"parameter {name}: {shapes[0]} in the base, {shapes[1]} in the finetuned model; interpolation needs "
                "the same parameters on both sides"
            )
    seen: dict[int, str] = {}
    for name, value in after.items():
        first = seen.setdefault(id(value), name)
        if first == name:
            if not torch.equal(before[name], value):
                yield name, before[name], value
        elif not torch.equal(before[first], before[name]):
            raise IncompatiblePair(f"{first} and {name} are tied in the finetuned model, and differ in the base")


def full_parts(places: Places, base: PreTrainedModel, finetuned: PreTrainedModel) -> list[Part]:
    """Parameters that a full finetune changed."""
    return [places.part(name, "tensor") for name, _, _ in changed_tensors(base, finetuned)]


def between(base: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"], weight: float) -> Float[Tensor, "*shape"]:
    """base + weight * (value - base) in float32, in the dtype of `value`."""
    return (base.float() + weight * (value.float() - base.float())).to(value.dtype)


def vector_part(layer: int) -> Part:
    """What a steering vector changes: the output of one block."""
    return Part(f"output of block {layer}", "vector", layer, "vector", "vector")


def _within(named: str, module: str) -> bool:
    """Whether the components of a name follow each other in a module's path."""
    return f".{named}." in f".{module}."


def _plain(name: str) -> str:
    """A module's path as it is without an adapter."""
    return re.split(r"\.(?:base_layer|original_module|modules_to_save|lora_[A-Za-z_]+)(?:\.|$)", name)[0]
