"""Grades of maps, and what they must not say: nothing to grade, a range of another channel, too few samples, odds unknown."""
import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from misas.attribution.attribute import attribute
from misas.attribution.blocks import Blocks, OwnMap
from misas.attribution.complexity import complexity
from misas.attribution.curves import deletion, insertion
from misas.attribution.localisation import localisation, outline_distance, zones
from misas.attribution.quality import contrast, infidelity, max_sensitivity
from misas.attribution.rank import CONTROLS, compared, rank_methods
from misas.attribution.sanity import correlation, randomisation_check, rank_correlation, varies
from misas.attribution.stability import stability
from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.inside.question import Question
from misas.inside.target import Target, near_outline
from misas.metrics.masks import outline_mm
from misas.models.adapt import as_model
from misas.transforms.spatial import Rotation

QUIET = dict(progress=False)
SCORES = ('occlusion', 'feature_ablation', 'rise', 'shapley_sampling', 'kernel_shap', 'lime')


def small_net(seed=0, channel=0):
    "Reads one channel."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(seed)
            self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

        def forward(self, x): return self.b(torch.relu(self.a(x[:, channel:channel + 1 or None])))

    return as_model(Net().eval(), activation='softmax', name='net')


def noisy_disc(shape=(24, 24), radius=6, seed=0, **kw):
    d = disc(shape, radius=radius, **kw)
    return d.replace(image=d.image + np.random.default_rng(seed).normal(0, .1, d.image.shape))


def inside(sample, **kw): return Target(1, sample.labels == 1, **kw)


# ---- a boundary is one voxel, or the millimetres that were asked for ----

@pytest.mark.parametrize('mm', [(.5, .5, 8.), (8., .5, .5), (1., 1., 1.), (1., 3., .2)])
def test_boundary_without_a_band_is_one_voxel_along_each_axis(mm):
    mask = np.random.default_rng(0).random((9, 8, 7)) < .2
    beside = np.zeros_like(mask)
    for axis in range(3):
        along, out = np.moveaxis(mask, axis, 0), np.moveaxis(beside, axis, 0)
        differs = along[:-1] != along[1:]
        out[:-1] |= differs
        out[1:] |= differs
    assert np.array_equal(near_outline(mask, mm), beside)


@pytest.mark.parametrize('mm', [(.5, .5, 8.), (2., 1., 3.)])
@pytest.mark.parametrize('band', [.25, 1., 4., 6.])
def test_a_band_is_in_millimetres_in_all_directions(mm, band):
    mask = np.random.default_rng(1).random((10, 9, 6)) < .1
    far = np.empty(mask.shape)
    for at in np.argwhere(mask | True):
        steps = abs(np.argwhere(mask != mask[tuple(at)]) - at)
        far[tuple(at)] = np.linalg.norm(np.maximum(steps - .5, 0)*mm, axis=1).min()
    assert np.array_equal(near_outline(mask, mm, band), far <= band*(1 + 1e-6))
    assert np.allclose(outline_mm(mask, mm), far)


def test_a_cylinder_in_thick_slices_has_a_thin_boundary():
    shape, mm = (60, 60, 5), (.5, .5, 8.)
    x, y = np.meshgrid(*[(np.arange(60) - 29.5)*.5]*2, indexing='ij')
    labels = np.repeat((x**2 + y**2 < 64)[..., None], 5, -1).astype(int)
    sample = Sample(labels[None].astype(float), labels, spacing=mm)
    model = as_model(lambda x: np.concatenate([.5 - x, x - .5], 1), activation='softmax')
    frozen = Target(1, 'boundary').freeze(model, sample)
    flat = near_outline(labels[..., 2] == 1, (.5, .5))
    assert np.array_equal(frozen.mask, np.repeat(flat[..., None], 5, -1)) and flat.sum() == 180
    assert 'one voxel on each side' in frozen.text
    wide = Target(1, 'boundary', band=2).freeze(model, sample)
    assert '2 mm on each side' in wide.text and wide.mask.shape == shape and wide.mask[:, 30, 2].sum() == 2*8
    assert Target(1, 'boundary', band=.25).freeze(model, sample).mask.sum() == 5*180
    around = localisation(OwnMap(SimpleNamespace(model=model, sample=sample, target=Target(1).freeze(model, sample),
                                                 options={}), np.ones((1, *shape))), shells_mm=(2, 5)).frame
    assert around['where'].tolist() == ['inside', 'border (one voxel)', 'up to 2 mm', '2 to 5 mm', 'beyond 5 mm']
    near = zones(labels == 1, mm, (2, 5))
    assert (near.index == 1).sum() < .1*labels.size  # not 8 mm within the slice


