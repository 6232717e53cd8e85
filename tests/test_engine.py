"""`as_model(..., fast=True)`: right results whatever a network, a machine or a way to run it does."""
import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from misas.attribution.attribute import attribute
from misas.data.sample import Sample
from misas.inside.target import Target
from misas.models import engine as engines
from misas.models.adapt import as_model
from misas.models.engine import EVERY, EXACT, FIRST, Agreement, in_one_go
from misas.models.hold import trace
from misas.models.ways import WAYS, Builder, Way
from misas.study.study import Study
from misas.sweep.sensitivity import sensitivity
from misas.transforms.intensity import Brightness
from misas.transforms.spatial import Rotation

OPTIONS = dict(activation='softmax', classes=('background', 'disc'))


def net_of(n=2, channels=1):
    "A tiny network that finds what is bright."
    conv = nn.Conv2d if n == 2 else nn.Conv3d
    net = nn.Sequential(conv(channels, 3, 3, padding=1), nn.ReLU(), conv(3, 2, 1)).eval()
    with torch.no_grad():
        for weight in net.parameters(): weight.zero_()
        net[0].weight[0, :, 1, 1] = 1/channels if n == 2 else 0
        if n == 3: net[0].weight[0, :, 1, 1, 1] = 1/channels
        net[2].weight[1, 0], net[2].bias[1] = 20, -10
    return net


def disc(n=2, size=24, seed=0):
    "An image of a bright disc or ball, with noise."
    place = np.indices((size,)*n) - size/2 + .5
    labels = (np.sqrt((place**2).sum(0)) < size/3).astype(np.uint8)
    noise = np.random.default_rng(seed).normal(0, .05, labels.shape)
    return Sample((labels + noise).astype(np.float32)[None], labels, classes=OPTIONS['classes'], spacing=(1.,)*n,
                  name=f'disc {seed}')


class Wrong:
    "A way that gives another answer after some that are right."
    def __init__(self, run, right): self.run, self.right = run, right

    def __call__(self, x):
        self.right -= 1
        return self.run(x) if self.right >= 0 else -self.run(x)


def spoil(model, right):
    "The engine of a model goes wrong after some answers."
    runs = model.engine.runs
    for shape, run in runs.items(): runs[shape] = Wrong(run, right)


def same(model, exact, sample): assert np.array_equal(model.label(sample), exact.label(sample))


# ---- what is chosen ----

@pytest.mark.parametrize('way', ['channels last', 'onnxruntime', 'bfloat16'])
@pytest.mark.parametrize('n', [2, 3])
def test_a_named_way_is_taken_and_the_network_stays_what_it_is(way, n):
    net, sample = net_of(n), disc(n)
    before, exact = trace(net), as_model(net, **OPTIONS)
    fast = as_model(net, fast=way, **OPTIONS)
    assert 'not chosen yet' in repr(fast.engine)
    same(fast, exact, sample)
    assert fast.engine.name == way and fast.engine.agrees.fine and way in repr(fast.engine)
    assert trace(net) == before and np.allclose(fast.predict(sample), exact.predict(sample), atol=.02)


def of_speed(monkeypatch, **times):
    "Passes take what is said here; names are those of ways, with _ for blanks."
    known = {name.replace('_', ' '): one for name, one in times.items()}
    monkeypatch.setattr(engines, 'raced', lambda runs, x: {name: known.get(name, 1.) for name in runs})


def without(monkeypatch, *backends):
    "A machine that lacks some of the backends."
    left = [way for way in WAYS.values() if way.backend not in backends and not way.device == 'cuda']
    monkeypatch.setattr(engines, 'ways', lambda model: left)


def test_the_fastest_that_agrees_is_taken(monkeypatch):
    without(monkeypatch, 'compiled', 'openvino')
    of_speed(monkeypatch, onnxruntime=.4, channels_last=.7, bfloat16=.9)
    fast = as_model(net_of(), fast=True, **OPTIONS)
    fast.label(disc())
    assert fast.engine.name == 'onnxruntime' and fast.engine.ratio == .4
    assert 'taken' in repr(fast.engine) and len(repr(fast.engine).splitlines()) == 5


