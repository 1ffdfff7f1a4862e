"""What a run asks of a cluster, and what it is told when there is not enough. Pure: nothing here starts Ray."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slime_core.arguments.namespace import Namespace
from slime_core.cli import main
from slime_core.errors import ArgumentError, CheckpointError, ClusterError
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.selection import RaisedIn
from slime_core.run.blueprint import Blueprint
from slime_core.runtime.failures import Failure
from slime_core.runtime.layout import Layout, make_layout, place, require_ray
from slime_core.runtime.slots import slots_beside_ranks
from slime_core.runtime.tensors import from_bytes, to_bytes
from slime_core.training.worker import TrainComponents, TrainWorker


class Embedded:
    pass


class Servers:
    needs_ray = True


class Fleet:
    """Starts servers, through Ray where there is a cluster."""

    @staticmethod
    def devices_per_server(args) -> int:
        return args.width


def args(**values):
    defaults = {
        "actor_num_nodes": 1,
        "actor_num_gpus_per_node": 1,
        "rollout_num_gpus": None,
        "colocate": False,
        "ray_address": None,
        "debug_rollout_only": False,
        "width": 1,
    }
    return SimpleNamespace(**{**defaults, **values})


def engine(target):
    return SimpleNamespace(target=target, name="own")


def layout(target=None, **values) -> Layout:
    found, _ = make_layout(args(**values), engine(target) if target else None)
    assert found is not None
    return found


def machine(gpus: float, cpus: float) -> dict[str, float]:
    return {"GPU": gpus, "CPU": cpus}


def test_one_rank_with_an_embedded_engine_is_one_process():
    assert make_layout(args(), None) == (None, [])
    assert make_layout(args(colocate=True), engine(Embedded)) == (None, [])
    assert make_layout(args(rollout_num_gpus=4), engine(Embedded)) == (None, [])
    assert make_layout(args(rollout_num_gpus=4), engine(Fleet)) == (None, [])


@pytest.mark.parametrize(
    ("target", "options", "gpus"),
    [
        (None, {"actor_num_nodes": 2, "actor_num_gpus_per_node": 8}, 16),
        (Embedded, {"actor_num_gpus_per_node": 8}, 9),
        (Embedded, {"actor_num_gpus_per_node": 8, "colocate": True}, 8),
        (Embedded, {"actor_num_gpus_per_node": 4, "rollout_num_gpus": 4}, 8),
        (Servers, {"actor_num_gpus_per_node": 4, "rollout_num_gpus": 4}, 8),
        (Servers, {"actor_num_gpus_per_node": 8, "colocate": True}, 8),
        (Servers, {"debug_rollout_only": True, "rollout_num_gpus": 2}, 2),
        (Fleet, {"ray_address": "auto", "rollout_num_gpus": 4, "width": 2}, 5),
        (Fleet, {"actor_num_gpus_per_node": 8, "colocate": True, "width": 4}, 8),
        (Fleet, {"actor_num_gpus_per_node": 8, "width": 0}, 8),
    ],
)
def test_a_run_needs_the_gpus_that_the_guide_says_and_not_one_less(target, options, gpus):
    wanted = layout(target, **options)
    whole = [machine(8, 64)] * (gpus // 8) + ([machine(gpus % 8, 64)] if gpus % 8 else [])
    assert place(wanted, whole).device == "GPU"
    lacking = [*whole[:-1], machine(whole[-1]["GPU"] - 1, 64)]
    with pytest.raises(ClusterError, match="too small"):
        place(wanted, [*lacking, machine(0, 64)] if any(m["GPU"] for m in lacking) else [machine(0.5, 64)])


def test_the_ranks_of_one_node_must_fit_on_one_machine():
    wanted = layout(actor_num_gpus_per_node=4)
    with pytest.raises(ClusterError, match=r"2 GPUs and 8 CPUs; 2 GPUs and 8 CPUs"):
        place(wanted, [machine(2, 8), machine(2, 8)])
    assert place(layout(actor_num_nodes=2, actor_num_gpus_per_node=2), [machine(4, 8)]).rank == {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize("target", [Servers, Embedded])
def test_colocated_every_rank_has_a_gpu_of_its_own_and_the_engine_needs_none(target):
    found = place(layout(target, actor_num_nodes=2, actor_num_gpus_per_node=4, colocate=True), [machine(8, 64)])
    assert [len(bundles) for bundles in found.nodes] == [4, 4]
    assert found.engine == []
    for number, bundle in enumerate(bundle for bundles in found.nodes for bundle in bundles):
        beside = found.slot if target is Servers else found.worker if number == 0 else {}
        taken = {name: found.rank[name] + beside.get(name, 0) for name in ("GPU", "CPU")}
        assert bundle == {"GPU": 1.0, "CPU": taken["CPU"]}
        assert taken["GPU"] <= 1.0 < taken["GPU"] + found.rank["GPU"]


def test_all_devices_of_a_server_are_on_one_machine():
    wanted = layout(Fleet, actor_num_gpus_per_node=2, rollout_num_gpus=8, width=4)
    assert place(wanted, [machine(4, 8), machine(2, 8), machine(4, 8)]).engine == [{"CPU": 1.0, "GPU": 4}] * 2
    with pytest.raises(ClusterError, match="too small"):
        place(wanted, [machine(6, 8), machine(3, 8), machine(3, 8)])
    assert place(wanted, [machine(0, 11)]).engine == [{"CPU": 4.0}] * 2
    assert "engine in 2 servers, on 8 GPUs of its own" in wanted.describe()


def test_a_colocated_server_of_several_devices_is_beside_the_first_of_its_ranks():
    wanted = layout(Fleet, actor_num_nodes=2, actor_num_gpus_per_node=4, colocate=True, width=2)
    found = place(wanted, [machine(8, 64)])
    assert (wanted.slots, found.engine) == (4, [])
    assert [[bundle["CPU"] for bundle in bundles] for bundles in found.nodes] == [[2, 1, 2, 1]] * 2
    assert found.rank["GPU"] + found.slot["GPU"] <= 1
    places, gpus = (
        [(node, bundle) for node in "ab" for bundle in range(4)],
        [(str(n),) for n in (4, 5, 6, 7, 0, 1, 2, 3)],
    )
    slots = slots_beside_ranks(places, found.slot, gpus, 2)
    assert [(slot.group, slot.bundle) for slot in slots] == [("a", 0), ("a", 2), ("b", 0), ("b", 2)]
    assert [slot.gpus for slot in slots] == [("4", "5"), ("6", "7"), ("0", "1"), ("2", "3")]


def test_servers_that_run_elsewhere_need_no_device():
    wanted = layout(Fleet, actor_num_gpus_per_node=2, rollout_num_gpus=4, width=0)
    assert (wanted.engine_devices, wanted.slots, wanted.colocated) == (0, 0, False)
    assert layout(Fleet, actor_num_gpus_per_node=2, colocate=True, width=0).colocated is False
    found = place(wanted, [machine(2, 8)])
    assert (found.engine, found.worker) == ([], {"CPU": 1.0})
    assert "engine in servers that run elsewhere" in wanted.describe()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rollout_num_gpus": 3}, "--rollout-num-gpus 3 cannot be divided"),
        ({"colocate": True}, "--actor-num-gpus-per-node 3 cannot be divided"),
        ({}, "--rollout-num-gpus N, or --colocate"),
    ],
)
def test_servers_take_whole_shares_of_the_devices(options, text):
    with pytest.raises(ArgumentError, match=text):
        make_layout(args(actor_num_gpus_per_node=3, width=2, **options), engine(Fleet))


def test_an_engine_with_the_rollout_worker_has_all_its_gpus_on_one_machine():
    wanted = layout(Embedded, actor_num_gpus_per_node=2, rollout_num_gpus=4)
    assert place(wanted, [machine(4, 8), machine(2, 8)]).worker == {"CPU": 1.0, "GPU": 4}
    with pytest.raises(ClusterError, match="too small"):
        place(wanted, [machine(3, 8), machine(3, 8)])


def test_without_gpus_ranks_take_cpus_and_fewer_than_one_each_is_said():
    wanted = layout(actor_num_gpus_per_node=2)
    roomy = place(wanted, [machine(0, 3)])
    assert (roomy.device, roomy.rank, roomy.notes) == ("CPU", {"CPU": 1.0}, ())
    tight = place(wanted, [machine(0, 2)])
    assert tight.rank == {"CPU": 0.66}
    assert "2 CPUs for 3 processes" in tight.notes[0]


def test_training_nodes_get_a_machine_each_where_they_can():
    two = layout(actor_num_nodes=2)
    assert place(two, [machine(0, 2), machine(0, 1)]).machines in {(0, 1), (1, 0)}
    assert place(two, [machine(0, 8), machine(0, 0), machine(0, 8)]).machines in {(0, 2), (2, 0)}
    assert place(layout(actor_num_nodes=2, actor_num_gpus_per_node=4), [machine(8, 64)] * 2).machines in {
        (0, 1),
        (1, 0),
    }
    assert place(layout(actor_num_gpus_per_node=2), [machine(0, 2), machine(0, 2)]).machines is None
    for where in ([machine(0, 3)], [machine(0, 3), machine(0, 0)]):
        packed = place(two, where)
        assert packed.machines is None
        assert "--actor-num-nodes 2: training nodes share machines" in packed.notes[0]
        assert "no 2 machines with 1 CPU each" in packed.notes[0]


def test_a_machine_of_one_cpu_takes_a_rank_and_the_rollout_worker():
    found = place(layout(actor_num_nodes=2), [machine(0, 1), machine(0, 1)])
    assert (found.rank, found.machines) == ({"CPU": 0.5}, (0, 1))
    assert "2 CPUs for 3 processes, so each counts as 0.5 of one" in found.notes[0]


def test_an_engine_with_servers_must_be_told_its_devices():
    with pytest.raises(ArgumentError, match="--rollout-num-gpus N, or --colocate"):
        make_layout(args(), engine(Servers))


def test_a_run_that_needs_ray_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"2 training ranks.*pip install 'slime-core\[ray\]'"):
        require_ray(args(actor_num_gpus_per_node=2), None)


def test_check_prints_the_placement(tiny_model, chat_rows, capsys):
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    flags += [
        "--rollout-function-path",
        "sft",
        "--loss-type",
        "sft_loss",
        "--rollout-batch-size",
        "4",
        "--num-epoch",
        "1",
    ]
    assert main(["check", *flags]) == 0
    assert "placement\n  one process" in capsys.readouterr().out
    assert main(["check", *flags, "--actor-num-nodes", "2", "--actor-num-gpus-per-node", "8"]) == 0
    assert "2 × 8 training ranks" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265", "nowhere"])
def test_an_address_where_no_cluster_answers_is_reported_at_once(address):
    code = f"from slime_core.runtime.connect import connect; connect({address!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert f"ClusterError: --ray-address {'is ' if address == 'nowhere' else ''}" in done.stderr


def test_neither_the_command_nor_a_run_of_one_process_imports_ray():
    code = "import sys, slime_core.cli.command, slime_core.run.launch, slime_core.run.workers; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


class OneProcess:
    """A train backend that knows of no other ranks."""

    def __init__(self, args) -> None:
        pass

    def setup(self, loss, total_steps, role="actor") -> None:
        pass


def test_a_backend_of_one_process_refuses_several_ranks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    plugins = Plugins()
    backend = Selected("train_backend", "mine", OneProcess, "import path", "--train-backend")
    settings = SimpleNamespace(
        load=None,
        lora_rank=0,
        hf_checkpoint="m",
        num_steps_per_rollout=1,
        skip_zero_advantages=False,
        use_pytorch_profiler=False,
        update_weight_buffer_size=1,
    )
    components = TrainComponents(backend, plugins.select("loss", "sft_loss"))
    worker = TrainWorker(settings, plugins, components, None, 1)
    with pytest.raises(ArgumentError, match=r"'mine' of import path trains in one process .* 2 training ranks"):
        worker.setup()


# ------------------------------------------------------------------------------------------------------ what travels


def test_a_worker_has_the_drivers_arguments_those_of_option_families_too(tmp_path):
    plugins = Plugins()
    required = {"hf_checkpoint": "model", "prompt_data": ["rows.jsonl"], "rollout_batch_size": 4}
    driver = Namespace(plugins).model(**required, lr=3e-4)
    values = {**driver.model_dump(), "sglang_own_option": [1, "two"], "num_rollout": 7}
    blueprint = Blueprint(values, plugins.switches, plugins.fingerprint(), tmp_path, str(Path.cwd()), ())
    args, theirs = pickle.loads(pickle.dumps(blueprint)).rebuild()
    assert {name: getattr(args, name) for name in values} == values
    assert theirs is not plugins
    with pytest.raises(ValueError, match="frozen"):
        args.lr = 1.0


class Odd(Exception):
    """Cannot be unpickled: its arguments are not those of `__init__`."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def failed(error: BaseException) -> BaseException:
    """The error as the driver raises it."""
    try:
        raise error
    except BaseException as caught:
        return pickle.loads(pickle.dumps(Failure.of(caught, "training rank 3"))).error()


