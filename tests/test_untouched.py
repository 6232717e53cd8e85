"A network is byte for byte what it was: whatever its `eval()` and `forward` do, and whenever stop is pressed."
import copy
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict, deque
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from misas.all import Brightness, Target, as_model, attribute, save, sensitivity
from misas.data.phantom import disc
from misas.doors import open_changes
from misas.models import hold
from misas.models.hold import noted_once, trace, untouched

SAMPLE = disc((12, 10), radius=3)
MASK = SAMPLE.labels == 1
X = torch.tensor(SAMPLE.image[None])


class Base(nn.Module):
    "Two convolutions and something between."
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.begin()

    def begin(self): ...
    def between(self, x): return x
    def forward(self, x): return self.c(self.between(F.relu(self.a(x))))


# --- eval() and train() that do more

class Merging(nn.Conv2d):
    "LoRA: the adapters are added to the weights in evaluation mode, in place."
    def __init__(self):
        super().__init__(4, 4, 1)
        self.down, self.up, self.merged = nn.Parameter(torch.rand(1, 4)), nn.Parameter(torch.rand(4, 1)), False

    def adapters(self): return (self.up @ self.down)[:, :, None, None]

    def train(self, mode=True):
        super().train(mode)
        if mode and self.merged: self.weight.data -= self.adapters()
        if not mode and not self.merged: self.weight.data += self.adapters()
        self.merged = not mode
        return self

    def forward(self, x): return super().forward(x) + (0 if self.merged else F.conv2d(x, self.adapters()))


class Lora(Base):
    def begin(self): self.q = Merging()
    def between(self, x): return self.q(x)


class OnlyEval(Base):
    "`eval()` halves the weights of a module below, and there is no way back."
    def eval(self):
        self.c.weight.data.mul_(.5)
        return super().eval()


class Replaces(Base):
    "The merged weight is another parameter, and the adapters go."
    def begin(self): self.d = nn.Parameter(torch.rand(4, 1, 3, 3))

    def train(self, mode=True):
        if not mode and hasattr(self, 'd'):
            self.a.weight = nn.Parameter(self.a.weight + self.d)
            del self.d
        return super().train(mode)


class NestedMerge(Base):
    "The root merges what lies two modules below."
    def begin(self): self.inner, self.delta = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1))), torch.rand(4, 4, 1, 1)

    def train(self, mode=True):
        with torch.no_grad(): self.inner[0][0].weight.add_(self.delta, alpha=-1 if mode else 1)
        return super().train(mode)

    def between(self, x): return self.inner(x)


class FreezesNorms(Base):
    "As in mmsegmentation."
    def begin(self): self.norm = nn.BatchNorm2d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        self.switched = mode
        return self

    def between(self, x): return self.norm(x)


class ModeIsProperty(Base):
    "The mode lies elsewhere, and changing it costs."
    @property
    def training(self): return self.__dict__.get('mode', True)
    @training.setter
    def training(self, value):
        self.__dict__['mode'] = value
        self.__dict__['changes'] = self.__dict__.get('changes', 0) + 1


class NotesSetting(Base):
    "Notes each attribute that is set."
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        self.__dict__.setdefault('log', []).append(name)


class Hides(Base):
    "A network in a list, which is no submodule."
    def begin(self): self.hidden = [nn.Sequential(nn.Dropout(.5), Merging())]

    def train(self, mode=True):
        super().train(mode)
        self.hidden[0].train(mode)
        return self

    def between(self, x): return self.hidden[0](x)


# --- what forward does

class Clamps(Base):
    def begin(self): self.w = nn.Parameter(torch.randn(4, 1, 1))

    def between(self, x):
        self.w.data.clamp_(0)
        return x*(1 + self.w)


class Renorms(Base):
    "EEGNet: a constraint in forward."
    def between(self, x):
        self.c.weight.data = torch.renorm(self.c.weight.data, 2, 0, .1)
        return x


class Decays(Base):
    def between(self, x):
        with torch.no_grad(): self.c.weight.mul_(.9)
        return x


class NegativeZero(Base):
    def begin(self): self.zero = torch.zeros(3)

    def between(self, x):
        self.zero.neg_()
        return x


class Nested(Base):
    def begin(self):
        self.deep = {'list': [torch.zeros(2), (torch.zeros(1), [torch.zeros(1)])], 'queue': deque([1, 2], 2)}
        self.ordered, self.names, self.array = OrderedDict(a=1, b=2), {'a'}, np.zeros(3)

    def between(self, x):
        self.deep['list'][0] += 1
        self.deep['list'][1][0].add_(1)
        self.deep['list'][1][1].append(x.detach())
        self.deep['list'][1][1][0].fill_(5)
        self.deep['queue'].append(3)
        self.ordered.move_to_end('a')
        self.names.add(len(self.names))
        self.array += 1
        return x


