"A gradient that is cut in part is told; one that is whole never is."
import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text
from torch import nn
from torch.utils.checkpoint import checkpoint

from misas.attribution.attribute import Incomplete, attribute, methods
from misas.data.phantom import disc
from misas.inside.honest import TELL, Doubt, doubt, off_by, where_cut
from misas.inside.question import Question
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace

torch.set_num_threads(1)


def picture(shape=(32, 40), noise=.05):
    sample = disc(shape, radius=min(shape)/4)
    changed = sample.image + noise*np.random.default_rng(0).normal(size=sample.image.shape)
    return sample.replace(image=changed.astype(np.float32))


PICTURES = {'noisy': picture(), 'flat': picture(noise=0)}
VOLUME = picture((16, 16, 16))


def head(out=2): return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, out, 1))


class Half(nn.Module):
    "Two paths that say the same; one of them is cut."
    def __init__(self, cut, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.seen, self.unseen, self.way = head(), head(), cut
        self.unseen.load_state_dict(self.seen.state_dict())
        self.register_buffer('buf', torch.zeros(1, 2, 32, 40))

    def forward(self, x): return self.seen(x) + self.way(self, x)


def asked(net, sample=PICTURES['noisy'], target=None, **how):
    model = as_model(net.eval(), activation='softmax', name='net', **how)
    return Question(model, sample, target or Target(1, sample.labels == 1))


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return 1*x


class Zero(Own):
    @staticmethod
    def backward(ctx, gradient): return 0*gradient


class Flipped(Own):
    @staticmethod
    def backward(ctx, gradient): return -gradient


class Nothing(Own):
    @staticmethod
    def backward(ctx, gradient): return None


class NotDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = 1*x
        ctx.mark_non_differentiable(y)
        return y
    @staticmethod
    def backward(ctx, gradient): return None


@torch.jit.script
def detached_by_script(x): return x.detach()*1


def no_grad(net, x):
    with torch.no_grad(): return net.unseen(x)


def inference(net, x):
    with torch.inference_mode(): y = net.unseen(x)
    return y.clone()


def switched(net, x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    y = net.unseen(x)
    torch.set_grad_enabled(before)
    return y


def in_place(net, x):
    y = net.unseen(x)
    return y.detach_()


def straight_through(net, x):
    y = net.unseen(x)
    return y + ((4*y).round()/4 - y).detach()


def buffer_copied(net, x):
    with torch.no_grad(): net.buf.copy_(net.unseen(x))
    return 1*net.buf


def buffer_data(net, x):
    net.buf.data[:] = net.unseen(x)
    return 1*net.buf


def buffer_view(net, x):
    net.buf.detach()[0].copy_(net.unseen(x)[0])
    return 1*net.buf


def buffer_array(net, x):
    net.buf.numpy()[:] = net.unseen(x).detach().numpy()
    return 1*net.buf


def hooked(net, x):
    y = net.unseen(x)
    if y.requires_grad: y.register_hook(torch.zeros_like)
    return y


def module_hooked(net, x):
    if x.requires_grad and not net.unseen._backward_hooks:
        net.unseen.register_full_backward_hook(lambda m, given, out: tuple(None if g is None else 0*g for g in given))
    return net.unseen(x)


def statistics(net, x): return net.unseen((x - x.mean().item())/x.std().item())


WAYS = dict(
    detach=lambda net, x: net.unseen(x).detach(), data=lambda net, x: net.unseen(x).data, no_grad=no_grad, inference=inference,
    switched=switched, arrays=lambda net, x: torch.from_numpy(net.unseen(x).detach().numpy() + 0),
    lists=lambda net, x: torch.tensor(net.unseen(x).tolist()), again=lambda net, x: torch.tensor(net.unseen(x)),
    leaf=lambda net, x: net.unseen(x.clone().detach().requires_grad_(x.requires_grad)),
    straight_through=straight_through, fake_quantised=lambda net, x: torch.fake_quantize_per_tensor_affine(net.unseen(x), .25, 0, -128, 127),
    rounded=lambda net, x: (50*net.unseen(x)).round()/50, whole=lambda net, x: (50*net.unseen(x)).long().float()/50,
    zero=lambda net, x: Zero.apply(net.unseen(x)), flipped=lambda net, x: Flipped.apply(net.unseen(x)),
    nothing=lambda net, x: Nothing.apply(net.unseen(x)), marked=lambda net, x: NotDifferentiable.apply(net.unseen(x)),
    in_place=in_place, checkpoint=lambda net, x: checkpoint(lambda y: net.unseen(y.detach()), x, use_reentrant=False),
    buffer_copied=buffer_copied, buffer_data=buffer_data, buffer_view=buffer_view, buffer_array=buffer_array,
    hooked=hooked, module_hooked=module_hooked, script=lambda net, x: detached_by_script(net.unseen(x)),
    somewhere=lambda net, x: torch.where(x > .5, net.unseen(x).detach(), net.unseen(x)),
    functional=lambda net, x: torch.func.functional_call(net.unseen, dict(net.unseen.named_parameters()), (x.detach(),)),
    statistics=statistics)


@pytest.mark.parametrize('what', PICTURES)
@pytest.mark.parametrize('way', WAYS)
def test_a_gradient_cut_by_half_is_told(way, what):
    found = doubt(asked(Half(WAYS[way]), PICTURES[what]))
    assert found.off > .4 and found.places
    if way not in ('flipped', 'rounded', 'whole', 'statistics'): assert found.off == pytest.approx(.5, abs=.05)


def test_the_place_is_named():
    class Gate(nn.Module):
        def forward(self, x): return x.detach()
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.decoder = head(), nn.ModuleDict(dict(gate=nn.Sequential(head(), Gate())))
        def forward(self, x): return self.a(x) + self.decoder['gate'](x)
    torch.manual_seed(0)
    assert where_cut(asked(Net())) == ['detach in decoder.gate.1']
    assert where_cut(asked(Half(no_grad))) == ['conv2d without gradient in unseen.0']
    assert where_cut(asked(Half(WAYS['zero'])))[0].startswith('own derivative of Zero')


def cbr(i, o, norm=nn.BatchNorm2d, act=nn.ReLU): return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), norm(o), act())