def test_where_none_is_faster_the_exact_network_answers(monkeypatch):
    without(monkeypatch, 'compiled', 'openvino', 'onnxruntime')
    of_speed(monkeypatch)
    fast = as_model(net_of(), fast=True, **OPTIONS)
    with pytest.warns(UserWarning, match='no way is faster and agrees'): fast.label(disc())
    assert fast.engine.name == EXACT and 'not faster' in repr(fast.engine)


def test_where_few_bits_are_no_faster_all_of_them_are_compiled(monkeypatch):
    monkeypatch.setattr(Builder, 'build', lambda self, way: self.model.module)
    of_speed(monkeypatch, bfloat16=1.5, compiled=.5)
    fast = as_model(net_of(), fast=True, **OPTIONS)
    fast.label(disc())
    assert fast.engine.name == 'compiled' and 'not faster without being compiled' in repr(fast.engine)


def test_without_a_compiler_it_is_not_here(monkeypatch):
    from torch._inductor import cpp_builder
    def none(): raise type('InvalidCxxCompiler', (RuntimeError,), {})('No working C++ compiler found')
    monkeypatch.setattr(cpp_builder, 'get_cpp_compiler', none)
    from misas.models import ways
    ways._compiles.cache_clear()
    fast = as_model(net_of(), fast='compiled', **OPTIONS)
    with pytest.warns(UserWarning, match='not here: there is no C\\+\\+ compiler'): fast.label(disc())
    same(fast, as_model(net_of(), **OPTIONS), disc())
    ways._compiles.cache_clear()