class Counts(Base):
    def begin(self):
        self.n, self.history = 0, []
        self.register_buffer('running', torch.zeros(1))
        self.register_buffer('sizes', torch.zeros(2))

    def between(self, x):
        self.n += 1
        self.history.append(self.n)
        self.running = .9*self.running + .1*x.mean()
        self.sizes.resize_(len(self.sizes) + 1).fill_(self.n)
        self.fresh = x
        return x


class Averages(Base):
    "In place, with gradients: the buffer gets a history."
    def begin(self): self.register_buffer('mean', torch.zeros(1))

    def between(self, x):
        self.mean.mul_(.9).add_(.1*x.mean())
        return x


class Restructures(Base):
    def between(self, x):
        self.a.weight.requires_grad_(True)
        self.c.weight.grad = torch.ones_like(self.c.weight)
        self.extra = nn.Conv2d(4, 4, 1)
        self.c.register_forward_hook(lambda m, i, o: o + 1)
        self.norm = nn.BatchNorm2d(4).to(x.device)
        self.a.__class__ = Renamed
        self.c.bias.note = 'seen'
        return x


class Renamed(nn.Conv2d): "Another class."


class Slots(Base):
    __slots__ = ('extra', 'later')
    def begin(self): self.extra = [0]

    def between(self, x):
        self.extra.append(1)
        self.later = 3
        return x


class Draws(Base):
    def begin(self):
        self.g, self.np, self.py = torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1)

    def between(self, x): return x*(1 + 0*torch.rand(1, generator=self.g) + 0*self.np.random() + 0*self.py.random())


class Shares(Base):
    "Two names of one parameter, and a view of it."
    def begin(self):
        self.again = self.c.weight
        self.view = self.c.weight.detach()[0]

    def between(self, x):
        self.view.mul_(.9)
        return x


class Lists(Base):
    def begin(self): self.ws = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))])

    def between(self, x):
        self.ws[0].data += 1
        self.ws[1] = nn.Parameter(torch.zeros(1))
        return x


def with_(layer):
    class Between(Base):
        def begin(self): self.b = layer()
        def between(self, x): return self.b(x)
    return Between


def spectral(): return nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
def norm_old(): return nn.utils.weight_norm(nn.Conv2d(4, 4, 1))
def norm_new(): return parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
def spectral_new(): return parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))


class Half(nn.Module):
    def forward(self, w): return w/2


def parametrized():
    layer = Merging()
    parametrize.register_parametrization(layer, 'bias', Half())
    return layer


MERGES = dict(lora=Lora, only_eval=OnlyEval, replaces=Replaces, nested_merge=NestedMerge, freezes=FreezesNorms, mode_is_property=ModeIsProperty,
              notes_setting=NotesSetting, hides=Hides, parametrized=with_(parametrized))
WRITES = dict(clamps=Clamps, renorms=Renorms, decays=Decays, negative_zero=NegativeZero, nested=Nested, counts=Counts, averages=Averages, restructures=Restructures,
              slots=Slots, draws=Draws, shares=Shares, lists=Lists)
NORMED = dict(spectral=with_(spectral), spectral_new=with_(spectral_new), norm_old=with_(norm_old), norm_new=with_(norm_new))
ALL = {**MERGES, **WRITES, **NORMED}


def made(kind):
    torch.manual_seed(0)
    net = kind().train()
    net.c.bias.requires_grad_(False)
    net.a.bias.grad = torch.ones_like(net.a.bias)
    return net


def slots(net): return {name: copy.deepcopy(getattr(net, name)) for name in ('extra', 'later') if isinstance(net, Slots) and hasattr(net, name)}


def state(net):
    "All that is known of it; independent of how misas puts it back, but for `trace`."
    own = [(name, id(p), p._version if not name.startswith('hidden') else 0, p.data_ptr(), tuple(p.shape), p.grad_fn is None, dict(vars(p))) for name, p in net.named_parameters()]
    hidden = [trace(m) for m in net.hidden] if isinstance(net, Hides) else []
    drawn = [net.g.get_state().tolist(), str(net.np.bit_generator.state), net.py.getstate()] if isinstance(net, Draws) else []
    return trace(net), own if not isinstance(net, (Decays, Shares, NestedMerge)) else [], slots(net), hidden, drawn, [b.grad_fn is None for b in net.buffers()]


