"""What turns images into features, from weight files that are made here: the published ones cannot be had offline."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import densenet121

from jobs import evaluate
from medgan.config import Refused
from medgan.metrics import features, fidelity

PIXELS = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """(torch-fidelity's own extractor with random weights, the file that holds them)."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    patch = pytest.MonkeyPatch()
    patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
    patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)
    network = theirs.FeatureExtractorInceptionV3("x", ["2048"])
    patch.undo()
    torch.save(network.state_dict(), file)
    return network, file


def test_inception_is_torch_fidelitys_with_the_weights_of_the_file(inception):
    network, file = inception
    extract = features.Inception("cpu", str(file))
    expected = network(PIXELS.expand(-1, 3, -1, -1))[0]
    assert torch.allclose(extract(PIXELS), expected, atol=1e-5)
    assert extract.identity["weights"] == features.read_weights("inception", str(file))[1]
    assert extract(torch.zeros(1, 1, 512, 512, dtype=torch.uint8)).shape == (1, 2048)


def test_xrv_is_the_pooled_last_map_of_a_densenet_that_sees_grey_from_minus_to_plus_1024(tmp_path):
    torch.manual_seed(0)
    network = densenet121(weights=None, num_classes=18)
    network.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    network.eval()
    save_file(dict(network.state_dict()), tmp_path / "xrv.safetensors")
    extract = features.Xrv("cpu", str(tmp_path / "xrv.safetensors"))
    seen = []
    extract.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    large = PIXELS.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :224, :224]  # no resizing
    with torch.no_grad():
        expected = network.features((large.float() / 127.5 - 1) * 1024).relu().mean((2, 3))
    assert torch.allclose(extract(large), expected, rtol=1e-4, atol=1e-4)
    assert seen[0].min() >= -1024
    assert seen[0].max() <= 1024


def test_weight_files_that_cannot_be_used_are_refused(inception, tmp_path):
    _, file = inception
    with pytest.raises(Refused, match="needs --weights FILE"):
        features.Inception("cpu")
    with pytest.raises(Refused, match="no such file"):
        features.Xrv("cpu", str(tmp_path / "none.pt"))
    with pytest.raises(Refused, match="not the state_dict of a torchxrayvision"):
        features.Xrv("cpu", str(file))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # as torchxrayvision publishes: opening it may run anything
    with pytest.raises(Refused, match="save that of its model once"):
        features.Xrv("cpu", str(tmp_path / "module.pt"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(Refused, match="not the weights of torch-fidelity"):
        features.Inception("cpu", str(tmp_path / "other.pth"))


def test_the_command_offers_every_extractor():
    assert set(evaluate.EXTRACTORS) == set(features.EXTRACTORS)


def test_radiomics_count_grey_values_and_textures_of_each_image_alone():
    extract = features.Radiomics()
    found = extract(PIXELS)
    assert found.shape == (3, 121)
    assert torch.equal(extract(PIXELS[1:2]), found[1:2])
    values = PIXELS[0].float()
    assert found[0, :2].tolist() == pytest.approx([float(values.mean()), float(values.std(correction=0))], rel=1e-4)
    coarse = PIXELS[0, 0].numpy() // 8
    # Haralick's first: the angular second moment, by its definition, here for horizontal neighbours.
    pairs = np.zeros((32, 32))
    np.add.at(pairs, (coarse[:, :-1], coarse[:, 1:]), 1)
    pairs = (pairs + pairs.T) / (pairs + pairs.T).sum()
    assert found[0, 7].item() == pytest.approx((pairs**2).sum(), rel=0.1)  # the mean over four directions
    assert extract(torch.full((1, 1, 32, 32), 9, dtype=torch.uint8)).isfinite().all()


def test_a_frechet_distance_between_radiomics_sees_a_change_of_texture():
    random = torch.Generator().manual_seed(1)
    rough = [torch.randint(0, 256, (60, 1, 32, 32), generator=random).byte() for _ in range(2)]
    smooth = nn.functional.avg_pool2d(rough[1].float(), 3, 1, 1).byte()
    extract = features.Radiomics()
    real, same, other = fidelity.scaled(*map(extract, (*rough, smooth)))
    assert fidelity.fid(real, other) > 10 * fidelity.fid(real, same)
