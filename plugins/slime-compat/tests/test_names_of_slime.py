"""The import name `slime` is this distribution's, or it is said what is in the way; names that are not here say what to use."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vision_checkpoints import write_checkpoint

import slime
from slime.rollout.sglang_rollout import GenerateState
from slime.utils.processing_utils import load_processor
from slime_compat import own_name
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.discovery import PluginInfo, discover
from slime_core.plugins.own_arguments import own_arguments
from slime_core.sample import Sample

HOOKS = (
    "from slime.utils.types import Sample",
    "from slime.utils.http_utils import post, get",
    "from slime.utils.misc import load_function, SingletonMeta",
    "from slime.utils.async_utils import run",
    "from slime.utils.processing_utils import load_tokenizer, load_processor, encode_image_for_rollout_engine",
    "from slime.rollout.sglang_rollout import GenerateState, generate, generate_and_rm, generate_and_rm_group, get_model_url",
    "from slime.rollout.rm_hub import async_rm, batched_async_rm, remote_rm, grade_answer_verl, f1_score",
    "from slime.rollout.rm_hub import get_deepscaler_rule_based_reward, compute_gpqa_reward, compute_score_dapo",
    "from slime.rollout.rm_hub.deepscaler import get_deepscaler_rule_based_reward",
    "from slime.rollout.rm_hub.math_dapo_utils import compute_score",
    "from slime.rollout.rm_hub.math_utils import extract_answer, grade_answer_verl, grade_answer_mathd, grade_answer_sympy",
    "from slime.rollout.rm_hub.f1 import f1_score",
    "from slime.rollout.rm_hub.gpqa import compute_gpqa_reward",
    "from slime.rollout.filter_hub.base_types import DynamicFilterOutput, call_dynamic_filter, MetricGatherer",
    "from slime.rollout.filter_hub.dynamic_sampling_filters import check_reward_nonzero_std",
    "from slime.rollout.base_types import RolloutFnTrainOutput, RolloutFnEvalOutput",
    "from slime.backends.megatron_utils.cp_utils import all_gather_with_cp, slice_log_prob_with_cp",
    "import slime.utils.misc as U",
)
"""What hook files of slime begin with."""


@pytest.mark.parametrize("line", HOOKS)
def test_what_hook_files_import_is_here(line: str) -> None:
    exec(line, {})


def test_samples_of_slime_are_samples() -> None:
    assert importlib.import_module("slime.utils.types").Sample is Sample


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("from slime.rollout.sglang_rollout import generate_rollout", "--rollout-function-path"),
        ("from slime.rollout.data_source import RolloutDataSourceWithBuffer", "GlobalDataSource"),
        ("from slime.rollout.base_types import call_rollout_fn", "RolloutOutput"),
        ("from slime.utils.mask_utils import MultiTurnLossMaskGenerator", "--loss-mask-type"),
        ("from slime.utils.processing_utils import process_vision_info", "sample.images"),
        ("import slime.utils.ppo_utils", "slime_losses"),
        ("from slime.utils import accelerator", "docs/slime-compat.md"),
        ("import slime.agent.adapters", "generate function"),
        ("from slime.observability.trace_utils import trace_span", "perf/hooks"),
        ("import slime.backends.megatron_utils.loss", "slime-megatron"),
        ("from slime.backends.megatron_utils.cp_utils import get_sum_of_sample_mean", "inputs.reduce"),
        ("from slime.backends.megatron_utils import loss", "slime-megatron"),
        ("from slime import anything", "docs/slime-compat.md"),
        ("import slime.rollout.rm_hub.ifbench", "docs/rewards.md"),
    ],
)
def test_a_name_that_is_not_here_says_what_to_use(line: str, advice: str) -> None:
    with pytest.raises(ImportError, match="slime-compat has no 'slime") as caught:
        exec(line, {})
    assert advice in str(caught.value)


def test_private_names_are_missing_in_the_usual_way() -> None:
    assert not hasattr(slime, "_private")
    assert not hasattr(slime, "__path_of_nothing__")
    assert importlib.util.find_spec("slime.utils.types") is not None


def test_hooks_find_what_slime_has_among_its_arguments(writer: Path) -> None:
    words = ["--hf-checkpoint", str(writer), "--prompt-data", "x", "--num-rollout", "1", "--rollout-batch-size", "1"]
    without = [info for info in discover() if info.distribution not in ("slime-engine-sglang", "slime-megatron")]
    args: Any = resolve(Namespace(Plugins(without)), words, env={}).args
    assert f"http://{args.sglang_router_ip}:{args.sglang_router_port}" == "http://engine.invalid:30000"
    assert args.context_parallel_size == 1
    assert not args.ci_test
    own: Any = resolve(
        Namespace(Plugins()), [*words, "--sglang-router-ip", "10.0.0.1", "--sglang-router-port", "4"], env={}
    )
    named = own_arguments(own.args)
    assert (named.sglang_router_ip, named.sglang_router_port) == ("10.0.0.1", 4)


DERIVED = ("eval_max_context_len", "eval_reward_key", "over_sampling_batch_size")
NEGATED = ("rewards_normalization", "grpo_std_normalization", "compute_advantages_and_returns")


@pytest.mark.parametrize(
    ("words", "derived", "negated"),
    [
        ("--n-samples-per-prompt 2", (None, None, 3), (True, True, True)),
        ("--rollout-max-context-len 64 --reward-key score", (64, "score", 3), (True, False, True)),
        (
            "--rollout-max-context-len 64 --eval-max-context-len 32 --reward-key a --eval-reward-key b "
            "--over-sampling-batch-size 5 --n-samples-per-prompt 2 --disable-grpo-std-normalization",
            (32, "b", 5),
            (True, False, True),
        ),
        ("--disable-rewards-normalization --n-samples-per-prompt 2", (None, None, 3), (False, True, True)),
        ("--disable-compute-advantages-and-returns", (None, None, 3), (True, False, False)),
    ],
)
def test_hooks_find_what_slime_derives_from_other_options(
    writer: Path, words: str, derived: tuple[Any, ...], negated: tuple[bool, ...]
) -> None:
    run = ["--hf-checkpoint", str(writer), "--prompt-data", "x", "--num-rollout", "1", "--rollout-batch-size", "3"]
    args: Any = resolve(Namespace(Plugins()), [*run, *words.split()], env={}).args
    own = own_arguments(args)
    assert tuple(getattr(own, name) for name in DERIVED) == derived
    assert tuple(getattr(own, name) for name in NEGATED) == negated
    own.grpo_std_normalization = "mine"  # of a hook's own
    assert (own.grpo_std_normalization, args.grpo_std_normalization) == ("mine", negated[1])


def test_hooks_find_the_evaluation_sets_as_slime_describes_them(writer: Path, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(
        "defaults: {top_p: 0.5, metadata_overrides: {level: 2}}\n"
        "datasets:\n"
        "- {name: own, path: own.jsonl, temperature: 0.7, n_samples_per_eval_prompt: 4, rm_type: math, label_key: truth, stop: END}\n"
        "- {name: plain, path: plain.jsonl, top_p: 1.0, custom_generate_function_path: a.b, metadata_overrides: {}}\n"
    )
    words = ["--hf-checkpoint", str(writer), "--prompt-data", "x", "--num-rollout", "1", "--rollout-batch-size", "3"]
    words += [
        "--eval-config",
        str(tmp_path / "sets.yaml"),
        "--eval-interval",
        "1",
        "--input-key",
        "asked",
        "--label-key",
        "label",
    ]
    words += [
        "--eval-input-key",
        "question",
        "--rollout-temperature",
        "0.9",
        "--eval-max-response-len",
        "9",
        "--rm-type",
        "dapo",
    ]
    args: Any = resolve(Namespace(Plugins()), [*words, "--custom-rm-path", "mine.reward"], env={}).args
    own, plain = own_arguments(args).eval_datasets
    shared = {
        "input_key": "question",
        "max_response_len": 9,
        "custom_rm_path": "mine.reward",
        "repetition_penalty": None,
    }
    shared |= {"tool_key": "tools", "metadata_key": "metadata", "apply_chat_template": False, "no_stop_trim": None}
    of_one = {
        "name": "own",
        "path": "own.jsonl",
        "temperature": 0.7,
        "top_p": 0.5,
        "n_samples_per_eval_prompt": 4,
        "rm_type": "math",
    }
    of_one |= {"label_key": "truth", "stop": ["END"], "custom_generate_function_path": None}
    of_other = {
        "name": "plain",
        "path": "plain.jsonl",
        "temperature": 0.9,
        "top_p": 1.0,
        "n_samples_per_eval_prompt": 1,
        "rm_type": None,
    }
    of_other |= {"label_key": "label", "stop": None, "custom_generate_function_path": "a.b"}
    assert {name: getattr(own, name) for name in shared | of_one} == shared | of_one
    assert {name: getattr(plain, name) for name in shared | of_other} == shared | of_other
    assert own.inject_metadata({"level": 1, "n": 0}) == {"level": 2, "n": 0, "rm_type": "math"}
    assert plain.inject_metadata(None) == {}
    assert own.cache_key == ("own", "own.jsonl", "question", "truth", "tools", "metadata")
    without = resolve(Namespace(Plugins()), words[:8], env={}).args
    assert own_arguments(without).eval_datasets == []


# ---------------------------------------------------------------------------------------------------- processors


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here, and loads them")
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_a_processor_that_needs_what_is_not_installed_says_what_to_use_instead(family: str, tmp_path: Path) -> None:
    model = str(write_checkpoint(tmp_path, family))
    words = ["--hf-checkpoint", model, "--prompt-data", "x", "--num-rollout", "1", "--rollout-batch-size", "1"]
    args = resolve(Namespace(Plugins()), words, env={}).args
    for asked in (lambda: load_processor(model), lambda: GenerateState(args).processor):
        with pytest.raises(ArgumentError, match=r"requires the Torchvision library.*sample\.images") as caught:
            asked()
        assert model in str(caught.value)


def test_models_without_a_processor_have_none(writer: Path, tmp_path: Path) -> None:
    assert load_processor(str(writer)) is None
    assert load_processor(str(tmp_path)) is None


# ---------------------------------------------------------------------------------------------------- graders


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("rm_hub.math_dapo_utils.compute_score", ("Answer: 7", "7"), {"score": 1.0, "acc": 1.0, "pred": "7"}),
        ("rm_hub.math_dapo_utils.compute_score", ("Answer: 8", "7"), {"score": -1.0, "acc": 0.0, "pred": "8"}),
        (
            "rm_hub.math_dapo_utils.compute_score",
            (r"so \boxed{7}", "7", True),
            {"score": 1.0, "acc": True, "pred": "7"},
        ),
        (
            "rm_hub.math_dapo_utils.compute_score",
            (r"\boxed{07}", "7", True),
            {"score": -1.0, "acc": False, "pred": "07"},
        ),
        ("rm_hub.math_dapo_utils.compute_score", ("no box", "7", True), {"score": -1.0, "acc": False, "pred": None}),
        (
            "rm_hub.math_dapo_utils.compute_score",
            (r"\boxed{7}" + "." * 100, "7", True),
            {"score": -1.0, "acc": False, "pred": None},
        ),
        ("rm_hub.deepscaler.get_deepscaler_rule_based_reward", (r"hm</think>\boxed{7}", "7"), 1),
        ("rm_hub.deepscaler.get_deepscaler_rule_based_reward", (r"hm</think>\boxed{8}", "7"), 0),
        ("rm_hub.math_utils.grade_answer_verl", (r"\boxed{\frac{1}{2}}", "0.5"), True),
        *(
            ("rm_hub.math_utils.grade_answer_verl", given, expected)
            for given, expected in [
                (("The answer is 42.", "42"), False),  # without a box
                ((r"\boxed{42}", r"\boxed{42}"), True),
                ((r"\boxed{42}", 42), True),
                ((r"\boxed{0}", "0"), True),
                *(((r"\boxed{42}", empty), False) for empty in ("", " ", None)),
            ]
        ),
        *(("rm_hub.deepscaler.get_deepscaler_rule_based_reward", (r"</think>\boxed{7}", no), 0) for no in ("", None)),
        *(("rm_hub.math_utils.grade_answer_sympy", ("42", no), False) for no in ("", None)),
        ("rm_hub.math_utils.grade_answer_sympy", ("1/2", "0.5"), True),
        ("rm_hub.math_utils.grade_answer_mathd", (None, "0.5"), False),
        ("rm_hub.math_utils.extract_answer", (r"\boxed{1} and \boxed{2}",), "2"),
        ("rm_hub.math_utils.extract_answer", (r"\boxed{1",), None),
        ("rm_hub.gpqa.compute_gpqa_reward", ("The answer is B.", "B"), 1.0),
        ("rm_hub.gpqa.compute_gpqa_reward", ("The answer is B.", "Paris", {"choices": ["Rome", "Paris"]}), 1.0),
    ],
)
def test_graders_of_slime_grade_by_the_rewards_that_are_installed(path: str, given: Any, expected: Any) -> None:
    module, _, name = f"slime.rollout.{path}".rpartition(".")
    assert getattr(importlib.import_module(module), name)(*given) == expected


def test_f1_has_the_f1_where_slime_has_it() -> None:
    from slime.rollout.rm_hub.f1 import f1_score

    score, *others = f1_score("the red cat", "red dog")
    assert score == pytest.approx(0.5)
    assert all(map(math.isnan, others))


def test_filters_of_slime_say_which_groups_are_alike() -> None:
    from slime.rollout.filter_hub.base_types import MetricGatherer, call_dynamic_filter
    from slime.rollout.filter_hub.dynamic_sampling_filters import (
        check_reward_nonzero_std,
        check_reward_nonzero_std_with_fallback,
    )

    args = SimpleNamespace(reward_key=None)
    same, other = ([Sample(index=i, reward=reward) for i, reward in enumerate(rewards)] for rewards in ((1, 1), (0, 1)))
    assert call_dynamic_filter(check_reward_nonzero_std, args, other).keep is True
    dropped = call_dynamic_filter(check_reward_nonzero_std_with_fallback, args, same)
    assert (dropped.keep, dropped.reason, dropped.keep_when_insufficient) == (False, "zero_std_1.0", True)
    assert call_dynamic_filter(lambda *_: False, args, same).keep is False
    assert call_dynamic_filter(None, args, same).keep is True
    gathered = MetricGatherer()
    for reason in (dropped.reason, dropped.reason, None):
        gathered.on_dynamic_filter_drop(reason)
    assert gathered.collect() == {"rollout/dynamic_filter/drop_zero_std_1.0": 2}


# ---------------------------------------------------------------------------------------------------- slime itself


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with a package `slime` that is not this distribution's, and hooks that import it."""
    package = tmp_path / "checkout" / "slime"
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "types.py").write_text("class Sample: pass\n")
    hooks = "from slime.utils.types import Sample\n\ndef my_reward(args, sample: Sample): return 1.0\n"
    (package.parent / "my_hooks.py").write_text(hooks)
    return package.parent


