"Between two runs something is edited: a file, an option, a line of code, a weight. Each edit is refused or redone, and nothing old is ever mixed with new."
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from misas.data.cohort import cohort
from misas.data.content import Files, identity
from misas.data.fingerprint import fingerprint, unknown
from misas.data.io import save
from misas.data.phantom import ThresholdModel, disc
from misas.data.sample import Sample
from misas.metrics.metric import Metric
from misas.models.adapt import as_model
from misas.study.study import Study
from misas.transforms.base import Transform, from_function
from misas.transforms.intensity import Brightness, Noise
from misas.transforms.voxels import Flip

cloudpickle.register_pickle_by_value(sys.modules[__name__])
QUIET = dict(progress=False)
DISCS = [disc((14, 14), radius=4 + i/2, object=.8, background=.2).replace(name=f'case {i}') for i in range(4)]


def above(x): return (x[:, 0] > .5).astype(int)
def named(f, name='m', **kw): return as_model(f, classes=('background', 'disc'), name=name, **kw)


# --- code: a source, and what is edited in it

HEAD = '''
import functools, types, math
from functools import partial
import numpy as np, torch
from torch import nn
torch.manual_seed(0)
image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
'''
NET = '''
class Net(nn.Module):
    {0}
    def __init__(self):
        super().__init__()
        {1}
    def forward(self, x): {2}
model = Net()
'''


def net(init='', forward='return x', body='pass'): return NET.format(body, init or 'pass', forward)


