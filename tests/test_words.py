"What summaries say must not be true and yet hide a failure: healthy cases, infinite scores, medians, units, sides."
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest

from misas.data.sample import Sample
from misas.metrics.limits import excess, judged, room, usual_drop
from misas.metrics.metric import METRICS, Metric, as_metric, as_metrics, instance_metric
from misas.metrics.scores import score, scores
from misas.models.adapt import as_model
from misas.study.compare import compare
from misas.study.diagnose import diagnose
from misas.study.study import Study
from misas.study.summary import per_case, rank, summarise, worst
from misas.study.told import in_words
from misas.sweep.pairs import sensitivity_grid
from misas.sweep.sensitivity import Sensitivity, sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.base import from_function
from misas.transforms.intensity import Blur, Brightness, Noise
from misas.transforms.spatial import Rotation, Translation
from misas.transforms.voxels import Dihedral, Flip
from misas.view import cohort, plot
from misas.view.thin import thin_parts, too_thin

matplotlib.use('Agg')
INF, NAN = np.inf, np.nan
NAMES = ('background', 'tumour')
EVERY = list(METRICS)


def over_half(x): return np.concatenate([x <= .5, x > .5], 1).astype(np.float32)


@pytest.fixture
def net(): return as_model(over_half, classes=NAMES, name='net')


def healthy(name='healthy', shape=(32, 32), grey=.45, **kw):
    return Sample(np.full((1, *shape), grey), np.zeros(shape, int), classes=NAMES, name=name, **{'spacing': 2., **kw})


def ill(name='ill', inside=.8, outside=.2, **kw):
    mask = np.zeros((32, 32), int)
    mask[8:16, 8:16] = 1
    return healthy(name, **kw).replace(image=np.where(mask, inside, outside)[None], labels=mask)


def sweep(model, sample, transform, **kw): return sensitivity(model, sample, transform, progress=False, **kw)


def frame_of(score, cases=6, models=('a',), metric='dice', transform=None):
    "score(model, case, value) -> a tidy frame, and its transforms."
    transform = transform or Noise([0, .05, .1])
    rows = [(m, f'case {i}', transform.name, v, transform.unit, 'tumour', metric, score(m, i, v))
            for m in models for i in range(cases) for v in transform.values]
    columns = 'model sample transform value unit class metric score'.split()
    return pd.DataFrame(rows, columns=columns), {transform.name: transform}


# healthy cases: scores

@pytest.mark.parametrize('shape', [(16, 16), (8, 8, 8)])
@pytest.mark.parametrize('stack', [False, True])
def test_scores_of_a_healthy_case(shape, stack):
    truth, found = np.zeros((2, *shape), int)
    found[(slice(2, 4),)*len(shape)] = 1
    if stack: truth, found = truth[None] > 0, found[None] > 0
    how = dict(n_classes=1 if stack else 2, spacing=10.)
    none, some = (score(p, truth, EVERY, **how).set_index('metric').score for p in (truth, found))
    size = 2**len(shape)  # mL of 10 mm voxels, cm² of 10 mm pixels
    for name in ('volume', 'volume_difference', 'false_positive_volume'):
        assert none[name] == 0 and np.isclose(some[name], size)
    assert none.specificity == 1 and np.isclose(some.specificity, 1 - 2**len(shape)/np.prod(shape))
    for name in ('dice', 'iou', 'precision', 'lesion_f1', 'lesion_precision', 'pq', 'rq'):
        assert np.isnan(none[name]) and some[name] == 0
    for name in ('hausdorff95', 'assd'): assert np.isnan(none[name]) and some[name] == INF
    for name in ('recall', 'lesion_sensitivity'): assert np.isnan(none[name]) and np.isnan(some[name])


def test_voxels_that_do_not_count_are_not_found():
    truth, found, valid = np.zeros((8, 8), int), np.ones((8, 8), int), np.zeros((8, 8), bool)
    one = score(found, truth, ('dice', 'volume', 'specificity'), n_classes=2, spacing=1., valid=valid).score
    assert one.isna().all()  # nothing counts
    valid[0, 0], found[0, 0] = True, 0
    two = score(found, truth, ('dice', 'volume', 'specificity'), n_classes=2, spacing=1., valid=valid).score
    assert np.isnan(two[0]) and two[1:].tolist() == [0, 1]


