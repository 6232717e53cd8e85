"Chance, memory, company: networks that answer by more than the image are found out before their answers are compared."
import random
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from misas.attribution.attribute import attribute
from misas.attribution.curves import deletion
from misas.data.phantom import disc
from misas.inside.question import Question
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.steady import Unsteady, steady
from misas.study.study import Study
from misas.sweep.pairs import sensitivity_grid
from misas.sweep.sensitivity import sensitivity
from misas.sweep.tolerance import tolerance
from misas.transforms.intensity import Brightness, Gamma
from misas.trust.passes import change_passes, dropout_passes


def picture(seed=0, size=48, spot=True):
    "A disc with noise, and a very bright spot beside it."
    sample = disc((size, size), radius=size/4)
    image = sample.image + .2*np.random.default_rng(seed).normal(size=sample.image.shape).astype(np.float32)
    if spot: image[0, 2:5, 2:5] = 5
    return sample.replace(image=image)


def volume(seed=0):
    sample = disc((20, 24, 16), radius=6)
    return sample.replace(image=sample.image + .2*np.random.default_rng(seed).normal(size=sample.image.shape))


class Net(nn.Module):
    "Features, then `change` of them, then two classes."
    def __init__(self, change, ndim=2, before=None):
        super().__init__()
        torch.manual_seed(0)
        conv = getattr(nn, f'Conv{ndim}d')
        self.a, self.b = conv(1, 8, 3, padding=1), conv(8, 2, 3, padding=1)
        self.change, self.before = change, before
        self.register_buffer('running', torch.zeros(1))
        self.hidden, self.history, self.luck = None, [], np.random.default_rng(0)

    def forward(self, x):
        if self.before: x = self.before(x)
        return self.b(self.change(self, F.relu(self.a(x))))


def remembers(net, x):
    net.running.mul_(.5).add_(.5*x.mean())
    return x - net.running


def replaces(net, x):
    net.running = .5*net.running + .5*x.mean()
    return x - net.running


def resizes(net, x):
    net.running.resize_(len(net.running) + 1).fill_(float(x.mean()))
    return x*len(net.running)


def recurs(net, x):
    net.hidden = x.mean() if net.hidden is None else .5*net.hidden + .5*x.mean()
    return x - net.hidden


def piles_up(net, x):
    net.history.append(float(x.mean()))
    return x*len(net.history)


CHANCE = {
    'dropout of features': lambda net, x: F.dropout(x, .5),
    'dropout of channels': lambda net, x: F.dropout2d(x, .3, training=True),
    'only in evaluation': lambda net, x: x if net.training else x + .1*torch.rand_like(x),
    'noise': lambda net, x: x + .1*torch.randn(x.shape),
    "NumPy's": lambda net, x: x*float(np.random.uniform(.5, 1.5)),
    "Python's": lambda net, x: x*random.uniform(.5, 1.5),
    'permutation': lambda net, x: x[:, torch.randperm(x.shape[1])],
}
MEMORY = {
    'running mean': remembers, 'replaced': replaces, 'resized': resizes, 'hidden': recurs, 'list': piles_up,
    'a generator of its own': lambda net, x: x + .1*torch.as_tensor(net.luck.normal(size=x.shape), dtype=x.dtype)}
COMPANY = {
    'maximum': lambda net, x: x/x.amax(),
    'minimum': lambda net, x: x - net.a(x[:, :1]).amin(),
    'median': lambda net, x: x - x.median(),
    'median of places': lambda net, x: x - .5*x.median(0, keepdim=True).values,
    'mean of places': lambda net, x: x - .5*x.mean(0, keepdim=True),
    'quantile': lambda net, x: x/x.quantile(.9),
    'standard deviation': lambda net, x: (x - x.mean())/x.std(),
    'BatchNorm': lambda net, x: F.batch_norm(x, None, None, training=True),
    'groups': lambda net, x: (x - x.mean((0, 2, 3), keepdim=True))/(.01 + x.std((0, 2, 3), keepdim=True)),
    'softmax over images': lambda net, x: x.softmax(0)*len(x),
    'sorted': lambda net, x: x[x.mean((1, 2, 3)).argsort()],
    'sorted by maximum': lambda net, x: x[x.amax((1, 2, 3)).argsort(descending=True)],
    'first of the batch': lambda net, x: x[:1].expand_as(x),
    'attention': lambda net, x: x + (x.flatten(1)@x.flatten(1).T).softmax(0).sum(1).view(-1, 1, 1, 1),
    'how many': lambda net, x: x/len(x)}


