"Errors are advice that works: each sentence names what is wrong, and what it says to write is written here, and works."
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import misas.all as ms
from misas.all import (
    Blur,
    Dihedral,
    Flip,
    Gamma,
    Noise,
    Resize,
    Sample,
    Study,
    Target,
    Trust,
    as_model,
    as_sample,
    attribute,
    calibration,
    compare,
    diagnose,
    explore,
    find_instances,
    load,
    save,
    score,
    sensitivity,
    sensitivity_grid,
    to_html,
    tolerance,
)
from misas.data.phantom import ThresholdModel, disc
from misas.doors import is_told
from misas.study.healthy import false_lines, healthy_cases
from misas.study.presented import GreyValues, Orientation, code_of
from misas.study.suspects import blamed, dice, find_faults, masks_of, mended, settled, shifted

QUIET = dict(progress=False)
S, BALL = disc((32, 32)), disc((16, 16, 16), radius=5)
NAMES = 'background', 'disc'
BARE = S.replace(spacing=None, affine=None)


class Halves(nn.Module):
    "A network that needs even sizes."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up, self.last = nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.ConvTranspose2d(2, 2, 2, 2), nn.Conv2d(3, 2, 1)

    def forward(self, x): return self.last(torch.cat([self.up(self.down(x).relu()), x], 1))


def net(**kw): return as_model(ThresholdModel(.5), **{'classes': NAMES, 'name': 'net'} | kw)
def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def logits_of(x): return np.stack([0*x[:, 0], 10*x[:, 0] - 5], 1)
def some(n, **kw): return [disc((32, 32), radius=8 + i/4).replace(name=f'case {i}', **kw) for i in range(n)]


@pytest.fixture
def files(tmp_path):
    "A picture, a mask of 0 and 255, weights, a whole network."
    Image.fromarray((255*S.image[0]).astype(np.uint8)).save(tmp_path/'picture.png')
    Image.fromarray((255*S.labels).astype(np.uint8)).save(tmp_path/'mask.png')
    torch.save(conv().state_dict(), tmp_path/'weights.pth')
    torch.save(conv(), tmp_path/'whole.pt')
    return tmp_path


def with_weights(path):
    network = conv()
    network.load_state_dict(torch.load(path))
    return as_model(network).label(S)


