"A perfect model is not blamed for resampling; chance differs from case to case; zeros, sides and names of other libraries."
import copy
import pickle

import numpy as np
import pytest

from misas.data.phantom import disc
from misas.data.phantom_vessels import vessels
from misas.data.sample import Sample
from misas.models.adapt import as_model
from misas.sweep.ceiling import ceilings, perfect
from misas.sweep.pairs import sensitivity_grid
from misas.sweep.scoring import Scoring
from misas.sweep.sensitivity import Sensitivity, sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.artifact import BiasField, Motion, Undersampling
from misas.transforms.base import Transform
from misas.transforms.catalogue import CATALOGUE
from misas.transforms.chance import case_seed
from misas.transforms.intensity import Blur, Brightness, Noise, Rician
from misas.transforms.intensity_range import IntensityRange
from misas.transforms.sides import side_pairs
from misas.transforms.spatial import Rotation, Scale, Shear, Translation, Zoom
from misas.transforms.voxels import Crop, Dihedral, Flip, Resize, Resolution


def one_channel_a_class(labels, n): return np.stack([labels == k for k in range(n)]).astype(np.float32)


def oracle(n=2):
    "A model that reads from the image what the labels say: of one channel where it is above a half, else the largest."
    if n == 2: return as_model(lambda x: (x[:, 0] > .5).astype(int), classes=('background', 'class 1'), name='oracle')
    names = ('background', *(f'class {k}' for k in range(1, n)))
    return as_model(lambda x: x.argmax(1), classes=names, name='oracle')


def coded(labels, **kw):
    "A sample whose image shows its labels."
    n = int(labels.max()) + 1
    image = labels[None] if n == 2 else one_channel_a_class(labels, n)
    return Sample(image.astype(np.float32), labels, classes=('background', *(f'class {k}' for k in range(1, n))), **kw)


def wires(shape):
    "Lines from one pixel wide to three, in all directions."
    rows, cols = np.mgrid[:shape[0], :shape[1]]
    lines = [abs(rows - shape[0]*k/7 - 5*np.sin(cols/9 + k)) < .5 + .2*k for k in range(1, 7)]
    lines += [abs(cols - shape[1]*k/5 - rows/(4 + k)) < .5 + .3*k for k in range(1, 4)]
    return np.any(lines, 0).astype(int)


@pytest.mark.parametrize('shape', [(40, 40), (41, 41), (40, 41), (41, 40), (58, 37), (37, 58), (584, 565)])
def test_an_oracle_is_perfect_under_quarter_turns_and_mirrors(shape):
    s = coded(wires(shape))
    for t, values in ((Rotation(), (-270, -180, -90, 90, 180, 270, 360, 450)), (Flip(), None), (Dihedral(), None)):
        for space in ('transformed', 'original'):
            found = sensitivity(oracle(), s, t, values, space=space, progress=False)
            assert (found.frame.score == 1).all() and (found.frame.ceiling == 1).all(), (t, space)


@pytest.mark.parametrize('shape', [(6, 6, 6), (5, 5, 5), (5, 6, 7), (6, 5, 8), (8, 7, 5), (9, 4, 4)])
@pytest.mark.parametrize('n', [2, 4])
def test_and_in_volumes(shape, n):
    s = coded(np.random.default_rng(0).integers(0, n, shape), spacing=2.)
    turns = [Rotation(axis=axis) for axis in (0, 1, 2, (0, 0, 1), (0, -2, 0))]
    for t in turns:
        found = sensitivity(oracle(n), s, t, (-90, 90, 180, 270), progress=False)
        assert (found.frame.score.dropna() == 1).all(), t
    assert (sensitivity(oracle(n), s, Rotation(axis=(1, 1, 1)), (120, 240), progress=False).frame.score.dropna() == 1).all()
    assert (sensitivity(oracle(n), s, Flip(), range(8), progress=False).frame.score == 1).all()
    assert (sensitivity(oracle(n), s, Dihedral(), progress=False).frame.score == 1).all()


