"Relevance propagation goes by operations: right by hand, whatever an operation is called and how, or refused, and methods() says so beforehand."
import warnings

import grammar
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from misas.attribution.attribute import METHODS, attribute, methods
from misas.attribution.gradient import input_x_gradient
from misas.attribution.lrp import _relevance, excitation_backprop, lrp
from misas.attribution.method import Raw
from misas.attribution.rules import ExcitationRule
from misas.data.phantom import disc
from misas.inside.question import Question, Refused
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace, untouched

C, SHAPE = 8, (8, 6)


class SubReLU(nn.ReLU): pass


class NoReLU(nn.ReLU):
    def forward(self, x): return x.tanh()*2 + x


class Twice(nn.Conv2d):
    def forward(self, x): return 2*super().forward(x)


class OwnReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clamp_min(0)
    @staticmethod
    def backward(ctx, g): return g


class Net(nn.Module):
    "relu(conv), something between, relu, conv: between(net, features, other features of either sign)."
    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        def conv(i, o, size=3, **kw): return nn.Conv2d(i, o, size, padding=size//2, **kw)
        self.a, self.g, self.o, self.between = conv(1, C), conv(1, C), conv(C, 2, 1), between
        self.c, self.two, self.token = conv(C, C), Twice(C, C, 1), nn.Linear(C, C)
        self.round, self.mirror = conv(C, C, padding_mode='circular'), conv(C, C, padding_mode='reflect')
        self.normed = nn.utils.parametrizations.weight_norm(conv(C, C, 1))
        self.old_normed, self.spectral = nn.utils.weight_norm(conv(C, C, 1)), nn.utils.parametrizations.spectral_norm(conv(C, C, 1))
        self.up, self.hooked, self.slopes = nn.ConvTranspose2d(C, C, 2, 2, groups=4), conv(C, C, 1), nn.PReLU(C)
        self.hooked.register_forward_hook(lambda module, args, out: out*3 + 1)
        self.norm, self.norm1, self.attention = nn.BatchNorm2d(C), nn.BatchNorm1d(C), nn.MultiheadAttention(C, 2, batch_first=True)
        for norm in (self.norm, self.norm1):
            norm.running_mean.normal_(), norm.running_var.uniform_(.5, 2)
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        nn.init.normal_(self.slopes.weight)
        self.w, self.p = nn.Parameter(torch.randn(C, C)/3), nn.Parameter(torch.randn(1, C, 1, 1))
        self.register_buffer('grid', torch.rand(1, *SHAPE, 2)*2 - 1)

    def forward(self, x): return self.o(F.relu(self.between(self, F.relu(self.a(x)), self.g(x))))


def tokens(h): return h.movedim(1, -1).reshape(-1, C)
def image_of(t): return t.view(1, *SHAPE, C).movedim(-1, 1)


def written(h, write):
    "A copy into which something is written."
    new = h.clone()
    write(new)
    return new


def buffered(h):
    new = torch.zeros(1, 2*C, *SHAPE, dtype=h.dtype)
    new[:, :C], new[:, C:] = h, h*2
    return new[:, 4:12]


def unseen(net, h):
    with torch.no_grad(): other = net.c(h)
    return other + h


def half(h): return F.avg_pool2d(h, 2)
def again(x, **kw): return F.interpolate(x, SHAPE, **kw)


LINEAR = {  # linear, or switches between linear parts: the epsilon rule is input x gradient
    'nothing': lambda n, h, g: h, 'avg_pool2d': lambda n, h, g: F.avg_pool2d(h, 3, 1, 1), 'AvgPool2d': lambda n, h, g: nn.AvgPool2d(3, 1, 1)(h),
    'without padding': lambda n, h, g: F.avg_pool2d(h, 3, 1, 1, count_include_pad=False), 'adaptive': lambda n, h, g: h + F.adaptive_avg_pool2d(h, 1),
    'adaptive 5': lambda n, h, g: again(F.adaptive_avg_pool2d(h, 5)), 'lp': lambda n, h, g: h.sum(1, keepdim=True) + h,
    'Linear': lambda n, h, g: image_of(n.token(tokens(h))), 'F.linear': lambda n, h, g: image_of(F.linear(tokens(h), n.w)),
    'F.conv2d': lambda n, h, g: F.conv2d(h, n.c.weight, n.c.bias, padding=1), 'same': lambda n, h, g: torch.conv2d(h, n.c.weight, padding='same'),
    'named': lambda n, h, g: F.conv2d(weight=n.c.weight, input=h, padding=(1, 1)), 'depthwise': lambda n, h, g: F.conv2d(h, n.c.weight[:, :1], groups=C, padding=1),
    'aten': lambda n, h, g: torch.ops.aten.convolution.default(h, n.c.weight, n.c.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    'conv1d': lambda n, h, g: F.conv1d(h.flatten(2), n.w[..., None]).view_as(h), 'conv3d': lambda n, h, g: F.conv3d(h[:, :, None], n.w[..., None, None, None])[:, :, 0],
    'add': lambda n, h, g: h + g, 'other=': lambda n, h, g: torch.add(h, other=g), 'alpha=2': lambda n, h, g: torch.add(h, g, alpha=2),
    'alpha=-1': lambda n, h, g: torch.add(h, g, alpha=-1), 'sub': lambda n, h, g: h - g, 'iadd': lambda n, h, g: written(h, lambda y: y.__iadd__(g)),
    'parameter': lambda n, h, g: h + n.p, 'one': lambda n, h, g: h + 1, '1 - x': lambda n, h, g: 1 - h, 'broadcast': lambda n, h, g: g + h[:, :1],
    'stack': lambda n, h, g: torch.stack([h, g]).sum(0), 'sum()': lambda n, h, g: sum([h, g, h]), 'mean of two': lambda n, h, g: torch.stack([h, g]).mean(0),
    'times 2': lambda n, h, g: 2*h, 'times 1': lambda n, h, g: h*1, 'times parameter': lambda n, h, g: h*n.p, 'mul_': lambda n, h, g: h.clone().mul_(n.p),
    'neg': lambda n, h, g: .5 - (-h), 'half': lambda n, h, g: h/2, 'div': lambda n, h, g: h/(n.p.abs() + 1), 'mask': lambda n, h, g: h*(h > .1),
    'float mask': lambda n, h, g: h*(h > .1).to(h.dtype), '@': lambda n, h, g: image_of(tokens(h) @ n.w), 'w @': lambda n, h, g: (n.w @ h.flatten(2)).view_as(h),
    'einsum': lambda n, h, g: torch.einsum('bchw,oc->bohw', h, n.w), 'addmm': lambda n, h, g: image_of(torch.addmm(n.w[0], tokens(h), n.w)),
    'addmm of two': lambda n, h, g: image_of(torch.addmm(tokens(h), tokens(g), n.w, beta=2, alpha=.5)),
    'baddbmm': lambda n, h, g: torch.baddbmm(h.flatten(2), n.w[None], h.flatten(2)).view_as(h), 'bmm': lambda n, h, g: torch.bmm(n.w[None], h.flatten(2)).view_as(h),
    'tensordot': lambda n, h, g: torch.tensordot(h, n.w, ([1], [0])).movedim(-1, 1), 'addcmul': lambda n, h, g: torch.addcmul(h, g, n.p, value=.3),
    'addcmul of one': lambda n, h, g: torch.addcmul(n.p, h, n.p), 'lerp': lambda n, h, g: torch.lerp(h, g, .3), 'lerp by': lambda n, h, g: torch.lerp(h, g, n.p.sigmoid()),
    'addcdiv': lambda n, h, g: torch.addcdiv(h, g, n.p.abs() + 1), 'mean': lambda n, h, g: h + h.mean((2, 3), keepdim=True), 'centred': lambda n, h, g: g - g.mean(1, keepdim=True),
    'shuffle': lambda n, h, g: F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2), 'channels': lambda n, h, g: F.channel_shuffle(h, 4),
    'unfold': lambda n, h, g: F.unfold(h, 3, padding=1).view(1, C, 9, *SHAPE).mean(2), 'fold': lambda n, h, g: F.fold(F.unfold(h, 3, padding=1), SHAPE, 3, padding=1)/9,
    'x.unfold': lambda n, h, g: F.pad(h, (1, 1)).unfold(3, 3, 1).sum(-1), 'flip': lambda n, h, g: h.flip(2), 'roll': lambda n, h, g: h.roll(1, 2), 'cumsum': lambda n, h, g: h.cumsum(2)/9,
    'max_pool': lambda n, h, g: again(F.max_pool2d(h, 2)), 'bilinear': lambda n, h, g: again(half(h), mode='bilinear'), 'bicubic': lambda n, h, g: again(half(h), mode='bicubic'),
    'exact': lambda n, h, g: again(half(h), mode='nearest-exact'), 'unpool': lambda n, h, g: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    'amax': lambda n, h, g: h + h.amax(1, keepdim=True), 'maximum': lambda n, h, g: torch.maximum(h, g), 'max': lambda n, h, g: h + g.max(1, keepdim=True)[0],
    'abs': lambda n, h, g: g.abs(), 'where': lambda n, h, g: torch.where(h > .1, h, g), 'masked_fill': lambda n, h, g: h.masked_fill(h > .5, .5), 'topk': lambda n, h, g: g.topk(C, 1)[0],
    'leaky': lambda n, h, g: F.leaky_relu(g, .3), 'steep': lambda n, h, g: F.leaky_relu(g, 2.), 'folded': lambda n, h, g: F.leaky_relu(g, -.3), 'prelu': lambda n, h, g: n.slopes(g),
    'relu_': lambda n, h, g: F.relu_(g), 'inplace=': lambda n, h, g: F.relu(g, inplace=True), 'subclass': lambda n, h, g: SubReLU()(g), 'subclass in place': lambda n, h, g: SubReLU(True)(g),
    'threshold': lambda n, h, g: F.threshold(g, .1, .2), 'clamp(0)': lambda n, h, g: g.clamp(min=0), 'twice': lambda n, h, g: n.c(n.c(h)), 'Twice': lambda n, h, g: n.two(h),
    'weight norm': lambda n, h, g: n.normed(h), 'old weight norm': lambda n, h, g: n.old_normed(h), 'spectral norm': lambda n, h, g: n.spectral(h),
    'grouped up': lambda n, h, g: half(n.up(h)), 'grouped up, norm': lambda n, h, g: half(n.norm(n.up(h))), 'circular': lambda n, h, g: n.round(h), 'mirrored': lambda n, h, g: n.mirror(h),
    'replicate': lambda n, h, g: F.pad(h, (1,)*4, mode='replicate')[:, :, 1:-1, 2:], 'padded by 3': lambda n, h, g: F.pad(h, (1,)*4, value=3.)[:, :, 2:, :-2],
    'norm': lambda n, h, g: n.norm(h), 'conv, norm': lambda n, h, g: n.norm(n.c(h)), 'conv, norm + conv': lambda n, h, g: (lambda y: n.norm(y) + y)(n.c(h)),
    'conv, relu_, norm': lambda n, h, g: n.norm(n.c(h).relu_()), 'conv, add_, norm': lambda n, h, g: n.norm(n.c(h).add_(1)), 'norm twice': lambda n, h, g: n.norm(n.norm(n.c(h))),
    'torch.batch_norm': lambda n, h, g: torch.batch_norm(n.c(h), n.norm.weight, n.norm.bias, n.norm.running_mean, n.norm.running_var, False, 0., 1e-5, False),
    'Linear, norm': lambda n, h, g: image_of(n.norm1(n.token(tokens(h)))), 'overwritten': lambda n, h, g: (lambda y: n.c(y) + y.relu_())(g.clone()),
    'buffer': lambda n, h, g: buffered(h), 'set to 0': lambda n, h, g: written(h, lambda y: y.__setitem__((slice(None), slice(0, 4)), 0)),
    'part add_': lambda n, h, g: written(h, lambda y: y[:, :4].add_(g[:, :4])), 'part relu_': lambda n, h, g: written(g, lambda y: y[:, :4].relu_()),
    'grid': lambda n, h, g: F.grid_sample(h, n.grid.to(h), align_corners=False), 'hook': lambda n, h, g: n.hooked(h), 'dropout': lambda n, h, g: F.dropout(h, .5, n.training),
    'checkpoint': lambda n, h, g: torch.utils.checkpoint.checkpoint(lambda y: F.relu(n.c(y)), h, use_reentrant=False),
    'older checkpoint': lambda n, h, g: torch.utils.checkpoint.checkpoint(lambda y: F.relu(n.c(y)), h, use_reentrant=True),
    'type_as': lambda n, h, g: h*n.p.type_as(h).expand_as(h), 'coordinates': lambda n, h, g: torch.cat([h[:, 1:], torch.linspace(0, 1, SHAPE[1]).to(h).expand(1, 1, *SHAPE)], 1), 'chunks': lambda n, h, g: torch.cat(h.chunk(2, 1)[::-1], 1),
    'gather': lambda n, h, g: h.gather(1, torch.arange(C).flip(0).view(1, C, 1, 1).expand_as(h)), 'expand': lambda n, h, g: h[:, :1].expand(-1, C, -1, -1), 'list': lambda n, h, g: h[:, [1, 0, 3, 2, 5, 4, 7, 6]],
    'repeat': lambda n, h, g: h[:, :2].repeat(1, 4, 1, 1), 'interleave': lambda n, h, g: h[:, :4].repeat_interleave(2, 1), 'contiguous': lambda n, h, g: h.transpose(1, 3).contiguous().transpose(1, 3),
}
PASSED = {  # f(0) = 0: they hand on all they get
    'relu6': lambda x: F.relu6(10*x), 'clamp(0, 6)': lambda x: (10*x).clamp(0, 6), 'hardtanh': lambda x: F.hardtanh(x*3), 'gelu': F.gelu, 'silu': F.silu, 'tanh': torch.tanh, 'elu': F.elu,
    'selu': torch.selu, 'mish': F.mish, 'hardswish': F.hardswish, 'softsign': F.softsign, 'celu': nn.CELU(), 'silu in place': lambda x: F.silu(x.clone(), inplace=True),
    'tanh_': lambda x: x.clone().tanh_(), 'elu_': lambda x: F.elu_(x.clone()), 'Hardtanh': nn.Hardtanh(-.1, .2, inplace=False), 'tanhshrink': F.tanhshrink, 'softshrink': F.softshrink}
UNKNOWN = {
    'gate': (lambda n, h, g: h*g, 'product of features'), 'own gate': (lambda n, h, g: h*h.sigmoid(), 'product of features'), 'square': (lambda n, h, g: h**2, 'Pow'),
    'addcmul': (lambda n, h, g: torch.addcmul(h, h, g), 'Addcmul'), 'softmax': (lambda n, h, g: h.softmax(1), 'softmax'), 'sigmoid': (lambda n, h, g: g.sigmoid(), 'Sigmoid'),
    'exp': (lambda n, h, g: g.exp(), 'Exp'), 'GroupNorm': (lambda n, h, g: F.group_norm(h, 2), 'GroupNorm uses'), 'LayerNorm': (lambda n, h, g: F.layer_norm(h, SHAPE), 'LayerNorm uses'),
    'InstanceNorm': (lambda n, h, g: F.instance_norm(h), 'InstanceNorm uses'), 'by hand': (lambda n, h, g: h/(h.std() + 1), 'division by what'), 'x / max': (lambda n, h, g: h/(1 + h.amax()), 'division by what'),
    'attention': (lambda n, h, g: image_of(n.attention(*[tokens(h)[None]]*3)[0]), 'rule|followed'), 'clamp(.1)': (lambda n, h, g: h.clamp(.1, 2), 'Clamp'), 'softplus': (lambda n, h, g: F.softplus(g), 'Softplus'),
    'log': (lambda n, h, g: (h + 1).log(), 'Log'), 'own Function': (lambda n, h, g: OwnReLU.apply(g), 'OwnReLU'), 'part mul_': (lambda n, h, g: written(h, lambda y: y[:, :4].mul_(g[:, :4])), 'in place'),
    'reciprocal': (lambda n, h, g: 1/(h + 1), 'Reciprocal|division'), 'gram': (lambda n, h, g: h @ h.transpose(2, 3) @ h, 'product of features'),
    'own kernel': (lambda n, h, g: F.conv2d(h, h.mean((2, 3)).view(C, 1, 1, 1).expand(C, C, 1, 1)), 'product of features'), 'sin': (lambda n, h, g: h.sin(), 'Sin'), 'round': (lambda n, h, g: h + g.round(), 'Round'),
    'floor': (lambda n, h, g: h + torch.div(g, .1, rounding_mode='floor'), 'division'), 'bilinear': (lambda n, h, g: image_of(F.bilinear(tokens(h), tokens(h), n.w[None].expand(C, C, C))), 'rule|followed'),
    'half detached': (lambda n, h, g: h + .5*g.detach(), 'without a gradient'), 'no_grad': (lambda n, h, g: unseen(n, h), 'without a gradient'), '.data': (lambda n, h, g: h + g.data, 'without a gradient'),
    'scaled by detached': (lambda n, h, g: h*g.detach().abs().mean(), 'without a gradient'), 'sqrt': (lambda n, h, g: (h + .1).sqrt(), 'Sqrt')}


def ask(net, **kw): return Question(as_model(net.double().eval(), activation='softmax', **kw), SAMPLE, Target(1, SAMPLE.labels == 1), progress=False)
SAMPLE = disc(SHAPE, radius=2)
SAMPLE = SAMPLE.replace(image=SAMPLE.image + .2*np.random.default_rng(0).normal(size=SAMPLE.image.shape))


def beforehand(q, name='lrp'):
    with warnings.catch_warnings(), untouched(q.module):
        warnings.simplefilter('ignore')
        try: return METHODS[name].refuse(q, METHODS[name].options)
        except Refused as e: return str(e)


def run(q, f, **kw):
    with untouched(q.module), q.refusing(): return f(q, **kw).map


def off(a, b): return float((a - b).abs().max()/b.abs().max())


@pytest.mark.parametrize('name', LINEAR)
def test_known_operations(name):
    q = ask(Net(LINEAR[name]))
    before, expected = trace(q.module), run(q, input_x_gradient)
    assert beforehand(q) is None
    assert off(run(q, lrp, rule='epsilon'), expected) < 1e-6
    for rule in ('gamma', 'alpha_beta'): assert run(q, lrp, rule=rule).isfinite().all()
    assert off(run(q, lrp, rule='gamma', gamma=0.), expected) < 1e-6
    assert trace(q.module) == before


@pytest.mark.parametrize('name', UNKNOWN)
def test_unknown_operations(name):
    between, words = UNKNOWN[name]
    q = ask(Net(between))
    for method, f in (('lrp', lrp), ('excitation_backprop', excitation_backprop)):
        why = beforehand(q, method)
        with pytest.raises(Refused, match=words) as told: run(q, f)
        assert why and str(told.value) in (why, f'{q.model.name}: {why}'), why


@pytest.mark.parametrize('name', PASSED)
def test_activations_hand_on_all_they_get(name):
    f = PASSED[name]
    q = ask(Net(lambda n, h, g: f(g)))
    net, x = q.module, q.x.clone().requires_grad_()
    with untouched(net):
        g = net.g(x)
        steps = net.o(F.relu(g*(f(g)/g).detach()))  # a switch that is held
        expected = q.x*torch.autograd.grad(steps[0, 1][torch.as_tensor(q.target.mask)].mean(), x)[0]
    assert beforehand(q) is None
    assert off(run(q, lrp, rule='epsilon'), expected[0]) < 1e-6


def jacobian(f, x):
    return torch.autograd.functional.jacobian(f, x).reshape(-1, x.numel())


def by_hand(f, x, relevance, rule):
    "What inputs get of the relevance of f(x) = Jx + b, term by term."
    x = x.detach()
    terms, z = jacobian(f, x)*x.flatten(), f(x).flatten()
    bias, relevance = z - terms.sum(1), relevance.flatten()
    def above(v): return v.clamp_min(0)
    def below(v): return v.clamp_max(0)
    def share(part, total): return (torch.where(total == 0, 0, relevance/total)[:, None]*part).sum(0)
    if rule == 'epsilon': return share(terms, z).view_as(x)
    if rule == 'alpha_beta':
        return (2*share(above(terms), above(terms).sum(1) + above(bias)) - share(below(terms), below(terms).sum(1) + below(bias))).view_as(x)
    if rule == 'excitation': return share(above(terms), above(terms).sum(1)).view_as(x)
    raised = torch.where(z[:, None] > 0, terms + .25*above(terms), terms + .25*below(terms))
    extra = torch.where(z > 0, bias + .25*above(bias), bias + .25*below(bias))
    return share(raised, raised.sum(1) + extra).view_as(x)


def excited(q): return Raw(_relevance(q, ExcitationRule(1e-12))[0])  # also where some of it is lost in biases


LAYERS = {  # what is one layer, features of either sign
    'Conv2d': lambda n, g: n.c(g), 'F.conv2d': lambda n, g: F.conv2d(g, n.c.weight, padding=1), 'Linear': lambda n, g: image_of(n.token(tokens(g))),
    'einsum': lambda n, g: torch.einsum('bchw,oc->bohw', g, n.w), '@': lambda n, g: image_of(tokens(g) @ n.w), 'w @': lambda n, g: (n.w @ g.flatten(2)).view_as(g),
    'weight norm': lambda n, g: n.normed(g), 'conv, norm': lambda n, g: n.norm(n.c(g)), 'grouped up, norm': lambda n, g: n.norm(n.up(g)), 'up': lambda n, g: n.up(g),
    'circular': lambda n, g: n.round(g), 'Linear, norm': lambda n, g: image_of(n.norm1(n.token(tokens(g)))), 'torch.batch_norm': lambda n, g: LINEAR['torch.batch_norm'](n, g, None)}


@pytest.mark.parametrize('rule', ['epsilon', 'gamma', 'alpha_beta', 'excitation'])
@pytest.mark.parametrize('name', LAYERS)
def test_layers_by_hand(name, rule):
    "Three layers and a ReLU between two of them, divided term by term."
    class Three(Net):
        def forward(self, x):
            out = self.o(F.relu(LAYERS[name](self, self.g(x))))
            return out if out.shape[2:] == SHAPE else out[..., ::2, ::2]
    q = ask(Three(None))
    net = q.module
    with untouched(net), torch.no_grad():
        g = net.g(q.x)
        made = LAYERS[name](net, g)
        step = 1 if made.shape[2:] == SHAPE else 2
        weights = torch.zeros_like(net.o(made))
        weights[0, 1, ::step, ::step][torch.as_tensor(q.target.mask)] = 1/q.target.mask.sum()
        out = net.o(F.relu(made))
    relevance = weights if rule == 'excitation' else weights*out
    with untouched(net):
        for f, x in ((net.o, F.relu(made)), (lambda x: LAYERS[name](net, x), g), (net.g, q.x)): relevance = by_hand(f, x, relevance, rule)
    got = run(q, excited) if rule == 'excitation' else run(q, lrp, rule=rule)
    assert off(got, relevance[0]) < 1e-6


SHARED = {
    'sum': lambda n, h, g: h + F.relu(g), 'other=': lambda n, h, g: torch.add(h, other=F.relu(g)), 'alpha=2': lambda n, h, g: torch.add(h, F.relu(g), alpha=2), 'add_': lambda n, h, g: written(h, lambda y: y.add_(F.relu(g))),
    'stack': lambda n, h, g: torch.stack([h, F.relu(g)]).sum(0), 'average': lambda n, h, g: (h + F.relu(g))/2, 'avg_pool2d': lambda n, h, g: F.avg_pool2d(h, 3, 1, 1), 'bilinear': lambda n, h, g: again(half(h), mode='bilinear'),
    'mean': lambda n, h, g: h + h.mean((2, 3), keepdim=True), 'scale': lambda n, h, g: h*n.p.abs(), 'conv1d': lambda n, h, g: F.conv1d(h.flatten(2), n.w[..., None].abs()).view_as(h)}


@pytest.mark.parametrize('name', SHARED)
def test_excitation_loses_nothing(name):
    "Positive weights, no biases: all of the probability arrives, where each voxel has its share of what it excites."
    net = Net(SHARED[name])
    for layer in (net.a, net.g, net.o):
        layer.weight.data.abs_()
        layer.bias.data.zero_()
    q = ask(net)
    q.x.abs_()
    got = run(q, excitation_backprop)
    assert abs(float(got.sum()) - 1) < 1e-6 and got.min() >= 0
    with untouched(net):
        mask = torch.as_tensor(q.target.mask)
        voxels = [(int(i), int(j)) for i, j in zip(*torch.where(mask))]
        x, expected = q.x.clone().requires_grad_(), 0
        out = net(x)[0, 1]
        for voxel in voxels:  # without biases and with positive weights the share is x gradient / output
            grad = torch.autograd.grad(out[voxel], x, retain_graph=True)[0]
            expected = expected + q.x*grad/out[voxel].detach()/len(voxels)
    assert off(got, expected[0]) < 1e-6


def handed_on(forms, x, g):
    "Multiples behind the forms of a network of the grammar, brought to x."
    inputs = []
    for form in forms:
        inputs.append(x)
        x = grammar._one(form, x).detach()
    for form, x in zip(forms[::-1], inputs[::-1]):
        if form[0] == 'each': g = g*torch.where(x == 0, 0, grammar._one(form, x)/x)
        elif form[0] == 'sum': g = g + handed_on(form[1], x, g)
        elif form[0] == 'chain': g = handed_on(form[1], x, g)
        else: g = grammar._linear_back(lambda x, form=form: grammar._one(form, x), x, g)
    return g


NO_RULE = {'Softplus', 'Sigmoid', 'x sigmoid(x)', 'x sigmoid(1.7 x)', 'own Function',  # f(0) is not 0, products of features, own derivatives
           *(step.name for step in (*grammar.SMOOTH, *grammar.CUT))}


@pytest.mark.parametrize('part', range(4))
def test_networks_of_a_grammar(part):
    "None is believed and wrong, none is refused although there is a rule."
    refused = 0
    for name, net, steps in list(grammar.networks(60))[part::4]:
        sample = net.sample()
        q = Question(as_model(net, activation='softmax'), sample, Target(1, sample.labels == 1), progress=False)
        why = beforehand(q)
        assert bool(why) == bool(NO_RULE & set(steps)), (name, why)
        if why:
            refused += 1
            with pytest.raises(Refused): run(q, lrp, rule='epsilon')
            continue
        with untouched(net):
            g = torch.zeros_like(net(q.x))
            g[0, 1, torch.as_tensor(q.target.mask)] = 1/q.target.mask.sum()
            expected = q.x*handed_on(net.forms, q.x, g)
        if expected.any(): assert off(run(q, lrp, rule='epsilon'), expected[0]) < 1e-3, name
    assert refused < 10


def test_methods_says_the_same():
    "The table is filled by what then happens."
    for between in (LINEAR['grouped up, norm'], LINEAR['sub'], UNKNOWN['gate'][0], UNKNOWN['no_grad'][0]):
        model, target = as_model(Net(between).eval(), activation='softmax'), Target(1, SAMPLE.labels == 1)
        table = methods(model, SAMPLE, target).set_index('name').refused
        for name in ('lrp', 'excitation_backprop'):
            if not table[name]: continue
            with pytest.raises(Refused) as told: attribute(model, SAMPLE, target, name)
            assert table[name] in str(told.value)
        if not table['lrp']: assert attribute(model, SAMPLE, target, 'lrp').map.any()


@pytest.mark.parametrize('write', [lambda n, h, g: h.add_(g), lambda n, h, g: n.c(F.relu(h, inplace=True)) + n.c(h.mul_(2))])
def test_overwritten_for_the_gradient_too(write):
    "What torch itself cannot take a gradient of is refused beforehand."
    q = ask(Net(write))
    why = beforehand(q)
    if why is None: assert run(q, lrp).isfinite().all()
    else:
        with pytest.raises(Refused): run(q, lrp)


def test_small_activations():
    "Relevance does not depend on the units of features."
    small = Net(LINEAR['twice'])
    big = run(ask(Net(LINEAR['twice'])), lrp)
    with torch.no_grad():
        for p in (small.a.weight, small.a.bias): p.mul_(1e-6)
        for p in (small.o.weight,): p.mul_(1e6)
        small.c.bias.mul_(1e-6)
    small.between = lambda n, h, g: F.conv2d(F.conv2d(h, n.c.weight, n.c.bias, padding=1), n.c.weight, n.c.bias, padding=1)
    assert off(run(ask(small), lrp), big) < 1e-3


def test_outputs_beside_the_one_that_is_explained():
    "A dictionary of outputs, of which another one than the first is asked about."
    class Two(Net):
        def forward(self, x):
            h = F.relu(self.a(x))
            return {'aux': self.c(h)[:, :2], 'out': self.o(h)}
    q = ask(Two(None))
    assert off(run(q, lrp, rule='epsilon'), run(q, input_x_gradient)) < 1e-6


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
def test_half_precision(kind):
    q = Question(as_model(Net(LINEAR['twice']).to(kind).eval(), activation='softmax'), SAMPLE, Target(1, SAMPLE.labels == 1), progress=False)
    for rule in ('epsilon', 'gamma', 'alpha_beta'):
        exact = run(ask(Net(LINEAR['twice'])), lrp, rule=rule)
        assert off(run(q, lrp, rule=rule).double(), exact) < .1
