"What is said about the trust that a model deserves: volumes, classes that overlap, wrapped models, the same number twice."
import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from torch import nn

from misas.data.fingerprint import fingerprint
from misas.data.phantom import disc, short_axis, short_axis_stack
from misas.data.sample import Sample
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Brightness
from misas.transforms.spatial import Rotation
from misas.trust.calibration import Calibration, calibration
from misas.trust.failure import risk_coverage
from misas.trust.passes import change_passes, dropout_passes, ensemble_passes, sweep_passes
from misas.trust.temperature import fit_temperature, scaled, tempered
from misas.trust.uncertainty import agreement, certainty, entropy, soft_dice

NAMES = 'background', 'RV', 'MYO', 'LV'


def network(ndim=2, n_out=4, drop=.3, seed=0):
    "Random weights, a norm with statistics, and dropout."
    torch.manual_seed(seed)
    conv, norm, out = {2: (nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d), 3: (nn.Conv3d, nn.BatchNorm3d, nn.Dropout3d)}[ndim]
    return nn.Sequential(conv(1, 6, 3, padding=1), norm(6), nn.ReLU(), out(drop), conv(6, n_out, 3, padding=1)).train()


def drawn(model, sample):
    "The sample with labels drawn from what the model says."
    p = model.predict(sample)[0]
    labels = (p.cumsum(0) < np.random.default_rng(0).random(sample.shape)).sum(0).clip(0, len(p) - 1)
    return sample.replace(labels=labels, classes=model.classes)


def masks(seed=1):
    "A phantom whose classes overlap."
    return short_axis((64, 64), spacing=4.8, seed=seed).regions(heart=('RV', 'MYO', 'LV'), left=('MYO', 'LV'))


def of_masks(seed=0):
    "A model of two classes that may overlap."
    return as_model(nn.Sequential(network(n_out=2, seed=seed), nn.Sigmoid()), activation='masks', classes=('heart', 'left'))


def test_passes_leave_the_network_as_it_was():
    net = network()
    model, sample = as_model(net, activation='softmax', classes=NAMES), short_axis((64, 64), spacing=4.8, seed=1)
    model.predict(sample)
    before, luck = trace(net), torch.get_rng_state()
    one, two = (dropout_passes(model, sample, 4, seed=5) for _ in range(2))
    other = dropout_passes(model, sample, 4, seed=6)
    assert trace(net) == before and (torch.get_rng_state() == luck).all()
    assert (one.mean == two.mean).all() and (one.variances == two.variances).all() and (one.mean != other.mean).any()
    assert one.variance.max() > 0 and one.variance.shape == sample.shape


def test_only_dropout_drops():
    "With p of dropout next to 0 the answers are those of evaluation mode, although the norm could do otherwise."
    net = network(drop=1e-12)
    model, sample = as_model(net, activation='softmax', classes=NAMES), short_axis((64, 64), spacing=4.8, seed=1)
    assert np.allclose(dropout_passes(model, sample, 2).mean, model.predict(sample)[0], atol=1e-6)


@pytest.mark.parametrize('wrap', ['slicewise', 'oriented', 'keep', 'sliding'])
def test_wrapped_models(wrap):
    net = network(3 if wrap in ('oriented', 'sliding') else 2)
    model, stack = as_model(net, activation='softmax', classes=NAMES), short_axis_stack((32, 32, 6), spacing=(7, 7, 12))
    flat = short_axis((64, 64), spacing=4.8, seed=1)
    if wrap == 'slicewise': model, sample = model.slicewise(), stack
    elif wrap == 'oriented': model, sample = model.oriented('LPS'), stack
    elif wrap == 'sliding': model, sample = model.sliding(16), stack
    else: model, sample = model.keep('LV'), flat.replace(labels=(flat.labels == 3).astype(int), classes=('background', 'LV'))
    before = trace(net)
    p = model.predict(sample)[0]
    warm = scaled(model, 3.)
    assert np.allclose(warm.predict(sample)[0], tempered(p[None], 3.)[0]) and (warm.segment(sample) == model.segment(sample)).all()
    assert (warm.masks(sample) == model.masks(sample)).all()
    assert np.allclose(scaled(model, 1.).predict(sample)[0], p, atol=1e-6)
    assert len({fingerprint(model), fingerprint(warm), fingerprint(scaled(model, 2.))}) == 3
    seen = calibration(model, sample)
    assert seen.unit == 'mm' and len(seen.classes) == len(p) - 1 and np.isfinite(seen.ece.ece[0])
    fitted = fit_temperature(model, [drawn(model, sample)]*2, voxels=2000)
    assert .5 < fitted.value < 2 and (fitted.scaled.segment(sample) == model.segment(sample)).all()
    assert change_passes(model, sample, [(Rotation(), 5.)]).mean.shape == p.shape
    assert dropout_passes(model, sample, 2).variance.shape == sample.shape and trace(net) == before
    assert 'temperature 3' in repr(warm)


