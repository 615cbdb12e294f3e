"""The gate's verdict as a person reads it: in words first, then in figures."""

from typing import Any

from requant.figures import figure
from requant.gate import Decision, Finding
from requant.gate.findings import signed
from requant.names import markdown


def verdict_figures(decision: Decision, *, told: bool) -> dict[str, Any]:
    """Return what a page shows of a verdict: words, and a row a finding.

    Args:
        decision: The verdict.
        told: The page says the reasons elsewhere.
    """
    return {
        "verdict": decision.verdict,
        "reasons": () if told else (*decision.reasons, *filter(None, [decision.outlook])),
        "alpha": figure(decision.alpha),
        "rows": [_row(each) for each in decision.findings],
    }


def verdict_markdown(decision: Decision) -> str:
    """Write a verdict and its reasons as Markdown."""
    lines = [f"**The gate: {decision.verdict}**", ""]
    lines += [f"- {markdown(reason)}" for reason in decision.reasons]
    if decision.outlook:
        lines.append(f"- {decision.outlook}")
    return "\n".join(lines)


def _row(finding: Finding) -> dict[str, str]:
    low, high = finding.low, finding.high
    known = low is not None and high is not None
    return {
        "task": finding.task,
        "role": finding.role,
        "reference": finding.reference,
        "n": str(finding.n),
        "mean": signed(finding.mean) if finding.n else "",
        "interval": f"{signed(low or 0.0)} to {signed(high or 0.0)}" if known else "",
        "margin": figure(finding.margin),
        "state": finding.state,
    }
