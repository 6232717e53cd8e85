"Dice without a truth for networks and images of all kinds: volumes, windows, classes that overlap or are rare, input that does not fit."
import random
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from misas.data.cases import Cases
from misas.data.phantom import disc
from misas.data.sample import Sample
from misas.inside.activations import Listener
from misas.inside.question import Refused
from misas.models.adapt import as_model
from misas.models.hold import trace
from misas.transforms.intensity import Gamma, Noise
from misas.transforms.spatial import Rotation, Translation
from misas.transforms.voxels import Crop, Flip
from misas.trust import expected
from misas.trust.check import check
from misas.trust.lessons import learn_from
from misas.trust.signs import agreements, ask_mildly
from misas.trust.temperature import scaled
from misas.trust.trust import Trust

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
CHANGES = [(Rotation(), 12.), (Noise(), .01)]
NAMES = 'background', 'shell', 'bright core'


# ---- networks without training, and images ----

def detector(ndim=2, bounds=(.5,), softmax=False):
    "Logits 20 (mean of 3 x 3 voxels - bound); as softmax each class takes over at its bound."
    conv, k = CONVS[ndim], len(bounds)
    net = nn.Sequential(conv(1, 2*k, 3, padding=1), nn.ReLU(), conv(2*k, k + softmax, 1))
    with torch.no_grad():
        net[0].weight[::2], net[0].weight[1::2] = 1/3**ndim, -1/3**ndim
        net[0].bias[::2], net[0].bias[1::2] = -torch.tensor(bounds), torch.tensor(bounds)
        weights = torch.tensor([20., -20.]).repeat(k)*torch.eye(k).repeat_interleave(2, 1)
        if softmax: weights = torch.cat([torch.zeros(1, 2*k), weights.cumsum(0)])
        net[2].weight[:], net[2].bias[:] = weights.reshape(net[2].weight.shape), 0
    return net


def finder(ndim=2): return as_model(detector(ndim), activation='sigmoid', classes=('background', 'disc'), name='finder')
def exclusive(**kw): return as_model(detector(2, (.3, .75), True), activation='softmax', classes=NAMES, **kw)
def overlapping(): return as_model(detector(2, (.3, .75)), activation='sigmoid', classes=('whole', 'bright core'))


def noisy(rng, sample, name): return sample.replace(image=sample.image + rng.normal(0, .08, sample.image.shape), name=name)


def discs(count, seed=0, shape=(24, 28)):
    "A disc or ball each, of different brightness."
    rng, small = np.random.default_rng(seed), min(shape)
    where = [dict(radius=rng.uniform(.2, .35)*small, centre=rng.uniform(-.1, .1, len(shape))*small, object=rng.uniform(.48, .9))
             for _ in range(count)]
    return [noisy(rng, disc(shape, **one), f'disc {seed} {k}') for k, one in enumerate(where)]


def shells(count, seed=0, with_core=lambda k: True):
    "A disc with a bright core, which some do not have."
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        whole, core = disc((24, 28), radius=rng.uniform(6, 9)), disc((24, 28), radius=rng.uniform(2.5, 4))
        labels = whole.labels + core.labels*with_core(k)
        image = np.choose(labels, [.1, rng.uniform(.25, .5), .95])[None]
        found.append(noisy(rng, Sample(image, labels, classes=NAMES, spacing=(1., 1.)), f'shell {seed} {k}'))
    return found


def masks(samples): return [one.regions(**{'whole': ('shell', 'bright core'), 'bright core': ('bright core',)}) for one in samples]


def table(samples, **columns):
    "Cases with these columns."
    def load(row): return samples[row.number]
    return Cases(pd.DataFrame({'number': range(len(samples)), **columns}), load)


def learned(model, cases, **kw): return Trust(model, cases, **{**dict(changes=CHANGES, copies=1, progress=False), **kw})
def dice_by_hand(a, b): return 2*(a & b).sum()/(a.sum() + b.sum())


