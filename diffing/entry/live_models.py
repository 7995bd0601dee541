"""This process's pair, as the live models that agents ask."""

from collections.abc import Mapping, Sequence

from diffing.agents.live import Prompt
from diffing.axes import Side
from diffing.errors import InvalidSetting
from diffing.models.generation import Sampling, generate
from diffing.models.pair import ModelPair
from diffing.text.chat import chat_text

STREAMS = 1_000_003
"""More than a call has texts, so that two seeds share no random stream."""


class LivePair:
    """Implements `diffing.agents.live.LiveModels`. Each text has a random stream of its own, given by its prompt's seed
    and stream, so that it does not depend on the batch it was made in, and both sides draw alike."""

    def __init__(self, pair: ModelPair, batch_size: int = 16):
        self._pair = pair
        self._batch_size = batch_size

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises InvalidSetting for a prompt that is too long, SchemaMismatch for roles that the template rejects."""
        with self._pair.using(Side.BASE) as model:
            most = getattr(model.config, "max_position_embeddings", None)
        for prompt in dict.fromkeys(prompts):
            length = len(self._ids(prompt)) + prompt.max_new_tokens
            if most is not None and length > most:
                raise InvalidSetting(f"prompt and answer need {length} tokens; the models take {most}")

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        texts: dict[int, str] = {}
        kinds: dict[tuple[Side, int, float], list[int]] = {}
        for row, prompt in enumerate(prompts):
            kinds.setdefault((prompt.side, prompt.max_new_tokens, prompt.temperature), []).append(row)
        for (side, max_new_tokens, temperature), rows in kinds.items():
            with self._pair.using(side) as model:
                drawn = generate(
                    model,
                    self._pair.tokenizer,
                    [self._ids(prompts[row]) for row in rows],
                    Sampling(max_new_tokens, temperature),
                    batch_size=self._batch_size,
                    streams=[prompts[row].seed * STREAMS + prompts[row].stream for row in rows],
                )
            texts |= dict(zip(rows, drawn, strict=True))
        return [texts[row] for row in range(len(prompts))]

    def _ids(self, prompt: Prompt) -> list[int]:
        """As a chat; without a chat template a single prompt is plain text."""
        tokenizer = self._pair.tokenizer
        if tokenizer.chat_template:
            messages: list[Mapping[str, str]] = [{"role": role, "content": text} for role, text in prompt.messages]
            text = chat_text(tokenizer, messages, add_generation_prompt=True)
            return tokenizer(text + prompt.prefill, add_special_tokens=False)["input_ids"]
        if len(prompt.messages) > 1:
            raise InvalidSetting("the models know no chats: expected a prompt without system prompt and history")
        return tokenizer(prompt.messages[0][1] + prompt.prefill)["input_ids"]