# what was done; words of the sentence; what the sentence says to do
CURES = dict(
    no_labels=(lambda f: sensitivity(net(), S.replace(labels=None), Noise(), **QUIET), ["reference='prediction'"],
               lambda f: sensitivity(net(), S.replace(labels=None), Noise([0, .1]), reference='prediction', **QUIET)),
    no_file=(lambda f: sensitivity(f/'none.onnx', S, Noise(), **QUIET), ['none.onnx', 'no such file'], None),
    transform_by_name=(lambda f: sensitivity(net(), S, 'noise', **QUIET), ['transform', 'Rotation()'], lambda f: sensitivity(net(), S, Noise([0, .1]), **QUIET)),
    metric_in_capitals=(lambda f: sensitivity(net(), S, Noise(), metrics='Dice', **QUIET), ['metrics', 'dice'],
                        lambda f: sensitivity(net(), S, Noise([0, .1]), metrics='dice', **QUIET)),
    reference_misspelt=(lambda f: sensitivity(net(), S, Noise(), reference='label', **QUIET), ['reference', "'labels'"],
                        lambda f: sensitivity(net(), S, Noise([0, .1]), reference='labels', **QUIET)),
    odd_size=(lambda f: sensitivity(as_model(Halves(), name='unet'), disc((33, 31)), Noise(), **QUIET), ['unet', '(1, 33, 31)', 'multiple_of=2'],
              lambda f: sensitivity(as_model(Halves(), multiple_of=2), disc((33, 31)), Noise([0, .1]), **QUIET)),
    volume_for_pictures=(lambda f: sensitivity(as_model(conv()), BALL, Noise(), **QUIET), ['slicewise'],
                         lambda f: sensitivity(as_model(conv()).slicewise(), BALL, Noise([0, .1]), **QUIET)),
    wrong_channels=(lambda f: sensitivity(as_model(nn.Conv2d(3, 2, 1), name='three'), S, Noise(), **QUIET), ['three', '3 channels', '1'],
                    lambda f: as_model(nn.Conv2d(3, 2, 1), activation='softmax').label(S.replace(image=np.concatenate([S.image]*3)))),
    spacing_unknown=(lambda f: sensitivity(net(), BARE, Noise(), metrics='hausdorff95', **QUIET), ['hausdorff95', 'spacing=1.5'],
                     lambda f: sensitivity(net(), BARE.replace(spacing=1.5), Noise([0, .1]), metrics='hausdorff95', **QUIET)),
    labels_of_255=(lambda f: sensitivity(net(), load(f/'picture.png', f/'mask.png'), Noise(), **QUIET), ['255', 'label_map={255: 1}'],
                   lambda f: sensitivity(net(), load(f/'picture.png', f/'mask.png', label_map={255: 1}), Noise([0, .1]), **QUIET)),
    mask_of_255=(lambda f: load(f/'picture.png', f/'mask.png', classes=NAMES), ['255', 'label_map={255: 1}'],
                 lambda f: load(f/'picture.png', f/'mask.png', classes=NAMES, label_map={255: 1})),
    other_names=(lambda f: sensitivity(net(), S.replace(classes=('background', 'ball')), Noise(), **QUIET), ['ball', 'rename'],
                 lambda f: sensitivity(net(), S.replace(classes=NAMES), Noise([0, .1]), **QUIET)),
    fewer_names=(lambda f: sensitivity(as_model(nn.Conv2d(1, 3, 1), classes=(*NAMES, 'rim'), name='net'), S, Noise(), **QUIET), ["model.keep('disc')"],
                 lambda f: sensitivity(as_model(nn.Conv2d(1, 3, 1), classes=(*NAMES, 'rim')).keep('disc'), S, Noise([0, .1]), **QUIET)),
    tolerance_of_cases=(lambda f: tolerance(net(), S, Flip()), ['flip', 'use sensitivity'], lambda f: sensitivity(net(), S, Flip(), **QUIET)),
    neither_good_nor_bad=(lambda f: tolerance(net(), S, Noise(), metric='volume'), ['volume', 'choose volume_difference'],
                          lambda f: tolerance(net(), S, Noise([0, .1]), metric='volume_difference', drop=.1)),
    grid_of_one=(lambda f: sensitivity_grid(net(), S, Noise(), **QUIET), ['transforms', '(Rotation(), Noise())'],
                 lambda f: sensitivity_grid(net(), S, (Gamma([.8, 1]), Noise([0, .1])), **QUIET)),
    grid_of_three=(lambda f: sensitivity_grid(net(), S, (Noise(), Gamma(), Blur()), **QUIET), ['3', '.at(value)'],
                   lambda f: sensitivity_grid(net(), S, (Gamma([.8, 1]), Noise([0, .1]) + Blur().at(1)), **QUIET)),
    class_unknown=(lambda f: attribute(as_model(conv(), classes=NAMES), S, 'tumour'), ['tumour', 'disc (1)'],
                   lambda f: attribute(as_model(conv(), classes=NAMES), S, Target('disc', 'labels'))),
    no_gradient=(lambda f: attribute(as_model(logits_of, classes=NAMES, activation='softmax'), S, 'disc'), ['occlusion'],
                 lambda f: attribute(as_model(logits_of, classes=NAMES, activation='softmax'), S, 'disc', 'occlusion')),
    method_misspelt=(lambda f: attribute(as_model(conv(), classes=NAMES), S, 'disc', 'gradcam'), ['method', 'grad_cam'],
                     lambda f: attribute(as_model(conv(), classes=NAMES), S, Target('disc', 'labels'), 'grad_cam')),
    nothing_there=(lambda f: attribute(as_model(ThresholdModel(5.), classes=NAMES), S, 'disc'), ['disc', 'another class or region'],
                   lambda f: attribute(as_model(ThresholdModel(5.), classes=NAMES), S, Target('disc', 'labels'))),
    layer_misspelt=(lambda f: attribute(as_model(conv(), classes=NAMES), S, Target('disc', 'labels'), 'grad_cam', layer='layer4'), ['layer4', "'1'"],
                    lambda f: attribute(as_model(conv(), classes=NAMES), S, Target('disc', 'labels'), 'grad_cam', layer='1')),
    study_without_models=(lambda f: Study(f/'new'), ['models and transforms'], lambda f: Study(f/'new', net(), Noise())),
    models_of_one_name=(lambda f: Study(f/'two', [net(), net()], Noise()), ["'net'", 'dict'], lambda f: Study(f/'two', {'a': net(), 'b': net()}, Noise())),
    cases_of_one_name=(lambda f: Study(f/'s', net(), Noise([0, .1])).run([S, S], **QUIET), ["'disc'", 'different names'],
                       lambda f: Study(f/'s', net(), Noise([0, .1])).run([S, S.replace(name='other')], **QUIET)),
    no_processes=(lambda f: Study(f/'s', net(), Noise([0, .1])).run([S], n_jobs=-1, **QUIET), ['n_jobs', 'at least 1'],
                  lambda f: Study(f/'s', net(), Noise([0, .1])).run([S], n_jobs=1, **QUIET)),
    table_without_images=(lambda f: Study(f/'s', net(), Noise([0, .1])).run(pd.DataFrame({'a': [1]}), **QUIET), ['image'],
                          lambda f: Study(f/'s', net(), Noise([0, .1])).run(pd.DataFrame({'image': [f/'picture.png']}), **QUIET)),
    weights_alone=(lambda f: as_model(f/'weights.pth', trusted=True), ['weights', 'net.load_state_dict'], lambda f: with_weights(f/'weights.pth')),
    not_trusted=(lambda f: as_model(f/'whole.pt'), ['whole.pt', 'trusted=True'], lambda f: as_model(f/'whole.pt', trusted=True)),
    class_of_a_network=(lambda f: as_model(Halves), ['Halves()'], lambda f: as_model(Halves())),
    a_dict_of_weights=(lambda f: as_model(conv().state_dict()), ['weights alone', 'net.load_state_dict'], lambda f: with_weights(f/'weights.pth')),
    sample_first=(lambda f: sensitivity(S, net(), Noise(), **QUIET), ['Sample', 'the model comes first'], lambda f: sensitivity(net(), S, Noise([0, .1]), **QUIET)),
    names_as_text=(lambda f: as_model(conv(), classes='disc'), ['classes', 'background first'], lambda f: as_model(conv(), classes=['background', 'disc'])),
    no_batch=(lambda f: net().label(S.image), ['x', 'as_sample(x)'], lambda f: net().label(as_sample(S.image))),
    a_path_for_an_image=(lambda f: net().label(str(f/'picture.png')), ['x', 'load reads files'], lambda f: net().label(load(f/'picture.png'))),
    channels_last=(lambda f: as_sample(np.zeros((64, 48, 3))), ['np.moveaxis(image, -1, 0)'], lambda f: as_sample(np.moveaxis(np.zeros((64, 48, 3)), -1, 0))),
    probabilities=(lambda f: score(net().predict(S)[0, 1], S.labels, n_classes=2), ['prediction', 'probability map'],
                   lambda f: score(net().label(S)[0], S.labels, n_classes=2)),
    diagnose_metrics=(lambda f: diagnose(net(), some(3), metrics='dice', **QUIET), ['metrics', 'metric='], lambda f: short(metric='dice')),
    diagnose_transforms=(lambda f: diagnose(net(), some(3), transforms=Noise(), **QUIET), ['transforms', 'borne='], lambda f: short(borne=Noise([0, .1]))),
    diagnose_distance=(lambda f: diagnose(net(), some(3), metric='hausdorff95', **QUIET), ['enough', 'mm'],
                       lambda f: short(metric='hausdorff95', enough=2, drop=1)),
    diagnose_by_name=(lambda f: diagnose(net(), some(3), tried='gamma', **QUIET), ['transform', "'gamma'"], lambda f: short(tried=Gamma([1, 2]))),
    few_patients=(lambda f: Trust(net(), some(2)), ['9 patients', 'lower level'], None),
    calibration_without_truth=(lambda f: calibration(net(), [S.replace(labels=None)]), ['labels'], lambda f: calibration(net(), some(2))),
    nothing_to_explore=(lambda f: explore(None), ['NoneType'], lambda f: explore(S)),
    page_of_a_number=(lambda f: to_html(3, f/'a.html'), ['sensitivity(model, sample, transform)'],
                      lambda f: to_html(sensitivity(net(), S, Noise([0, .1]), **QUIET), f/'a.html')),
    instances_of_no_size=(lambda f: find_instances(S.labels, S.labels), ['spacing'], lambda f: find_instances(S.labels, S.labels, spacing=1.)),
    compare_unknown=(lambda f: compare(Study(f/'s', net(), Noise([0, .1])).run([S], **QUIET), models=('a', 'b')), ["'a'", 'net'], None),
    kind_of_file=(lambda f: save(S, f/'a.xyz'), ['a.xyz', '.png'], lambda f: save(S, f/'a.nii.gz')),
    fastai_resize=(lambda f: Resize(224), ['224', 'import misas.all as ms'], lambda f: ms.Resize()(S, 2.)),
    not_a_class=(lambda f: net().keep('liver'), ['liver', 'disc'], lambda f: net().keep('disc')),
    no_order=(lambda f: net().oriented('XYZ'), ["'RAS'", 'XYZ'], lambda f: net().oriented('RAS')),
)


