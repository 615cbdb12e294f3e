"""The data ledger: every row ever seen, and what became of it.

Its index (`index`, `verdicts`) says which rows of a night are known, near-duplicates or
contaminated, at a cost that grows with the night's rows and not with the ledger's.
"""
