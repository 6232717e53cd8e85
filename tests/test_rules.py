"""Guided backpropagation, deconvolution and DeepLIFT are right by the rule written out by hand, or refused: never believed and wrong."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grammar import (
    STEPS, computed, backed, deconvolution_rule, guided_rule, kinds, network, networks, rescaled)
from torch import nn

from misas.attribution.attribute import METHODS, Incomplete, attribute, methods
from misas.inside.question import Question, Refused
from misas.inside.target import Target
from misas.models.adapt import as_model
from misas.models.hold import trace

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
    sample = net.sample()
    q = Question(as_model(net, activation='softmax'), sample, Target(1, sample.labels == 1), progress=False)
    out = computed(net.forms, q.x).detach()
    mask = torch.as_tensor(sample.labels == 1)
    grad = torch.zeros_like(out)
    grad[0, 1, mask] = 1/mask.sum()
    return q.x, q.baseline('blur'), grad


def guided_by_hand(net, rule):
    "The map, or None where there is no rule."
    if kinds(net.forms) & {'each', 'cut'} or 'relu' not in kinds(net.forms): return None
    x, _, grad = tensors(net)
    return backed(net.forms, x, grad, rule)[0].numpy()


def lifted_by_hand(net):
    if kinds(net.forms) & {'smooth', 'cut'}: return None
    x, base, grad = tensors(net)
    return (rescaled(net.forms, x, base, grad)*(x - base))[0].numpy()


def verdict(net, method, right, could_refuse):
    "What happened: 'right', 'refused'; everything else is a fault."
    said = methods(as_model(net, activation='softmax'), net.sample(), Target(1, net.sample().labels == 1))
    beforehand = said.set_index('name').refused[method]
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
    if np.abs(map - right).max() > 2e-6*np.abs(right).max(): return f'wrong by {np.abs(map - right).max()/np.abs(right).max()}'
    return 'right'


NETWORKS = {name: net for name, net, _ in networks(60)}


@pytest.mark.parametrize('name', NETWORKS)
def test_right_or_refused(name):
    net = NETWORKS[name]
    told = {method: verdict(net, method, guided_by_hand(net, rule), REFUSED_THOUGH_RIGHT) for method, rule in GUIDED.items()}
    told['deep_lift'] = verdict(net, 'deep_lift', lifted_by_hand(net), REFUSED_BY_DEEP_LIFT)
    assert set(told.values()) <= {'right', 'refused'}, told


@pytest.mark.parametrize('nd', [2, 3])
@pytest.mark.parametrize('name', [step.name for step in STEPS])
def test_each_step(name, nd):
    net = network(name, nd)
    told = {method: verdict(net, method, guided_by_hand(net, rule), REFUSED_THOUGH_RIGHT) for method, rule in GUIDED.items()}
    told['deep_lift'] = verdict(net, 'deep_lift', lifted_by_hand(net), REFUSED_BY_DEEP_LIFT)
    assert set(told.values()) <= {'right', 'refused'}, told