@pytest.fixture(scope='module', autouse=True)
def few_trees():
    "Most of the time goes into trees; what is tested here does not depend on their number."
    count = next(key for key in ('n_estimators', 'max_iter') if key in expected.TREES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(expected.TREES, count, 5)
        yield


@pytest.fixture(scope='module')
def trust(): return learned(finder(), discs(14))


@pytest.fixture(scope='module')
def new(): return discs(1, seed=9)[0]


@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close('all')


# ---- all kinds of networks ----

def test_volumes(tmp_path):
    net, balls = detector(3), discs(10, shape=(20, 18, 16))
    model = as_model(net, activation='sigmoid', classes=('background', 'ball'))
    cases = [one.replace(classes=('background', 'ball')) for one in balls]
    before = trace(net)
    trust = Trust(model, cases, progress=False)
    verdict = trust.of(discs(1, seed=9, shape=(20, 18, 16))[0])
    assert trace(net) == before and trust.passes == 5 and len(trust.lessons.images) == 30
    assert verdict.known and verdict.frame['class'].tolist() == ['ball'] and verdict.prediction.shape == (20, 18, 16)
    row = verdict.frame.iloc[0]
    assert 0 <= row.low <= row.expected <= row.high <= 1 and row.voxels == (verdict.prediction == 1).sum() > 0
    again = Trust.load(trust.save(tmp_path/'ball.npz'), model, cases[0])
    assert again.of(verdict.sample).frame.equals(verdict.frame) and again.of(verdict.sample).reasons.equals(verdict.reasons)
    for axis in range(3): assert verdict.plot(axis=axis).axes and verdict.plot(index=3, axis=axis).axes


@pytest.mark.parametrize('ndim', [2, 3])
def test_a_unet_of_monai(ndim):
    nets = pytest.importorskip('monai.networks.nets')
    torch.manual_seed(0)
    net = nets.UNet(ndim, 1, 2, (4, 8, 16), (2, 2), num_res_units=1).train()  # its norms and modes are left alone
    model, shape = as_model(net, activation='softmax', classes=('background', 'disc')), (24, 28, 16)[:ndim]
    before = trace(net)
    trust = learned(model, discs(9, shape=shape))
    one = discs(1, seed=9, shape=shape)[0]
    assert len(trust.ears.layers) == 3 and trust.of(one).frame.equals(trust.of(one).frame) and trace(net) == before
    assert trust.of(one).frame.voxels[0] == (model.segment(one)[0] == 1).sum()


def test_a_learner_of_fastai(tmp_path):
    vision = pytest.importorskip('fastai.vision.all')
    torchvision = pytest.importorskip('torchvision')
    from PIL import Image
    for k in range(2):
        for ending in ('', '_mask'): Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path/f'{k}{ending}.png')
    block = vision.DataBlock(
        blocks=(vision.ImageBlock(vision.PILImageBW), vision.MaskBlock(['background', 'disc'])),
        get_items=lambda _: [tmp_path/f'{k}.png' for k in range(2)], splitter=vision.IndexSplitter([0]),
        get_y=lambda f: f.with_name(f'{f.stem}_mask.png'))
    torch.manual_seed(0)
    body = vision.create_body(torchvision.models.resnet18(weights=None), n_in=1, pretrained=False, cut=-4)
    learner = vision.Learner(block.dataloaders(None, bs=1, num_workers=0), vision.DynamicUnet(body, 2, (32, 32)))
    grey = [one.replace(image=100*one.image) for one in discs(10, shape=(32, 32))]
    before = trace(learner.model)
    trust = learned(learner, grey[:9], copies=0, changes=[(Gamma(), 1.3)])
    verdict = trust.of(grey[9])
    assert len(trust.ears.layers) > 3 and trust.of(grey[9]).frame.equals(verdict.frame) and trace(learner.model) == before
    assert verdict.frame['class'].tolist() == ['disc'] and verdict.sample is grey[9]


def test_training_mode_and_dropout_are_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(.5), nn.Conv2d(4, 1, 1)).train()
    before, cases = trace(net), discs(10)
    one, two = (learned(as_model(net, activation='sigmoid', classes=('background', 'disc')), cases) for _ in range(2))
    assert one.signs.equals(two.signs) and one.of(cases[0]).frame.equals(one.of(cases[0]).frame) and trace(net) == before