def test_zones_of_cubes_are_as_ever_and_refuse_what_they_cannot_say():
    mask = np.random.default_rng(2).random((12, 11)) < .1
    away, found = outline_distance(mask, (1., 1.)), zones(mask, (1., 1.), (2, 3))
    assert found.names == ('inside', 'border (±1 mm)', '1 to 2 mm', '2 to 3 mm', 'beyond 3 mm')
    assert np.array_equal(found.index == 1, abs(away) <= .75) and (away[mask] < 0).all()
    assert np.array_equal(zones(mask, (1., 1.), (2, 3), border_mm=1).index == 1, abs(away) <= 1)
    with pytest.raises(ValueError, match='region has no voxels'): zones(mask & False, (1., 1.))
    assert (zones(mask | True, (1., 1.), 5).index == 0).all()


# ---- noise goes by each channel ----

@pytest.mark.parametrize('scale', [2000., 1e-3])
def test_a_channel_of_another_range_changes_no_grade(scale):
    one = noisy_disc(spacing=1.)
    two = one.replace(image=np.concatenate([scale*one.image[:, ::-1] - scale/2, one.image]))
    maps = [attribute(small_net(channel=channel), s, inside(one), 'saliency', **QUIET)
            for s, channel in ((one, 0), (two, -1))]
    grades = [max_sensitivity(a).value for a in maps]
    assert .4 < grades[1]/grades[0] < 2.5 and grades[0] > 0
    foretold = [infidelity(a, by='noise', n=60, block=1.).value for a in maps]
    assert abs(foretold[1] - foretold[0]) < .2
    smooth = [attribute(small_net(channel=channel), s, inside(one), 'smoothgrad', n_samples=100, **QUIET).map[-1]
              for s, channel in ((one, 0), (two, -1))]
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > .95


def test_contrast_of_each_channel():
    image = np.zeros((3, 20, 20))
    image[0] = np.arange(400).reshape(20, 20)
    image[1, 3, 3] = .001  # less than one voxel in a hundred: the percentiles are equal
    assert contrast(image).shape == (3, 1, 1)
    assert np.allclose(contrast(image).ravel(), [.98*399, .001, 0])
    flat = Sample(np.ones((1, 12, 12)))
    everywhere = attribute(small_net(), flat, Target(1, np.ones((12, 12), bool)), 'saliency', **QUIET)
    with pytest.raises(ValueError, match='the same everywhere, so there is no range for noise'):
        max_sensitivity(everywhere)
    with pytest.raises(ValueError, match='none of the changes'): infidelity(everywhere, by='noise', block=2.)
    with pytest.raises(ValueError, match='channel must be one of 0 to 0'):
        attribute(small_net(), noisy_disc(), 1, 'smoothgrad', channel=1)


# ---- no difference is no map ----

class Flat(nn.Module):
    "A constant logit, and a little of what was seen."
    def __init__(self, weight, bias=3.7):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        seen = self.weight*x[:, :1].mean((2, 3), keepdim=True) + self.bias
        return torch.cat([0*x[:, :1], seen + 0*x[:, :1]], 1)


@pytest.mark.parametrize('method', SCORES)
@pytest.mark.parametrize('kind', ['network', 'function', 'rounding'])
def test_a_model_that_looks_at_nothing_has_no_map(method, kind):
    sample = noisy_disc()
    models = dict(network=Flat(0.), rounding=Flat(1e-7),
                  function=lambda x: np.stack([0*x[:, 0], 0*x[:, 0] + 3.7], 1))
    model = as_model(models[kind], activation='softmax', name=kind)
    few = dict(rise=dict(n_samples=40), shapley_sampling=dict(n_samples=1)).get(method, {})
    with pytest.raises(ValueError, match='zero everywhere'):
        attribute(model, sample, inside(sample), method, **few, **QUIET)


