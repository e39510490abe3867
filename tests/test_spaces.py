"""The search space: every key is a setting, every draw is a config, conditions hold, narrowing narrows."""

import numpy as np
import pytest

from medgan import config as configs
from medgan.config import AXES, ConfigError, Refused
from tune import spaces
from tune.spaces import Choice, Range, Space

WHOLE = Space()


def draws(space, count=1000, seed=0):
    random = np.random.default_rng(seed)
    return [space.random(random) for _ in range(count)]


def test_every_key_is_a_setting_and_every_axis_is_one_or_is_accounted_for():
    known = set(configs.known_keys())
    assert {knob.key for knob in spaces.KNOBS} <= known
    assert set(AXES) - known == {*spaces.GIVEN, *spaces.DERIVED}


@pytest.mark.parametrize("labelled", [True, False])
def test_a_thousand_drawn_configs_validate_and_reach_every_value_of_every_axis(labelled):
    space = Space(labelled)
    seen = {tuple(configs.cell_of(space.config(settings)).values()) for settings in draws(space)}
    allowed = {tuple(cell.values()) for cell in space.cells}
    assert seen <= allowed
    for index in range(len(AXES)):
        assert {cell[index] for cell in seen} == {cell[index] for cell in allowed}
    small = spaces.space(labelled, ["augment.name=none", "path length=none", "model.name=dcgan,resgan"])
    seen = {tuple(configs.cell_of(small.config(settings)).values()) for settings in draws(small)}
    assert seen == {tuple(cell.values()) for cell in small.cells}


def asked_for(space, seed):
    """A drawn config, and the names that were asked for."""
    random, names = np.random.default_rng(seed), {}

    def ask(name, domain):
        names[name] = domain
        return domain.draw(random)

    return space.config(space.settings(ask)), names


def test_a_setting_is_drawn_only_where_it_means_something():
    for seed in range(300):
        config, names = asked_for(WHOLE, seed)
        assert ("loss.r1_gamma" in names) == (config.loss.r1_gamma > 0)
        assert ("loss.r2_gamma" in names) == (config.loss.r2_gamma > 0)
        assert ("loss.r1_interval" in names) == (config.loss.r1_gamma + config.loss.r2_gamma > 0)
        assert ("loss.gp_weight" in names) == (config.loss.name == "wgan-gp")
        assert ("loss.critic_steps" in names) == (config.loss.name == "wgan-gp")
        assert ("model.blocks" in names) == (config.model.name == "resgan")
    assert not any("data.balance" in settings for settings in draws(Space(labelled=False), 50))


def test_a_name_has_one_domain_wherever_it_is_asked_for():
    domains: dict[str, set] = {}
    for seed in range(300):
        for name, domain in asked_for(WHOLE, seed)[1].items():
            domains.setdefault(name, set()).add(domain)
    assert all(len(found) == 1 for found in domains.values())
    assert len([name for name in domains if name.startswith("loss.name")]) == 2  # wgan-gp needs a D without BatchNorm


def test_a_loss_that_is_added_to_the_table_is_drawn_without_a_change_here(monkeypatch):
    monkeypatch.setitem(AXES, "loss.name", (*AXES["loss.name"], "brand-new"))
    assert "brand-new" in {cell["loss.name"] for cell in Space().cells}
    assert "brand-new" in {settings["loss.name"] for settings in draws(Space(), 200)}


def test_narrowing_keeps_to_what_is_named(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "loss.name: [hinge, rpgan]\nema: {half_life_kimg: {low: 1, high: 2, scale: linear}}\nmodel.z_dim: 32\n"
    )
    space = spaces.space(True, ["model.name=cgan,stylegan2-lite", "optim.lr_g=1e-3..2e-3", str(file)], {"seed": 3})
    for settings in draws(space, 300):
        assert settings["model.name"] in ("cgan", "stylegan2-lite")
        assert settings["loss.name"] in ("hinge", "rpgan")
        assert 1e-3 <= settings["optim.lr_g"] <= 2e-3
        assert 1 <= settings["ema.half_life_kimg"] <= 2
        assert (settings["model.z_dim"], settings["seed"]) == (32, 3)
        space.config(settings)
    spelled = spaces.spelled([str(file), "model.name=cgan"])
    assert spelled == (
        "ema.half_life_kimg=1..2:linear",
        "loss.name=hinge,rpgan",
        "model.name=cgan",
        "model.z_dim=32",
    )
    assert spaces.spelled(spelled) == spelled  # another file of that name is another search
    with pytest.raises(Refused, match=r"--space loss\.name: given twice"):
        spaces.space(True, [str(file), "loss.name=bce"])


@pytest.mark.parametrize(
    ("fixed", "cells"),
    [
        ({"loss.r1_gamma": 0.5}, {"r1", "r1+r2"}),
        ({"loss.r1_gamma": 0, "loss.r2_gamma": 0}, {"none", "gp"}),
        ({"loss.name": "wgan-gp"}, {"gp"}),
    ],
)
def test_what_is_fixed_decides_what_may_stand_beside_it(fixed, cells):
    space = spaces.space(True, (), fixed)
    assert {cell["penalty"] for cell in space.cells} == cells
    for settings in draws(space, 100):
        assert fixed.items() <= settings.items()
        space.config(settings)