def installed(folder: Path) -> Path:
    """Have pip's records say that slime is installed in a folder."""
    (folder / "slime-0.2.0.dist-info").mkdir()
    (folder / "slime-0.2.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: slime\nVersion: 0.2.0\n")
    return folder


def python(code: str, first: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(first), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    return done.stdout + done.stderr


SELECT = """
from slime_core.plugins import Plugins
from slime_core.errors import PluginError
plugins = Plugins()
print([(info.status, info.reason) for info in plugins.infos if info.name == "compat"])
try:
    print(plugins.select("reward", "my_hooks.my_reward", "--custom-rm-path").label)
except PluginError as error:
    print("PluginError:", error)
import sys
print(sys.modules["slime"].__file__)
"""


def test_sources_of_slime_on_the_path_are_not_taken_for_an_installed_slime(sources: Path) -> None:
    said = python(SELECT, sources)
    assert "('loaded', '')" in said
    assert "reward 'my_hooks.my_reward' of import path" in said
    assert str(own_name.FOLDER) in said


def test_an_installed_slime_is_told_from_this_one_by_plugins_and_by_hooks_that_import_it(sources: Path) -> None:
    said = python(SELECT, installed(sources))
    assert "'broken'" in said
    assert "PluginError: The reward 'my_hooks.my_reward', chosen by --custom-rm-path" in said
    assert said.count("pip uninstall slime") >= 2
    assert "slime 0.2.0" in said


def test_importing_slime_where_slime_itself_is_installed_too_says_what_to_remove(tmp_path: Path) -> None:
    said = python(f"import sys; sys.path.insert(0, {str(own_name.FOLDER.parent)!r}); import slime", installed(tmp_path))
    assert "PluginError" in said
    assert "pip uninstall slime" in said


def test_hooks_of_slime_name_this_distribution_where_it_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "hooks_without.py").write_text("from slime_not_here import x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("slime_core.plugins.registry.imports", lambda: {"slime_not_here": "slime-compat"})
    monkeypatch.setattr("slime_core.plugins.catalogue._CATALOGUE", {"import": {"slime_not_here": "slime-compat"}})
    core = [info for info in discover() if info.distribution == "slime-core"]
    with pytest.raises(
        PluginError, match=r"It imports 'slime_not_here'\. slime-compat brings it: pip install slime-compat"
    ):
        Plugins(core).select("reward", "hooks_without.x", "--custom-rm-path")


def test_another_package_that_was_imported_as_slime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "slime", SimpleNamespace(__file__="/elsewhere/slime/__init__.py"))  # type: ignore[arg-type]
    plugins = Plugins([PluginInfo("again", "slime-compat", "0.1.0", "slime_compat.own_name:take_the_name")])
    assert plugins.infos[0].status == "broken"
    with pytest.raises(PluginError, match=r"/elsewhere/slime/__init__\.py"):
        own_name.take_the_name()
