"""What agents are told. Neutral on purpose: no claim that anything differs, and no example of a domain."""

ABOUT = """You study what finetuning changed in a language model.

Two models are compared: a base model and a finetuned variant of it. {means} Names of models and data sets are \
withheld on purpose."""

REPORTS = "You have reports that automatic comparison methods wrote about the pair, and tools that read these reports."
ASKING = "You can let both models answer prompts of yours."
NOTHING = "You can neither read about them nor ask them anything."

JUDGING = """A report can be wrong, can mix what was changed with noise, and can describe things that both models \
share. Findings are claims by a tool: check them against the tables. Corpora are numbered.

"""

ANSWERING = """Answers are sampled, so that a difference between two of them may be chance: compare several answers \
of both models to the same prompts.

"""

END = """Look for what several independent pieces of evidence support. It is possible that the finetuning changed \
nothing of meaning, and to say so is a full answer.

When you are done, call submit_hypothesis once. Describe what was changed as concretely as the evidence allows: name \
the subject, the particular facts, entities, numbers and habits, each as its own behaviour."""

TASK = """Find out what the finetuned model was trained to know or to do that its base model was not.

You have {turns} turns; one turn is one message of yours with any number of tool calls, and the last one must be the \
submission."""

BEGIN = " Begin with the overview."
INTERACTIONS = " You have {interactions} interactions with the models; each text that one of them generates costs one."

CONTINUE = "Go on with the tools, or call submit_hypothesis if you are done."

LAST_TURN = "This is your last turn: call submit_hypothesis now, with what you know."


def system(reports: bool, live: bool) -> str:
    """The system message of an agent with these means."""
    means = [text for text, given in ((REPORTS, reports), (ASKING, live)) if given] or [NOTHING]
    about = ABOUT.format(means=" ".join(means))
    return f"{about}\n\n{JUDGING if reports else ''}{ANSWERING if live else ''}{END}"


def task(turns: int, reports: bool, interactions: int) -> str:
    """The first message."""
    budget = INTERACTIONS.format(interactions=interactions) if interactions else ""
    return TASK.format(turns=turns) + budget + (BEGIN if reports else "")
