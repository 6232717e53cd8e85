"""Known answers of panoptica 2.1.7 (Kofler et al. 2023), as the table `panoptica.csv` that `test_instances.py` compares with.

panoptica wants numpy below 2.3 and pandas below 3, which misas is not tested with, so it has an environment of its own:

    python -m venv other && other/bin/pip install panoptica==2.1.7 nibabel
    other/bin/python tests/panoptica_answers.py > tests/panoptica.csv      # with MISAS_DATA set
"""
import os
from pathlib import Path

import numpy as np

COLUMNS = 'case', 'tp', 'fp', 'fn', 'rq', 'sq', 'pq', 'sq_dsc'
SEEDS = range(200)


def spine(kind):
    "Prediction and truth of `spine_instances`, voxels as they are stored."
    import nibabel as nib
    folder = Path(os.environ['MISAS_DATA'])/'spine_instances'/kind
    return [np.asarray(nib.load(folder/f'{name}.nii.gz').dataobj) for name in ('pred', 'ref')]


def random_masks(seed):
    "A random truth of blobs, and a prediction that moves, cuts, misses and invents; every second one in 3D. bool"
    rng = np.random.default_rng(seed)
    shape = (40, 48) if seed % 2 else (16, 20, 18)
    truth, prediction = np.zeros((2, *shape), bool)
    for _ in range(int(rng.integers(0, 14))):
        size = 1 + (rng.random(len(shape))*5).astype(int)
        at = (rng.random(len(shape))*(np.array(shape) - size)).astype(int)
        truth[box(at, size, shape)] = True
        moved, grown = rng.integers(-1, 2, (2, len(shape)))*(rng.random((2, 1)) < .4)
        if rng.random() < .8: prediction[box(at + moved, size + grown, shape)] = True
    prediction |= rng.random(shape) < .0005
    return prediction & (rng.random(shape) < .99), truth


def box(at, size, shape):
    at = np.clip(at, 0, np.array(shape) - 1)
    return tuple(slice(int(i), max(int(i + n), int(i) + 1)) for i, n in zip(at, size))


def answers():
    "A row a case."
    from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator
    from panoptica.metrics import Metric
    common = dict(instance_metrics=[Metric.DSC, Metric.IOU], global_metrics=[Metric.DSC], log_times=False)
    matcher = NaiveThresholdMatching(matching_threshold=.5)
    evaluators = dict(
        semantic=Panoptica_Evaluator(expected_input=InputType.SEMANTIC, instance_matcher=matcher,
                                     instance_approximator=ConnectedComponentsInstanceApproximator(), **common),
        unmatched=Panoptica_Evaluator(expected_input=InputType.UNMATCHED_INSTANCE, instance_matcher=matcher, **common),
        matched=Panoptica_Evaluator(expected_input=InputType.MATCHED_INSTANCE, decision_metric=Metric.IOU, decision_threshold=.5, **common))

    def row(case, kind, prediction, truth):
        found = evaluators[kind].evaluate(prediction, truth, verbose=False)['ungrouped']
        return case, *(getattr(found, name) for name in COLUMNS[1:])

    prediction, truth = spine('semantic')
    yield row('semantic', 'semantic', prediction, truth)
    for k in np.union1d(prediction, truth)[1:]:
        yield row(f'semantic {k}', 'semantic', *((a == k).astype(np.uint8) for a in (prediction, truth)))
    yield row('unmatched', 'unmatched', *spine('unmatched_instance'))
    yield row('matched', 'matched', *spine('matched_instance'))
    for seed in SEEDS: yield row(f'random {seed}', 'semantic', *(a.astype(np.uint8) for a in random_masks(seed)))


if __name__ == '__main__':
    import contextlib
    import sys
    with contextlib.redirect_stdout(sys.stderr): rows = list(answers())
    print(*COLUMNS, sep=',')
    for case, *numbers in rows: print(case, *(f'{n:.9g}' for n in numbers), sep=',')
