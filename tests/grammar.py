"""Small networks drawn at random from a grammar of operations, and what they compute, written out once more by hand.

Each step of a network says twice what it does: as a module, in one of the ways in which people write it, and as a *form*,
from which rules can be computed slowly and without hooks:

- ('linear', f): f is linear in its input, but for a constant
- ('relu',): a ReLU, however it is written
- ('each', f): another function of single values
- ('gate', f): one that is known as a gate, which guided methods take as it is
- ('pool', f): a max pooling; f(x) -> result, index of the maximum in the flattened space
- ('smooth', f): gates and norms; guided methods take their derivative, DeepLIFT and LRP have no rule
- ('cut', f): a part of its gradient is missing, so that no rule can be right
- ('sum', forms): x plus what the forms make of it
- ('chain', forms)

    for name, network, operations in networks(60): ...   # network.forms, network.nd, network.sample()
"""
import random
from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

CHANNELS = 4
Step = namedtuple('Step', 'name make')  # make(nd) -> (module, form)


class Fn(nn.Module):
    "A function as a module; parts that it needs may be given."
    def __init__(self, f, **parts):
        super().__init__()
        self.f = f
        for name, part in parts.items(): setattr(self, name, part)
        self.parts = list(parts)

    def forward(self, x): return self.f(x, *(getattr(self, name) for name in self.parts))


def of(nd, name): return getattr(nn, f'{name}{nd}d')
def conv(nd, n=CHANNELS, out=CHANNELS, size=3, **kw):
    return of(nd, 'Conv')(n, out, size, padding=kw.pop('padding', size//2), **kw)
def mode(nd): return {2: 'bilinear', 3: 'trilinear'}[nd]
def doubled(x, nd): return F.interpolate(x, scale_factor=2, mode='nearest')
def linear(module): return module, ('linear', module)
def relu(module): return module, ('relu',)
def each(module, f=None): return module, ('each', f or module)
def gate(module): return module, ('gate', module)
def smooth(module): return module, ('smooth', module)
def cut(module): return module, ('cut', module)
def scaled(nd): return nn.Parameter(torch.rand(CHANNELS, *[1]*nd) + .5)


# linear in their input --------------------------------------------------------------------------------------------
def batch_norm(nd):
    norm = of(nd, 'BatchNorm')(CHANNELS)
    with torch.no_grad():
        norm.running_mean.uniform_(-.3, .3)
        norm.running_var.uniform_(.5, 2)
        norm.weight.uniform_(.5, 1.5)
        norm.bias.uniform_(-.2, .2)
    return linear(norm)


class OwnConv2d(nn.Conv2d):
    def forward(self, x): return super().forward(x)*1.5


class OwnConv3d(nn.Conv3d):
    def forward(self, x): return super().forward(x)*1.5


def own_conv(nd): return linear({2: OwnConv2d, 3: OwnConv3d}[nd](CHANNELS, CHANNELS, 3, padding=1))
def functional_conv(nd):
    weight = nn.Parameter(.2*torch.randn(CHANNELS, CHANNELS, *[3]*nd))
    return linear(Fn(lambda x, w: getattr(F, f'conv{nd}d')(x, w, padding=1), w=weight))


def transposed(nd): return linear(of(nd, 'ConvTranspose')(CHANNELS, CHANNELS, 3, padding=1))
def down_up(nd):
    return linear(nn.Sequential(conv(nd, stride=2), of(nd, 'ConvTranspose')(CHANNELS, CHANNELS, 2, stride=2)))


def channels_last(nd):
    return linear(Fn(lambda x, layer: layer(x.movedim(1, -1)).movedim(-1, 1), layer=nn.Linear(CHANNELS, CHANNELS)))


def shuffled(nd):
    if nd == 3: return linear(Fn(lambda x: x.flip(2).roll(1, 3)))
    return linear(nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)))


def weight_normed(nd): return linear(nn.utils.parametrizations.weight_norm(conv(nd)))
def averaged(nd): return linear(Fn(lambda x, pool: doubled(pool(x), nd), pool=of(nd, 'AvgPool')(2)))
def enlarged(nd):
    def f(x): return F.interpolate(getattr(F, f'avg_pool{nd}d')(x, 2), scale_factor=2, mode=mode(nd), align_corners=False)
    return linear(Fn(f))