def states(): return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def check_same(model, sample):
    "The same image gets the same answer: again, after another one, beside others, and whatever the luck."
    first = model.predict(sample)
    torch.manual_seed(77), random.seed(77), np.random.seed(77)
    before = states()
    model.predict(3*sample.image[None])
    assert np.array_equal(first, model.predict(sample)) and states() == before
    model.batch_size = 3
    beside = model.predict(np.stack([9*sample.image, sample.image, -sample.image]))
    assert np.allclose(beside[1:2], first, atol=1e-6)
    x = torch.tensor(np.stack([9*sample.image, sample.image]), requires_grad=True)
    assert np.allclose(model.logits(x)[1].detach().softmax(0), first[0], atol=1e-6)


@pytest.mark.parametrize('what', CHANCE)
def test_chance(what):
    sample, model = picture(), as_model(Net(CHANCE[what]), activation='softmax')
    before = states()
    with pytest.warns(UserWarning, match='Net draws random numbers'): steady(model, sample)
    assert states() == before and model.habits.chance and not model.habits.memory
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # it is said once
        check_same(model, sample)
        steady(model, sample)


@pytest.mark.parametrize('what', MEMORY)
def test_memory(what):
    net, sample = Net(MEMORY[what]), picture()
    model = as_model(net, activation='softmax')
    own = net.running
    with pytest.warns(UserWarning, match='Net changes itself'): steady(model, sample)
    assert model.habits.memory and not model.habits.chance
    check_same(model, sample)
    assert net.running is own and own.tolist() == [0] and net.hidden is None and net.history == []
    x = torch.as_tensor(sample.image[None]).requires_grad_()
    torch.autograd.grad(model.logits(x).sum(), x)  # what a gradient needs is still there


@pytest.mark.parametrize('what', COMPANY)
@pytest.mark.parametrize('spot', [True, False])
def test_company(what, spot):
    sample, model = picture(spot=spot), as_model(Net(COMPANY[what]), activation='softmax')
    with pytest.warns(UserWarning, match='Net lets the images of a batch change each other'): steady(model, sample)
    assert model.habits.company and not model.habits.chance and not model.habits.memory
    check_same(model, sample)


@pytest.mark.parametrize('what', ['maximum', 'median', 'sorted', 'mean of places'])
def test_company_before_the_first_layer(what):
    before = {'maximum': lambda x: x/x.max(), 'median': lambda x: x - x.median(),
              'sorted': lambda x: x[x.mean((1, 2, 3)).argsort()], 'mean of places': lambda x: x - x.mean(0)}[what]
    model = as_model(Net(lambda net, x: x, before=before), activation='softmax')
    with pytest.warns(UserWarning, match='images of a batch'): steady(model, picture())


