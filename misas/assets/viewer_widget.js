// The viewer of viewer.js, in whose text this one follows, as a widget.

const MODES = ['fill', 'outline', 'errors', 'differ'], FRAMES = ['at', 'frames', 'pool'];
const SAME = ['opacity', 'channel', 'wipe', 'truth', 'prediction', 'map', 'cross'];

/** What is seen, from single numbers that sliders and boxes can be linked to. */
function read(model) {
  const classes = (model.get('look').classes ?? []).map((_, n) => n + 1), ndim = model.get('ndim');
  return {
    ...Object.fromEntries(SAME.map(k => [k, model.get(k)])),
    voxel: [0, 1, 2].slice(0, ndim).map(i => model.get(`index_${i}`)),
    mode: MODES[model.get('way')],
    window: [model.get('black'), model.get('white')],
    hidden: classes.filter(k => model.get(`class_${k}`) === false),
  };
}

function write(model, change) {
  const {voxel, window: shown, ...rest} = change;
  for (const [i, at] of (voxel ?? []).entries()) model.set(`index_${i}`, at);
  if (shown) { model.set('black', shown[0]); model.set('white', shown[1]); }
  for (const [name, value] of Object.entries(rest)) if (SAME.includes(name)) model.set(name, value);
  model.set('hand', model.get('hand') + 1);  // see InPage
  model.save_changes();
}

function linked(model) {
  const classes = (model.get('look').classes ?? []).map((_, n) => `class_${n + 1}`);
  return [...SAME, ...classes, 'index_0', 'index_1', 'index_2', 'way', 'black', 'white'];
}

export default {
  render({model, el}) {
    const viewer = new Viewer(el, model.get('look'), change => write(model, change));
    const late = new Map();              // frames that came by message
    const wanted = () => clamp(model.get('at'), 0, model.get('frames').length - 1);
    const show = () => {
      const k = wanted(), frame = model.get('frames')[k], arrays = model.get('pool');
      if (frame == null && !late.has(k)) return model.send({need: k});
      viewer.show({...late.get(k) ?? unpacked(frame, n => bytes(arrays[n])), number: k}, model.get('extent'));
      follow();                          // a voxel that the frame before had not
    };
    const take = (message, buffers) => {
      if (!message.frame) return;
      late.set(message.k, unpacked(message.frame, n => bytes(buffers[n])));
      while (late.size > message.keep) late.delete(late.keys().next().value);
      if (message.k === wanted()) show();
    };
    const follow = () => { if (viewer.frame) viewer.set(read(model), true); };
    viewer.state = {...viewer.state, ...read(model)};
    const heard = [['msg:custom', take], ['change:frames', () => late.clear()], ...FRAMES.map(name => [`change:${name}`, show]), ...linked(model).map(name => [`change:${name}`, follow])];
    for (const [name, f] of heard) model.on(name, f);
    show();
    return () => {
      for (const [name, f] of heard) model.off(name, f);
      viewer.remove();
    };
  },
};
