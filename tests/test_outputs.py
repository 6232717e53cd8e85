"What an output means does not depend on which image comes first, on workers or batches; models of every make are asked; advice works."
import importlib
import itertools
import pickle
import re
import tempfile
import traceback
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.models.adapt import as_model
from misas.models.files import load_file
from misas.models.resizing import edges
from misas.study.study import Study
from misas.sweep.sensitivity import sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.intensity import Brightness

MASK = np.zeros((24, 20), int)
MASK[6:16, 5:15] = 1
RAMP = np.linspace(0, 1, 480).reshape(24, 20)
IMAGES = dict(blank=MASK*0., weak=MASK*1., grey=RAMP, strong=MASK*24.5, bright=MASK*0 + 9., negative=RAMP*8 - 4, labels=np.repeat([0, 1, 2, 3], 6)[:, None].repeat(20, 1)*1.)


def sigmoid(x): return 1/(1 + np.exp(-np.clip(x, -60, 60)))
def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e/e.sum(1, keepdims=True)


# one channel and several, logits, probabilities, masks and label maps: each is small, whole or uniform for some image
NETS = dict(
    small_logit=lambda x: .1 + .2*x,
    logit=lambda x: x - .5,
    logit_without_class_axis=lambda x: x[:, 0] - .5,
    relu=lambda x: np.maximum(x, 0),
    hard_logit=lambda x: np.where(x > .5, 5., -5.),
    probability=lambda x: sigmoid(x - .5),
    mask=lambda x: (x > .5).astype(np.float32),
    bool_mask=lambda x: x > .5,
    rounded=lambda x: np.rint(x).astype(np.float32),
    labels_without_axis=lambda x: np.digitize(x[:, 0], [.5, 1.5, 2.5]).astype(np.float64),
    whole_numbers=lambda x: np.digitize(x[:, 0], [.5, 1.5]),
    two_logits=lambda x: np.concatenate([0*x, x - .5], 1),
    adds_up_by_chance=lambda x: np.concatenate([1 - x, x*x], 1),
    adds_up=lambda x: np.concatenate([1 - x, x], 1),
    small_logits=lambda x: np.concatenate([.2 + .1*x, .3 + .05*x], 1),
    soft=lambda x: softmax(np.concatenate([0*x, x - .5, -x], 1)),
    one_hot=lambda x: np.concatenate([x <= .5, x > .5], 1).astype(np.float32),
    overlapping=lambda x: sigmoid(np.concatenate([x - .5, x - 1.5], 1)),
    regions=lambda x: np.concatenate([np.where(x > t, 5., -5.) for t in (.5, 1.5, 2.5)], 1),
)


def answer(model, *images):
    "Labels, and what the model says of itself; or what it asks."
    try: return model.label(np.stack(images)[:, None].astype(np.float32)).tolist(), model.known.kind
    except ValueError as e: return str(e)


@pytest.mark.parametrize('name', NETS)
def test_order_and_company_do_not_matter(name):
    "The same meaning, or the same question, for an image that is asked about alone, after each other one, or beside it."
    alone = {k: answer(as_model(NETS[name], name='net'), image) for k, image in IMAGES.items()}
    for first, second in itertools.permutations(IMAGES, 2):
        model = as_model(NETS[name], name='net')
        assert answer(model, IMAGES[first]) == alone[first] and answer(model, IMAGES[second]) == alone[second], (first, second)
        both = answer(as_model(NETS[name], name='net'), IMAGES[first], IMAGES[second])
        if all(isinstance(alone[k], tuple) for k in (first, second)):
            assert both == (alone[first][0] + alone[second][0], alone[first][1]), (first, second)
        else: assert isinstance(both, str), (first, second)


@pytest.mark.parametrize('name, kind', dict(
    small_logit='sigmoid', logit='sigmoid', logit_without_class_axis='sigmoid', relu='sigmoid', hard_logit='sigmoid', probability='none', mask='none',
    two_logits='softmax', adds_up_by_chance='softmax', small_logits='softmax', soft='none', one_hot='none').items())
