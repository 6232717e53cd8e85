"What an output means does not depend on which image comes first, on workers or batches; models of every make are asked; advice works."
import importlib
import itertools
import pickle
import re
import tempfile
import warnings

import numpy as np
import pytest
import torch
from torch import nn

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
                                          (nn.Identity(), 2, 'softmax'), (nn.Hardsigmoid(), 1, 'none')],
                         ids=['logit', 'sigmoid', 'softmax', 'log-softmax', 'logits', 'hard sigmoid'])
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


# --- networks of every make

class Blocks(nn.Module):
    "A network with a list of modules."
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)])
    def forward(self, x):
        for block in self.blocks: x = block(x).tanh()
        return x


class Forwards(nn.Module):
    "Asks the network inside for whatever it does not have."
    def __init__(self, net):
        super().__init__()
        self.net = net
    def __getattr__(self, name):
        try: return super().__getattr__(name)
        except AttributeError: return getattr(super().__getattr__('net'), name)
    def forward(self, x): return self.net(x)


class Anything(Forwards):
    "Has every attribute: None."
    def __getattr__(self, name): return super().__getattr__(name) if name == 'net' or name.startswith('_') else None


class Slots(Blocks):
    __slots__ = ('extra',)


EXAMPLE = torch.zeros(1, 1, 24, 20)
MAKES = dict(
    scripted=lambda: torch.jit.script(Blocks()), traced=lambda: torch.jit.trace(Blocks().eval(), EXAMPLE), frozen=lambda: torch.jit.freeze(torch.jit.script(Blocks().eval())),
    script_inside=lambda: nn.Sequential(torch.jit.script(Blocks())), exported=lambda: torch.export.export(Blocks().eval(), (EXAMPLE,)).module(), parallel=lambda: nn.DataParallel(Blocks()),
    compiled=lambda: torch.compile(Blocks(), backend='eager'), forwards=lambda: Forwards(Blocks()), anything=lambda: Anything(Blocks()), slots=Slots, fx=lambda: torch.fx.symbolic_trace(Blocks()))


@pytest.mark.parametrize('make', MAKES)
@pytest.mark.filterwarnings('ignore')
def test_networks_of_every_make(make):
    net, sample = MAKES[make](), Sample(IMAGES['strong'][None], MASK, spacing=1.)
    want = as_model(Blocks()).label(sample)
    assert (as_model(net).label(sample) == want).all()
    sensitivity(net, sample, Brightness([.5]), progress=False)
    tolerance(net, sample, Brightness())
    study = Study(tempfile.mkdtemp(), as_model(net, name='net'), Brightness([.5])).run([sample], progress=False)
    assert not len(study.failures) and len(study.frame)
    if make != 'exported': assert (pickle.loads(pickle.dumps(as_model(net))).label(sample) == want).all()


@pytest.mark.filterwarnings('ignore')
def test_scripted_networks_in_two_processes():
    samples = [Sample(IMAGES[k][None], MASK, name=k) for k in ('strong', 'grey')]
    frames = [Study(tempfile.mkdtemp(), as_model(MAKES['scripted'](), name='net'), Brightness([.5])).run(samples, n_jobs=n, progress=False).frame for n in (1, 2)]
    keys = ['sample', 'value', 'class']
    assert frames[0].sort_values(keys).score.tolist() == frames[1].sort_values(keys).score.tolist()


def test_a_buffer_that_grows_is_put_back():
    from misas.models.hold import untouched
    net = nn.Module()
    net.register_buffer('seen', torch.zeros(2))
    with untouched(net): net.seen.resize_(5).fill_(1)
    assert net.seen.tolist() == [0, 0]


# --- advice that works

class UNet(nn.Module):
    "Halves and doubles three times; odd sizes do not fit."
    def __init__(self, n=2, kind=nn.Conv2d, skip=True):
        super().__init__()
        self.first, self.last, self.skip = kind(1, 2, 3, padding=1), kind(4 if skip else 2, 2, 1), skip
        self.pool = {nn.Conv2d: nn.MaxPool2d, nn.Conv3d: nn.MaxPool3d}[kind](8)
    def forward(self, x):
        x = self.first(x)
        low = nn.functional.interpolate(self.pool(x), scale_factor=8)
        return self.last(torch.cat([x, low], 1) if self.skip else low)


def error_of(f):
    with pytest.raises((ValueError, OSError, ImportError)) as e: f()
    return str(e.value)


