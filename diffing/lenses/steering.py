"""Steered beside unsteered samples of one model, all conditions of a prompt in the same batches."""

import re
from collections import Counter
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
    """In the units that the method's table names; 0 is unsteered."""
    vector: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class Sample:
    prompt: str
    condition: Condition
    index: int
    text: str

    def as_row(self) -> dict[str, object]:
        """The sample as a row of a table with the columns `SAMPLE_COLUMNS`."""
        return {
            "prompt": self.prompt,
            "condition": self.condition.name,
            "kind": self.condition.kind,
            "strength": self.condition.strength,
            "sample": self.index,
            "text": self.text,
        }


SAMPLE_COLUMNS = {
    "prompt": "user message",
    "condition": "what was added to the residual stream, with its strength",
    "kind": "unsteered, steered, or random (a random direction of the same length)",
    "sample": "number of the sample, counted from 0",
    "text": "the model's answer",
}
MIN_GAIN = 0.25
"""A word counts as steered towards if so much larger a share of the steered answers uses it than of either control."""


def words_steered_towards(steered: Sequence[str], controls: Sequence[Sequence[str]], most: int = 10) -> list[str]:
    """Words that at least `MIN_GAIN` more of the steered texts use than of any control, as `word (share)`."""
    shares, compared = _word_shares(steered), [_word_shares(texts) for texts in controls]
    gain = {word: share - max(control.get(word, 0.0) for control in compared) for word, share in shares.items()}
    found = sorted((word for word in gain if gain[word] >= MIN_GAIN), key=lambda word: (-gain[word], word))
    return [f"{word} ({shares[word]:.0%})" for word in found[:most]]


def _word_shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of the texts in which each word of three letters or more occurs."""
    counts = Counter(word for text in texts for word in set(re.findall(r"[^\W\d_]{3,}", text.lower())))
    return {word: count / len(texts) for word, count in counts.items()}


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
