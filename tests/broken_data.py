"""Components around data that break their contracts: converters, data sources, buffer filters, loss masks."""

from __future__ import annotations

from dataclasses import replace

from good_components import good_loss_mask

from slime_core.data import GlobalDataSource
from slime_core.errors import DataError


def copying_pop(args, rollout_id, buffer, num_samples):
    return buffer[:num_samples]


def clearing_pop(args, rollout_id, buffer, num_samples):
    groups = buffer[:num_samples]
    buffer.clear()
    return groups


def greedy_pop(args, rollout_id, buffer, num_samples):
    groups = list(buffer)
    buffer.clear()
    return groups


def picky_converter(row):
    raise DataError("it is not mine")


def roleless_converter(row):
    if "question" not in row:
        raise DataError("there is no question")
    return {"messages": [{"content": row["question"]}]}


def careless_converter(row):
    return {"messages": [{"role": "user", "content": row["question"]}]}


def lenient_converter(row):
    return {"messages": [{"role": "user", "content": str(row)}]}


def popping_converter(row):
    if "question" not in row:
        raise DataError("there is no question")
    return {"messages": [{"role": "user", "content": row.pop("question")}]}


def masked(change):
    """A loss mask that does well, and then `change(masked, messages)`."""

    def broken_mask(tokenizer, messages, tools):
        return change(good_loss_mask(tokenizer, messages, tools), messages)

    return broken_mask


def message_dropping_mask(tokenizer, messages, tools):
    return good_loss_mask(tokenizer, messages[-1:], tools)


def changing_mask(tokenizer, messages, tools):
    made = good_loss_mask(tokenizer, messages, tools)
    messages[-1]["content"] += "!"
    return made


def careless_mask(tokenizer, messages, tools):
    if messages[-1]["role"] == "assistant":
        return good_loss_mask(tokenizer, messages, tools)
    raise ValueError("no answer")


class SingleSource(GlobalDataSource):
    def get_samples(self, num_samples):
        return [group[:1] for group in super().get_samples(num_samples)]


class UnnumberedSource(GlobalDataSource):
    def get_samples(self, num_samples):
        return [[replace(s, index=0) for s in group] for group in super().get_samples(num_samples)]


class EndingSource(GlobalDataSource):
    def get_samples(self, num_samples):
        return super().get_samples(min(num_samples, len(self)))


class ForgettingSource(GlobalDataSource):
    def add_samples(self, groups):
        pass


class RestartingSource(GlobalDataSource):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "sets": [{**position, "offset": 0} for position in state["sets"]]})


class BufferlessSource(GlobalDataSource):
    def state_dict(self):
        return {**super().state_dict(), "buffer": []}


class ObjectSource(GlobalDataSource):
    def state_dict(self):
        return {**super().state_dict(), "buffer": self.buffer}


class NumberPrintSource(GlobalDataSource):
    def fingerprint(self):
        return {"rows": 6}


class DividingSource(GlobalDataSource):
    def metrics(self):
        return {"share": float("nan")}


class LateSource(GlobalDataSource):
    def get_samples(self, num_samples):
        self.file = open(self.args.prompt_data[0])  # noqa: SIM115
        return super().get_samples(num_samples)

    def close(self):
        self.file.close()


BROKEN = [
    ("buffer_pop", copying_pop, "removes from the buffer", "remove from `buffer`, in place, what you return"),
    ("buffer_pop", clearing_pop, "removes from the buffer", "every group must be in exactly one of the two"),
    ("buffer_pop", greedy_pop, "returns at most", "5 groups; expected at most 1"),
    ("converter", picky_converter, "turns rows into chat rows", r"Give one: EXAMPLES = \{'picky_converter': \["),
    ("converter", roleless_converter, "turns rows into chat rows", "it made a row that is no chat row: message 1 has"),
    ("converter", careless_converter, "refuses a row", "raised KeyError: 'question'. Raise slime_core.errors.DataError"),
    ("converter", lenient_converter, "refuses a row", "Raise slime_core.errors.DataError for a row that lacks"),
    ("converter", popping_converter, "does not change the rows", "it changed a row; work on a copy"),
    ("loss_mask", message_dropping_mask, "returns the tokens of the whole", "render the conversation once"),
    (
        "loss_mask",
        masked(lambda m, _: replace(m, loss_mask=m.loss_mask[1:])),
        "gives every token a 0 or 1",
        "mask entries; expected one for each token",
    ),
    (
        "loss_mask",
        masked(lambda m, _: replace(m, loss_mask=[0] + [2] * (len(m.token_ids) - 1))),
        "gives every token a 0 or 1",
        r"its mask holds \[0, 2\]; expected 0 and 1 only",
    ),
    ("loss_mask", masked(lambda m, _: replace(m, offsets=[(0, 1)])), "gives every token", "and 1 offsets; expected one"),
    (
        "loss_mask",
        masked(lambda m, _: replace(m, loss_mask=[0] * len(m.token_ids))),
        "trains something",
        "it trains 0 of",
    ),
    ("loss_mask", masked(lambda m, _: replace(m, loss_mask=[1] * len(m.token_ids))), "trains something", "first one too"),
    ("loss_mask", changing_mask, "does not change messages", "it changed the messages or tools; work on a copy"),
    ("loss_mask", careless_mask, "refuses a conversation", "Raise slime_core.errors.DataError with the reason"),
    ("data_source", SingleSource, "hands out numbered groups", "expected a list of --n-samples-per-prompt = 2 Samples"),
    ("data_source", UnnumberedSource, "hands out numbered groups", "set `index` to a number that no other sample"),
    ("data_source", EndingSource, "hands out numbered groups", "into the next epoch if need be"),
    ("data_source", ForgettingSource, "gives groups that were put back", "hand out the buffer first"),
    ("data_source", RestartingSource, "goes on from its state", "the state must hold the position"),
    ("data_source", BufferlessSource, "goes on from its state", "random states and the buffer"),
    ("data_source", ObjectSource, "goes on from its state", "not plain JSON data: .* Sample.to_dict helps"),
    ("data_source", NumberPrintSource, "says what its data is", "expected {file: digest}"),
    ("data_source", DividingSource, "reports metrics and counts", "its number 'share' is nan; expected a finite"),
    ("data_source", LateSource, "closes, after it handed out", "it raised AttributeError: 'LateSource' object has no"),
]  # fmt: skip