def test_a_function_is_not_asked_about_nothing():
    def asked(p, t): raise AssertionError
    assert np.isnan(scores(np.zeros((4, 4), int), np.zeros((4, 4), int), as_metrics(asked), 2)).all()


def test_which_metrics_tell_absence():
    assert instance_metric('lesion_f1', 26).tells_absence()  # only in 3D
    assert not instance_metric('lesion_sensitivity').tells_absence()
    def broken(p, t): raise RuntimeError
    assert not Metric('broken', broken).tells_absence() and not Metric('described', None).tells_absence()
    assert not METRICS['precision'].tells_absence()


# healthy cases: sweeps

@pytest.mark.parametrize('metric', ['dice', 'iou', 'hausdorff95', 'assd', 'lesion_f1', 'pq', 'precision'])
def test_a_sweep_says_from_where_on_something_is_found(net, metric):
    told = str(sweep(net, healthy(), Brightness([.8, 1, 1.2, 1.5]), metrics=metric).summary())
    assert 'not in this image and not predicted in it unchanged; predicted where there is none from 1.2 on' in told


@pytest.mark.parametrize('metric', ['recall', 'lesion_sensitivity', 'sq', 'lesion_dice'])
def test_a_metric_that_is_blind_for_it_says_so(net, metric):
    told = str(sweep(net, healthy(), Brightness([.8, 1, 1.2]), metrics=metric).summary())
    assert 'does not tell whether it is found' in told and 'false_positive_volume' in told


@pytest.mark.parametrize('metric', ['specificity', 'false_positive_volume', 'volume_difference'])
def test_metrics_with_a_score_in_healthy_cases_break(net, metric):
    drop = None if metric == 'specificity' else 1.
    found = sweep(net, healthy(), Brightness([.8, 1, 1.2]), metrics=metric)
    assert found.tolerance(drop)['breaks above'].tolist() == [1.2]


def test_nothing_anywhere(net):
    told = str(sweep(net, healthy(grey=.1), Brightness([.8, 1, 1.2])).summary())
    assert 'not predicted in it, at any value' in told and 'No class gets worse' not in told


def test_cases_and_gaps(net):
    flat = healthy().replace(image=np.tile(np.linspace(0, .45, 32), (32, 1))[None])
    brighter = from_function(lambda x, v: x*(1 + v*(v < 2)), 'bump', [0, 1, 2], 0)
    assert 'where there is none at 1.' in str(sweep(net, flat, brighter).summary())  # not from 1 on
    words = from_function(lambda x, v: x*(1 + v), 'way', [0, 1], 0, scale={0: 'as it is', 1: 'brighter'})
    assert 'where there is none under brighter' in str(sweep(net, flat, words).summary())


def test_tolerance_of_a_healthy_case(net):
    found = tolerance(net, healthy(), Brightness())
    dense = sweep(net, healthy(), Brightness(), values=found.values).tolerance()
    assert found.upper == dense.upper[0] and found.frame['breaks above'][0] == dense['breaks above'][0]
    assert 'predicted where there is none' in str(found)


def test_without_truth_nothing_is_called_healthy(net):
    told = str(sweep(net, healthy(), Brightness([1, 1.2]), reference='prediction').summary())
    assert 'not predicted unchanged; predicted from 1.2 on' in told and 'where there is none' not in told


def test_masks_that_overlap():
    names = ('whole', 'core')
    empty = Sample(np.full((1, 16, 16), .45), np.zeros((2, 16, 16), bool), classes=names)

    def both(x): return 100*np.concatenate([x - .5, x - .6], 1)

    net = as_model(both, classes=names, activation='sigmoid', name='net')
    told = str(sweep(net, empty, Brightness([1, 1.2, 1.5])).summary())
    assert 'whole: not in this image' in told and 'where there is none from 1.2 on' in told
    assert 'where there is none from 1.5 on' in told


# healthy cases: cohorts

