"""Loss masks: which tokens of a conversation are trained. Chosen by `--loss-mask-type`; see `generators`.

A conversation is read (`slime_core.data.read_conversation`), rendered once, whole, with the tokenizer's chat template (`template`), the
assistant's turns are found in that text (`spans`), and the text is tokenised once (`tokens`). Nothing is ever
tokenised message by message: that gives other tokens than the model meets later.
"""
