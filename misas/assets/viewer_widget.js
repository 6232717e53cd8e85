// The viewer of viewer.js as a widget. Follows viewer_model.js in one text.

const FRAMES = ['at', 'frames', 'pool'];

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
    const heard = [['msg:custom', take], ['change:frames', () => late.clear()],
      ...FRAMES.map(name => [`change:${name}`, show]), ...linked(model).map(name => [`change:${name}`, follow])];
    for (const [name, f] of heard) model.on(name, f);
    show();
    return () => {
      for (const [name, f] of heard) model.off(name, f);
      viewer.remove();
    };
  },
};
