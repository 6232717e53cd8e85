"""Networks of every make, asked by every kind of method: the answer is right, or one true sentence that was foretold."""
import copy
import dataclasses
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.ao.quantization as tq
import torch.fx
import torch.nn.functional as F
import torch.nn.utils as nu
import torch.nn.utils.prune
from torch import nn
from torch.utils import checkpoint as cp

from misas.attribution.attribute import Incomplete, attribute, methods
from misas.attribution.sanity import cascade, randomisation_check
from misas.data.phantom import disc
from misas.inside.layers import listen
from misas.inside.question import Question
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.gradients import lost_gradients, open_checkpoints
from misas.models.habits import network_copy
from misas.models.hold import trace
from misas.view.map_views import plot_attribution
from misas.view.maps import overlay_map
from misas.view.thin import with_room

S = disc((16, 12), radius=4)
T = Target(1, S.labels == 1)
IMAGE = torch.tensor(S.image[None])
FEW = dict(
    saliency={}, integrated_gradients=dict(n_steps=4), smoothgrad=dict(n_samples=2), guided_backprop={}, deep_lift={},
    grad_cam={}, hires_cam={}, score_cam={}, layer_activation={}, layer_conductance=dict(n_steps=3), occlusion={},
    lrp={})


def conv(i, o, **kw): return nn.Conv2d(i, o, 3, padding=1, **kw)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.r, self.o = conv(1, 8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    def forward(self, x): return self.o(self.r(self.a(x)))


class Net(nn.Module):
    "What happens between two convolutions is another thing each time."
    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.r = conv(1, 8), nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8)), nn.ReLU()
        self.o, self.between = nn.Conv2d(8, 2, 1), between
    def forward(self, x): return self.o(self.between(self, self.r(self.a(x))))


class Block(nn.Module):
    "Gives its features and what to skip with, packed in one way or another."
    def __init__(self, pack):
        super().__init__()
        self.p, self.c, self.r, self.pack = nn.MaxPool2d(2), conv(8, 8), nn.ReLU(), pack
    def forward(self, x): return self.pack(self.r(self.c(self.p(x))), x)


class Encoder(nn.Module):
    def __init__(self, pack, take):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.r, self.b, self.take = conv(1, 8), nn.ReLU(), Block(pack), take
        self.u, self.o = nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1)
    def forward(self, x): return self.o(self.u(self.take(self.b(self.r(self.a(x))))))


def out_of(change):
    "A plain network whose output is packed."
    class Packed(Plain):
        def forward(self, x): return change(super().forward(x))
    return Packed()