def test_scaled_models_can_be_wrapped_and_explained():
    from misas.attribution.attribute import attribute
    model, sample = as_model(network(), activation='softmax', classes=NAMES), short_axis((64, 64), spacing=4.8, seed=1)
    warm, stack = scaled(model, 2.), short_axis_stack((32, 32, 4), spacing=(7, 7, 12))
    assert np.allclose(warm.slicewise().predict(stack), scaled(model.slicewise(), 2.).predict(stack))
    assert (warm.keep('LV').segment(sample) == model.keep('LV').segment(sample)).all()
    assert warm.channel('LV').predict(sample).shape == (1, 2, 64, 64)
    target = Target('LV', np.indices((64, 64))[0] < 20)
    plain, milder = (attribute(o, sample, target, 'saliency', progress=False).map for o in (model, warm))
    assert np.allclose(milder, plain/2, atol=1e-6)  # a gradient of halved logits


def test_thresholds_stay():
    "A threshold other than .5 gives the same labels at any temperature."
    model = as_model(network(n_out=1), activation='sigmoid', classes=('background', 'LV'), threshold=.3)
    sample = short_axis((64, 64), spacing=4.8, seed=1)
    warm = scaled(model, 4.)
    assert (warm.segment(sample) == model.segment(sample)).all()
    assert (warm.decide(warm.predict(sample)) != model.segment(sample)).mean() < 1e-3  # but for rounding


def test_classes_that_overlap():
    model, sample = of_masks(), masks()
    p = model.predict(sample)[0]
    found = calibration(model, sample)
    assert found.classes == ('heart', 'left') and len(found.ece) == 10
    assert entropy(p, True).shape == p.shape and 0 <= certainty(p, 'everywhere', overlapping=True) <= 1
    assert soft_dice(p, model.masks(sample)[0], overlapping=True).shape == (2,)
    moved = change_passes(model, sample, [(Rotation(), 5.), (Brightness(), 1.1)])
    assert moved.overlapping and moved.entropy.shape == sample.shape and moved.classes == ('heart', 'left')
    assert len(ensemble_passes([model, of_masks(1)], sample).frame) == 2
    swept = sweep_passes(sensitivity(model, sample, Rotation([-5, 0, 5]), progress=False))
    assert len(swept.frame) == 2 and moved.plot() and swept.confidence <= 1
    each = scaled(model, (2., 3.))
    assert np.allclose(each.predict(sample)[0][1], expit(logit(p[1].astype(float))/3), atol=1e-5)
    assert (each.masks(sample) == model.masks(sample)).all()
    with pytest.raises(ValueError, match='one for each of the 2 classes'): scaled(model, (1., 2., 3.)).predict(sample)
    plain = short_axis((64, 64), spacing=4.8, seed=1)
    with pytest.raises(ValueError, match='may overlap'): calibration(model, plain)


def test_temperatures_of_classes_that_overlap():
    "Each class has a planted temperature of its own."
    rng = np.random.default_rng(0)
    z, planted = rng.normal(0, 2, (2, 150, 150)), np.reshape((.7, 2.5), (2, 1, 1))
    def say(x): return torch.sigmoid(x)
    model = as_model(say, activation='masks', classes=('a', 'b'))
    cases = [Sample(z, rng.random(z.shape) < expit(z/planted), classes=('a', 'b'), spacing=(1., 1.)) for _ in range(2)]
    found = fit_temperature(model, cases, voxels=None, per_class=True)
    assert np.allclose(found.value, planted.ravel(), rtol=.05) and found.frame['class'].tolist() == ['a', 'b']
    assert found.frame.voxels.tolist() == [45000]*2 and isinstance(found.scaled.predict(cases[0]), np.ndarray)


def test_same_numbers_twice_and_nothing_changed():
    net = network()
    model, sample = as_model(net, activation='softmax', classes=NAMES), short_axis((64, 64), spacing=4.8, seed=1)
    model.predict(sample)
    before, image = trace(net), sample.image.copy()
    for f in (lambda: calibration(model, [sample]*6).ece, lambda: fit_temperature(model, [drawn(model, sample)]*6, voxels=500).frame):
        one, two = f(), f()
        assert one.equals(two)
    assert trace(net) == before and (sample.image == image).all()


