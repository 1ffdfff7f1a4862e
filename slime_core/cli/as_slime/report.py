"""What becomes of the options of a launch script of slime: read by `slime check --as-slime` before it plans the run with those
that are here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slime_core.arguments.elsewhere import of_another_program, programs_with
from slime_core.arguments.from_slime import PROGRAMS, Fate, fate_of, fates
from slime_core.arguments.namespace import Namespace
from slime_core.cli.as_slime.bash_words import UNKNOWN
from slime_core.cli.as_slime.launch_script import read_launch_script
from slime_core.errors import ArgumentError, did_you_mean

FLAG = "--as-slime"
NOT_KNOWN = "not known"
UNEXPLAINED = "no option"
_TITLES = {
    "same": "the same here",
    "different": "here, with a difference",
    "not needed": "left out, and nothing is lost",
    "not here": "left out, not available here",
    NOT_KNOWN: "left out, their values are known only when the script runs",
    UNEXPLAINED: "options of neither slime, Megatron nor SGLang",
}


@dataclass(frozen=True)
class Given:
    """One option of a launch script.

    Attributes:
        words: the flag and its values.
        verdict: a `slime_core.arguments.from_slime.Verdict`, `NOT_KNOWN` or `UNEXPLAINED`.
        text: sentences on it; "" where there is nothing to say.
    """

    words: list[str]
    verdict: str
    text: str = ""

    @property
    def name(self) -> str:
        return _name(self.words[0])

    @property
    def is_kept(self) -> bool:
        """Whether the run here is given the option; one that nobody knows is, so that planning names it as a mistake."""
        return self.verdict in ("same", "different", UNEXPLAINED)


@dataclass(frozen=True)
class Report:
    """What becomes of a launch script.

    Attributes:
        source: the script, or "the command line".
        command: of slime that runs it: "train" or "train-async"; None where only words were given.
        given: its options, in their order.
        defaults: what options have in slime that are not given, and have another default here.
        remarks: what could not be read.
    """

    source: str
    command: str | None
    given: list[Given]
    defaults: list[Fate]
    remarks: list[str] = field(default_factory=list)

    @property
    def argv(self) -> list[str]:
        """The words with which the run is planned here."""
        return [word for one in self.given if one.is_kept for word in one.words]

    def lines(self, namespace: Namespace) -> Iterator[str]:
        """The report for a person."""
        started = f", which `slime {self.command}` runs" if self.command else ""
        yield f"options of slime from {self.source}: {len(self.given)}{started}"
        for verdict, title in _TITLES.items():
            chosen = [one for one in self.given if one.verdict == verdict]
            if chosen:
                yield f"{title} ({len(chosen)})"
                yield from _table([(" ".join(one.words).replace(UNKNOWN, "$"), one.text) for one in chosen])
        if self.defaults:
            yield f"not given, with another default here ({len(self.defaults)})"
            yield from _table([(fate.flag, _default(fate, namespace)) for fate in self.defaults])
            wanted = " ".join(fate.as_slime for fate in self.defaults if fate.as_slime and not _is_refused(fate))
            if wanted:
                yield f"  for slime's: {wanted}"
        if self.remarks:
            yield "of the script"
            yield from (f"  {remark}" for remark in self.remarks)


def read_as_slime(argv: Sequence[str]) -> tuple[str | None, list[str]] | None:
    """Return (the script behind `--as-slime` or None, the other words); None where `--as-slime` is not among the words.

    The words behind the script go before those of the script. Without a script, they are what would be handed to train.py.

    Raises:
        ArgumentError: `--as-slime` stands there twice.
    """
    places = [number for number, word in enumerate(argv) if word.partition("=")[0] == FLAG]
    if not places:
        return None
    if len(places) > 1:
        raise ArgumentError(f"{FLAG} is given twice; give it once, with one launch script.")
    (place,) = places
    _, has_value, script = argv[place].partition("=")
    rest = list(argv[place + 1 :])
    if not has_value and rest and not rest[0].startswith("-"):
        script = rest.pop(0)
    return script or None, [*argv[:place], *(word for word in rest if word != "--")]


def judge(script: str | None, words: Sequence[str], namespace: Namespace) -> Report:
    """What becomes of the options of a script, and of words behind it, which win over those of the script.

    Raises:
        ArgumentError: the script cannot be read, or words are given that belong to no option.
    """
    command, source, remarks = None, "the command line", list[str]()
    own: list[str] = []
    if script is not None:
        read = read_launch_script(Path(script))
        command, own, source, remarks = read.command, read.words, script, list(read.remarks)
    given: dict[str, list[str]] = {}
    for option in [*_options(own, remarks), *_options(words, None)]:
        name = _name(option[0]).removeprefix("no_")
        own_option = namespace.options.get(name)
        earlier = given[name][1:] if own_option is not None and own_option.repeatable and name in given else []
        given[name] = [option[0], *earlier, *option[1:]]
    judged = [_judge(option, namespace) for option in given.values()]
    known = {one.name.removeprefix("no_") for one in judged if one.is_kept}
    defaults = [
        fate
        for program in PROGRAMS
        for fate in fates(program).values()
        if fate.why and fate.name not in known and _counts(fate, known)
    ]
    return Report(source, command, judged, defaults, remarks)


def _options(words: Sequence[str], remarks: list[str] | None) -> Iterator[list[str]]:
    """The options among words, each with its values. Words in front of the first are remarked upon, or refused."""
    option: list[str] = []
    for word in words:
        if word.startswith("--") and word != "--":
            if option:
                yield option
            flag, has_value, value = word.partition("=")
            option = [flag, value] if has_value else [word]
        elif option:
            option.append(word)
        elif remarks is None:
            raise ArgumentError(
                f"What is {word!r}? Behind {FLAG} comes one launch script, and then options that go before its own. A recipe goes "
                "without it."
            )
        else:
            remarks.append(
                f"{word.replace(UNKNOWN, '$')} is handed to train.py in front of any option, so it was passed over."
            )
    if option:
        yield option


def _judge(option: list[str], namespace: Namespace) -> Given:
    name = _name(option[0])
    own = namespace.options.get(name) or namespace.options.get(name.removeprefix("no_"))
    fate = fate_of(name) or fate_of(name.removeprefix("no_"))
    if own is None and fate is not None and not fate.is_here:
        return Given(option, fate.verdict, fate.text)
    if own is None and fate is not None:
        return Given(option, "not here", namespace.advice(fate.name).strip())
    if any(UNKNOWN in word for word in option):
        return Given(option, NOT_KNOWN)
    if own is not None:
        return Given(option, "different", fate.text) if fate and fate.verdict == "different" else Given(option, "same")
    if namespace.is_of_a_family(name):
        return Given(option, "same")
    if programs_with(name) or programs_with(name.removeprefix("no_")):
        return Given(option, "not here", of_another_program(name.removeprefix("no_")).strip())
    return Given(option, UNEXPLAINED, did_you_mean(option[0], [o.flag for o in namespace.options.values()]).strip())


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _counts(fate: Fate, given: set[str]) -> bool:
    """Whether the default of an option counts in a run with these options."""
    other = fate.counts_with
    return not other or (other.lstrip("!") in given) != other.startswith("!")


def _is_refused(fate: Fate) -> bool:
    """Whether slime's default cannot be had here."""
    return fate.text.startswith(("Only ", "No effect"))


def _default(fate: Fate, namespace: Namespace) -> str:
    option = namespace.options.get(fate.name)
    here = shown(option.default) if option is not None else "not installed"
    return f"slime: {shown(fate.default)}, here: {here}. {fate.why}"


def shown(default: object) -> str:
    """A default as people write it."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Rows with a sentence each on a line of its own; those without one, one behind the other."""
    silent = [row[0] for row in rows if not row[1]]
    if silent:
        yield from textwrap.wrap(
            ", ".join(silent),
            118,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    for words, text in rows:
        if text:
            yield f"  {words}"
            yield from textwrap.wrap(text, 114, initial_indent="      ", subsequent_indent="      ")