def test_chance_and_memory_and_training_mode():
    net = Net(lambda net, x: F.dropout(remembers(net, x), .5))
    with pytest.warns(UserWarning, match='draws random numbers.*it also changes itself'):
        steady(model := as_model(net, activation='softmax'), picture())
    check_same(model, picture())
    inner = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(.5), nn.Conv2d(4, 2, 1)).train()
    model = as_model(lambda x: inner(x), activation='softmax')  # nobody said eval()
    with pytest.warns(UserWarning, match='draws random numbers'): steady(model, picture())
    before = inner[1].running_mean.clone()
    check_same(model, picture())
    assert torch.equal(inner[1].running_mean, before) and inner.training

    class Forced(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            self.norm.train()
            return torch.cat([-self.norm(x), self.norm(x)], 1)
    forced = Forced().eval()
    model = as_model(forced, activation='softmax')
    model.predict(picture())  # also where nothing was looked at
    assert int(forced.norm.num_batches_tracked) == 0
    with pytest.warns(UserWarning, match='images of a batch'): steady(model, picture())
    check_same(model, picture())
    assert int(forced.norm.num_batches_tracked) == 0 and float(forced.norm.running_mean) == 0


def test_counters_that_change_no_answer():
    "Buffers and lists stay as they are, and nothing is said."
    def counts(net, x):
        net.running.add_(1)
        net.history.append(1)
        return x
    net = Net(counts)
    model = as_model(net, activation='softmax')
    for _ in range(2): model.predict(picture())
    assert net.running.tolist() == [0] and net.history == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not steady(model, picture()).habits.alone
    model.predict(picture())
    assert net.running.tolist() == [0] and net.history == []


def test_script_that_remembers():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('mean', torch.zeros(1))

        def forward(self, x):
            self.mean.mul_(.5).add_(.5*x.mean())
            return torch.cat([self.mean - x, x - self.mean], 1)
    script = torch.jit.script(Running())
    model = as_model(script, activation='softmax')
    model.predict(picture())
    assert float(script.mean) == 0
    with pytest.warns(UserWarning, match='changes itself'): steady(model, picture())
    check_same(model, picture())
    assert float(script.mean) == 0


def test_preprocess_by_chance():
    plain = Net(lambda net, x: x)
    def noisy(image): return image + .3*torch.as_tensor(np.random.normal(size=image.shape), dtype=image.dtype)
    model = as_model(plain, activation='softmax', preprocess=noisy)
    with pytest.warns(UserWarning, match='draws random numbers'): steady(model, picture())
    check_same(model, picture())

    class Jitter:
        def __init__(self): self.luck = np.random.default_rng(0)
        def __call__(self, image): return image*self.luck.uniform(.5, 1.5)
    model = as_model(plain, activation='softmax', preprocess=Jitter())
    with pytest.warns(UserWarning, match='changes itself'): steady(model, picture())
    check_same(model, picture())
    own = np.random.default_rng(0)
    never = as_model(plain, activation='softmax', preprocess=lambda image: image*own.uniform(.5, 1.5))
    with pytest.raises(Unsteady, match='cannot be compared'): sensitivity(never, picture(), Brightness(), [1, 2])


def counting():
    asked = []
    def f(x):
        asked.append(1)
        z = np.asarray(x) - .5 - .1*(len(asked) % 7)
        return np.concatenate([-z, z], 1)
    return f


def clock(x):
    from time import perf_counter_ns
    z = np.asarray(x) - perf_counter_ns() % 1000/1000
    return np.concatenate([-z, z], 1)


def fresh(x):
    z = np.asarray(x) - np.random.default_rng().random(x.shape).astype(np.float32)
    return np.concatenate([-z, z], 1)


@pytest.mark.parametrize('f', [counting(), clock, fresh], ids=['counter', 'clock', 'fresh generator'])
def test_what_cannot_be_steadied_is_refused(f, tmp_path):
    sample, target = picture(), Target(1, picture().labels == 1)
    model = as_model(f, activation='softmax', name='f')
    asks = [lambda: sensitivity(model, sample, Brightness(), [1, 2], progress=False),
            lambda: tolerance(model, sample, Brightness()), lambda: attribute(model, sample, target, 'occlusion'),
            lambda: sensitivity_grid(model, sample, (Brightness(), Gamma()), progress=False),
            lambda: change_passes(model, sample)]
    for ask in asks:
        with pytest.raises(Unsteady, match='f answers the same image differently each time.*seed its own'): ask()
    failed = Study(tmp_path, model, Brightness([1, 2])).run([sample.replace(name='a')], progress=False).failures
    assert 'differently each time' in failed.reason.iloc[0]
    def steady_one(x): return np.concatenate([.5 - np.asarray(x), np.asarray(x) - .5], 1)  # what the sentence asks for
    assert len(sensitivity(as_model(steady_one, activation='softmax'), sample, Brightness(), [1, 2], progress=False).values)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_results_do_not_depend_on_luck_batch_or_order(tmp_path):
    "Sweeps, attributions, curves and studies of one network with all habits."
    def all_of_it(net, x): return F.dropout(remembers(net, x/x.amax()), .3)
    sample, target = picture(), Target(1, picture().labels == 1)
    def model(k): return as_model(Net(all_of_it), activation='softmax', batch_size=k, name='net')
    def sweep(k, values): return sensitivity(model(k), sample, Brightness(), values, reference='prediction', progress=False)
    one, other = sweep(1, [.5, 1, 2, 4]), sweep(4, [4, .5, 2])
    assert one.frame.score.tolist() == other.frame.score.tolist()
    for name in ('occlusion', 'lime', 'rise', 'kernel_shap', 'saliency', 'integrated_gradients'):
        few = {} if name not in ('lime', 'rise', 'kernel_shap') else dict(n_samples=130, size=8.)
        found = []
        for k in (1, None):
            torch.manual_seed(k or 5)
            try: found.append(attribute(model(k), sample, target, name, internal_batch=k, **few).map)
            except ValueError as e: found.append(e.attribution.map)  # incomplete, as dropout is
        assert np.allclose(*found, atol=1e-4*np.abs(found[0]).max()), name
    a = attribute(model(None), sample, target, 'saliency')
    curves = [deletion(a, steps=4, n_random=2, internal_batch=k, progress=False).map for k in (1, 7)]
    assert np.allclose(*curves, atol=1e-5)
    frames = [Study(tmp_path/str(k), model(k), [Brightness([.5, 1, 2]), Gamma([.5, 1])]).run(
        [picture(seed).replace(name=str(seed)) for seed in order], progress=False).frame for k, order in ((1, (0, 1)), (3, (1, 0)))]
    frames = [f.sort_values([c for c in f if c != 'score']).score.tolist() for f in frames]
    assert frames[0] == frames[1]


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_chains_of_volumes():
    "Windows, slices and other orders of axes: the network inside is what is looked at."
    pytest.importorskip('monai')
    sample, wet = volume(), CHANCE['dropout of features']
    affine = np.diag([-1., 1, 1, 1])
    sample = sample.replace(affine=affine)
    chains = [as_model(Net(wet, 3), activation='softmax', window=12), as_model(Net(wet), activation='softmax').slicewise(),
              as_model(Net(wet, 3), activation='softmax').oriented('LPS'), as_model(Net(wet, 3), activation='softmax').channel]
    for chain in chains[:3]:
        steady(chain, sample)
        assert chain.innermost.habits.chance
        assert np.array_equal(chain.predict(sample), chain.predict(sample))
    mixed = as_model(Net(COMPANY['maximum']), activation='softmax', batch_size=5).slicewise()
    alone = as_model(Net(COMPANY['maximum']), activation='softmax', batch_size=1).slicewise()
    assert np.allclose(steady(mixed, sample).predict(sample), alone.predict(sample), atol=1e-6)


def silent(model, sample):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        habits = steady(model, sample).innermost.habits
    assert habits is not None and not habits.alone, habits


def test_right_networks_are_left_alone():
    "Norms of each image, attention, convolutions in half precision, scripts, functions, several outputs."
    torch.manual_seed(0)
    def stack(*layers): return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *layers, nn.Conv2d(8, 2, 1)).eval()
    nets = [stack(nn.InstanceNorm2d(8, affine=True), nn.GELU()), stack(nn.GroupNorm(2, 8)), stack(nn.BatchNorm2d(8), nn.Dropout(.5)),
            stack(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode='bilinear')),
            stack(nn.InstanceNorm2d(8, track_running_stats=True), nn.Softplus())]
    for net in nets:
        silent(as_model(net, activation='softmax'), picture())
        silent(as_model(net, activation='softmax', batch_size=8), picture(size=100))
        silent(as_model(net, activation='softmax', size=(40, 40)), picture(size=80))
    silent(as_model(torch.jit.script(nets[2]), activation='softmax'), picture())
    silent(as_model(torch.jit.trace(nets[3], torch.zeros(1, 1, 48, 48)), activation='softmax'), picture())
    silent(as_model(nn.Sequential(nets[0], nn.Softmax(1))), picture())
    silent(as_model(lambda x: 1*(np.asarray(x)[:, 0] > .5), classes=('background', 'disc')), picture())
    silent(as_model(lambda x: dict(out=nets[1](x), aux=x[:, 0].mean((1, 2))), activation='softmax'), picture())
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        silent(as_model(stack(nn.InstanceNorm2d(8), nn.ReLU()).to(kind), activation='softmax'), picture())
    masked = as_model(lambda x: torch.cat([.5 - x, x - .5, torch.full_like(x, -1e9)], 1), activation='softmax')
    silent(masked, picture())
    black = picture().replace(image=np.zeros((1, 48, 48), np.float32))
    silent(as_model(nets[0], activation='softmax'), black)
    per_image = lambda net, x: x/x.amax((1, 2, 3), keepdim=True)
    silent(as_model(Net(per_image), activation='softmax'), picture())
    own_seed = lambda net, x: x + torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0))
    silent(as_model(Net(own_seed), activation='softmax'), picture())