EDITS = {
    'a global number': ('T = .5\ndef model(x): return (x[:, 0] > T).astype(int)', 'T = .5', 'T = .4'),
    'a global list': ('T = [.5]\ndef model(x): return (x[:, 0] > T[0]).astype(int)', '[.5]', '[.4]'),
    'a global dict inside a list': ('T = [dict(a=.5)]\ndef model(x): return (x[:, 0] > T[0]["a"]).astype(int)', '.5', '.4'),
    'a global array': ('T = np.full(3, .5)\ndef model(x): return (x[:, 0] > T[0]).astype(int)', '.5', '.4'),
    'a global tensor': ('T = torch.tensor(.5)\ndef model(x): return (x[:, 0] > T).long()', '.5', '.4'),
    'a bfloat16 tensor': ('T = torch.tensor(.5).bfloat16()\ndef model(x): return (x[:, 0] > float(T)).astype(int)', '.5', '.4'),
    'a sparse tensor': ('T = torch.eye(3).mul(.5).to_sparse()\ndef model(x): return x[:, 0] > T.to_dense()[0, 0].item()', '.5', '.4'),
    'a global network': ('net = nn.Conv2d(1, 2, 1)\ndef model(x): return net(torch.as_tensor(x)).detach().numpy()', 'net = nn.Conv2d(1, 2, 1)', 'net = nn.Conv2d(1, 2, 1)\nnet.weight.data.neg_()'),
    'the mode of a global network': ('net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout()).eval()\ndef model(x): return net(torch.as_tensor(x)).detach().numpy()', '.eval()', '.train()'),
    'a network in a list': ('nets = [nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)]\ndef model(x): return sum(n(torch.as_tensor(x)) for n in nets).detach().numpy()', 'def', 'nets[1].bias.data += 1\ndef'),
    'a helper': ('def h(x): return x*2\ndef model(x): return h(x)', 'x*2', 'x*3'),
    'the helper of a helper': ('def a(x): return x*2\ndef b(x): return a(x)\ndef model(x): return b(x)', 'x*2', 'x*3'),
    'a constant of a helper': ('K = 2\ndef h(x): return x*K\ndef model(x): return h(x)', 'K = 2', 'K = 3'),
    'a constant in a lambda inside': ('K = 2\ndef model(x): return list(map(lambda v: v*K, x))', 'K = 2', 'K = 3'),
    'a constant in a comprehension': ('K = 2\ndef model(x): return np.stack([v*K for v in x])', 'K = 2', 'K = 3'),
    'a constant in a nested function': ('K = 2\ndef model(x):\n    def inner(v):\n        def deep(w): return w*K\n        return deep(v)\n    return inner(x)', 'K = 2', 'K = 3'),
    'a nested function itself': ('def model(x):\n    def inner(v): return v*2\n    return inner(x)', 'v*2', 'v*3'),
    'a default': ('def model(x, k=2): return x*k', 'k=2', 'k=3'),
    'a keyword default': ('def model(x, *, k=2): return x*k', 'k=2', 'k=3'),
    'a closure': ('def make(k):\n    def f(x): return x*k\n    return f\nmodel = make(2)', 'make(2)', 'make(3)'),
    'a closure over a function': ('def make(g):\n    def f(x): return g(x)\n    return f\nmodel = make(lambda x: x*2)', 'x*2', 'x*3'),
    'a closure over a network': ('def make(n):\n    return lambda x: n(torch.as_tensor(x)).detach().numpy()\nn = nn.Conv2d(1, 2, 1)\nmodel = make(n)', 'model =', 'n.weight.data += 1\nmodel ='),
    'a partial': ('def f(x, k): return x*k\nmodel = partial(f, k=2)', 'k=2)', 'k=3)'),
    'the function of a partial': ('def f(x, k): return x*k\nmodel = partial(f, k=2)', 'x*k', 'x/k'),
    'a decorator': ('def twice(f):\n    @functools.wraps(f)\n    def g(x): return f(x)*2\n    return g\n@twice\ndef model(x): return x', '*2', '*3'),
    'what a decorator wraps': ('def twice(f):\n    @functools.wraps(f)\n    def g(x): return f(x)*2\n    return g\n@twice\ndef model(x): return x', 'return x', 'return x + 1'),
    'under no_grad': ('@torch.no_grad()\ndef model(x): return torch.as_tensor(x)*2', '*2', '*3'),
    'what is cached': ('@functools.lru_cache\ndef k(): return 2\ndef model(x): return x*k()', 'return 2', 'return 3'),
    'an attribute of a function': ('def model(x): return x*model.k\nmodel.k = 2', 'k = 2', 'k = 3'),
    'an attribute of an object': ('class C: pass\nc = C()\nc.k = 2\ndef model(x): return x*c.k', 'k = 2', 'k = 3'),
    'an attribute of a namespace': ('c = types.SimpleNamespace(k=2)\ndef model(x): return x*c.k', 'k=2', 'k=3'),
    'a class attribute': ('class C:\n    k = 2\ndef model(x): return x*C.k', 'k = 2', 'k = 3'),
    'an attribute of a parent': ('class P:\n    k = 2\nclass C(P): pass\ndef model(x): return x*C().k', 'k = 2', 'k = 3'),
    'a slot': ('class C:\n    __slots__ = ("k",)\nc = C()\nc.k = 2\ndef model(x): return x*c.k', 'k = 2', 'k = 3'),
    'a property': ('class C:\n    @property\n    def k(self): return 2\nc = C()\ndef model(x): return x*c.k', 'return 2', 'return 3'),
    'a static method': ('class C:\n    @staticmethod\n    def k(): return 2\ndef model(x): return x*C.k()', 'return 2', 'return 3'),
    'a class method': ('class C:\n    @classmethod\n    def k(cls): return 2\ndef model(x): return x*C.k()', 'return 2', 'return 3'),
    'an enum': ('import enum\nclass E(enum.Enum):\n    a = 2\ndef model(x): return x*E.a.value', 'a = 2', 'a = 3'),
    'a dataclass': ('import dataclasses\n@dataclasses.dataclass\nclass C:\n    k: int = 2\nc = C()\ndef model(x): return x*c.k', '= 2', '= 3'),
    'a named tuple': ('import collections\nc = collections.namedtuple("C", "k")(2)\ndef model(x): return x*c.k', '(2)', '(3)'),
    'a call': ('class C:\n    def __call__(self, x): return x*2\nmodel = C()', 'x*2', 'x*3'),
    'a method that a call uses': ('class C:\n    def __call__(self, x): return self.h(x)\n    def h(self, x): return x*2\nmodel = C()', 'x*2', 'x*3'),
    'a method of a parent': ('class P:\n    def h(self, x): return x*2\nclass C(P):\n    def __call__(self, x): return self.h(x)\nmodel = C()', 'x*2', 'x*3'),
    'an attribute of a callable': ('class C:\n    def __init__(self): self.k = 2\n    def __call__(self, x): return x*self.k\nmodel = C()', 'k = 2', 'k = 3'),
    'a bound method': ('class C:\n    def __init__(self): self.k = 2\n    def f(self, x): return x*self.k\nmodel = C().f', 'k = 2', 'k = 3'),
    'two closures exchanged': ('def make(k): return lambda x: x*k\nfs = [make(2), make(3)]\ndef model(x): return fs[0](x) - fs[1](x)', '[make(2), make(3)]', '[make(3), make(2)]'),
    'functions that call each other': ('def a(x, n): return b(x, n - 1) if n else x\ndef b(x, n): return a(x*2, n)\ndef model(x): return a(x, 1)', 'x*2', 'x*3'),
    'an object that holds itself': ('class C: pass\nc = C()\nc.me, c.k = c, 2\ndef model(x): return x*c.me.k', 'c, 2', 'c, 3'),
    'a monkeypatch of a library': ('import torch.nn.functional as F\ndef own(x): return x*2\nF.misas_own = own\ndef model(x): return F.misas_own(x)', 'x*2', 'x*3'),
    'a name that is looked up': ('class C: pass\nc = C()\nc.k = 2\ndef model(x): return x*getattr(c, "k")', 'k = 2', 'k = 3'),
    'a regular expression': ('import re\nr = re.compile("a")\ndef model(x): return x*len(r.findall("ab"))', '"a")', '"[ab]")'),
    'a table': ('import pandas as pd\nt = pd.DataFrame(dict(k=[2]))\ndef model(x): return x*t.k[0]', '[2]', '[3]'),
    'a masked array': ('t = np.ma.masked_equal([1, 2, 3], 2)\ndef model(x): return x*t.sum()', ', 2)', ', 3)'),
    'a plain tensor of a network': (net('self.k = torch.tensor(2.)', 'return x*self.k'), '2.', '3.'),
    'a non-persistent buffer': (net('self.register_buffer("k", torch.tensor(2.), persistent=False)', 'return x*self.k'), '2.', '3.'),
    'a list of tensors': (net('self.k = [torch.tensor(2.)]', 'return x*self.k[0]'), '2.', '3.'),
    'a dict of a network': (net('self.k = dict(a=2.)', 'return x*self.k["a"]'), '2.', '3.'),
    'a function of a network': (net('self.f = lambda v: v*2', 'return self.f(x)'), 'v*2', 'v*3'),
    'an object of a network': (net('self.c = C()', 'return x*self.c.k').replace('class Net', 'class C:\n    k = 2\nclass Net'), 'k = 2', 'k = 3'),
    'a network hidden in a list': (net('self.parts = [nn.Conv2d(1, 2, 1)]', 'return self.parts[0](x)'), 'model = Net()', 'model = Net()\nmodel.parts[0].bias.data += 1'),
    'a private number of a network': (net('self._k = 2.', 'return x*self._k'), '2.', '3.'),
    'a helper of a network': (net('', 'return self.h(x)', 'def h(self, x): return x*2'), 'x*2', 'x*3'),
    'a class attribute of a network': (net('', 'return x*self.k', 'k = 2'), 'k = 2', 'k = 3'),
    'a global of a network': ('K = 2\n' + net('', 'return x*K'), 'K = 2', 'K = 3'),
    'a parameter': (net('self.w = nn.Parameter(torch.tensor(2.))', 'return x*self.w'), '2.', '3.'),
    'one weight of many': (net('self.c = nn.Conv2d(1, 9, 3)', 'return self.c(x)'), 'model = Net()', 'model = Net()\nmodel.c.weight.data[3, 0, 1, 1] += 1e-6'),
    'an option of a layer': (net('self.c = nn.LeakyReLU(.1)', 'return self.c(x)'), '.1', '.2'),
    'padding of a layer': (net('self.c = nn.Conv2d(1, 2, 3, padding=1)', 'return self.c(x)'), 'padding=1', 'padding=1, padding_mode="reflect"'),
    'two layers exchanged': ('model = nn.Sequential(nn.ReLU(), nn.Tanh())', 'nn.ReLU(), nn.Tanh()', 'nn.Tanh(), nn.ReLU()'),
    'statistics of a BatchNorm': ('model = nn.BatchNorm2d(1).eval()', 'eval()', 'eval()\nmodel.running_mean += 1'),
    'a forward hook': ('model = nn.Conv2d(1, 2, 1)\nmodel.register_forward_hook(lambda m, a, out: out*2)', 'out*2', 'out*3'),
    'a hook more': ('model = nn.Conv2d(1, 2, 1)', '(1, 2, 1)', '(1, 2, 1)\nmodel.register_forward_hook(lambda m, a, out: -out)'),
    'a pre-hook': ('model = nn.Conv2d(1, 2, 1)\nmodel.register_forward_pre_hook(lambda m, a: a[0]*2)', '*2', '*3'),
    'a hook of a layer inside': ('model = nn.Sequential(nn.Conv2d(1, 2, 1))\nmodel[0].register_forward_hook(lambda m, a, out: out*2)', 'out*2', 'out*3'),
    'a forward put on the object': ('model = nn.Conv2d(1, 2, 1)\nmodel.forward = lambda x: x*2', 'x*2', 'x*3'),
    'a method put on the object': ('model = nn.Conv2d(1, 2, 1)\ndef f(self, x): return x*2\nmodel.forward = types.MethodType(f, model)', 'x*2', 'x*3'),
    'a forward put on the class': ('class L(nn.Conv2d): pass\nmodel = L(1, 2, 1)\ndef f(self, x): return x*2\nL.forward = f', 'x*2', 'x*3'),
    'a parametrization': ('from torch.nn.utils import parametrize\nclass P(nn.Module):\n    def forward(self, w): return w*2\nmodel = nn.Conv2d(1, 2, 1)\nparametrize.register_parametrization(model, "weight", P())', 'w*2', 'w*3'),
    'a pruning mask': ('from torch.nn.utils import prune\nmodel = nn.Conv2d(1, 4, 3)\nprune.l1_unstructured(model, "weight", amount=.1)', '.1', '.5'),
    'extra state': (net('', 'return x*self.get_extra_state()', 'def get_extra_state(self): return self._k\n    @property\n    def _k(self): return 2.'), '2.', '3.'),
    'a class of a network with the same name': ('class L(nn.Module):\n    def forward(self, x): return x*2\nmodel = nn.Sequential(L())', 'x*2', 'x*3'),
    'a trace': ('model = torch.jit.trace(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 8, 8))', '(1, 2, 1)', '(1, 2, 1, bias=False)'),
    'constants of a trace': ('K = torch.arange(64.).reshape(8, 8)\ndef f(x): return x*K\nmodel = torch.jit.trace(f, torch.zeros(1, 1, 8, 8))', 'arange(64.)', 'arange(64.).flip(0)'),
}


