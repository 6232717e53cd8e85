"""Guided backpropagation, deconvolution and DeepLIFT are right by the rule written out by hand, or refused: never believed and wrong."""
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grammar import STEPS, backed, computed, deconvolution_rule, guided_rule, kinds, network, networks, rescaled
from torch import nn

from misas.attribution.attribute import METHODS, Incomplete, attribute, gigabytes, methods, refusal
from misas.attribution.rescale import Notes, Rescaling, go_together
from misas.data.phantom import disc
from misas.inside.operations import following
from misas.inside.question import Question, Refused
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace, untouched

GUIDED = dict(guided_backprop=guided_rule, deconvolution=deconvolution_rule)

# Refused though it could be right. A ReLU in disguise may as well be something else, so that it is not believed; what a
# part changed in place or a Function of one's own does inside is not shown by torch.
REFUSED_THOUGH_RIGHT = {
    'masked_fill', 'where', 'times mask', 'maximum', 'with abs', 'threshold', 'own Function', 'in part', 'by index'}
# of DeepLIFT: functions of single values that are written as products of features
REFUSED_BY_DEEP_LIFT = REFUSED_THOUGH_RIGHT - {'with abs', 'threshold'} | {'x sigmoid(x)', 'x sigmoid(1.7 x)'}


def asked(net, method, **kw):
    sample = net.sample()
    model = as_model(net, activation='softmax')
    return attribute(model, sample, Target(1, sample.labels == 1), method, progress=False, **kw)


def tensors(net):
    "Image, baseline, and the gradient of the score at the network's output."
    sample, q = net.sample(), question(net)
    out = computed(net.forms, q.x).detach()
    mask = torch.as_tensor(sample.labels == 1)
    grad = torch.zeros_like(out)
    grad[0, 1, mask] = 1/mask.sum()
    return q.x, q.baseline('blur'), grad


def may_be_guided(net): return 'relu' in kinds(net.forms) and not kinds(net.forms) & {'each', 'cut'}
def may_be_lifted(net): return not kinds(net.forms) & {'smooth', 'cut'}


def guided_by_hand(net, rule):
    "The map, or None where there is no rule."
    if not may_be_guided(net): return None
    x, _, grad = tensors(net)
    return backed(net.forms, x, grad, rule)[0].numpy()


def lifted_by_hand(net):
    if not may_be_lifted(net): return None
    x, base, grad = tensors(net)
    return (rescaled(net.forms, x, base, grad)*(x - base))[0].numpy()


def question(net):
    sample = net.sample()
    return Question(as_model(net, activation='softmax'), sample, Target(1, sample.labels == 1), progress=False)


def verdict(net, method, right, could_refuse, beforehand):
    "What happened: 'right', 'refused'; everything else is a fault."
    before = trace(net)
    try: map = asked(net, method).map
    except (Refused, Incomplete) as e:
        assert trace(net) == before
        if right is not None and not could_refuse & set(net.steps): return f'refused and right: {e}'
        return 'refused' if beforehand and beforehand in str(e) else f'not foretold: {e}, but {beforehand!r}'
    except ValueError as e:
        assert 'zero everywhere' in str(e)
        return 'wrong' if right is None or right.any() else 'right'
    assert trace(net) == before
    if right is None: return 'believed without a rule'
    if beforehand: return f'foretold and not done: {beforehand}'
    off = np.abs(map - right).max()/np.abs(right).max()
    return 'right' if off < 2e-6 else f'wrong by {off}'


def verdicts(net):
    "Of each method, and whether that was said beforehand."
    q, by_hand = question(net), {method: guided_by_hand(net, rule) for method, rule in GUIDED.items()}
    by_hand['deep_lift'] = lifted_by_hand(net)
    told = {}
    for method, right in by_hand.items():
        how = METHODS[method]
        with untouched(net): beforehand = refusal(how, q, how.options, ahead=True)
        could_refuse = REFUSED_BY_DEEP_LIFT if method == 'deep_lift' else REFUSED_THOUGH_RIGHT
        told[method] = verdict(net, method, right, could_refuse, beforehand)
    return told


NETWORKS = {name: net for name, net, _ in networks(60)}


@pytest.mark.parametrize('name', NETWORKS)
def test_right_or_refused(name):
    told = verdicts(NETWORKS[name])
    assert set(told.values()) <= {'right', 'refused'}, told


@pytest.mark.parametrize('name', [step.name for step in STEPS])
def test_each_step(name):
    told = verdicts(network(name, 3 if name in ('MaxPool', 'nn.ReLU', 'GELU', 'checkpoint') else 2))
    assert set(told.values()) <= {'right', 'refused'}, told


