"""Using a model: `slime chat` talks to it in the terminal, `slime serve` answers requests of OpenAI's interface. Both generate with
an inference engine of slime (`slime_core.contracts.engine`), the embedded one unless another one is chosen.

plugin.py        what slime finds
options.py       the options of both commands
folders.py       which Hugging Face folder a MODEL is, exported where it is none yet
model.py         `ServedModel`: tokenizer, engine, and answers piece by piece
prompts.py       from messages or text to the token ids and images that the model reads
text_stream.py   from tokens to text, whole characters at a time, up to a stop string
vocabulary.py    the bytes that a single token stands for
chat.py          `slime chat`
generation_defaults.py  how the makers of a model recommend to sample
terminal.py      what a person types and sees there
serve.py         `slime serve`
server.py        the socket, the signals, the end
guard.py         who may ask
app.py           the routes, and how a request becomes answers
streaming.py     server-sent events, and clients that go
bodies.py        reading the body of a request
requests.py      what a request may say, and which of it is refused
generation.py    the answers of one request, generated together
room.py          how many answers there may be at a time
responses.py     what is sent back, in OpenAI's shapes
refusals.py      errors in OpenAI's shape
"""

__version__ = "0.1.0"
