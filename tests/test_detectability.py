"""Detectability against asking every contrast of the grid, and what the model really gets to see."""
import numpy as np
import pytest
import torch
from scipy.ndimage import label
from torch import nn

from misas.all import Sample, as_model, detectability, insert_lesion, phantom
from misas.instances.staircase import contrast_grid
from misas.models.steady import steady
from misas.statistics import bootstrap

NAMES = 'background', 'lesion'


def noisy(shape, seed=0, spacing=None, channels=2, level=100., sd=4.):
    "An image of tissue with noise, without any empty voxel."
    image = np.random.default_rng(seed).normal(level, sd, (channels, *shape))
    return Sample(image, spacing=spacing or (1.,)*len(shape), name=f'noise {seed}')


class Mean(nn.Module):
    "Lesion where a weighted sum of channels, averaged over a box, is a fraction above a level."
    def __init__(self, ndim, width, above, weights=(1., 0.), level=100.):
        super().__init__()
        kind = nn.AvgPool2d if ndim == 2 else nn.AvgPool3d
        self.mean = kind(width, 1, width//2, count_include_pad=False)
        self.above, self.weights, self.level = above, weights, level

    def forward(self, x):
        seen = sum(w*(x[:, k:k + 1]/self.level - 1) for k, w in enumerate(self.weights))
        return torch.cat([0*seen, self.mean(seen) - self.above], 1)


def by_asking_all(model, sample, row, grid, pattern, threshold=None, **kw):
    "Answers at every contrast of the grid: each a new image made by insert_lesion, each predicted alone."
    answers = []
    for strength in grid:
        made = insert_lesion(sample.replace(labels=None, classes=None), row['at'], diameter_mm=row['size_mm'], contrast=np.multiply(pattern, strength), **kw)
        there = made.labels > 0
        found = model.label(made)[0] == 1 if threshold is None else model.predict(made)[0, 1] > threshold
        answers.append(bool(found[there].any()))
    return np.array(answers)


def same_as_asking_all(found, model, samples, pattern, **kw):
    "Does every row agree with asking all contrasts?  (For models that find what is stronger, too.)"
    asked = {sample.name: sample for sample in samples}
    for row in found.frame.to_dict('records'):
        answers = by_asking_all(model, asked[row['sample']], row, found.grid, pattern, **kw)
        if not answers.any(): expected = 'not found', np.inf, found.grid[-1], np.inf
        elif answers[0]: expected = 'below range', found.grid[0], 0, found.grid[0]
        else:
            first = int(answers.argmax())
            expected = 'found', found.grid[first], found.grid[first - 1], found.grid[first]
        assert (row['outcome'], row['threshold'], row['low'], row['high']) == expected, row
        assert answers[int(answers.argmax()):].all() or not answers.any()  # or it would be no such model


@pytest.mark.parametrize('shape, spacing, width, above, weights, pattern', [
    ((44, 50), (1., 1.), 7, .04, (1., 0.), (1., 0.)),
    ((44, 60), (1.5, .8), 5, .08, (-1., .5), (-1., 1.)),  # dark in one, bright in the other
    ((44, 50), (1., 1.), 1, .16, (1., 0.), (1., 0.)),     # some are noise: found anyway
    ((22, 26, 18), (1., 1., 2.), 5, .05, (0., -1.), -1.),
])
def test_agrees_with_asking_every_contrast(shape, spacing, width, above, weights, pattern):
    samples = [noisy(shape, seed, spacing) for seed in range(2)]
    model = as_model(Mean(len(shape), width, above, weights), activation='softmax', classes=NAMES)
    ask = dict(n_places=2, contrast=pattern, resolution=.1, low=.02, progress=False)
    found = detectability(model, samples, [3., 6.], **ask)
    asked = found.frame[found.frame.outcome != 'already found']
    assert len(found.frame) == 8 and len(asked) and found.frame.monotone.all()
    found.frame = asked
    same_as_asking_all(found, model, samples, pattern)
    assert found.frame.voxels.gt(0).all() and found.evaluations == 2 + found.frame.asked.sum()


def test_every_row_is_what_the_network_says():
    "A network with random weights is not monotone at all: what is told of it must still be true."
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 1))
    with torch.no_grad(): net[-1].bias += torch.tensor([.3, -.3])
    model = as_model(net, activation='softmax', classes=NAMES, preprocess=lambda x: (x - x.mean())/x.std())
    sample = noisy((40, 40))
    told = detectability(model, sample, [4., 8.], n_places=4, contrast=(1., -.5), resolution=.2, low=.05, high=4., progress=False)
    some = 0
    for number, row in told.frame.iterrows():
        answers = by_asking_all(model, sample, row, told.grid, (1., -.5))
        own = told.answers[told.answers.lesion == number]
        if row.outcome == 'already found': continue
        at = np.searchsorted(told.grid, own.strength*(1 - 1e-9))
        assert (answers[at] == own.detected).all() and len(own) == row.asked
        first = own.strength[own.detected].min()
        assert row.threshold == (first if own.detected.any() else np.inf)
        assert row.monotone == (not (~own.detected & (own.strength > first)).any())
        some += own.detected.any()
    assert some and net.training and net[1].training  # left as it was
    assert set(told.frame.outcome) - {'already found'}


