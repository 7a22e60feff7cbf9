"""Configuration: JSON round trip, differences, and errors that say the fix."""

import json

import pytest

from jaxablate.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    differences,
    from_dict,
    to_dict,
)
from jaxablate.errors import ConfigError


def test_json_round_trip_is_exact():
    model = ModelConfig(n_layers=2, k_neurons=(3, 4), attention_layers=("global", "local"), d_mlp=77)
    config = Config(model=model, optimizer=OptimizerConfig(clip_norm=None), objective=ObjectiveConfig(clean=0.1))
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_whole_numbers_are_taken_for_floats_but_not_the_reverse():
    assert from_dict(ObjectiveConfig, {"clean": 1}).clean == 1.0
    with pytest.raises(ConfigError, match="steps=1.5 must be of type int"):
        from_dict(TrainConfig, {"steps": 1.5})


def test_differences_name_both_values_and_skip_what_is_ignored():
    changed = Config(model=ModelConfig(k_neurons=4), train=TrainConfig(steps=9), mesh=MeshConfig(fsdp=2))
    found = differences(Config(), changed, ignore=("train", "mesh.fsdp"))
    assert found == ["model.k_neurons: stored 8, given 4"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "no field 'modle'; did you mean 'model'"),
        ({"model": {"k_neuron": 3}}, "did you mean 'k_neurons'"),
        ({"model": {"ablation": "locl"}}, "must be one of 'none', 'local', 'global', 'both'"),
        ({"model": 3}, "must be an object"),
        ({"model": {"k_neurons": "8"}}, "must be of type int or"),
    ],
)
def test_bad_stored_values(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Config, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ModelConfig(k_neurons=600),
            r"k_neurons=600 must be below the 512 neurons of a layer; choose 1\.\.511",
        ),
        (lambda: ModelConfig(k_attention=0), r"k_attention=0 must be at least 1; choose 1\.\.127"),
        (lambda: ModelConfig(k_attention=(1, 2)), "2 entries for n_layers=8"),
        (lambda: ModelConfig(n_heads=7), "n_heads=7 must divide d_model=128; choose one of 1, 2, 4"),
        (lambda: ModelConfig(d_model=0), "d_model=0 must be positive"),
        (lambda: ModelConfig(gate_eps=0), "gate_eps=0 must be positive"),
        (lambda: ModelConfig(attention_layers=()), "attention_layers is empty"),
        (lambda: TrainConfig(batch_size=6, accumulation_steps=4), "must divide batch_size=6"),
        (lambda: DataConfig(tokenizer="corpus"), "does not fit source='tinystories'"),
        (lambda: MeshConfig(data=0), "mesh.data=0"),
        (lambda: OptimizerConfig(beta2=1.0), r"must be in \[0, 1\)"),
        (lambda: Config(train=TrainConfig(sequence_length=512)), "must not exceed model.context_length=256"),
        (lambda: Config(optimizer=OptimizerConfig(warmup_steps=400_000)), "must be below train.steps"),
    ],
)
def test_bad_settings_say_value_limit_and_fix(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
