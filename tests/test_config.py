import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgan import config as configs
from medgan.config import ConfigError

from .conftest import overrides_of, quick

PRIVATE = ["privacy.dp.epsilon=8", "loss.r1_gamma=0", "model.stddev_group=1"]
DATA = {"resolution": 64, "channels": 1, "classes": ("a", "b"), "manifest_sha256": "0" * 64}


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_every_preset_is_valid_and_survives_yaml(preset, tmp_path):
    config = configs.for_data(configs.load(preset), **DATA)
    (tmp_path / "config.yaml").write_text(configs.to_yaml(config))
    read = configs.load(file=tmp_path / "config.yaml")
    wished = configs.Data(resolution=64, balance=config.data.balance)
    assert read.data == wished  # a file's run may be repeated on other data of that resolution
    assert configs.for_data(read, **DATA) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.r1_gama=1"], ["loss.r1_gama=1", "unknown key", "loss.r1_gamma"]),
        (["los.name=bce"], ["los.name=bce", "did you mean loss.name?"]),
        (["colour=1"], ["colour=1", "unknown key"]),
        (["global_batch=many"], ["global_batch=many", "integer"]),
        (["loss.r1_gamma=-1"], ["loss.r1_gamma=-1", "greater than or equal to 0"]),
        (["optim.lr_g=.nan"], ["optim.lr_g=nan"]),
        (["data.resolution=48"], ["data.resolution=48", "32, 64, 128, 256 or 512"]),
        (["model.name=biggan"], ["model.name=biggan", "dcgan, cgan"]),
        (["model.norm_d=none"], ["model.norm_d=none", "unknown key of model.name=cgan", "belongs to dcgan"]),
        (["model.stddev_group=2", "model.name=dcgan"], ["model.stddev_group=2", "cgan, stylegan2-lite, resgan"]),
        (["model=resgan"], ["model=resgan", "did you mean model.name?"]),
        (["loss=rpgan"], ["loss=rpgan", "did you mean loss.name?"]),
        (["data=3"], ["data=3", "known here: data.balance, data.channels"]),
        (["augment.kinds=flip"], ["augment.kinds=flip", "must be a list, [flip] say"]),
        (["augment.name=diffaugment", "augment.kinds=[]"], ["augment.kinds=[]", "take augment.name=none"]),
        (["global_batch=30"], ["global_batch=30", "stddev_group=4"]),
        (["optim.accumulation=5"], ["global_batch=16", "model.stddev_group=4", "optim.accumulation=5"]),
        (["augment.name=ada", "loss.name=rpgan"], ["augment.name=ada", "loss.name=rpgan", "ramp"]),
        (["augment.name=ramp"], ["augment.name=ramp", "augment.p=0"]),
        (["augment.name=ada", "augment.p=0.9"], ["augment.p=0.9", "augment.p_max=0.8"]),
        (["loss.path_weight=2"], ["loss.path_weight", "stylegan2-lite"]),
        (["model.width=64", "model.max_width=32"], ["model.max_width=32", "model.width=64"]),
        (["loss=hinge"], ["loss=hinge"]),
        (["loss.name.x=1"], ["loss.name"]),
        (["total_images=1.5"], ["total_images=1.5", "integer"]),
        (["total_images=1e99"], ["total_images=1e+99"]),
        (["optim.lr_g=snan"], ["optim.lr_g=snan", "number"]),
        (["optim.lr_g=1e999999999999999999999"], ["optim.lr_g=", "number"]),
        (["compile=maybe"], ["compile=maybe", "boolean"]),
        (["tracking.tags=[a"], ["tracking.tags=[a", "must be a list"]),
        (["data.classes=[a, a]"], ["data.classes=a,a", "'a' is there twice"]),
        (["nonsense"], ["nonsense", "key=value"]),
        (["privacy.dp.epsilon=8", "loss.r1_gamma=0"], ["model.stddev_group=4", "model.stddev_group=1"]),
        (["privacy.dp.epsilon=8"], ["privacy.dp.epsilon", "loss.r1_gamma=0"]),
        (["privacy.dp.epsilon=8", "loss.r1_gamma=0", "loss.name=rpgan"], ["privacy.dp.epsilon", "loss.name"]),
        (["privacy.dp.epsilon=8", "loss.r1_gamma=0", "augment.name=ada"], ["privacy.dp.epsilon", "diffaugment"]),
        ([*PRIVATE, "precision=bfloat16"], ["precision=bfloat16", "half precision"]),
        ([*PRIVATE, "optim.clip=1"], ["optim.clip=1", "privacy.dp.clip"]),
        ([*PRIVATE, "data.balance=1"], ["data.balance=1", "equally often"]),
        ([*PRIVATE, "tracking.sample_ids=true"], ["tracking.sample_ids=True", "unknown"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_its_value_and_what_is_allowed(overrides, words):
    with pytest.raises(ConfigError) as refusal:
        configs.load("cgan", overrides=overrides)
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_every_cell_of_the_table_is_allowed_or_refused_with_its_reason():
    seen = {"allowed": 0, "refused": 0}
    for cell, reason in configs.cells():
        batch_norm = cell["model.name"] != "dcgan" and cell["model.norm_d"] == "batch"
        if batch_norm or (cell["loss.name"] == "wgan-gp", cell["penalty"]) in ((False, "gp"), (True, "none")):
            assert reason is not None  # no such setting to write down
            continue
        overrides = {**overrides_of(cell), "data.classes": ["a", "b"] if cell["condition"] == "class" else []}
        if reason is None:
            assert configs.cell_of(configs.load(overrides=overrides)) == cell
            seen["allowed"] += 1
        else:
            with pytest.raises(ConfigError, match=re.escape(reason)):
                configs.load(overrides=overrides)
            seen["refused"] += 1
    assert seen == {"allowed": 678, "refused": 2522}


def test_data_fills_what_was_not_set_and_refuses_what_disagrees():
    filled = configs.for_data(configs.load("cgan"), **DATA)
    assert filled.data.resolution == 64
    assert filled.data.classes == ("a", "b")
    with pytest.raises(ConfigError, match=r"data.resolution=32: DATA has 64"):
        configs.for_data(configs.load("cgan", overrides=["data.resolution=32"]), **DATA)
    with pytest.raises(ConfigError, match="needs labels"):
        configs.for_data(configs.load("cgan"), **{**DATA, "classes": ()})


def test_a_run_goes_on_with_free_keys_and_refuses_any_other():
    stored = configs.for_data(configs.load("cgan", overrides={"precision": "bfloat16"}), **DATA)
    longer = configs.for_data(configs.load("cgan", overrides={"total_images": 5, "evaluate.n": 64}), **DATA)
    resumed = configs.resume(stored, longer)
    assert (resumed.total_images, resumed.evaluate.n, resumed.precision) == (5, 64, "bfloat16")
    other = configs.for_data(configs.load("cgan", overrides={"seed": 1, "optim.lr_g": 2e-3}), **DATA)
    with pytest.raises(ConfigError, match=r"another config's run: optim.lr_g=0.002 .*, seed=1 \(the run has 0\)"):
        configs.resume(stored, other)
    with pytest.raises(ConfigError, match=r"data.manifest_sha256"):
        configs.resume(stored, configs.for_data(configs.load("cgan"), **{**DATA, "manifest_sha256": "1" * 64}))


def test_a_run_goes_on_with_its_gammas_whatever_auto_would_make_of_them_now():
    stored, other = (
        configs.for_data(configs.load("cgan", overrides={"loss.r1_gamma": gamma, "loss.auto_gamma": auto}), **DATA)
        for gamma, auto in (("auto", 0.002), (0.002 * 64**2 / 16, 0.01))
    )
    assert configs.resume(stored, other) == stored
    other = configs.for_data(configs.load("cgan", overrides={"loss.auto_gamma": 0.01}), **DATA)
    with pytest.raises(ConfigError, match=r"loss.r1_gamma=2.56 \(the run has 0.512\)"):
        configs.resume(stored, other)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("total_images", "1e3", 1000),
        ("total_images", "1_000", 1000),
        ("total_images", "2.5e+5", 250_000),
        ("total_images", "1000.0", 1000),
        ("seed", "007", 7),
        ("seed", "9007199254740993", 2**53 + 1),  # float has no such number
        ("seed", "9.007199254740993e15", 2**53 + 1),
        ("evaluate.n", "1e2", 100),
        ("optim.lr_g", "1e-4", 1e-4),
        ("ema.half_life_kimg", "0", 0.0),
        ("loss.r1_gamma", "auto", None),
        ("loss.r1_gamma", "2", 2.0),
        ("data.resolution", "64", 64),
        ("data.resolution", "null", None),
        ("privacy.dp.delta", "none", None),
        ("compile", "yes", True),
        ("tf32", "off", False),
        ("tracking.group", "007", "007"),
        ("tracking.group", "no", "no"),
        ("tracking.group", "2024-01-01", "2024-01-01"),
        ("tracking.group", "1:30", "1:30"),
        ("tracking.group", "0x10", "0x10"),
        ("tracking.group", "none", None),
        ("tracking.wandb", "disabled", "disabled"),
        ("tracking.tags", "[1, no, 2024-01-01, 'a, b']", ("1", "no", "2024-01-01", "a, b")),
        ("tracking.tags", "a, 007", ("a", "007")),
        ("tracking.tags", "[]", ()),
        ("augment.kinds", "flip,shift", ("flip", "shift")),
    ],
)
def test_what_is_written_is_read_by_the_type_of_its_setting_on_a_command_line_and_in_a_file(key, text, value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "".join("  " * depth + f"{part}:\n" for depth, part in enumerate(key.split(".")))[:-1] + f" {text}\n"
    )
    for config in (configs.load("dcgan", overrides=[f"{key}={text}"]), configs.load(file=file)):
        found = configs.flatten(config.dump())[key]
        assert (tuple(found) if isinstance(found, list) else found) == value
        assert isinstance(found, float) == isinstance(value, float)


