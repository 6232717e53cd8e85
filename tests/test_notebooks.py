"""Every notebook runs, and its committed outputs say what a fresh run says."""
import os

import pytest

import nbrun

PUBLIC = ('sunnybrook(', 'cardiac_net(', 'misas_b0(', 'brain_net(',  # data that is downloaded where MISAS_DATA is not set
          "data_folder('nuclei_dsb2018'", "data_folder('ms_lesions_openms'")


@pytest.mark.parametrize('path', nbrun.notebooks(), ids=lambda o: str(o.relative_to(nbrun.NBS).with_suffix('')))
def test_notebook(path):
    old = nbrun.read(path)
    text = '\n'.join(nbrun.source(c) for c in old['cells'] if c['cell_type'] == 'code')
    if any(o in text for o in PUBLIC) and not os.environ.get('MISAS_DATA'): pytest.skip('needs public data: set MISAS_DATA')
    difference = nbrun.output_drift(old, nbrun.run_apart(path))
    assert difference is None, f'{path.name}: {difference}\nrun python tests/nbrun.py {path.relative_to(nbrun.ROOT)} and look at the change'
