"Activation maximisation on all kinds of models, and with input that does not fit."
import os

import numpy as np
import pytest
import torch
from torch import nn

from misas.data.phantom import disc, short_axis
from misas.inside.layers import enlarge
from misas.inside.placement import Follower, placement
from misas.inside.question import Refused
from misas.inside.target import Target
from misas.models import zoo
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.structure.maximise import Channel, asked_about, maximise
from misas.structure.painting import fourier_coefficients, fourier_field, frequency_scale, grey_limits

QUICK = dict(steps=20, progress=False)
PICTURE, VOLUME = (32, 40), (16, 20, 12)


def net(ndim=2, classes=3, norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    parts = [conv(1, 6, 3, padding=1), nn.BatchNorm2d(6) if ndim == 2 else nn.BatchNorm3d(6), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, conv(6, 5, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Upsample(scale_factor=2), conv(5, classes, 1))


def sample(ndim=2): return disc(PICTURE if ndim == 2 else VOLUME, radius=5, spacing=(1., 1., 2.)[:ndim])


def inside(found, low_high):
    low, high = low_high
    return all(lowest <= channel.min() and channel.max() <= highest for channel, lowest, highest in zip(found.image.image, low, high))


def check(model, s, what, **kw):
    "It climbs, within the grey values; the network stays as it is; twice it is the same."
    module = model.network
    before, state = trace(module), torch.get_rng_state()
    found, again = (maximise(model, s, what, **{**QUICK, **kw}) for _ in range(2))
    assert trace(module) == before and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(found.image.image, again.image.image) and found.value == again.value
    assert found.value > found.start and inside(found, grey_limits(s.image))
    assert found.image.shape == s.shape and found.image.spacing == s.spacing and found.image.labels is None
    assert len(found.frame) == kw.get('steps', QUICK['steps']) + 1 and found.frame.score.iloc[-1] == found.value
    return found


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('parametrisation', ['fourier', 'pixel'])
@pytest.mark.parametrize('what', ['channel', 'place', 'class', 'voxel', 'mask'])
def test_what_can_be_asked_for(ndim, parametrisation, what):
    s, voxel = sample(ndim), (6, 7, 5)[:ndim]
    whats = {'channel': Channel('3', 2), 'place': Channel('3', 2, at=voxel), 'class': 'class 2',
             'voxel': Target(1, voxel), 'mask': Target(2, s.labels == 1, log_odds=True)}
    found = check(as_model(net(ndim), activation='softmax'), s, whats[what], parametrisation=parametrisation, jitter=0)
    assert (found.mask is None) == (what in ('channel', 'class'))
    import matplotlib.pyplot as plt
    assert found.plot() is not None
    plt.close('all')


def test_classes_that_overlap():
    made = net(classes=2)
    with torch.no_grad(): made[-1].weight *= 20  # so that its logits leave the range from 0 to 1
    model = as_model(made, activation='sigmoid', classes=('a', 'b'))
    assert 'mean logit of b' in check(model, sample(), 'b').what
    check(model, sample(), 'a')


def test_value_is_what_a_user_gets():
    "Preprocessing that crops and measures is done anew on the image that was found."
    def prepare(x):
        rows = slice(4, 28)
        def undo(y, empty):
            out = empty.view(-1, 1, 1).expand(-1, *x.shape[1:]).clone()
            out[:, rows] = y
            return out
        return (x/x.detach().max())[:, rows], undo
    model, s = as_model(net(), activation='softmax', preprocess=prepare), sample()
    for what in (Target(1, (16, 20)), Channel('6', 1, at=(16, 20))):
        found = check(model, s, what)
        logit = model.logits(torch.tensor(found.image.image[None]))[0, 1, 16, 20].item()
        assert np.isclose(found.value, logit, rtol=1e-4)
    with pytest.raises(ValueError, match='gets no gradient'): maximise(model, s, Channel('3', 1, at=(0, 0)), **QUICK)


def test_a_measurement_can_be_held():
    "An image that is divided by its own maximum: on the scale of the sample the way leads upwards, and no further than that scale."
    def prepare(x, like=None): return x/(x if like is None else like).detach().max()
    flat = nn.Conv2d(1, 2, 1)
    with torch.no_grad(): flat.weight[:], flat.bias[:] = torch.tensor([0., 1.]).view(2, 1, 1, 1), 0
    model, s = as_model(flat, activation='softmax', preprocess=prepare), sample()
    how = dict(parametrisation='pixel', steps=100, jitter=0, total_variation=0, progress=False)
    held, anew = (maximise(model, s, 1, measure=measure, **how) for measure in ('sample', 'image'))
    assert np.all(np.diff(held.history) > -1e-5) and np.isclose(held.value, 1) and held.start < .65
    assert np.isclose(anew.value, 1) and anew.start > .65 and held.reference == anew.reference


@pytest.mark.parametrize('wrap', ['slicewise', 'sliding', 'sliding pictures', 'keep', 'channel', 'regions', 'multiple_of', 'oriented'])
def test_wrapped_models(wrap):
    flat = as_model(net(), activation='softmax', classes=('background', 'a', 'b'))
    solid = as_model(net(3), activation='softmax', classes=('background', 'a', 'b'))
    volume = sample(3)
    s, model = {
        'slicewise': (volume, flat.slicewise()), 'sliding': (volume, solid.sliding((16, 12, 12))), 'sliding pictures': (sample(), flat.sliding(16)),
        'keep': (sample(), flat.keep('b')), 'channel': (sample(), flat.channel('b')), 'regions': (sample(), flat.regions(b=(1, 2))),
        'multiple_of': (disc((30, 37), radius=5), as_model(net(), activation='softmax', multiple_of=8, classes=('background', 'a', 'b'))),
        'oriented': (volume.replace(affine=np.diag([1., 1., 2., 1.])), solid.oriented('LIA', 1.))}[wrap]
    name = 'b'
    for what in (name, Channel('3', 1), Channel('3', 1, at=tuple(n//2 for n in s.shape))): check(model, s, what)


def test_other_networks():
    "A MONAI UNet with InstanceNorm, and a fastai U-Net."
    UNet = pytest.importorskip('monai.networks.nets').UNet
    torch.manual_seed(0)
    for ndim in (2, 3):
        made = UNet(spatial_dims=ndim, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), num_res_units=1)
        model, s = as_model(made, activation='softmax'), sample(ndim)
        names = model.layers(s)
        check(model, s, Channel(names.layer[names.kind == 'InstanceNorm2d' if ndim == 2 else names.kind == 'InstanceNorm3d'].iloc[0], 3, at=(4,)*ndim))
        check(model, s, 'class 1')


def test_fastai_unet():
    vision = pytest.importorskip('fastai.vision.all')
    torch.manual_seed(0)
    body = vision.create_body(vision.xresnet18(), pretrained=False, n_in=3)
    made = vision.DynamicUnet(body, 2, (32, 32)).eval()
    s = disc((32, 32), radius=6)
    s = s.replace(image=np.repeat(s.image, 3, 0))
    model = as_model(made, activation='softmax')
    names = model.layers(s)
    check(model, s, Channel(names.layer[names.kind == 'ReLU'].iloc[2], 1), steps=5)
    check(model, s, 1, steps=5)


@pytest.mark.skipif(not os.environ.get('MISAS_DATA'), reason='needs public data: set MISAS_DATA')
def test_published_network():
    "With its own size and preprocessing, translated from ONNX."
    model, s = zoo.cardiac_net(), short_axis(seed=1)
    found = check(model, s, Channel('transDownBlocks/0/maxpool/MaxPool', 7), steps=2)
    assert found.value > found.reference


def test_models_without_logits():
    "A channel needs none: the pass ends at its layer."
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x): return self.net(x).argmax(1)

    model = as_model(Decides(), classes=('background', 'a', 'b'))
    check(model, sample(), Channel('net.3', 2))
    with pytest.raises(Refused): maximise(model, sample(), 1, **QUICK)


def test_functions_are_refused():
    def by_hand(x): return np.concatenate([x <= .5, x > .5], 1).astype(np.float32)
    model = as_model(by_hand, activation='none', classes=('background', 'a'))
    with pytest.raises(Refused): maximise(model, sample(), 1, **QUICK)
    with pytest.raises(Refused, match='is a function, which has no layers'): maximise(model, sample(), Channel('0', 1), **QUICK)


def test_begin_with_an_image():
    s, model = sample(), as_model(net(), activation='softmax')
    for parametrisation in ('fourier', 'pixel'):
        found = maximise(model, s, 1, start=s, steps=0, parametrisation=parametrisation, progress=False)
        assert np.abs(found.image.image - s.image).max() < 1e-5*np.ptp(s.image) and np.isclose(found.value, found.reference)
        near = maximise(model, s, 1, start=s, norm=.5, parametrisation=parametrisation, **QUICK)
        assert np.linalg.norm(near.image.image - s.image) <= .5 + 1e-5 and near.value > near.reference
    other = s.replace(image=1 - s.image)
    assert maximise(model, s, 1, start=other, limits=(.3, .7), steps=0, progress=False).image.image.min() == np.float32(.3)


def test_several_channels():
    torch.manual_seed(0)
    s = sample()
    s = s.replace(image=np.concatenate([s.image, 100*s.image, np.full_like(s.image, 7)])[:, :, :])
    model = as_model(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)), activation='softmax')
    found = maximise(model, s, Channel('0', 1), **QUICK)
    assert inside(found, grey_limits(s.image)) and np.all(found.image.image[2] == 7)


def test_double_precision():
    found = maximise(as_model(net().double(), activation='softmax'), sample(), Channel('3', 0), **QUICK)
    assert found.image.image.dtype == np.float32 and found.value > found.start


@pytest.mark.parametrize('shape', [(5, 7), (8, 6), (1, 6), (6, 1), (4, 5, 6), (9, 2, 3)])
def test_waves_there_and_back(shape):
    field, scale = torch.randn(2, *shape, dtype=torch.float64), frequency_scale(shape, range(1, len(shape) + 1))
    assert torch.allclose(fourier_field(fourier_coefficients(field, scale), scale, shape), field)
    many = fourier_field(torch.randn(4000, *scale.shape, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), scale, shape)
    assert .4 < many.var() < 1.1  # waves without an imaginary part, such as the mean, count half


def test_seed():
    s, model = sample(), as_model(net(), activation='softmax')
    a, b, c = (maximise(model, s, np.int64(1), seed=seed, **QUICK).image.image for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.allclose(a, c)


@pytest.mark.parametrize('what, error, match', [
    (np.int64(7), ValueError, 'no class'), (Channel('no such', 0), ValueError, 'no such'), (Channel('3', 5), ValueError, "channel 5 is not one of the 5 of layer '3'"),
    ('liver', ValueError, "no class 'liver'"), (7, ValueError, 'no class 7'),
    (Channel('3', 0, at=(99, 0)), ValueError, 'there is no voxel'), (Channel('3', 0, at=np.zeros(PICTURE, bool)), ValueError, 'mask is empty'),
    (Target(1, 'labels'), ValueError, 'needs labels')])
def test_bad_whats(what, error, match):
    with pytest.raises(error, match=match): maximise(as_model(net(), activation='softmax'), sample().replace(labels=None), what, **QUICK)


@pytest.mark.parametrize('bad', [
    dict(steps=-1), dict(steps=1.5), dict(lr=0), dict(lr=np.nan), dict(lr='fast'), dict(norm=-1), dict(norm=0), dict(total_variation=-.1),
    dict(total_variation=np.nan), dict(jitter=-1), dict(jitter=(1, 2, 3)), dict(jitter=99), dict(parametrisation='wavelets'), dict(measure=None),
    dict(limits=(1, 0)), dict(limits='best'), dict(seed=-1), dict(start=disc((8, 8), radius=2))])
def test_bad_settings(bad):
    name = next(iter(bad))
    with pytest.raises(ValueError, match=name): maximise(as_model(net(), activation='softmax'), sample(), 1, **{**QUICK, **bad})


def test_bad_layers():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.line = nn.Conv2d(1, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Linear(3, 3)

        def forward(self, x):
            x = self.conv(x)
            return x + self.line(self.pool(x).flatten(1))[..., None, None]

    model = as_model(Vector(), activation='softmax')
    with pytest.raises(Refused, match='no feature maps'): maximise(model, sample(), Channel('line', 0), **QUICK)
    with pytest.raises(ValueError, match='channel must be'): Channel('conv', -1)
    with pytest.raises(ValueError, match='sample is constant'): maximise(model, np.ones((16, 16)), 1, **QUICK)
    dead = net()
    with torch.no_grad(): dead[3].weight[:], dead[3].bias[:] = 0, -1
    with pytest.raises(ValueError, match='take the layer before the activation'): maximise(as_model(dead, activation='softmax'), sample(), Channel('4', 0), **QUICK)


def test_where_a_place_lies():
    "The score at a voxel is the map of the channel there, whatever its grid: at the cells that look there."
    s, made = sample(), net()
    model, what = as_model(made, activation='softmax'), Channel('6', 1, at=(11, 13))
    found = maximise(model, s, what, **QUICK)
    with torch.no_grad(): logits = made.eval()(torch.tensor(found.image.image[None]))
    follower = Follower(made, {'6': made[6]})
    with torch.no_grad(), follower: made(torch.tensor(s.image[None]))
    looks = placement(follower, '6', s.shape, s.shape)  # strides and enlargements move it by about half a voxel
    assert looks == [(1, -.5), (1, -.5)]
    logit = enlarge(logits[:, 1], s.shape, looks)[0, 11, 13].item()
    assert np.isclose(found.value, logit, rtol=1e-5) and asked_about(model, s, what).target.mask.sum() == 1