def test_an_error_arrives_with_its_type_text_and_notes():
    error = CheckpointError("the disk is full")
    error.add_note("raised in the rollout 'x'")
    error.slime_raised_in = (RaisedIn("rollout", "slime-x", "a note"),)
    arrived = failed(error)
    assert type(arrived) is CheckpointError
    assert str(arrived) == "the disk is full"
    assert arrived.__notes__ == ["raised in the rollout 'x'"]
    assert arrived.slime_raised_in == error.slime_raised_in


def test_an_unexpected_error_says_where_it_was_raised():
    arrived = failed(ZeroDivisionError("by zero"))
    assert type(arrived) is ZeroDivisionError
    assert "in the training rank 3:" in arrived.__notes__[0]
    assert "in failed" in arrived.__notes__[0]


def test_an_error_that_cannot_travel_arrives_as_its_text():
    arrived = failed(Odd(1, 2))
    assert type(arrived) is RuntimeError
    assert str(arrived) == "Odd: 1 and 2"
    assert "in failed" in arrived.__notes__[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (2, 3, 4)])
def test_a_tensor_arrives_with_its_bits_shape_and_type(dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    arrived = from_bytes(to_bytes(tensor))
    assert arrived.dtype == dtype
    assert arrived.shape == tensor.shape
    assert torch.equal(arrived, tensor)


def test_a_tensor_that_is_a_view_arrives_without_what_it_is_a_view_of():
    sent = to_bytes(torch.arange(1000.0).reshape(10, 100)[:, 3])
    assert sent[0].nbytes == 40
    assert from_bytes(sent).tolist() == [100.0 * n + 3 for n in range(10)]


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ("The actor died because its node has died. Node Id: 2c: health check failed due to missing heartbeats", True),
        ("The actor died unexpectedly. The node was terminated. Its node was dead", True),
        ("The actor died because of an error raised in its creation task, on node 2c", False),
        ("Worker unexpectedly exits with a connection error code 2", False),
    ],
)
def test_a_machine_that_is_gone_is_told_from_a_process_that_is(said: str, gone: bool) -> None:
    pytest.importorskip("ray")
    from slime_core.runtime.actor_handles import machine_is_gone

    assert machine_is_gone(RuntimeError(said)) is gone