def built(source):
    "What the source of a notebook makes."
    space = {'__name__': 'a_notebook'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exec(compile(HEAD + source, '<cell>', 'exec'), space)
    return space


@pytest.mark.parametrize('source, old, new', list(EDITS.values()), ids=list(EDITS))
def test_code(source, old, new):
    "An edit is seen; the same again, used, and in another process, is the same."
    assert source.count(old) == 1
    space = built(source)
    model, first = space['model'], fingerprint(space['model'])
    other = fingerprint(built(source.replace(old, new))['model'])
    assert fingerprint(built(source)['model']) == first != other
    for _ in range(2):
        try: model(torch.as_tensor(space['image']))
        except (TypeError, RuntimeError, AttributeError): model(space['image'])
        assert fingerprint(model) == first
    try: data = cloudpickle.dumps(model)
    except Exception: return                                                  # torch has no pickle of it
    assert fingerprint(cloudpickle.loads(data)) == first


def test_the_same_in_another_process():
    "No address, no order of a set, no counter of a session goes in."
    sources = [source for source, _, _ in EDITS.values()]
    code = 'import sys; sys.path.insert(0, "tests")\nimport test_identity as t\nfor one in t.EDITS.values(): print(t.fingerprint(t.built(one[0])["model"]))'
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parent.parent, env={**os.environ, 'PYTHONHASHSEED': '7'}).stdout.split()
    assert out == [fingerprint(built(source)['model']) for source in sources]


