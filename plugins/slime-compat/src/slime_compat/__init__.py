"""What stands behind the import name `slime`: hook files that were written for slime find the run's own parts there.

plugin.py      the hook by which the run finds this distribution
own_name.py    sees to it that `slime` is this distribution's, or says what is in the way
attributes.py  what slime's hooks read from `args` and nobody can set here
eval_datasets.py  the evaluation sets, of these
elsewhere.py   names of slime that are not here: what to use instead
requests.py    a request in the format of SGLang's `/generate` becomes one of the run's engine
responses.py   what the engine generated, in the format of SGLang's answer
posting.py     `post` and `get`: to the run's engine, or over HTTP
state.py       `GenerateState`
tokenizers.py  tokenizers and processors
images.py      images as requests show them, and what the checkpoint makes of them
functions.py   functions by their import path
generating.py  `generate`, `generate_and_rm`, `generate_and_rm_group`
scoring.py     `async_rm` and `batched_async_rm`
grading.py     the graders of `rm_hub`, by the rewards of this run
filtering.py   dynamic filters
whole.py       samples across context-parallel ranks, each of which has whole ones
waiting.py     runs coroutines from code that cannot await them
"""

__version__ = "0.1.0"
