"""What runs on the CPU runs on CUDA, with the same answers. Where there is no GPU the same tests run on the CPU alone."""
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from misas.attribution.attribute import attribute
from misas.data.fingerprint import fingerprint
from misas.data.io import as_sample
from misas.data.phantom import ThresholdModel, short_axis, short_axis_stack
from misas.inside.target import Target
from misas.metrics.scores import score
from misas.models.torch import TorchModel
from misas.sweep.sensitivity import sensitivity
from misas.transforms.catalogue import CATALOGUE
from misas.transforms.intensity import Noise

DEVICES = ['cpu'] + ['cuda']*torch.cuda.is_available()
device = pytest.mark.parametrize('device', DEVICES)


@pytest.fixture
def full_precision(monkeypatch):
    "Convolutions on GPUs are not rounded to 10 bits (TF32)."
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def net(dims=2):
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    return nn.Sequential(conv(1, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 4, 1))


@device
@pytest.mark.parametrize('options', [{}, {'size': 64}, {'multiple_of': 32}, {'batch_size': 3}, {'preprocess': lambda x: (x - x.mean())/x.std()}], ids=lambda o: next(iter(o), 'plain'))
def test_predictions_agree_with_the_cpu(device, options):
    s, module = short_axis((70, 90), spacing=3.), net()
    here, there = (TorchModel(module, device=d, **options).predict(s) for d in ('cpu', device))
    assert isinstance(there, np.ndarray) and np.abs(here - there).max() < 1e-3


@device
@pytest.mark.parametrize('kind', CATALOGUE, ids=lambda c: c.name)
@pytest.mark.parametrize('dims', [2, 3])
def test_sweeps_agree_with_the_cpu(device, kind, dims):
    s = short_axis((48, 56), spacing=4.) if dims == 2 else short_axis_stack((40, 36, 6), spacing=(5., 5., 9.))
    s = s.replace(labels=s.labels > 0, classes=None)
    here, there = (sensitivity(TorchModel(ThresholdModel(600.), device=d), s, kind(), progress=False).frame for d in ('cpu', device))
    assert here.equals(there)


@device
def test_logits_are_differentiable_on_the_device(device):
    module = net()
    model = TorchModel(module, device=device)
    x = torch.rand(1, 1, 32, 40, device=device, requires_grad=True)
    g, = torch.autograd.grad(model.logits(x)[:, 1].mean(), x)
    assert g.device.type == device and g.abs().sum() > 0
    assert next(module.parameters()).device.type == 'cpu'  # the caller's network was not moved


@device
def test_kept_classes_and_volumes(device):
    model = TorchModel(net(3), device=device, classes=('background', 'a', 'b', 'c')).keep('c', 'a')
    v = torch.rand(2, 1, 12, 14, 10)
    assert model.label(v).shape == (2, 12, 14, 10) and np.allclose(model.predict(v).sum(1), 1, atol=1e-4)
    assert model.logits(v).shape == (2, 3, 12, 14, 10)


@device
@pytest.mark.parametrize('dims', [2, 3])
def test_windows_and_slices_agree_with_the_cpu(device, dims):
    module = net(dims)
    x = torch.rand(1, 1, *(37, 30, 26)[:dims])
    here, there = (TorchModel(module, device=d).sliding(16, .5) for d in ('cpu', device))
    assert np.abs(here.predict(x) - there.predict(x)).max() < 1e-3
    g = [torch.autograd.grad(m.logits(x.requires_grad_())[:, 1].mean(), x)[0] for m in (here, there)]
    assert (g[0] - g[1]).abs().max() < 1e-5 and g[0].abs().sum() > 0
    if dims == 2:
        v = torch.rand(2, 1, 20, 22, 7)
        assert np.abs(np.subtract(*(TorchModel(module, device=d).slicewise(1).predict(v) for d in ('cpu', device)))).max() < 1e-3
    else:
        s = short_axis_stack((20, 22, 7), spacing=(5., 5., 9.))
        assert np.abs(np.subtract(*(TorchModel(module, device=d).oriented('LIA', 6.).predict(s) for d in ('cpu', device)))).max() < 1e-3


@device
def test_windows_keep_the_volume_off_the_device(device):
    model = TorchModel(net(3), device=device).sliding(8)
    seen = []
    forward, model.model.forward = model.model.forward, lambda x: (seen.append(x), forward(x))[1]
    assert model.predict(torch.rand(1, 1, 20, 20, 20)).shape == (1, 4, 20, 20, 20)
    assert len(seen) > 8 and all(o.device.type == device and o.shape[2:] == (8, 8, 8) for o in seen) and model.device.type == 'cpu'


