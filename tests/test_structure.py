"""Receptive fields by rule and by gradient on networks made at random, layers and feature maps of wrapped models, nothing left behind."""
import numpy as np
import pytest
import torch
from torch import nn

from misas.data import phantom
from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.inside.question import Refused
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.structure.feature_maps import feature_maps
from misas.structure.kernels import kernels
from misas.structure.layers import layers
from misas.structure.measured_field import extents, input_gradients
from misas.structure.receptive_field import follow

CONVS, TRANSPOSED = {2: nn.Conv2d, 3: nn.Conv3d}, {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX, MEAN = {2: nn.MaxPool2d, 3: nn.MaxPool3d}, {2: nn.AvgPool2d, 3: nn.AvgPool3d}
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# ---- networks made at random ----

def conv(rng, ndim, before, after, stride=True):
    "A convolution of unequal kernels, with dilation or a stride."
    kernel = [int(k) for k in rng.choice([1, 3, 5], ndim, p=[.2, .6, .2])]
    dilation = [int(k) for k in rng.choice([1, 2, 3], ndim, p=[.7, .2, .1])]
    steps = [int(k) for k in rng.choice([1, 2], ndim, p=[.7, .3])] if stride else 1
    padding = [(k - 1)*d//2 for k, d in zip(kernel, dilation)]
    groups = int(rng.choice([1, 2])) if before % 2 == 0 and after % 2 == 0 else 1
    return CONVS[ndim](before, after, kernel, steps, padding, dilation, groups)


def stack(rng, ndim):
    "Convolutions, poolings, norms and ways up, one after the other."
    parts, channels, levels = [], 1, 0
    for _ in range(rng.integers(3, 7)):
        kind = rng.choice(['conv', 'pool', 'up', 'norm'], p=[.55, .2, .15, .1])
        if kind == 'conv':
            parts += [conv(rng, ndim, channels, 8, stride=levels < 1), nn.ReLU()]
            channels = 8
        elif kind == 'pool' and levels < 2:
            parts.append(rng.choice([MAX, MEAN])[ndim](2))
            levels += 1
        elif kind == 'norm' and channels > 1: parts.append(NORMS[ndim](channels))
        elif kind == 'up' and channels > 1:
            linear = 'bilinear' if ndim == 2 else 'trilinear'
            up = [TRANSPOSED[ndim](8, 8, 3, 2, 1), TRANSPOSED[ndim](8, 8, 2, 2), nn.Upsample(scale_factor=2),
                  nn.Upsample(scale_factor=2, mode=linear), nn.Upsample(scale_factor=2, mode=linear, align_corners=False)]
            parts.append(up[rng.integers(len(up))])
            levels -= 1
    return nn.Sequential(*parts, conv(rng, ndim, channels, 8, False))


class Forked(nn.Module):
    "A U-Net with a sum, a list of channels, and a crop."
    def __init__(self, rng, ndim):
        super().__init__()
        self.first, self.second = conv(rng, ndim, 1, 8, False), conv(rng, ndim, 8, 8, False)
        self.pool, self.deep = MAX[ndim](2), nn.Sequential(conv(rng, ndim, 8, 8, False), nn.ReLU(), conv(rng, ndim, 8, 8, False))
        self.up, self.last = TRANSPOSED[ndim](8, 8, 2, 2), conv(rng, ndim, 16, 4, False)

    def forward(self, x):
        fine = self.first(x).relu()
        fine = fine + self.second(fine)
        left, right = self.up(self.deep(self.pool(fine))).relu().chunk(2, 1)
        up = torch.cat([right, left], 1)
        same = [slice(0, n) for n in up.shape[2:]]
        return self.last(torch.cat([fine[(..., *same)], up], 1))


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('make', [stack, Forked])
@pytest.mark.parametrize('seed', range(8))
def test_what_is_measured_is_what_the_rule_says(make, ndim, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net, shape = make(rng, ndim).eval(), (48, 40) if ndim == 2 else (24, 20, 28)
    x = torch.randn(1, 1, *shape)
    boxes = follow(net, x).boxes
    modules = {name: m for name, m in net.named_modules() if isinstance(m, (*CONVS.values(), *TRANSPOSED.values()))}
    assert len(modules) > 1
    for name, gradient in input_gradients(net, x, modules, images=8, seed=seed).items():
        where = boxes[name].within(shape)
        assert extents(gradient) == tuple(one.stop - one.start for one in where), name
        outside = gradient.clone()
        outside[where] = 0
        assert not outside.any(), name  # and at that place


def test_a_chain_has_the_field_of_the_formula():
    "1 + sum of dilation x (kernel - 1) x the strides before (Araujo et al. 2019)."
    plan = [(3, 1, 1), (5, 2, 1), (3, 1, 4), (7, 3, 1), (3, 1, 1)]  # kernel, stride, dilation
    net = nn.Sequential(*(nn.Conv2d(1, 1, k, s, dilation=d, padding=(k - 1)*d//2) for k, s, d in plan))
    strides = np.cumprod([1, *(s for _, s, _ in plan)])
    wanted = 1 + sum(d*(k - 1)*before for (k, _, d), before in zip(plan, strides))
    assert follow(net.eval(), torch.zeros(1, 1, 40, 40)).boxes[''].extent == (wanted, wanted)


def test_fields_do_not_depend_on_the_size_of_the_image():
    torch.manual_seed(0)
    net = Forked(np.random.default_rng(3), 2).eval()
    found = [follow(net, torch.randn(1, 1, n, n)).boxes['last'].extent for n in (16, 64, 128)]
    assert len({*found}) == 1


# ---- whole models ----

def picture(shape=(48, 40)): return disc(shape=shape, radius=9)


def small(ndim=2, after=2):
    torch.manual_seed(0)
    kind = CONVS[ndim]
    return nn.Sequential(kind(1, 6, 3, padding=1), nn.ReLU(), MAX[ndim](2), kind(6, 6, 3, padding=1), nn.ReLU(),
                         nn.Upsample(scale_factor=2), kind(6, after, 1))


def wrapped():
    flat, ball = small(), disc(shape=(24, 20, 6), radius=5)
    yield 'plain', as_model(flat), picture()
    yield 'slicewise', as_model(flat).slicewise(), ball
    yield 'sliding', as_model(flat).sliding(16), picture()
    yield 'resized', as_model(flat, size=32), picture()
    yield 'padded', as_model(flat, multiple_of=16), picture()
    yield 'masks', as_model(small(after=3), activation='sigmoid', classes=('a', 'b', 'c')), picture()
    yield 'kept', as_model(small(after=3), classes=('background', 'a', 'b')).keep('a'), picture()
    turned = Sample(ball.image[..., :4].copy(), spacing=(1., 1., 1.), affine=np.eye(4))
    yield 'volume', as_model(small(3)), ball
    yield 'oriented', as_model(small(3)).oriented('LIA', 1.), turned


@pytest.mark.parametrize('name, model, sample', list(wrapped()), ids=[one[0] for one in wrapped()])
def test_wrapped_models(name, model, sample):
    before = trace(model.network)
    table = layers(model, sample)
    measured = table.frame[table.frame.measured.notna()]
    assert (measured.measured == measured.inside).all() and len(measured) >= 3
    assert np.isfinite(table.voxel).all() and table.region('0').any()
    found, again = (feature_maps(model, sample, '4') for _ in range(2))
    assert found.frame.equals(again.frame) and found.map(0).shape == sample.shape
    assert trace(model.network) == before
    for one in (table, found): one.plot()


def test_a_voxel_in_mm():
    image = Sample(picture((64, 48)).image, spacing=(2., 3.))
    assert np.allclose(layers(as_model(small()), image, measure=None).voxel, (2, 3))
    assert np.allclose(layers(as_model(small(), size=32), image, measure=None).voxel, (4, 4.5), rtol=.05)
    brain = phantom.brain(1)
    brain = Sample(brain.image[:1, ::8, ::8, ::8], spacing=(8., 8., 8.), affine=np.diag([-8., 8, 8, 1]))
    assert np.allclose(layers(as_model(small(3)).oriented('LIA', 4.), brain, measure=None).voxel, 4, rtol=.1)


def test_norms_that_measure_are_held_fixed_and_said():
    torch.manual_seed(0)
    for norm in (nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8, track_running_stats=False),
                 nn.InstanceNorm2d(8, affine=True)):
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(8, 2, 5, padding=2))
        frame = layers(as_model(net), picture()).frame
        assert frame.norms.tolist() == [False, True, True, True] and frame.measured.iloc[-1] == (7, 7)
        live = input_gradients(net.eval(), torch.randn(1, 1, 48, 40), {'3': net[3]}, fixed=False)['3']
        assert extents(live) == (48, 40)


def test_attention_is_not_guessed():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            maps = self.first(x)
            tokens = maps.flatten(2).transpose(1, 2)
            found = self.attend(tokens, tokens, tokens, need_weights=False)[0]
            return self.last(found.transpose(1, 2).view(maps.shape))

    torch.manual_seed(0)
    table = layers(as_model(Tokens()), picture((12, 10)))
    frame = table.frame.set_index('layer')
    assert frame.rule['first'] == (3, 3) and frame.rule['last'] is None and table.lost
    assert frame.measured['last'] == (12, 10)  # the gradient knows
    assert 'lost its way' in str(table)
    with pytest.raises(ValueError, match='does not know how far'): table.region('last')
    table.plot()


def test_a_gate_of_the_whole_image():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            maps = self.first(x)
            return self.last(maps*self.gate(maps.mean((2, 3), keepdim=True)).sigmoid())

    torch.manual_seed(0)
    frame = layers(as_model(Gated()), picture()).frame.set_index('layer')
    assert frame.rule['last'] == (np.inf, np.inf) and frame.inside['last'] == (48, 40) == frame.measured['last']


def test_costs_and_weights_add_up():
    net = small()
    frame = layers(as_model(net), picture(), measure=None).frame
    assert frame.parameters.sum() == sum(p.numel() for p in net.parameters())
    assert frame.multiply_adds.sum() == 48*40*6*9 + 24*20*6*6*9 + 48*40*2*6


# ---- others' networks ----

def test_a_unet_of_monai():
    nets = pytest.importorskip('monai.networks.nets')
    torch.manual_seed(0)
    for ndim, shape in ((2, (48, 40)), (3, (24, 20, 16))):
        net = nets.UNet(ndim, 1, 2, (4, 8, 16), (2, 2), num_res_units=1)
        table = layers(as_model(net), disc(shape=shape, radius=6))
        measured = table.frame[table.frame.measured.notna()]
        assert not table.lost and (measured.measured == measured.inside).all() and table.frame.norms.any()
        found = feature_maps(as_model(net), disc(shape=shape, radius=6))
        assert found.map(0).shape == shape


def test_a_unet_of_fastai():
    vision = pytest.importorskip('fastai.vision.all')
    torchvision = pytest.importorskip('torchvision')
    torch.manual_seed(0)
    body = vision.create_body(torchvision.models.resnet18(weights=None), n_in=1, pretrained=False)
    net = vision.DynamicUnet(body, 2, (64, 64)).eval()
    before = trace(net)
    table = layers(as_model(net), picture((64, 64)), measure=['layers.0.0', 'layers.0.4'])
    measured = table.frame[table.frame.measured.notna()]
    assert (measured.measured == measured.inside).all() and measured.rule.tolist() == [(7, 7), (43, 43)]
    assert feature_maps(as_model(net), picture((64, 64))).map(0).shape == (64, 64)
    assert kernels(as_model(net)).weights.shape == (64, 1, 7, 7)
    assert trace(net) == before


# ---- feature maps ----

def test_dead_on_one_image_awake_on_another():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight[:], net[0].bias[:] = torch.tensor([1., 2, -1])[:, None, None, None], torch.tensor([0., 0, -3])
    dark, bright = Sample(-picture().image - 4), picture()
    model = as_model(net, activation='softmax')
    alone, both = feature_maps(model, bright, '1'), feature_maps(model, [bright, dark], '1')
    assert alone.dead == [2] and both.dead == [] and both.samples == 2
    assert [pair[:2] for pair in alone.duplicated] == [(0, 1)] and 'other images may wake them' in str(alone)
    values = np.concatenate([feature_maps(model, one, '1').heard.maps['1'][0][0].flatten(1) for one in (bright, dark)], 1)
    assert np.allclose(both.frame['mean'], values.mean(1)) and np.allclose(both.frame.active, (values > 0).mean(1))
    assert np.allclose(both.correlation, np.corrcoef(values), atol=1e-6)


def test_inside_is_the_predicted_class():
    net, image = nn.Sequential(nn.Conv2d(1, 2, 1)), picture()
    with torch.no_grad():
        net[0].weight[:], net[0].bias[:] = torch.tensor([0., 1])[:, None, None, None], torch.tensor([0., -.5])
    model = as_model(net, activation='softmax', classes=('background', 'disc'))
    found, region = feature_maps(model, image, '0', cls='disc'), model.segment(image)[0] == 1
    assert np.allclose(found.frame.inside[1], image.image[0][region].mean() - .5, atol=1e-5)
    assert np.allclose(found.frame.elsewhere[1], image.image[0][~region].mean() - .5, atol=1e-5)


def test_memory_is_that_of_one_image():
    "A thousand images leave the first one's maps and sums."
    model = as_model(small(), activation='softmax')
    found = feature_maps(model, (picture() for _ in range(20)), '4')
    assert found.samples == 20 and found.heard.maps['4'][0].shape == (1, 6, 24, 20)


# ---- bad input ----

def test_bad_input_gets_a_sentence():
    model, image = as_model(small()), picture()
    scripted = as_model(torch.jit.trace(small().eval(), torch.zeros(1, 1, 48, 40)))
    for call, kind, what in [
            (lambda: layers(model, image, measure='9'), ValueError, "no layer '9'"),
            (lambda: layers(model, image, images=0), ValueError, 'images must be'),
            (lambda: layers(lambda x: x > 1, image), ValueError, 'it has no layers'),
            (lambda: layers(scripted, image), ValueError, 'TorchScript'),
            (lambda: feature_maps(scripted, image), Refused, 'TorchScript'),
            (lambda: feature_maps(model, image, '9'), ValueError, "no layer '9'"),
            (lambda: feature_maps(model, image, '4', cls='heart'), ValueError, 'cls must be one of'),
            (lambda: feature_maps(model, []), ValueError, 'samples is empty'),
            (lambda: kernels(model, '1'), ValueError, "no convolution '1'")]:
        with pytest.raises(kind, match=what): call()
