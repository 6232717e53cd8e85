"""Instances against panoptica's known answers, against the plainest way of doing the same, and through sweeps, studies and comparisons."""
import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from panoptica_answers import SEEDS, random_masks, spine

from misas.all import (
    Brightness,
    Sample,
    Study,
    as_model,
    compare,
    compare_groups,
    context_curve,
    context_curves,
    detectability,
    explore,
    insert_lesion,
    instance_gradcam,
    instance_maps,
    instance_saliency,
    phantom,
    score,
    sensitivity,
)
from misas.attribution.gradient import noisy_images
from misas.data.datasets import data_folder
from misas.inside.question import Question
from misas.inside.target import Target
from misas.instances.find import find_instances
from misas.metrics.instances import INSTANCE_SCORES, overlaps
from misas.metrics.metric import sensitivity_in

with open(Path(__file__).with_name('panoptica.csv')) as file: KNOWN = {row.pop('case'): row for row in csv.DictReader(file)}
WIDEST = {2: 4, 3: 26}  # the connectivity that panoptica uses
has_spine = pytest.mark.skipif(data_folder('spine_instances') is None, reason='MISAS_DATA has no spine_instances')


def agree(found, case):
    "Do the instances, paired one to one, agree with panoptica's answer?"
    known, counts = KNOWN[case], found.counts
    assert [counts[group] for group in ('TP', 'FP', 'FN')] == [int(known[name]) for name in ('tp', 'fp', 'fn')], case
    assert (found.true.group == 'TP').sum() == counts['TP']  # one to one
    shared = overlaps(found.maps['P'], found.maps['T'])
    for name in ('rq', 'sq', 'pq'):
        got = INSTANCE_SCORES[name](shared)
        if np.isnan(got) and name == 'sq' and counts['TP'] == 0: assert float(known[name]) == 0 or known[name] == 'nan'  # panoptica: 0
        else: assert np.isclose(got, float(known[name]), atol=1e-8, equal_nan=True), (case, name)
    pairs = found.matches[found.matches.matched]
    if len(pairs): assert np.isclose(pairs.dice.mean(), float(known['sq_dsc']), atol=1e-8), case


def test_random_masks_agree_with_panoptica():
    assert len(SEEDS) == 200
    for seed in SEEDS:
        prediction, truth = random_masks(seed)
        mm = (1.,)*truth.ndim
        agree(find_instances(prediction, truth, spacing=mm, matching='iou', connectivity=WIDEST[truth.ndim]), f'random {seed}')
    assert sum(int(row['tp']) for row in KNOWN.values()) > 500  # there was something to pair


@has_spine
def test_spine_agrees_with_panoptica():
    for kind in ('matched', 'unmatched'):
        prediction, truth = spine(f'{kind}_instance')
        found = find_instances(prediction, truth, spacing=(.586, .586, 3.3), instances=True, matching='iou')
        agree(found, kind)
        if kind == 'matched':  # the same number means the same vertebra
            pairs = found.matches[found.matches.matched]
            assert (pairs.predicted.str[1:] == pairs.true.str[1:]).all()


@has_spine
def test_classes_of_the_spine_agree_with_panoptica():
    prediction, truth = spine('semantic')
    of_class = {}
    for k in np.union1d(prediction, truth)[1:].tolist():
        of_class[k] = found = find_instances(prediction, truth, spacing=(.586, .586, 3.3), cls=k, matching='iou', connectivity=26)
        agree(found, f'semantic {k}')
    maps = [sum(np.where(one.maps[side] > 0, one.maps[side] + 1000*k, 0) for k, one in of_class.items()) for side in 'PT']
    agree(find_instances(*maps, spacing=(.586, .586, 3.3), instances=True, matching='iou'), 'semantic')


# ---- the plainest way ----

def flood(mask, reach):
    "Components by walking from voxel to voxel; `reach`: how many indices may change at once. A set of voxels each."
    steps = [step for step in product((-1, 0, 1), repeat=mask.ndim) if 0 < np.abs(step).sum() <= reach]
    left, out = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        part, todo = set(), [min(left)]
        while todo:
            voxel = todo.pop()
            if voxel not in left: continue
            left.remove(voxel)
            part.add(voxel)
            todo += [tuple(i + j for i, j in zip(voxel, step)) for step in steps]
        out.append(part)
    return out


