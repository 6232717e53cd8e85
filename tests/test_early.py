"""A sweep in a real kernel shows its curve while it is being made."""
import base64
import io

import pytest
from jupyter_client.manager import start_new_kernel
from PIL import Image

SETUP = '''
import time
import numpy as np
from misas.all import Brightness, as_model, sensitivity
from misas.data.phantom import disc
def slow(x):
    time.sleep(.4)
    return (x[:, 0] > .5).astype(int)
model, values = as_model(slow, classes=('background', 'disc')), np.geomspace(.25, 4, 17)
'''


@pytest.fixture(scope='module')
def kernel():
    manager, client = start_new_kernel(kernel_name='python3')
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def told(client, code):
    "What a cell says: (kind of message, its content)."
    found = []
    answer = client.execute_interactive(code, timeout=300, output_hook=lambda o: found.append((o['msg_type'], o['content'])))
    assert answer['content']['status'] == 'ok', answer['content']
    return found


def pictures(messages):
    "The curves that were shown one after the other, and whether the place is empty in the end."
    mine = [(kind, o) for kind, o in messages if 'display_id' in o.get('transient', {}) and 'widget' not in str(o['data'])[:60]]
    data = [o['data'] for kind, o in mine]
    return [Image.open(io.BytesIO(base64.b64decode(o['image/png']))) for o in data if 'image/png' in o], data


def test_the_curve_grows_and_goes(kernel):
    told(kernel, SETUP)
    messages = told(kernel, "result = sensitivity(model, disc(), Brightness(), values, progress='plot')")
    shown, data = pictures(messages)
    assert len(shown) >= 2 and data[-1] == {'text/plain': ''}
    assert [kind for kind, _ in messages].count('display_data') <= 2  # the picture and the bar; all others replace it
    assert len({one.tobytes() for one in shown}) == len(shown) and all(min(one.size) > 150 for one in shown)
    assert not [o for o in told(kernel, '0') if o[0] == 'display_data']  # no figure is left to be shown again


def test_the_result_is_that_of_a_plain_sweep(kernel):
    messages = told(kernel, SETUP + '''
order = []
def watched(x):
    order.append(float(x.max()))
    return slow(x)
one, other = (sensitivity(as_model(watched, classes=('background', 'disc')), disc(), Brightness(), values, progress=how)
              for how in (False, 'plot'))
print(one.frame.equals(other.frame), all((a == b).all() for a, b in zip(one.predictions, other.predictions)))
''')
    assert ('stdout', 'True True\n') in [(o.get('name'), o.get('text')) for _, o in messages]


def test_an_interrupted_sweep_leaves_what_it_drew(kernel):
    shown, data = pictures(told(kernel, SETUP + '''
asked = []
def tired(x):
    asked.append(1)
    if len(asked) == 14: raise KeyboardInterrupt
    return slow(x)
try: sensitivity(as_model(tired, classes=('background', 'disc')), disc(), Brightness(), values, progress='plot')
except KeyboardInterrupt: pass
'''))
    assert shown and 'image/png' in data[-1]


def test_a_picture_that_fails_costs_no_sweep(kernel):
    messages = told(kernel, SETUP + '''
from misas.sweep.sensitivity import Sensitivity
tried = []
def broken(self, *args, **kw):
    tried.append(1)
    raise ValueError('no picture')
plot, Sensitivity.plot = Sensitivity.plot, broken
try: print(len(sensitivity(model, disc(), Brightness(), values, progress='plot').values), len(tried))
finally: Sensitivity.plot = plot
''')
    assert ('stdout', '17 1\n') in [(o.get('name'), o.get('text')) for _, o in messages]