def short(**kw): return diagnose(net(), some(3), **{'tried': Gamma([1, 2]), 'borne': Noise([0, .1])} | QUIET | kw)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', list(CURES))
def test_the_advice_works(name, files):
    "One sentence with the words that matter, in a traceback of a few lines; and what it says to write works."
    make, words, cure = CURES[name]
    with pytest.raises((ValueError, TypeError, OSError)) as e: make(files)
    text = str(e.value)
    assert '\n' not in text and len(text) < 700, text
    for word in words: assert word in text, f'{word!r} is not in: {text}'
    if is_told(e.value):
        inside = [step for step in traceback.extract_tb(e.value.__traceback__) if f'{Path("misas")}/' in step.filename.replace('\\', '/')]
        assert len(inside) <= 3, [step.name for step in inside]
    if cure is not None: cure(files)


def test_wrong_shapes_end_in_a_few_lines():
    "The network's own lines stay, those of torch and of misas do not."
    try: sensitivity(as_model(Halves(), name='unet'), disc((33, 31)), Noise(), **QUIET)
    except ValueError: text = traceback.format_exc()
    assert len(text.splitlines()) < 25 and 'in forward' in text and 'torch/nn' not in text, text


def test_a_fault_of_misas_keeps_its_frames(monkeypatch):
    "What nobody meant to raise can be found."
    def broken(*_, **__): return {}['no such key']
    monkeypatch.setattr('misas.sweep.sensitivity.as_transform', broken)
    with pytest.raises(KeyError) as e: sensitivity(net(), S, Noise(), **QUIET)
    assert traceback.extract_tb(e.value.__traceback__)[-1].name == 'broken'


