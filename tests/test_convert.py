"""`slime convert`: conversions are components of plugins, each a command with options of its own."""

from __future__ import annotations

import pytest

from slime_core.arguments.of_a_command import read_options
from slime_core.cli import main
from slime_core.contracts.options import REQUIRED, ArgumentGroup, option
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

CONVERSION = """
    def shout(argv, plugins):
        print(" ".join(argv).upper())
        return 3

    @hookimpl
    def slime_checkpoint_conversions():
        return {"hf-to-shouting": Lazy("open_pack:shout", "everything in capitals")}
"""


@pytest.fixture
def shouting(install_plugin) -> None:
    install_plugin(CONVERSION)


def test_a_plugins_conversion_is_listed_and_run_with_its_own_words(shouting, capsys):
    assert main(["convert", "--help"]) == 0
    assert "hf-to-shouting     everything in capitals" in capsys.readouterr().out
    assert main(["convert", "hf-to-shouting", "--from", "here"]) == 3
    assert capsys.readouterr().out == "--FROM HERE\n"
    assert Plugins().select("checkpoint_conversion", "hf-to-shouting")([], None) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Which conversion? It comes first."),
        (("--save", "x"), "Which conversion? It comes first."),
        (("hf-to-shoutin",), "There is no conversion 'hf-to-shoutin'. Did you mean 'hf-to-shouting'?"),
        (("no_such.conversion",), "cannot be imported"),
    ],
)
def test_a_conversion_that_is_not_there_is_an_error_with_those_that_are(words, said, shouting, capsys):
    assert main(["convert", *words]) in (1, 2)
    assert said in (told := capsys.readouterr().err)
    assert "hf-to-shouting" in told


class Shared(ArgumentGroup):
    """What several commands know"""

    layers: int | None = option(None, "Layers of the model.", ge=1)
    tied: bool = option(False, "Whether the output is tied.")


class Own(Shared):
    """The conversion"""

    save: str = option(REQUIRED, "Where to write the result.")
    names: list[str] = option([], "Any number of names.")


def read(*argv: str) -> Own:
    return read_options(argv, "slime convert x", "Converts.", Own, (Shared,))


def test_a_command_reads_its_options_and_those_that_it_inherits():
    options = read("--save", "there", "--layers", "3", "--tied", "--names", "a", "b")
    assert (options.save, options.layers, options.tied, options.names) == ("there", 3, True, ["a", "b"])
    assert (read("--save=x").layers, read("--save=x").tied) == (None, False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "--save is required: Where to write the result."),
        (("--save", "x", "--layer", "3"), "There is no option --layer. Did you mean '--layers'?"),
        (("--save", "x", "--layers", "0"), "--layers: given '0'. Input should be greater than or equal to 1."),
        (("--save", "x", "stray"), "Unrecognized arguments: stray. See slime convert x --help."),
        (("--save",), "Argument --save: expected one argument."),
    ],
)
def test_options_of_a_command_that_cannot_be_used_are_named(argv, said):
    with pytest.raises(ArgumentError) as error:
        read(*argv)
    assert said in str(error.value)


def test_the_help_of_a_command_has_its_own_options_before_those_that_it_inherits(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    told = capsys.readouterr().out
    assert told.index("The conversion") < told.index("--save") < told.index("What several") < told.index("--layers")