def test_quarter_turns_with_an_affine_and_rounded_spacings():
    labels = np.random.default_rng(0).integers(0, 2, (9, 12, 7))
    for affine in (np.diag([-1, 1, 1, 1.]), np.diag([1.5, -1.5, 3, 1.]), np.diag([.7, .7000001, 2, 1])):
        s = coded(labels, affine=affine)
        for angle in (90, 180, 270):
            m = Rotation()(s, angle)
            assert (m.image[0] == m.labels).all()


def test_other_angles_do_not_change_how_a_quarter_turn_is_read():
    s = coded(wires((40, 41)))
    together = Rotation().many(s, [33, 90, 45.5, 180])
    assert (together[1].image[0] == together[1].labels).all()
    for v, m in zip((33, 90), together): assert np.array_equal(m.image, Rotation()(s, v).image)


SPATIAL = [(Rotation(), (-77, -33, -5, 12, 45, 60)), (Zoom(), (.5, .7, .85, 1.3, 2)), (Scale(), (.5, .8, 1.5)),
           (Scale(direction='vertical'), (.6, 1.4)), (Shear(), (-30, 10, 30)), (Translation(), (.3, .5, 2.6, 7)),
           (Translation(direction='vertical'), (-.5, 4)), (Resize(), (.25, .5, .7, 1.2, 2)), (Crop(), (.1, .3)),
           (Resolution(), (1.5, 2, 3, 4)), (Rotation(order=3), (20,)), (Zoom(order=0), (.7,))]


@pytest.mark.parametrize('t, values', SPATIAL, ids=lambda o: getattr(o, 'name', ''))
@pytest.mark.parametrize('space', ['transformed', 'original'])
def test_an_oracle_scores_its_ceiling(t, values, space):
    for s in (coded(wires((97, 80)), spacing=(1., 1.3)), coded(wires((64, 64))*2 % 3 + (disc((64, 64), radius=9.).labels > 0))):
        found = sensitivity(oracle(len(s.classes)), s, t, values, metrics=('dice', 'recall', 'volume', 'hausdorff95')
                            if s.spacing_known else ('dice', 'precision'), space=space, progress=False).frame
        for metric, part in found.groupby('metric'):
            far = np.nan_to_num(abs(part.score - part.ceiling).to_numpy())
            assert (far <= (.02 if metric != 'hausdorff95' else .5)).all(), (t, metric)
        assert found[found.metric == 'dice'].ceiling.max() == 1


def test_an_oracle_scores_its_ceiling_in_a_volume_of_vessels():
    made = vessels((24, 26, 20))
    s = made.replace(image=made.labels[None].astype(np.float32), classes=('background', 'class 1'))
    for t, values in ((Rotation(), (30,)), (Rotation(axis=(1, 1, 0)), (-50,)), (Zoom(), (.6,)), (Resize(), (.5,)),
                      (Resolution(direction='all'), (2,))):
        found = sensitivity(oracle(), s, t, values, progress=False).frame
        assert np.allclose(found.score, found.ceiling, atol=.02) and found.ceiling.min() < 1


def turn_by_hand(image, value): return np.ascontiguousarray(np.rot90(image, int(value), (1, 2)))
def half_a_pixel(image, value): return (image + np.roll(image, int(value), 2))/2 if value else image