@pytest.mark.parametrize('connectivity, reach, shape', [(4, 1, (9, 11)), (8, 2, (9, 11)), (6, 1, (5, 6, 5)), (18, 2, (5, 6, 5)), (26, 3, (5, 6, 5))])
def test_components_and_touch_agree_with_the_plainest_way(connectivity, reach, shape):
    rng = np.random.default_rng(connectivity)
    for share in (.05, .15, .3, .5):
        prediction, truth = (rng.random((2, *shape)) < share)
        parts = [flood(mask, reach) for mask in (prediction, truth)]
        found = find_instances(prediction, truth, spacing=(1.,)*len(shape), connectivity=connectivity)
        for part, numbered in zip(parts, (found.maps['P'], found.maps['T'])):
            assert {frozenset(one) for one in part} == {frozenset(map(tuple, np.argwhere(numbered == i).tolist())) for i in range(1, numbered.max() + 1)}
        touched = [[sum(bool(one & other) for other in others) for one in part] for part, others in zip(parts, parts[::-1])]
        assert found.counts == dict(TP=sum(n > 0 for n in touched[0]), FP=touched[0].count(0), FN=touched[1].count(0), TN=0)
        assert found.predicted.merged.sum() == sum(n > 1 for n in touched[0])
        assert found.true.split.sum() == sum(n > 1 for n in touched[1])
        assert sorted(found.predicted.voxels) == sorted(map(len, parts[0]))


def test_one_blob_over_two_lesions():
    truth, prediction = np.zeros((2, 12, 12, 6), bool)
    truth[2:5, 2:5, 1:4] = truth[2:5, 8:11, 1:4] = True
    prediction[2:5, 2:11, 2:4] = True
    found = find_instances(prediction, truth, spacing=(1, 1, 2))
    assert (found.true.group == 'TP').sum() == 2 and found.predicted.merged.tolist() == [True]
    assert found.counts == dict(TP=1, FP=0, FN=0, TN=0) and found.true.volume_mm3.tolist() == [54, 54]
    assert found.true.nearest_mm.tolist() == [4, 4] and found.matches.voxels.tolist() == [18, 18]


# ---- metrics like all others ----

def lesions(seed):
    "A picture with bright lesions of different brightness, the faintest of which is lost when it gets darker."
    rng = np.random.default_rng(seed)
    image, truth = np.zeros((2, 48, 48))
    for i, level in enumerate((.9, .75, .62, .55)):
        row, col, size = 4 + 11*i, int(rng.integers(4, 36)), 3 + i
        image[row:row + size, col:col + size], truth[row:row + size, col:col + size] = level, 1
    image[44:47, 44:47] = .52  # what is taken for one
    return Sample(image + rng.normal(0, .002, image.shape), truth, spacing=(1, 1), classes=('background', 'lesion'), name=f'case {seed}')


def model(threshold=.5): return as_model(phantom.ThresholdModel(threshold), classes=('background', 'lesion'))


def test_a_sweep_counts_objects():
    sample, asked = lesions(0), ('dice', 'lesion_f1', 'pq', sensitivity_in(0, 15))
    swept = sensitivity(model(), sample, Brightness(), values=[.8, 1, 1.1], metrics=asked, progress=False)
    frame = swept.frame
    for value, prediction in zip(swept.values, swept.predictions):
        own = frame[np.isclose(frame.value, value)].set_index('metric').score
        same = score(prediction, sample.labels, asked, n_classes=2, spacing=sample.spacing).set_index('metric').score
        assert np.allclose(own[same.index], same, equal_nan=True)
    f1 = frame[frame.metric == 'lesion_f1'].set_index('value').score
    assert np.isclose(f1[1], 8/9) and f1.min() < f1[1]
    swept.plot()
    str(swept.summary())


def test_a_study_counts_and_compares_objects(tmp_path):
    asked = ('dice', 'lesion_f1', sensitivity_in(0, 15))
    study = Study(tmp_path, dict(low=model(.5), high=model(.7)), Brightness(), metrics=asked)
    study.run([lesions(seed) for seed in range(3)], progress=False)
    assert set(study.frame.metric) == {'dice', 'lesion_f1', 'lesion_sensitivity 0 to 15'}
    unchanged = study.frame[study.frame.value == Brightness().identity].set_index(['model', 'sample', 'metric']).score
    assert np.allclose([unchanged['low', f'case {k}', 'lesion_f1'] for k in range(3)], 8/9)
    assert np.allclose([unchanged['high', f'case {k}', 'lesion_f1'] for k in range(3)], 2*2/(2*2 + 2))  # two of four, none wrong
    again = Study(tmp_path)  # read, without the function of any metric
    assert again.frame.equals(study.frame)
    told = compare(study, models=('low', 'high'), metric='lesion_f1')
    assert 'lesion_f1' in str(told.summary())
    study.plot(metric='lesion_f1')


# --- bad input

class Bright(torch.nn.Module):
    "A voxel that is brighter than half is lesion."
    def forward(self, x): return torch.cat([0*x[:, :1], 10*(x[:, :1] - .5)], 1)


