"""The tools that agents have: questions to Evidence, generic over the report schema, and the submission.

Docstrings are what the model reads. A wrong question is answered with a tool error that lists what exists.
"""

from inspect_ai.tool import Tool, ToolError, tool
from inspect_ai.util import store_as

from diffing.agents.progress import Progress
from diffing.evidence import Evidence, EvidenceError

SUBMIT = "submit_hypothesis"


def evidence_tools(evidence: Evidence) -> list[Tool]:
    """The reading tools over one Evidence."""
    return [overview(evidence), table_rows(evidence), tensor_summary(evidence)]


@tool
def overview(evidence: Evidence) -> Tool:
    async def execute() -> str:
        """Read all reports in brief, as JSON: for each report its method, whether it found any difference at all, its
        findings, scalars, tables (what each is about, its columns, first rows) and tensors."""
        try:
            return evidence.overview()
        except EvidenceError as error:
            raise ToolError(str(error)) from error

    return execute


@tool
def table_rows(evidence: Evidence) -> Tool:
    async def execute(
        report: str,
        table: str,
        sort: str | None = None,
        descending: bool = True,
        where: dict[str, str | int | float | bool | list[str | int | float]] | None = None,
        columns: list[str] | None = None,
        limit: int = 20,
        offset: int = 0,
    ) -> str:
        """Read rows of one table of a report, as JSON. "total" is the number of rows that match; "notice" says when
        there are more than are shown.

        Args:
            report: Id of the report, such as R1.
            table: Name of the table, as the overview gives it.
            sort: Column to sort by; without it rows keep the order of the method.
            descending: Whether the largest come first, where sort is given.
            where: Values that columns must equal, such as {"layer": 3}; a list means any of its values.
            columns: Columns to show; all by default.
            limit: Most rows to show; never more than 200.
            offset: Rows to skip.
        """
        try:
            return evidence.rows(
                report,
                table,
                sort=sort,
                descending=descending,
                where=where,
                columns=columns,
                limit=limit,
                offset=offset,
            )
        except EvidenceError as error:
            raise ToolError(str(error)) from error

    return execute


@tool
def tensor_summary(evidence: Evidence) -> Tool:
    async def execute(report: str, tensor: str, offset: int = 0) -> str:
        """Read a summary of one tensor of a report, as JSON: its shape and axes, and for up to 16 of its rows the norms
        along the last axis and the cosine similarity of every pair of rows.

        Args:
            report: Id of the report, such as R1.
            tensor: Name of the tensor, as the overview gives it.
            offset: Rows to skip.
        """
        try:
            return evidence.tensor(report, tensor, offset)
        except EvidenceError as error:
            raise ToolError(str(error)) from error

    return execute


@tool(name=SUBMIT)
def submission_tool() -> Tool:
    async def execute(
        domain: str,
        behaviours: list[str],
        evidence: list[str],
        confidence: float,
        no_meaningful_difference: bool = False,
    ) -> str:
        """Submit your hypothesis of what the finetuning changed, and end.

        Args:
            domain: What the change is about, in a few words; empty if nothing was changed.
            behaviours: What the finetuned model knows or does differently, one specific statement each.
            evidence: What you base this on: report and table, or report and finding, one reference each.
            confidence: How sure you are, from 0 to 1.
            no_meaningful_difference: True if the evidence shows that the finetuning changed nothing of meaning.
        """
        if not 0.0 <= confidence <= 1.0:
            raise ToolError(f"confidence must be from 0 to 1, got {confidence}")
        if not no_meaningful_difference and not any(text.strip() for text in (domain, *behaviours)):
            raise ToolError("expected a domain or behaviours, or no_meaningful_difference=true; got none of them")
        store_as(Progress).submission = {
            "domain": domain,
            "behaviours": behaviours,
            "evidence": evidence,
            "confidence": confidence,
            "no_meaningful_difference": no_meaningful_difference,
        }
        return "Submitted."

    return execute
