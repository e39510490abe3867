import numpy as np
import pytest
import torch

from medgan import config as configs
from medgan import sample
from medgan.data import shards
from medgan.data.shards import DataError
from medgan.distributed import World
from medgan.models import z_size
from medgan.sample import Sampler
from medgan.state import TrainState

FIGURES = {
    "images_seen": 64,
    "figure": "n = 16",
    **{"metric/kid": 0.5, "floor/kid": 0.25, "metric/kid/NORMAL": 0.75},
}
POOL = np.eye(2, dtype=np.uint8)[[0] * 30 + [1] * 10]


def write(tmp_path, config, **more):
    state = TrainState.create(config, World())
    sample.calibrate(state.ema, config, POOL)
    counts = dict(zip(config.data.classes, (30, 10), strict=True))
    files = sample.export(state.ema, config, counts, FIGURES, b"png", **more)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        shards.write_file(tmp_path, f"generator/{name}", data)
    return state


@pytest.mark.parametrize("preset", configs.PRESETS)
def test_an_exported_generator_draws_what_the_averaged_one_does(preset, tiny, tmp_path):
    config = tiny(preset)
    state = write(tmp_path, config)
    sampler = Sampler.open(str(tmp_path))
    z, labels = torch.randn(6, z_size(config)), torch.eye(2)[[0, 1, 0, 1, 0, 1]]
    expected = sample.generate(state.ema, z, labels).int()
    # The exported one holds plain memory order, so a rounding may fall the other way.
    assert (sample.generate(sampler.generator, z, labels).int() - expected).abs().max() <= 1
    assert expected.float().std() > 1
    card = (tmp_path / "generator/README.md").read_text()
    assert "(n = 16)" in card
    assert "| kid | 0.5 | 0.25 |" in card
    assert "| NORMAL | 30 | 0.75 |  |" in card
    assert "![Samples](samples.png)" in card
    assert (tmp_path / "generator/samples.png").read_bytes() == b"png"
    assert "Not for diagnosis" in card


def test_a_generator_that_was_handed_on_alone_draws_the_same(tiny, tmp_path):
    write(tmp_path, tiny())
    (tmp_path / "generator").rename(tmp_path / "handed")
    alone = Sampler.open(str(tmp_path / "handed"))
    (tmp_path / "handed").rename(tmp_path / "generator")
    labels = alone.labels(0, count=4)
    assert (alone.draw(labels, seed=1)[0] == Sampler.open(str(tmp_path)).draw(labels, seed=1)[0]).all()


def test_the_config_of_a_generator_is_that_of_its_run(tiny, tmp_path):
    config = tiny(loss__r1_gamma=0.5)
    write(tmp_path, config)
    (tmp_path / "config.yaml").write_text(configs.to_yaml(config))
    assert configs.load(file=tmp_path / "generator/config.yaml") == configs.load(file=tmp_path / "config.yaml")


def test_an_image_depends_on_its_seed_and_label_alone(tiny, tmp_path):
    write(tmp_path, tiny())
    sampler = Sampler.open(str(tmp_path))
    labels = sampler.labels(0, count=100)
    pixels, seeds = sampler.draw(labels, seed=3)
    some, own = sampler.draw(labels[90:], seed=3, first=90)
    assert own == seeds[90:]
    assert np.abs(some.astype(int) - pixels[90:]).max() <= 1
    other, _ = sampler.draw(labels, seed=4)
    assert np.abs(other.astype(int) - pixels).max() > 1


def test_labels_are_so_many_of_each_class_or_as_frequent_as_in_training(tiny, tmp_path):
    write(tmp_path, tiny())
    sampler = Sampler.open(str(tmp_path))
    assert sampler.labels(0, amounts=[5, 2]).sum(0).tolist() == [5, 2]
    assert sampler.labels(0, count=2000).mean(0)[1] == pytest.approx(0.25, abs=0.03)


SEVERAL = np.array([[0, 0]] * 60 + [[1, 0]] * 20 + [[1, 1]] * 15 + [[0, 1]] * 1, np.uint8)


def test_labels_come_together_as_in_training_but_for_sets_that_few_have(tiny, tmp_path):
    names = ("NORMAL", "PNEUMONIA")
    sets = sample.label_sets(SEVERAL, names)
    assert {"+".join(one["classes"]): one["images"] for one in sets} == {
        "": 60,
        "NORMAL": 20,
        "NORMAL+PNEUMONIA": 15,
        "PNEUMONIA": 1,
    }
    rare = sample.label_sets(SEVERAL[12:-12], names)  # four of both are left
    assert {"+".join(one["classes"]): one["images"] for one in rare} == {"": 48, "NORMAL": 22, "PNEUMONIA": 2}
    of_one = sample.label_sets(SEVERAL, names, ["one"] * 96)
    assert {"+".join(one["classes"]): one["images"] for one in of_one} == {"": 60, "NORMAL": 28, "PNEUMONIA": 8}
    assert sample.label_sets(POOL, names) == []
    write(tmp_path, tiny(), label_sets=sets)
    drawn = Sampler.open(str(tmp_path)).labels(0, count=4000)
    for one in sets:
        hot = [name in one["classes"] for name in names]
        assert float((drawn == hot).all(1).mean()) == pytest.approx(one["images"] / 96, abs=0.03)
    assert Sampler.open(str(tmp_path)).labels(0, amounts=[5, 2]).sum(1).tolist() == [1] * 7


