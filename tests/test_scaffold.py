"""`slime plugins new` writes packages that install, pass their own tests and the contract kit, and show up."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from slime_core.cli import main
from slime_core.contracts.kind import Kind
from slime_core.contracts.kinds import KINDS
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.scaffold import EXAMPLES, new_package
from slime_core.scaffold.names import LONGEST_NAME

ROOT = Path(__file__).parent.parent


def run(*words: str | Path, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run_python("-m", *words, cwd=cwd, site=site)


def run_python(*words: str | Path, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site or ""), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = (sys.executable, *map(str, words))
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """One new package of each kind, in a folder of its own."""
    folder = tmp_path_factory.mktemp("sources")
    for kind in EXAMPLES:
        new_package(f"my-{kind}", kind, folder, Plugins())
    return folder


@pytest.fixture(scope="module")
def site(sources, tmp_path_factory) -> Path:
    """All of them installed, into a folder that only these tests look into."""
    folder = tmp_path_factory.mktemp("site")
    pip = ("pip", "--disable-pip-version-check", "-q", "install", "--no-build-isolation", "--no-deps")
    done = run(*pip, "--target", folder, *sources.iterdir(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def folder_of(sources: Path, kind: str) -> Path:
    return sources / f"my-{kind.replace('_', '-')}"


def test_a_new_package_passes_its_own_tests_where_its_readme_runs_them(sources, site):
    done = run("pytest", "-q", "-p", "no:cacheprovider", cwd=folder_of(sources, "reward"), site=site)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_every_new_package_passes_its_own_tests_once_it_is_installed(sources, site):
    """In one process for all: each would import torch anew."""
    words = ("pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = run(*words, *(folder_of(sources, kind) for kind in EXAMPLES), cwd=sources, site=site)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 2 * len(EXAMPLES)


def test_every_new_package_passes_the_check_once_it_is_installed(sources, site):
    code = "import sys; from slime_core.cli import main\nfor name in sys.argv[1:]: assert not main(['plugins', 'check', name])"
    names = (folder_of(sources, kind).name for kind in EXAMPLES)
    done = run_python("-c", code, *names, cwd=sources, site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in EXAMPLES:
        assert f"{kind} my_{kind}" in done.stdout
    assert "not checked" not in done.stdout


def test_new_packages_are_listed_with_their_components(sources, site):
    done = run("slime_core", "plugins", "--json", cwd=sources, site=site)
    status = {row["distribution"]: row["status"] for row in json.loads(done.stdout)}
    assert {status[folder.name] for folder in sources.iterdir()} == {"loaded"}
    done = run("slime_core", "plugins", "--components", "--json", cwd=sources, site=site)
    listed = {(row["kind"], row["name"]): row["summary"] for row in json.loads(done.stdout)}
    assert {kind: listed[kind, f"my_{kind}"] for kind in EXAMPLES} == {k: e.summary for k, e in EXAMPLES.items()}


@pytest.mark.parametrize("name", ["a", "my-reward", "z23456789-" * (LONGEST_NAME // 10 - 1) + "z234567890"])
def test_new_code_is_formatted_and_linted_as_this_project_however_long_its_name(name, tmp_path):
    for kind in EXAMPLES:
        new_package(name, kind, tmp_path / kind, Plugins([]))
    for words in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = run("ruff", *words, ".", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
    own, ours = (
        tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["ruff"]
        for folder in (tmp_path / "loss" / name, ROOT)
    )
    assert {**own, "src": None} == {**ours, "src": None}


def check_types(*paths: Path) -> None:
    # Without site-packages mypy does not spend a minute on torch; slime_core is found at the root.
    words = ("--strict", "--ignore-missing-imports", "--no-site-packages", "--disable-error-code=untyped-decorator")
    quiet = ("--config-file=", "--follow-imports=silent", "--cache-dir", os.devnull)
    done = run("mypy", *words, *quiet, *paths, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_new_code_is_fully_typed(sources):
    check_types(*sources.glob("*/src/*"))


def test_new_tests_are_fully_typed(sources, monkeypatch):
    monkeypatch.setenv("MYPYPATH", os.pathsep.join(map(str, sources.glob("*/src"))))
    check_types(*(folder_of(sources, kind) / "tests" / f"test_{kind}.py" for kind in EXAMPLES))


@pytest.mark.parametrize("kind", EXAMPLES)
def test_new_components_say_what_the_arguments_are_that_they_are_given(kind, sources):
    (file,) = folder_of(sources, kind).glob(f"src/*/{kind}.py")
    assert "args: Any" not in file.read_text()
    assert ("args: RunArguments" in file.read_text()) is (kind not in ("converter", "loss_mask"))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - EXAMPLES.keys()))
def test_a_kind_without_a_template_says_where_its_contract_and_an_example_are(kind, tmp_path):
    with pytest.raises(ArgumentError) as error:
        new_package("mine", kind, tmp_path, Plugins())
    row, message = KINDS[kind], str(error.value)
    for said in (f"contract is {row.contract_path};", f"by the hook {row.hook}, and {row.options[0]} chooses it."):
        assert said in message
    installed = Plugins().components(kind)
    assert ("No component of it is installed." in message) is not bool(installed)
    assert not installed or f"An installed example is {next(iter(installed))!r}, slime_" in message
    assert list(tmp_path.iterdir()) == []


def test_a_kind_that_is_new_needs_no_line_in_the_scaffold(tmp_path, monkeypatch, capsys):
    def greet(args, name):
        """Say hello."""

    monkeypatch.setitem(KINDS, "greeting", Kind("greeting", "slime_greetings", greet, ("--greeting",)))
    assert main(["plugins", "new", "mine", "--kind", "greeting", "--dir", str(tmp_path)]) == 2
    assert (
        f"There is no template for the kind 'greeting'. Its contract is {greet.__module__}.greet; a plugin provides "
        "such a component by the hook slime_greetings, and --greeting chooses it. No component of it is installed."
    ) in capsys.readouterr().err


def test_new_prints_the_commands_that_come_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "My.Words", "--kind", "dynamic-filter", "--dir", "a b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "./a b/my-words holds a new component, 'my_words'. Next:",
        "",
        "pip install -e './a b/my-words[test]'",
        "pytest './a b/my-words'",
        "slime plugins check my-words",
    ]
    readme = (tmp_path / "a b" / "my-words" / "README.md").read_text()
    for said in ("pip install -e", "pytest", "--dynamic-sampling-filter-path my_words", "pip uninstall my-words"):
        assert said in readme


def test_the_option_that_the_readme_shows_becomes_a_flag_that_is_declared_and_typed(tmp_path):
    folder = new_package("my-reward", "reward", tmp_path, Plugins([])).folder
    readme = (folder / "README.md").read_text()
    arguments, hook = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    (declaration,) = re.findall(r"`(reads_options=.*?)`", readme)
    package = folder / "src" / "my_reward"
    (package / "arguments.py").write_text(arguments)
    plugin = (package / "plugin.py").read_text()
    assert "reads_options=()," in plugin
    (package / "plugin.py").write_text(f"{plugin.replace('reads_options=()', declaration)}\n\n{hook}")
    reward = (package / "reward.py").read_text().replace("in words)", "in words) * args.my_option")
    reward = reward.replace("args: RunArguments", "args: MyRunArguments")
    reward = reward.replace(
        "from slime_core.arguments import RunArguments", "from my_reward.arguments import MyRunArguments"
    )
    (package / "reward.py").write_text(reward)
    code = (
        "from slime_core.arguments.namespace import Namespace; from slime_core.plugins import PluginInfo, Plugins;"
        "from slime_core.testing import inspect_component;"
        "plugins = Plugins([PluginInfo('my-reward', 'my-reward', '0', 'my_reward.plugin')]);"
        "print(Namespace(plugins).options['my_option'].flag);"
        "reward = plugins.select('reward', 'my_reward');"
        "print(reward.reads_options, reward.target.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder / "src", capture_output=True, text=True, check=False)
    assert done.stdout == "--my-option\n('my_option',) my_reward\n", done.stderr
    check_types(package)


@pytest.mark.parametrize(("kind", "given"), [("loss", True), ("converter", False)])
def test_the_readme_speaks_of_options_where_components_are_given_them(kind, given, tmp_path):
    folder = new_package("mine", kind, tmp_path, Plugins([])).folder
    assert ("my_option" in (folder / "README.md").read_text()) is given


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("-x", "begins with a letter and ends with a letter or digit"),
        ("my reward", "letters, digits and single '-'"),
        ("../up", "letters, digits and single '-'"),
        ("2fast", "Python could not import a package called '2fast'"),
        ("class", "Python could not import a package called 'class'"),
        ("json", "would hide Python's own module"),
        ("torch", "would hide "),
        ("Test", "the package 'test' would hide "),
        ("numpy", "would hide "),
        ("slime", "would hide that of slime-compat"),
        ("slime-core", "one of slime's own distributions"),
        ("slime-losses", "one of slime's own distributions"),
        ("x" * 41, "it has 41 characters, 40 are the most"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name, problem, tmp_path):
    with pytest.raises(ArgumentError) as error:
        new_package(name, "reward", tmp_path, Plugins([]))
    assert problem in str(error.value)
    assert "Choose one such as 'my-reward'." in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["plugins", "new", "mine", "--kind", "loss", "--dir", str(tmp_path)]) == 2
    assert "mine exists. Choose another name, or another folder with --dir" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_unknown_kind_offers_the_nearest_one(tmp_path):
    with pytest.raises(ArgumentError, match=r"no kind 'rewrd'. Did you mean 'reward'\? There are: advantage, "):
        new_package("mine", "rewrd", tmp_path, Plugins([]))


def test_a_name_that_an_installed_component_has_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"There is a loss 'sft_loss' already, in losses \(slime-losses"):
        new_package("sft-loss", "loss", tmp_path, Plugins())