def test_the_ceiling_of_stacks_functions_masks_and_channels():
    s = coded(wires((40, 44)))
    plain = ceilings(Rotation(), s, [0., 30.], Scoring(), 2)
    noisy = Noise().at(.1) + Rotation() + Brightness().at(2.)
    assert np.array_equal(ceilings(noisy, s, [0., 30.], Scoring(), 2), plain) and plain[1] < 1 == plain[0]
    twice = Zoom().at(.7) + Rotation()
    found = sensitivity(oracle(), s, twice, [30.], progress=False).frame
    assert np.allclose(found.score, found.ceiling, atol=.02) and found.ceiling[0] < 1
    hand = Transform.from_function(turn_by_hand, 'turns', [0, 1, 2], 0, spatial=True)
    assert (ceilings(hand, s, [0., 1.], Scoring(), 2) == 1).all()
    assert ceilings(Rotation(channels=0), s, [0., 30.], Scoring(), 2) is None and ceilings(Noise(), s, [.1], Scoring(), 2) is None
    pair = Sample(np.stack([s.labels, 1 - s.labels]), np.stack([s.labels, 1 - s.labels]).astype(bool), classes=('a', 'b'), spacing=(1., 1.))
    both = as_model(lambda x: x, activation='masks', threshold=.5, classes=('a', 'b'))
    found = sensitivity(both, pair, Rotation(), [30.], progress=False).frame
    assert np.allclose(found.score, found.ceiling, atol=.02) and found.ceiling.min() < 1


def test_a_transform_of_ones_own_has_no_ceiling_unless_it_says_so():
    class Dim(Transform):
        name, values, moves_labels = 'dim', (0., 1.), True
        def apply(self, sample, value): return sample.replace(image=sample.image*.3)
    s = coded(wires((30, 30)))
    assert perfect(Dim(), s, 1.) is None and 'ceiling' not in sensitivity(oracle(), s, Dim(), progress=False).frame
    assert perfect(Dim() + Rotation(), s, (1., 30.)) is None


