"""Precision recipes, and formats of checkpoints, that break their contract; see `broken_components`."""

from __future__ import annotations

from good_components import good_checkpoint_format, good_precision_recipe


def recipe(method, instead):
    """Make a recipe whose `method` is `instead(recipe, what the good one does, *arguments)`."""
    return _changed(good_precision_recipe(), method, instead)


def format(method, instead):
    """Make a format of checkpoints that is changed in the same way."""
    return _changed(good_checkpoint_format(), method, instead)


def _changed(base, method, instead):
    class Changed(base):
        pass

    good = getattr(Changed, method)
    setattr(Changed, method, lambda self, *given: instead(self, lambda *args: good(self, *args), *given))
    return Changed


def store_anything(self, of, name, weight):
    return of(name, weight.nan_to_num())


def store_in_place(self, of, name, weight):
    weight.clamp_(-1, 1)
    return of(name, weight)


def without_scales_of_zero(self, of, name, tensors):
    return of(name, tensors) + (tensors[name].float() == 0) * 1e-9


BROKEN = [
    ("precision_recipe", lambda: recipe("quantises", lambda self, of, name, shape: len(shape) == 2), "quantises matrices of", "it quantises model.embed_tokens.weight, lm_head.weight, model.layers.0.mlp.gate.weight"),
    ("precision_recipe", lambda: recipe("quantises", lambda *given: False), "quantises matrices of", "then nothing is in low precision"),
    ("precision_recipe", lambda: recipe("stored", lambda self, of, *given: of(*given) | {"scale": of(*given)}), "restores a stored", "and model.layers.0.mlp.experts.0.down_proj.weight… for its scales"),
    ("precision_recipe", lambda: recipe("restored", lambda self, of, *given: of(*given).bfloat16()), "restores a stored", r"it restores torch.bfloat16 .*expected float32"),
    ("precision_recipe", lambda: recipe("restored", lambda self, of, *given: of(*given) * 2), "restores a stored", "of its size off; expected less"),
    ("precision_recipe", lambda: recipe("restored", without_scales_of_zero), "restores a stored", "zeros are not restored as zeros"),
    ("precision_recipe", lambda: recipe("stored", store_anything), "refuses to store", "it stores a weight with nan"),
    ("precision_recipe", lambda: recipe("linear", lambda *given: lambda x, w: x @ w.t()), "computes products", "that of high precision, exactly"),
    ("precision_recipe", lambda: recipe("linear", lambda *given: lambda x, w: (x @ w.t()).double()), "computes products", "expected torch.float32 of shape"),
    ("precision_recipe", lambda: recipe("linear", lambda *given: lambda x, w: x @ w.detach().bfloat16().float().t() + 0 * w.sum()), "computes products", "its gradient of the weight is 1 of its size off"),
    ("precision_recipe", lambda: recipe("stored", store_in_place), "does not change", "changed a weight or an input in place"),
    ("precision_recipe", lambda: recipe("quantization_config", lambda *given: {}), "describes a checkpoint", "has no quant_method"),
    ("precision_recipe", lambda: recipe("quantization_config", lambda *given: {"quant_method": "fp8"}), "describes a checkpoint", "does not list model.embed_tokens.weight, lm_head.weight"),
    ("precision_recipe", lambda: recipe("refusal", lambda *given: True), "says in words", "refusal says True of CPU"),
    ("precision_recipe", lambda: recipe("environment", lambda *given: {"SCALES": 1}), "says in words", "expected texts"),
    ("precision_recipe", lambda: recipe("row_multiple", lambda *given: 0), "says in words", "row_multiple gives 0"),
    ("precision_recipe", lambda: recipe("megatron_config", lambda *given: {"fp8-recipe": 1}), "says in words", "expected {name of a field"),
    ("checkpoint_format", lambda: format("stored", lambda self, of, *given: dict(list(of(*given).items())[:1])), "stores what", "its layout says .*let both be the same"),
    ("checkpoint_format", lambda: format("restored", lambda self, of, *given: of(*given) * 2), "stores what", "of its size off; expected float32"),
    ("checkpoint_format", lambda: format("stored", store_in_place), "stores what", "changed the weight in place"),
    ("checkpoint_format", lambda: format("quantises", lambda self, of, name: "scale" not in name), "leaves what", "it quantises model.embed_tokens.weight, nobody"),
    ("checkpoint_format", lambda: format("stored", store_anything), "refuses to store", "it stores a weight with nan"),
]  # fmt: skip