@device
@pytest.mark.parametrize('dims', [2, 3])
def test_classes_that_overlap(device, dims):
    "Whole, in windows, slice by slice, turned: the same masks, and one channel of them, as on the CPU."
    s = short_axis((37, 30), spacing=3.) if dims == 2 else short_axis_stack((20, 22, 7), spacing=(5., 5., 9.))
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    torch.manual_seed(0)
    module = nn.Sequential(conv(1, 8, 3, padding=1), nn.ReLU(), conv(8, 3, 1))
    options = dict(activation='sigmoid', classes=('WT', 'TC', 'ET'), preprocess=lambda x: x/500 - 1, threshold=dict(ET=.4))
    here, there = (TorchModel(module, device=d, **options) for d in ('cpu', device))
    ways = [lambda m: m, lambda m: m.sliding(16, .5), lambda m: m.keep('ET', 'WT')]
    if dims == 3: ways += [lambda m: m.oriented('LIA', 6.)]
    for way in ways:
        a, b = way(here), way(there)
        assert np.abs(a.predict(s) - b.predict(s)).max() < 1e-3
        assert (a.masks(s) != b.masks(s)).mean() < 1e-3 and a.masks(s).shape[1] == len(a.classes)
    x = torch.tensor(s.image[None], device=device, requires_grad=True)
    g, = torch.autograd.grad(there.channel('ET').logits(x)[:, 1].mean(), x)
    assert g.device.type == device and g.abs().sum() > 0


@device
def test_outputs_of_another_size(device):
    coarse = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 3, 3, padding=1))
    s = short_axis((64, 80), spacing=3.)
    here, there = (TorchModel(coarse, device=d, activation='softmax', resize_output=True).predict(s) for d in ('cpu', device))
    assert np.abs(here - there).max() < 1e-3 and there.shape == (1, 3, 64, 80)


@device
@pytest.mark.parametrize('dims', [2, 3])
def test_batches_agree_with_images_one_by_one(device, dims, full_precision):
    s = short_axis((48, 56), spacing=5.) if dims == 2 else short_axis_stack((24, 20, 6), spacing=(8., 8., 9.))
    one, *others = (TorchModel(net(dims), device=d, batch_size=n) for d, n in (('cpu', 1), (device, 1), (device, 4), (device, 16)))
    expected = sensitivity(one, s, Noise(), [0., .05, .1, .15, .2, .3], progress=False)
    for model in others:
        found = sensitivity(model, s, Noise(), expected.values, progress=False)
        assert all((a != b).mean() < 1e-3 for a, b in zip(expected.predictions, found.predictions))
        assert np.allclose(expected.frame.score, found.frame.score, atol=.01, equal_nan=True)


@device
def test_tensors_on_the_device_are_taken_as_they_are(device):
    s = short_axis((48, 56), spacing=5.)
    moved = np.roll(s.labels, 2, 0)
    there = [torch.tensor(one, device=device) for one in (moved, s.labels)]
    options = dict(metrics=('dice', 'hausdorff95', 'lesion_f1'), n_classes=4, spacing=s.spacing)
    assert score(*there, **options).equals(score(moved, s.labels, **options))
    same = as_sample(torch.tensor(s.image, device=device), labels=there[1], spacing=s.spacing)
    assert (same.image == s.image).all() and (same.labels == s.labels).all()


@device
def test_a_model_on_the_device_travels(device):
    s, module = short_axis((48, 56), spacing=5.), net()
    model = TorchModel(module, device=device)
    back = pickle.loads(pickle.dumps(model))
    assert back.device.type == device and np.abs(back.predict(s) - model.predict(s)).max() < 1e-5
    assert fingerprint(back) == fingerprint(model)


@device
@pytest.mark.parametrize('method', ['saliency', 'smoothgrad', 'gradient_shap', 'deep_lift', 'occlusion', 'rise'])
def test_maps_agree_with_the_cpu(device, method, full_precision):
    "Also where chance is drawn. All methods, in 2D and 3D: nbs/benchmarks/gpu.ipynb."
    s = short_axis((48, 56), spacing=5.)
    options = {'smoothgrad': dict(n_samples=4), 'gradient_shap': dict(n_samples=16), 'rise': dict(n_samples=16)}.get(method, {})
    models = TorchModel(net(), activation='softmax'), TorchModel(net(), device=device, activation='softmax')
    here, there = (attribute(m, s, Target(1, s.labels == 3), method, internal_batch=n, progress=False, **options).map for m, n in zip(models, (1, 3)))
    assert np.abs(here).max() > 0 and np.abs(here - there).max() < 1e-2*np.abs(here).max()
