"""What a stored sample comes to: one row of the grades. A log is enough, be it new or years old."""

from pathlib import Path

import pandas as pd
from inspect_ai.event import ModelEvent
from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import ChatMessageAssistant, ChatMessageTool

from diffing.agents.prices import SCRIPTED, dollars, price_of
from diffing.agents.progress import Outcome, Progress
from diffing.agents.support import support
from diffing.agents.task import LABELS, Access


def grades_of(log: EvalLog) -> pd.DataFrame:
    """One row per sample of a log, also of one read back with `inspect_ai.log.read_eval_log`."""
    return pd.DataFrame([_row(sample, log) for sample in log.samples or []])


def _row(sample: EvalSample, log: EvalLog) -> dict[str, object]:
    progress = sample.store_as(Progress)
    score = (sample.scores or {}).get("keyword_recall")
    value = score.value if score and isinstance(score.value, dict) else {}
    calls = [
        call.function
        for message in sample.messages
        if isinstance(message, ChatMessageAssistant)
        for call in message.tool_calls or ()
    ]
    tool_errors = sum(isinstance(message, ChatMessageTool) and message.error is not None for message in sample.messages)
    submission = progress.submission or {}
    outcome, detail = outcome_of(sample)
    metadata = sample.metadata
    return {
        **{name: metadata.get(name) for name in LABELS},
        "sample": str(sample.id),
        "repeat": sample.epoch,
        "model": _model(sample, log),
        "access": metadata.get("access"),
        "interactions": metadata.get("interactions"),
        "outcome": outcome.value,
        "detail": detail,
        **{name: value.get(name) for name in ("fact_recall", "domain_recall", "correct_null", "false_null")},
        "found": list((score.metadata or {}).get("found", [])) if score and value else None,
        **_support(sample, progress),
        **{name: submission.get(name) for name in ("domain", "behaviours", "evidence", "confidence")},
        "no_meaningful_difference": submission.get("no_meaningful_difference"),
        "forced": progress.forced,
        "interactions_used": progress.interactions,
        "messages": len(sample.messages),
        "tool_calls": len(calls),
        "tool_errors": tool_errors,
        **_cost(sample, log, progress.unmetered > 0),
        "seconds": sample.total_time,
        "working_seconds": sample.working_time,
        "retries": progress.asked_again + sum(event.retries or 0 for event in _model_events(sample)),
        "log": Path(log.location).name,
    }


def _model(sample: EvalSample, log: EvalLog) -> str:
    return SCRIPTED if sample.metadata.get("access") == Access.SCRIPTED else log.eval.model


def _model_events(sample: EvalSample) -> list[ModelEvent]:
    return [event for event in sample.events if isinstance(event, ModelEvent)]


def _cost(sample: EvalSample, log: EvalLog, unmetered: bool) -> dict[str, int | float | None]:
    """Tokens, the share of input that was read from a cache, and dollars; missing where the service did not tell all of
    its usage."""
    usage = list(sample.model_usage.values())
    counts: dict[str, int | float | None] = {
        "input_tokens": sum(use.input_tokens for use in usage),
        "cache_write_tokens": sum(use.input_tokens_cache_write or 0 for use in usage),
        "cache_read_tokens": sum(use.input_tokens_cache_read or 0 for use in usage),
        "output_tokens": sum(use.output_tokens for use in usage),
        "reasoning_tokens": sum(use.reasoning_tokens or 0 for use in usage),
    }
    read = sum(counts[f"{kind}_tokens"] or 0 for kind in ("input", "cache_write", "cache_read"))
    counts["cache_hits"] = (counts["cache_read_tokens"] or 0) / read if read else None
    counts["dollars"] = _dollars(sample, log)
    return dict.fromkeys(counts) if unmetered else counts


def _dollars(sample: EvalSample, log: EvalLog) -> float | None:
    name = _model(sample, log)
    if name == SCRIPTED or not sample.model_usage:
        priced = name == SCRIPTED or (log.eval.metadata or {}).get("price") or price_of(name)
        return 0.0 if priced else None
    costs = [dollars(model, use) for model, use in sample.model_usage.items()]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def _support(sample: EvalSample, progress: Progress) -> dict[str, float | None]:
    claimed = progress.submitted()
    return support(sample.messages, claimed) if claimed else {"references": None, "support": None}


def outcome_of(sample: EvalSample) -> tuple[Outcome, str]:
    """How a stored sample ended, and what there is to say about it."""
    progress = sample.store_as(Progress)
    if sample.error:
        return Outcome.ERROR, sample.error.message
    if sample.limit and progress.submission is None:
        return Outcome.NO_SUBMISSION, f"{sample.limit.type} limit {sample.limit.limit}"
    return Outcome(progress.outcome or Outcome.NO_SUBMISSION), progress.detail