class Memory:
    "What a call leaves behind is no part of what it does."
    def __init__(self): self.level, self.calls, self.seen, self.net = .5, 0, [], None
    def __call__(self, x):
        self.calls += 1
        self.seen.append(x.shape)
        if self.net is None: self.net = self.load()
        self.last = x
        return (x[:, 0] > self.level).astype(int)
    def load(self): return nn.Conv2d(1, 1, 1)


class Looking(nn.Module):
    def forward(self, x):
        self.attention = x.softmax(1)
        return torch.cat([1 - x.clamp(0, 1), x.clamp(0, 1)], 1)


COUNT = 0
LOG = []


def counting(x):
    global COUNT
    COUNT += 1
    LOG.append(COUNT)
    return above(x)


@pytest.mark.parametrize('make', [Memory, Looking, lambda: counting, lambda: nn.Sequential(nn.BatchNorm2d(1), Looking())],
                         ids=['object', 'network', 'function', 'BatchNorm'])
def test_use_is_no_change(tmp_path, make):
    model = make()
    activation = 'none' if isinstance(model, nn.Module) else 'labels'
    def run(n): return Study(tmp_path/'s', named(model, activation=activation), Noise([.1])).run(DISCS[:n], **QUIET)
    before = fingerprint(as_model(model))
    run(2)
    assert fingerprint(as_model(model)) == before and run(4).frame['sample'].nunique() == 4


