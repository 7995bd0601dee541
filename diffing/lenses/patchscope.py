"""Token-identity patchscope: put a vector where a prompt has a blank, and read what the model thinks stands there.

Each identity prompt repeats three words as `word -> word` and ends in a lone `?`. The residual stream at the `?`, at
the output of block l, is overwritten with s * v, and the next-token distribution is read (Ghandeharioun et al., 2024).
A token scores the mean of its probabilities over the three prompts, if it is among the `intersection` likeliest in all
of them, and 0 otherwise (arXiv 2510.13900).

All that stands before the `?` is run once per prompt and batch: a row is then a single token.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from diffing.models.sites import editing

IDENTITY_WORDS = (("man", "1135", "hello"), ("bear", "42", "blue"), ("921", "target", "anna"))
INTERSECTION = 16_384


def identity_prompt(words: Sequence[str]) -> str:
    """Lines of `word -> word`, then the blank."""
    return "".join(f"{word} -> {word}\n" for word in words) + "?"


@torch.no_grad()
def patchscope(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Float[Tensor, "batch d_model"],
    layer: int,
    intersection: int = INTERSECTION,
    batch_size: int = 32,
) -> Float[Tensor, "batch vocab"]:
    """Score of every token for each vector, already scaled by the caller. Rows sum to at most 1."""
    pieces = [_read(model, tokenizer, rows, layer, intersection) for rows in vectors.split(batch_size)]
    return torch.cat(pieces)


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vectors: Float[Tensor, "batch d_model"],
    layer: int,
    intersection: int,
) -> Float[Tensor, "batch vocab"]:
    per_prompt = []
    for words in IDENTITY_WORDS:
        ids = torch.tensor([tokenizer(identity_prompt(words))["input_ids"]]).to(model.device)
        cache = DynamicCache(config=model.config)
        model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(vectors))
        with editing(model, layer, lambda hidden: vectors[:, None].to(hidden)):
            blank = ids[:, -1:].expand(len(vectors), 1)
            logits = model(blank, past_key_values=cache, use_cache=True).logits[:, -1]
        probabilities = torch.softmax(logits.float(), -1)
        cut = probabilities.topk(min(intersection, probabilities.shape[-1])).values[:, -1:]
        per_prompt.append(probabilities.masked_fill(probabilities < cut, 0.0))
    stacked = torch.stack(per_prompt)
    return stacked.mean(0).masked_fill((stacked == 0.0).any(0), 0.0).cpu()
