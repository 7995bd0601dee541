"""This process's pair, as the live models that agents ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from diffing.agents.live import LiveModels, Prompt
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.lenses.patchscope import INTERSECTION
from diffing.lenses.readouts import logit_lens_rows, patchscope_rows
from diffing.live_tools import LiveTool
from diffing.methods.base import HasLiveTools
from diffing.models.generation import Sampling, Steering, Where, generate
from diffing.models.pair import ModelPair
from diffing.report import Report
from diffing.specs import JSON, PairSpec
from diffing.text.chat import chat_text

STREAMS = 1_000_003
"""More than a call has texts, so that two seeds share no random stream."""
TOP = 15
"""Tokens of a readout."""


class LivePair:
    """Implements `diffing.agents.live.OpenModels`. Each text has a random stream of its own, given by its prompt's seed
    and stream, so that it does not depend on the batch it was made in, and both sides draw alike."""

    def __init__(self, pair: ModelPair, batch_size: int = 16):
        self.pair = pair
        self._batch_size = batch_size

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises InvalidSetting for a prompt that is too long or steered by what does not fit, SchemaMismatch for roles
        that the template rejects."""
        with self.pair.using(Side.BASE) as model:
            most = getattr(model.config, "max_position_embeddings", None)
        for prompt in dict.fromkeys(prompts):
            length = len(self._ids(prompt)) + prompt.max_new_tokens
            if most is not None and length > most:
                raise InvalidSetting(f"prompt and answer need {length} tokens; the models take {most}")
            if prompt.steered is not None:
                self._check_site(prompt.steered.layer, len(prompt.steered.added))

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        texts: dict[int, str] = {}
        kinds: dict[tuple[Side, int, float, int | None], list[int]] = {}
        for row, prompt in enumerate(prompts):
            layer = prompt.steered.layer if prompt.steered else None
            kinds.setdefault((prompt.side, prompt.max_new_tokens, prompt.temperature, layer), []).append(row)
        for (side, max_new_tokens, temperature, _), rows in kinds.items():
            with self.pair.using(side) as model:
                drawn = generate(
                    model,
                    self.pair.tokenizer,
                    [self._ids(prompts[row]) for row in rows],
                    Sampling(max_new_tokens, temperature),
                    steering=self._steering([prompts[row] for row in rows]),
                    batch_size=self._batch_size,
                    streams=[prompts[row].seed * STREAMS + prompts[row].stream for row in rows],
                )
            texts |= dict(zip(rows, drawn, strict=True))
        return [texts[row] for row in range(len(prompts))]

    def read(self, side: Side, layer: int, vectors: Sequence[tuple[float, ...]]) -> list[Mapping[str, JSON]]:
        """Lists of tokens with their probabilities, the likeliest first."""
        for vector in vectors:
            self._check_site(layer, len(vector))
        rows = torch.tensor(vectors, device=self.pair.device)
        labels = [{"vector": number} for number in range(len(vectors))]
        tokenizer = self.pair.tokenizer
        with self.pair.using(side) as model:
            lens = logit_lens_rows(model, tokenizer, rows, labels, TOP)
            scope = patchscope_rows(model, tokenizer, rows, labels, layer, [1.0], INTERSECTION, TOP)
        found = [dict[str, list[JSON]](promoted=[], suppressed=[], patchscope=[]) for _ in vectors]
        for row in [*lens, *({**row, "direction": "patchscope"} for row in scope)]:
            probability = float(f"{row['probability']:.3g}")
            found[int(str(row["vector"]))][str(row["direction"])].append([str(row["token"]), probability])
        return list[Mapping[str, JSON]](found)

    def _steering(self, prompts: Sequence[Prompt]) -> Steering | None:
        """Of prompts of one layer; of none, if they are not steered."""
        steered = [prompt.steered for prompt in prompts if prompt.steered]
        if not steered:
            return None
        vectors = torch.tensor([each.added for each in steered], device=self.pair.device)
        return Steering(steered[0].layer, vectors, [Where(each.where) for each in steered])

    def _check_site(self, layer: int, width: int) -> None:
        if not 0 <= layer < self.pair.n_layers or width != self.pair.d_model:
            raise InvalidSetting(
                f"a vector of {width} numbers at layer {layer}; expected {self.pair.d_model} numbers, and a layer from "
                f"0 to {self.pair.n_layers - 1}"
            )

    def _ids(self, prompt: Prompt) -> list[int]:
        """As a chat; without a chat template a single prompt is plain text."""
        tokenizer = self.pair.tokenizer
        if tokenizer.chat_template:
            messages: list[Mapping[str, str]] = [{"role": role, "content": text} for role, text in prompt.messages]
            text = chat_text(tokenizer, messages, add_generation_prompt=True)
            return tokenizer(text + prompt.prefill, add_special_tokens=False)["input_ids"]
        if len(prompt.messages) > 1:
            raise InvalidSetting("the models know no chats: expected a prompt without system prompt and history")
        return tokenizer(prompt.messages[0][1] + prompt.prefill)["input_ids"]


@dataclass(frozen=True)
class Local:
    """Live models in this process."""

    device: str = "auto"
    batch_size: int = 16

    def models(self, pair: PairSpec) -> LivePair:
        """The pair, loaded: while agents run, other folders stand in for the user's, and caches would be made there."""
        loaded = ModelPair(pair, self.device)
        with loaded.using(Side.FINETUNED):
            return LivePair(loaded, self.batch_size)


def declared_by(method: object, report: Report, live: LiveModels | None) -> Sequence[LiveTool]:
    """What a method lets agents ask the pair of its report; nothing if the pair is not in this process."""
    if not isinstance(live, LivePair) or not isinstance(method, HasLiveTools):
        return ()
    return method.live_tools(report, live.pair)
