"""What this distribution provides to slime. Imports nothing heavy."""

from __future__ import annotations

from slime_core import Lazy, hookimpl


@hookimpl
def slime_commands() -> dict[str, Lazy]:
    return {
        "chat": Lazy("slime_serve.chat:main", "talk to a model in the terminal, or ask it one question"),
        "serve": Lazy("slime_serve.serve:main", "serve a model over HTTP as OpenAI does: chat, completions, log-probs"),
    }