# --- models, transforms, metrics: refused, and the folder stays as it is

class Darker(Transform):
    name, identity, values = 'darker', 0., (0., .1)
    by = 1.
    def apply(self, sample, value): return sample.replace(image=self.change(sample.image, value))
    def change(self, image, value): return image - self.by*value


class Darkest(Darker):
    def change(self, image, value): return image - 6*value


def patched():
    t = Brightness([1, .5])
    t.apply = lambda sample, value: sample
    return t


def fixed(value):
    t = Brightness().at(value) + Noise([.1])
    t.name = 'both'
    return t


def own(k): return from_function(lambda_of(k), 'own', [0, .1], 0)
def lambda_of(k):
    def f(image, v): return image - k*v
    return f
def moving(inverse): return from_function(shift, 'moves', [0, 1], 0, spatial=True, inverse=inverse)
def shift(image, v): return np.roll(image, int(v), 1)
def back(image, v): return np.roll(image, -int(v), 1)
def wrong(image, v): return np.roll(image, -2*int(v), 1)
wrong.__name__ = 'back'
Darkest.__name__, Darkest.__qualname__ = 'Darker', 'Darker'
def missed(p, t): return float((t & ~p).sum())
def also(p, t): return float((t & ~p).sum() + 1)
also.__name__ = 'missed'


class Missed:
    def __init__(self, k): self.k = k
    def __call__(self, p, t): return float((t & ~p).sum())*self.k
    def of(self, p, t): return float((t & ~p).sum())*self.k


def darker(by=1.):
    t = Darker()
    t.by = by
    return t


REFUSED = {
    'weights': (dict(models=lambda: nn.Conv2d(1, 2, 1)), None),
    'class of a transform': (dict(transforms=Darker), dict(transforms=Darkest)),
    'attribute of a transform': (dict(transforms=darker), dict(transforms=lambda: darker(2.))),
    'function of a transform': (dict(transforms=lambda: own(1)), dict(transforms=lambda: own(6))),
    'function in a stack': (dict(transforms=lambda: own(1) + Noise().at(.01)), dict(transforms=lambda: own(6) + Noise().at(.01))),
    'class in a stack': (dict(transforms=lambda: Darker() + Noise().at(.01)), dict(transforms=lambda: Darkest() + Noise().at(.01))),
    'inverse': (dict(transforms=lambda: moving(back), space='original'), dict(transforms=lambda: moving(wrong), space='original')),
    'a fixed part': (dict(transforms=lambda: fixed(.9)), dict(transforms=lambda: fixed(.8))),
    'values': (dict(transforms=lambda: Noise([.1])), dict(transforms=lambda: Noise([.1, .2]))),
    'a method put on a transform': (dict(transforms=lambda: Brightness([1, .5])), dict(transforms=patched)),
    'a metric': (dict(metrics=missed), dict(metrics=also)),
    'a Metric': (dict(metrics=Metric('m', missed)), dict(metrics=Metric('m', also))),
    'better of a Metric': (dict(metrics=Metric('m', missed)), dict(metrics=Metric('m', missed, 'lower'))),
    'a callable metric': (dict(metrics=Missed(1)), dict(metrics=Missed(2))),
    'a method as a metric': (dict(metrics=Missed(1).of), dict(metrics=Missed(2).of)),
    'preprocess': (dict(models=lambda: named(above, preprocess=lambda x: x*1.)), dict(models=lambda: named(above, preprocess=lambda x: x*2.))),
    'output': (dict(models=lambda: named(above, output=lambda o: o)), dict(models=lambda: named(above, output=lambda o: o*1))),
    'multiple_of': (dict(models=lambda: named(above)), dict(models=lambda: named(above, multiple_of=16))),
    'size': (dict(models=lambda: named(above)), dict(models=lambda: named(above, size=16))),
    'classes kept': (dict(models=lambda: as_model(two, classes=('b', 'disc', 'x'), name='m').keep('disc')), dict(models=lambda: as_model(two, classes=('b', 'x', 'disc'), name='m').keep('disc'))),
    'reference': (dict(reference='labels'), dict(reference='prediction')),
    'a version': (dict(models=lambda: versioned('1')), dict(models=lambda: versioned('2'))),
}