def test_a_threshold_of_probability_is_one():
    sample = noisy((40, 40))
    model = as_model(Mean(2, 3, .1), activation='softmax', classes=NAMES)
    usual, sure = (detectability(model, sample, 6., n_places=3, threshold=t, resolution=.1, progress=False) for t in (None, .52))
    same_as_asking_all(sure, model, [sample], 1., threshold=.52)
    assert (usual.frame.threshold < sure.frame.threshold).all()


def test_the_model_sees_one_lesion_in_each_image():
    sample, seen = noisy((50, 50), spacing=(1., 2.)), []
    def model(x):
        seen.append(x.copy())
        return (x[:, 0] > 170).astype(np.uint8)
    before, finder = sample.image.copy(), steady(as_model(model, classes=NAMES, activation='labels'), sample)
    seen.clear()
    told = detectability(finder, sample, [4., 8.], n_places=3, contrast={0: 1}, internal_batch=4, progress=False)
    images = np.concatenate(seen)
    assert max(map(len, seen)) == 4 and len(images) == told.evaluations == 1 + len(told.answers) == 1 + told.frame.asked.sum()
    assert (images[0] == before).all() and (sample.image == before).all()
    counts = []
    for image in images[1:]:
        changed = image != before
        assert not changed[1].any()
        parts, count = label(changed[0], np.ones((3, 3)))
        assert count == 1
        rows, cols = np.nonzero(parts)
        assert max(np.ptp(rows)*1, np.ptp(cols)*2) <= 8 + 1  # the lesion with its edge
        counts.append(tuple(np.rint([rows.mean(), cols.mean()]).astype(int)))
    places = {tuple(map(int, at)) for at in told.frame['at']}
    assert set(counts) == places and len(places) == 3


def test_volumes_go_in_small_numbers_and_slicewise():
    volume, seen = noisy((24, 24, 12), spacing=(1., 1., 2.), channels=1), []
    def model(x):
        seen.append(len(x))
        return (x[:, 0] > 130).astype(np.uint8)
    finder = steady(as_model(model, classes=NAMES, activation='labels'), volume)
    seen.clear()
    whole = detectability(finder, volume, 6., n_places=2, progress=False)
    assert max(seen) <= 2 and whole.evaluations == sum(seen)
    cut = detectability(as_model(model, classes=NAMES, activation='labels').slicewise(), volume, 6., n_places=2, progress=False)
    assert cut.frame.equals(whole.frame)  # it looks at one voxel at a time


class Halves(nn.Module):
    "Down, up, and a skip."
    def __init__(self, norm=None):
        super().__init__()
        self.first, self.low, self.last = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(8, 3, 3, padding=1)
        self.norm = nn.Identity() if norm is None else norm(4)

    def forward(self, x):
        top = nn.functional.softplus(self.norm(self.first(x)))
        low = nn.functional.interpolate(self.low(nn.functional.avg_pool3d(top, 2)), scale_factor=2)
        return self.last(torch.cat([top, low], 1))


