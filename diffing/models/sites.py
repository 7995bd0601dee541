"""Where activations live, for each family of decoder: reading and editing them with plain PyTorch hooks.

A site is the residual stream at the *output of decoder block l*. It equals `hidden_states[l + 1]` of Hugging Face,
except for the last block, whose hidden state Hugging Face returns after the final norm. Hooks never outlive their
`with` block, and a reading forward stops after the deepest layer asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Logits:
    """A model's own readout of residual vectors, computed for some of them at a time when they are asked for.

    Products, sums and the soft-cap are in float32, whatever the weights are.
    """

    normed: Float[Tensor, "batch d_model"]
    """The vectors after the final norm, in float32."""
    weight: Float[Tensor, "vocab d_model"]
    bias: Float[Tensor, " vocab"] | None = None
    low_rank: Sequence[tuple[Float[Tensor, "rank d_model"], Float[Tensor, "vocab rank"]]] = ()
    """What adapters add to the weight, as factors in float32: `weight` is the base's alone."""
    cap: float | None = None

    @property
    def n_vocab(self) -> int:
        return len(self.weight)

    @torch.no_grad()
    def rows(
        self, rows: slice, out: Float[Tensor, "part vocab"] | None = None, chunk: int = 32_768
    ) -> Float[Tensor, "part vocab"]:
        """Logits of some vectors, written to `out` if it is given.

        A head that is not in float32 is widened `chunk` entries of the vocabulary at a time, never as a whole.
        """
        normed = self.normed[rows]
        logits = normed.new_empty(len(normed), self.n_vocab) if out is None else out
        step = self.n_vocab if self.weight.dtype == torch.float32 else chunk
        for start in range(0, self.n_vocab, step):
            part = slice(start, start + step)
            torch.mm(normed, self.weight[part].float().T, out=logits[:, part])
        if self.bias is not None:
            logits += self.bias.float()
        for down, up in self.low_rank:
            logits.addmm_(normed @ down.T, up.T)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits


@torch.no_grad()
def readout(model: PreTrainedModel, hidden: Float[Tensor, "batch d_model"]) -> Logits:
    """Logits of residual vectors by the model as it is now: final norm, output head with the adapter that is switched
    on, soft-cap where it has one. They stay those of this side after the pair is switched to the other.

    At the output of the last block these are the model's next-token logits.
    """
    norm, head = final_norm(model), model.get_output_embeddings()
    parameters = {name: value.float() for name, value in norm.named_parameters()}
    normed = torch.func.functional_call(norm, parameters, hidden.to(head.weight.device).float())
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Logits(normed, head.weight, getattr(head, "bias", None), _low_rank(head), cap or None)


def unembed(
    model: PreTrainedModel, hidden: Float[Tensor, "batch d_model"], chunk: int = 32_768
) -> Float[Tensor, "batch vocab"]:
    """All logits of `readout` at once; `chunk` as of `Logits.rows`."""
    return readout(model, hidden).rows(slice(None), chunk=chunk)


def _low_rank(head: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The factors of an adapter of the head that is switched on."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(head, LoraLayer) or head.disable_adapters:
        return []
    names = [name for name in head.active_adapters if name in head.lora_A]
    if any(head.use_dora[name] for name in names):
        raise IncompatiblePair("the adapter of the output head is a DoRA, which the lenses cannot read")
    factors = [(cast(Tensor, head.lora_A[name].weight), cast(Tensor, head.lora_B[name].weight)) for name in names]
    return [(down.float(), up.float() * head.scaling[name]) for name, (down, up) in zip(names, factors, strict=True)]
