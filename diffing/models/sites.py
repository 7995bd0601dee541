"""Where activations live, for each family of decoder: reading and editing them with plain PyTorch hooks.

A site is the residual stream at the *output of decoder block l*. It equals `hidden_states[l + 1]` of Hugging Face,
except for the last block, whose hidden state Hugging Face returns after the final norm. Hooks never outlive their
`with` block, and a reading forward stops after the deepest layer asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.errors import IncompatiblePair, InvalidSetting
from diffing.text.windows import TokenBatch

# (blocks, final norm), as paths below the language model: Llama, Gemma, Qwen, Mistral; multimodal wrappers of those;
# GPT-2; GPT-NeoX.
_LAYOUTS = (
    ("model.layers", "model.norm"),
    ("model.language_model.layers", "model.language_model.norm"),
    ("transformer.h", "transformer.ln_f"),
    ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
)
_NO_MODULE = nn.Identity()


class _DeepestLayerReached(Exception):
    """Ends a forward pass whose remaining blocks nobody asked for."""


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    found = reduce(lambda module, name: getattr(module, name, _NO_MODULE), path.split("."), model)
    return None if found is _NO_MODULE else found


def _layout(model: PreTrainedModel) -> tuple[nn.ModuleList, nn.Module]:
    for blocks_path, norm_path in _LAYOUTS:
        blocks, norm = _module_at(model, blocks_path), _module_at(model, norm_path)
        if isinstance(blocks, nn.ModuleList) and norm is not None:
            return blocks, norm
    known = ", ".join(blocks for blocks, _ in _LAYOUTS)
    raise IncompatiblePair(f"{type(model).__name__}: decoder blocks not found; looked for {known}")


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order."""
    return _layout(model)[0]


def embedding(model: PreTrainedModel) -> Float[Tensor, "vocab d_model"]:
    """The input embedding matrix; where it is, inputs go."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the output head."""
    return _layout(model)[1]


def _residual(output: Tensor | tuple) -> Tensor:
    """A block returns its residual stream, alone or first in a tuple, depending on the family."""
    return output[0] if isinstance(output, tuple) else output


def _block(model: PreTrainedModel, layer: int) -> nn.Module:
    blocks = decoder_blocks(model)
    if not 0 <= layer < len(blocks):
        raise InvalidSetting(f"layer {layer} is out of range: the model has layers 0 to {len(blocks) - 1}")
    return blocks[layer]


@contextmanager
def reading(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[Mapping[int, Tensor]]:
    """Within the block, a forward pass fills the mapping with the residual stream [batch, pos, d_model] per layer."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple, Tensor | tuple], None]:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            found[layer] = _residual(output)

        return hook

    handles = [_block(model, layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def editing(
    model: PreTrainedModel,
    layer: int,
    edit: Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]],
) -> Iterator[None]:
    """Within the block, the output of decoder block `layer` is replaced by `edit` of it."""

    def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        edited = edit(_residual(output))
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = _block(model, layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _stopping_after(model: PreTrainedModel, layer: int) -> Iterator[None]:
    def stop(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        raise _DeepestLayerReached

    # Registered last, so that the readers of the same block have run by then.
    handle = _block(model, layer).register_forward_hook(stop)
    try:
        with suppress(_DeepestLayerReached):
            yield
    finally:
        handle.remove()


@torch.no_grad()
def residuals(
    model: PreTrainedModel, batch: TokenBatch, layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """Residual streams of a padded batch at `layers`; the blocks above the deepest one are not run.

    Values at padded positions are meaningless and must be masked with `batch.mask`.
    """
    if not layers:
        raise InvalidSetting("no layers to read: give at least one")
    device = embedding(model).device
    inputs = {
        "input_ids": batch.ids.to(device),
        "attention_mask": batch.mask.to(device).long(),
        "position_ids": batch.position_ids.to(device),
    }
    with reading(model, layers) as found, _stopping_after(model, max(layers)):
        model.base_model(**inputs, use_cache=False)
    return dict(found)


def _adapted(head: nn.Module, normed: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"] | float:
    """What an adapter of the head that is switched on adds to its logits: `head.weight` is the base's alone."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(head, LoraLayer) or head.disable_adapters:
        return 0.0
    names = [name for name in head.active_adapters if name in head.lora_A]
    if any(head.use_dora[name] for name in names):
        raise IncompatiblePair("the adapter of the output head is a DoRA, which the lenses cannot read")
    factors = [(cast(Tensor, head.lora_A[name].weight), cast(Tensor, head.lora_B[name].weight)) for name in names]
    added = [normed @ down.float().T @ up.float().T for down, up in factors]
    return sum(part * head.scaling[name] for name, part in zip(names, added, strict=True))


@torch.no_grad()
def unembed(
    model: PreTrainedModel, hidden: Float[Tensor, "batch d_model"], chunk: int = 32_768
) -> Float[Tensor, "batch vocab"]:
    """The model's own readout of a residual vector, in float32: final norm, output head, soft-cap where it has one.

    At the output of the last block this gives the model's next-token logits. The head is applied in chunks of `chunk`
    vocabulary entries, so that a bf16 head is never copied whole to float32.
    """
    norm, head = final_norm(model), model.get_output_embeddings()
    parameters = {name: value.float() for name, value in norm.named_parameters()}
    normed = torch.func.functional_call(norm, parameters, hidden.to(head.weight.device).float())
    weight, bias = head.weight, getattr(head, "bias", None)
    pieces = [
        nn.functional.linear(
            normed, weight[start : start + chunk].float(), None if bias is None else bias[start : start + chunk].float()
        )
        for start in range(0, len(weight), chunk)
    ]
    logits = torch.cat(pieces, dim=-1) + _adapted(head, normed)
    config = model.config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits
