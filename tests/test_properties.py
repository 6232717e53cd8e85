"What must hold for any sample, transform, label map and model, checked on many small ones made at random."
import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misas.data.phantom import OracleModel, ThresholdModel, disc
from misas.data.sample import Sample
from misas.data.slices import take_slice
from misas.metrics.masks import Outline, confusion
from misas.metrics.metric import METRICS, OVERLAP
from misas.metrics.scores import score
from misas.models.adapt import as_model
from misas.sweep.scoring import Scoring
from misas.sweep.sensitivity import sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.base import Transform, from_function, sweep_values
from misas.transforms.catalogue import CATALOGUE
from misas.transforms.intensity import Brightness, Noise
from misas.transforms.spatial import Rotation, Scale, Shear, Translation, Zoom
from misas.transforms.voxels import Crop, Dihedral, Flip, Resize, Resolution


def some(n): return settings(derandomize=True, deadline=None, max_examples=n, database=None)


BY_NAME = {c.__name__: c for c in CATALOGUE}
IMAGE_TYPES, LABEL_TYPES = ('uint8', 'int16', 'float32', 'float64', 'bool'), ('uint8', 'int32', 'int64', 'bool', 'float32')
MATRIX = 'Rotation', 'Zoom', 'Translation', 'Scale', 'Shear'  # given by a matrix; on the grid of the sample
SPATIAL = *MATRIX, 'Resize', 'Flip', 'Dihedral', 'Crop'


@st.composite
def samples(draw, labelled=None, dims=(2, 3), max_size=9):
    "A sample with random contents; what matters (shape, types, geometry, valid) is drawn, the numbers come from a seed."
    n = draw(st.sampled_from(dims))
    shape = tuple(draw(st.lists(st.integers(1, max_size if n == 2 else 6), min_size=n, max_size=n)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    spacing = tuple(draw(st.lists(st.sampled_from([.5, 1., 1.7, 8.]), min_size=n, max_size=n)))
    image = (rng.random((draw(st.integers(1, 3)), *shape))*draw(st.sampled_from([1, 200]))).astype(draw(st.sampled_from(IMAGE_TYPES)))
    labelled = draw(st.booleans()) if labelled is None else labelled
    top = draw(st.sampled_from([1, 3, 300]))
    labels = (rng.integers(0, top + 1, shape) if top < 9 else rng.choice([0, 5, 300], shape)) if labelled else None
    if labelled: labels = labels.astype(draw(st.sampled_from(LABEL_TYPES if top < 256 else LABEL_TYPES[1:3] + LABEL_TYPES[4:])))
    valid = draw(st.sampled_from([None, rng.random(shape) > .3, np.zeros(shape, bool)]))
    affine = None
    if n == 3 and draw(st.booleans()):
        affine = np.diag([*spacing, 1.])[:, [1, 0, 2, 3]]*[-1, 1, 1, 1]
        affine[:3, 3], spacing = (5, -7, 20), (spacing[1], spacing[0], spacing[2])
    return Sample(image, labels, spacing=spacing, valid=valid, affine=affine, name='any')


FACTOR, SHARE = st.floats(.1, 8), st.floats(0, 3)
VALUES = {'Rotation': st.floats(-400, 400), 'Translation': st.floats(-90, 90), 'Zoom': FACTOR, 'Scale': FACTOR, 'Shear': st.floats(-80, 80),
          'Resize': st.floats(.05, 2.6), 'Resolution': st.floats(1, 20), 'Crop': st.floats(0, .49), 'Dihedral': st.integers(0, 7),
          'Brightness': st.floats(0, 20), 'Contrast': st.floats(0, 20), 'Gamma': FACTOR, 'WindowWidth': FACTOR, 'WindowLevel': st.floats(-3, 3),
          'Noise': SHARE, 'Rician': SHARE, 'Blur': SHARE, 'ChannelScale': SHARE, 'BiasField': st.floats(-8, 8), 'Spike': SHARE, 'Motion': st.floats(0, 20),
          **dict.fromkeys(('SpikePosition', 'Ghosting', 'Gibbs', 'Undersampling'), st.floats(0, 1))}


def value_for(name, ndim):
    "Values from the domain of a transform."
    return st.integers(0, 2**ndim - 1) if name == 'Flip' else VALUES[name]


def arrays(s): return {k: getattr(s, k) for k in ('image', 'labels', 'valid', 'affine') if getattr(s, k) is not None}
def same(a, b): return (a is None and b is None) or np.array_equal(a, b)
def equal(a, b): return all(same(getattr(a, k), getattr(b, k)) for k in ('image', 'labels', 'valid', 'affine')) and \
    (a.spacing, a.classes, a.name, a.spacing_known) == (b.spacing, b.classes, b.name, b.spacing_known)
def centre(s): return s.affine[:3, :3] @ ((np.array(s.shape) - 1)/2) + s.affine[:3, 3]


# --- Sample

@some(60)
@given(samples())
def test_sample_round_trips(s):
    for other in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), s.replace(), s.replace(name='x').replace(name='any')): assert equal(s, other)


@some(30)
@given(samples())
def test_sample_arrays_are_read_only(s):
    assert not any(a.flags.writeable for a in arrays(s).values())


@some(20)
@given(samples(labelled=True))
def test_sample_is_immutable_after_a_journey(s):
    "Workers of a study get samples by pickle: rule 9 holds there too."
    for other in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s)): assert not any(a.flags.writeable for a in arrays(other).values())


@some(40)
@given(samples())
def test_sample_does_not_keep_the_arrays_it_was_given(s):
    given_ = {k: a.copy() for k, a in arrays(s).items()}
    made = Sample(**given_, spacing=s.spacing)
    for a in given_.values(): a[...] = 1 - a if a.dtype != bool else ~a
    assert all(np.array_equal(getattr(made, k), getattr(s, k)) for k in given_)


@pytest.mark.parametrize('top', [255, 256, 65535, 2**31 - 1])
@pytest.mark.parametrize('dtype', ['int64', 'uint32', 'float64'])
def test_label_values_survive(top, dtype):
    assert Sample(np.zeros((1, 1, 2)), np.array([[0, top]], dtype)).labels.tolist() == [[0, top]]


def test_spacing_given_later_is_known():
    assert Sample(np.zeros((4, 4))).replace(spacing=(2, 2)).spacing_known


# --- transforms

@pytest.mark.parametrize('name', BY_NAME)
def test_transform(name):
    @some(40)
    @given(st.data(), samples())
    def check(data, s):
        t, v = BY_NAME[name](), data.draw(value_for(name, s.ndim))
        before = {k: a.copy() for k, a in arrays(s).items()}
        new = t(s, v)
        assert all(np.array_equal(getattr(s, k), a) for k, a in before.items())  # the input stays as it was
        assert np.isfinite(new.image).all() and new.image.dtype == np.float32 and new.n_channels == s.n_channels
        assert (new.labels is None) == (s.labels is None)
        if s.labels is not None:
            assert set(np.unique(new.labels)) <= {0, *np.unique(s.labels)} and new.labels.shape == new.shape
            assert t.moves_labels or np.array_equal(new.labels, s.labels)
        assert new.valid is None or (new.valid.shape == new.shape and new.valid.dtype == bool)
        if s.valid is not None and not s.valid.any(): assert new.valid is not None and not new.valid.any()
        assert (new.classes, new.name, new.spacing_known, new.ndim) == (s.classes, s.name, s.spacing_known, s.ndim)
        if s.affine is not None:
            assert np.allclose(np.linalg.norm(new.affine[:3, :3], axis=0), new.spacing) and np.allclose(centre(new), centre(s))
        assert t(s, t.identity) is s and equal(t(s, v), new)
    check()


@pytest.mark.parametrize('name', BY_NAME)
def test_many_equals_one_by_one(name):
    @some(15)
    @given(st.data(), samples())
    def check(data, s):
        t = BY_NAME[name]()
        values = [*data.draw(st.lists(value_for(name, s.ndim), min_size=1, max_size=4)), t.identity]
        for v, a in zip(values, t.many(s, values), strict=True):
            b = t(s, v)
            assert same(a.labels, b.labels) and same(a.valid, b.valid) and np.allclose(a.image, b.image, rtol=1e-6, atol=1e-6)
    check()


@pytest.mark.parametrize('name', BY_NAME)
def test_back_is_on_the_grid_of_the_sample(name):
    @some(25)
    @given(st.data(), samples(labelled=True))
    def check(data, s):
        t, v = BY_NAME[name](), data.draw(value_for(name, s.ndim))
        labels, known = t.back(t(s, v).labels, s, v)
        assert labels.shape == s.shape and labels.dtype.kind in 'iu' and set(np.unique(labels)) <= {0, *np.unique(s.labels)}
        assert known is None or (known.shape == s.shape and known.dtype == bool)
        if name in ('Flip', 'Dihedral', 'Crop') or name not in SPATIAL: assert np.array_equal(labels, s.labels)
        one = s.replace(labels=np.full(s.shape, 3), valid=None)  # one class everywhere: what is known is that class
        labels, known = t.back(np.where(t(one, v).labels == 0, 3, t(one, v).labels), one, v)
        assert (labels[slice(None) if known is None else known] == 3).all()
    check()


@some(30)
@given(samples(labelled=True), st.sampled_from(SPATIAL[:-1]), st.data())
def test_image_and_labels_move_together(s, name, data):
    "An image that shows the labels still shows them afterwards, when it is interpolated like them."
    kw = dict(order=0, fill=0) if name in (*MATRIX, 'Resize') else {}
    s = s.replace(image=s.labels[None].astype(float))
    new = BY_NAME[name](**kw)(s, data.draw(value_for(name, s.ndim)))
    assert np.array_equal(new.image[0], new.labels)


@some(25)
@given(samples(labelled=True), st.sampled_from((*MATRIX, 'Resize')), st.data())
def test_what_is_not_valid_is_what_came_from_outside(s, name, data):
    t, v = BY_NAME[name](order=0, fill=-9), data.draw(value_for(name, s.ndim))
    new = t(s.replace(valid=None), v)
    valid = np.ones(new.shape, bool) if new.valid is None else new.valid
    assert np.array_equal(valid, (new.image != -9).all(0)) and (new.labels[~valid] == 0).all()


@some(25)
@given(samples(), st.integers(-8, 8))
def test_quarter_turns_lose_nothing(s, k):
    n = min(s.shape[:2])
    s = Sample(s.image[:, :n, :n], spacing=1.)
    assert np.allclose(Rotation()(s, 90.*k).image, np.rot90(s.image, k, (1, 2)), atol=1e-9)
    assert np.array_equal(Dihedral()(s, 2*(k % 4)).image, np.rot90(s.image, k, (1, 2)))


@some(60)
@given(samples(labelled=True), st.integers(-9, 9))
def test_quarter_turns_move_image_and_labels_alike_on_every_grid(s, k):
    "Height and width may be even and odd: where pixels are square, nothing is interpolated, and nothing is chosen."
    s = s.replace(image=s.labels[None].astype(np.float32), spacing=2., affine=None, valid=None)
    for t in (Rotation(fill=0), Rotation(fill=0, order=3)):
        new = t(s, 90.*k)
        assert np.array_equal(new.image[0], new.labels)
        back, known = t.back(new.labels, s, 90.*k)
        assert np.array_equal(*(a[slice(None) if known is None else known] for a in (back, s.labels)))


@some(25)
@given(samples(), st.floats(.05, 2.6))
def test_resize_keeps_the_field_of_view(s, v):
    new = Resize()(s, v)
    assert np.allclose(np.multiply(new.shape, new.spacing), np.multiply(s.shape, s.spacing))
    assert np.abs(np.array(new.shape) - np.maximum(1, np.multiply(s.shape, v))).max() <= .5 + 1e-9


@some(20)
@given(samples(), st.floats(0, 3), st.integers(0, 99))
def test_noise_takes_a_seed_and_leaves_random_states_alone(s, v, seed):
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
    assert np.array_equal(Noise(seed=seed)(s, v).image, Noise(seed=seed)(s, v).image)
    assert (np.random.get_state()[1] == before[0]).all() and (torch.get_rng_state() == before[1]).all()


@some(80)
@given(samples(labelled=True, dims=(3,)), st.sampled_from([
    lambda: Rotation(axis=0), lambda: Rotation(axis=(1, -2, .5)), lambda: Translation(direction='vertical'), lambda: Translation(direction='through-plane'),
    lambda: Scale(direction='vertical'), lambda: Scale(direction='through-plane'), lambda: Shear(direction='vertical', across='through-plane'),
    lambda: Shear(direction='through-plane'), lambda: Resolution(direction='through-plane'), lambda: Resolution(direction='all')]), st.data())
def test_other_directions(s, make, data):
    "Volumes: what moves comes back, labels keep their values, and the field of view stays where it is."
    t = make()
    v = data.draw(VALUES[type(t).__name__])
    new = t(s, v)
    assert np.isfinite(new.image).all() and set(np.unique(new.labels)) <= {0, *np.unique(s.labels)} and new.spacing == s.spacing and same(new.affine, s.affine)
    one = s.replace(labels=np.full(s.shape, 3), valid=None)
    labels, known = t.back(np.where(t(one, v).labels == 0, 3, t(one, v).labels), one, v)
    assert (labels[slice(None) if known is None else known] == 3).all()


@pytest.mark.parametrize('name', BY_NAME)
def test_some_channels(name):
    "Only the channels asked for change; labels, valid voxels and geometry stay."
    @some(10)
    @given(st.data(), samples())
    def check(data, s):
        s = s.replace(image=np.concatenate([s.image, s.image[:1]]))
        t, v = BY_NAME[name](channels=s.n_channels - 1), data.draw(value_for(name, s.ndim))
        try: new = t(s, v)
        except ValueError as e:
            assert 'grid' in str(e) and name in ('Resize', 'Dihedral')
            return
        assert np.array_equal(new.image[:-1], s.image[:-1]) and equal(new.replace(image=s.image), s)
        assert np.array_equal(new.image[-1:], BY_NAME[name](channels=0)(s.replace(image=s.image[-1:]), v).image)
    check()


@some(40)
@given(samples(), st.sampled_from(list(BY_NAME)), st.sampled_from(list(BY_NAME)), st.data())
def test_a_stack_is_one_after_the_other(s, first, second, data):
    a, b = BY_NAME[first](), BY_NAME[second]()
    v, w = (data.draw(value_for(n, s.ndim)) for n in (first, second))
    for stack, value in ((a + b, (v, w)), (a.at(v) + b, w), (a + b.at(w), v), (a.at(v) + b.at(w), ())):
        assert equal(stack(s, value), b(a(s, v), w))
        again = Transform.from_json(stack.to_json())
        assert again.settings() == stack.settings() and equal(again(s, value), stack(s, value))


# --- transforms and classes that overlap

@st.composite
def masks_for(draw, shape):
    "A stack of masks, at random: sparse, dense, empty or full, and overlapping."
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shares = draw(st.lists(st.sampled_from([0, .2, .5, .9, 1]), min_size=1, max_size=4))
    return np.stack([rng.random(shape) < share for share in shares])


def moves_like_its_masks(t, v, s, masks):
    "A stack moves, and comes back, as each of its masks does that is a label map of its own."
    stack = s.replace(labels=masks)
    new = t(stack, v)
    back, known = t.back(new.labels, stack, v)
    assert new.overlapping and new.labels.dtype == back.dtype == bool
    assert new.labels.shape == (len(masks), *new.shape) and back.shape == masks.shape
    for mask, moved, brought in zip(masks, new.labels, back, strict=True):
        one = s.replace(labels=mask.astype(np.uint8))
        alone = t(one, v)
        labels, here = t.back(alone.labels, one, v)
        assert np.array_equal(moved, alone.labels == 1) and equal(alone.replace(labels=None), new.replace(labels=None))
        assert np.array_equal(brought, labels == 1) and same(known, here)
    return new


@pytest.mark.parametrize('name', BY_NAME)
def test_a_stack_of_masks_moves_like_label_maps(name):
    @some(20)
    @given(st.data(), samples(labelled=False))
    def check(data, s):
        t, v = BY_NAME[name](), data.draw(value_for(name, s.ndim))
        masks = data.draw(masks_for(s.shape))
        new = moves_like_its_masks(t, v, s, masks)
        if not t.moves_labels: assert np.array_equal(new.labels, masks)
        elif s.valid is None and new.valid is not None: assert not new.labels[:, ~new.valid].any()  # came from outside
    check()


def turned(image, value): return np.ascontiguousarray(np.rot90(image, int(value), (1, 2)))
def turned_back(image, value): return turned(image, -value)
def along(image, value): return shifted(image, round(value))
def against(image, value): return shifted(image, -round(value))


def shifted(image, n):
    "By whole voxels along the last axis; what comes from outside is the minimum."
    out = np.full_like(image, image.min())
    size = image.shape[-1]
    if abs(n) < size: out[..., max(0, n):size + min(0, n)] = image[..., max(0, -n):size - max(0, n)]
    return out


def soft(image, value):
    "A move by part of a voxel: masks are no longer 0 and 1."
    return (1 - value)*image + value*shifted(image, 1)


def own(f, inverse=None, **kw): return from_function(f, f.__name__, [0, 1, 2], 0, spatial=True, inverse=inverse, **kw)


@some(60)
@given(st.data(), samples(labelled=False), st.sampled_from([
    (lambda: own(turned, turned_back), st.integers(-3, 3)), (lambda: own(along, against), st.integers(-4, 4)),
    (lambda: own(soft, along), st.floats(0, 1)), (lambda: own(along, against, channels=0), st.integers(0, 2)),
    (lambda: Rotation(channels=0), st.floats(-99, 99)), (lambda: Rotation(order=3), st.floats(-99, 99))]))
def test_own_functions_move_stacks_of_masks(data, s, case):
    make, values = case
    moves_like_its_masks(make(), data.draw(values), s, data.draw(masks_for(s.shape)))


@some(40)
@given(st.data(), samples(labelled=False), st.sampled_from(list(BY_NAME)), st.sampled_from(SPATIAL))
def test_stacks_of_transforms_move_stacks_of_masks(data, s, first, second):
    a, b = BY_NAME[first](), BY_NAME[second]()
    v, w = (data.draw(value_for(n, s.ndim)) for n in (first, second))
    masks = data.draw(masks_for(s.shape))
    for stack, value in ((a + b, (v, w)), (b.at(w) + a, v)): moves_like_its_masks(stack, value, s, masks)


@some(40)
@given(st.data(), samples(labelled=False, dims=(3,)), st.sampled_from([
    lambda: Rotation(axis=0), lambda: Rotation(axis=(1, -2, .5)), lambda: Translation(direction='through-plane'),
    lambda: Scale(direction='vertical'), lambda: Shear(direction='vertical', across='through-plane'),
    lambda: Resize(order=0), lambda: Flip(list(range(8)))]))
def test_other_directions_move_stacks_of_masks(data, s, make):
    t = make()
    moves_like_its_masks(t, data.draw(value_for(type(t).__name__, 3)), s, data.draw(masks_for(s.shape)))


@pytest.mark.parametrize('n', [1, 2, 3, 8, 10, 48, 51])
def test_crop_below_one_half_leaves_something(n):
    s = Crop()(Sample(np.ones((1, n, 60))), .49)
    assert s.valid is None or s.valid.any()


@pytest.mark.parametrize('mode', ['constant', 'minimum'])
def test_own_spatial_function_tells_what_came_from_outside(mode):
    "Padding with the minimum (torchio's and misas' own default) must not pass for a known background."
    from scipy.ndimage import shift
    def move(image, v): return np.stack([shift(c, (v, 0), order=1, mode='constant', cval=c.min() if mode == 'minimum' else 0.) for c in image])
    new = from_function(move, 'shift', [0, 5], 0, 'px', spatial=True)(disc((20, 16), radius=4.), 5)
    assert new.valid is not None and not new.valid[:5].any() and new.valid[5:].all()


@some(40)
@given(st.sampled_from(list(BY_NAME)), st.data())
def test_sweep_values(name, data):
    t = BY_NAME[name]()
    values = sweep_values(t, data.draw(st.lists(value_for(name, 2), min_size=1, max_size=6)))
    assert t.identity in values and values == sorted(set(values)) and all(isinstance(v, float) for v in values)
    assert t.identity in t.values and t.identity in sweep_values(t)


# --- metrics

@st.composite
def pairs(draw):
    k, shape = draw(st.integers(2, 20)), tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    top = draw(st.integers(1, k))
    p, t = (rng.integers(0, top, shape).astype(draw(st.sampled_from(['uint8', 'int64', 'float32']))) for _ in range(2))
    return p, t, k, draw(st.sampled_from([None, rng.random(shape) > .4, np.zeros(shape, bool)]))


def numbers(p, t, metric, k, valid=None, spacing=None): return score(p, t, metric, n_classes=k, valid=valid, spacing=spacing).score.to_numpy()


@some(60)
@given(pairs())
def test_overlap_metrics(case):
    p, t, k, valid = case
    s = {m: numbers(p, t, m, k, valid) for m in OVERLAP}
    for x in s.values(): assert len(x) == k - 1 and (np.isnan(x) | ((x >= 0) & (x <= 1))).all()
    assert np.allclose(s['dice'], 2*s['iou']/(1 + s['iou']), equal_nan=True)
    assert np.array_equal(s['dice'], numbers(t, p, 'dice', k, valid), equal_nan=True)
    assert np.array_equal(s['precision'], numbers(t, p, 'recall', k, valid), equal_nan=True)
    keep = np.ones(p.shape, bool) if valid is None else valid
    for c in range(1, k):
        a, b = p[keep] == c, t[keep] == c
        want = 2*(a & b).sum()/(a.sum() + b.sum()) if (a | b).any() else np.nan
        assert np.isclose(s['dice'][c - 1], want, equal_nan=True)
        if not (a | b).any(): assert all(np.isnan(s[m][c - 1]) for m in ('dice', 'iou', 'precision', 'recall'))


@some(40)
@given(pairs(), st.randoms(use_true_random=False))
def test_metrics_do_not_care_where_voxels_are(case, random):
    p, t, k, valid = case
    order = list(range(p.size))
    random.shuffle(order)
    mix = lambda a: None if a is None else a.ravel()[order].reshape(p.shape)
    for m in ('dice', 'specificity', lambda a, b: float((a & b).sum())):
        assert np.array_equal(numbers(p, t, m, k, valid), numbers(mix(p), mix(t), m, k, mix(valid)), equal_nan=True)


@some(40)
@given(pairs())
def test_a_perfect_prediction_scores_one_where_a_class_exists(case):
    _, t, k, valid = case
    here = t if valid is None else t[valid]
    for m in ('dice', 'iou', 'precision', 'recall'):
        x = numbers(t, t, m, k, valid)
        assert all(x[c - 1] == 1 if (here == c).any() else np.isnan(x[c - 1]) for c in range(1, k))
    assert confusion(t, t, k, valid).sum() == here.size


@some(30)
@given(pairs())
def test_own_metric_gives_the_same_as_the_built_in_one(case):
    p, t, k, valid = case
    def mine(a, b): return 2*(a & b).sum()/(a.sum() + b.sum()) if (a | b).any() else np.nan
    assert np.allclose(numbers(p, t, mine, k, valid), numbers(p, t, 'dice', k, valid), equal_nan=True)


@st.composite
def measured(draw):
    "Two label maps of few classes with a spacing."
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    share = draw(st.sampled_from([0, .1, .5, .9]))
    p, t = (rng.integers(1, 4, shape)*(rng.random(shape) < share) for _ in range(2))
    spacing = tuple(draw(st.lists(st.sampled_from([.25, 1., 1.7, 8.]), min_size=len(shape), max_size=len(shape))))
    return p, t, spacing, draw(st.sampled_from([None, rng.random(shape) > .4, np.zeros(shape, bool)]))


IN_MM = [m for m in METRICS if METRICS[m].unit]


@some(50)
@given(measured())
def test_metrics_in_mm(case):
    p, t, mm, valid = case
    get = lambda a, b, factor=1: {m: numbers(a, b, m, 4, valid, [factor*o for o in mm]) for m in IN_MM}
    s, back, twice, none = get(p, t), get(t, p), get(p, t, 2), get(t, t)
    keep = np.ones(p.shape, bool) if valid is None else valid
    for c in range(1, 4):
        a, b = (int((o[keep] == c).sum()) for o in (p, t))
        value = lambda of, m: of[m][c - 1]
        if not a and not b:
            assert all(np.isnan(value(s, m)) for m in IN_MM if 'volume' not in m)
            assert all(np.isnan(value(s, m)) or value(s, m) == 0 for m in IN_MM if 'volume' in m)  # of a healthy case
            continue
        for m in ('hausdorff95', 'assd'):
            assert value(s, m) >= 0 and np.isclose(value(s, m), value(back, m)) and np.isclose(value(twice, m), 2*value(s, m))
            assert np.isinf(value(s, m)) == (not a or not b) and (not b or value(none, m) == 0) and METRICS[m].bad(value(s, m)) == value(s, m)
        if a and b:  # no distance is longer than the diagonal of the image
            assert value(s, 'hausdorff95') <= np.linalg.norm((np.array(p.shape) - 1)*mm) + 1e-5
        voxel = np.prod(mm)/(1000 if p.ndim == 3 else 100)
        assert np.isclose(value(s, 'volume'), a*voxel) and np.isclose(value(s, 'volume_difference'), (a - b)*voxel)
        assert np.isclose(value(s, 'volume_difference'), -value(back, 'volume_difference')) and np.isclose(value(twice, 'volume'), 2**p.ndim*a*voxel)


@some(40)
@given(measured(), st.data())
def test_metrics_in_mm_move_with_the_axes(case, data):
    "Turning the array and its spacing together changes nothing, nor does room around it, nor what stands where nothing counts."
    p, t, mm, valid = case
    axes, pad = data.draw(st.permutations(range(p.ndim))), data.draw(st.integers(0, 2))
    move = lambda a: np.pad(a.transpose(axes), pad)
    want = [numbers(p, t, m, 4, valid, mm) for m in IN_MM]
    keep = None if valid is None else move(valid)
    got = [numbers(move(p), move(t), m, 4, keep, [mm[i] for i in axes]) for m in IN_MM]
    assert np.allclose(want, got, equal_nan=True, rtol=1e-5)
    if valid is not None: assert np.allclose(want, [numbers(np.where(valid, p, 3), np.where(valid, t, 1), m, 4, valid, mm) for m in IN_MM], equal_nan=True)


@some(60)
@given(st.integers(0, 10**6), st.sampled_from([(9, 13), (24, 20), (6, 9, 7), (12, 5, 10)]), st.sampled_from([.02, .2, .5, .9]),
       st.sampled_from([.02, .2, .9]))
def test_distances_of_sparse_and_of_crowded_outlines(seed, shape, share, other_share):
    "A tree and a transform give what every voxel against every other one gives, and what was kept is no worse."
    rng = np.random.default_rng(seed)
    spacing = tuple(rng.choice([.5, 1., 3.], len(shape)).tolist())
    masks = [(rng.random(shape) < one) | (np.arange(np.prod(shape)).reshape(shape) == k) for one, k in ((share, 3), (other_share, 17))]
    outlines = [Outline(mask, spacing) for mask in masks]
    apart = np.linalg.norm(((outlines[0].voxels[:, None] - outlines[1].voxels)*spacing), axis=-1)
    for _ in range(2):  # the second time from what was kept
        assert np.allclose(outlines[1].distances(outlines[0]), apart.min(1), rtol=1e-12, atol=0)
        assert np.allclose(outlines[0].distances(outlines[1]), apart.min(0), rtol=1e-12, atol=0)
    few = Outline(np.arange(np.prod(shape)).reshape(shape) == 5, spacing)  # asks the part of the other that is nearby
    alone = np.linalg.norm((outlines[1].voxels - few.voxels)*spacing, axis=1).min()
    assert np.isclose(Outline(masks[1], spacing).distances(few)[0], alone, rtol=1e-12, atol=0)
    part = Outline(masks[0][:len(masks[0])//2 + 1], spacing)  # asks within the box of what was kept
    if len(part): assert (outlines[1].distances(part) >= 0).all()


@pytest.mark.parametrize('space', ['transformed', 'original'])
@pytest.mark.parametrize('transform', [Noise(), Rotation(), Zoom(), Flip()], ids=lambda o: o.name)
def test_outlines_of_a_truth_are_kept_only_where_it_stays(transform, space):
    "Scores of a sweep are those of each value for itself."
    rng = np.random.default_rng(0)
    image = rng.random((1, 20, 24))
    labels = np.zeros((20, 24), int)
    labels[4:12, 5:15], labels[9:17, 10:20] = 1, 2
    s = Sample(image + labels, labels, spacing=(1.5, 1.), valid=rng.random((20, 24)) > .05, classes=('background', 'a', 'b'))
    model = as_model(lambda x: (x[:, 0] > 1.2).astype(int) + (x[:, 0] > 2.2), classes=s.classes)
    found = sensitivity(model, s, transform, metrics=('hausdorff95', 'assd'), space=space, progress=False)
    scoring = Scoring(('hausdorff95', 'assd'), space=space)
    each = [scoring.at(transform, s, moved, value, prediction, 3) for value, moved, prediction in zip(found.values, found.samples, found.predictions)]
    assert np.array_equal(np.ravel(each), found.frame.score.to_numpy(), equal_nan=True)


def test_two_functions_are_two_metrics():
    p = np.eye(4, dtype=int)
    with pytest.raises(ValueError, match='same name twice'): score(p, p, [lambda a, b: 1., lambda a, b: 2.], n_classes=2)
    def one(a, b): return 1.
    def two(a, b): return 2.
    assert score(p, p, [one, two], n_classes=2).score.tolist() == [1, 2]


# --- models

def grey(x): return np.concatenate([1 - x[:, :1], x[:, :1]], 1)  # a pixel-wise model: probability = grey value


@st.composite
def pictures(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    return Sample(np.random.default_rng(draw(st.integers(0, 999))).random((draw(st.integers(1, 2)), *shape)), spacing=(1.,)*len(shape))


@some(60)
@given(pictures(), st.data())
def test_predictions_lie_on_the_grid_of_the_sample(s, data):
    numbers_ = st.lists(st.integers(1, 13), min_size=s.ndim, max_size=s.ndim).map(tuple) | st.integers(1, 13)
    kw = data.draw(st.sampled_from([{}, dict(multiple_of=data.draw(numbers_)), dict(size=data.draw(numbers_))]))
    p = as_model(grey, activation='none', **kw).predict(s)
    assert p.shape == (1, 2, *s.shape) and np.allclose(p.sum(1), 1, atol=1e-5)
    if 'size' not in kw: assert np.allclose(p[0, 1], s.image[0])
    assert as_model(grey, activation='none', **kw).label(s).shape == (1, *s.shape)


@some(30)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 4), st.sampled_from(['size', 'multiple_of']))
def test_batches_change_nothing(seed, n, batch, option):
    x = np.random.default_rng(seed).random((n, 1, 7, 5)).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.BatchNorm2d(3))
    a, b = (as_model(net, batch_size=o, **{option: 8}) for o in (1, batch))
    assert np.allclose(a.predict(x), b.predict(x), atol=1e-6) and np.array_equal(a.label(x), b.label(x))


@pytest.mark.parametrize('size', [(20, 31), (64, 64), (40, 50)])
@pytest.mark.parametrize('kind', ['size', 'multiple_of'])
def test_an_object_stays_where_it_is(size, kind):
    s = disc((37, 45), radius=5., centre=(4, -7), background=0., object=1.)
    p = as_model(grey, activation='none', **{kind: size}).predict(s)[0, 1]
    at = lambda a: np.array([(i*a).sum()/a.sum() for i in np.indices(a.shape)])
    assert np.abs(at(p) - at(s.labels)).max() < .1


class Net(torch.nn.Module):
    "Logits of `channels`; every `step`th voxel, into memory that it uses again."
    def __init__(self, channels=3, step=1):
        super().__init__()
        self.conv, self.out = torch.nn.Conv2d(1, channels, 3, step, 1), None
    def forward(self, x):
        found = self.conv(x)
        if self.out is None or self.out.shape != found.shape: self.out = torch.empty_like(found)
        return self.out.copy_(found)


def cut(x): return x[..., 2:], lambda y, empty: torch.nn.functional.pad(y, (2, 0))


TWO_PARTS = {
    'softmax': lambda: as_model(Net(), activation='softmax'),
    'masks': lambda: as_model(Net(2), activation='sigmoid', classes=('a', 'b'), threshold=dict(a=.3)),
    'one channel': lambda: as_model(Net(1), activation='sigmoid', threshold=.6),
    'padded': lambda: as_model(Net(), activation='softmax', multiple_of=16),
    'resized': lambda: as_model(Net(), activation='softmax', size=(24, 32)),
    'preprocessed': lambda: as_model(Net(), activation='softmax', preprocess=lambda x: 2*x - 1),
    'cut': lambda: as_model(Net(), activation='softmax', preprocess=cut),
    'coarse': lambda: as_model(Net(step=2), activation='softmax', resize_output=True),
    'double': lambda: as_model(Net().double(), activation='softmax'),
    'kept': lambda: as_model(Net(), activation='softmax', classes=('background', 'a', 'b')).keep('b'),
    'kept masks': lambda: as_model(Net(2), activation='sigmoid', classes=('a', 'b')).keep('b'),
    'regions': lambda: as_model(Net(), activation='softmax').regions(both=(1, 2), one=1),
    'channel': lambda: as_model(Net(2), activation='sigmoid', classes=('a', 'b')).channel('a'),
    'windows': lambda: as_model(Net(), activation='softmax').sliding(12),
    'a function': lambda: as_model(grey, activation='none'),
    'label maps': lambda: as_model(lambda x: (x[:, 0] > .5).astype(int), classes=('background', 'a'))}


@pytest.mark.parametrize('kind', TWO_PARTS)
def test_an_answer_in_two_parts_is_that_of_one(kind):
    "Also where the network has gone on in between, and for several images."
    torch.manual_seed(0)
    one, other = (Sample(np.random.default_rng(k).random((1, 20, 26)), spacing=1.) for k in (0, 1))
    model = TWO_PARTS[kind]()
    wanted = [model.segment([s]) for s in (one, other)]
    rests = [model.begin([s]) for s in (one, other)]
    for found, want in zip([rest() for rest in rests[::-1]][::-1], wanted):
        assert found.dtype == want.dtype and np.array_equal(found, want)
    assert np.array_equal(model.begin([one, other])(), np.concatenate(wanted))


def test_an_answer_that_cannot_be_read_ends_the_sweep():
    "In one sentence, although it was read in another thread."
    class Odd(torch.nn.Module):
        def forward(self, x): return torch.cat([.5 - x, x - .5, x - 2][:2 + bool(x.max() > 2.2)], 1)
    s = disc((20, 24), background=0., object=1.)
    model = as_model(Odd(), activation='softmax', name='odd')
    with pytest.raises(ValueError, match='odd: it returned 3 classes where it has 2') as told:
        sensitivity(model, s, Brightness([.5, 1, 1.5, 2, 2.5, 3]), progress=False)
    assert 'futures' not in ''.join(map(str, told.traceback))
    assert sensitivity(model, s, Brightness([.5, 1, 2]), progress=False).values == [.5, 1, 2]


@some(30)
@given(st.integers(0, 10**6), st.lists(st.sampled_from('abc'), min_size=1, max_size=3, unique=True))
def test_kept_classes(seed, names):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 4, 5, 6)).astype(np.float32)*4)
    full = as_model(lambda x: logits + 0*torch.as_tensor(x)[:, :1], classes=('background', 'a', 'b', 'c'))
    kept, x = full.keep(*names), np.zeros((1, 1, 5, 6))
    p = kept.predict(x)
    assert kept.classes == ('background', *names) and np.allclose(p.sum(1), 1, atol=1e-5) and p.shape[1] == kept.n_classes
    assert np.allclose(kept.logits(torch.zeros(1, 1, 5, 6)).softmax(1).numpy(), p, atol=1e-5)
    for i, c in enumerate(names, 1): assert np.array_equal(kept.label(x) == i, full.label(x) == full.classes.index(c))


@some(40)
@given(st.integers(0, 10**6), st.lists(st.sets(st.integers(1, 3), min_size=1), min_size=1, max_size=3))
def test_regions_of_a_model_are_unions_of_its_labels(seed, values):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 4, 5, 6)).astype(np.float32)*4)
    full, x = as_model(lambda x: logits + 0*torch.as_tensor(x)[:, :1]), np.zeros((1, 1, 5, 6))
    regions = full.regions(**{f'r{i}': tuple(v) for i, v in enumerate(values)})
    labels, p = full.label(x), full.predict(x)
    assert np.array_equal(regions.masks(x), np.stack([np.isin(labels, tuple(v)) for v in values], 1))
    assert np.allclose(regions.predict(x), np.stack([p[:, tuple(v)].sum(1) for v in values], 1), atol=1e-6)
    assert np.allclose(regions.logits(torch.zeros(1, 1, 5, 6)).sigmoid().numpy(), regions.predict(x), atol=1e-5)
    for i, name in enumerate(regions.classes):
        one = regions.channel(name)
        assert np.array_equal(one.label(x), regions.masks(x)[:, i]) and one.classes == ('background', name)
        assert np.allclose(one.logits(torch.zeros(1, 1, 5, 6)).softmax(1).numpy(), one.predict(x), atol=1e-5)


@some(40)
@given(pictures(), st.lists(st.floats(.1, .9), min_size=3, max_size=3), st.data())
def test_classes_that_overlap_lie_on_the_grid_of_the_sample(s, levels, data):
    "Masks are where probabilities are above their thresholds, whatever the size that the network wants."
    numbers_ = st.integers(1, 13)
    kw = data.draw(st.sampled_from([{}, dict(multiple_of=data.draw(numbers_)), dict(size=data.draw(numbers_)), dict(batch_size=2)]))
    def three(x): return np.concatenate([x[:, :1] - t for t in (.2, .5, .8)], 1)*9
    model = as_model(three, activation='sigmoid', classes=('a', 'b', 'c'), threshold=levels, **kw)
    p, masks = model.predict(s), model.masks(s)
    assert p.shape == masks.shape == (1, 3, *s.shape) and masks.dtype == bool and model.overlapping
    assert np.array_equal(masks, p > np.float32(levels).reshape(3, *[1]*s.ndim)) and np.array_equal(model.segment(s), masks)
    names = data.draw(st.lists(st.sampled_from('abc'), min_size=1, unique=True))
    assert np.array_equal(model.keep(*names).masks(s), masks[:, ['abc'.index(n) for n in names]])
    assert np.array_equal(model.channel(names[0]).label(s), masks[:, 'abc'.index(names[0])])
    if 'size' not in kw: assert np.allclose(p, 1/(1 + np.exp(-three(s.image[None]))), atol=1e-5)


@pytest.mark.parametrize('value', [-30., 0., 30.])
def test_nested_masks_turn_with_the_image(value):
    "A pixel-wise network with logits of -5 and 5, and labels that overlap: Dice of each class is what turning twice the same image gives."
    r = np.hypot(*np.indices((64, 64)) - 31.5)
    nested = np.stack([r < radius for radius in (28, 20, 10)])
    s = Sample(nested.sum(0), nested, classes=('WT', 'TC', 'ET'), spacing=1.)
    def clipped(x): return np.concatenate([np.where(x > t, 5., -5.) for t in (.5, 1.5, 2.5)], 1)
    model = as_model(clipped, activation='sigmoid', classes=s.classes)
    frame = sensitivity(model, s, Rotation(), [value], progress=False).frame.query('value == @value')
    assert frame['class'].tolist() == list(s.classes) and (frame.score > .98).all()
    if value == 0: assert (frame.score == 1).all()
    with pytest.raises(ValueError, match='softmax.*sigmoid'): sensitivity(as_model(clipped), s, Rotation(), [value], progress=False)
    with pytest.raises(ValueError, match='regions'): sensitivity(as_model(clipped, activation='softmax'), s, Rotation(), [value], progress=False)


@pytest.mark.parametrize('make', [
    lambda m: m, lambda m: m.keep('c', 'a'), lambda m: m.channel('b'), lambda m: m.sliding(8), lambda m: m.sliding(8).channel('a')])
def test_models_of_masks_survive_being_sent(make):
    import cloudpickle
    def three(x): return np.concatenate([x, 1 - x, x*x], 1)
    model, x = make(as_model(three, activation='masks', classes=('a', 'b', 'c'), threshold=[.2, .3, .4])), np.random.default_rng(0).random((1, 1, 12, 10))
    early = cloudpickle.loads(cloudpickle.dumps(model))
    found = model.segment(x)
    late = cloudpickle.loads(cloudpickle.dumps(model))
    assert model.settings() == early.settings() == late.settings() and model.settings()['fingerprint']
    for same in (early, late): assert np.array_equal(same.segment(x), found) and same.classes == model.classes


def test_float_label_maps_are_label_maps_also_when_the_first_is_binary():
    a, b = np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), 2.)
    a[0, 0, 0] = 1
    unnamed, named = as_model(lambda x: x[:, 0].round()), as_model(lambda x: x[:, 0].round(), classes=('background', 'a', 'b'))
    for image in (a, b):
        with pytest.raises(ValueError, match='pass classes='): unnamed.label(image)
        assert (named.label(image) == image[0]).all()


# --- sensitivity

class Counting:
    "A threshold model that counts the images it is asked about."
    def __init__(self): self.n = 0
    def __call__(self, x):
        self.n += len(x)
        return np.stack([0*x[:, 0], x[:, 0] - .5], 1)


@some(30)
@given(st.sampled_from(list(BY_NAME)), st.data(), st.sampled_from(['transformed', 'original']), st.sampled_from(['labels', 'prediction']), st.integers(1, 3))
def test_a_sweep(name, data, space, reference, batch):
    s, t, f = disc((12, 9), radius=3., spacing=(1., 1.5)), BY_NAME[name](), Counting()
    values = data.draw(st.lists(value_for(name, 2), min_size=1, max_size=4))
    r = sensitivity(as_model(f, activation='softmax', batch_size=batch), s, t, values, metrics=('dice', 'iou', lambda a, b: float(a.sum())),
                    space=space, reference=reference, progress=False)
    assert f.n == len(r.values) == len({float(v) for v in values} | {t.identity}) and t.identity in r.values
    top = ['ceiling']*(name in SPATIAL or name == 'Resolution')
    assert list(r.frame) == ['transform', 'value', 'unit', 'class', 'metric', 'score', *top] and len(r.frame) == 3*len(r.values)
    assert r.frame.value.drop_duplicates().tolist() == r.values and set(r.frame['transform']) == {t.name}
    for i, v in enumerate(r.values):
        assert r.predictions[i].shape == r.labels[i].shape == r.images[i].shape[1:]
        assert np.array_equal(r.images[i], t(r.sample, v).image) and np.array_equal(r.predictions[i], (r.images[i][0] > .5))
    same_ = r.frame[(r.frame.value == t.identity) & (r.frame.metric == 'dice')].score.iloc[0]
    assert same_ == 1 and f.n == len(r.values)


@pytest.mark.parametrize('name', SPATIAL)
@pytest.mark.parametrize('dims', [2, 3])
def test_a_perfect_model_is_perfect(name, dims):
    @some(6)
    @given(st.data())
    def check(data):
        rng, t = np.random.default_rng(data.draw(st.integers(0, 99))), BY_NAME[name]()
        shape = (11, 8) if dims == 2 else (7, 6, 4)
        s = Sample(rng.random((1, *shape)), rng.integers(0, 3, shape), spacing=(1., 1.7, 4.)[:dims], classes=('background', 'a', 'b'))
        values = sweep_values(t, data.draw(st.lists(value_for(name, dims), min_size=1, max_size=3)))
        oracle = as_model(OracleModel(t.many(s, values)), classes=s.classes)
        scores = sensitivity(oracle, s, t, values, metrics=('dice', 'precision', 'recall'), progress=False).frame.score
        assert (scores.dropna() == 1).all()
    check()


@some(10)
@given(samples(labelled=True, dims=(3,)), st.integers(-3, 2), st.sampled_from(SPATIAL), st.data())
def test_slices_of_volumes(s, axis, name, data):
    "A slice of anything is a 2D sample whose arrays fit each other."
    flat = take_slice(BY_NAME[name]()(s, data.draw(value_for(name, 3))), axis=axis)
    assert flat.ndim == 2 and flat.labels.shape == flat.shape


def test_summary_of_a_sweep_of_one_value():
    r = sensitivity(ThresholdModel(.5), disc((12, 9), radius=3.), Rotation(), [0], progress=False)
    assert 'breaks already' not in str(r.summary())


def test_tolerance_says_nothing_about_undefined_scores():
    "A class that is nowhere holds nowhere; a range ends at the last value that has a score."
    s = disc((40, 40), radius=4., centre=(-14, 0))
    r = sensitivity(ThresholdModel(.5), s, Crop(), progress=False)
    row, defined = r.tolerance().iloc[0], r.frame[r.frame.score.notna()].value.max()
    assert defined < r.values[-1] and row.upper <= defined
    two = as_model(lambda x: np.stack([.5 - x[:, 0], x[:, 0] - .5, x[:, 0]*0 - 9], 1), classes=('background', 'disc', 'nowhere'), activation='softmax')
    nowhere = sensitivity(two, s.replace(classes=two.classes), Zoom(), progress=False).tolerance().iloc[1]
    assert np.isnan(nowhere.unchanged) and np.isnan(nowhere.lower) and np.isnan(nowhere.upper)


def test_a_result_can_be_kept():
    r = sensitivity(ThresholdModel(.5), disc((12, 9), radius=3.), Flip(), progress=False)
    again = pickle.loads(pickle.dumps(r))
    assert again.frame.equals(r.frame) and np.array_equal(again.predictions[1], r.predictions[1])


class Curves(torch.nn.Module):
    "A model whose Dice is a curve of the grey value it is shown: of a strip of 100 labelled pixels it finds a part, or nothing exists at all."
    def __init__(self, curve): super().__init__(); self.curve = curve

    def forward(self, x):
        out = torch.zeros(len(x), 2, *x.shape[2:])
        for o, image in zip(out, x):
            found = self.curve(float(image.mean()))
            o[1, 0, :0 if np.isnan(found) else int(round(100*found))] = 9
        return out


class Level(Transform):
    "The image takes the value as its grey; where the curve is undefined, the labels vanish, too."
    name = 'level'
    def __init__(self, values, curve): self.curve = curve; super().__init__(values)
    def apply(self, sample, value):
        return sample.replace(image=np.full_like(sample.image, value), labels=sample.labels*(not np.isnan(self.curve(value))))


@some(60)
@given(st.lists(st.floats(.5, 30), min_size=2, max_size=2), st.lists(st.sampled_from([np.inf, 3., 9., 14.]), min_size=2, max_size=2), st.integers(3, 40), st.integers(0, 40))
def test_tolerance_is_that_of_the_dense_sweep(limits, undefined, below, above):
    "Curves that fall once on each side and may be undefined further out: whatever the range, the bounds are those of the dense sweep."
    def curve(v):
        side = int(v > 0)
        return np.nan if abs(v) > undefined[side] else 1. if abs(v) <= limits[side] else .5
    s = Sample(np.zeros((1, 1, 100)), np.ones((1, 100)))
    level = Level([-below, 0, above], curve)
    found = tolerance(as_model(Curves(curve), activation='softmax'), s, level, resolution=.7)
    dense = sensitivity(as_model(Curves(curve), activation='softmax'), s, level, found.values, progress=False).tolerance()
    for k in ('lower', 'upper', 'breaks below', 'breaks above'): assert found.frame[k].item() == dense[k].item() or np.isnan([found.frame[k].item(), dense[k].item()]).all()
    assert found.evaluations == len(found.sweep.values)


@pytest.mark.parametrize('name', SPATIAL)
def test_a_perfect_model_in_the_original_space_when_one_channel_moves(name):
    two = disc((12, 10), radius=3.).replace(image=np.random.default_rng(0).random((2, 12, 10)))
    t = BY_NAME[name](channels=0)
    values = [v for v in t.values if name not in ('Resize', 'Dihedral') or v == t.identity]
    oracle = as_model(OracleModel([t(two, v) for v in values]), classes=('background', 'disc'))
    assert (sensitivity(oracle, two, t, values, space='original', progress=False).frame.score == 1).all()