def test_published_networks_are_left_alone():
    pytest.importorskip('onnxruntime')
    from misas.demo import demo_sample
    from misas.models.zoo import cardiac_net
    silent(cardiac_net(), demo_sample())


def test_monai_network_is_left_alone():
    nets = pytest.importorskip('monai.networks.nets')
    torch.manual_seed(0)
    unet = nets.UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), dropout=.1)
    silent(as_model(unet, activation='softmax', multiple_of=4), volume())
    silent(as_model(unet, activation='softmax', window=16), volume())


def test_a_mask_of_one_image_that_only_takes_one():
    def one(x):
        if len(x) > 1: raise RuntimeError('one at a time')
        return np.concatenate([.5 - np.asarray(x), np.asarray(x) - .5], 1)
    model = as_model(one, activation='softmax')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        a = attribute(model, picture(), Target(1, picture().labels == 1), 'occlusion')
    assert a.map.any() and Question(model, picture(), 1).coupled


def test_looked_at_once_and_again_after_training():
    net, asked = Net(lambda net, x: x), []
    handle = net.a.register_forward_hook(lambda *_: asked.append(1))
    model = as_model(net, activation='softmax')
    sensitivity(model, picture(), Brightness(), [1, 2, 4], reference='prediction', progress=False)
    first = len(asked)
    assert first - 3 <= 4, f'{first - 3} passes more than the sweep needs'
    sensitivity(model, picture(1), Brightness(), [1, 2, 4], reference='prediction', progress=False)
    assert len(asked) == first + 3
    with torch.no_grad(): net.a.weight.mul_(2)
    sensitivity(model, picture(), Brightness(), [1, 2, 4], reference='prediction', progress=False)
    assert len(asked) > first + 6
    handle.remove()
    net.wet = False
    net.change = lambda net, x: F.dropout(x, .5) if net.wet else x
    steady(model, picture())
    net.wet = True  # a switch: a float, a bool or a word
    with pytest.warns(UserWarning, match='draws random numbers'): sensitivity(model, picture(), Brightness(), [1, 2], progress=False)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_chance_that_is_wanted():
    "Dropout that is switched on by purpose drops other features each time, also in a network that is wet by itself."
    wet = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(.5), nn.Conv2d(8, 2, 1))
    for net in (wet, nn.Sequential(wet, Net(lambda net, x: F.dropout(x, .3), before=lambda x: x[:, :1]))):
        model = steady(as_model(net, activation='softmax'), picture())
        found = dropout_passes(model, picture(), n=4)
        assert found.variance.max() > 0
        assert np.array_equal(dropout_passes(model, picture(), n=4).mean, found.mean)
        assert np.array_equal(model.predict(picture()), model.predict(picture()))