@pytest.mark.parametrize('skip', [True, False], ids=['sizes do not match', 'answer of another size'])
@pytest.mark.parametrize('kind, shape', [(nn.Conv2d, (33, 41)), (nn.Conv2d, (31, 32)), (nn.Conv3d, (17, 16, 18))], ids=str)
def test_odd_sizes(kind, shape, skip):
    x, net = np.random.default_rng(0).random((1, 1, *shape)), UNet(kind=kind, skip=skip)
    text = error_of(lambda: as_model(net).label(x))
    assert 'slicewise' not in text
    k = int(re.search(r'multiple_of=(\d+)', text)[1])
    assert k == 8 and as_model(net, multiple_of=k).label(x).shape == (1, *shape)


def test_slices_are_suggested_where_they_work():
    x = np.random.default_rng(0).random((1, 1, 16, 16, 8))
    for net in (UNet(), as_model(lambda x: nn.functional.conv2d(torch.as_tensor(x).float(), torch.tensor([1., -1.]).view(2, 1, 1, 1)), name='f')):
        assert 'slicewise' in error_of(lambda: as_model(net).label(x)) and as_model(net).slicewise().label(x).shape == (1, 16, 16, 8)
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv3d(1, 2, 1)
        def forward(self, x): raise RuntimeError('out of luck')
    text = error_of(lambda: as_model(Fails()).label(x))
    assert 'slicewise' not in text and 'multiple_of' not in text and 'out of luck' in text
    assert 'volumes' in error_of(lambda: as_model(UNet(kind=nn.Conv3d)).label(x[..., 0]))


def test_files(tmp_path, monkeypatch):
    torch.save(nn.Conv2d(1, 2, 1), tmp_path/'whole.pt')
    assert as_model(tmp_path/'whole.pt', trusted=True).label(EXAMPLE).shape == (1, 24, 20)
    assert 'trusted' in error_of(lambda: as_model(tmp_path/'whole.pt'))
    torch.save(nn.Conv2d(1, 2, 1).state_dict(), tmp_path/'weights.pth')
    assert 'weights alone (weight, bias)' in error_of(lambda: as_model(tmp_path/'weights.pth', trusted=True))
    torch.save(dict(model=nn.Conv2d(1, 2, 1).state_dict(), epoch=3), tmp_path/'checkpoint.pth')
    text = error_of(lambda: as_model(tmp_path/'checkpoint.pth', trusted=True))
    assert 'checkpoint (model, epoch)' in text and 'zip' not in text
    torch.save(nn.Conv2d(1, 2, 1), tmp_path/'whole.pkl')
    assert as_model(tmp_path/'whole.pkl', trusted=True).n_classes is None
    monkeypatch.chdir(tmp_path)
    for name in ('no.pt', 'no.onnx'): assert str(tmp_path) in error_of(lambda name=name: as_model(name, trusted=True))
    (tmp_path/'Dataset'/'fold_0').mkdir(parents=True)
    (tmp_path/'Dataset'/'plans.json').write_text('{}')
    assert 'nnU-Net' in error_of(lambda: as_model(tmp_path/'Dataset'))
    monkeypatch.setitem(__import__('sys').modules, 'fastai.learner', None)
    (tmp_path/'learner.pkl').write_bytes(b'x')
    assert 'pip install "misas[demo]"' in error_of(lambda: load_file(tmp_path/'learner.pkl', True))


# --- a Learner is asked as it was trained

@pytest.fixture(scope='module')
def learner(tmp_path_factory):
    "Makes Learners whose network finds bright pixels."
    fastai = importlib.import_module('fastai.vision.all')
    from PIL import Image
    folder = tmp_path_factory.mktemp('pictures')
    files = [folder/f'{i}.png' for i in range(3)]
    for i, file in enumerate(files): Image.fromarray(np.full((20, 30), 50*i, np.uint8)).save(file)

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
        def forward(self, x):
            z = (x.mean(1) - .4)*20*self.w
            return torch.stack([-z, z], 1)

    def make(image=None, **kw):
        blocks = image or fastai.ImageBlock(fastai.PILImageBW), fastai.MaskBlock(['background', 'bright'])
        block = fastai.DataBlock(blocks=blocks, get_items=lambda _: files, get_y=lambda f: f, splitter=fastai.IndexSplitter([0]), **kw)
        return fastai.Learner(block.dataloaders(None, bs=2, num_workers=0), Bright(), loss_func=fastai.CrossEntropyLossFlat(axis=1))
    return make, fastai, files