class Between(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.a, self.b = f, nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
    def forward(self, x): return self.b(self.f(self.a(x)))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x*x.sigmoid()
    @staticmethod
    def backward(ctx, gradient):
        x, = ctx.saved_tensors
        return gradient*x.sigmoid()*(1 + x*(1 - x.sigmoid()))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 8, 8), nn.ConvTranspose2d(8, 2, 8, 8)
        self.m = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    def forward(self, x):
        y = self.a(x)
        return self.b(self.m(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape))


def shifted_softmax(y):
    e = (y - y.amax(1, keepdim=True).detach()).exp()
    return e/e.sum(1, keepdim=True)


def logged(y):
    assert not y.isnan().any() and y.abs().max().item() < 1e6 and float(y.detach().mean()) < 1e6
    return y


@torch.jit.script
def scripted(x): return x*torch.sigmoid(x)


torch.manual_seed(0)
SOUND = dict(
    linear=nn.Conv2d(1, 2, 3, padding=1), relu=Between(F.relu), gelu=Between(F.gelu), leaky=Between(F.leaky_relu), hardswish=Between(F.hardswish),
    pool=Between(lambda y: F.interpolate(F.max_pool2d(y, 2), scale_factor=2)), softmax=Between(lambda y: y.softmax(1)),
    glu=Between(lambda y: torch.cat(2*[F.glu(y, 1)], 1)), fourier=Between(lambda y: torch.fft.ifft2(torch.fft.fft2(y)*.5).real),
    dropout=nn.Sequential(cbr(1, 8), nn.Dropout(.5), nn.Conv2d(8, 2, 1)), attention=Attention(),
    instance=nn.Sequential(cbr(1, 8, nn.InstanceNorm2d, nn.LeakyReLU), nn.Conv2d(8, 2, 1)),
    group=nn.Sequential(cbr(1, 8, lambda n: nn.GroupNorm(4, n), nn.SiLU), nn.Conv2d(8, 2, 1)),
    deep=nn.Sequential(cbr(1, 8), *[cbr(8, 8) for _ in range(8)], nn.Conv2d(8, 2, 1)),
    by_hand=Between(lambda y: y*(y > 0)), masked=Between(lambda y: y.masked_fill(y < 0, 0)), shifted=Between(shifted_softmax),
    logged=Between(logged), own=Between(Swish.apply), script_function=Between(scripted), topk=Between(lambda y: y + y.topk(3, 1)[0].sum(1, True)),
    sorted=Between(lambda y: y.sort(1)[0]), gathered=Between(lambda y: y.gather(1, y.argsort(1))),
    checkpoint=Between(lambda y: checkpoint(F.relu, y, use_reentrant=False)), fresh=Between(lambda y: y + torch.zeros_like(y) + y.new_ones(1)),
    traced=torch.jit.trace(Between(F.relu).eval(), torch.zeros(1, 1, 8, 8)), scripted=torch.jit.script(nn.Sequential(cbr(1, 8), nn.Conv2d(8, 2, 1)).eval()),
    double=Between(F.relu).double(), bfloat16=nn.Sequential(cbr(1, 8), nn.Conv2d(8, 2, 1)).bfloat16(), half=nn.Sequential(cbr(1, 8), nn.Conv2d(8, 2, 1)).half(),
    constant_detached=Between(lambda y: y*torch.ones(1).detach()), bfloat16_logged=nn.Sequential(cbr(1, 8), Between(logged).b).bfloat16())


