"""The data ledger of a model line: every row that its nights have read, and what became of it."""