RESIZES = dict(crop=lambda f: dict(item_tfms=f.Resize(224)), squish=lambda f: dict(item_tfms=f.Resize(224, method='squish')), pad=lambda f: dict(item_tfms=f.Resize((224, 160), method='pad')),
               zeros=lambda f: dict(item_tfms=f.Resize(200, method='pad', pad_mode='zeros')), cubic=lambda f: dict(item_tfms=f.Resize(224, resamples=(3, 0))), crop_pad=lambda f: dict(item_tfms=f.CropPad(1000)),
               random_crop=lambda f: dict(item_tfms=f.RandomResizedCrop(224)), twice=lambda f: dict(item_tfms=f.Resize(460), batch_tfms=[*f.aug_transforms(size=224), f.Normalize.from_stats(.3, .2, dim=1, cuda=False)]),
               cut_in_the_batch=lambda f: dict(item_tfms=f.Resize(460, method='squish'), batch_tfms=[f.RandomResizedCropGPU(224, valid_scale=.7)]))


@pytest.mark.parametrize('shape', [(1200, 1600), (1601, 1200), (2100, 699)], ids=str)
@pytest.mark.parametrize('how', RESIZES)
def test_large_pictures_through_any_resizing(learner, how, shape):
    make, fastai, _ = learner
    model = as_model(make(**RESIZES[how](fastai)))
    image, box = torch.zeros(1, *shape) + .3, [(int(n*.45), int(n*.56)) for n in shape]
    image[0, slice(*box[0]), slice(*box[1])] = 220
    found = np.argwhere(model.label(image[None])[0])
    slope = max(1, *(line[1] for line in model._geometry[shape][1]))*(1 + bool(model._batch_geometry))
    for axis, (low, high) in enumerate(box): assert abs(found[:, axis].min() - low) <= slope and abs(found[:, axis].max() + 1 - high) <= slope
    x = image[None].clone().requires_grad_()
    z = model.logits(x)
    with torch.no_grad(): assert torch.allclose(z, model.logits(image[None]), atol=.01)
    g, = torch.autograd.grad(z[0, 1].mean(), x)
    assert g.isfinite().all() and g.abs().sum() > 0


def test_edges_of_a_cropped_picture_are_exact(learner):
    make, fastai, _ = learner
    model = as_model(make(item_tfms=fastai.Resize(224)))
    model.label(np.zeros((1, 1, 1200, 1600)))
    size, lines = model._geometry[1200, 1600]
    assert np.allclose([edges(line, n) for line, n in zip(lines, size)], [(0, 1200), (200, 1400)], atol=1e-9)


def test_gradients_agree_with_differences(learner):
    make, fastai, _ = learner
    model = as_model(make(item_tfms=fastai.Resize(32)))
    image = np.random.default_rng(0).random((1, 1, 128, 150)).astype(np.float32)*200 + .3
    def f(x): return float(model.logits(torch.from_numpy(x))[0, 1].double().mean())
    x = torch.from_numpy(image).requires_grad_()
    g, = torch.autograd.grad(model.logits(x)[0, 1].mean(), x)
    for at in ((0, 0, 50, 60), (0, 0, 0, 11), (0, 0, 127, 100)):
        step = np.zeros_like(image)
        step[at] = 40
        assert float(g[at]) == pytest.approx((f(image + step) - f(image - step))/80, rel=.02, abs=1e-9)


def said_of(f):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in caught if 'opens its files' in str(w.message)]


def dimmed(path):
    from fastai.vision.all import PILImageBW
    from PIL import Image
    return PILImageBW.create((np.asarray(Image.open(path))//2).astype(np.uint8))


def plainly(path):
    from fastai.vision.all import PILImageBW
    return PILImageBW.create(path)


def test_an_opener_of_its_own(learner, tmp_path):
    make, fastai, files = learner
    own = make(fastai.TransformBlock(dimmed))
    said = said_of(lambda: as_model(own))
    assert len(said) == 1 and 'dimmed()' in said[0] and 'preprocess=' in said[0]
    assert not said_of(lambda: as_model(own, preprocess=lambda x: (x/2).floor()))
    assert not said_of(lambda: as_model(make(fastai.TransformBlock(plainly)))) and not said_of(lambda: as_model(make()))
    assert not said_of(lambda: as_model(make(fastai.ImageBlock(fastai.PILImage))))
    own.export(tmp_path/'own.pkl')
    assert 'no file to try' in said_of(lambda: as_model(tmp_path/'own.pkl', trusted=True))[0]
    class Sixteen(fastai.PILImageBW):
        @classmethod
        def create(cls, fn, **kw): return cls(dimmed(fn))
    assert said_of(lambda: as_model(make(fastai.ImageBlock(Sixteen))))