def test_a_perfect_model_tolerates_everything_and_a_broken_one_does_not():
    s = coded(wires((97, 80)))
    for t in (Zoom(), Resize(), Rotation(), Resolution()):
        fine = tolerance(oracle(), s, t)
        assert (fine.lower, fine.upper) == (fine.values[0], fine.values[-1]) and fine.frame['monotone'].all()
        assert sensitivity(oracle(), s, t, progress=False).tolerance()[['breaks below', 'breaks above']].isna().all(None)
    def left_half(x): return (x[:, 0] > .5)*(np.arange(x.shape[-1]) < x.shape[-1]//2 + 3)
    broken = as_model(lambda x: left_half(x).astype(int), classes=s.classes)
    left = coded(wires((97, 80))*(np.arange(80) < 40))
    assert 0 < tolerance(broken, left, Rotation()).upper < 90
    r = sensitivity(broken, left, Rotation(), progress=False)
    assert not np.isnan(r.tolerance()['breaks above'].item())               # it leaves the half that is seen


def test_a_drop_counts_below_the_ceiling_only():
    s = coded(wires((97, 80)))
    def half(x):
        found = x[:, 0] > .5
        return (found & (np.arange(x.shape[-2])[:, None] < x.shape[-2]//2) if x.shape[-1] < 79 else found).astype(int)
    r = sensitivity(as_model(half, classes=s.classes), s, Resize(), [.5, 1], progress=False)
    score, top = r.frame.score[0], r.frame.ceiling[0]
    assert score < top < 1
    assert np.isnan(r.tolerance(drop=top - score + .01)['breaks below'].item())
    assert r.tolerance(drop=top - score - .01)['breaks below'].item() == .5


def agreement(p, t): return float((p == t).mean())


def test_ceilings_cost_no_prediction_and_survive_a_journey(tmp_path):
    asked, s = [], coded(wires((40, 40)), spacing=1.)
    def counting(x):
        asked.append(len(x))
        return (x[:, 0] > .5).astype(int)
    model = as_model(counting, classes=s.classes)
    sensitivity(model, s, Zoom(), [1], progress=False)
    asked.clear()
    r = sensitivity(model, s, Zoom(), metrics=('dice', 'assd', agreement), progress=False)
    before = sum(asked)
    r.plot(), r.summary(), r.tolerance(), r.frame
    assert sum(asked) == before == len(r.values)
    again = Sensitivity.load(r.save(tmp_path/'zoom.npz'))
    assert again.frame.equals(r.frame) and pickle.loads(pickle.dumps(r)).frame.equals(r.frame)
    old = pickle.loads(pickle.dumps(r))
    del old.__dict__['_ceiling']                                        # kept before there were ceilings
    assert old.frame.equals(r.frame) and r.with_values([.6]).ceiling.shape == (len(r.values) + 1, 1, 3)
    assert list(r.frame) == ['transform', 'value', 'unit', 'class', 'metric', 'score', 'ceiling']


def test_two_transforms_are_judged_against_the_ceiling():
    s = coded(wires((64, 64)))
    grid = sensitivity_grid(oracle(), s, (Zoom(), Brightness()), ([.5, 1], [.2, 1]), progress=False)
    same = grid.frame[grid.frame['value 2'] == 1]
    assert same.score.min() < .95 and np.allclose(same.score, same.ceiling, atol=.02)
    assert grid.holds().tolist() == [[False, True], [False, True]]       # in the dark nothing is seen, which is its own fault
    assert sensitivity_grid(oracle(), s, (Noise(), Brightness()), ([.0], [1]), progress=False).ceiling is None


def test_healthy_cases_and_classes_that_vanish():
    empty = Sample(np.zeros((1, 30, 30)), np.zeros((30, 30), int), classes=('background', 'class 1'))
    found = sensitivity(oracle(), empty, Rotation(), [0, 30], progress=False)
    assert found.frame.ceiling.isna().all() and found.summary().text
    dots = np.zeros((48, 48), int)
    dots[::6, ::6] = 1
    gone = sensitivity(oracle(), coded(dots, spacing=1.), Resize(), [.25, 1], metrics=('hausdorff95', 'dice'), progress=False)
    assert 'not find' in gone.summary(drop=2.).text or gone.frame.ceiling.isna().any()
    assert gone.plot()


# --- chance

CASES = [Sample(np.random.default_rng(k).random((1, 24, 20)), np.ones((24, 20), int), name='same name') for k in range(4)]
RANDOM = [(Noise, .1), (Rician, .1), (BiasField, 1.), (Undersampling, .5), (Motion, 4.)]


def pattern(t, value, case): return t(case, value).image - case.image


@pytest.mark.parametrize('kind, value', RANDOM)
def test_cases_of_one_size_get_different_chance(kind, value):
    flat = [case.replace(image=np.where(np.indices(case.shape).sum(0) % 7 < 3, 1., .2) + 1e-4*case.image) for case in CASES]
    seen = [pattern(kind(), value, case) for case in flat]
    scale = np.abs(seen[0]).max()
    assert all(np.abs(a - b).max() > .05*scale for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize('kind, value', RANDOM)
def test_chance_is_stable(kind, value):
    t, again = kind(), kind()
    forwards = [t(case, value).image for case in CASES]
    backwards = [again(case.replace(name='other', labels=None), value).image for case in CASES[::-1]][::-1]
    sent = [pickle.loads(pickle.dumps(t))(pickle.loads(pickle.dumps(case)), value).image for case in CASES]
    assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(forwards, backwards, sent))
    assert not np.array_equal(kind(seed=1)(CASES[0], value).image, forwards[0])


def test_one_pattern_in_a_sweep_and_behind_other_transforms():
    case = CASES[0]
    assert np.allclose(2*pattern(Noise(), .1, case), pattern(Noise(), .2, case), atol=1e-6)
    behind = Brightness() + Noise().at(.1)
    one, other = behind(case, 1.), behind(case, 2.)
    assert np.allclose(2*(one.image - case.image), other.image - 2*case.image, atol=1e-5)
    assert np.array_equal(other.image, Noise()(Brightness()(case, 2.), .1).image)
    assert case_seed(0, Brightness()(case, 2.)) == case_seed(0, case) != case_seed(0, CASES[1])


def test_channels_have_noise_of_their_own_and_share_what_they_share():
    two = Sample(np.random.default_rng(0).random((2, 24, 20)))
    grey = two.replace(image=two.image[[0, 0]])
    noise = pattern(Noise(), .1, grey)
    assert not np.allclose(noise[0], noise[1])
    for kind, value in ((BiasField, 1.), (Motion, 4.)):
        assert np.array_equal(kind(channels=1)(two, value).image[1], kind()(two, value).image[1])


def test_repeats_differ_in_their_seeds_alone():
    for t in (Noise([0, .1], seed=4), Motion(), Noise().at(.1) + Brightness()):
        several = t.repeats(4)
        assert several[0] is t and len({one.name for one in several}) == len({one.to_json() for one in several}) == 4
        assert all(one.values == t.values for one in several)
    made = [sensitivity(oracle(), coded(wires((30, 30))), t, progress=False).frame.score for t in Noise([0, .4]).repeats(4)]
    assert len({score[1] for score in made}) == 4 and {score[0] for score in made} == {1}
    with pytest.raises(ValueError, match='no seed'): Rotation().repeats()


def test_a_study_and_a_sweep_have_the_same_chance(tmp_path):
    from misas.study.study import Study
    cases = [case.replace(name=f'case {k}', labels=(case.image[0] > .5).astype(int)) for k, case in enumerate(CASES)]
    model = as_model(lambda x: (x[:, 0] > .5).astype(int), classes=('background', 'class 1'), name='threshold')
    frames = []
    for k, order in enumerate((cases, cases[::-1])):
        study = Study(tmp_path/str(k), model, Noise([0, .2]))
        study.run(order)
        frames.append(study.frame.sort_values(['sample', 'value']).score.to_numpy())
    alone = [sensitivity(model, case, Noise([0, .2]), progress=False).frame.score for case in cases]
    assert np.array_equal(frames[0], frames[1]) and np.array_equal(frames[0], np.concatenate(alone))
    assert len(set(frames[0][1::2])) == len(cases)


# --- the zero background

@pytest.mark.parametrize('kind', [k for k in CATALOGUE if not k.moves_labels and k is not Crop] + [IntensityRange])
def test_zeros_are_kept(kind):
    image = np.random.default_rng(0).random((2, 24, 20)).astype(np.float32) + .1
    image[:, :8] = 0
    image[1, :, 12:] = 0
    s, free, kept = Sample(image), kind(), kind(keep_zeros=True)
    for value in [v for v in free.values if v != free.identity]:
        new, usual = kept(s, value).image, free(s, value).image
        changed = [0] if kind.__name__ == 'ChannelScale' else [0, 1]
        assert (new[changed][image[changed] == 0] == 0).all() and np.array_equal(new[image != 0], usual[image != 0])
    assert 'zeros kept' in kept.name and Transform.from_json(kept.to_json()).keep_zeros
    assert kept.settings() != free.settings() and kept(s, free.identity) is s
    stack = kept.at(free.values[-1] if free.values[-1] != free.identity else free.values[0]) + Brightness()
    assert (stack(s, 2.).image[:, :8] == 0).all()


def test_zeros_cannot_be_kept_by_what_moves_them():
    for kind in (Rotation, Zoom, Flip, Dihedral, Crop):
        with pytest.raises(TypeError, match='keep_zeros'): kind(keep_zeros=True)
    with pytest.raises(ValueError, match='moves the image'):
        Transform.from_function(turn_by_hand, 'turns', [0, 1], 0, spatial=True, keep_zeros=True)
    with pytest.raises(ValueError, match='True or False'): Noise(keep_zeros='yes')


# --- sides

NAMES = 'background', 'left kidney', 'right kidney', 'spleen'


def by_side(shape, axis, right_first=False):
    "Labels 1 and 2 on the two sides of an axis, 3 in the middle."
    place = np.indices(shape)[axis]/(shape[axis] - 1)
    low, high = (2, 1) if right_first else (1, 2)
    return np.select([place < .3, place > .7, abs(place - .5) < .1], [low, high, 3], 0)


@pytest.mark.parametrize('kind, turned', [(Flip, {1, 3}), (Dihedral, {1, 4})])
def test_names_change_sides_in_mirrors(kind, turned):
    s = Sample(np.zeros((20, 31)), by_side((20, 31), 1), classes=NAMES)
    t = kind(swap=side_pairs(NAMES))
    for value in kind().values:
        m, plain = t(s, value), kind()(s, value)
        assert t.swaps_sides(s, value) == (value in turned)
        assert (m.labels == (np.array([0, 2, 1, 3])[plain.labels] if value in turned else plain.labels)).all()
        assert (t.back(m.labels, s, value)[0] == s.labels).all()
        masks = t(s.regions(**{name.replace(' ', '_'): name for name in NAMES[1:]}).replace(classes=NAMES[1:]), value).labels
        assert all((mask == (m.labels == k)).all() for k, mask in enumerate(masks, 1))


@pytest.mark.parametrize('affine, axis', [(np.diag([-1, 1, 1, 1.]), 0), (np.diag([1, -1, 2, 1.]), 0), (np.eye(4)[[1, 0, 2, 3]], 1), (None, 0)])
def test_the_side_is_the_patients(affine, axis):
    s = Sample(np.zeros((1, 12, 12, 12)), by_side((12, 12, 12), axis), classes=NAMES, affine=affine)
    swapped = [v for v in range(8) if Flip(range(8)).swaps_sides(s, v)]
    assert swapped == [1, 3, 5, 7]
    half = Rotation([0, 180], swap={'left kidney': 'right kidney'})
    m = half(s, 180)
    assert (m.labels == s.labels).all() and (half.back(m.labels, s, 180)[0] == s.labels).all()
    assert not half.swaps_sides(s, 60) and half.swaps_sides(s, 120) and half.swaps_sides(s, -170)


def test_a_model_that_goes_by_place_is_judged_with_names_exchanged():
    s = Sample(by_side((20, 31), 1) > 0, by_side((20, 31), 1), classes=NAMES[:3] + ('spleen',))
    def net(x):
        place = np.arange(x.shape[-1])/(x.shape[-1] - 1)
        return np.where(x[:, 0] > .5, np.select([place < .3, place > .7], [1, 2], 3), 0)
    model = as_model(net, classes=s.classes)
    for space in ('transformed', 'original'):
        good = sensitivity(model, s, Flip([0, 1, 2, 3], swap=side_pairs(NAMES)), space=space, progress=False).frame
        assert (good.score == 1).all() and (good.ceiling == 1).all()
    assert sensitivity(model, s, Flip([0, 1]), progress=False).frame.score.min() == 0


def test_swap_is_never_guessed_and_its_errors_help():
    s = Sample(np.zeros((20, 31)), by_side((20, 31), 1), classes=NAMES)
    assert (Flip()(s, 1).labels[:, 0] == 2).all() and Flip(swap={'left kidney': 'right kidney'}).name == 'flip, sides exchanged'
    with pytest.raises(ValueError, match='left lung'): Flip(swap={'left lung': 'right lung'})(s, 1)
    with pytest.raises(ValueError, match='replace'): Flip(swap=side_pairs(NAMES))(s.replace(classes=None), 1)
    assert Flip(swap=side_pairs(NAMES))(s.replace(labels=None), 1).labels is None
    text = Flip(swap=side_pairs(NAMES)).to_json()
    assert Transform.from_json(text)(s, 1).labels[0, 0] == 1


# --- grids that are not at right angles

@pytest.mark.parametrize('seed', range(4))
def test_a_ball_stays_a_ball_on_sheared_grids(seed):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.diag(rng.uniform(.9, 1.4, 3)) @ (np.eye(3) + np.triu(rng.uniform(-.4, .4, (3, 3)), 1))
    index = np.stack(np.indices((36, 36, 36)), -1) - 17.5
    ball = ((index @ affine[:3, :3].T)**2).sum(-1) < 11**2
    s = Sample(ball, ball, affine=affine)
    for axis in (0, 1, 2, (1, 1, 0)):
        for angle in (37, 90):
            turned = Rotation(axis=axis)(s, angle).labels > 0
            assert 2*(turned & ball).sum()/(turned.sum() + ball.sum()) > .94 and abs(turned.sum()/ball.sum() - 1) < .02
    assert abs((Zoom()(s, .8).labels > 0).sum()/ball.sum()/.8**3 - 1) < .05
    for t in (Scale(), Scale(direction='vertical'), Scale(direction='through-plane')):
        egg = (index[t(s, .7).labels > 0] @ affine[:3, :3].T).std(0)
        assert abs((t(s, .7).labels > 0).sum()/ball.sum()/.7 - 1) < .05 and egg.max() < 5.5
    for t in (Shear(), Shear(across='through-plane')): assert abs((t(s, 20).labels > 0).sum()/ball.sum() - 1) < .03
    point = np.zeros((1, 36, 36, 36))
    point[0, 18, 18, 18] = 1
    spread = Blur()(Sample(point, affine=affine), 2.5).image[0].ravel()
    mm = (np.indices((36, 36, 36)).reshape(3, -1).T - 18) @ affine[:3, :3].T
    assert np.allclose(np.einsum('n,ni,nj', spread, mm, mm)/spread.sum(), 2.5**2*np.eye(3), atol=.1)


# --- classes of the same names in other libraries

@pytest.mark.parametrize('call', [
    lambda: Resize(224), lambda: Resize((256, 256)), lambda: Resize([256, 256]), lambda: Resize(size=224), lambda: Resize(128, 'squish'),
    lambda: Flip(p=.5), lambda: Zoom(max_zoom=1.2), lambda: Brightness(max_lighting=.2), lambda: Dihedral(draw=3), lambda: Flip(spatial_axis=0),
    lambda: Crop(cropping=4), lambda: Noise(mean=0, std=.1), lambda: Transform(print), lambda: Flip()(np.zeros((3, 4))), lambda: Brightness(.2)(1),
    lambda: Resize(.5)(image=np.zeros((4, 4))), lambda: Flip()(disc(), 1, split_idx=0)])
def test_calls_meant_for_other_libraries_say_so(call):
    with pytest.raises((TypeError, ValueError), match='import misas.all as ms') as found: call()
    assert len(str(found.value)) < 400 and '\n' not in str(found.value)


def test_in_a_datablock_of_fastai(tmp_path):
    vision = pytest.importorskip('fastai.vision.all')
    from PIL import Image
    for k in range(4): Image.fromarray(np.full((16, 16, 3), 40*k, np.uint8)).save(tmp_path/f'{k}.png')
    for make in (Flip, Dihedral, Brightness, lambda: Resize(8)):
        for where in ('item_tfms', 'batch_tfms'):
            block = vision.DataBlock((vision.ImageBlock, vision.CategoryBlock), get_items=vision.get_image_files,
                                     get_y=lambda file: file.stem, **{where: [make()]})
            with pytest.raises(TypeError, match='import misas.all as ms'): block.dataloaders(tmp_path, bs=2, num_workers=0).one_batch()
    with pytest.raises(TypeError, match='fastcore.transform'):
        class Grey(Transform):
            def encodes(self, x): return x


def test_a_transform_of_another_library_says_whose_it_is():
    monai = pytest.importorskip('monai.transforms')
    for given in (monai.Flip(), monai.Zoom):
        with pytest.raises(TypeError, match='ms'): sensitivity(oracle(), disc(), given)


def test_right_calls_are_left_alone():
    for kind in CATALOGUE:
        t = kind()
        assert copy.copy(t).settings() == pickle.loads(pickle.dumps(t)).settings() == t.settings()

    class Own(Noise):
        def __init__(self, values=None, strength=1, **kw):
            super().__init__(values, **kw)
            self.strength = strength
    assert Own([0, .1], 2, seed=3).seed == 3 and Own(strength=2).settings()['strength'] == 2
    import inspect
    assert list(inspect.signature(Noise).parameters) == ['values', 'seed', 'kw'] and list(inspect.signature(Own).parameters)[1] == 'strength'
