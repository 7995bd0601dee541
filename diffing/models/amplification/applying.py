"""Setting weights in a loaded model, in place and always undone.

Low-rank factors of plain LoRA are weighted by the scale that PEFT multiplies them with, so no weight is copied; what a
layer with a DoRA adds is weighted where it leaves the layer, because its magnitudes make it another function of its
factors. Whole tensors are interpolated in float32, and put back from a copy that is kept in main memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.models.amplification.parts import OWN, Part, between, changed_tensors


@contextmanager
def weighted_adapters(adapted: PeftModel, weights: Mapping[Part, float], names: Mapping[str, str]) -> Iterator[None]:
    """Within the block, each part of the adapters has its weight. `names` are PEFT's, by those of the parts."""
    model: nn.Module = adapted.get_base_model()
    by_module: dict[str, dict[str, float]] = {}
    for part, weight in weights.items():
        if part.kind == "low_rank":
            by_module.setdefault(part.name, {})[names[part.adapter]] = weight
    saved = {name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    with ExitStack() as undo:
        for module, of_adapters in by_module.items():
            layer = model.get_submodule(module)
            assert isinstance(layer, LoraLayer), f"{module} is a {type(layer).__name__}"
            undo.enter_context(weighted_layer(layer, of_adapters))
        for name, wrapper in saved.items():
            before = dict(wrapper.original_module.named_parameters())
            for inner, value in wrapper.modules_to_save[OWN].named_parameters():
                weight = next((w for part, w in weights.items() if part.name == f"{name}.{inner}"), 1.0)
                undo.enter_context(_interpolated(before[inner], value, weight))
        yield


@contextmanager
def weighted_layer(layer: LoraLayer, weights: Mapping[str, float]) -> Iterator[None]:
    """Within the block, the layer is W_base + the sum of weight * change over the adapters that are switched on."""
    active = [name for name in layer.active_adapters if name in layer.scaling]
    if all(weights.get(name, 1.0) == 1.0 for name in active):
        yield
    elif any(name in layer.lora_variant for name in active):
        handle = cast(nn.Module, layer).register_forward_hook(
            _weighting(layer, {name: weights.get(name, 1.0) for name in active})
        )
        try:
            yield
        finally:
            handle.remove()
    else:
        before = dict(layer.scaling)
        try:
            layer.scaling.update({name: before[name] * weights.get(name, 1.0) for name in active})
            yield
        finally:
            layer.scaling.update(before)


def _weighting(layer: LoraLayer, weights: Mapping[str, float]) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    """A hook that runs the layer with each adapter alone: what it adds is linear in the input, and so can be weighted
    there as well as in the weights."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        plain = layer.base_layer(*args).float()
        total, active = plain, layer._active_adapter
        try:
            for name, weight in weights.items():
                layer._active_adapter = [name]
                total = total + weight * (type(module).forward(module, *args).float() - plain)
        finally:
            layer._active_adapter = active
        return total.to(output.dtype)

    return hook


@contextmanager
def interpolated_tensors(
    base: PreTrainedModel, finetuned: PreTrainedModel, weights: Mapping[Part, float]
) -> Iterator[None]:
    """Within the block, each parameter of the finetuned model is base + weight * (finetuned - base)."""
    by_name = {part.name: weight for part, weight in weights.items()}
    with ExitStack() as undo:
        for name, before, value in list(changed_tensors(base, finetuned)):
            undo.enter_context(_interpolated(before, value, by_name.get(name, 1.0)))
        yield


@contextmanager
def _interpolated(base: Tensor, value: Tensor, weight: float) -> Iterator[None]:
    if weight == 1.0:
        yield
        return
    kept = value.detach().to("cpu", copy=True)
    try:
        with torch.no_grad():
            value.copy_(base if weight == 0.0 else between(base, value, weight))
        yield
    finally:
        with torch.no_grad():
            value.copy_(kept)


@contextmanager
def with_added(adapted: PeftModel, folders: Mapping[str, str]) -> Iterator[None]:
    """Within the block, the adapters in these folders (by names for PEFT) are switched on beside the pair's own."""
    if not folders:
        yield
        return
    model = adapted.get_base_model()
    wrapped = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    try:
        for name, folder in folders.items():
            adapted.load_adapter(folder, name, torch_device=str(adapted.device))
        _switch_on(adapted, [OWN, *folders])
        yield
    finally:
        _switch_on(adapted, [OWN])
        for name in folders:
            if name in adapted.peft_config:
                adapted.delete_adapter(name)
        _unwrap(model, wrapped)


def _switch_on(adapted: PeftModel, names: Sequence[str]) -> None:
    cast(LoraModel, adapted.base_model).set_adapter(list(names))
    adapted.eval().requires_grad_(False)


def _unwrap(model: nn.Module, wrapped: set[str]) -> None:
    """Takes out the layers that PEFT has put around modules for adapters that are gone."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and name not in wrapped:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