def difference(now, before, where=()):
    if type(now) is type(before) and isinstance(now, dict) and now.keys() == before.keys(): pairs = [(k, now[k], before[k]) for k in now]
    elif type(now) is type(before) and isinstance(now, (list, tuple)) and len(now) == len(before): pairs = list(zip(range(len(now)), now, before))
    else: return f'{where}: {str(before)[:200]} became {str(now)[:200]}'
    return next(difference(a, b, (*where, k)) for k, a, b in pairs if a != b)


def luck(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), torch.is_grad_enabled()


def gradient(model):
    x = X.clone().requires_grad_()
    return torch.autograd.grad(model.logits(x)[0, 1][torch.as_tensor(MASK)].mean(), x)[0]


ASKS = dict(
    predict=lambda m: m.predict(SAMPLE),
    label=lambda m: m.label([SAMPLE, SAMPLE]),
    logits=gradient,
    saliency=lambda m: attribute(m, SAMPLE, Target(1, MASK), 'saliency', progress=False),
    occlusion=lambda m: attribute(m, SAMPLE, Target(1, MASK), 'occlusion', progress=False),
    ig=lambda m: attribute(m, SAMPLE, Target(1, MASK), n_steps=4, progress=False),
    sweep=lambda m: sensitivity(m, SAMPLE, Brightness([.1]), progress=False))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ALL)
def test_nothing_is_left(name):
    net = made(ALL[name])
    model, before, chance = as_model(net, activation='softmax'), state(net), luck()
    for ask, f in ASKS.items():
        for _ in range(2):
            try: f(model)
            except ValueError as e: print(name, ask, e)
            now = state(net)
            if now != before: pytest.fail(f'{ask}: {difference(now, before)}')
            assert luck() == chance or name == 'restructures', ask  # which makes layers
            assert not open_changes()
    if name != 'norm_old': copy.deepcopy(net)  # which it refuses from the start


def reference(name):
    "Score and gradient of a network that is left in evaluation mode, as its owner would ask it."
    net = made(ALL[name]).eval()
    x = X.clone().requires_grad_()
    score = net(x)[0, 1][torch.as_tensor(MASK)].mean()
    return score.item(), torch.autograd.grad(score, x)[0].numpy()[0]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['lora', 'only_eval', 'replaces', 'nested_merge', 'hides', 'freezes', 'slots', 'norm_old', 'decays', 'shares', 'lists', 'clamps'])
def test_answers_are_those_of_evaluation_mode(name):
    score, grad = reference(name)
    model = as_model(made(ALL[name]), activation='softmax')
    for _ in range(3):
        a = attribute(model, SAMPLE, Target(1, MASK), 'saliency', progress=False)
        assert a.score == pytest.approx(score, rel=1e-6)
        assert np.allclose(np.abs(a.map), np.abs(grad), atol=1e-6*np.abs(grad).max())
        assert np.allclose(gradient(model)[0], grad, atol=1e-6*np.abs(grad).max())
    as_it_is = made(ALL[name])
    assert as_model(as_it_is.eval(), activation='softmax').predict(SAMPLE) == pytest.approx(model.predict(SAMPLE), abs=1e-6)
    before = state(as_it_is)
    as_model(as_it_is, activation='softmax').predict(SAMPLE)
    assert state(as_it_is) == before


LIBRARIES = ['rich.style', 'onnx2torch']  # the first draws Python's random numbers, the second torch's
LOADS = '''
import importlib, random, numpy as np, torch
def luck(): return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state().tolist(), torch.initial_seed()
before = luck()
import misas.all
assert luck() == before, 'misas itself'
for name in {names}:
    try: exec('import importlib; importlib.import_module(name)', {{'__name__': 'misas.somewhere', 'name': name}})
    except ImportError: continue
    assert luck() == before, name
'''


def test_libraries_come_quietly():
    subprocess.run([sys.executable, '-c', LOADS.format(names=LIBRARIES)], check=True, timeout=200)


@pytest.mark.parametrize('lost', [30, 60, 170])
@pytest.mark.parametrize('suffix', ['.nrrd', '.mha', '.tif', '.png'])
def test_a_disk_that_is_full_in_the_end(tmp_path, monkeypatch, suffix, lost):
    "The header is longer than what is missing."
    import SimpleITK as sitk
    path = save(SAMPLE.replace(image=0*SAMPLE.image, labels=None), tmp_path/f'a{suffix}')[0]
    before, write = path.read_bytes(), sitk.WriteImage

    def full(im, to, *args, **kw):  # as ITK does: without a word
        write(im, to, *args, **kw)
        Path(to).write_bytes(Path(to).read_bytes()[:-lost])
    monkeypatch.setattr(sitk, 'WriteImage', full)
    noise = np.random.default_rng(0).integers(0, 255, (1, 12, 10)).astype(np.float32)
    with pytest.raises((ValueError, OSError), match=f'a{suffix}.*is the disk full'): save(SAMPLE.replace(image=noise, labels=None), path)
    assert path.read_bytes() == before and [o.name for o in tmp_path.iterdir()] == [path.name]


