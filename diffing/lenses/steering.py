"""Answers of one model, steered beside unsteered, all conditions of a prompt in the same batches.

`Answers` says which prompts are answered and how, `Condition` what is added. Where several directions steer, each has
controls of its own (`beside_controls`): unsteered answers, and those steered by a random vector that is as long as the
direction at its greatest strength.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffing.errors import InvalidSetting
from diffing.models.generation import Sampling, Steering, Where, chat_prompt, generate
from diffing.report import Finding, Table, View


@dataclass(frozen=True)
class Condition:
    """A vector added to the residual stream, under the name that readers see."""

    name: str
    kind: str
    strength: float
    """In the units that the method's table names; 0 is unsteered."""
    vector: Float[Tensor, " d_model"]
    where: Where = Where.ALL
    direction: str = ""
    """The one, of several, that it is of or a control of; the empty string is all of them."""


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
"""A word counts as steered towards if so much larger a share of the steered answers uses it than of either control, and
if chance gives as many answers with it a probability below `CHANCE`."""
CHANCE = 0.01


@dataclass(frozen=True)
class Answers:
    """What a model is asked while it is steered, and how its answers are drawn."""

    prompts: Sequence[str]
    """Neutral ones: what the answers speak of is to come from the vector. They go through the chat template if the
    tokenizer has one."""
    samples_per_prompt: int = 1
    """Under each condition."""
    max_new_tokens: int = 48
    temperature: float = 0.7
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.prompts or min(self.samples_per_prompt, self.batch_size) < 1:
            raise InvalidSetting(
                f"answers: {len(self.prompts)} prompts, samples_per_prompt={self.samples_per_prompt}, batch_size="
                f"{self.batch_size}; expected 1 or more of each"
            )
        self.sampling(0)  # raises for what cannot be drawn

    def count(self, conditions: Sequence[Condition]) -> int:
        return len(self.prompts) * len(conditions) * self.samples_per_prompt

    def draw(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        conditions: Sequence[Condition],
        layer: int,
        seed: int,
        on_batch: Callable[[int], object] = lambda rows: None,
    ) -> list[Sample]:
        """Answers to every prompt under every condition, in that nesting order.

        Each has a random stream of its own, so that conditions differ by more than the vector; compare rates over many
        samples, not single texts. `on_batch` is told the answers of each batch that is done.
        """
        plan = [
            (prompt, condition, index)
            for prompt in self.prompts
            for condition in conditions
            for index in range(self.samples_per_prompt)
        ]
        if not plan:
            return []
        ids = {prompt: prompt_ids(tokenizer, prompt) for prompt in self.prompts}
        vectors = torch.stack([condition.vector for _, condition, _ in plan])
        texts = generate(
            model,
            tokenizer,
            [ids[prompt] for prompt, _, _ in plan],
            self.sampling(seed),
            steering=Steering(layer, vectors, [condition.where for _, condition, _ in plan]),
            batch_size=self.batch_size,
            on_batch=on_batch,
        )
        return [Sample(*planned, text=text) for planned, text in zip(plan, texts, strict=True)]

    def sampling(self, seed: int) -> Sampling:
        """How each answer is drawn."""
        return Sampling(self.max_new_tokens, self.temperature, seed=seed)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt up to where its answer begins: as a chat if the tokenizer has a template."""
    return tokenizer(prompt)["input_ids"] if tokenizer.chat_template is None else chat_prompt(tokenizer, prompt)


def beside_controls(
    directions: Mapping[str, Float[Tensor, " d_model"]],
    strengths: Sequence[float],
    seed: int,
    places: Sequence[Where] = (Where.ALL,),
) -> list[Condition]:
    """Unsteered, once for all; then in each place each direction, named, at each strength, and its random control.

    The vectors are those of strength 1. A direction has one random vector for all places.
    """
    if not directions or not strengths:
        return []
    generator, strongest = torch.Generator().manual_seed(seed), max(strengths)
    conditions = [Condition("unsteered", "unsteered", 0.0, torch.zeros_like(next(iter(directions.values()))))]
    for name, vector in directions.items():
        unit = torch.nn.functional.normalize(torch.randn(vector.shape, generator=generator), dim=0)
        random = strongest * vector.norm() * unit
        for where in places:
            conditions += [
                *(Condition(f"strength {s:g}", "steered", s, s * vector, where, name) for s in strengths),
                Condition("random direction", "random", strongest, random, where, name),
            ]
    return conditions


def direction_rows(samples: Sequence[Sample]) -> Iterator[dict[str, object]]:
    """Samples under `beside_controls` as rows of `steering_table`; the unsteered ones stand beside each direction in
    each place."""
    conditions = [sample.condition for sample in samples]
    steered = dict.fromkeys((condition.direction, condition.where) for condition in conditions if condition.direction)
    for sample, condition in zip(samples, conditions, strict=True):
        for direction, where in [(condition.direction, condition.where)] if condition.direction else steered:
            row = {"direction": direction, "where": str(where), **sample.as_row()}
            yield row | {"length": float(condition.vector.norm())}


def steering_table(
    rows: Sequence[Mapping[str, object]], about: str, columns: Mapping[str, str], direction: str, strength: str
) -> Table:
    """`rows` are those of `direction_rows`, with a `layer`; `columns` describes what they have besides. `direction` and
    `strength` say what these columns hold, the latter with its unit."""
    described = {
        **columns,
        "direction": f"{direction} (unsteered answers stand beside each, and are the same)",
        "where": "tokens that are steered: all; prompt: those of the prompt alone; linear_decay: all, ever less in the "
        "answer",
        **SAMPLE_COLUMNS,
        "strength": f"{strength} (of a random direction: it has the length of the strongest)",
        "length": "L2 norm of the added vector (residual stream units)",
    }
    view = View("samples", "text", group=("prompt", "direction", "where", "layer"), compare="condition")
    return Table(pd.DataFrame(rows, columns=[*described]), about, described, view)


def steering_findings(steering: Table) -> list[Finding]:
    """Per layer, direction and place, the words that steered answers use, and unsteered and randomly steered ones do
    not."""
    found = []
    said = {Where.ALL: "", Where.PROMPT: " at the prompt alone", Where.LINEAR_DECAY: " less and less"}
    for (layer, direction, where), frame in steering.frame.groupby(["layer", "direction", "where"], sort=False):
        texts = {kind: list(rows["text"]) for kind, rows in frame.groupby("kind")}
        words = words_steered_towards(texts["steered"], [texts["unsteered"], texts["random"]])
        if words:
            found.append(
                Finding(
                    f"Steered by {direction} of layer {layer}{said[Where(where)]}, answers to neutral prompts speak of "
                    f"{', '.join(words)}; unsteered and randomly steered answers do not, or far less often.",
                    "steering",
                    [int(row) for row in frame.index[frame["kind"] == "steered"][:6]],
                )
            )
    return found


def words_steered_towards(steered: Sequence[str], controls: Sequence[Sequence[str]], most: int = 10) -> list[str]:
    """Words that at least `MIN_GAIN` more of the steered texts use than of any control, as `word (share)`.

    That chance put them there is ruled out by Fisher's exact test against all controls together (one-sided), word by
    word: of a hundred words that many texts use, one may still come by chance.
    """
    counts, pooled = _word_counts(steered), _word_counts([text for texts in controls for text in texts])
    shares = [{word: n / len(texts) for word, n in _word_counts(texts).items()} for texts in controls]
    n_pooled = sum(map(len, controls))
    gain = {word: n / len(steered) - max(share.get(word, 0.0) for share in shares) for word, n in counts.items()}
    found = [
        word
        for word, n in counts.items()
        if gain[word] >= MIN_GAIN and _by_chance(n, len(steered), pooled[word], n_pooled) < CHANCE
    ]
    found.sort(key=lambda word: (-gain[word], word))
    return [f"{word} ({counts[word] / len(steered):.0%})" for word in found[:most]]


def _by_chance(n: int, of: int, others: int, of_others: int) -> float:
    """Probability that `n` or more of the texts that have a word are among the first `of`, if dealt at random."""
    having, total = n + others, of + of_others
    ways = sum(comb(having, k) * comb(total - having, of - k) for k in range(n, min(having, of) + 1))
    return ways / comb(total, of)


def _word_counts(texts: Sequence[str]) -> Counter[str]:
    """How many of the texts use each word of three letters or more."""
    return Counter(word for text in texts for word in set(re.findall(r"[^\W\d_]{3,}", text.lower())))