def test_some_healthy_all_healthy(net, tmp_path):
    cases = [healthy(f'h{i}') for i in range(3)] + [ill(f'i{i}') for i in range(4)]
    bright = Brightness([.8, 1, 1.2])
    some = Study(tmp_path/'some', net, bright).run(cases, progress=False)
    told = str(some.summary())
    assert '7 cases, 3 of them healthy' in told and 'found in 3 of 3 healthy cases, from 1.2 on' in told
    row = some.summary().frame.iloc[0]
    assert row[['healthy', 'found', 'found above', 'scored', 'upper']].tolist() == [3, 3, 1.2, 4, 1.2]
    everyone = Study(tmp_path/'all', net, bright).run(cases[:3], progress=False)
    assert 'found in 3 of 3 healthy cases, from 1.2 on' in str(everyone.summary())
    blind = Study(tmp_path/'blind', net, bright, metrics='recall').run(cases[:3], progress=False)
    assert 'does not tell what is found there' in str(blind.summary())
    assert '3 of 3 healthy cases' in str(diagnose(net, cases[:3], tried=[Brightness([1, .9])], borne=[bright], progress=False))
    assert worst(some.frame, some.transforms, 1).score.tolist() == [0]


def test_what_only_one_model_finds_is_told():
    frame, transforms = frame_of(lambda m, i, v: (.9 if i < 4 else 0. if m == 'b' else NAN), models='ab')
    told = str(compare(frame, transforms=transforms).summary())
    assert 'Found by b alone, where there is nothing' in told and 'unchanged, tumour in 2 cases' in told


def test_missed_and_false_unchanged():
    frame, transforms = frame_of(lambda m, i, v: 0. if i < 4 else .9 - 5*v, cases=7)
    table, told = summarise(frame, transforms).iloc[0], str(in_words(frame, transforms))
    assert (table.lost, table['break'], table.upper) == (4, 3, 0)  # those that cannot break have no limits
    assert '4 of 7 are too bad unchanged' in told and 'the median of the other 3 gets more than 0.1 worse' in told


# what a median hides

def test_n_of_n():
    frame, transforms = frame_of(lambda m, i, v: .9 if i < 14 else .9 - 5*v, cases=21)
    told = str(in_words(frame, transforms))
    assert 'at all values; 7 of 21 cases get more than 0.1 worse somewhere' in told
    flips, known = frame_of(lambda m, i, v: .9 if i < 14 or v < 2 else .2, cases=21, transform=Flip())
    assert '7 of 21 cases get more than 0.1 worse somewhere' in str(in_words(flips, known))


def test_between_values_that_were_tried():
    blur = from_function(lambda x, v: x, 'blur', [0, 2, 4, 6], 0, unit='mm')
    frame, transforms = frame_of(lambda m, i, v: .9 if v <= (2 if i < 2 else 4) else .2, cases=4, transform=blur)
    assert 'as far as between 2 mm and 4 mm' in str(in_words(frame, transforms))


def test_a_class_that_was_not_found(net):
    lost = ill(inside=.3)
    told = str(sweep(net, lost, Rotation([-10, 0, 10])).summary())
    assert '0.00 unchanged (not found), so no value can make it worse' in told and 'No class' not in told
    far = str(sweep(net, lost, Rotation([-10, 0, 10]), metrics='hausdorff95').summary(drop=2))
    assert 'infinite unchanged (not found)' in far and 'infinite at 3 of 3 values' in far.lower()
    false = str(sweep(net, healthy(grey=.6), Brightness([1, 1.2]), metrics='hausdorff95').summary(drop=2))
    assert 'found where there is none' in false and 'not found' not in false
    assert 'too bad to get worse by 0.5' in str(sweep(net, ill(outside=.6), Brightness([1, 1.1])).summary(drop=.5))


def test_precision_is_undefined_where_nothing_is_predicted(net):
    told = str(sweep(net, ill(inside=.3), Brightness([1, 1.1]), metrics='precision').summary())
    assert 'though it is in this image' in told and 'not in this image' not in told.replace('it is in', '')


# summaries never fail because of a metric

def total(prediction, truth): return float(prediction.sum())


@pytest.mark.parametrize('metrics', [
    ('hausdorff95', 'volume_difference'), ('assd',), ('volume',), ('volume', 'dice'), (total,), ('false_positive_volume',),
    (Metric('size', total, better=''),), (Metric('gap', total, 'lower', 'voxels'),), ('specificity', 'pq')])
