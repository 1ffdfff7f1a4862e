"""Supervised fine-tuning for slime: the SFT rollout, loss masks, data converters and the mask preview.

    plugin.py         what this distribution gives to slime
    arguments.py      the options
    checks.py         what is seen of a run before it starts
    rollout.py        the rollout function `sft`, for training and evaluation
    conversations.py  a conversation becomes a sample that can be trained, or is left out as the options say
    workers.py        processes that do this beside the rollout worker
    answers.py        lets the model answer questions of the evaluation sets
    masks/            loss masks: which tokens of a conversation are trained
    converters.py     rows of other formats become chat rows
    lint.py           goes through rows as a run would, and counts what is seen
    looks.py          how the preview reads a row: for fine-tuning, or as a prompt for reinforcement learning
    preview.py        shows rows token by token, and what was counted
    image_notes.py    what the preview says and shows of images
    preview_command.py  `slime data preview`
    cli.py            `slime data`, and `slime data convert`
    image_options.py  where rows have their images

A conversation is rendered and tokenised once, as a whole. Nothing here loads a model.
"""

__version__ = "0.1.0"