@pytest.mark.parametrize('wrap', ['slicewise', 'sliding', 'oriented', 'scaled'])
def test_wrapped_models(wrap, tmp_path):
    if wrap == 'slicewise': model, cases = finder().slicewise(), discs(10, shape=(20, 22, 4))
    elif wrap == 'sliding': model, cases = finder().sliding(16), discs(10)
    elif wrap == 'scaled': model, cases = scaled(finder(), 2.), discs(10)
    else:
        cases = [one.replace(affine=np.diag([-1., 1, 1, 1])) for one in discs(10, shape=(12, 14, 10))]
        model = finder(3).oriented('RAS')
    before = trace(model.network)
    trust = learned(model, cases[:9])
    verdict = trust.of(cases[9])
    assert trace(model.network) == before and verdict.prediction.shape == cases[9].shape
    assert (verdict.prediction == model.segment(cases[9])[0]).all()
    again = Trust.load(trust.save(tmp_path/'a.npz'), model, cases[0])
    assert again.of(cases[9]).frame.equals(verdict.frame)
    other = finder(3 if wrap == 'oriented' else 2)
    if wrap in ('sliding', 'scaled'):
        with pytest.raises(ValueError, match='another model'): Trust.load(tmp_path/'a.npz', other, cases[0])


# ---- classes ----

def test_several_classes():
    model, cases = exclusive(), shells(12)
    trust = learned(model, cases)
    verdict = trust.of(shells(1, seed=9)[0].replace(labels=None))
    assert verdict.frame['class'].tolist() == ['shell', 'bright core'] and verdict.frame.notna().all(axis=None)
    assert verdict.frame.voxels.tolist() == [(verdict.prediction == k).sum() for k in (1, 2)]
    known = trust.signs[trust.lessons.originals[trust.signs.image]]
    for k, name in enumerate(NAMES[1:], 1):
        by_hand = [dice_by_hand(model.segment(one)[0] == k, one.labels == k) for one in cases]
        assert np.allclose(known[known['class'] == name].dice, by_hand)


def test_one_of_several_classes():
    model, cases, reduced = exclusive(), shells(9), []
    full = learned(model, cases, copies=0).signs
    for k, name in ((1, 'shell'), (2, 'bright core')):
        own = [one.replace(labels=(one.labels == k).astype(int), classes=('background', name)) for one in cases]
        for part in (model.keep(name), model.channel(name)):
            trust = learned(part, own, copies=0)
            assert trust.of(cases[0]).frame['class'].tolist() == [name]
            reduced.append(trust.signs.dice.to_numpy() == full[full['class'] == name].dice.to_numpy())
    assert np.concatenate(reduced).mean() > .95  # a class alone may win a voxel that others would share


def test_classes_that_overlap(tmp_path):
    net = detector(2, (.3, .75))
    model, cases = as_model(net, activation='sigmoid', classes=('whole', 'bright core')), masks(shells(12))
    before = trace(net)
    trust = learned(model, cases)
    bare = shells(1, seed=9)[0]
    of_map, of_masks, of_none = (trust.of(one) for one in (bare, masks([bare])[0], bare.replace(labels=None)))
    assert of_map.frame.equals(of_masks.frame) and of_map.frame.equals(of_none.frame) and of_map.prediction.shape == (2, 24, 28)
    assert of_map.frame.voxels.tolist() == of_map.prediction.sum((1, 2)).tolist() and trace(net) == before
    first = trust.signs[trust.signs.image == 0].dice
    assert np.allclose(first, [dice_by_hand(*pair) for pair in zip(model.masks(cases[0])[0], cases[0].labels)])
    assert Trust.load(trust.save(tmp_path/'a.npz'), model, bare).of(bare).frame.equals(of_map.frame)
    assert of_map.plot().axes and len(check(trust, masks(shells(4, 9)), progress=False).frame) == 8