def test_no_summary_raises(net, metrics, tmp_path):
    sample, bright = ill(), Brightness([.8, 1, 1.2])
    result = sweep(net, sample, bright, metrics=metrics)
    assert 'tumour' in str(result.summary()) and len(result.summary().frame) == 1
    result.to_html(tmp_path/'sweep.html')
    study = Study(tmp_path/'study', net, bright, metrics=metrics).run([sample, healthy()], progress=False)
    assert 'tumour' in str(study.summary())
    assert 'tumour' in str(Study(tmp_path/'study').summary())  # opened for reading


def test_no_range_where_nobody_said_what_holds(net):
    result = sweep(net, ill(), Brightness([.8, 1, 1.2]), metrics='hausdorff95')
    told = result.summary()
    assert 'stays' not in told.text and 'how many mm worse still does' in told.text and told.frame.lower.isna().all()
    assert 'stays within 2 mm' in result.summary(drop=2).text
    with pytest.raises(ValueError, match='drop must be given'): result.tolerance()
    assert usual_drop(None, 'dice') == .1 and usual_drop(None, 'volume') == INF


@pytest.mark.parametrize('metric', ['dice', 'hausdorff95', 'volume', Metric('size', total, better='')])
def test_pairs_of_transforms(net, metric, tmp_path):
    grid = sensitivity_grid(net, healthy(), (Brightness([.8, 1, 1.2]), Blur([0, 1])), metrics=metric, progress=False)
    told = str(grid.summary())
    if metric in ('dice', 'hausdorff95'): assert 'predicted where there is none at 2 of 6 pairs' in told
    grid.to_html(tmp_path/'grid.html')
    if metric != 'dice': return
    lost = sensitivity_grid(net, ill(inside=.3), (Brightness([.9, 1]), Blur([0, 1])), progress=False)
    assert 'so nothing can make it worse' in str(lost.summary()) and 'stays' not in str(lost.summary())


# infinite scores

def test_infinite_scores_are_counted():
    frame, transforms = frame_of(lambda m, i, v: INF if i < 3 else 2. + i, models='ab', metric='hausdorff95')
    told = str(in_words(frame[frame.model == 'a'], transforms, drop=2))
    assert 'infinite unchanged' in told and '9 of 18 scores infinite' in told and '3 of 6 are too bad' in told
    compared = compare(frame, transforms=transforms)
    assert (compared.frame.infinite == 3).all() and 'Infinite by one model or both' in str(compared)
    assert per_case(frame, transforms, drop=2).infinite.tolist() == [3]*3 + [0]*3 + [3]*3 + [0]*3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig = cohort.distribution(frame, transforms)
    assert any('(6 infinite)' in text.get_text() for text in fig.axes[0].get_xticklabels())
    cohort.cohort_curves(frame, transforms), cohort.ranking(rank(frame, transforms))


def test_the_median_of_a_box_may_be_infinite():
    five = cohort._five(np.array([1., 2, INF, INF]), 10.)
    assert five['med'] == 10 and five['whishi'] == 10
    assert cohort._five(np.array([1., 2, 3, INF]), 10.)['med'] == 2.5


def test_signs_of_infinity_in_intervals():
    frame, transforms = frame_of(lambda m, i, v: INF if i < (3 if m == 'a' else 2) else 2. + i + (m == 'b'), models='ab',
                                 metric='hausdorff95')
    assert '(−infinity to' in str(compare(frame, transforms=transforms))


def test_limits_of_extremes():
    assert np.array_equal(excess([INF, INF, 3, NAN], 0), [0, 0, -INF, NAN], equal_nan=True)
    assert room(METRICS['volume_difference'], 3) == INF and room(as_metric(total), 0) == INF
    assert judged([0, 1], np.array([NAN, NAN]), METRICS['dice'], 0, .1)[1:5] == pytest.approx([NAN]*4, nan_ok=True)


# units