def test_own_functions_keep_their_frames(tmp_path):
    "A load function that asks misas for something wrong is the last frame."
    def load_mine(item): return Sample(np.zeros((1, 4, 4)), np.zeros((9, 9)))
    with pytest.raises(ValueError) as e: diagnose(net(), ['a', 'b'], load=load_mine, **QUIET)
    assert [step.name for step in traceback.extract_tb(e.value.__traceback__)][-1] == 'load_mine'


# --- diagnose

def volumes(n, order=(2, 0, 1), affine=True):
    "Two bright bars, of which the one on the patient's left is labelled; stored with other axes."
    for i in range(n):
        rng = np.random.default_rng(i)
        image = rng.normal(0, .05, (28, 24, 20)).astype(np.float32)
        for low in (2, 19): image[low:low + 7, 6 + i % 3:17, 5:14] += 1
        labels = ((image > .5) & (np.arange(28) < 10)[:, None, None]).astype(int)
        grid = np.diag([2., 2, 3, 1])[:, [*order, 3]]
        turned = Sample(image.transpose(order), labels.transpose(order), affine=grid, name=f'case {i}')
        yield turned if affine else turned.replace(affine=None, spacing=turned.spacing)


def left_bar(x):
    seen = (x > .5) & (np.arange(x.shape[2]) < x.shape[2]//3)[None, None, :, None, None]
    return np.concatenate([~seen, seen], 1).astype(np.float32)


@pytest.mark.parametrize('order, affine', [((2, 0, 1), True), ((1, 2, 0), False), ((2, 1, 0), True)])
def test_an_orientation_is_found_and_its_line_works(order, affine):
    model, samples = as_model(left_bar, name='net'), list(volumes(8, order, affine))
    found = diagnose(model, samples, tried=None, borne=Noise([0, .02]), **QUIET)
    assert found.verdict.startswith(('fits after a change: orientation', 'fits after a change: flip')), found
    assert 'model.oriented(' in found.code and found.predictions < 8*31 + 120
    space = dict(model=model, samples=samples, np=np)
    exec(found.code, space)
    assert min(score(space['model'].label(s)[0], s.labels, n_classes=2).score[0] for s in space['samples']) > .95


@pytest.mark.parametrize('n', [1, 4])
def test_few_cases_are_told_how_many_more(n):
    "And with as many more the change is shown to help."
    model = as_model(ThresholdModel(500.), classes=NAMES, name='net')
    found = diagnose(model, some(n), borne=Noise([0, .02]), **QUIET)
    assert found.verdict.startswith('may fit with a change: grey values times 1000; ') and 'does not fit' not in found.text
    more = diagnose(model, some(n + found.more), borne=Noise([0, .02]), **QUIET)
    assert more.verdict == 'fits after a change: grey values times 1000' and found.code == more.code


def test_files_have_a_line_of_their_own(tmp_path):
    "Of a folder, samples must be loaded before they can be changed."
    folders = [tmp_path/'images', tmp_path/'masks']
    for folder in folders: folder.mkdir()
    for i, s in enumerate(some(8)):
        save(s.replace(image=s.image/1000, labels=None), folders[0]/f'{i}.nii.gz')
        save(Sample(s.labels.astype(np.float32)), folders[1]/f'{i}.nii.gz')
    model, samples = as_model(ThresholdModel(.5), name='net'), tmp_path
    found = diagnose(model, samples, borne=Noise([0, .02]), **QUIET)
    space = dict(model=model, samples=samples)
    exec(found.code, space)
    assert len(space['samples']) == 8 and diagnose(model, space['samples'], tried=Gamma([1, 2]), borne=Noise([0, .02]), **QUIET).verdict == 'fits'


def patterned(seed, size=64):
    "A picture of texture with a bright disc somewhere."
    rng = np.random.default_rng(seed)
    s = disc((size, size), radius=rng.uniform(6, 10), centre=tuple(rng.uniform(-12, 12, 2)))
    return s.replace(image=s.image + rng.normal(scale=.1, size=s.image.shape), name=f'case {seed}')


@pytest.mark.parametrize('seed', range(4))
def test_labels_are_suspected_where_they_are_wrong_only(seed):
    "A prediction that is good but for its rim; labels moved by 12 to 20 pixels, and not moved."
    rng, samples = np.random.default_rng(seed), [patterned(20*seed + i) for i in range(12)]
    for s in samples:
        prediction = shifted(s.labels, tuple(rng.integers(-1, 2, 2)))
        assert find_faults(s, prediction, 1) == []
        angle, far = rng.uniform(0, 2*np.pi), rng.uniform(12, 20)
        move = tuple(int(round(x)) for x in (far*np.cos(angle), far*np.sin(angle)))
        wrong = s.replace(labels=shifted(s.labels, move))
        if wrong.labels.sum() < .98*s.labels.sum(): continue  # partly out of the picture
        fault = next(one for one in find_faults(wrong, prediction, 1) if one.kind == 'shift')
        assert blamed(fault) == 'labels' and np.abs(np.add(fault.how, move)).max() <= 2
        assert dice(masks_of(mended(wrong.labels, fault), 1), masks_of(s.labels, 1)) > .75


def test_hopeless_models_say_nothing_about_labels():
    "Chance, a disc in the middle, another case's answer, all, nothing."
    samples, rng = [patterned(i) for i in range(12)], np.random.default_rng(0)
    kinds = dict(chance=lambda i: rng.integers(0, 2, (64, 64)), middle=lambda i: disc((64, 64), radius=8).labels,
                 other=lambda i: samples[i - 1].labels, everything=lambda i: np.ones((64, 64), int), nothing=lambda i: np.zeros((64, 64), int))
    for name, answer in kinds.items():
        faults = settled({s.name: find_faults(s, answer(i), 1) for i, s in enumerate(samples)})
        assert 'labels' not in [blamed(fault) for fault in faults.values()], name


def test_masks_that_may_overlap_are_suspected_too():
    rows, columns = np.indices((40, 44)) - np.array([19.5, 21.5])[:, None, None]
    masks = np.stack([np.hypot(rows - 2, columns - 3) < 5, np.hypot(rows, columns) < 11])
    image = .2 + .3*masks.sum(0)
    s = Sample(image, masks, classes=('core', 'whole'), spacing=1.)
    assert find_faults(s, masks, 2) == []
    [fault] = [one for one in find_faults(s.replace(labels=masks[::-1]), masks, 2) if one.kind == 'numbers']
    assert (mended(masks[::-1], fault) == masks).all()
    away = find_faults(s.replace(labels=shifted(masks, (10, -8))), masks, 2)[0]
    assert away.kind == 'shift' and away.how == (-10, 8) and blamed(away) == 'labels'


def test_healthy_cases_of_every_strain():
    "Found with more of it, with less of it, in any order; classes that are there are not counted."
    healthy = [Sample(np.full((1, 16, 16), .45), np.zeros((16, 16), int), spacing=1., name=f'healthy {i}') for i in range(6)]
    model = as_model(lambda x: np.concatenate([x < .5, x >= .5], 1).astype(np.float32), classes=('background', 'tumour'), name='net')
    found = diagnose(model, healthy, tried=Gamma([1, 1.4]), borne=[Gamma([.5, 1, 2]), ms.Brightness([1, 1.2])], **QUIET)
    assert found.verdict == 'finds nothing in cases that have nothing'
    assert 'tumour is found in 6 of 6 healthy cases under brightness, from 1.2 on' in found.text
    for metric, more in (('specificity', {}), ('false_positive_volume', dict(enough=1, drop=1))):
        other = diagnose(model, healthy, metric=metric, tried=Gamma([1, 1.4]), borne=ms.Brightness([1, 1.2]), **more, **QUIET)
        assert '6 of 6 healthy cases under brightness' in other.text, other


def test_lost_cases_are_counted():
    "Of a network that takes one size only."
    class Fixed(ThresholdModel):
        def forward(self, x):
            assert x.shape[2:] == (32, 32)
            return super().forward(x)
    cases = [*some(6), *(disc((30, 30)).replace(name=f'small {i}') for i in range(2))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = diagnose(as_model(Fixed(.5), classes=NAMES, name='fixed'), cases, tried=Gamma([1, 2]), borne=Noise([0, .1]), **QUIET)
    assert 'fixed on 6 of 8 cases: fits' in found.text and '2 cases failed' in found.text


@pytest.mark.parametrize('value', list(GreyValues.words)[1:])
def test_lines_of_code_do_what_was_tried(value):
    rng = np.random.default_rng(0)
    for image in (rng.normal(size=(1, 8, 8)), np.where(rng.random((2, 8, 8)) < .5, 0, 300*rng.random((2, 8, 8))), 2000*rng.random((1, 8, 8)) - 1000):
        s = Sample(image)
        space = dict(samples=[s], np=np)
        exec(code_of(GreyValues(), value, s), space)
        assert np.allclose(space['samples'][0].image, GreyValues()(s, value).image, atol=1e-4*max(1, abs(GreyValues()(s, value).image).max()))


def test_flat_images_stay_finite():
    for value in list(GreyValues.words)[1:]: assert np.isfinite(GreyValues()(Sample(np.zeros((1, 5, 5))), value).image).all()


def test_orientations_bring_masks_back():
    volume = next(volumes(1))
    masks = np.stack([volume.labels > 0, volume.image[0] > .5])
    s = volume.replace(labels=masks)
    for value in list(Orientation.words)[1::5]:
        turned = Orientation()(s, value)
        assert (Orientation().back(turned.labels, s, value)[0] == masks).all()


@pytest.mark.skipif(not ms.datasets.data_folder('sunnybrook_lv_2d', 'test') or not ms.datasets.data_folder('net_cardiac_myopari', '.'), reason='needs MISAS_DATA')
def test_contours_of_the_sunnybrook_hearts():
    "The published network on hearts that are labelled well, and with contours moved by 12 to 20 pixels."
    cases, network, rng = ms.datasets.sunnybrook(split='test', mid=True), ms.zoo.cardiac_net().keep('LV'), np.random.default_rng(1)
    samples = [cases[i] for i in range(0, len(cases), max(1, len(cases)//5))]
    told = asked = 0
    for s in samples:
        prediction = network.segment([s])[0]
        assert find_faults(s, prediction, 1) == []
        if dice(masks_of(prediction, 1), masks_of(s.labels, 1)) < .8: continue
        angle, far = rng.uniform(0, 2*np.pi), rng.uniform(12, 20)
        wrong = s.replace(labels=shifted(s.labels, tuple(int(round(x)) for x in (far*np.cos(angle), far*np.sin(angle)))))
        faults = find_faults(wrong, prediction, 1)
        told += bool(faults) and blamed(faults[0]) == 'labels'
        asked += 1
    assert told == asked >= 3


def test_dihedral_of_the_images_is_told_as_code():
    "A model that looks at the upper half only."
    def upper(x): return ((x[:, 0] > .5) & (np.arange(x.shape[2]) < x.shape[2]//2)[:, None]).astype(int)
    samples = [disc((32, 32), radius=5, centre=(9, i - 4)).replace(name=f'case {i}') for i in range(8)]
    model = as_model(upper, classes=NAMES, activation='labels', name='upper')
    found = diagnose(model, samples, borne=Noise([0, .02]), **QUIET)
    space = dict(samples=samples, Dihedral=Dihedral)
    exec(found.code, space)
    assert found.verdict.startswith('fits after a change: dihedral') and score(model.label(space['samples'][0])[0], space['samples'][0].labels, n_classes=2).score[0] > .95


def test_no_lines_about_healthy_cases_where_there_are_none():
    found = short()
    assert found.false_lines == [] and found.verdict == 'probably fits' and healthy_cases and false_lines
