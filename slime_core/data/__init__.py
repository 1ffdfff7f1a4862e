"""Rows from files, and the data source that turns them into samples.

    files.py         which files `path`, `folder/*.jsonl` and `path@[a:b]` name
    cache.py         where files that cannot be read row by row are copied into a form that can
    jsonl.py         JSON Lines, read by byte offset
    json_array.py    JSON arrays
    arrow.py         Arrow, Parquet and folders written by Hugging Face `datasets`, read through a memory map
    arrow_validity.py  whether reading a record batch is safe
    arrow_values.py  what the values of an Arrow column mean
    rows.py          `open_rows`: all of these as one sequence of rows
    conversation.py  what a conversation must look like, and its one form that is rendered
    chat_template.py  renders it with the tokenizer's chat template, and notices text that this drops
    message_texts.py  what a message says
    tools.py         tool calls and tool definitions in one form
    flags.py         flags that keep a message from being trained, under the names of many tools
    samples.py       a row becomes a `Sample`
    image_rows.py    images are taken out of the messages of a row
    images.py        forms of images, and decoding them
    fetching.py      what an address answers, within a time and a size
    converted_images.py  images of rows that are converted
    image_texts.py   what stands for images is put into a rendered text
    vision.py        loads what a checkpoint makes of images
    image_processor.py  what every such checkpoint says of images
    vision_families.py  how each family of checkpoints does
    patches.py       Qwen-VL's pixels, faster
    notices.py       what people should know of a file, said once
    shown.py         how messages show a value
    tokenizer.py     `load_tokenizer`: where tokenizers of checkpoints are loaded
    tokens.py        rows that are tokenised already
    prompts.py       `read_prompt`: the text and token ids of a prompt that the model answers
    ends.py          the tokens that end trained turns, and where they are kept
    context.py       how many tokens a checkpoint was made for
    begun_from.py    the weights of another program that a run began with, kept in its checkpoints
    checkpoint_folders.py  `recognise`: what a folder of model weights is, by the names of its files
    quantised_checkpoints.py  which format a quantised checkpoint is in
    epochs.py        one set of rows, epoch after epoch, shuffled
    streams.py       one set of rows that can only be read forward
    mixture.py       which of several sets is next
    source.py        `GlobalDataSource`, `StreamingDataSource`: groups of samples, and the buffer of unfinished ones
    sample_files.py  files of samples: dumped rollouts, and the samples in checkpoints
    sample_columns.py  samples as record batches of Arrow
    arrow_messages.py  Arrow files of a known schema, read from untrusted bytes
    beside_json.py   JSON with something kept beside it
    sample_lines.py  samples as JSON lines; `open_samples` opens both kinds of files
    absent.py        stands for data that is not on this machine
    evaluation.py    the samples of the evaluation sets
    convert.py       `convert_file`: rows of any format into a file of chat rows

No file is ever held in memory whole. pyarrow is imported when the first Arrow or Parquet file is opened.
"""

from slime_core.contracts.data import UNKNOWN_LENGTH
from slime_core.data.conversation import Conversation, chat_messages, read_conversation
from slime_core.data.convert import convert_file
from slime_core.data.evaluation import EvaluationSet, evaluation_sets
from slime_core.data.rows import Rows, open_rows
from slime_core.data.samples import Columns, sample_from_row
from slime_core.data.source import GlobalDataSource, StreamingDataSource, pop_first
from slime_core.data.tokens import is_tokenised, require_known, vocabulary_of

__all__ = [
    "UNKNOWN_LENGTH",
    "Columns",
    "Conversation",
    "EvaluationSet",
    "GlobalDataSource",
    "Rows",
    "StreamingDataSource",
    "chat_messages",
    "convert_file",
    "evaluation_sets",
    "is_tokenised",
    "open_rows",
    "pop_first",
    "read_conversation",
    "require_known",
    "sample_from_row",
    "vocabulary_of",
]
