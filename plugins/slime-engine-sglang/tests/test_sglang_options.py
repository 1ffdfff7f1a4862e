"""The options of SGLang and of the router, checked by the argument parsers of the installed versions."""

from __future__ import annotations

import pytest
import sglang_cases as cases

from slime_core.cli import main
from slime_core.errors import ArgumentError

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

from slime_engine_sglang.router import router_command
from slime_engine_sglang.server import server_command

pytestmark = pytest.mark.timeout(900)


def commands(tmp_path, *words: str) -> tuple[list[str], list[str]]:
    """The command lines of a server and of the router in a run with these options."""
    args = cases.arguments(tmp_path / "model", tmp_path, *words)
    server = server_command(args, 0, "folder", 0, "127.0.0.1", 5000, on_gpu=False)
    return server, router_command(args, "127.0.0.1", 5001, 5002)


def test_options_reach_the_server_and_the_router_as_they_were_given(tmp_path):
    server, router = commands(
        tmp_path,
        *("--sglang-mem-fraction-static", "0.7", "--sglang-cuda-graph-bs-decode", "1", "2", "4"),
        *("--sglang-disable-radix-cache", "--no-sglang-enable-metrics", "--router-policy", "round_robin"),
        *("--sglang-json-model-override-args", '{"rope_theta": 1}'),
    )
    text = " ".join(server)
    assert "--mem-fraction-static 0.7" in text
    assert "--cuda-graph-bs-decode 1 2 4" in text
    assert "--disable-radix-cache" in text
    assert "--enable-metrics" not in text
    assert server[server.index("--json-model-override-args") + 1] == '{"rope_theta": 1}'
    assert router[router.index("--policy") + 1] == "round_robin"
    assert router.count("--policy") == 1


def test_what_somebody_sets_takes_the_place_of_slimes_default(tmp_path):
    server, _ = commands(tmp_path, "--sglang-dtype", "bfloat16", "--sglang-max-total-tokens", "1024")
    assert server[server.index("--dtype") + 1] == "bfloat16"
    assert server.count("--dtype") == server.count("--max-total-tokens") == 1


def test_pipeline_stages_divide_the_gpus_of_a_server(tmp_path):
    words = ("--update-weight-transport", "disk", "--sglang-pp-size", "2", "--rollout-num-gpus-per-engine")
    server, _ = commands(tmp_path, *words, "8")
    assert server[server.index("--tp-size") + 1] == "4"
    with pytest.raises(ArgumentError, match="cannot be divided"):
        commands(tmp_path, *words, "3")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--sglang-mem-fraction-statik", "0.7"], "Did you mean '--sglang-mem-fraction-static'"),
        (["--sglang-server-concurency", "7"], "Did you mean '--sglang-server-concurrency'"),
        (["--router-polisy", "random"], "Did you mean '--router-policy'"),
        (["--sglang-mem-fraction-static", "lots"], "--sglang-mem-fraction-static.*lots"),
        (["--sglang-tp-size", "2"], "--sglang-tp-size cannot be set.*--rollout-num-gpus-per-engine"),
        (["--sglang-port", "3"], "--sglang-port cannot be set"),
        (["--router-port", "3"], "--router-port cannot be set.*--sglang-router-port"),
        (["--router-policy", "best"], "--router-policy.*cache_aware"),
    ],
)
def test_an_option_that_the_installed_version_does_not_take_is_refused(tmp_path, words, text):
    with pytest.raises(ArgumentError, match=text):
        cases.arguments(tmp_path / "model", tmp_path, *words)


def test_a_recipe_may_set_them_too_and_check_shows_them(tmp_path, tiny_model, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "hello"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"hf_checkpoint: {tiny_model}\nprompt_data: [{rows}]\nrollout_batch_size: 1\nnum_rollout: 1\n"
        "rm_type: random\nrollout_engine: sglang\nsglang_mem_fraction_static: 0.5\nsglang_enable_metrics: true\n"
    )
    assert main(["check", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "sglang_mem_fraction_static" in shown
    assert "sglang_enable_metrics" in shown
    assert main(["check", str(recipe), "--rollout-engine", "local"]) == 0
    assert "--sglang-mem-fraction-static has no effect" in capsys.readouterr().out