LINEAR = [
    Step('conv', lambda nd: linear(conv(nd))), Step('batch norm', batch_norm), Step('transposed', transposed),
    Step('grouped', lambda nd: linear(conv(nd, groups=2))),
    Step('dilated', lambda nd: linear(conv(nd, dilation=2, padding=2))),
    Step('own conv', own_conv), Step('F.conv', functional_conv), Step('down and up', down_up),
    Step('Linear', channels_last), Step('shuffled', shuffled), Step('weight norm', weight_normed),
    Step('avg pool', averaged), Step('enlarged', enlarged),
    Step('layer scale', lambda nd: linear(Fn(lambda x, s: x*s, s=scaled(nd)))),
    Step('halves swapped', lambda nd: linear(Fn(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)))),
    Step('padded', lambda nd: linear(Fn(lambda x, c: c(F.pad(x, (1, 1)*nd, mode='reflect')), c=conv(nd, padding=0)))),
    Step('mean added', lambda nd: linear(Fn(lambda x: x - .5*x.mean(tuple(range(2, nd + 2)), keepdim=True)))),
    Step('dropout', lambda nd: linear(of(nd, 'Dropout')(.5))),
]


# ReLU, however it is written --------------------------------------------------------------------------------------
class SubReLU(nn.ReLU):
    "A subclass that is one."


class Tanh(nn.Module):
    "A name that it does not deserve."
    def forward(self, x): return F.relu(x)


ReLUFunction = type('ReLU', (nn.Module,), dict(forward=lambda self, x: F.relu(x)))
def twice(act): return Fn(lambda x, act: act(act(x) - .1), act=act), ('chain', [('relu',), minus, ('relu',)])
minus = 'linear', lambda x: x - .1

RELU = [
    Step('nn.ReLU', lambda nd: relu(nn.ReLU())), Step('nn.ReLU in place', lambda nd: relu(nn.ReLU(inplace=True))),
    Step('F.relu', lambda nd: relu(Fn(F.relu))), Step('x.relu()', lambda nd: relu(Fn(torch.Tensor.relu))),
    Step('torch.relu_', lambda nd: relu(Fn(lambda x: torch.relu_(x*1)))),
    Step('clamp_min', lambda nd: relu(Fn(lambda x: x.clamp_min(0)))),
    Step('clamp(min=0)', lambda nd: relu(Fn(lambda x: torch.clamp(x, min=0)))),
    Step('subclass of nn.ReLU', lambda nd: relu(SubReLU())), Step('own class ReLU', lambda nd: relu(ReLUFunction())),
    Step('own class Tanh', lambda nd: relu(Tanh())), Step('ReLU used twice', lambda nd: twice(nn.ReLU())),
    Step('aten relu', lambda nd: relu(Fn(lambda x: torch.ops.aten.relu.default(x)))),
]


# ReLU in disguise: right, or refused ------------------------------------------------------------------------------
class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, g): return g*(ctx.saved_tensors[0] > 0)


class LeakySubclass(nn.ReLU):
    "A subclass that is none."
    def forward(self, x): return F.leaky_relu(x, .1)


def in_part(x):
    "The first half of the channels, in place; then the other half."
    x = x.clone()
    x[:, :2].relu_()
    return torch.cat([x[:, :2], x[:, 2:].relu()], 1)


def by_index(x):
    x = x.clone()
    x[x < 0] = 0
    return x


DISGUISED = [
    Step('masked_fill', lambda nd: relu(Fn(lambda x: x.masked_fill(x < 0, 0.)))),
    Step('where', lambda nd: relu(Fn(lambda x: torch.where(x > 0, x, torch.zeros_like(x))))),
    Step('times mask', lambda nd: relu(Fn(lambda x: x*(x > 0)))),
    Step('maximum', lambda nd: relu(Fn(lambda x: torch.maximum(x, torch.zeros_like(x))))),
    Step('with abs', lambda nd: relu(Fn(lambda x: (x + x.abs())/2))),
    Step('threshold', lambda nd: relu(nn.Threshold(0., 0.))), Step('own Function', lambda nd: relu(Fn(Custom.apply))),
    Step('in part', lambda nd: relu(Fn(in_part))), Step('by index', lambda nd: relu(Fn(by_index))),
]