def test_the_card_says_what_it_learnt_from_and_what_it_is_for(tiny, tmp_path):
    write(tmp_path, tiny(), source="nih_cxr14")
    card = (tmp_path / "generator/README.md").read_text()
    assert "Learnt from `nih_cxr14`, whose terms are: free to use with attribution" in card
    assert "## Intended use" in card


def test_an_export_that_does_not_tell_sets_of_labels_is_read(tiny, tmp_path):
    write(tmp_path, tiny())
    file = tmp_path / "generator/config.yaml"
    file.write_text(file.read_text().replace("label_sets: []\n", ""))
    assert "label_sets" not in file.read_text()
    assert Sampler.open(str(tmp_path)).labels(0, count=50).sum(1).tolist() == [1] * 50


def test_a_generator_of_drawn_images_says_that_nobody_is_in_them(tiny, tmp_path):
    config = tiny()
    careful, nobody = "whether they copy a patient, is not shown", "learnt from drawn images alone, of no patient"
    write(tmp_path, config)
    assert careful in (tmp_path / "generator/README.md").read_text()
    assert not Sampler.open(str(tmp_path)).drawn
    write(tmp_path, config, drawn=True)
    card = (tmp_path / "generator/README.md").read_text()
    assert nobody in card
    assert careful not in card
    assert "| drawn images shown while training | 64 |" in card
    assert Sampler.open(str(tmp_path)).drawn
    file = tmp_path / "generator/config.yaml"
    file.write_text(file.read_text().replace("drawn: true\n", ""))  # as an earlier version wrote it
    assert not Sampler.open(str(tmp_path)).drawn


@pytest.mark.parametrize(("before", "drawn"), [("own", True), ("another", False)])
def test_what_it_began_with_may_know_patients_although_its_own_images_are_drawn(
    tiny, tmp_path, monkeypatch, before, drawn
):
    config = tiny()
    begun_with = [config.data.manifest_sha256 if before == "own" else "0" * 64]
    monkeypatch.setitem(FIGURES, "begun_with", begun_with)
    write(tmp_path, config, drawn=True)
    assert Sampler.open(str(tmp_path)).drawn is drawn
    assert ("of no patient" in (tmp_path / "generator/README.md").read_text()) is drawn


def test_a_generator_that_counts_other_classes_than_it_has_is_refused(tiny, tmp_path):
    write(tmp_path, tiny())
    file = tmp_path / "generator/config.yaml"
    file.write_text(file.read_text().replace("  PNEUMONIA: 10\n", "  ../x: 10\n"))
    with pytest.raises(DataError, match=r"config.yaml is damaged: it counts images of other classes"):
        Sampler.open(str(tmp_path))


def test_a_run_without_a_generator_is_refused(tmp_path):
    with pytest.raises(DataError, match="no generator/"):
        Sampler.open(str(tmp_path))


def test_weights_that_are_damaged_are_refused(tiny, tmp_path):
    write(tmp_path, tiny())
    file = tmp_path / "generator/model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="model.safetensors is damaged"):
        Sampler.open(str(tmp_path))


def test_calibration_is_the_same_wherever_it_is_done(tiny):
    config = tiny()
    one, two = (TrainState.create(config, World()).ema for _ in range(2))
    sample.calibrate(one, config, POOL)
    sample.calibrate(two, config, POOL)
    sample.calibrate(two, config, POOL)
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b)
    assert any(buffer.abs().max() > 0 for buffer in one.buffers())


def test_grids_have_a_row_per_class_with_the_same_latents(tiny):
    config = tiny(tracking__grid_columns=3)
    state = TrainState.create(config, World())
    sample.calibrate(state.ema, config, POOL)
    assert sample.grid_samples(state.ema, config).shape == (6, 1, 32, 32)


def test_truncation_makes_samples_of_a_class_more_alike_and_only_stylegan_has_it(tiny, tmp_path):
    write(tmp_path / "style", tiny("stylegan2-lite"))
    sampler = Sampler.open(str(tmp_path / "style"))
    labels = sampler.labels(0, amounts=[20, 20])
    spread = []
    for psi in (1.0, 0.5, 0.0):
        sampler.truncate(psi)
        spread.append(sampler.draw(labels, seed=0)[0].reshape(2, 20, -1).astype(float).std(1).mean())
    assert spread[0] > spread[1] > spread[2] >= 0
    write(tmp_path / "plain", tiny("cgan"))
    with pytest.raises(DataError, match="--truncation 0.5: cgan has no w"):
        Sampler.open(str(tmp_path / "plain")).truncate(0.5)