@pytest.mark.parametrize(
    ("labelled", "narrowings", "words"),
    [
        (True, ["model.name=biggan"], "model.name=biggan: choose from dcgan"),
        (True, ["optim.lrg=1,2"], "did you mean optim.lr_g"),
        (True, ["evaluate.n=16,32"], "cannot be compared"),
        (True, ["optim.lr_g=2..1"], "optim.lr_g=2..1"),
        (True, ["optim.lr_g=0..1:log"], "scale is log"),
        (True, ["model.width=8..16.5"], "model.width=8..16.5: it is a whole number"),
        (True, ["model.noise=0..1"], "model.noise=0..1: it is no number"),
        (True, ["optim.lr_g=-1,1e-3"], "optim.lr_g=-1"),
        (True, ["model.name=cgan", "model.norm_d=batch"], "the D of cgan has no normalisation"),
        (True, ["model.name=cgan", "model.blocks=1,2"], "none of cgan has it"),
        (True, ["nothing.yaml"], "neither key=values nor a file"),
        (False, ["model.name=cgan"], "needs labels and DATA has none"),
    ],
)
def test_a_wrong_narrowing_is_refused_with_its_reason(labelled, narrowings, words):
    with pytest.raises(Refused, match=words) as refusal:
        spaces.space(labelled, narrowings)
    assert "\n" not in str(refusal.value)


def test_values_are_read_by_the_type_of_their_setting(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("model.noise: [yes, off]\nloss.r1_gamma: [1, 1e1]\nmodel.width: 1.6e1\n")
    typed = {"model.noise": (True, False), "loss.r1_gamma": (1, 10), "model.width": (16,)}
    for narrowings in ([str(file)], ["model.noise=yes, off", "loss.r1_gamma=1,1e1", "model.width=1.6e1"]):
        narrowed = spaces.space(True, narrowings).narrowed
        assert {key: domain.values for key, domain in narrowed.items()} == typed
        assert spaces.spelled(narrowings) == ("loss.r1_gamma=1,10", "model.noise=True,False", "model.width=16")


def test_a_population_shares_one_architecture_and_draws_only_what_evolves():
    with pytest.raises(Refused, match="one architecture: --space model.name=dcgan"):
        Space().for_population()
    space = spaces.space(True, ["model.name=cgan"]).for_population()
    assert set(space.ranges()) == {"optim.lr_g", "optim.lr_d", "loss.r1_gamma"}
    preset = configs.flatten(configs.load("cgan").dump())
    for settings in draws(space, 50):
        flat = configs.flatten(space.config(settings).dump())
        differing = {key for key in flat if flat[key] != preset[key] and key != "data.classes"}
        assert differing <= set(space.ranges())


def test_ranges_are_drawn_on_their_scale():
    random = np.random.default_rng(0)
    log = [Range(1e-4, 1e-2).draw(random) for _ in range(4000)]
    assert np.mean([value < 1e-3 for value in log]) == pytest.approx(0.5, abs=0.03)
    linear = [Range(0.0, 10.0, "linear").draw(random) for _ in range(4000)]
    assert np.mean(linear) == pytest.approx(5, abs=0.2)
    assert {Range(1, 3, "linear").draw(random) for _ in range(200)} == {1, 2, 3}
    assert {Choice((1, 2)).draw(random) for _ in range(50)} == {1, 2}


@pytest.mark.parametrize(
    "narrowing", ["augment.p=0..1", "model.width=8.0..64.0", "model.width=8..64", "ema.ramp_up=1..9"]
)
def test_a_range_is_whole_where_the_setting_is_whatever_its_ends_look_like(narrowing):
    key = narrowing.partition("=")[0]
    domain = spaces.space(True, [narrowing]).narrowed[key]
    drawn = {domain.draw(np.random.default_rng(seed)) for seed in range(50)}
    assert {type(value) for value in (*drawn, domain.clip(0.7))} == {int if key == "model.width" else float}
    assert len(drawn) > 10


def test_global_batches_that_cannot_be_made_are_refused_and_what_to_say_is_told():
    spaces.check_batches(WHOLE, "DATA", 64, 4)
    with pytest.raises(
        Refused, match="has 4 groups of 4: too few for 8 workers; leave it out: --space global_batch=32,64"
    ):
        spaces.check_batches(WHOLE, "DATA", 64, 8)
    with pytest.raises(
        Refused, match="--data DATA: train has 40 images, .*=64; leave it out: --space global_batch=16,32"
    ):
        spaces.check_batches(WHOLE, "DATA", 40, 1)
    with pytest.raises(Refused, match=r"too few for 8 workers$"):
        spaces.check_batches(spaces.space(True, ["model.name=cgan"], {"global_batch": 16}), "DATA", 64, 8)
    spaces.check_batches(spaces.space(True, ["model.name=dcgan"], {"global_batch": 16}), "DATA", 64, 8)


def test_the_spaces_yaml_may_not_hold_what_cannot_be_read(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("optim.lr_g: {low: 1}\n")
    with pytest.raises(Refused, match="must have low and high"):
        spaces.space(True, [str(file)])
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        spaces.space(True, [str(file)])