def scene(name='scan', channels=1, **kw):
    "Two discs, one at the border, with black around them."
    a, b = phantom.disc((40, 48), radius=4, background=0., **kw), phantom.disc((40, 48), radius=4, centre=(19, 0), background=0.)
    image = np.maximum(a.image, b.image)
    return Sample(np.concatenate([image] + [0*image]*(channels - 1)), np.maximum(a.labels, b.labels),
                  classes=('background', 'lesion'), spacing=1., name=name)


SCAN, OTHER, TWO = scene(), scene('other'), scene('two', channels=2)
NET = as_model(Bright(), activation='softmax', classes=SCAN.classes, name='bright')
FOUND = find_instances(NET.label(SCAN)[0], SCAN)
ONE, NONE = FOUND.of('TP')[0], np.zeros(SCAN.shape, bool)
QUIET = dict(progress=False)
NO_VOXELS, NOT_ITS = 'has no voxels', "instance of sample 'scan', not of sample 'other'"
REFUSED = {
    'saliency without a lesion': (lambda: instance_saliency(NET, SCAN, NONE, **QUIET), NO_VOXELS),
    'gradcam without a lesion': (lambda: instance_gradcam(NET, SCAN, NONE, **QUIET), NO_VOXELS),
    'maps without lesions': (lambda: instance_maps(NET, SCAN, [], **QUIET), 'instances is empty'),
    'maps of an empty mask': (lambda: instance_maps(NET, SCAN, [NONE], **QUIET), NO_VOXELS),
    'context without a lesion': (lambda: context_curve(NET, SCAN, NONE, **QUIET), NO_VOXELS),
    'curves without lesions': (lambda: context_curves(NET, [], **QUIET), 'cases is empty'),
    'insert without a lesion': (lambda: insert_lesion(SCAN, (20, 20), shape=NONE, contrast=1), 'at least one voxel'),
    'detectability without a lesion': (lambda: detectability(NET, SCAN, shape=NONE, **QUIET), 'shape'),
    'explore without a lesion': (lambda: explore(find_instances(0*SCAN.labels, SCAN.replace(labels=0*SCAN.labels)), NET), 'nothing to show'),
    'insert beyond the border': (lambda: insert_lesion(SCAN, (0, 0), diameter_mm=9, contrast=1, unit='grey'), 'does not fit'),
    'radius that is none': (lambda: context_curve(NET, SCAN, ONE, [-3], **QUIET), 'radii_mm must be'),
    'noise of an empty channel': (lambda: instance_saliency(NET, TWO, ONE, channel=1, **QUIET), 'channel 1 of sample .two. is the same'),
    'contrast in an empty channel': (lambda: insert_lesion(TWO, (20, 24), diameter_mm=4, contrast={1: 1}), 'channel 1 of sample .two.'),
    'detectability of an empty channel': (lambda: detectability(NET, TWO, [4], contrast={1: 1}, **QUIET), 'channel 1 of sample .two.'),
    'saliency elsewhere': (lambda: instance_saliency(NET, OTHER, ONE, **QUIET), NOT_ITS),
    'gradcam elsewhere': (lambda: instance_gradcam(NET, OTHER, ONE, **QUIET), NOT_ITS),
    'maps elsewhere': (lambda: instance_maps(NET, OTHER, [ONE], **QUIET), NOT_ITS),
    'context elsewhere': (lambda: context_curve(NET, OTHER, ONE, **QUIET), NOT_ITS),
    'fractions as a prediction': (lambda: find_instances(NET.label(SCAN)[0]*.5, SCAN), 'prediction must hold whole numbers'),
    'fractions as numbers': (lambda: find_instances(SCAN.labels, SCAN.labels*.5, spacing=1., instances=True), 'labels must hold whole numbers'),
    'groups of one kind': (lambda: compare_groups([1, 2], ['TP', 'TP'], ['a', 'b']), 'two groups'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_bad_input_is_one_sentence(what):
    call, words = REFUSED[what]
    before = [one.image.copy() for one in (SCAN, TWO)]
    with pytest.raises((ValueError, TypeError), match=words) as e: call()
    assert '\n' not in str(e.value) and len(str(e.value)) < 300
    assert all(np.array_equal(a, one.image) for a, one in zip(before, (SCAN, TWO)))


def test_a_lesion_at_the_border_and_a_radius_beyond_the_image_are_fine():
    edge = next(one for one in FOUND if one.centroid[0] > 35)
    curve = context_curve(NET, SCAN, edge, [0, 500], **QUIET)
    assert curve.kept[-1] == 1 and curve.scores[0, -1] == curve.whole
    [made] = instance_maps(NET, SCAN, [edge], n=2, **QUIET)
    assert np.array_equal(made.map, instance_saliency(NET, SCAN, edge, n=2, **QUIET).map) and made.map[0][edge.mask].all()


# --- parts of images in place of the whole

class Inhibited(torch.nn.Module):
    "Bright voxels, inhibited where it is bright within 10 voxels: off in a dark surrounding, so that no gradient tells of it."
    def __init__(self):
        super().__init__()
        sizes = (21, 1, 1), (1, 21, 1), (1, 1, 21)
        self.far = torch.nn.Sequential(*[torch.nn.Conv3d(1, 1, n, padding=[k//2 for k in n], bias=False) for n in sizes])
        for layer in self.far: torch.nn.init.constant_(layer.weight, 1/21)

    def forward(self, x):
        z = 8*(x - .8) - 10*torch.relu(self.far(x) - .5)
        return torch.cat([0*z, z], 1)


class ByLargest(torch.nn.Module):
    "Brightness as a share of the largest value, of each image or of all that are asked together."
    def __init__(self, of_all=False):
        super().__init__()
        self.of_all, self.blur = of_all, torch.nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        z = 20*(self.blur(x/(x.max() if self.of_all else x.amax((1, 2, 3), keepdim=True))) - .5)
        return torch.cat([0*z, z], 1)


def lung():
    "A bright nodule in dark lung, in a volume that is large enough to be asked in parts."
    away = np.sqrt(((np.indices((72, 64, 64)) - np.reshape((36, 32, 32), (3, 1, 1, 1)))**2).sum(0))
    image = np.where(away <= 3, 1.2, np.where(away <= 20, .2, 1.)) + .03*np.random.default_rng(0).standard_normal(away.shape)
    return Sample(image[None].astype(np.float32), away <= 3, classes=('background', 'lesion'), spacing=1., name='lung'), away


def test_context_in_parts_is_that_of_the_whole_where_gradients_are_blind():
    scan, away = lung()
    model, radii = as_model(Inhibited(), activation='softmax', classes=scan.classes), [0, 4, 8, 12, 20]
    curve = context_curve(model, scan, scan.labels > 0, radii, **QUIET)
    far = np.maximum(away - 3, 0)
    seen = [model.predict(curve.image(radius))[0, 1][scan.labels > 0] for radius in radii]
    assert np.allclose(curve.scores[0], [one.mean() for one in seen], atol=1e-5) and far.max() > 20
    assert curve.found[0].tolist() == [bool((one > .5).any()) for one in seen] and curve.needed_mm > 0


def test_thresholds_in_parts_are_those_of_the_whole_where_gradients_are_blind():
    scan, away = lung()
    empty = scan.replace(image=np.where(away <= 3, .2, scan.image).astype(np.float32), labels=np.zeros(scan.shape, np.uint8))
    model = as_model(Inhibited(), activation='softmax', classes=scan.classes)
    how = dict(unit='grey', edge_mm=1.)
    found = detectability(model, empty, 16., places=[(36, 32, 32)], low=.3, high=3., **how, **QUIET).frame.iloc[0]
    for strength, seen in ((found.low, False), (found.high, True)):
        painted = insert_lesion(empty, (36, 32, 32), contrast=strength, diameter_mm=16., **how)
        assert bool((model.segment(painted)[0] == 1)[painted.labels == 1].any()) == seen


@pytest.mark.parametrize('seed', range(3))
def test_maps_in_parts_are_those_of_the_whole_where_the_largest_value_moves(seed):
    a, b = phantom.disc((64, 64), radius=3, centre=(-16, -16)), phantom.disc((64, 64), radius=3, centre=(12, 12))
    image = np.maximum(a.image, b.image)
    image[0, 16, 16], image[0, 44, 44] = 2.6, 2.59                       # with noise, now the one and now the other is the largest
    scan = Sample(image, a.labels > 0, classes=('background', 'lesion'), spacing=1., name='two')
    model = as_model(ByLargest(), activation='softmax', classes=scan.classes)
    question = Question(model, scan, Target(1, scan.labels > 0), seed=seed, progress=False)
    make = noisy_images(question, .05)
    plain = sum(question.gradient(make(i, i + 1))[0].double().numpy() for i in range(12))/12
    for found in (instance_maps(model, scan, [scan.labels > 0], n=12, seed=seed, **QUIET)[0],
                  instance_saliency(model, scan, scan.labels > 0, n=12, seed=seed, **QUIET)):
        assert np.abs(found.map - plain).max() < 1e-5*np.abs(plain).max()


def test_images_that_share_their_largest_value_go_one_by_one():
    image = phantom.disc((64, 64), radius=4)
    image = image.replace(image=np.where(np.indices((64, 64)).sum(0) == 0, 4., image.image).astype(np.float32))
    question = Question(as_model(ByLargest(True), activation='softmax'), image, Target(1, image.labels > 0), progress=False)
    assert question.coupled
