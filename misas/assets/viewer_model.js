// What is seen in a viewer, as the traits of a widget. Follows viewer.js in one text; then comes
// viewer_widget.js or viewer_pair.js.

const MODES = ['fill', 'outline', 'errors', 'differ'];
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
