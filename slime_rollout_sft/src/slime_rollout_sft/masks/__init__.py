"""Loss masks: which tokens of a conversation are trained. `--loss-mask-type` chooses one of the generators.

    generators.py  the loss-mask generators
    spans.py       finds the assistant's turns in a rendering
    skeleton.py    the same with few renderings, for long conversations
    marks.py       turns that a template marks itself, and what they train besides
    images.py      puts what stands for images into a rendering
    spelled.py     text of messages that spells a special token
    ready.py       what cannot be right in masks of rows of token ids
    roles.py       whose each token is, for the preview
    tokens.py      tokenises a rendering and finds the tokens of its turns

A conversation is read by `slime_core.data.read_conversation`, rendered once and whole by `slime_core.data.chat_template`, and the rendering is tokenised
once. Nothing is ever tokenised message by message: that gives other tokens than the model meets later.
"""