# other functions of single values ---------------------------------------------------------------------------------
LeakyCalledReLU = type('ReLU', (nn.Module,), dict(forward=lambda self, x: F.leaky_relu(x, .2)))
def swish(x): return x*torch.sigmoid(x)
def swish_slow(x): return x*torch.sigmoid(1.702*x)

EACH = [
    Step('LeakyReLU', lambda nd: each(nn.LeakyReLU(.1))), Step('PReLU', lambda nd: each(nn.PReLU(CHANNELS))),
    Step('leaky called ReLU', lambda nd: each(LeakyCalledReLU())), Step('subclass that is none', lambda nd: each(LeakySubclass())),
    Step('ELU', lambda nd: each(nn.ELU())), Step('Softplus', lambda nd: each(nn.Softplus())),
    Step('Tanh', lambda nd: each(nn.Tanh())), Step('Sigmoid', lambda nd: gate(nn.Sigmoid())),
    Step('GELU', lambda nd: each(nn.GELU())), Step('SiLU', lambda nd: each(nn.SiLU())),
    Step('F.hardswish', lambda nd: each(Fn(F.hardswish))), Step('ReLU6', lambda nd: each(nn.ReLU6())),
    Step('abs', lambda nd: each(Fn(torch.abs))), Step('leaky in place', lambda nd: each(nn.LeakyReLU(.2, inplace=True))),
    Step('x sigmoid(x)', lambda nd: each(Fn(swish))), Step('x sigmoid(1.7 x)', lambda nd: each(Fn(swish_slow))),
]


# max poolings -----------------------------------------------------------------------------------------------------
def pooled(nd, write, **kw):
    "A max pooling by `write`, enlarged again where it is smaller."
    def slow(x): return getattr(F, f'max_pool{nd}d')(x, kw.get('size', 2), kw.get('stride'), kw.get('padding', 0), return_indices=True)
    up = [] if kw.get('stride') == 1 else [('linear', lambda x: doubled(x, nd))]
    again = nn.Identity() if kw.get('stride') == 1 else Fn(lambda x: doubled(x, nd))
    return nn.Sequential(write, again), ('chain', [('pool', slow), *up])


POOLS = [
    Step('MaxPool', lambda nd: pooled(nd, of(nd, 'MaxPool')(2))),
    Step('F.max_pool', lambda nd: pooled(nd, Fn(lambda x: getattr(F, f'max_pool{nd}d')(x, 2)))),
    Step('MaxPool with indices', lambda nd: pooled(nd, Fn(lambda x, p: p(x)[0], p=of(nd, 'MaxPool')(2, return_indices=True)))),
    Step('MaxPool that overlaps', lambda nd: pooled(nd, of(nd, 'MaxPool')(3, 1, 1), size=3, stride=1, padding=1)),
]


# gates and norms --------------------------------------------------------------------------------------------------
def by_hand(x):
    "A LayerNorm over channels, as ConvNeXt writes it."
    apart = x - x.mean(1, keepdim=True)
    return apart/torch.sqrt(apart.pow(2).mean(1, keepdim=True) + .1)


def over_places(x, query):
    "Attention: each place looks at all."
    flat, asked = x.flatten(2), query(x).flatten(2)
    weights = torch.softmax(asked.transpose(1, 2) @ flat/4, -1)
    return (flat @ weights.transpose(1, 2)).view_as(x)


SMOOTH = [
    Step('attention gate', lambda nd: smooth(Fn(lambda x, c: x*torch.sigmoid(c(x)), c=conv(nd, out=1, size=1)))),
    Step('squeeze and excite', lambda nd: smooth(Fn(
        lambda x, c: x*torch.sigmoid(c(x.mean(tuple(range(2, nd + 2)), keepdim=True))), c=conv(nd, size=1)))),
    Step('InstanceNorm', lambda nd: smooth(of(nd, 'InstanceNorm')(CHANNELS))),
    Step('GroupNorm', lambda nd: smooth(nn.GroupNorm(2, CHANNELS))),
    Step('norm by hand', lambda nd: smooth(Fn(by_hand))),
    Step('attention', lambda nd: smooth(Fn(over_places, query=conv(nd, size=1)))),
    Step('product', lambda nd: smooth(Fn(lambda x, c: x*c(x), c=conv(nd, size=1)))),
]