def test_enough_is_right():
    "A method that refuses everything would pass the tests above."
    right = [sum(map(may, NETWORKS.values())) for may in (may_be_guided, may_be_lifted)]
    assert min(right) >= 38


def test_table_says_it_beforehand():
    "`methods()` and `attribute()` give the same reasons."
    sample = (net := network('times mask')).sample()
    target = Target(1, sample.labels == 1)
    table = methods(as_model(net, activation='softmax'), sample, target).set_index('name').refused
    for method in ('guided_backprop', 'deconvolution', 'deep_lift', 'deep_lift_shap', 'guided_grad_cam'):
        assert 'mul brings features together' in table[method]
        with pytest.raises(Refused) as e: asked(net, method)
        assert table[method] in str(e.value)


def captum_of(net, q, method):
    "captum's map, with copies for its hooks; DeepLIFT only where each module works once."
    from captum.attr import Deconvolution, DeepLift, GuidedBackprop

    class Scored(nn.Module):
        def __init__(self): super().__init__(); self.net = net
        def forward(self, x): return q.target.of(self.net(x))
    x = q.x.detach().requires_grad_()
    if method == 'deep_lift': return DeepLift(Scored()).attribute(x, q.baseline('blur'))[0].detach()
    return dict(guided_backprop=GuidedBackprop, deconvolution=Deconvolution)[method](Scored()).attribute(x)[0].detach()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('act', ['nn.ReLU', 'ELU', 'Softplus', 'Tanh', 'LeakyReLU'])
def test_as_captum(act):
    "Where captum's hooks are of use, its maps and ours are the same."
    net = network(act, before=(act,), after=(act, 'batch norm'))
    q = question(net)
    for method in ('guided_backprop', 'deconvolution', 'deep_lift') if act == 'nn.ReLU' else ('deep_lift',):
        with untouched(net): theirs, ours = captum_of(net, q, method), METHODS[method].run(q).map
        assert (theirs - ours).abs().max() < 5e-8*theirs.abs().max()


class Part(nn.Module):
    "A function between two convolutions."
    def __init__(self, f, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.f = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), f
        for name, part in parts.items(): setattr(self, name, part)

    def forward(self, x): return self.b(self.f(self, F.relu(self.a(x))))


def why(net, method):
    q = question_of(net.double())
    how = METHODS[method]
    with untouched(net): return refusal(how, q, how.options, ahead=True) or ''


def question_of(net, **kw):
    sample = network('conv').sample()
    model = as_model(net, activation='softmax', **{k: v for k, v in kw.items() if k != 'target'})
    return Question(model, sample, Target(1, sample.labels == 1, **kw.get('target', {})), progress=False)


def straight_through(m, x): return x + (torch.round(x) - x).detach()


