"""Steered beside unsteered samples of one model, all conditions of a prompt in the same batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffing.models.generation import Sampling, Steering, chat_prompt, generate


@dataclass(frozen=True)
class Condition:
    """A vector added to the residual stream, under the name that readers see."""

    name: str
    kind: str
    strength: float
    """In units of the mean residual norm; 0 is unsteered."""
    vector: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class Sample:
    prompt: str
    condition: Condition
    index: int
    text: str


def steered_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    conditions: Sequence[Condition],
    layer: int,
    samples_per_prompt: int,
    sampling: Sampling,
    batch_size: int,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> list[Sample]:
    """`samples_per_prompt` continuations of every prompt under every condition, in that nesting order.

    Prompts go through the chat template if the tokenizer has one. Each sample has a random stream of its own, so that
    conditions differ by more than the vector; compare rates over many samples, not single texts.
    """
    plan = [
        (prompt, condition, index)
        for prompt in prompts
        for condition in conditions
        for index in range(samples_per_prompt)
    ]
    ids = {prompt: _prompt_ids(tokenizer, prompt) for prompt in prompts}
    texts = generate(
        model,
        tokenizer,
        [ids[prompt] for prompt, _, _ in plan],
        sampling,
        steering=Steering(layer, torch.stack([condition.vector for _, condition, _ in plan])),
        batch_size=batch_size,
        on_batch=on_batch,
    )
    return [Sample(*planned, text=text) for planned, text in zip(plan, texts, strict=True)]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    return tokenizer(prompt)["input_ids"] if tokenizer.chat_template is None else chat_prompt(tokenizer, prompt)