def test_regions_of_a_model():
    model = exclusive().regions(**{'whole': ('shell', 'bright core'), 'bright core': 'bright core'})
    found = learned(model, masks(shells(9))).of(shells(1, seed=9)[0])
    assert found.frame['class'].tolist() == ['whole', 'bright core'] and found.frame.voxels[0] > found.frame.voxels[1]


def test_a_class_that_half_of_the_cases_lack():
    cases = shells(20, with_core=lambda k: k % 2)
    trust = learned(exclusive(), cases)
    own = trust.signs[trust.lessons.originals[trust.signs.image]]
    dice = own[own['class'] == 'bright core'].dice.to_numpy()
    assert np.isnan(dice[::2]).all() and not np.isnan(dice[1::2]).any()  # in neither prediction nor truth
    assert np.isfinite(trust.guesses['bright core'].guessed).all()
    verdict = trust.of(cases[0])
    assert 'bright core: nothing is predicted' in str(verdict) and verdict.frame.voxels[1] == 0


@pytest.mark.parametrize('those', [(), (0,), range(8)], ids=len)
def test_a_class_of_too_few_patients_is_named(those):
    with pytest.raises(ValueError) as e: learned(exclusive(), shells(12, with_core=lambda k: k in those), copies=0)
    assert_sentence(e, f'bright core.*at least 9 patients.*there are {len(those)}')


# ---- what counts ----

def test_what_is_not_valid_is_not_scored():
    half = np.arange(28)[None] < np.full((24, 1), 14)
    cases = [one.replace(valid=half) for one in discs(10)]
    wrong = [one.replace(labels=np.where(half, one.labels, 1 - one.labels)) for one in cases]
    trust, same = (learned(finder(), some) for some in (cases, wrong))
    assert same.signs.equals(trust.signs) and same.of(cases[0]).frame.equals(trust.of(cases[0]).frame)
    answer = finder().segment(cases[0])[0] == 1
    assert trust.signs.dice[0] == pytest.approx(dice_by_hand(answer & half, (cases[0].labels == 1) & half))


def test_copies_whose_object_has_left_do_not_count():
    away = Translation((0, 60))  # voxels
    trust = learned(finder(), [one.replace(image=np.maximum(one.image, 0)) for one in discs(10)], corruptions=[away])
    copies = ~trust.lessons.originals[trust.signs.image]
    assert trust.signs.dice[copies].isna().all() and trust.signs.dice[~copies].notna().all()
    assert len(trust.guesses['disc'].guessed) == 10 and len(trust.of(discs(1, 9)[0]).past.corrupted['disc']) == 0


@pytest.mark.parametrize('change', [(Flip(), 1), (Crop(), .05), (Translation(), 3)], ids=lambda o: o[0].name)
def test_other_mild_changes(change, tmp_path):
    cases = discs(10)
    trust = learned(finder(), cases, changes=[change], copies=0)
    assert trust.signs.agreement.max() > .9  # the answers come back to where the image is
    again = Trust.load(trust.save(tmp_path/'a.npz'), finder(), cases[0])
    assert again.of(cases[0]).frame.equals(trust.of(cases[0]).frame)


def test_signs_of_a_known_image_are_those_learned_from():
    trust = learned(finder(), discs(10), changes=[(Gamma(), 1.3), *CHANGES], copies=0)
    assert trust.tolerated.tolist() == [False, True, True] and 'not asked for agreement: gamma' in str(trust)
    seen = trust.of(discs(10)[0]).reasons.set_index('sign').value
    row = trust.signs.iloc[0]
    for sign in ('agreement', 'least', 'soft_dice', 'certainty'): assert seen[sign] == row[sign]


def test_what_a_change_moves_out_of_view_is_no_disagreement():
    left = np.where(np.arange(28) < 14, .9, .1)*np.ones((1, 24, 1))
    asked = ask_mildly(Listener(finder(), left), Sample(left), [(Crop(), .2)])
    (answer, known), = asked.answers
    assert not known[:, 0].any() and not answer[:, 0].any() and asked.prediction[5, 0] == 1
    assert agreements(asked)[0, 0] > .9 > dice_by_hand(answer == 1, asked.prediction == 1)


