"""All results of a study on one page: methods by organisms, as static HTML and as a W&B Report.

`study` says what there is to show, once; `site` and `wandb_report` draw it.
"""