def test_openvino_is_named_where_it_is_missing(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.warns(UserWarning, match='pip install openvino'): as_model(net_of(), fast='openvino').label(disc())


def test_compiled():
    "In this process, with the user's settings as they were."
    from torch._inductor import config
    before, net = config.compile_threads, net_of()
    fast, traced = as_model(net, fast='compiled', **OPTIONS), trace(net)
    same(fast, as_model(net, **OPTIONS), disc())
    assert fast.engine.name == 'compiled' or 'not here' in fast.engine.why
    assert config.compile_threads == before and trace(net) == traced


# ---- bad input ----

def test_of_a_function():
    with pytest.warns(UserWarning, match='fast=True is for networks in torch') as told:
        model = as_model(lambda x: np.concatenate([.5 - x, x - .5], 1), fast=True, **OPTIONS)
    assert len(told) == 1 and 'FunctionModel' in str(told[0].message)
    assert np.array_equal(model.label(disc())[0], disc().image[0] > .5) and 'engine' not in model.settings()


def test_of_an_onnx_file(tmp_path):
    path = tmp_path/'net.onnx'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(net_of(), torch.zeros(1, 1, 24, 24), path, dynamo=False)
    with pytest.warns(UserWarning, match='OnnxModel is not'): model = as_model(path, fast=True, **OPTIONS)
    same(model, as_model(net_of(), **OPTIONS), disc())
    same(pickle.loads(pickle.dumps(model)), model, disc())


def test_of_torchscript():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        script = torch.jit.trace(net_of(), torch.zeros(1, 1, 24, 24))
    with pytest.warns(UserWarning, match='TorchScript'): model = as_model(script, fast=True, **OPTIONS)
    same(model, as_model(net_of(), **OPTIONS), disc())


@pytest.mark.parametrize('name', ['quick', 3, ['bfloat16'], None, ''])
def test_a_way_that_there_is_not(name):
    if not name: assert as_model(net_of(), fast=name).engine is None
    else:
        with pytest.raises(ValueError, match='fast must be True, False or one of'): as_model(net_of(), fast=name)


class Deciding(nn.Module):
    "Its steps depend on the image."
    def forward(self, x): return torch.cat([.5 - x, x - .5], 1) if x.mean() > .1 else torch.cat([-x, x], 1)


def test_a_network_that_cannot_be_traced(monkeypatch):
    without(monkeypatch, 'openvino')
    of_speed(monkeypatch, onnxruntime=.1, compiled=.1, compiled_bfloat16=.1, channels_last=.5, bfloat16=.9)
    fast, exact = as_model(Deciding(), fast=True, **OPTIONS), as_model(Deciding(), **OPTIONS)
    dark = disc().replace(image=disc().image*.1)
    for sample in (disc(), dark): same(fast, exact, sample)
    assert fast.engine.name == 'channels last'
    assert repr(fast.engine).count('its steps depend on the values of the image') == 3
    with pytest.warns(UserWarning, match='depend on the values'): as_model(Deciding(), fast='onnxruntime').label(dark)


def test_all_ways_disagree(monkeypatch):
    monkeypatch.setattr(Builder, 'build', lambda self, way: lambda x: -self.model.module(x))
    fast = as_model(net_of(), fast=True, **OPTIONS)
    with pytest.warns(UserWarning, match='is asked by the exact network') as told: found = fast.label(disc())
    assert len(told) == 1 and np.array_equal(found[0], disc().labels)
    assert all(one.said == 'differs' or 'without being compiled' in one.said for one in fast.engine.tried)


@pytest.mark.parametrize('how', ['raises', 'of another shape', 'NaN'])
def test_a_way_that_fails(monkeypatch, how):
    def run(x):
        if how == 'raises': raise RuntimeError('out of luck')
        return torch.zeros(1, 5, 3, 3) if how == 'of another shape' else torch.full((1, 2, 24, 24), torch.nan)
    monkeypatch.setattr(Builder, 'build', lambda self, way: run)
    fast = as_model(net_of(), fast='bfloat16', **OPTIONS)
    with pytest.warns(UserWarning, match='bfloat16: (failed|differs)'): same(fast, as_model(net_of(), **OPTIONS), disc())


def test_a_label_only_model():
    class Labels(nn.Module):
        def forward(self, x): return (x[:, 0] > .5).long()
    options = dict(activation='labels', classes=OPTIONS['classes'])
    fast, exact = as_model(Labels(), fast='onnxruntime', **options), as_model(Labels(), **options)
    same(fast, exact, disc())
    assert fast.engine.name == 'onnxruntime'


def test_classes_that_overlap_and_several_outputs():
    class Two(nn.Module):
        def forward(self, x): return dict(aux=x[..., ::2, ::2], out=torch.cat([x - .5, x - .8], 1)*20)
    options = dict(activation='sigmoid', classes=('whole', 'core'), output='out')
    fast, exact = as_model(Two(), fast='onnxruntime', **options), as_model(Two(), **options)
    assert np.array_equal(fast.masks(disc()), exact.masks(disc())) and fast.engine.name == 'onnxruntime'


def test_chance_and_hooks_are_left_to_the_exact_network():
    class Chance(nn.Module):
        def forward(self, x): return torch.cat([.5 - x, x - .5], 1) + torch.randn(1)
    fast = as_model(Chance(), fast='channels last', **OPTIONS)
    with pytest.warns(UserWarning, match='does not answer twice in the same way'): fast.label(disc())
    net, seen = net_of(), []
    net[0].register_forward_hook(lambda *args: seen.append(1))
    heard = as_model(net, fast='channels last', **OPTIONS)
    heard.label(disc())
    assert len(seen) == 1 and heard.engine.name is None and 'hooks' in repr(heard.engine)


def test_other_weights_are_noticed():
    net = net_of()
    fast = as_model(net, fast='onnxruntime', **OPTIONS)
    assert fast.label(disc()).any()
    with torch.no_grad(): net[2].bias[1] = -1000
    assert not fast.label(disc()).any() and fast.engine.name == 'onnxruntime'


# ---- batches, windows, sizes ----

def test_batches_and_sizes():
    fast, exact = as_model(net_of(), fast='onnxruntime', batch_size=3, **OPTIONS), as_model(net_of(), **OPTIONS)
    stack = np.stack([disc(seed=k).image for k in range(7)])
    same(fast, exact, stack)
    same(fast, exact, stack)
    assert (3, 1, 24, 24) in fast.engine.runs
    for size in range(10, 20): same(fast, exact, disc(size=size))
    assert len(fast.engine.runs) <= engines.SIZES and fast.engine.name == 'onnxruntime'


def test_windows_slices_and_wrappers():
    volume = disc(3, 20)
    fast, exact = (as_model(net_of(3), window=12, fast=way, **OPTIONS) for way in ('onnxruntime', False))
    same(fast, exact, volume)
    assert fast.engine.name == 'onnxruntime' and list(fast.engine.runs) == [(1, 1, 12, 12, 12)]
    thin, plain = (as_model(net_of(), fast=way, **OPTIONS).slicewise() for way in ('onnxruntime', False))
    same(thin, plain, volume)
    same(thin.channel('disc'), plain.channel('disc'), volume)
    assert thin.channel('disc').engine is thin.engine and thin.engine.name == 'onnxruntime'


def test_an_existing_model_gets_one():
    exact = as_model(net_of(3), window=12, **OPTIONS)
    fast = as_model(exact, fast='onnxruntime')
    same(fast, exact, disc(3, 20))
    assert exact.engine is None and fast.engine.name == 'onnxruntime'


def test_inference_mode_and_images_that_want_a_gradient():
    fast, exact = as_model(net_of(), fast='onnxruntime', **OPTIONS), as_model(net_of(), **OPTIONS)
    image = torch.tensor(disc().image)[None]
    with torch.inference_mode(): same(fast, exact, image)
    same(fast, exact, image.requires_grad_())
    fast.logits(image).sum().backward()
    assert image.grad.abs().sum() > 0


# ---- later ----

def test_wrong_at_the_fiftieth_only():
    fast, exact = as_model(net_of(), fast='channels last', **OPTIONS), as_model(net_of(), **OPTIONS)
    fast.label(disc())
    spoil(fast, EVERY - 1)
    images = [disc(seed=k) for k in range(EVERY - 1)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for image in images: same(fast, exact, image)
    with pytest.warns(UserWarning, match=f'differed on answer {EVERY}.*{EVERY - 1 - FIRST} answers since') as told:
        same(fast, exact, disc(seed=99))
    assert len(told) == 1 and fast.engine.name == EXACT
    same(fast, exact, disc(seed=100))


def test_no_more_comparisons_than_said():
    fast = as_model(net_of(), fast='channels last', **OPTIONS)
    for k in range(2*EVERY + 1): fast.label(disc(seed=k))
    assert (fast.engine.answers, fast.engine.compared) == (2*EVERY, FIRST + 2)


def test_a_sweep_is_done_again():
    fast, exact = as_model(net_of(), fast='channels last', **OPTIONS), as_model(net_of(), **OPTIONS)
    fast.label(disc())
    spoil(fast, FIRST + 2)
    with pytest.warns(UserWarning, match='the exact network answers from now on'):
        found = sensitivity(fast, disc(), Brightness(), progress=False)
    assert found.frame.equals(sensitivity(exact, disc(), Brightness(), progress=False).frame)
    assert in_one_go(exact, lambda: 3) == 3


def test_attribution_is_the_same():
    fast, exact = as_model(net_of(), fast='bfloat16', **OPTIONS), as_model(net_of(), **OPTIONS)
    same(fast, exact, disc())
    for method in ('saliency', 'occlusion'):
        maps = [attribute(model, disc(), Target('disc'), method).map for model in (fast, exact)]
        assert np.array_equal(*maps)
    assert torch.equal(fast.logits(disc()), exact.logits(disc()))
    assert fast.engine.answers == 0 and fast.innermost.copy().engine is None


def test_copies_begin_anew():
    fast = as_model(net_of(), fast='onnxruntime', **OPTIONS)
    fast.label(disc())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.engine.name is None and not other.engine.runs and other.engine.wanted == 'onnxruntime'
        same(other, fast, disc())
        assert other.engine.name == 'onnxruntime'


# ---- studies ----

def scores(study): return study.frame.sort_values(['sample', 'transform', 'value'], ignore_index=True)


def test_a_study_notes_it_and_does_not_mix(tmp_path):
    cases, transforms, net = [disc(seed=k) for k in range(2)], [Brightness([.5, 1, 2])], net_of()
    exact = Study(tmp_path/'exact', {'net': as_model(net, **OPTIONS)}, transforms).run(cases, progress=False)
    fast = Study(tmp_path/'fast', {'net': as_model(net, fast=True, **OPTIONS)}, transforms)
    assert fast.settings['models']['net']['engine'] == 'fast' and exact.engines.empty
    fast.models['net'].engine.only = 'onnxruntime'
    fast.run(cases, progress=False)
    assert fast.engines.values.tolist() == [['net', 'onnxruntime', 2]]
    assert scores(fast).equals(scores(exact))
    for model in (as_model(net, **OPTIONS), as_model(net, fast='bfloat16', **OPTIONS)):
        with pytest.raises(ValueError, match='models.net.engine was'): Study(tmp_path/'fast', {'net': model}, transforms)
    later = as_model(net, fast=True, **OPTIONS)
    Study(tmp_path/'fast', {'net': later}, transforms).run([*cases, disc(seed=2)], progress=False)
    assert later.engine.name == 'onnxruntime'  # as the study began


def test_an_engine_that_fails_in_a_study(tmp_path):
    cases, transforms, net = [disc(seed=k) for k in range(3)], [Brightness([.5, 1, 2]), Rotation([-9, 0, 9])], net_of()
    exact = Study(tmp_path/'exact', {'net': as_model(net, **OPTIONS)}, transforms).run(cases, progress=False)
    fast = as_model(net, fast='channels last', **OPTIONS)
    fast.label(disc())
    spoil(fast, 8)
    study = Study(tmp_path/'fast', {'net': fast}, transforms)
    with pytest.warns(UserWarning, match='models.net: its engine channels last differed.*was done anew'):
        study.run(cases, progress=False)
    assert scores(study).equals(scores(exact))
    assert sorted(study.engines.engine) == ['channels last', EXACT]
    again = as_model(net, fast='channels last', **OPTIONS)
    Study(tmp_path/'fast', {'net': again}, transforms).run([*cases, disc(seed=7)], progress=False)
    assert again.engine.name == EXACT


def test_in_other_processes(tmp_path):
    cases, net = [disc(seed=k) for k in range(3)], net_of()
    fast = Study(tmp_path, {'net': as_model(net, fast='channels last', **OPTIONS)}, [Brightness([.5, 1, 2])])
    fast.run(cases, n_jobs=2, threads=1, progress=False)
    assert fast.engines.values.tolist() == [['net', 'channels last', 3]] and fast.failures.empty


# ---- what counts as the same ----

def test_agreement():
    assert Agreement().fine and not Agreement(labels=.99).fine and not Agreement(dice=.99).fine
    assert Agreement(.9999, 1., 0.) | Agreement(1., .9995, .0001) == Agreement(.9999, .9995, .0001)
    model = as_model(net_of(), **OPTIONS)
    model.label(disc())
    one = torch.zeros(1, 2, 100, 100)
    one[:, 0], other = 5, one.clone()
    other[:, :, 0, 0] = torch.tensor([0., 9.])  # a voxel where there is nothing
    assert not engines.agreement(model, one, other, 2).fine and engines.agreement(model, one, one, 2).fine


def test_ways_say_what_they_are():
    assert all(way.name == name and isinstance(way, Way) for name, way in WAYS.items())
    double = as_model(net_of().double(), fast='bfloat16', **OPTIONS)
    same(double, as_model(net_of().double(), **OPTIONS), disc())