# --- answers of their own

class Reuses(nn.Module):
    "Writes each answer to the same place."
    def __init__(self, place, kind):
        super().__init__()
        self.c, self.place, self.kind = nn.Conv2d(1, 2, 1), place, kind
        self.kept = [torch.zeros(1, 2, 12, 10)]
        self.array = np.zeros((1, 2, 12, 10), np.float32)
        self.register_buffer('buffer', torch.zeros(1, 2, 12, 10))

    def forward(self, x):
        y = self.c(x).detach()
        if self.kind == 'none': y = y.softmax(1)
        if len(y) > 1: return y
        if self.place == 'array':
            self.array[...] = y
            return torch.from_numpy(self.array)
        if self.place == 'made': self.own = getattr(self, 'own', torch.zeros_like(y))
        return {'list': self.kept[0], 'buffer': self.buffer, 'made': getattr(self, 'own', None)}[self.place].copy_(y)


OTHER = SAMPLE.replace(image=np.roll(SAMPLE.image, 3, 1))


@pytest.mark.parametrize('kind', ['softmax', 'none'])
@pytest.mark.parametrize('place', ['list', 'buffer', 'made', 'array'])
@pytest.mark.parametrize('function', [False, True])
def test_answers_that_share_their_memory(function, place, kind):
    torch.manual_seed(2)
    net = Reuses(place, kind).eval()
    want = [net(torch.as_tensor(s.image[None])).numpy().copy() for s in (SAMPLE, OTHER)]
    if kind == 'softmax': want = [torch.tensor(w).softmax(1).numpy() for w in want]
    model = as_model((lambda x: net(x)) if function else net, activation=kind)
    one, two = model.predict(SAMPLE), model.predict(OTHER)
    both, labels = model.predict([SAMPLE, OTHER]), model.label([SAMPLE, OTHER])
    assert np.allclose(one, want[0]) and np.allclose(two, want[1]) and np.allclose(both, np.concatenate(want))
    assert (labels == np.concatenate(want).argmax(1)).all()
    if kind == 'softmax':
        first, kept = (logits := model.logits(SAMPLE)), logits.clone()
        model.logits(OTHER)
        assert torch.equal(first, kept)


# --- stop

def stop(*_): raise KeyboardInterrupt


STOPPED = dict(plain=with_(lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(.5))), lora=Lora, counts=Counts)


def stopped_after(seconds, f, model):
    "Was it stopped?"
    old = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        f(model)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt: return True
    finally: signal.signal(signal.SIGALRM, old)
    return False


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='no timers')
@pytest.mark.parametrize('kind', STOPPED)
def test_stop_at_any_time(kind):
    net, rng = made(STOPPED[kind]), random.Random(0)
    model, before, chance = as_model(net, activation='softmax'), state(net), luck()
    for ask in ('predict', 'saliency', 'occlusion', 'sweep'):
        ASKS[ask](model)
        start = time.perf_counter()
        ASKS[ask](model)
        seconds = time.perf_counter() - start
        for k in range(20):
            if k % 2: hold._STILL.clear()
            stopped_after(max(1e-6, seconds*rng.random()), ASKS[ask], model)
            now = state(net)
            if now != before: pytest.fail(f'{ask}: {difference(now, before)}')
            assert luck() == chance and not open_changes()


class Stops:
    "Presses stop at the n-th instruction inside the files of misas that change and put back."
    FILES = 'models/hold.py', 'models/kept.py', 'misas/doors.py', 'contextlib.py', 'models/torch.py'

    def __init__(self, at): self.n, self.at, self.where = 0, at, None

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith(self.FILES): return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step(frame, event, arg)

    def step(self, frame, event, arg):
        self.n += event in ('call', 'opcode')
        if self.n == self.at and self.where is None:
            self.where = frame.f_code.co_name, frame.f_lineno
            raise KeyboardInterrupt
        return self.step