# gradients that are cut in part -----------------------------------------------------------------------------------
def without_gradient(x, c):
    with torch.no_grad(): y = c(x)
    return x + y


CUT = [
    Step('half detached', lambda nd: cut(Fn(lambda x: .5*x + .5*x.detach()))),
    Step('no_grad inside', lambda nd: cut(Fn(without_gradient, c=conv(nd)))),
    Step('gate detached', lambda nd: cut(Fn(lambda x, c: x*torch.sigmoid(c(x.detach())), c=conv(nd, size=1)))),
    Step('divided by its maximum', lambda nd: cut(Fn(lambda x: x/(1 + x.detach().abs().max())))),
]


# steps made of others ---------------------------------------------------------------------------------------------
class Residual(nn.Module):
    def __init__(self, body): super().__init__(); self.body = body
    def forward(self, x): return x + self.body(x)


class Again(nn.Module):
    "A part that is computed once more for the gradient instead of being kept."
    def __init__(self, body, reentrant): super().__init__(); self.body, self.reentrant = body, reentrant
    def forward(self, x): return checkpoint(self.body, x, use_reentrant=self.reentrant)


def inner(nd, act):
    first, second, (module, form) = conv(nd), conv(nd), act(nd)
    return nn.Sequential(first, module, second), [('linear', first), form, ('linear', second)]


def residual(nd, act):
    body, forms = inner(nd, act)
    return Residual(body), ('sum', forms)


def checkpointed(nd, reentrant):
    body, forms = inner(nd, RELU[0].make)
    return Again(body, reentrant), ('chain', forms)


BLOCKS = [
    Step('residual', lambda nd: residual(nd, RELU[0].make)), Step('residual F.relu', lambda nd: residual(nd, RELU[2].make)),
    Step('residual leaky', lambda nd: residual(nd, EACH[0].make)), Step('checkpoint', lambda nd: checkpointed(nd, False)),
]
HIDDEN = [Step('reentrant checkpoint', lambda nd: checkpointed(nd, True))]  # what is in it cannot be seen
STEPS = [*LINEAR, *RELU, *DISGUISED, *EACH, *POOLS, *SMOOTH, *CUT, *BLOCKS, *HIDDEN]


class Network(nn.Module):
    def __init__(self, nd, steps):
        super().__init__()
        made = [step.make(nd) for step in steps]
        first, last, between = conv(nd, 1), conv(nd, out=2, size=1), [conv(nd) for _ in made[1:]]
        mixed = [pair for (module, form), mix in zip(made, [None, *between])
                 for pair in ([] if mix is None else [(mix, ('linear', mix))]) + [(module, form)]]
        self.nd, self.steps = nd, [step.name for step in steps]
        self.body = nn.Sequential(first, *(module for module, _ in mixed), last)
        self.forms = [('linear', first), *(form for _, form in mixed), ('linear', last)]

    def forward(self, x): return self.body(x)

    def sample(self):
        "A disc in noise, with its label map."
        from misas.data.phantom import disc
        shape, radius = {2: ((16, 20), 4), 3: ((8, 12, 8), 3)}[self.nd]
        case = disc(shape=shape, radius=radius)
        return case.replace(image=case.image + .2*np.random.default_rng(self.nd).normal(size=case.image.shape))


def network(name, nd=2, seed=0, before=('nn.ReLU',), after=('nn.ReLU',)) -> Network:
    "One network with a step of that name, between others."
    torch.manual_seed(seed)
    steps = [step for one in (*before, name, *after) for step in STEPS if step.name == one]
    return _ready(Network(nd, steps))


def _ready(net):
    for n, p in net.named_parameters():
        if n.endswith('bias'): nn.init.uniform_(p, -.2, .2)
    return net.double().eval()


