"""Tools for the directions of reports: to steer a live model with one, and to read one anew.

Both show a random direction of the same length beside it: what that does too is not the finetune. They need models
whose residual stream can be reached (`OpenModels`).
"""

import math
from typing import Literal

import numpy as np
from inspect_ai.tool import Tool, ToolError, tool

from diffing.agents.interactions import Interactions
from diffing.agents.live import MAX_SEED, Batching, Draw, OpenModels, Steered, Where, answered
from diffing.axes import Side
from diffing.evidence import Direction, Evidence, EvidenceError
from diffing.specs import JSON

STEER, READ = "ask_steered", "read_direction"
MAX_STRENGTH = 1000.0


def direction_tools(queue: Batching, evidence: Evidence, paying: Interactions, run: int) -> list[Tool]:
    """None if no report has a direction, or if the models cannot be reached into."""
    if not evidence.has_directions or not isinstance(queue.models, OpenModels):
        return []
    return [ask_steered(queue, paying, run), read_direction(queue, queue.models, paying, run)]


def ask_steered(models: Batching, paying: Interactions, run: int) -> Tool:
    """Answers of one side with a direction added, without, and with a random one."""

    @tool(name=STEER)
    def defined() -> Tool:
        async def execute(
            report: str,
            tensor: str,
            row: int | str,
            strength: float,
            prompts: list[str],
            samples: int = 1,
            side: Literal["base", "finetuned"] = "finetuned",
            where: Where = "all",
            system: str = "",
            prefill: str = "",
            max_new_tokens: int = 100,
            temperature: float = 1.0,
            seed: int = 0,
        ) -> str:
            """Let a model answer prompts while a direction of a report is added to its residual stream, as JSON. The
            same prompts are answered unsteered, and steered by a random direction of the same length: only what
            neither of these says is due to the direction. Each text costs one interaction: prompts x samples x 3. A
            call that costs more than is left generates nothing.

            Args:
                report: Id of the report, such as R1.
                tensor: Name of a tensor that has directions, as the overview gives it.
                row: Which of its directions: the name, or the number counted from 0.
                strength: How much of it is added; the overview says what 1 is. Below 0 it is subtracted. Too much makes
                    any answer incoherent.
                prompts: User messages; each is answered on its own.
                samples: Answers to each prompt under each condition.
                side: Which model answers: base or finetuned.
                where: Steered tokens: all; prompt, those of the prompt alone; linear_decay, all, ever less in the
                    answer.
                system: System prompt; none if empty.
                prefill: How each answer must begin.
                max_new_tokens: Longest answer in tokens, at most 512.
                temperature: Of sampling; 0 takes the likeliest token each time.
                seed: The same seed gives the same texts and random direction; take another for new ones.
            """
            direction = _found(paying.evidence, report, tensor, row)
            _check_range("strength", strength)
            draw = Draw(samples, max_new_tokens, temperature, seed, run)
            told = draw.conversations(prompts, system)
            random = _random(direction, strength, draw.drawn)
            conditions = {
                "unsteered": None,
                "steered": Steered(direction.layer, direction.added(strength), where),
                "random": Steered(direction.layer, random, where),
            }
            asked = {name: draw.prompts(Side(side), told, prefill, added) for name, added in conditions.items()}
            answers, cost = await answered(models, paying, prompts, asked, "prompts x samples x 3")
            return paying.receipt({**_described(direction, strength), "answers": answers}, cost)

        return execute

    return defined()


def read_direction(queue: Batching, models: OpenModels, paying: Interactions, run: int) -> Tool:
    """Logit lens and patchscope of a direction and of a random one."""

    @tool(name=READ)
    def defined() -> Tool:
        async def execute(
            report: str,
            tensor: str,
            row: int | str,
            scale: float = 1.0,
            side: Literal["base", "finetuned"] = "finetuned",
            seed: int = 0,
        ) -> str:
            """Read a direction of a report as tokens, as JSON: by the logit lens, those that it promotes and suppresses
            in the output; by a patchscope, those that the model takes it for where it stands in a neutral prompt. A
            random direction of the same length is read beside it. Costs one interaction.

            Args:
                report: Id of the report, such as R1.
                tensor: Name of a tensor that has directions, as the overview gives it.
                row: Which of its directions: the name, or the number counted from 0.
                scale: What it is multiplied by, as a strength of steering; a patchscope depends on it, so try several.
                    Below 0 it is reversed.
                side: Which model reads: base or finetuned.
                seed: Another seed gives another random direction.
            """
            direction = _found(paying.evidence, report, tensor, row)
            _check_range("scale", scale)
            if not 0 <= seed < MAX_SEED:
                raise ToolError(f"seed must be 0 to {MAX_SEED - 1}, got {seed}")
            vectors = [direction.added(scale), _random(direction, scale, seed + MAX_SEED * run)]
            found = await paying.paid(
                1,
                "one a call",
                "read",
                lambda: queue.alone(lambda: models.read(Side(side), direction.layer, vectors)),
            )
            named = dict(zip(("direction", "random"), map(paying.shown_json, found), strict=True))
            return paying.receipt({**_described(direction, scale), **named}, 1)

        return execute

    return defined()


def _found(evidence: Evidence, report: str, tensor: str, row: int | str) -> Direction:
    try:
        direction = evidence.direction(report, tensor, row)
    except EvidenceError as error:
        raise ToolError(str(error)) from error
    if not direction.length:
        raise ToolError(f"'{direction.name}' is a row of zeros, and does nothing")
    return direction


def _check_range(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < abs(value) <= MAX_STRENGTH):
        raise ToolError(f"{name} must be a number other than 0 from {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}, got {value}")


def _random(direction: Direction, strength: float, seed: int) -> tuple[float, ...]:
    """As long as the direction at that strength."""
    drawn = np.random.default_rng(seed).standard_normal(direction.item.tensor.shape[-1])
    return tuple((drawn * (abs(strength) * direction.length / np.linalg.norm(drawn))).tolist())


def _described(direction: Direction, strength: float) -> dict[str, JSON]:
    length = float(f"{abs(strength) * direction.length:.4g}")
    return {
        "of": direction.name, "layer": direction.layer, "strength": strength, "unit": direction.unit, "length": length,
    }  # fmt: skip