def test_labels_of_an_image_are_not_looked_at(trust, new):
    told = [trust.of(one) for one in (new, new.replace(labels=None), new.replace(labels=1 - new.labels),
                                      new.regions(disc=('disc',)), new.replace(labels=7 + new.labels, classes=None))]
    for one, two in pairwise(told):
        assert one.frame.equals(two.frame) and one.reasons.equals(two.reasons) and str(one) == str(two)
        assert (one.strangeness, one.p) == (two.strangeness, two.p)
    picture = trust.of(new.image)  # an array, without a name
    assert picture.frame.equals(told[0].frame) and str(picture).startswith('image: ')


def test_check_says_what_trust_says(trust):
    others = discs(5, seed=9)
    found = check(trust, others, progress=False)
    for one, row in zip(others, found.frame.itertuples()):
        verdict = trust.of(one.replace(labels=None))
        assert (row.sample, row.known, row.voxels) == (one.name, verdict.known, verdict.frame.voxels[0])
        assert np.allclose(verdict.frame[['expected', 'low', 'high']], [row.expected, row.low, row.high], equal_nan=True)
        assert row.dice == pytest.approx(dice_by_hand(verdict.prediction == 1, one.labels == 1))
        assert row.strangeness == pytest.approx(verdict.strangeness)
    seen = learn_from(trust.ears, others, trust.changes, [], 0, progress=False)
    assert check(trust, seen).frame.equals(found.frame)


# ---- patients ----

def test_who_is_a_patient():
    cases, who = discs(6), [0, 1, 2]*2
    ears = Listener(finder(), cases[0], 'levels')
    def patients(cases, patients='patient'):
        return learn_from(ears, cases, CHANGES, [], 0, patients, progress=False).patients.tolist()
    assert patients(cases) == [one.name for one in cases]  # each its own
    assert patients(table(cases, patient=who)) == [str(one) for one in who]
    assert patients(table(cases, patient=[f'p {one}' for one in who])) == [f'p {one}' for one in who]
    assert patients(table(cases, subject=who), patients='subject') == [str(one) for one in who]
    assert patients(table(cases, subject=who)) == [f'case {k}' for k in range(6)]


@pytest.mark.parametrize('ids', [int, str, np.int64, 'p {}'.format], ids=['int', 'str', 'int64', 'text'])
def test_patients_learned_from_are_not_checked(ids):
    cases = discs(10)
    trust = learned(finder(), table(cases, patient=[ids(k) for k in range(10)]), copies=0)
    with pytest.raises(ValueError) as e: check(trust, table(discs(3, 9), patient=[ids(k) for k in (12, 11, 9)]), progress=False)
    assert_sentence(e, 'cases: Trust has learned from patient .*9')
    assert check(trust, table(discs(3, 9), patient=[ids(k) for k in (12, 11, 10)]), progress=False).patients == 3


def test_patients_are_kept_apart():
    "A patient's images are measured by clouds that they are no part of."
    cases = discs(10)
    twice = [one.replace(name=f'{one.name} {k}') for one in cases for k in range(3)]
    trust = learned(finder(), table(twice, patient=np.repeat(range(10), 3)), copies=0)
    assert (trust.around.near > -6).all()  # a distance of 0 would be exp(-20)
    leaking = learned(finder(), twice, copies=0)
    assert (leaking.around.near < trust.around.near).mean() > .8


# ---- nothing changes, and the same number twice ----

