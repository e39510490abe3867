"""Checkpoints that come from somebody else: taken over whole, or set aside with the reason."""

import math

import numpy as np
import pytest
import torch

from medgan.data.loader import open_split
from medgan.distributed import World
from medgan.folder import RunFolder, Stuck
from medgan.metrics.retrain import fit
from medgan.names import NO_TEXT
from medgan.run import newest_sound
from medgan.state import TrainState, packed


@pytest.fixture
def stepped(tiny, phantoms):
    """(the state of a run after two steps, its snapshot)"""
    state, _ = fit(tiny(total_images=32), open_split(phantoms, "train"), np.arange(64))
    saved = state.snapshot()
    assert saved["generator_optimizer"]["state"]
    return state, saved


def with_one_nan(weights):
    name, tensor = next((name, tensor) for name, tensor in weights.items() if tensor.numel() > 1)
    spoilt = torch.zeros_like(tensor)
    spoilt[(0,) * tensor.dim()] = math.nan
    return {**weights, name: spoilt}


FORGED = {
    "images": lambda saved: {"images_seen": -1},
    "images of another name": lambda saved: {"images_seen": 64},
    "many images": lambda saved: {"images_seen": 2**62},
    "lineage": lambda saved: {"begun_with": ["a patient's name"]},
    "lineage of another kind": lambda saved: {"begun_with": "0" * 64},
    "best": lambda saved: {"best": {"kid": math.nan}},
    "mean": lambda saved: {"path_mean": math.inf},
    "strength": lambda saved: {"strength": {"p": 7.0, "signs": 0.0, "steps": 0}},
    "private steps": lambda saved: {"private_steps": -5},
    "scalers": lambda saved: {"scalers": []},
    "weight": lambda saved: {"ema": {key: value * math.nan for key, value in saved["ema"].items()}},
    "one weight": lambda saved: {"generator": with_one_nan(saved["generator"])},
    "no tensors": lambda saved: {"ema": dict.fromkeys(saved["ema"], 0.5)},
    "moments without a root": lambda saved: {
        "discriminator_optimizer": {
            "state": {
                key: {**kept, "exp_avg_sq": kept["exp_avg_sq"] - 1.0}
                for key, kept in saved["discriminator_optimizer"]["state"].items()
            }
        }
    },
    "best without its identity": lambda saved: {"best": {"images_seen": 16, "kid": 0.1}},
    "best that nothing beats": lambda saved: {"best": {"images_seen": 16, "kid": -1e300, "identity": {}}},
    "step": lambda saved: {
        "generator_optimizer": {
            "state": {
                key: {**kept, "step": kept["step"] - 9} for key, kept in saved["generator_optimizer"]["state"].items()
            }
        }
    },
    "sparse": lambda saved: {"ema": {key: value.to_sparse() for key, value in saved["ema"].items()}},
    "meta": lambda saved: {"ema": {key: value.to("meta") for key, value in saved["ema"].items()}},
    "float8": lambda saved: {"ema": {key: value.to(torch.float8_e4m3fn) for key, value in saved["ema"].items()}},
    "scalers of float16": lambda saved: {"scalers": [{"scale": 1.0}] * 2},
    "scale": lambda saved: {"scalers": [{"scale": math.nan}] * 2},
    "version": lambda saved: {"schema_version": "\x1b[2J"},
}


OF_OTHER_NETWORKS = {
    "missing": lambda saved: {"generator": {}},
    "shape": lambda saved: {"discriminator": {key: value[None] for key, value in saved["discriminator"].items()}},
    "endless": lambda saved: {"ema": {key: torch.zeros(1).expand(2**45) for key in saved["ema"]}},
    "moments": lambda saved: {"generator_optimizer": {"state": {99: {}}}},
    "moments of another shape": lambda saved: {
        "generator_optimizer": {"state": {0: {name: torch.zeros(1, 1) for name in ("step", "exp_avg", "exp_avg_sq")}}}
    },
}


@pytest.mark.parametrize("forged", OF_OTHER_NETWORKS)
def test_checkpoints_of_other_networks_than_the_configs_stay_where_they_are(stepped, tmp_path, forged):
    """Who has changed config.yaml, or medgan, loses nothing."""
    state, saved = stepped
    run, told = RunFolder(str(tmp_path / "run")), []
    run.save_checkpoint(32, packed(saved), 3, None)
    run.save_checkpoint(64, packed({**saved, "images_seen": 64, **OF_OTHER_NETWORKS[forged](saved)}), 3, None)
    found = newest_sound(run, state, told.append)
    assert isinstance(found, Stuck)
    assert "go on with the medgan that wrote it, or name another --out" in str(found)
    assert run.checkpoints() == [32, 64]
    assert run.aside() == told == []


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_checkpoint_is_set_aside_with_its_reason_and_the_one_before_it_taken(stepped, tmp_path, forged):
    state, saved = stepped
    run, told = RunFolder(str(tmp_path / "run")), []
    run.save_checkpoint(saved["images_seen"], packed(saved), 3, None)
    assert newest_sound(run, state, told.append) == saved["images_seen"]
    run.save_checkpoint(128, packed({**saved, "images_seen": 128, **FORGED[forged](saved)}), 3, None)
    assert newest_sound(run, state, told.append) == saved["images_seen"]
    (event,) = told
    assert event["event"] == "damaged"
    assert event["images_seen"] == 128
    assert not NO_TEXT.search(event["reason"])
    assert len(event["reason"]) < 300
    assert [name.rpartition("/")[2] for name in run.aside()] == ["000000000128.pt.damaged"]


def test_what_a_checkpoint_says_of_the_optimizers_settings_is_not_taken(tiny):
    state = TrainState.create(tiny(), World())
    saved = state.snapshot()
    for name in ("generator_optimizer", "discriminator_optimizer"):
        saved[name]["param_groups"][0] |= {
            "betas": (0.999, 0.1),
            "weight_decay": 9.0,
            "maximize": True,
            "amsgrad": True,
        }
    state.load(packed(saved))
    (group,) = state.generator.optimizer.param_groups
    assert (*group["betas"], group["weight_decay"]) == (state.config.optim.beta1, state.config.optim.beta2, 0)
    assert not group["maximize"]