HOSTILE = {  # what stands between the convolutions: words of the refusals of guided methods and of DeepLIFT
    'mask as float': (lambda m, x: (x - .1)*((x - .1) > 0).double(), 'mul brings', 'mul brings'),
    'heaviside': (lambda m, x: (x - .1)*torch.heaviside(x - .1, x.new_zeros(1)), 'without a derivative', 'without a derivative'),
    'stacked with zeros': (lambda m, x: torch.stack([x - .1, torch.zeros_like(x)]).amax(0), 'Amax', 'Amax'),
    'sorted': (lambda m, x: x.sort(1)[0], 'Sort', 'Sort'),
    'the largest': (lambda m, x: x.topk(4, 1)[0], 'Topk', 'Topk'),
    'clamp on both sides': (lambda m, x: (x - .1).clamp(0, .2), 'Clamp', ''),
    'hardtanh': (lambda m, x: F.hardtanh(x - .1), 'Hardtanh', ''),
    'exponential': (lambda m, x: x.exp(), 'Exp', ''),
    'rsub of a mask': (lambda m, x: x - (x - .1)*(x < .1), 'mul brings', 'mul brings'),
    'minimum': (lambda m, x: -torch.minimum(-x, x.new_zeros(())), 'Minimum', 'Minimum'),
    'two-way softmax': (lambda m, x: x*torch.stack([x, -x]).softmax(0)[0], '', 'Softmax|multiplied'),
    'GLU': (lambda m, x: F.glu(torch.cat([x, x], 1), 1), 'GLU', 'Glu'),
    'lerp': (lambda m, x: torch.lerp(x, x.roll(1, -1), x.sigmoid()), 'Lerp', 'Lerp'),
    'complex': (lambda m, x: torch.fft.ifft2(torch.fft.fft2(x)).real, 'Fft', 'Fft'),
    'unique place': (lambda m, x: x.gather(1, x.argmax(1, keepdim=True).expand_as(x)), 'gather', 'gather'),
    'straight through': (straight_through, 'add brings', 'add brings'),
    'numbers as data': (lambda m, x: x*x.data, 'mul brings', 'mul brings'),
    'unpooled': (lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), '', 'max_unpool2d brings'),
    'divided by itself': (lambda m, x: x/(1 + x.abs()), 'Abs', 'multiplied'),
    'layer norm': (lambda m, x: F.layer_norm(x, x.shape[1:]), '', 'LayerNorm'),
    'spread': (lambda m, x: x/x.std((1, 2, 3), keepdim=True), '', 'multiplied|Std'),
    'attention of torch': (lambda m, x: F.scaled_dot_product_attention(x, x, x), '', 'multiplied|ScaledDot'),
    # refused though linear: torch writes circular borders part by part, in place, which hides what else was written
    'circular padding': (lambda m, x: F.pad(x, (1, 1, 1, 1), mode='circular')[..., 1:-1, 1:-1], 'in place', 'in place'),
    'squared ReLU': (lambda m, x: F.relu(x - .1)**2, '', ''),
    'slice assignment': (lambda m, x: torch.zeros_like(x).index_copy_(1, torch.arange(4), x), 'IndexCopy', 'IndexCopy'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile(name):
    f, guided, lift = HOSTILE[name]
    for method, words in (('guided_backprop', guided), ('deep_lift', lift)):
        told = why(Part(f), method)
        assert re.search(words, told) if words else told == '', (method, told)
        if words: assert 'use ' in told
        elif method == 'deep_lift':
            net = Part(f).double()
            with untouched(net): assert METHODS[method].run(question_of(net)).gap < 1e-6


def test_what_only_listens_changes_nothing():
    "Losses beside, outputs that nobody asks for, hooks of one's own."
    class Beside(Part):
        def forward(self, x):
            y = F.relu(self.a(x))
            self.log = {'mean': y.detach().mean()}
            return {'out': self.b(y), 'aux': F.gelu(y)}
    plain, net = Part(lambda m, x: x).double(), Beside(None).double()
    net.a.register_forward_hook(lambda m, args, out: None)
    for method in ('guided_backprop', 'deep_lift'):
        with untouched(plain): right = METHODS[method].run(question_of(plain)).map
        with untouched(net): assert torch.equal(METHODS[method].run(question_of(net, output='out')).map, right)


def test_hooks_that_change_outputs():
    net = Part(lambda m, x: x).double()
    net.a.register_forward_hook(lambda m, args, out: F.gelu(out))
    assert 'GELU' in why(net, 'guided_backprop') and why(net, 'deep_lift') == ''
    with untouched(net): assert METHODS['deep_lift'].run(question_of(net)).gap < 1e-6


def test_another_way_for_the_baseline():
    "A network that decides by the image."
    net = Part(lambda m, x: F.relu(x - .01) if x.max() > .5*x[0].detach().abs().max() and x.std() > .1 else torch.tanh(x)).double()
    q = question_of(net)
    with untouched(net):
        try: assert METHODS['deep_lift'].run(q).gap < 1e-6
        except Refused as e: assert 'another way' in str(e) or 'brings' in str(e)


def test_deep_lift_of_windows_and_slices():
    net, case, ball = network('MaxPool').float(), network('MaxPool').sample(), disc(shape=(12, 8, 6), radius=2.5)
    for kw, sample in ((dict(window=8, overlap=.5), case), ({}, ball)):
        model = as_model(net, activation='softmax', **kw)
        model = model if kw else model.slicewise()
        a = attribute(model, sample, Target(1, sample.labels == 1), 'deep_lift', progress=False)
        assert a.gap < 1e-4 and a.passes == (2, 1)


def test_targets_that_are_no_sum_of_logits():
    net = network('F.relu')
    with untouched(net):
        assert METHODS['deep_lift'].run(question_of(net, target=dict(log_odds=True))).gap < 1e-6  # of two classes
        with pytest.raises(Refused, match='no rule for Softmax'): METHODS['deep_lift'].run(question_of(net, target=dict(reduce='dice')))
        METHODS['guided_backprop'].run(question_of(net, target=dict(reduce='dice')))


def test_memory_is_bounded():
    "DeepLIFT of a large picture keeps about the features that its activations get, not several of everything."
    net, picture = network('nn.ReLU').float(), disc((300, 280), radius=60)
    q = Question(as_model(net, activation='softmax'), picture, Target(1, picture.labels == 1), progress=False)
    with untouched(net), following(Rescaling(net, (notes := Notes()).write)): q.look(q.x.detach().requires_grad_())
    size = sum(x.numel()*x.element_size() for _, x in notes.kept)/1e9
    assert 0 < size < gigabytes(METHODS['deep_lift'], q) and not go_together(q)