# ---- files of ONNX ----

def resizing(path, mode='asymmetric'):
    "A small network with an enlargement that the translation knows ('pytorch_half_pixel') or does not."
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime'), pytest.importorskip('onnx2torch')
    helper, luck = onnx.helper, np.random.default_rng(0)
    weights = dict(a=luck.normal(size=(4, 1, 3, 3)), b=luck.normal(size=(2, 4, 1, 1)), r=np.zeros(0), k=np.array([1, 1, 2, 2.]))
    nodes = [helper.make_node('Conv', ['x', 'a'], ['c'], pads=[1]*4), helper.make_node('Relu', ['c'], ['f']),
             helper.make_node('MaxPool', ['f'], ['p'], kernel_shape=[2, 2], strides=[2, 2]),
             helper.make_node('Resize', ['p', 'r', 'k'], ['u'], mode='linear', coordinate_transformation_mode=mode),
             helper.make_node('Conv', ['u', 'b'], ['z']), helper.make_node('Softmax', ['z'], ['y'], axis=1)]
    def ends(name, count): return [helper.make_tensor_value_info(name, 1, ['n', count, 'h', 'w'])]
    inside = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, 'g', ends('x', 1), ends('y', 2), inside)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return as_model(path)


def test_translations_that_differ_explain_nothing(tmp_path):
    model, right = resizing(tmp_path/'a.onnx'), resizing(tmp_path/'b.onnx', 'pytorch_half_pixel')
    sample = disc((24, 20), radius=5)
    sample = sample.replace(image=sample.image + .3*np.random.default_rng(0).normal(size=sample.image.shape))
    target, state = Target(1, sample.labels == 1), torch.get_rng_state()
    def odds(x):
        p = np.concatenate([model.predict(np.asarray(one)[None]) for one in x])
        return np.log(p)
    truth = as_model(odds, activation='softmax')
    odds_target = Target(1, sample.labels == 1, log_odds=True)
    for name, options in (('occlusion', {}), ('lime', dict(n_samples=150, size=8.)), ('rise', dict(n_samples=60)),
                          ('kernel_shap', dict(n_samples=150, size=8.)), ('feature_ablation', {})):
        found, wanted = (attribute(one, sample, odds_target, name, progress=False, **options) for one in (model, truth))
        assert found.score == pytest.approx(wanted.score, abs=1e-5) and np.allclose(found.map, wanted.map, atol=1e-4), name
    a = attribute(model, sample, odds_target, 'occlusion')
    assert np.allclose(*(deletion(attribute(one, sample, odds_target, 'occlusion'), steps=4, n_random=1, progress=False).map
                         for one in (model, truth)), atol=1e-4) and a.map.any()
    assert torch.equal(torch.get_rng_state(), state), 'translating draws no random numbers of others'
    from misas.attribution.attribute import METHODS, methods
    for name in METHODS:
        if METHODS[name].needs == 'scores' and name != 'score_cam': continue
        with pytest.raises(ValueError, match=r'answers otherwise than onnxruntime does \(.* instead of .*\)'):
            attribute(model, sample, target, name, progress=False)
    table = methods(model, sample, target).set_index('name').refused
    assert table.occlusion == '' and 'onnxruntime' in table.saliency and 'onnxruntime' in table.grad_cam
    x = torch.tensor(sample.image[None], requires_grad=True)
    with pytest.raises(ValueError, match='onnxruntime'): model.logits(x)
    assert np.allclose(np.diff(model.logits(sample.image[None])[:, :2], axis=1), np.diff(np.log(model.predict(sample)), axis=1), atol=1e-4)
    for name in ('saliency', 'grad_cam', 'integrated_gradients', 'occlusion'):
        assert attribute(right, sample, target, name, layer='auto').map.any()
    g = torch.autograd.grad(right.logits(x)[:, 1].sum(), x)[0]
    assert g.any()


