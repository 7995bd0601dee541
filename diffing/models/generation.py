"""Batched sampling whose text does not depend on how the prompts were batched.

Each row draws from a random stream of its own, keyed by the seed and the row's number or one that is given, so that the
batch size, the padding and the neighbours of a row change nothing but rounding. Steering adds one vector per row at the
output of a block, at every position or at some (`Where`); what later positions attend to keeps what was added to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from diffing.errors import InvalidSetting
from diffing.models.sites import editing, embedding
from diffing.text.windows import TokenBatch, pad


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn. `temperature` 0 is greedy; `top_p` 1 keeps the whole distribution."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InvalidSetting(f"{self}: expected max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")


class Where(StrEnum):
    """At which tokens a row is steered."""

    ALL = "all"
    PROMPT = "prompt"
    """At those of the prompt alone."""
    LINEAR_DECAY = "linear_decay"
    """At those of the prompt, and ever less at new ones: none would be left at the one after the last."""

    def factors(self, steps: int) -> Float[Tensor, " steps"]:
        """What the vector is multiplied by at the prompt, at the first new token, at the second, and so on."""
        at = torch.arange(steps)
        match self:
            case Where.ALL:
                return torch.ones(steps)
            case Where.PROMPT:
                return (at == 0).float()
            case Where.LINEAR_DECAY:
                return 1 - at / steps


@dataclass(frozen=True)
class Steering:
    """One vector per prompt, added to the residual stream at the output of block `layer`; zero leaves a row alone."""

    layer: int
    vectors: Float[Tensor, "batch d_model"]
    where: Where | Sequence[Where] = Where.ALL
    """For all prompts, or one for each."""

    def places(self) -> Sequence[Where]:
        """One for each prompt."""
        return [self.where] * len(self.vectors) if isinstance(self.where, Where) else self.where


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    steering: Steering | None = None,
    batch_size: int = 16,
    on_batch: Callable[[int], object] = lambda rows: None,
    streams: Sequence[int] | None = None,
) -> list[str]:
    """One continuation per prompt (token ids in, text out, special tokens removed), in the order of the prompts.

    `on_batch` is told the number of rows that were finished. Rows draw from the random streams of these numbers; None
    gives each its own.
    """
    streams = range(len(prompts)) if streams is None else streams
    if steering is not None and not len(steering.vectors) == len(steering.places()) == len(prompts):
        raise InvalidSetting(
            f"{len(prompts)} prompts but {len(steering.vectors)} steering vectors and {len(steering.places())} places; "
            "expected one each"
        )
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        uniform = torch.stack([_row_stream(sampling, streams[row]) for row in rows])
        batch = pad([prompts[row] for row in rows], pad_id=_pad_id(tokenizer), side="left")
        alike = _alike(batch, None if steering is None else steering.vectors[rows.start : rows.stop])
        edit = nullcontext() if steering is None else _steered(model, steering, rows, sampling.max_new_tokens, alike)
        with edit:
            ids = _continue(model, batch, alike, sampling, uniform, _end_ids(model, tokenizer))
        texts += tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)
        on_batch(len(rows))
    return texts


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a one-turn user prompt up to the start of the assistant's answer, thinking off."""
    if tokenizer.chat_template is None:
        raise InvalidSetting(f"the tokenizer of {tokenizer.name_or_path} has no chat template; use plain text prompts")
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _row_stream(sampling: Sampling, stream: int) -> Tensor:
    generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 + stream)
    return torch.rand(sampling.max_new_tokens, generator=generator)


@dataclass(frozen=True)
class _Alike:
    """Rows whose prompts are run as one: those of the same tokens and vector."""

    first: Int[Tensor, " distinct"]
    """One row of each kind."""
    kind: Int[Tensor, " batch"]
    """Place in `first` of the kind of each row."""


def _alike(batch: TokenBatch, vectors: Float[Tensor, "batch d_model"] | None) -> _Alike:
    kinds: dict[tuple[bytes, ...], int] = {}
    first: list[int] = []
    kind = []
    for row, ids in enumerate(batch.ids):
        added = b"" if vectors is None else vectors[row].detach().cpu().float().numpy().tobytes()
        key = (ids.numpy().tobytes(), batch.mask[row].numpy().tobytes(), added)
        if key not in kinds:
            kinds[key] = len(first)
            first.append(row)
        kind.append(kinds[key])
    return _Alike(torch.tensor(first), torch.tensor(kind))