@pytest.mark.parametrize("text", ["a: b", "[draft] film", "{x", "- y", "#1", "'a' and 'b'", "%", "&a *b", "a=b", " "])
def test_text_is_taken_as_it_is(text):
    if text.strip():
        assert configs.load("cgan", overrides=[f"tracking.project={text}"]).tracking.project == text


def test_quotes_make_text_of_what_would_be_none_elsewhere_in_yaml():
    assert configs.load("cgan", overrides=["tracking.group='007'"]).tracking.group == "007"
    assert configs.load("cgan", overrides=['tracking.project="a\\tb"']).tracking.project == "a\tb"
    for name in ("none", "null", "~", "1,2"):
        assert configs.load("cgan", overrides=[f'tracking.group="{name}"']).tracking.group == name
    assert configs.load("cgan", overrides=["tracking.group=none"]).tracking.group is None
    assert configs.load("cgan", overrides=["total_images='64'"]).total_images == 64


@quick
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1))
def test_any_text_survives_a_config_file(tmp_path_factory, text):
    config = configs.load("cgan", overrides={"tracking.project": text, "tracking.tags": [text]})
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(configs.to_yaml(config))
    assert configs.load(file=file) == config


@quick
@given(st.integers(1, 10**12))
def test_any_whole_number_may_be_written_with_an_exponent(number):
    for text in (f"{number:.12e}", f"{number:_}", f"{number}.0", f"{number}e0"):
        assert configs.load("cgan", overrides=[f"total_images={text}"]).total_images == number


def test_a_file_of_other_things_is_told_what_a_config_has(tmp_path):
    (tmp_path / "search.yaml").write_text("search: {trials: 3}\n")
    with pytest.raises(ConfigError, match=r"search.trials=3: unknown key; known here: .*loss.*model"):
        configs.load(file=tmp_path / "search.yaml")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("- 1", "must be a mapping"), ("a: [", "not YAML")]
)
def test_a_config_file_that_is_none_is_refused(tmp_path, content, words):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        configs.load(file=file)


def test_every_setting_says_what_it_means():
    sections = [configs.Config, *configs.MODELS]
    sections += [type(part) for _, part in configs.Config() if isinstance(part, configs.Section)]
    for section in sections:
        for key, info in section.model_fields.items():
            if not (section is configs.Config and isinstance(info.default, configs.Section)) and key != "model":
                assert info.description, f"{section.__name__}.{key}"