def test_what_people_use_is_not_asked_about(name, kind):
    for image in (IMAGES['grey'], IMAGES['strong']):
        got = answer(as_model(NETS[name]), image)
        if (name, image.max()) != ('adds_up_by_chance', 1): assert got[1] == kind, got


@pytest.mark.parametrize('name, words', dict(rounded='classes=', labels_without_axis='classes=', whole_numbers='classes=', overlapping='activation=', regions='activation=').items())
def test_what_is_unclear_is_asked(name, words):
    got = [answer(as_model(NETS[name]), image) for image in (IMAGES['labels'], IMAGES['grey'])]
    assert all(words in one for one in got), got


def test_float_label_maps_with_names():
    names = 'background', 'a', 'b', 'c'
    for f in (NETS['rounded'], NETS['labels_without_axis'], lambda x: torch.round(torch.as_tensor(x)).half(), lambda x: np.rint(x).astype(np.uint8)[:, 0]):
        for first in ('weak', 'labels'):
            model = as_model(f, classes=names)
            for k in (first, 'labels'): assert (model.label(IMAGES[k][None, None])[0] == IMAGES[k]).all()


def test_shuffled_studies_and_workers():
    "k02 as a property: scores by sample do not depend on order and n_jobs."
    samples = [Sample(image[None], MASK, name=k) for k, image in IMAGES.items()]
    frames = []
    for order, n_jobs in ((samples, 1), (samples[::-1], 1), (samples[3:] + samples[:3], 2)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            study = Study(tempfile.mkdtemp(), as_model(small, name='net'), Brightness([.9])).run(order, n_jobs=n_jobs, progress=False)
        frames.append(study.frame.sort_values(['sample', 'value']).reset_index(drop=True)[['sample', 'value', 'class', 'score']])
    assert len(set(frames[0]['sample'])) == len(samples) and frames[0].equals(frames[1]) and frames[0].equals(frames[2])


def small(x): return .1 + .2*x


class Head(nn.Module):
    "A convolution whose answers are small, and an activation."
    def __init__(self, end, n=1):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.end = nn.Conv2d(1, n, 3, padding=1), end
        with torch.no_grad():
            self.conv.weight.mul_(.1)
            self.conv.bias.copy_(torch.linspace(.3, .6, n))
    def forward(self, x): return self.end(self.conv(x))


@pytest.mark.parametrize('end, n, kind', [(nn.Identity(), 1, 'sigmoid'), (torch.sigmoid, 1, 'none'), (nn.Softmax(1), 3, 'none'), (nn.LogSoftmax(1), 3, 'softmax'),
                                          (nn.Identity(), 2, 'softmax'), (nn.Hardsigmoid(), 1, 'none')], ids=str)
def test_networks(end, n, kind):
    for image in IMAGES.values():
        model = as_model(Head(end, n))
        model.label(image[None, None])
        assert model.known.kind == kind


def test_noise_is_asked_once_and_only_where_it_must():
    sizes = []
    def f(x):
        sizes.append(x.shape[2:])
        return sigmoid(x)
    model = as_model(f)
    for _ in range(3): model.label(np.random.default_rng(0).random((1, 1, 100, 300)))
    assert sizes == [(100, 300), (64, 64), (100, 300), (100, 300)]
    sizes.clear()
    model = as_model(lambda x: f(x) - .5)
    for _ in range(2): model.label(np.random.default_rng(0).random((1, 1, 100, 300)) - .5)
    assert sizes == [(100, 300)]*2


def test_a_network_of_a_fixed_size_is_asked_about_noise_of_that_size():
    def f(x):
        if x.shape[2:] != (90, 100): raise ValueError('90 x 100 only')
        return .1 + .2*x
    model = as_model(f)
    model.label(np.full((1, 1, 90, 100), .5))
    assert model.known.kind == 'sigmoid'


def test_probing_leaves_luck_and_buffers_alone():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('n', torch.zeros(1))
        def forward(self, x): return torch.sigmoid(x + torch.rand(1)*0)
    net, luck = Counts(), torch.get_rng_state()
    as_model(net).label(np.ones((1, 1, 8, 8)))
    torch.manual_seed(0)
    torch.set_rng_state(luck)
    torch.rand(1)
    after_one = torch.get_rng_state()
    torch.set_rng_state(luck)
    as_model(net).label(np.ones((1, 1, 8, 8)))
    assert torch.equal(torch.get_rng_state(), after_one) or torch.equal(torch.get_rng_state(), luck)


@pytest.mark.parametrize('activation', ['auto', 'none'])
def test_sigmoids_that_do_not_add_up_are_refused_whatever_was_said(activation):
    with pytest.raises(ValueError, match="add up to 1.*activation='masks'"): as_model(NETS['overlapping'], activation=activation).label(IMAGES['grey'][None, None])
    assert as_model(NETS['overlapping'], activation='masks').masks(IMAGES['grey'][None, None]).shape == (1, 2, 24, 20)


def test_a_network_that_uses_its_output_buffer_again():
    class Reuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.zeros(1, 2, 24, 20)
        def forward(self, x):
            self.out.copy_(torch.cat([1 - x, x], 1).clamp(0, 1))
            return self.out
    samples = [Sample(MASK[None]*1.), Sample(1. - MASK[None])]
    for kw in (dict(activation='none'), dict(activation='softmax'), dict(activation='masks')):
        model = as_model(Reuses(), **kw)
        assert (model.masks(samples)[:, -1] == [MASK == 1, MASK == 0]).all(), kw
        one, other = (model.predict(s) for s in samples)
        assert not (one == other).all()
        z = [model.logits(s) for s in samples] if kw['activation'] == 'softmax' else [0, 1]
        assert z[0] is not z[1] and (kw['activation'] != 'softmax' or not torch.equal(*z))


# --- thresholds and one class of a model

@pytest.mark.parametrize('make', [lambda **kw: as_model(lambda x: x, activation='none', **kw), lambda **kw: as_model(lambda x: np.concatenate([1 - x, x], 1), activation='none', **kw),
                                  lambda **kw: as_model(lambda x: np.log(np.concatenate([1 - x, x], 1) + 1e-9), activation='softmax', **kw)], ids=['one channel', 'two', 'logits'])
def test_threshold_of_a_binary_model(make):
    x, want = IMAGES['grey'][None, None].astype(np.float32), IMAGES['grey'] > .3
    for kw in (dict(threshold=.3), dict(threshold=[.3]), dict(classes=('background', 'LV'), threshold=dict(LV=.3))):
        model = make(**kw)
        assert (model.label(x)[0] == want).all() and (model.decide(model.predict(x))[0] == want).all()
    named = make(classes=('background', 'LV'), threshold=.3)
    for one in (named.channel('LV'), named.keep('LV')):
        assert (one.label(x)[0] == want).all() and (one.decide(one.predict(x))[0] == want).all() and one.classes == ('background', 'LV')


def test_channel_before_and_after_the_first_answer():
    x = IMAGES['grey'][None, None].astype(np.float32)
    for first in (False, True):
        for f, kw, name in ((NETS['overlapping'], dict(activation='masks', classes=('WT', 'TC')), 'TC'), (NETS['probability'], dict(classes=('background', 'LV')), 'LV')):
            model = as_model(f, **kw)
            if first: model.predict(x)
            one, want = model.channel(name), model.masks(x)[:, model.foreground.index(name) + (not model.overlapping)]
            assert (one.label(x) == want).all() and (one.decide(one.predict(x)) == want).all(), name