@pytest.mark.parametrize('method', SCORES)
def test_a_small_difference_is_one(method):
    sample = noisy_disc()
    few = dict(rise=dict(n_samples=40), shapley_sampling=dict(n_samples=1)).get(method, {})
    for reduce, log_odds in (('mean', False), ('sum', False), ('mean', True)):
        target = inside(sample, reduce=reduce, log_odds=log_odds)
        found = attribute(as_model(Flat(.01), activation='softmax'), sample, target, method, baseline='zero', **few, **QUIET)
        assert found.map.any()


def test_score_cam_without_a_difference_is_refused():
    class Unmoved(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.act, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1)

        def forward(self, x): return 0*self.head(self.act(self.conv(x))) + torch.tensor([0., 3.7]).view(1, 2, 1, 1)

    sample = noisy_disc()
    with pytest.raises(ValueError, match='the same through every feature of layer .act.'):
        attribute(as_model(Unmoved().eval(), activation='softmax'), sample, inside(sample), 'score_cam', layer='act')


def test_changes_that_only_round_are_no_grade():
    sample = noisy_disc()
    model = as_model(Flat(1e-7), activation='softmax')
    asked = SimpleNamespace(model=model, sample=sample, target=inside(sample).freeze(model, sample), options={})
    drawn = OwnMap(asked, np.random.default_rng(0).normal(size=(1, *sample.shape)))
    with pytest.raises(ValueError, match='none of the changes moves the score by more than rounding'): infidelity(drawn)
    for curve in (deletion, insertion):
        got = curve(drawn, baseline='zero')
        assert np.isnan(got.value) and 'nothing can be said' in repr(got)
    with pytest.raises(ValueError, match='leaves a single block, so there is nothing to compare'):
        infidelity(drawn, block=1000.)
    with pytest.raises(ValueError, match='single block'): Blocks(drawn, 1000.)


# ---- maps that are the same everywhere ----

def test_a_constant_map_is_not_judged():
    sample, model = noisy_disc(), small_net()
    asked = SimpleNamespace(model=model, sample=sample, target=inside(sample).freeze(model, sample), options={})
    for value in (1., .7, 1e-12, 0.):
        check = randomisation_check(OwnMap(asked, lambda *_, v=value: np.full((1, 24, 24), v), 'flat'))
        assert np.isnan(check.value) and check.flagged and not check.judged and 'CANNOT BE JUDGED' in repr(check)
        assert 'passes:' not in repr(check) and check.frame[['signed', 'correlation']].isna().all().all()
        assert check.plot(1) is not None
    turned = stability(OwnMap(asked, lambda m, s, t: np.ones((1, *s.shape)), 'flat'), Rotation(), [10])
    assert np.isnan(turned.value) and 'cannot be judged' in repr(turned)
    assert np.isnan(correlation(np.ones(5), np.arange(5))) and np.isnan(rank_correlation(np.ones(5), np.arange(5)))
    assert not varies(1 + 1e-7*np.arange(5)) and varies(np.arange(5)*1e-30) and not varies(np.zeros(4))


def test_a_map_that_is_gone_has_changed():
    sample, model = noisy_disc(), small_net()
    asked = SimpleNamespace(model=model, sample=sample, target=inside(sample).freeze(model, sample), options={})
    drawn = np.random.default_rng(0).normal(size=(1, 24, 24))
    def gone(m, s, t): return drawn*(m is model)
    check = randomisation_check(OwnMap(asked, gone), steps=1, places=0)
    assert np.isnan(check.value) and not check.flagged and 'it was not before' in repr(check)
    kept = randomisation_check(OwnMap(asked, lambda *_: drawn), steps=1, places=1)
    assert kept.value == 1 and kept.flagged and kept.elsewhere == 1


def test_empty_maps_have_no_grade():
    sample, model = noisy_disc(), small_net()
    asked = SimpleNamespace(model=model, sample=sample, target=inside(sample).freeze(model, sample), options={})
    empty = OwnMap(asked, np.zeros((1, 24, 24)))
    for grade, match in ((complexity, 'no complexity'), (localisation, 'lies nowhere'), (max_sensitivity, 'is empty')):
        with pytest.raises(ValueError, match=match): grade(empty)
    assert infidelity(empty).value == 1