@pytest.mark.skipif(sys.gettrace() is not None, reason='somebody else is tracing')
@pytest.mark.parametrize('kind', ['plain', 'lora'])
def test_stop_at_any_instruction(kind):
    net, rng = made(STOPPED[kind]), random.Random(1)
    model, before, chance = as_model(net, activation='softmax'), state(net), luck()
    for ask in ('predict', 'saliency'):
        hold._STILL.clear()
        count = Stops(-1)
        sys.settrace(count)
        try: ASKS[ask](model)
        finally: sys.settrace(None)
        for _ in range(30):
            hold._STILL.clear()
            press = Stops(rng.randint(1, count.n))
            sys.settrace(press)
            try: ASKS[ask](model)
            except KeyboardInterrupt: pass
            finally: sys.settrace(None)
            now = state(net)
            if now != before: pytest.fail(f'{ask} at {press.where}: {difference(now, before)}')
            assert luck() == chance and not open_changes(), press.where


# --- trust

class Later(Base):
    "Changes a large weight in place, but only later, and only where torch counts it."
    def begin(self): self.large, self.write = nn.Parameter(torch.ones(400_000)), False

    def between(self, x):
        if self.write:
            with torch.no_grad(): self.large.mul_(.5)
        return x*self.large[0]


def test_a_network_that_was_trusted():
    net = made(Later)
    model = as_model(net, activation='softmax')
    ASKS['saliency'](model)
    net.write = True
    with pytest.warns(UserWarning, match='changed its weights in a way that it did not before'), untouched(net): net(X)
    before = state(net)
    ASKS['saliency'](model)  # not any more
    assert state(net)[0] == before[0]


def test_a_pending_gradient_is_still_right():
    "Somebody has computed a loss, asks misas, and then goes on."
    for kind in ('lora', 'counts', 'freezes', 'nested'):
        grads = []
        for asked in (False, True):
            net = made(ALL[kind])
            loss = net(X)[0, 1].mean()
            if asked:
                for ask in ('predict', 'saliency'): ASKS[ask](as_model(net, activation='softmax'))
            loss.backward()
            grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        assert all(map(torch.equal, *grads)), kind


class Wakes(Base):
    "Leaves itself alone, until it is told not to."
    def begin(self): self.awake, self.seen = [], []

    def between(self, x):
        if self.awake:
            self.seen.append(x)
            self.fresh = nn.Parameter(torch.ones(1))
            self.c.weight.data.mul_(.5)
        return x


@pytest.mark.parametrize('broken', [False, True])
def test_noted_once_for_several(broken):
    "A note around others does for them as long as there is nothing to put back; it holds whatever happens."
    net = made(Wakes)
    assert isinstance(noted_once(net), nullcontext)  # it is not known yet
    ASKS['saliency'](as_model(net, activation='softmax'))
    before, chance = state(net), luck()
    with suppress(KeyError), noted_once(net) as _, untouched(net):
        assert [one.kept is None for one in open_changes()] == [False, True] and not net.training and not net.a.weight.requires_grad
        net.awake = ['yes']
        torch.rand(1)
        net(X)
        if broken: raise KeyError
    assert state(net) == before and luck() == chance and not open_changes()
    assert isinstance(noted_once(net), nullcontext)  # not any more
    for ask in ('saliency', 'occlusion'): ASKS[ask](as_model(net, activation='softmax'))
    assert not isinstance(noted_once(net), nullcontext) and state(net) == before


def test_what_lies_beside_is_noted_by_itself():
    "A note about one network does not do for another one."
    one, other = made(Counts), made(Lists)
    before = state(one), state(other)
    for _ in range(2):
        with noted_once(one), untouched(one), noted_once(other), untouched(other):
            one(X)
            other(X)
        assert (state(one), state(other)) == before


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n, self.seen, self.log = nn.Conv2d(1, 2, 1), 0, torch.zeros(1), [1.]
        self.register_buffer('mean', torch.zeros(1))

    def forward(self, x):
        self.n += 1
        self.seen = self.seen + 1
        self.log.append(2.)
        self.mean.add_(x.mean())
        return self.c(x)


@pytest.mark.filterwarnings('ignore')
def test_torchscript_is_put_back():
    script = torch.jit.script(Scripted()).train()
    model = as_model(nn.Sequential(script), activation='softmax')
    for _ in range(2): model.predict(SAMPLE)
    assert (script.n, script.seen.tolist(), script.log, script.mean.tolist(), script.training) == (0, [0], [1.], [0], True)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_inside_the_modes_of_torch(mode):
    net = made(Counts)
    model, before = as_model(net, activation='softmax'), state(net)
    with mode():
        known = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        model.predict(SAMPLE)
        ASKS['saliency'](model)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == known
    assert state(net) == before
