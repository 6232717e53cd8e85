"A page with a viewer, in a real browser: for the tests of pictures and of maps."
import base64
import json

from misas.widgets.viewer import extent, scripts

PAGE = '''<!doctype html><meta charset="utf-8"><title>v</title><body style="margin:8px"><div id="v"></div><p id="below">below</p>
<script type="module">%s
const pool = %s.map(s => Uint8Array.from(atob(s), c => c.charCodeAt(0))), frames = %s.map(f => unpacked(f, n => pool[n]));
const viewer = new Viewer(document.getElementById('v'), %s);
viewer.show(frames[0], %s);
Object.assign(window, {viewer, frames, Cut, pixels, patterned, ready: true});
</script>'''


def page_with(browser, tmp_path, frames, pool, look, width=1280, scale=1, more=()):
    "A page with a viewer of some frames. What goes wrong in it is in `page.errors`; `more`: scripts that follow the viewer's."
    arrays = [base64.b64encode(data).decode() for data in pool.bytes]
    path = tmp_path/'page.html'
    path.write_text(PAGE % (scripts(*more), *map(json.dumps, (arrays, frames, look, extent(frames)))))
    page = browser.new_page(viewport=dict(width=width, height=800), device_scale_factor=scale)
    page.errors = []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.goto(f'file://{path}')
    page.wait_for_function('window.ready && viewer.scale')
    return page


PAIR = '''<!doctype html><meta charset="utf-8"><title>p</title><body style="margin:8px"><div id="v"></div><p id="below">below</p>
<script type="module">%s
const state = %s, heard = {};
for (const pool of [state.pool, state.changed.pool ?? []]) pool.forEach((s, n) => { pool[n] = Uint8Array.from(atob(s), c => c.charCodeAt(0)) });
const model = {get: k => state[k], save_changes() {}, on(k, f) { (heard[k] ??= []).push(f) }, off() {},
  set(k, v) { if (state[k] !== v) { state[k] = v; (heard[`change:${k}`] ?? []).forEach(f => f()) } }};
widget.render({model, el: document.getElementById('v')});
const halves = [...document.querySelectorAll('.mv')].map(e => e.viewer);
Object.assign(window, {model, halves, Cut, pixels, ready: true});
</script>'''


def page_with_pair(browser, tmp_path, pair, width=1280):
    "A page with a `BeforeAfter`, whose kernel has ended."
    def text(value):
        if isinstance(value, bytes): return base64.b64encode(value).decode()
        if isinstance(value, dict): return {k: text(v) for k, v in value.items()}
        return [text(v) for v in value] if isinstance(value, (list, tuple)) else value

    state = text({k: getattr(pair, k) for k in pair.keys if not k.startswith('_') and k not in ('layout', 'tabbable', 'tooltip')})
    path = tmp_path/'pair.html'
    path.write_text(PAIR % (pair._esm.replace('export default', 'const widget ='), json.dumps(state)))
    page = browser.new_page(viewport=dict(width=width, height=800))
    page.errors = []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.goto(f'file://{path}')
    page.wait_for_function('window.ready && halves[0].scale')
    return page