# ---- a place is for those who answered ----

def graded(**grades):
    "{method: grades} as a frame; NaN: undefined."
    rows = [(i, method, 'infidelity', grade) for method, of in grades.items() for i, grade in enumerate(of)]
    return pd.DataFrame(rows, columns=['index', 'method', 'measure', 'value'])


def test_who_is_compared_on_what():
    none = np.nan
    ranked, common = compared(graded(a=[1]*7, b=[2]*7, once=[0, *[none]*6]))
    assert ranked == ['a', 'b'] and common['infidelity'] == set(range(7))
    ranked, common = compared(graded(a=[1]*7, most=[0, 0, 0, 0, none, none, none]))
    assert ranked == ['a', 'most'] and common['infidelity'] == {0, 1, 2, 3}
    ranked, common = compared(graded(a=[1, 1, 1, none, none, none, none], b=[none, none, none, 2, 2, 2, 2]))
    assert ranked == ['b'] and common['infidelity'] == {3, 4, 5, 6}
    ranked, common = compared(graded(a=[1, 1, none, none, none], b=[2, 2, none, none, none]))  # nobody answers the rest
    assert ranked == ['a', 'b'] and common['infidelity'] == {0, 1}
    ranked, common = compared(graded(a=[none]*3, b=[none]*3))
    assert ranked == ['a', 'b'] and common['infidelity'] == set()
    two = pd.concat([graded(a=[1]*4, b=[2]*4), graded(a=[1]*4, b=[none]*4).assign(measure='deletion')])
    assert compared(two)[0] == ['a']  # a method needs a grade of every measure that says something


def test_a_method_that_answered_once_is_not_first():
    samples = [noisy_disc((16, 16), 4, seed=i).replace(name=f'case {i}') for i in range(7)]
    model, calls = small_net(), []

    def lucky(model, sample, target):
        calls.append(sample.name)
        if sample.name != 'case 3': raise ValueError('silent on this image')
        return attribute(model, sample, target, 'saliency', **QUIET).map

    lucky.slope = True
    how = dict(measures={'infidelity': dict(n=20)}, **QUIET)
    ranking = rank_methods(model, samples, Target(1, samples[0].labels == 1), ['saliency', 'input_x_gradient', lucky], **how)
    assert set(ranking.order) == {'saliency', 'input_x_gradient'} and list(ranking.apart) == ['lucky']
    assert ranking.wide.samples['lucky'] == '1 of 7' and ranking.wide.samples['saliency'] == '7 of 7'
    assert 'not ranked, as it has a grade of infidelity on 1 of 7 samples: silent on this image' in repr(ranking)
    table = ranking.table.set_index('method')
    assert np.isnan(table['rank']['lucky']) and table.cases['lucky'] == 1 and len(calls) == 7
    assert list(ranking.wide.index) == [*ranking.order, 'lucky', *CONTROLS]
    assert 'lucky (not ranked, 1 of 7)' in [t.get_text() for t in ranking.plot().axes[0].get_yticklabels()]
    assert 'lucky' in ranking._repr_html_()


def test_rankings_of_what_cannot_be_ranked():
    sample, model = noisy_disc(), small_net()
    def silent(model, sample, target): raise ValueError('never a map')
    with pytest.raises(ValueError, match='no method gave a map that can be graded: never a map'):
        rank_methods(model, [sample, sample], inside(sample), silent, **QUIET)
    def undefined(attribution): return np.nan
    got = rank_methods(model, sample, inside(sample), ['saliency', 'input_x_gradient'], measures=[undefined], **QUIET)
    assert got.order == [] and 'no measure has a grade' in repr(got.summary()) and got.plot() is not None
    def odd(attribution): return 1.
    odd.better = 'up'
    with pytest.raises(ValueError, match="odd.better must be 'lower' or 'higher', got 'up'"):
        rank_methods(model, sample, inside(sample), 'saliency', measures=odd, **QUIET)
    def word(attribution): return 'good'
    with pytest.raises(TypeError, match="word must give a number, got 'good'"):
        rank_methods(model, sample, inside(sample), 'saliency', measures=word, **QUIET)