def two(x): return np.stack([x[:, 0] < .5, x[:, 0] >= .5, 0*x[:, 0]], 1).astype(np.float32)


def versioned(version):
    def f(x): return above(x*np.load('flat.npy')) if x is None else above(x)
    f.version = version
    return named(f)


def study(folder, **kw):
    given = {'models': lambda: named(above), 'transforms': lambda: Noise([.1]), 'metrics': 'dice', **kw}
    models, transforms = given.pop('models')(), given.pop('transforms')()
    models = {'m': named(models, activation='softmax')} if isinstance(models, nn.Module) else models
    return Study(folder, models, transforms, **given)


@pytest.mark.parametrize('before, after', list(REFUSED.values()), ids=list(REFUSED))
def test_refused(tmp_path, before, after):
    "What is there already must not change under its name; the same once more goes on."
    torch.manual_seed(0)
    first = study(tmp_path/'s', **before)
    if after is None: before = dict(models=lambda: first.models['m'])
    frame = first.run(DISCS[:2], **QUIET).frame
    assert not frame.empty
    if after is not None: assert study(tmp_path/'s', **before).run(DISCS[:2], **QUIET).frame.equals(frame)
    with pytest.raises(ValueError, match='holds a study with other settings: .* was .* and is .* now'): study(tmp_path/'s', **(after or dict(models=lambda: nn.Conv2d(1, 2, 1))))
    assert Study(tmp_path/'s').frame.equals(frame)


# --- cases: done anew

def written(folder):
    folder.mkdir()
    for i, s in enumerate(DISCS[:2]):
        volume = Sample(np.stack([s.image]*4, -1), np.stack([2*s.labels + 1]*4, -1), spacing=1., name=s.name)
        save(volume, folder/f'{i}.nii.gz')
    return [dict(image=folder/f'{i}.nii.gz', labels=folder/f'{i}_labels.nii.gz', label_map={1: 0, 3: 1}) for i in range(2)]


def rewritten(path, f):
    "A file with other values, as long as before if need be, and dated back."
    import nibabel as nib
    old, stat = nib.load(path), os.stat(path)
    new = nib.Nifti1Image(f(np.asanyarray(old.dataobj)), old.affine, old.header)
    nib.save(new, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def moved_header(path):
    import nibabel as nib
    old = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(old.dataobj), old.affine + np.diag([0, 0, 1., 0])), path)


def both(rows, f):
    for k in ('image', 'labels'): f(rows[1][k])


def exchanged(rows):
    a, b = rows[0]['image'], rows[1]['image']
    third = a.with_name('third.nii.gz')
    shutil.move(a, third)
    shutil.move(b, a)
    shutil.move(third, b)


CASES = {
    'a corrected mask': lambda rows: rewritten(rows[1]['labels'], lambda a: np.roll(a, 3, 0)),
    'one voxel of an image': lambda rows: rewritten(rows[1]['image'], lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, .9, a)),
    'a brighter image': lambda rows: rewritten(rows[1]['image'], lambda a: a*1.5),
    'the spacing in the header': lambda rows: both(rows, moved_header),
    'label_map': lambda rows: rows[1].update(label_map={1: 1, 3: 0}),
    'no label_map': lambda rows: rows[1].update(label_map={1: 0, 3: 1, 7: 1}),
    'window': lambda rows: rows[1].update(window=(.5, .5)),
    'spacing': lambda rows: rows[1].update(spacing=(1., 1., 1.)),
    'classes': lambda rows: rows[1].update(classes=('background', 'round')),
    'regions': lambda rows: rows[1].update(regions={'whole': (1,)}, label_map=None),
    'another file under the name': lambda rows: rows[1].update(image=rows[0]['image'], name='1'),
    'two files exchanged': exchanged,
}