def sequence(*layers, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(*[one() if callable(one) and not isinstance(one, nn.Module) else one for one in layers])
    net(IMAGE)
    return net


def normed(norm): return sequence(lambda: norm(conv(1, 4)), nn.ReLU(), lambda: nn.Conv2d(4, 2, 1))


def pruned(layer):
    nu.prune.l1_unstructured(layer, 'weight', amount=.3)
    return layer


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x*2


class Unwritten(OneWay):
    @staticmethod
    def backward(ctx, g): raise NotImplementedError


@torch.library.custom_op('misas_tests::twice', mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor: return x*2


def quantised(how):
    torch.manual_seed(0)
    net = nn.Sequential(tq.QuantStub(), conv(1, 8), nn.ReLU(), nn.Conv2d(8, 2, 1), tq.DeQuantStub()).eval()
    net.qconfig = tq.default_qconfig
    if how == 'fused': net = tq.fuse_modules(net, [['1', '2']])
    tq.prepare(net, inplace=True)
    net(IMAGE)
    return tq.convert(net, inplace=True)


class Channels(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.r, self.l, self.o = conv(1, 8), nn.ReLU(), nn.Linear(8, 8), nn.Conv2d(8, 2, 1)
    def forward(self, x): return self.o(self.l(self.r(self.a(x)).movedim(1, -1)).movedim(-1, 1))


def under(mode, part):
    def between(n, h):
        with mode(): y = n.b(h)
        return y if part == 'all' else y + h if part == 'beside' else y*h
    return Net(between)


def decorated(mode):
    class Decorated(Plain):
        @mode()
        def forward(self, x): return super().forward(x)
    return Decorated()


def born_in_inference():
    with torch.inference_mode(): return Plain()


@dataclasses.dataclass
class Both:
    features: object
    skip: object


class Subclass(torch.Tensor): pass
def checkpointed(**kw): return Net(lambda n, h: cp.checkpoint(n.b, h, **kw))
def in_two(n, h): return cp.checkpoint_sequential(n.b, 2, h, use_reentrant=True)
def nested(n, h):
    return cp.checkpoint(lambda z: cp.checkpoint(n.b, z, use_reentrant=True) + z, h, use_reentrant=True)
def plain_sum(n, h): return n.b(h) + h
def first_one(h): return F.one_hot(h.argmax(1), 8).movedim(-1, 1).float()
def in_place(n, h):
    y = h.sigmoid()
    y += 1
    return y
def by_sparse(n, h):
    rows = h.movedim(2, 0)
    return torch.sparse.mm(torch.eye(16).to_sparse(), rows.flatten(1)).view_as(rows).movedim(0, 2)


class WritesOnIt(Plain):
    def forward(self, x): return super().forward(x.mul_(2).sub_(.1))


class Masked(Plain):
    def forward(self, x, mask=None): return super().forward(x if mask is None else x*mask)


KINDS = {
    'plain': Plain,
    'older checkpoint': lambda: checkpointed(use_reentrant=True),
    'newer checkpoint': lambda: checkpointed(use_reentrant=False),
    'checkpoints in a row': lambda: Net(in_two),
    'checkpoint in checkpoint': lambda: Net(nested),
    'heaviside': lambda: Net(lambda n, h: h*torch.heaviside(h, torch.tensor(0.))),
    'floor': lambda: Net(lambda n, h: torch.floor(40*n.b(h))),
    'round, as a method': lambda: Net(lambda n, h: (40*n.b(h)).round_()),
    'argmax': lambda: Net(lambda n, h: first_one(n.b(h))),
    'comparison': lambda: Net(lambda n, h: (n.b(h) > .1).float()),
    'whole numbers': lambda: Net(lambda n, h: (40*n.b(h)).long().float()),
    'a function without backward': lambda: Net(lambda n, h: OneWay.apply(h)),
    'a backward that is not written': lambda: Net(lambda n, h: Unwritten.apply(h)),
    'an operation of a library': lambda: Net(lambda n, h: twice(h)),
    'numpy': lambda: Net(lambda n, h: torch.as_tensor(h.numpy()*2)),
    'numpy of what was detached': lambda: Net(lambda n, h: torch.as_tensor(h.detach().numpy()*2)),
    'tuple from a block': lambda: Encoder(lambda y, x: (y, x), lambda both: both[0]),
    'list from a block': lambda: Encoder(lambda y, x: [x, y], lambda both: both[1]),
    'dict from a block': lambda: Encoder(lambda y, x: dict(f=y, s=x), lambda both: both['f']),
    'dataclass from a block': lambda: Encoder(Both, lambda both: both.features),
    'tuple of one': lambda: Encoder(lambda y, x: (y,), lambda both: both[0]),
    'a second argument': Masked,
    'dict': lambda: out_of(lambda y: {'out': y, 'aux': 2*y}),
    'tuple': lambda: out_of(lambda y: (y,)),
    'ordered dict': lambda: out_of(lambda y: OrderedDict(logits=y)),
    'torch.export': lambda: torch.export.export(Plain().eval(), (IMAGE,)).module(),
    'torch.fx': lambda: torch.fx.symbolic_trace(Plain().eval()),
    'scripted': lambda: torch.jit.script(Plain().eval()),
    'traced': lambda: torch.jit.trace(Plain().eval(), IMAGE),
    'frozen': lambda: torch.jit.freeze(torch.jit.script(Plain().eval())),
    'compiled': lambda: torch.compile(Plain().eval(), backend='eager'),
    'data parallel': lambda: nn.DataParallel(Plain()),
    'lazy': lambda: sequence(nn.LazyConv2d(8, 3, padding=1), nn.ReLU(), nn.LazyConv2d(2, 1)),
    'weight norm': lambda: normed(nu.weight_norm),
    'weight norm, as a parametrization': lambda: normed(nu.parametrizations.weight_norm),
    'spectral norm': lambda: normed(nu.spectral_norm),
    'pruned': lambda: normed(pruned),
    'quantised': lambda: quantised('eager'),
    'quantised and fused': lambda: quantised('fused'),
    'quantised in part': lambda: tq.quantize_dynamic(Channels().eval(), {nn.Linear}, dtype=torch.qint8),
    'bfloat16': lambda: Plain().bfloat16(),
    'double': lambda: Plain().double(),
    'fft': lambda: Net(lambda n, h: torch.fft.irfft2(torch.fft.rfft2(h)*.5, s=h.shape[2:])),
    'sparse': lambda: Net(by_sparse),
    'writes on its input': WritesOnIt,
    'writes on features': lambda: Net(lambda n, h: h.clamp_(0, 1).mul_(2)),
    'writes on what it needs': lambda: Net(in_place),
    'a view of its features': lambda: Net(lambda n, h: n.b(h)[:, :].expand(-1, 8, -1, -1)),
    'no_grad, all': lambda: decorated(torch.no_grad),
    'inference_mode, all': lambda: decorated(torch.inference_mode),
    'inference_mode, on the way': lambda: under(torch.inference_mode, 'all'),
    'inference_mode, in a product': lambda: under(torch.inference_mode, 'product'),
    'a leaf of its own': lambda: Net(lambda n, h: n.b(h.detach().requires_grad_())),
    'a tensor class of its own': lambda: Net(lambda n, h: n.b(h.as_subclass(Subclass))),
}
RAW = ('aten::', 'QuantizedCPU', 'NoneType', 'InferenceMode', 'requires_grad', '.backward(', 'autograd formula', 'Please', '\n',
       'has no attribute', 'unsupported operand', 'Traceback')


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def told_by(model, name):
    "Why a method does not answer; '' where it does. What does not add up after few steps is an answer, too."
    try: attribute(model, S, T, name, progress=False, **FEW[name])
    except Incomplete: return ''
    except ValueError as e: return str(e)
    return ''


def map_of(model, name):
    "Whether it adds up or not."
    try: return attribute(model, S, T, name, progress=False, **FEW[name]).map
    except Incomplete as e: return e.attribution.map


@pytest.mark.parametrize('kind', list(KINDS))
def test_what_is_said_beforehand_is_what_is_said_later(kind):
    net = KINDS[kind]()
    model = as_model(net, activation='softmax')
    model.predict(S)
    before = None if 'jit' in type(net).__module__ else trace(net)
    foretold = methods(model, S, T).set_index('name').refused
    told = {name: told_by(model, name) for name in FEW}
    wrong = {name: (foretold[name], told[name]) for name in FEW if bool(foretold[name]) != bool(told[name])}
    assert not wrong
    texts = [*told.values(), *foretold[list(FEW)]]
    assert not [text for text in texts if any(raw in text for raw in RAW) or len(text) > 400]
    assert not told['occlusion'] and before in (None, trace(net))


REASONS = {  # kind -> words in what saliency says; '' where it answers
    'older checkpoint': '', 'newer checkpoint': '', 'checkpoints in a row': '', 'checkpoint in checkpoint': '',
    'heaviside': '(heaviside)', 'floor': 'slope of floor', 'round, as a method': 'slope of round',
    'argmax': 'passes argmax', 'comparison': 'passes >', 'whole numbers': 'passes long',
    'a function without backward': 'without a derivative', 'a backward that is not written': 'without a derivative',
    'an operation of a library': 'misas_tests.twice', 'numpy of what was detached': 'passes detach',
    'torch.export': '', 'scripted': '', 'frozen': '', 'quantised': 'quantisation', 'fft': '', 'sparse': '',
    'writes on its input': '', 'writes on what it needs': 'in place', 'no_grad, all': 'torch.no_grad',
    'inference_mode, all': 'torch.inference_mode', 'inference_mode, in a product': 'torch.inference_mode',
    'a tensor class of its own': ''}


@pytest.mark.parametrize('kind', list(REASONS))
def test_the_operation_is_named(kind):
    said = told_by(as_model(KINDS[kind](), activation='softmax'), 'saliency')
    assert (REASONS[kind] in said) if REASONS[kind] else said == ''


@pytest.mark.parametrize('kind', ['older checkpoint', 'newer checkpoint', 'checkpoints in a row'])
def test_maps_through_checkpoints_are_those_without(kind):
    bare = as_model(Net(lambda n, h: n.b(h)), activation='softmax')
    model = as_model(KINDS[kind](), activation='softmax')
    for name in FEW:
        maps = [map_of(m, name) for m in (bare, model)]
        assert np.allclose(*maps, atol=1e-6*np.abs(maps[0]).max()), name


def test_checkpoints_in_training_are_left_alone():
    net = checkpointed(use_reentrant=True).train()
    own = cp.CheckpointFunction
    with open_checkpoints():
        attribute(as_model(net, activation='softmax'), S, T, 'saliency', progress=False)
    assert cp.CheckpointFunction is own and net.training
    net(IMAGE).sum().backward()
    with open_checkpoints():
        twin = copy.deepcopy(net)
        twin.zero_grad()
        twin(IMAGE).sum().backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(net.parameters(), twin.parameters()))


def test_of_a_block_with_a_tuple_the_layer_within_is_heard():
    packed, bare = KINDS['tuple from a block'](), Encoder(lambda y, x: y, lambda y: y)
    for name in ('grad_cam', 'hires_cam', 'layer_activation'):
        found = attribute(as_model(packed, activation='softmax'), S, T, name, progress=False)
        alone = attribute(as_model(bare, activation='softmax'), S, T, name, progress=False)
        assert np.allclose(found.map, alone.map)
    with pytest.raises(ValueError, match="layer 'b' gives no single tensor"):
        attribute(as_model(packed, activation='softmax'), S, T, 'grad_cam', layer='b', progress=False)


def test_quantised_features_are_heard_as_numbers():
    net, model = quantised('eager'), as_model(quantised('eager'), activation='softmax')
    question = Question(model, S, T, progress=False)
    kept, _, _ = listen(question, question.module[2], False, question.score)
    assert torch.equal(kept[0], net[2](net[1](net[0](IMAGE))).dequantize())
    said = told_by(as_model(KINDS['quantised in part'](), activation='softmax'), 'grad_cam')
    assert "layer 'l' is quantised" in said


def test_lazy_layers_without_weights():
    net = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.ReLU(), nn.LazyConv2d(2, 1))
    with pytest.raises(ValueError, match=r'without weights yet \(LazyConv2d\)'): as_model(net)
    net(IMAGE)  # as it says
    assert as_model(net, activation='softmax').predict(S).shape == (1, 2, 16, 12)


@pytest.mark.parametrize('kind', ['weight norm', 'weight norm, as a parametrization', 'spectral norm', 'pruned', 'lazy'])
def test_a_copy_forgets_and_the_network_does_not(kind):
    net = KINDS[kind]()
    model = as_model(net, activation='softmax')
    found = attribute(model, S, T, 'saliency', progress=False)
    before = trace(net)
    last = list(cascade(found, steps=None))[-1]
    assert last[0] >= 2 and not np.allclose(last[2], found.map)
    assert trace(net) == before
    twin = network_copy(net)
    assert torch.equal(twin(IMAGE), net(IMAGE))


def test_quantised_weights_cannot_be_made_random():
    for kind in ('quantised', 'quantised in part'):
        found = attribute(as_model(KINDS[kind](), activation='softmax'), S, T, 'occlusion', progress=False)
        with pytest.raises(ValueError, match='quantised layers'): randomisation_check(found)


def test_what_a_network_wants_beside_images():
    class Prompted(Plain):
        def forward(self, x, prompt): return super().forward(x)*prompt
    class ByName(Plain):
        def forward(self, *, pixel_values): return super().forward(pixel_values)
    class Open(Plain):
        def forward(self, *args, **kw): return super().forward(*args)
    for one in (Prompted, ByName):
        with pytest.raises(ValueError, match='pass a function of the images'): as_model(one())
    assert as_model(Open(), activation='softmax').predict(S).shape == (1, 2, 16, 12)
    odd = out_of(lambda y: Both(y, None))
    with pytest.raises(ValueError, match='pass output='): as_model(odd, activation='softmax').predict(S)
    told = as_model(odd, activation='softmax', output=lambda both: both.features)
    assert np.allclose(told.predict(S), as_model(Plain(), activation='softmax').predict(S))


def test_what_a_network_writes_on_is_not_the_image():
    image, x = S.image.copy(), IMAGE.clone()
    model = as_model(WritesOnIt(), activation='softmax')
    first = model.predict(S)
    assert np.array_equal(model.predict(x), first) and torch.equal(x, IMAGE) and np.array_equal(S.image, image)
    slope = attribute(model, S, T, 'saliency', progress=False).map
    alone = Plain()
    leaf = IMAGE.clone().requires_grad_()
    out = alone(leaf*2 - .1)
    by_hand, = torch.autograd.grad(out[0, 1][torch.as_tensor(S.labels == 1)].mean(), leaf)
    assert np.allclose(slope, by_hand[0], atol=1e-6)


def test_only_what_takes_values_is_named():
    weight = torch.ones(3, requires_grad=False)
    shapes = [torch.zeros_like, torch.rand_like, lambda x: x.new_ones(3), lambda x: x*weight.sign(), lambda x: x.shape]
    for f in shapes: assert lost_gradients(lambda: f(torch.rand(3, requires_grad=True))) == ((), ())
    for name, f in {'.data': lambda x: x.data, 'argsort': torch.argsort, 'bool': lambda x: x.bool()}.items():
        assert lost_gradients(lambda: f(torch.rand(3, requires_grad=True)))[0] == (name,)


def vessel(wide, shape=(300, 300)):
    y, x = np.mgrid[:shape[0], :shape[1]]
    return abs(y - 150 - 60*np.sin(x/40)) < wide/2


@pytest.mark.parametrize('size', [(300, 300), (584, 565)])
def test_a_map_is_not_buried_by_an_outline(size):
    mask = vessel(3, size) | (np.hypot(*(np.indices(size) - np.array([[[40]], [[40]]]))) < 3)
    sample = disc(size, radius=20).replace(labels=None)
    map = mask.astype(np.float32)
    axes = plot_attribution(sample, map, target=mask).axes
    lines = [sum(len(c.get_paths()) for c in ax.collections) for ax in axes[:2]]
    assert lines[0] and not lines[1]  # beside the map the target is outlined, on the map it is not
    large = np.hypot(*(np.indices(size) - 150)) < 60
    axes = plot_attribution(sample, map, target=large | vessel(3, size)).axes
    assert all(sum(len(c.get_paths()) for c in ax.collections) for ax in axes[:2])


def test_pictures_without_axes_do_not_bury_a_map_either():
    sample, mask = disc((300, 300), radius=20).replace(labels=None), vessel(3)
    bare = overlay_map(sample, mask, scale=1)
    assert (overlay_map(sample, mask, target=mask, scale=1) == bare).all()
    large = np.hypot(*(np.indices((300, 300)) - 150)) < 60
    assert (overlay_map(sample, mask, target=large, scale=1) != bare).any()
    assert with_room(large, .5).sum() > .97*large.sum() and not with_room(mask, 1.).any()