def _steered(
    model: PreTrainedModel, steering: Steering, rows: range, max_steps: int, alike: _Alike
) -> AbstractContextManager[None]:
    """The model is run once on the prompts that differ, then once on every new token of each row but the last."""
    vectors = steering.vectors[rows.start : rows.stop]
    factors = torch.stack([where.factors(max_steps) for where in steering.places()[rows.start : rows.stop]])
    at_prompt = vectors[alike.first.to(vectors.device), None]  # the factor there is 1 in every place

    def added() -> Iterator[Tensor]:
        yield at_prompt
        for factor in factors.to(vectors).unbind(1)[1:]:
            yield factor[:, None, None] * vectors[:, None]

    steps = added()
    return editing(model, steering.layer, lambda hidden: hidden + next(steps).to(hidden))


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = {tokenizer.eos_token_id} | set(configured if isinstance(configured, list) else [configured])
    return torch.tensor(sorted(id for id in ids if id is not None), dtype=torch.long)


@torch.no_grad()
def _continue(
    model: PreTrainedModel,
    batch: TokenBatch,
    alike: _Alike,
    sampling: Sampling,
    uniform: Float[Tensor, "batch steps"],
    end_ids: Int[Tensor, " ends"],
) -> Int[Tensor, "batch steps_taken"]:
    """New tokens per row; what follows a row's end-of-turn token is that token again."""
    device = embedding(model).device
    first, kind = alike.first.to(device), alike.kind.to(device)
    mask, positions = batch.mask.to(device).long(), batch.position_ids.to(device)
    uniform, end_ids = uniform.to(device), end_ids.to(device)
    cache = DynamicCache(config=model.config)
    finished = torch.zeros(len(kind), dtype=torch.bool, device=device)
    new: list[Tensor] = []

    def run(ids: Tensor, mask: Tensor, positions: Tensor) -> Float[Tensor, "batch vocab"]:
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1].float()

    logits = run(batch.ids.to(device)[first], mask[first], positions[first])[kind]
    cache.batch_select_indices(kind)
    for step in range(sampling.max_new_tokens):
        if step:
            logits = run(new[-1], mask, positions)
        token = _draw(logits, uniform[:, step], sampling)
        token = torch.where(finished, new[-1][:, 0] if new else token, token)
        new.append(token[:, None])
        finished = finished | torch.isin(token, end_ids)
        if bool(finished.all()):
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return torch.cat(new, dim=1)


HEAD = 512
"""Likeliest tokens that are looked at first: a full sort of the vocabulary is needed for few rows."""


def _draw(
    logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, " batch"], sampling: Sampling
) -> Int[Tensor, " batch"]:
    """Inverse-CDF sampling from the tempered, nucleus-truncated distribution (Holtzman et al., 2020), tokens in falling
    order of probability."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    found, reached = _ranked(probabilities, uniform, sampling.top_p, min(HEAD, logits.shape[-1]))
    if not bool(reached.all()):
        rest = (~reached).nonzero()[:, 0]
        found[rest] = _ranked(probabilities[rest], uniform[rest], sampling.top_p, logits.shape[-1])[0]
    return found


def _ranked(
    probabilities: Float[Tensor, "batch vocab"], uniform: Float[Tensor, " batch"], top_p: float, head: int
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The draw of each row among its `head` likeliest tokens, and whether it is that among all."""
    if head == probabilities.shape[-1]:
        likeliest, order = probabilities.sort(dim=-1, descending=True, stable=True)
    else:
        likeliest, order = probabilities.topk(head, dim=-1)
    before = likeliest.cumsum(-1) - likeliest
    kept = likeliest.masked_fill(before >= top_p, 0.0).cumsum(-1)
    mass = probabilities.sum(-1) if top_p == 1 else kept[:, -1]
    rank = torch.searchsorted(kept, (uniform * mass)[:, None], right=True)[:, 0]
    reached = rank < head if top_p == 1 else likeliest.sum(-1) >= top_p
    return order.gather(-1, rank.clamp(max=head - 1)[:, None])[:, 0], reached
