"""Downloads: complete and checked, or absent with one sentence; tried against a server on this machine."""
import http.server
import threading
from functools import partial
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from misas.data import datasets


@pytest.fixture
def server(tmp_path):
    "An address that serves the files in a folder."
    folder = tmp_path/'served'
    folder.mkdir()
    handler = type('Quiet', (http.server.SimpleHTTPRequestHandler,), {'log_message': lambda *a: None})
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(handler, directory=str(folder)))
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{s.server_address[1]}/'
    s.shutdown()


def test_a_published_slice_is_read_as_the_local_one(server, tmp_path, monkeypatch):
    folder, url = server
    grey, mask = np.arange(64, dtype=np.uint8).reshape(8, 8), np.eye(8, dtype=np.uint8)
    row = datasets.sunnybrook().frame.iloc[0].copy()
    for kind, a in (('images', grey), ('masks', 255*mask)):  # published as RGB, masks 0 and 255
        path = folder/row[kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(a[..., None], 3, -1)).save(path)
        row[f'{kind}_sha256'] = sha256(path.read_bytes()).hexdigest()
    monkeypatch.delenv('MISAS_DATA', raising=False)
    monkeypatch.setattr(datasets, 'UPSTREAM', url)
    monkeypatch.setattr(datasets, 'cache_folder', lambda: tmp_path/'cache')
    s = datasets._sunnybrook_slice(row)
    assert (s.image[0] == grey).all() and (s.labels == mask).all() and s.classes == ('background', 'LV')
    for o in folder.rglob('*.png'): o.unlink()
    assert (datasets._sunnybrook_slice(row).image == s.image).all()  # now from the cache


def test_a_changed_file_is_refused_and_not_kept(server, tmp_path):
    folder, url = server
    (folder/'x.png').write_bytes(b'something else')
    with pytest.raises(ValueError, match='SHA-256'): datasets._download(url + 'x.png', '0'*64, tmp_path/'cache'/'x.png', 'sunnybrook')
    assert not list((tmp_path/'cache').glob('*'))


def test_no_network_says_what_to_do(tmp_path):
    with pytest.raises(OSError, match='sunnybrook: .* cannot be downloaded .* MISAS_DATA'):
        datasets._download('http://127.0.0.1:9/x.png', '0'*64, tmp_path/'x.png', 'sunnybrook')
    assert not (tmp_path/'x.png').exists()
