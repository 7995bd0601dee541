"""Amplifying what a pair says instead of its weights: z_finetuned + a (z_finetuned - z_base), at every token.

Also known as model diff amplification (Aranguri and McGrath, 2025). Another object than scaled weights: every token
costs a pass of both sides. Each side keeps keys and values of its own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from diffing.axes import Side


class AmplifiedLogits(PreTrainedModel):
    """Both sides of a pair as one model, as far as generation and plain forward passes ask.

    It has no decoder blocks, so it cannot be steered or read inside. Keys and values of the base are kept in the cache
    that the caller gives, behind those of the finetuned side.
    """

    def __init__(self, using: Callable[[Side], AbstractContextManager[PreTrainedModel]], strength: float):
        nn.Module.__init__(self)  # PreTrainedModel's would want the attention of a model that this is not
        self._using, self._strength = using, strength
        with using(Side.FINETUNED) as model:
            self.config, self.generation_config = model.config, model.generation_config
            self._embeddings = [model.get_input_embeddings()]  # in a list: no weights of its own

    def get_input_embeddings(self) -> nn.Module:
        return self._embeddings[0]

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, past_key_values: DynamicCache | None = None, **inputs: object
    ) -> CausalLMOutputWithPast:
        n_own = self._with_base(past_key_values)
        logits = {}
        for side in Side:
            cache = None if past_key_values is None else _part(past_key_values, n_own, side)
            with self._using(side) as model:
                output = model(input_ids=input_ids, past_key_values=cache, **inputs)
            logits[side] = output.logits.float()
        base, finetuned = logits[Side.BASE], logits[Side.FINETUNED]
        shared = min(base.shape[-1], finetuned.shape[-1])  # tokens that one side added are not amplified
        finetuned[..., :shared] += self._strength * (finetuned[..., :shared] - base[..., :shared])
        return CausalLMOutputWithPast(logits=finetuned, past_key_values=past_key_values)

    def _with_base(self, cache: DynamicCache | None) -> int:
        """Layers of the finetuned side in the cache; those of the base are behind them from now on."""
        if cache is None:
            return 0
        own = len(DynamicCache(config=self.config).layers)
        if len(cache.layers) == own:
            with self._using(Side.BASE) as model:
                cache.layers += DynamicCache(config=model.config).layers
        return own


def _part(cache: DynamicCache, n_own: int, side: Side) -> Cache:
    """A cache of one side, of the very layers."""
    view = DynamicCache()
    view.layers = cache.layers[:n_own] if side is Side.FINETUNED else cache.layers[n_own:]
    return view