@pytest.mark.parametrize('name', SOUND)
def test_no_false_alarm(name):
    for sample, odds in zip(PICTURES.values(), (False, True)):
        q = asked(SOUND[name], sample, Target(1 - odds, sample.labels == 1, log_odds=odds))
        off = off_by(q).values()  # the measure, whether or not a place was found
        assert doubt(q) is None and max(off, default=0) < TELL
    if name in ('relu', 'dropout', 'attention', 'instance', 'topk', 'fresh', 'double', 'constant_detached'): assert where_cut(q) == []


@pytest.mark.parametrize('how', [dict(window=32, overlap=.25), dict(size=(24, 24)), dict(multiple_of=24), dict(preprocess=lambda x: (x - x.mean())/x.std())])
def test_adapters(how):
    assert where_cut(asked(Between(F.relu), **how)) == []
    assert doubt(asked(Half(WAYS['detach']), **how)).off > .3


def test_volumes_and_slices():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x): return net(x) + net(x).detach()
    assert where_cut(asked(net, VOLUME)) == [] and doubt(asked(Cut(), VOLUME)).off == pytest.approx(.5, abs=.05)
    inside = Target(1, VOLUME.labels == 1)
    sliced = as_model(Half(WAYS['no_grad']).eval(), activation='softmax').slicewise()
    assert doubt(Question(sliced, VOLUME, inside)).off == pytest.approx(.5, abs=.05)


def test_preprocessing_that_leaves_torch_for_a_number():
    torch.manual_seed(0)
    q = asked(Between(F.relu), preprocess=lambda x: x - float(x.mean()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = doubt(q)
    assert 'broad change of brightness does (float in' in found.text and found.kind == 'broad'


def told(model, method, **options):
    "An attribution, and what it warns of."
    sample = PICTURES['noisy']
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        a = attribute(model, sample, Target(1, sample.labels == 1), method, progress=False, **options)
    return a, [one for one in said if 'gradient is off' in str(one.message)]


def test_a_map_says_it():
    net = Half(WAYS['detach']).eval()
    before, model = trace(net), as_model(net, activation='softmax', name='net')
    for method in ('saliency', 'smoothgrad', 'gradient_shap', 'signed_max', 'saliency'):
        options = {} if method == 'saliency' else dict(n_samples=3)
        a, said = told(model, method, **options)
        assert len(said) == 1 and said[0].filename == __file__ and 'such as occlusion' in str(said[0].message)
        assert 'off by about 50 %' in a.text and 'off by about 50 %' in str(a.summary())
        written = [text.get_text() for text in a.plot().findobj(Text)]
        assert any('gradient off by 50 %' in text for text in written)
    assert a.passes == (1, 1) and trace(net) == before
    with warnings.catch_warnings(), pytest.raises(Incomplete, match='50 % of the difference .* its gradient is off by about 50 %.* such as occlusion') as e:
        warnings.simplefilter('ignore')
        attribute(model, PICTURES['noisy'], Target(1, PICTURES['noisy'].labels == 1))
    assert 'n_steps' not in str(e.value)
    a, said = told(model, 'occlusion', size=8)  # the advice works
    assert not said and a.doubt is None
    sample = PICTURES['noisy']
    table = methods(model, sample, Target(1, sample.labels == 1)).set_index('name').warning
    assert 'off by about 50 %' in table.saliency and not table.occlusion and not table.rise
    assert not methods(as_model(net.seen, activation='softmax'), sample, Target(1, sample.labels == 1)).warning.any()


def test_sound_networks_are_asked_no_more_often():
    calls = []
    net = Between(F.relu)
    net.register_forward_hook(lambda *a: calls.append(1))
    model = as_model(net.eval(), activation='softmax')
    told(model, 'saliency')
    first = len(calls)
    told(model, 'saliency')
    again = len(calls) - first
    assert again == 1  # the pass that predicts has the gradient
    plain = Question(as_model(net, activation='softmax'), PICTURES['noisy'], Target(1, PICTURES['noisy'].labels == 1))
    del calls[:]
    plain.gradient()
    assert len(calls) == 1


def test_known_once_for_a_model_and_a_kind_of_target():
    net = Half(WAYS['detach']).eval()
    model = as_model(net, activation='softmax')
    q = asked(net)
    q.model = model
    first = doubt(q)
    assert doubt(q) is first and isinstance(first, Doubt) and q.passes.forwards == 0 and q.passes.backwards == 0
    assert pickle.loads(pickle.dumps(first)) == first
    copied = copy.copy(model)
    with torch.no_grad(): net.unseen[2].weight.zero_()  # nothing is cut any more
    other = asked(net)
    for one in (model, copied):
        other.model = one
        assert doubt(other) is None


def test_what_reaches_nothing_is_refused_as_before():
    net = nn.Sequential(Between(F.relu), nn.Identity())
    net[1].forward = lambda y: y.detach()
    q = asked(net)
    assert where_cut(q) is None and doubt(q) is None