def cases_of(rows): return [{k: v for k, v in row.items() if v is not None} for row in rows]


@pytest.mark.parametrize('edit', list(CASES.values()), ids=list(CASES))
def test_redone(tmp_path, edit):
    "A case that is not what it was is done anew, and told; the others stay."
    rows, kw = written(tmp_path/'data'), dict(models=lambda: named(two_d))
    first = study(tmp_path/'s', **kw).run(cases_of(rows), **QUIET)
    before = first.frame
    edit(rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        after = study(tmp_path/'s', **kw).run(cases_of(rows), **QUIET)
        fresh = study(tmp_path/'fresh', **kw).run(cases_of(rows), **QUIET)
    assert any('not what they were' in str(one.message) for one in told)
    assert after.frame.equals(fresh.frame) and after.failures.equals(fresh.failures)
    if edit is not exchanged: assert after.frame[after.frame['sample'] == '0'].equals(before[before['sample'] == '0'])


def two_d(x): return (x[:, 0] > .5).astype(int)


@pytest.mark.parametrize('field', ['image', 'labels', 'spacing', 'classes', 'valid', 'affine'])
def test_a_sample_is_redone(tmp_path, field):
    s = DISCS[1]
    new = dict(image=s.image*.6, labels=np.roll(s.labels, 3, 0), spacing=(1., 2.), classes=('background', 'ring'), valid=s.image[0] < .5, affine=np.diag([1., 1, 1]))[field]
    study(tmp_path/'s').run(DISCS[:2], **QUIET)
    changed = [DISCS[0], s.replace(**{field: new})]
    with pytest.warns(UserWarning, match="1 of 2 cases are not what they were .*'case 1'"): after = study(tmp_path/'s').run(changed, **QUIET)
    assert after.frame.equals(study(tmp_path/'fresh').run(changed, **QUIET).frame)


def test_a_folder_of_files(tmp_path):
    "Of slices, of channels: one file among them is enough."
    from misas.data.io import load
    a, b = (tmp_path/f'{k}.nii.gz' for k in 'ab')
    for path in (a, b): save(Sample(np.zeros((1, 6, 6, 3)), spacing=1., name='x'), path)
    def mark(): return identity(next(cohort([[a, b]])))
    before = mark()
    save(Sample(np.ones((1, 6, 6, 3)), spacing=1., name='x'), b)
    assert mark() != before and load([a, b]).n_channels == 2
    series = tmp_path/'series'
    series.mkdir()
    for i in range(3): (series/f'{i}.dcm').write_bytes(bytes([i]*9))
    def of(): return identity(next(cohort([series])))
    before = of()
    (series/'1.dcm').write_bytes(bytes([7]*9))
    changed = of()
    (series/'3.dcm').write_bytes(b'9')
    assert len({before, changed, of()}) == 3


def test_load_is_part_of_a_case(tmp_path):
    "A function of one's own, and what it uses."
    paths = [row['image'] for row in written(tmp_path/'data')]
    def run(factor): return study(tmp_path/'s', models=lambda: named(two_d)).run(paths, load=loading(factor), **QUIET)
    before = run(1.).frame
    with pytest.warns(UserWarning, match='2 of 2 cases'): after = run(.5).frame
    assert not after.equals(before)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(.5)


def loading(factor):
    def load(path):
        from misas.data.io import load as read
        image = read(path).image*factor
        return Sample(image, (image[0] > .5).astype(int), spacing=1.)
    return load


def test_all_models_of_a_changed_case_go(tmp_path):
    "Those that are not part of the run, too: a comparison would mix an old and a new image."
    for name in 'ab': study(tmp_path/'s', models=lambda n=name: named(above, name=n)).run(DISCS[:2], **QUIET)
    changed = [DISCS[0], DISCS[1].replace(image=DISCS[1].image*.7)]
    with pytest.warns(UserWarning, match='not what they were'): after = study(tmp_path/'s', models=lambda: named(above, name='a')).run(changed, **QUIET)
    assert set(after.frame[after.frame['sample'] == 'case 1'].model) == {'a'} and set(after.frame.model) == {'a', 'b'}


def test_moved_and_touched(tmp_path):
    "Neither another place nor another date is another case, and nothing is read twice."
    rows = written(tmp_path/'data')
    run = lambda rows: study(tmp_path/'s', models=lambda: named(two_d)).run(cases_of(rows), **QUIET)
    before = {p: p.stat().st_mtime_ns for p in Path(run(rows).folder).rglob('*.parquet')}
    shutil.copytree(tmp_path/'data', tmp_path/'moved')
    for row in rows: row.update({k: tmp_path/'moved'/row[k].name for k in ('image', 'labels')})
    for row in rows: os.utime(row['image'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        after = run(rows)
    assert {p: p.stat().st_mtime_ns for p in Path(after.folder).rglob('*.parquet')} == before


def test_files_are_read_once(tmp_path, monkeypatch):
    from misas.data import content
    rows = written(tmp_path/'data')
    first, case = Files(), next(cohort(rows))
    monkeypatch.setattr(content, 'REST', -1e18)                               # as if they were old
    before = identity(case, first)
    monkeypatch.setattr(content, '_read', lambda path: pytest.fail(f'{path} was read again'))
    again = Files(first.now)
    assert identity(case, again) == before and again.now == first.now
    monkeypatch.undo()
    rewritten(rows[0]['labels'], lambda a: np.roll(a, 1, 0))                   # dated back
    assert identity(case, Files(first.now)) != before


def test_order_and_processes_are_no_difference(tmp_path):
    frames = [study(tmp_path/k).run(cases, n_jobs=n, **QUIET).frame for k, cases, n in
              (('a', DISCS, 1), ('b', DISCS[::-1], 1), ('c', [DISCS[i] for i in (2, 0, 3, 1)], 2))]
    assert frames[0].equals(frames[1]) and frames[0].equals(frames[2])


# --- what cannot be known

def flat(x): return above(x/np.load('flat.npy')) if x is None else above(x)


def test_said_once_and_a_version_is_the_cure(tmp_path):
    "The advice is followed: nothing is said any more, nothing is lost, and another version is refused."
    def make(version=None):
        def flat(x): return above(x/np.load('flat.npy')) if x is None else above(x)
        if version: flat.version = version
        return study(tmp_path/'s', models=lambda: named(flat))
    with pytest.warns(UserWarning, match=r'models\.m: flat uses np\.load, .*flat\.version = "1"'): frame = make().run(DISCS[:2], **QUIET).frame
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert make().run(DISCS[:2], **QUIET).frame.equals(frame)
        assert make('1').run(DISCS[:2], **QUIET).frame.equals(frame)
        assert make('1').run(DISCS[:2], **QUIET).frame.equals(frame)
    with pytest.raises(ValueError, match='other settings'): make('2')


def test_a_version_of_load_is_the_cure(tmp_path):
    def run(version=None):
        def load(i): return np.load('there is none.npy') if i > 9 else DISCS[i]
        if version: load.version = version
        return study(tmp_path/'s').run([0, 1], load=load, **QUIET)
    with pytest.warns(UserWarning, match=r'samples: load uses np\.load.*load\.version = "1"'): frame = run().frame
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert run().frame.equals(frame) and run('1').frame.equals(frame)
    with pytest.warns(UserWarning, match='2 of 2 cases'): run('2')


def reads_open(x): return open('a').read()
def reads_torch(x): return torch.load('a.pt')(x)
def reads_path(x): return Path('a').read_bytes()
def reads_program(x): return subprocess.run(['a'])
def reads_environment(x): return x*float(os.environ['A'])
def reads_late(x):
    import requests
    return requests.get('http://a')
def evaluates(x): return eval('x')
def through(x): return reads_open(x)
class ReadsInside(nn.Module):
    def forward(self, x): return torch.load('a.pt')(x)


@pytest.mark.parametrize('f', [reads_open, reads_torch, reads_path, reads_program, reads_environment, reads_late, evaluates, through, ReadsInside()], ids=lambda f: getattr(f, '__name__', 'module'))
def test_unknown(f): assert unknown(as_model(f))


@pytest.mark.parametrize('f', [above, ThresholdModel(.5), Memory(), Looking(), Flip(), Noise(), nn.Conv2d(1, 2, 3), np.mean, missed],
                         ids=['function', 'model', 'memory', 'looking', 'flip', 'noise', 'convolution', 'mean', 'missed'])
def test_known(f): assert unknown(f) == []