def networks(n=60, seed=0):
    """n networks: the first half of known steps, the others with one that may have no rule; every fifth in 3D.
    Yields (name, network, names of its steps)."""
    chance = random.Random(seed)
    known = [*LINEAR, *RELU, *POOLS, *BLOCKS[:2], *RELU]
    odd = [*DISGUISED, *EACH, *SMOOTH, *CUT, *BLOCKS[2:], *HIDDEN]
    queue = {}
    def draw(which, steps):
        if not queue.get(which): queue[which] = chance.sample(steps, len(steps))
        return queue[which].pop()
    for i in range(n):
        steps = [draw('relu', RELU), *(draw('known', known) for _ in range(chance.randint(1, 3)))]
        if 2*i >= n: steps.append(draw('odd', odd))
        chance.shuffle(steps)
        nd = 3 if i % 5 == 4 else 2
        torch.manual_seed(seed + i)
        net = _ready(Network(nd, steps))
        yield f'{i}: {nd}D {", ".join(net.steps)}', net, net.steps


# references by hand -----------------------------------------------------------------------------------------------
def computed(forms, x):
    "What the forms of a network compute."
    for form in forms: x = _one(form, x)
    return x


def _one(form, x):
    what, x = form[0], x.clone()  # some work in place
    if what == 'relu': return x.clamp_min(0)
    if what == 'pool': return form[1](x)[0]
    if what == 'sum': return x + computed(form[1], x)
    if what == 'chain': return computed(form[1], x)
    return form[1](x)


def kinds(forms):
    "Kinds of all forms of a network."
    return {kind for form in forms for kind in (kinds(form[1]) if form[0] in ('sum', 'chain') else {form[0]})}


def _linear_back(f, x, g):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x), x, g)[0]


def backed(forms, x, g, rule):
    "What arrives at x of the gradient g behind the forms, ReLUs by rule(x, g)."
    inputs = []
    for form in forms:
        inputs.append(x)
        x = _one(form, x).detach()
    for form, x in zip(forms[::-1], inputs[::-1]):
        if form[0] == 'relu': g = rule(x, g)
        elif form[0] == 'sum': g = g + backed(form[1], x, g, rule)
        elif form[0] == 'chain': g = backed(form[1], x, g, rule)
        else: g = _linear_back(lambda x, form=form: _one(form, x), x, g)
    return g


def guided_rule(x, g): return g.clamp_min(0)*(x > 0)
def deconvolution_rule(x, g): return g.clamp_min(0)
def plain_rule(x, g): return g*(x > 0)


def rescaled(forms, x, base, g):
    "What arrives at x of the multipliers g behind the forms, by DeepLIFT's rescale rule."
    pairs = []
    for form in forms:
        pairs.append((x, base))
        x, base = _one(form, x).detach(), _one(form, base).detach()
    for form, (x, base) in zip(forms[::-1], pairs[::-1]):
        if form[0] in ('relu', 'each', 'gate'): g = g*_ratio(lambda x, form=form: _one(form, x), x, base)
        elif form[0] == 'pool': g = _through_pool(form[1], x, base, g)
        elif form[0] == 'sum': g = g + rescaled(form[1], x, base, g)
        elif form[0] == 'chain': g = rescaled(form[1], x, base, g)
        else: g = _linear_back(form[1], x, g)
    return g


def _ratio(f, x, base):
    "Change of a function over that of its input, or its slope."
    slope, near = _linear_back(f, x, torch.ones_like(x)), (x - base).abs() < 1e-10
    return torch.where(near, slope, (f(x) - f(base)).detach()/torch.where(near, 1., x - base))


def _through_pool(f, x, base, g):
    "What a maximum gains goes to where it is now, what it loses to where it was. Place by place."
    (out, at), (before, was) = f(x), f(base)
    got, flat = torch.zeros_like(x).flatten(2), (x - base).flatten(2)
    top = torch.maximum(out, before)
    for index in np.ndindex(*out.shape):
        i, j = at[index].item(), was[index].item()
        n, k = index[:2]
        if abs(flat[n, k, i]) >= 1e-10: got[n, k, i] += g[index]*(top - before)[index]/flat[n, k, i]
        else: got[n, k, i] += g[index]
        if abs(flat[n, k, j]) >= 1e-10: got[n, k, j] += g[index]*(out - top)[index]/flat[n, k, j]
    return got.view_as(x)
