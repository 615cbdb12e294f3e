"""Names of the evaluation tasks that a night makes itself, as configurations spell them."""

HELDOUT_PERPLEXITY = "heldout_perplexity"
OLD_PERPLEXITY = "old_perplexity"
"""Perplexity of text that no night brings: a user's `old_text`, else the topics Python ships."""
PAST_PERPLEXITY = "past_heldout_perplexity"
"""Perplexity of what earlier nights held out."""
PERPLEXITIES = frozenset({HELDOUT_PERPLEXITY, OLD_PERPLEXITY, PAST_PERPLEXITY})
DESCRIBE_CHOICE = "describe_choice"
"""Choice among docstrings; among the answers of any other rows it is RESPONSE_CHOICE."""
RESPONSE_CHOICE = "response_choice"
CHOICES = (DESCRIBE_CHOICE, RESPONSE_CHOICE)
NEW_SKILL = (HELDOUT_PERPLEXITY, *CHOICES)
"""Tasks made of rows like those a night learns."""
GENERATED = (*NEW_SKILL, OLD_PERPLEXITY, PAST_PERPLEXITY)