def test_pixels_are_no_millimetres(net, tmp_path):
    sample = ill(spacing=None)
    result = sweep(net, sample, Blur([0, 1.5]))
    assert '1.5 pixels' in str(result.summary()) and ' mm' not in str(result.summary())
    assert set(result.frame.unit) == {'pixels'}
    assert '1.5 mm' in str(sweep(net, ill(), Blur([0, 1.5])).summary())
    result.save(tmp_path/'sweep.npz')
    assert '1.5 pixels' in str(Sensitivity.load(tmp_path/'sweep.npz').summary())
    assert ' mm' not in str(tolerance(net, sample, Translation([0, 4])))
    assert ' mm' not in str(sensitivity_grid(net, sample, (Blur([0, 1.5]), Brightness([.9, 1])), progress=False).summary())
    study = Study(tmp_path/'study', net, Blur([0, 1.5])).run([sample, sample.replace(name='other')], progress=False)
    assert '1.5 pixels' in str(study.summary()) and ' mm' not in str(study.summary())
    own = from_function(lambda x, v: x + v, 'shift', [0, 1], 0, unit='mm')  # what it says is its own affair
    assert '1 mm' in str(sweep(net, sample, own).summary())


# sides and zeros

@pytest.mark.parametrize('transform', [Flip(), Dihedral(), Rotation([0, 180])])
def test_sides(transform):
    lab = np.zeros((24, 24), int)
    lab[4:10, 3:8], lab[4:10, 16:21] = 1, 2
    names = 'background', 'left kidney', 'right kidney'
    sample = Sample((lab > 0)[None]*1., lab, classes=names)

    def by_place(x):
        bright, left = x[:, 0] > .5, np.arange(24) < 12
        return np.stack([~bright, bright & left, bright & ~left], 1).astype(np.float32)

    net = as_model(by_place, classes=names)
    told = str(sweep(net, sample, transform).summary())
    assert 'named after a side, and cannot be judged there' in told and "swap={'left kidney': 'right kidney'}" in told
    cured = type(transform)(transform.values, swap={'left kidney': 'right kidney'})  # the advice works
    result = sweep(net, sample, cured)
    assert 'named after a side' not in str(result.summary())
    if isinstance(transform, Flip): assert (result.frame.score == 1).all()


def test_zero_background(net):
    mask = np.hypot(*(np.mgrid[:48, :48] - 23.5)) < 16
    spot = np.hypot(*(np.mgrid[:48, :48] - 20)) < 5
    sample = Sample((mask*(500. + 400*spot))[None], spot.astype(int), classes=NAMES)

    def by_zeros(x):
        inside = x[:, :1] != 0
        mean = (x*inside).sum((2, 3), keepdims=True)/inside.sum((2, 3), keepdims=True)
        found = inside & (x > 1.4*mean)
        return np.concatenate([~found, found], 1).astype(np.float32)

    model = as_model(by_zeros, classes=NAMES)
    told = str(sweep(model, sample, Noise([0, .1])).summary())
    assert 'is exactly 0' in told and 'keep_zeros=True' in told
    kept = sweep(model, sample, Noise([0, .1], keep_zeros=True))
    assert kept.frame.score.min() > .9 and 'exactly 0' not in str(kept.summary())
    assert 'exactly 0' not in str(sweep(model, sample, Rotation([0, 90])).summary())


# thin structures

def test_thin_structures_are_painted():
    lines = np.zeros((400, 400), int)
    lines[::40] = 1
    sample = Sample(np.full((1, 400, 400), .5), lines, classes=('tissue', 'vessel'))
    fig = plot.gallery([sample], [lines*0])
    words = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert any('true' in word for word in words)
    fig = plot.gallery([sample]*2, [lines, lines*(np.arange(400) < 200)])
    words = [text.get_text() for ax in fig.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    assert words == ['vessel, predicted and true', 'vessel, only true', 'vessel, only predicted']
    thick = np.zeros((400, 400), int)
    thick[100:300, 100:300] = 1
    fig = plot.show(sample.replace(labels=thick), thick)
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ['vessel, predicted', 'true']  # a white line, whatever the class
    assert too_thin(lines > 0, .5) and not too_thin(thick > 0, .5)
    assert [part.sum() for part in thin_parts(lines > 0, None)] == [lines.sum(), 0, 0]
    matplotlib.pyplot.close('all')