def test_what_does_not_count_is_not_counted():
    model, sample = as_model(network(), activation='softmax', classes=NAMES), short_axis((64, 64), spacing=4.8, seed=1)
    keep = np.zeros(sample.shape, bool)
    keep[:, :32] = True
    sample = drawn(model, sample)
    other = sample.labels.copy()
    other[:, 32:] = 3 - other[:, 32:]
    pair = [sample.replace(valid=keep), sample.replace(valid=keep, labels=other)]
    assert calibration(model, pair[0]).ece.equals(calibration(model, pair[1]).ece)
    assert fit_temperature(model, pair[0], voxels=None).value == fit_temperature(model, pair[1], voxels=None).value
    p = model.predict(sample)[0]
    assert soft_dice(p, valid=keep)[2] == pytest.approx(soft_dice(p[:, :, :32])[2])


def test_voxels_that_no_network_saw_do_not_fit_a_temperature():
    "Probabilities of exactly 0 and 1 stay, and are left out where they are wrong."
    def half(x): return torch.where(x < 0, torch.zeros_like(x), x)
    model, rng = as_model(half, activation='none', classes=('background', 'thing')), np.random.default_rng(0)
    chance = np.where(np.arange(200) < 50, -1, rng.random((200, 200)))
    sample = Sample(chance[None], rng.random((200, 200)) < np.where(chance < 0, .5, chance), classes=('background', 'thing'))
    found = fit_temperature(model, sample, voxels=None)
    assert found.frame['left out'][0] == sample.labels[:, :50].sum() and abs(found.value - 1) < .05
    assert (found.scaled.predict(sample)[0, 1, :, :50] == 0).all()


def test_interval_of_calibration_holds_what_it_says():
    "Patients with a bias of their own; the error of the population from many of them."
    rng = np.random.default_rng(0)

    def sums(patients, voxels):
        "(patients, 1, 1, bins, 4) of a model that is too sure."
        p = rng.uniform(.02, .98, (patients, voxels))
        true = expit(.7*logit(p) + rng.normal(0, .5, (patients, 1)))
        at = np.minimum((15*p).astype(int), 14)
        return np.stack([np.stack([np.bincount(o, w, 15) for w in (None, a, a**2, b)], -1)
                         for o, a, b in zip(at, p, rng.random(p.shape) < true)])[:, None, None]

    def of(found, n=400): return Calibration(found, ('a',), (), np.arange(len(found)), True, n=n).ece.iloc[0]
    target, hits = of(sums(4000, 500), n=100).ece, 0
    for _ in range(80):
        row = of(sums(20, 500))
        hits += row.low <= target <= row.high
    assert hits >= 71  # of 80; 76 are meant


def test_interval_of_temperature_holds_what_it_says():
    "Patients whose temperatures differ; the one of all is what many of them give."
    from misas.trust.temperature import _best, _interval, _Voxels
    rng = np.random.default_rng(0)

    def voxels(patients, count=400):
        z = rng.normal(0, 2, (patients, count))
        true = rng.random(z.shape) < expit(z/np.exp(rng.normal(.4, .3, (patients, 1))))
        p = expit(z).ravel()
        return _Voxels(np.stack([1 - p, p], 1), true.ravel().astype(int), np.repeat(np.arange(patients), count))

    target, hits = 1/_best(voxels(3000), ''), 0
    for _ in range(80):
        some = voxels(15)
        low, high = _interval(some, _best(some, ''), .95)
        hits += low < target < high
    assert hits >= 70


def test_interval_of_aurc_holds_what_it_says():
    "Patients with images alike; the area of the population from many of them."
    rng = np.random.default_rng(0)

    def curve(patients, n=300):
        own = rng.normal(0, .8, (patients, 1)) + rng.normal(0, .6, (patients, 3))
        sure = own + rng.normal(0, .7, own.shape)
        return risk_coverage(expit(own + 1).ravel(), sure.ravel(), clusters=np.repeat(np.arange(patients), 3), n=n)

    target, hits = curve(6000, 100).aurc, 0
    for _ in range(80):
        row = curve(20).areas.iloc[0]
        hits += row.low <= target <= row.high
    assert hits >= 69


def test_volumes_are_drawn():
    stack = short_axis_stack((32, 32, 6), spacing=(7, 7, 12))
    model = as_model(network(3), activation='softmax', classes=NAMES)
    fig = dropout_passes(model, stack, 2).plot()
    assert len(fig.axes) == 5 and calibration(model, stack).plot(distances=True).axes


def test_agreement_of_what_is_known():
    ball = disc((20, 20, 20), radius=6.)
    known = np.indices(ball.shape)[0] < 10
    other = np.where(known, ball.labels, 0)
    assert agreement([ball.labels, other], known=[None, known]).dice[0] == 1
    assert agreement([ball.labels, other]).dice[0] < .8