def chance(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_nothing_is_changed(trust, new):
    net, cases = detector(), discs(10)
    model, images = as_model(net, activation='sigmoid', classes=('background', 'disc')), [one.image.copy() for one in cases]
    before, luck = trace(net), chance()
    one = learned(model, cases)
    first = one.of(new)
    assert trace(net) == before and chance() == luck and all((a.image == b).all() for a, b in zip(cases, images))
    two, other = learned(model, cases), learned(model, cases, seed=1)
    assert one.signs.equals(two.signs) and one.limit == two.limit and two.of(new).frame.equals(first.frame)
    assert one.lessons.images.equals(two.lessons.images) and not one.lessons.images.equals(other.lessons.images)
    old, young = (some.signs[some.lessons.originals[some.signs.image]].reset_index(drop=True) for some in (one, other))
    assert old.drop(columns=['far', 'near']).equals(young.drop(columns=['far', 'near']))  # only the copies are others
    frame = one.signs.copy()
    for _ in range(3): one.of(new).plot()
    assert one.signs.equals(frame) and one.of(new).frame.equals(first.frame)


def test_no_copies():
    none, empty = (learned(finder(), discs(10), **kw) for kw in (dict(copies=0), dict(corruptions=[])))
    assert none.signs.equals(empty.signs) and len(none.lessons.images) == 10 and none.of(discs(1, 9)[0]).plot().axes


# ---- images that are not as the known ones ----

def test_images_of_another_size(trust):
    for shape in ((48, 56), (24, 29), (40, 17)):
        one = discs(1, seed=9, shape=shape)[0]
        verdict = trust.of(one)
        assert verdict.prediction.shape == shape and verdict.frame.voxels[0] == (verdict.prediction == 1).sum()
    mixed = learned(finder(), discs(6) + discs(6, 3, shape=(32, 20)))
    assert mixed.of(discs(6)[0]).known and mixed.of(discs(6, 3, shape=(32, 20))[0]).known


@pytest.mark.parametrize('what', ['nothing', 'grey', 'bright', 'hundredfold', 'negative'])
def test_far_away(trust, new, what):
    image = dict(nothing=0*new.image, grey=0*new.image + .5, bright=0*new.image + 3, hundredfold=100*new.image, negative=-5*new.image)
    verdict = trust.of(new.replace(image=image[what], name='far'))
    assert not verdict.known and verdict.strangeness > trust.limit and verdict.p == 1/15
    assert verdict.frame[['expected', 'low', 'high']].isna().all(axis=None)
    assert str(verdict).startswith('far: not known. ') and 'expected Dice' not in str(verdict) and 'interval' not in str(verdict)
    assert any(text.get_text() == 'not known' for text in verdict.plot().axes[1].texts)
    row = check(trust, [new.replace(image=image[what], name='far')], progress=False)
    assert not row.frame.known[0] and np.isnan(row.frame.expected[0]) and row.told.empty


def test_one_far_patient_widens_what_is_known(new):
    "The limit is that of the strangest known patient."
    far = new.replace(image=3*new.image, name='bright')
    plain, wider = learned(finder(), discs(12), copies=0), learned(finder(), [*discs(12), far], copies=0)
    assert not plain.of(far.replace(image=2.5*new.image)).known and wider.of(far.replace(image=2.5*new.image)).known


@pytest.mark.parametrize('ndim', [2, 3])
def test_where_nothing_is_ever_found(ndim):
    net, cases = detector(ndim), discs(10, shape=(12, 14, 10)[:ndim])
    with torch.no_grad(): net[2].bias -= 1000
    verdict = learned(as_model(net, activation='sigmoid', classes=('background', 'disc')), cases).of(cases[0])
    assert 'disc: nothing is predicted' in str(verdict) and verdict.plot().axes
    assert verdict.frame[['expected', 'low', 'high']].fillna(0).eq(0).all(axis=None) and verdict.frame.voxels[0] == 0  # it always missed


@pytest.mark.parametrize('name', ['left ventricle', 'a$b_c^d', 'class', 'nan'])
def test_class_names(name, tmp_path):
    cases = [one.replace(classes=('background', name)) for one in discs(11)]
    model = as_model(detector(), activation='sigmoid', classes=('background', name))
    trust = learned(model, cases[:9], copies=0)
    verdict = trust.of(cases[10])
    assert name in str(verdict) and verdict.frame['class'].tolist() == [name] and verdict.frame.expected.notna().all()
    verdict.plot().canvas.draw()
    assert Trust.load(trust.save(tmp_path/'a.npz'), model, cases[0]).of(cases[10]).frame.equals(verdict.frame)
    assert check(trust, cases[9:], progress=False).plot()


# ---- files ----

def test_saved_and_read_again(trust, new, tmp_path):
    model = trust.model
    again = Trust.load(trust.save(tmp_path/'trust.npz'), model, discs(1, shape=(40, 44))[0])  # found on another size
    far = new.replace(image=100*new.image)
    for one in (new, far):
        a, b = trust.of(one), again.of(one)
        assert a.frame.equals(b.frame) and str(a) == str(b) and a.strangeness == b.strangeness and a.reasons.equals(b.reasons)
    assert str(again) == str(trust) and again.limit == trust.limit and again.signs.equals(trust.signs)
    assert (tmp_path/'trust.npz').read_bytes() == (tmp_path/trust.save(tmp_path/'two.npz')).read_bytes()
    with pytest.raises(ValueError, match='learned from patient'): check(again, discs(2), progress=False)


@pytest.mark.parametrize('how', ['weights', 'threshold', 'classes', 'preprocess', 'multiple_of', 'kept'])
def test_a_file_about_another_model(trust, new, how, tmp_path):
    path, net, kw = trust.save(tmp_path/'trust.npz'), detector(), dict(activation='sigmoid', classes=('background', 'disc'))
    if how == 'weights':
        with torch.no_grad(): net[0].bias += 1e-3
    if how == 'kept': other = exclusive().keep('shell')
    else:
        options = dict(weights={}, threshold=dict(threshold=.3), classes=dict(classes=('background', 'ball')),
                       preprocess=dict(preprocess=torch.abs), multiple_of=dict(multiple_of=8))
        other = as_model(net, **{**kw, **options[how]})
    with pytest.raises(ValueError) as e: Trust.load(path, other, new)
    assert_sentence(e, 'trust.npz: was learned about another model')


def test_files_that_are_none(trust, new, tmp_path):
    (tmp_path/'empty.npz').write_bytes(b'')
    (tmp_path/'text.npz').write_text('no archive')
    np.save(tmp_path/'array.npy', np.zeros(3))
    np.savez(tmp_path/'other.npz', x=1)
    for name in ('empty.npz', 'text.npz', 'array.npy', 'other.npz'):
        with pytest.raises(ValueError) as e: Trust.load(tmp_path/name, trust.model, new)
        assert_sentence(e, f'{name}: is no file that Trust wrote')
    for name in ('trust', 'trust.json', 'trust.npy'):
        with pytest.raises(ValueError) as e: trust.save(tmp_path/name)
        assert_sentence(e, 'ending in .npz')


# ---- bad input ----

def assert_sentence(error, match):
    "One line that says what it is about."
    import re
    text = str(error.value)
    assert '\n' not in text and re.search(match, text), text


class Dead(nn.Module):
    "A layer that gives nothing, beside one that works."
    def __init__(self):
        super().__init__()
        self.net, self.dead = detector(), nn.Conv2d(1, 3, 3, padding=1)
        nn.init.zeros_(self.dead.weight)

    def forward(self, x): return self.net(x) + 0*self.dead(x).sum(1, keepdim=True)


def without_labels(cases): return [one.replace(labels=None) for one in cases]


@pytest.mark.parametrize('options, match', [
    (dict(copies=-1), 'copies must be a whole number'), (dict(copies=1.5), 'copies'), (dict(copies=True), 'copies'),
    (dict(level=1.5), 'level must be a number between 0 and 1'), (dict(level=0), 'level'), (dict(level=90), 'level'), (dict(level=np.nan), 'level'),
    (dict(layers='nowhere'), "no layer 'nowhere'"), (dict(layers=['1', 'nowhere']), "no layer 'nowhere'"), (dict(layers=[]), 'layers'),
    (dict(changes=[Rotation()]), 'changes must be pairs'), (dict(changes=[]), 'changes: name at least one'),
    (dict(changes=[(Rotation(), 0)]), 'changes: rotation .* changes nothing'), (dict(changes=[(Rotation(), 'far')]), 'outside the domain of rotation'),
    (dict(changes=[(5, 5)]), 'Transform'), (dict(corruptions=[5]), 'Transform'), (dict(corruptions=[Noise((0,))]), 'corruptions: noise has no values'),
    (dict(patients='subject'), "patients: case 'disc 0 0' has no column 'subject'")], ids=str)
def test_bad_options(options, match):
    with pytest.raises((ValueError, TypeError)) as e: learned(finder(), discs(9), **options)
    assert_sentence(e, match)


@pytest.mark.parametrize('cases, match', [
    (lambda: [], 'empty'), (lambda: without_labels(discs(9)), "cases: 'disc 0 0' has no labels"),
    (lambda: [*discs(9), *without_labels(discs(1, 10))], "cases: 'disc 10 0' has no labels"), (lambda: discs(6), 'at least 9 patients.* there are 6'),
    (lambda: table(discs(12), patient=list('abcdabcdabcd')), 'at least 9 patients.* there are 4'),
    (lambda: [one.regions(disc=('disc',)) for one in discs(9)], 'classes that overlap'), (lambda: shells(9), 'value 2|classes'),
    (lambda: [one.replace(image=0*one.image + .1) for one in discs(9)], 'the same for all known images'), (lambda: 5, 'samples must be'),
    (lambda: [*discs(9), *discs(1, 20, shape=(9, 9, 9))], 'slicewise'), (lambda: [discs(1)[0]]*2, "two cases called 'disc 0 0'")])
def test_bad_cases(cases, match):
    with pytest.raises((ValueError, TypeError)) as e: learned(finder(), cases())
    assert_sentence(e, match)


def test_label_maps_are_wanted_as_masks_where_classes_overlap():
    with pytest.raises(ValueError) as e: learned(overlapping(), shells(9))
    assert_sentence(e, 'may overlap.*regions')


def test_models_that_trust_cannot_hear():
    def function(x): return (x[:, :1] - .5)*20
    with pytest.raises(Refused) as e: learned(as_model(function, activation='sigmoid'), discs(9))
    assert_sentence(e, 'is a function, which has no layers')
    with pytest.raises(TypeError) as e: learned(None, discs(9))
    assert_sentence(e, 'obj must be')
    for layers in ('dead', ['net.1', 'dead']):
        with pytest.raises(ValueError) as e: learned(as_model(Dead(), activation='sigmoid'), discs(9), layers=layers)
        assert_sentence(e, "layer 'dead': the features are the same for all known images")


def test_a_network_that_gives_label_maps():
    "Its answers have no probabilities: those of 0 and 1 promise a Dice of 1, and the other signs are left."
    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = detector()
        def forward(self, x): return (self.net(x)[:, 0] > 0).long()
    trust = learned(as_model(Labels(), activation='labels', classes=('background', 'disc')), discs(10))
    plain = learned(finder(), discs(10))
    found = trust.signs[trust.signs['size'] > 0]
    assert (found.soft_dice == 1).all() and trust.signs.dice.equals(plain.signs.dice) and trust.signs.agreement.equals(plain.signs.agreement)


def test_images_that_do_not_fit(trust, new):
    bad = new.image.copy()
    bad[0, 3, 3] = np.nan
    for image, match in ((bad, 'NaN'), (discs(1, shape=(8, 9, 10))[0], 'slicewise'), (np.concatenate([new.image]*2), 'channels'),
                         (None, 'no image'), ({'image': new.image}, 'no image')):
        with pytest.raises((ValueError, TypeError)) as e: trust.of(image)
        assert_sentence(e, match)


def test_a_list_of_layers(trust, new):
    twice = learned(finder(), discs(14), layers=('1', '1'))
    assert twice.of(new).strangeness == trust.of(new).strangeness and twice.ears.layers == trust.ears.layers == ['1']
    both = learned(finder(), discs(14), layers=['0', '1'])
    assert both.ears.layers == ['0', '1'] and both.of(new).frame.voxels.equals(trust.of(new).frame.voxels)