def test_weights_beside_an_onnx_file_are_part_of_it(tmp_path):
    from misas.data.fingerprint import fingerprint
    onnx = pytest.importorskip('onnx')
    resizing(tmp_path/'own.onnx')
    def write(factor):
        graph = onnx.load(str(tmp_path/'own.onnx'))
        old = onnx.numpy_helper.to_array(graph.graph.initializer[0])
        graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(old*np.float32(factor), 'a'))
        for file in tmp_path.glob('net.*'): file.unlink()
        onnx.save_model(graph, str(tmp_path/'net.onnx'), save_as_external_data=True, location='net.weights.bin', size_threshold=100)
        return as_model(tmp_path/'net.onnx')
    first, other = (write(factor).predict(picture(size=24)) for factor in (1, 2))
    assert not np.allclose(first, other)
    prints = [fingerprint(write(factor)) for factor in (1, 2, 1)]
    assert prints[0] == prints[2] != prints[1]


# ---- half precision ----

def test_half_precision():
    "Scores add up in single precision, whoever returns half; that the network itself rounds is said."
    torch.manual_seed(0)
    half = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).to(torch.bfloat16)
    exact, sample, target = deepcopy(half).float(), picture(spot=False), Target(1, picture().labels == 1)
    def bare(x): return half(torch.as_tensor(x).to(torch.bfloat16))
    for name in ('occlusion', 'kernel_shap', 'saliency'):
        def map_of(net): return attribute(as_model(net, activation='softmax'), sample, target, name, progress=False).map
        with pytest.warns(UserWarning, match='computes in bfloat16.*float'): coarse = map_of(half)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            fine, same = map_of(exact), map_of(bare)
        assert np.allclose(coarse, same, atol=1e-3*np.abs(fine).max())
        if name != 'saliency': assert np.allclose(coarse, fine, atol=.05*np.abs(fine).max())