def zscored(x): return (x - x.mean())/x.std()


@pytest.mark.parametrize('norm, kw, in_parts', [
    (nn.BatchNorm3d, dict(activation='softmax', preprocess=zscored), True), (None, dict(activation='sigmoid', multiple_of=8), True),
    (nn.InstanceNorm3d, dict(activation='softmax', preprocess=zscored), False)])
def test_parts_of_large_volumes_say_the_same(norm, kw, in_parts, monkeypatch):
    torch.manual_seed(5)
    net = Halves(norm)
    seen = []
    net.first.register_forward_hook(lambda module, x, y: seen.append(np.prod(x[0].shape[2:])))
    with torch.no_grad(): net.last.bias += torch.tensor([.2, -.1, -.5])
    volume = noisy((36, 34, 30), spacing=(1., 1., 1.5))
    names = ('a', 'b', 'c') if kw['activation'] == 'sigmoid' else ('background', 'b', 'c')
    model = as_model(net, classes=names, **kw)
    ask = dict(n_places=2, border_mm=9, cls='b', contrast=(1., -.5), resolution=.2, low=.05, high=6., progress=False)
    whole = detectability(model, volume, 5., **ask)
    large = max(seen)
    monkeypatch.setattr('misas.instances.staircase.LARGE', 1)
    seen.clear()
    parts = detectability(model, volume, 5., **ask)
    assert parts.frame.equals(whole.frame) and parts.answers.equals(whole.answers)
    assert 0 <= parts.evaluations - whole.evaluations <= 2*2*in_parts  # both ends of each lesion's bracket, asked of the whole
    assert whole.frame.asked.sum() >= 10
    assert (sum(n <= large/2 for n in seen) > 5) == in_parts
    assert net.training and all(w.requires_grad for w in net.parameters())


def test_samples_do_not_change_each_other():
    samples = [noisy((40, 44), seed) for seed in range(3)]
    model = as_model(Mean(2, 5, .05), activation='softmax', classes=NAMES)
    ask = dict(n_places=2, regions={'upper': lambda sample: np.arange(40)[:, None] < np.full(44, 20), 'lower': np.arange(40)[:, None] >= np.full(44, 20)},
               resolution=.1, progress=False)
    together = detectability(model, (sample for sample in samples), [3., 5.], **ask)
    alone = [detectability(model, sample, [3., 5.], **ask).frame for sample in samples]
    assert all(together.frame[together.frame['sample'] == one['sample'][0]].reset_index(drop=True).equals(one) for one in alone)
    for row in together.frame.to_dict('records'): assert (row['at'][0] < 20) == (row['region'] == 'upper')
    again = detectability(model, samples, [5., 3.], **ask)
    assert again.frame.equals(together.frame)  # the seed fixes the places, whatever the order of the sizes


def test_intervals_are_those_of_samples():
    "Three lesions of a patient that all say the same are no more than one of them."
    levels = 90, 100, 115, 95, 108, 120
    samples = [Sample(np.full((1, 40, 40), level) + 1e-3*np.eye(40), spacing=(1., 1.), name=f'patient {level}') for level in levels]
    model = as_model(phantom.ThresholdModel(140.), classes=NAMES)
    one, three = (detectability(model, samples, 4., n_places=n, progress=False).table.iloc[0] for n in (1, 3))
    assert three.lesions == 18 and (one['median'], one.low, one.high) == (three['median'], three.low, three.high)
    grid = contrast_grid()
    exact = [grid[np.searchsorted(grid, 140/level - 1 - 1e-4)] for level in levels]
    assert np.isclose(one['median'], bootstrap(exact).estimate, rtol=.051)


