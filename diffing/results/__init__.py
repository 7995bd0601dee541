"""What many evaluations come to: tables, rates, contrasts, agreement and a model, from grades and verdicts alone.

`collect` finds the samples, `results` computes everything once, `text` and `page` draw it.
"""
