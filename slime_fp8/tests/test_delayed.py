"""Delayed scaling, by sequences that were worked out by hand."""

from __future__ import annotations

import pytest
import torch
from fp8_cases import INF, NAN, made

from slime_core.tensors.low_precision import end_step
from slime_fp8.delayed import next_scale, quantise_with
from slime_fp8.operands import DelayedOperands

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def alone(values):
    """The only rank."""
    return values


def scales(magnitudes, history=1, **how):
    """The scale of each step, and the one after them all, when a tensor has these magnitudes."""
    scale, past = torch.ones(()), torch.zeros(history)
    found = [scale.item()]
    for amax in magnitudes:
        scale, past = next_scale(scale, past, torch.tensor(amax), "e4m3", **how)
        found.append(scale.item())
    return found


def test_the_latest_magnitude_sets_the_scale_of_the_next_step():
    assert scales([448.0, 7.0, 14.0], algorithm="most_recent") == [1, 1, 64, 32]
    assert scales([448.0, 7.0, 14.0], 8, algorithm="most_recent") == [1, 1, 64, 32]


def test_the_largest_of_the_last_magnitudes_sets_it():
    # A history of 3 holds this step and the two before it.
    assert scales([7.0, 448.0, 7.0, 7.0, 7.0], 3, algorithm="max") == [1, 64, 1, 1, 1, 64]
    assert scales([7.0, 448.0, 7.0], 1, algorithm="max") == [1, 64, 1, 64]


def test_the_history_holds_the_latest_magnitude_last_and_a_free_place_first():
    scale, past = torch.ones(()), torch.zeros(4)
    for amax in (1.0, 2.0, 3.0):
        scale, past = next_scale(scale, past, torch.tensor(amax), "e4m3")
    assert past.tolist() == [0, 1, 2, 3]
    _, past = next_scale(scale, past, torch.tensor(5.0), "e4m3")
    assert past.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("amax", [0.0, INF, NAN])
def test_a_magnitude_that_says_nothing_keeps_the_scale(amax):
    assert scales([7.0, amax], algorithm="most_recent") == [1, 64, 64]


def test_a_margin_halves_the_scale():
    assert scales([7.0], margin=3) == [1, 8]


def test_a_tiny_magnitude_has_the_largest_scale_that_there_is():
    assert scales([1e-38]) == [1, LARGEST_FLOAT32]


def test_numbers_that_have_grown_become_the_largest_one_of_the_format():
    found = quantise_with(torch.tensor([[1.0, 7.0, -14.0]]), torch.tensor(64.0), "e4m3").restored()
    assert found.tolist() == [[1.0, 7.0, -7.0]]


def test_an_input_is_computed_with_the_scale_of_the_step_before_and_so_is_a_gradient():
    product = made("delayed", fp8_format="hybrid").linear("x.weight")
    x, w = torch.full((2, 4), 3.0), torch.full((3, 4), 5.0)
    product(x.requires_grad_(), w.requires_grad_()).backward(torch.full((2, 3), 7.0))
    product.end_step(alone)
    scale = product.operands.scale.tolist()
    assert scale == [torch.tensor(448 / 3).item(), torch.tensor(448 / 5).item(), torch.tensor(57344 / 7).item()]
    assert product(x, w)[0, 0].item() == pytest.approx(4 * 3 * 5, rel=0.07)
    over = product(x * 100, w)[0, 0].item()
    assert over == pytest.approx(4 * 3 * 5, rel=1e-5), "300 became 3, the largest number under that scale"
    product.end_step(alone)
    assert product(x * 100, w)[0, 0].item() == pytest.approx(100 * 4 * 3 * 5, rel=0.07)


def test_all_calls_of_a_step_have_the_same_scales_and_the_largest_of_them_sets_the_next():
    x, w = torch.full((2, 4), 3.0), torch.full((3, 4), 5.0)
    product = made("delayed", fp8_amax_history_len=3).linear("x.weight")
    for factor in (1.0, 4.0, 2.0, 4.0):  # the last one as if it was computed again
        product(x * factor, w)
        assert product.operands.scale.tolist() == [1, 1, 1]
    product.end_step(alone)
    assert product.operands.scale.tolist()[0] == torch.tensor(448 / 12).item()
    assert product.operands.history[:, 0].tolist() == [0, 0, 12]


def test_the_largest_magnitude_of_all_ranks_sets_the_scale():
    product = made("delayed").linear("x.weight")
    product(torch.full((2, 4), 3.0), torch.full((3, 4), 5.0))
    product.end_step(lambda values: torch.maximum(values, torch.tensor([7.0, 0.0, 14.0])))
    assert product.operands.scale.tolist() == [64, torch.tensor(448 / 5).item(), 32]


def test_scales_stand_still_outside_of_training():
    product = made("delayed").linear("x.weight").eval()
    product(torch.ones(2, 4), torch.ones(3, 4))
    product.end_step(alone)
    assert product.operands.scale.tolist() == [1, 1, 1]


def test_scales_and_histories_are_part_of_the_state_of_a_model():
    operands = made("delayed", fp8_amax_history_len=5).linear("x.weight").operands
    assert isinstance(operands, DelayedOperands)
    assert {name: tuple(value.shape) for name, value in operands.state_dict().items()} == {
        "scale": (3,),
        "history": (5, 3),
    }


def test_layers_whose_scales_move_together_have_those_that_they_have_alone():
    found = []
    for together in (False, True):
        layers = [
            made("delayed", fp8_format=format, fp8_amax_history_len=length, fp8_amax_compute_algo="max").linear(
                "x.weight"
            )
            for format, length in (("e4m3", 3), ("hybrid", 3), ("e4m3", 2), ("e4m3", 3))
        ]
        for step in range(4):
            for number, layer in enumerate(layers):
                x, w = torch.full((2, 4), 3.0 + step), torch.full((3, 4), 1.0 + number)
                layer(x.requires_grad_(), w.requires_grad_()).backward(torch.full((2, 3), 7.0 - step * number))
            if together:
                end_step(layers, alone)
            else:
                for layer in layers:
                    layer.end_step(alone)
        found.append([[*own.operands.scale.tolist(), *own.operands.history.flatten().tolist()] for own in layers])
    assert found[0] == found[1]
    assert len({tuple(own) for own in found[0]}) == 4


def test_what_moves_its_scales_by_itself_is_asked_one_by_one():
    class Alone:
        asked = 0

        def end_step(self, over_ranks):
            self.asked += 1

    products = [Alone(), made("delayed").linear("x.weight"), Alone()]
    end_step(products, alone)
    assert [products[0].asked, products[2].asked] == [1, 1]