def test_known_lesions_are_left_alone():
    truth = np.zeros((60, 60), bool)
    truth[:, :25] = True
    image = np.where(truth, 160., 100.)[None] + np.random.default_rng(0).normal(0, 1, (1, 60, 60))
    sample = Sample(image, truth.astype(int), spacing=(1., 1.), classes=NAMES, name='half')
    model = as_model(phantom.ThresholdModel(130.), classes=NAMES)
    told = detectability(model, sample, 5., n_places=6, progress=False)
    assert all(at[1] > 25 + 2.5 for at in told.frame['at'])
    assert told.frame.threshold.between(.26, .32).all()  # compared with tissue, not with the lesion beside it
    bare = detectability(model, sample.replace(labels=None), 5., places=[(30, 10), (30, 45)], progress=False)
    assert bare.frame.outcome.tolist() == ['already found', 'found'] and bare.frame.asked[0] == 0 and np.isnan(bare.frame.threshold[0])
    assert bare.table.lesions[0] == 1 and bare.table.already_found[0] == 1


def test_grey_values_and_real_lesions():
    even = Sample(np.full((1, 50, 50), -20.) + 1e-3*np.eye(50), spacing=(1., 1.), name='z-scored')
    model = as_model(phantom.ThresholdModel(-12.5), classes=NAMES)
    grey = detectability(model, even, 5., unit='grey', low=.1, high=20., n_places=2, progress=False)
    assert grey.frame.threshold.between(7.49, 7.51*1.05).all() and 'grey values' in str(grey)
    with pytest.raises(ValueError, match="unit='grey'"): detectability(model, even, 5., progress=False)
    lesion = np.zeros((50, 50), bool)
    lesion[5:9, 5:8] = True
    source = even.replace(image=np.where(lesion, 5., even.image))  # 25 above its tissue
    moved = detectability(model, even, shape=lesion, source=source, texture=True, edge_mm=0, n_places=2, progress=False)
    assert moved.frame.threshold.between(7.5/25*.999, 7.5/25*1.051).all() and (moved.frame.voxels == 12).all()
    assert np.allclose(moved.frame.size_mm, 2*np.sqrt(12/np.pi))


def test_classes_that_overlap():
    class Two(nn.Module):
        def forward(self, x): return torch.cat([x[:, :1] - 115, x[:, :1] - 140], 1)
    model = as_model(Two(), activation='sigmoid', classes=('whole', 'core'))
    sample = Sample(np.full((1, 40, 40), 100.) + 1e-3*np.eye(40), spacing=1., name='even')
    for cls, expected in (('whole', .15), ('core', .4), (2, .4)):
        told = detectability(model, sample, 4., n_places=1, cls=cls, progress=False)
        assert expected*.999 < told.frame.threshold[0] <= expected*1.051 and told.cls == ('whole' if cls == 'whole' else 'core')
    with pytest.raises(ValueError, match='cls is missing'): detectability(model, sample, 4., progress=False)


def test_pictures_and_words_of_all_outcomes():
    import matplotlib.pyplot as plt
    class Odd(nn.Module):  # the right half is never found, the middle always, the left as usual
        def forward(self, x):
            rows = torch.arange(x.shape[3]).to(x)
            need = torch.where(rows < 20, 130., torch.where(rows < 40, 100.5, 1e6))
            return torch.cat([0*x, x - need], 1)
    sample = Sample(np.full((1, 30, 60), 100.) + 1e-3*np.eye(30, 60), spacing=1., name='thirds')
    told = detectability(as_model(Odd(), activation='softmax', classes=NAMES), sample, [3., 5.], places=dict(left=(15, 9), middle=(15, 30), right=(15, 50)), progress=False)
    assert told.frame.outcome.tolist() == ['found']*2 + ['below range']*2 + ['not found']*2
    assert told.frame.low[2:].tolist() == [0, 0, 1, 1] and told.frame.high[2:].tolist() == [.01, .01, np.inf, np.inf]
    assert told.table.set_index('region')['median'].round(2).to_dict() == dict(left=.31, middle=.01, right=np.inf)
    text = str(told)
    assert 'left: 3 mm: 31.2 %' in text and 'middle: 3 mm: 1 % or less' in text and 'right: 3 mm: over 100 %' in text
    assert len(told.plot().axes) == 3
    for rows in (None, [0, 2, 4]): told.gallery(rows)
    plt.close('all')