def test_equal_grades_share_a_place_and_infinite_ones_come_last():
    sample, model = noisy_disc(), small_net()
    def same(attribution): return 2.
    got = rank_methods(model, sample, inside(sample), ['saliency', 'input_x_gradient'], measures=same, **QUIET)
    assert got.table['rank'].dropna().tolist() == [1, 1]
    def far(attribution): return np.inf if attribution.method == 'saliency' else 5.
    got = rank_methods(model, sample, inside(sample), ['saliency', 'input_x_gradient'], measures=far, **QUIET)
    assert got.order == ['input_x_gradient', 'saliency']


# ---- log-odds of probabilities ----

class Sure(nn.Module):
    "Log-odds of some gain times brightness, as logits or probabilities of one or two channels."
    def __init__(self, gain, ends):
        super().__init__()
        self.conv, self.gain, self.ends = nn.Conv2d(1, 1, 5, padding=2), gain, ends
        nn.init.constant_(self.conv.weight, 1/25)
        nn.init.constant_(self.conv.bias, -.5)

    def forward(self, x):
        z = self.gain*self.conv(x)
        two = torch.cat([-z, z], 1)
        return dict(logits=two, softmax=two.softmax(1), one=(2*z).sigmoid(), overlapping=(2*z).sigmoid())[self.ends]


def odds_of(gain, ends, method='saliency', double=False):
    sample = disc((32, 32), radius=8)
    net = Sure(gain, ends).eval()
    if double: net = copy.deepcopy(net).double()
    kind = dict(logits='softmax', softmax='none', one='none', overlapping='masks')[ends]
    more = dict(classes=('a',)) if ends == 'overlapping' else {}
    return attribute(as_model(net, activation=kind, **more), sample, inside(sample, log_odds=True), method, **QUIET)


@pytest.mark.parametrize('gain', [30, 60, 75])
def test_a_softmax_is_undone_as_far_as_numbers_go(gain):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        true, found = odds_of(gain, 'logits'), odds_of(gain, 'softmax')
    assert abs(found.score/true.score - 1) < 1e-3 and np.corrcoef(found.map.ravel(), true.map.ravel())[0, 1] > .999
    assert 'not known' not in found.text


@pytest.mark.parametrize('gain, ends', [(40, 'one'), (40, 'overlapping'), (400, 'softmax')])
@pytest.mark.parametrize('method', ['saliency', 'occlusion', 'integrated_gradients'])
def test_odds_that_are_not_known_are_told(gain, ends, method):
    with pytest.warns(UserWarning, match=r'% of the voxels of the mask the probability of .* is exactly 0 or 1'):
        try: text = odds_of(gain, ends, method).text
        except ValueError as e:  # contributions that do not add up
            assert method == 'integrated_gradients' and hasattr(e, 'attribution')
            text = e.attribution.text
    assert '% of which they are not known' in text


@pytest.mark.parametrize('ends', ['one', 'overlapping'])
def test_double_precision_is_a_cure(ends):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        true, found = odds_of(30, 'logits'), odds_of(30, ends, double=True)
    assert abs(found.score/true.score - 1) < 1e-3 and 'not known' not in found.text
    with pytest.warns(UserWarning): odds_of(30, ends)


def test_label_maps_have_no_odds_and_say_so():
    sample = disc((24, 24), radius=6)
    labels = as_model(lambda x: (x[:, 0] > .5).astype(np.uint8), classes=('background', 'disc'), name='labels')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = attribute(labels, sample, Target('disc', log_odds=True), 'occlusion', baseline='zero', **QUIET)
    assert 'at 100 % of which they are not known' in found.text


def test_looks_at_rounding_and_odds_are_not_counted():
    sample = disc((24, 24), radius=6)
    q = Question(as_model(Sure(40, 'one').eval(), activation='none'), sample, inside(sample, log_odds=True), **QUIET)
    assert q.unknown > 0 and q.rounding > 0 and q.passes.forwards == 0 and q.value == q.score().item()
    other = q.about(inside(sample))
    assert other._unknown is None and other._rounding is None
