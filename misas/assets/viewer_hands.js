// What hands do with a picture of a viewer: mouse, fingers, keys. Follows viewer.js in one text.

/** Slices by wheel and keys, crosshair, window, zoom, and the line between two predictions. */
class Hands {
  constructor(plane) {
    this.plane = plane;
    this.touches = new Map();            // where pointers are that are down
    this.listen();
  }

  listen() {
    const on = (name, f, how) => this.plane.canvas.addEventListener(name, f.bind(this), how);
    on('wheel', this.wheel, {passive: false});
    on('keydown', this.key);
    on('pointerdown', this.down);
    on('pointermove', this.move);
    for (const name of ['pointerup', 'pointercancel']) on(name, this.up);
    for (const name of ['pointerleave', 'blur']) on(name, () => this.plane.viewer.point(null));
    on('contextmenu', event => { event.preventDefault(); event.stopPropagation(); });  // neither the browser's nor Jupyter's
    on('dblclick', () => this.reset());
  }

  step(by) {
    const {across} = this.plane.cut.plane, voxel = [...this.plane.viewer.state.voxel];
    if (across < 0) return false;
    voxel[across] += by;
    this.plane.viewer.set({voxel});
    return true;
  }

  enlarge(factor) {
    this.plane.zoom = clamp(this.plane.zoom*factor, 1, 16);
    if (this.plane.zoom === 1) this.plane.pan = [0, 0];
    this.plane.viewer.zoomed(this.plane);
  }

  wheel(event) {
    if (event.ctrlKey || event.metaKey) this.enlarge(event.deltaY < 0 ? 1.2 : 1/1.2);
    else if (!this.step(Math.sign(event.deltaY))) return;  // the page scrolls
    event.preventDefault();
    this.tellUnder(event);
  }

  key(event) {
    const steps = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10}, by = steps[event.key];
    if (by ? !this.step(by) : !this.pressed(event.key)) return;
    this.plane.viewer.point(this.plane.viewer.state.voxel);
    event.preventDefault();
  }

  pressed(key) {
    if ('+='.includes(key)) this.enlarge(1.25);
    else if (key === '-') this.enlarge(.8);
    else if (key === '0' || key === 'Escape') this.reset();
    else return false;
    return true;
  }

  reset() {
    [this.plane.zoom, this.plane.pan] = [1, [0, 0]];
    this.plane.viewer.set({window: [0, 255]});
    this.plane.viewer.zoomed(this.plane);
  }

  down(event) {
    this.plane.canvas.setPointerCapture(event.pointerId);
    this.touches.set(event.pointerId, [event.clientX, event.clientY]);
    this.wiping = event.buttons === 1 && this.onWipe(event);
    if (this.way(event) === 'cross') this.cross(event);
  }

  up(event) { this.touches.delete(event.pointerId); }

  /** Whether a pointer is at the line between two predictions. */
  onWipe(event) {
    const {frame, state} = this.plane.viewer, [cut, i] = this.plane.under(event);
    const away = Math.abs(i - wipedFrom(frame, cut, state))*this.plane.fit(cut).x/this.plane.ratio;
    return frame.other != null && state.mode !== 'differ' && away <= 8;
  }

  wipe(event) {
    const [cut, i] = this.plane.under(event);
    this.plane.viewer.set({wipe: clamp(i/cut.width, 0, 1)});
  }

  /** What moving does. */
  way(event) {
    if (this.wiping && event.buttons) return 'wipe';
    if (this.touches.size > 1 || event.buttons === 2) return 'window';
    if (event.buttons === 4 || event.buttons === 1 && (event.shiftKey || !this.plane.viewer.pointed)) return 'pan';
    return event.buttons === 1 ? 'cross' : 'hover';
  }

  move(event) {
    const way = this.way(event), last = this.touches.get(event.pointerId) || [event.clientX, event.clientY];
    const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
    if (this.touches.has(event.pointerId)) this.touches.set(event.pointerId, [event.clientX, event.clientY]);
    if (way === 'wipe') this.wipe(event);
    if (way === 'cross') this.cross(event);
    if (way === 'window') this.level(dx, dy);
    if (way === 'pan' && this.plane.zoom > 1) this.shift(dx, dy);
    this.plane.canvas.style.cursor = this.onWipe(event) ? 'ew-resize' : '';
    this.tellUnder(event);
  }

  tellUnder(event) {
    const [cut, i, j] = this.plane.under(event), inside = i >= 0 && j >= 0 && i < cut.width && j < cut.height;
    this.plane.viewer.point(inside ? cut.voxel(Math.floor(i), Math.floor(j), this.plane.viewer.state.voxel) : null);
  }

  cross(event) {
    const [cut, i, j] = this.plane.under(event);
    this.plane.viewer.set({voxel: cut.voxel(Math.floor(i), Math.floor(j), this.plane.viewer.state.voxel)});
  }

  level(dx, dy) {
    const [black, white] = this.plane.viewer.state.window, width = clamp(white - black + dx, 2, 510);
    const middle = clamp((black + white)/2 + dy, 0, 255);
    this.plane.viewer.set({window: [middle - width/2, middle + width/2]});
  }

  shift(dx, dy) {
    const cut = this.plane.cut, fit = this.plane.fit(cut);
    const moved = [this.plane.pan[0] - dx*this.plane.ratio/fit.x, this.plane.pan[1] - dy*this.plane.ratio/fit.y];
    this.plane.pan = moved.map((at, k) => clamp(at, -[cut.width, cut.height][k]/2, [cut.width, cut.height][k]/2));
    this.plane.viewer.zoomed(this.plane);
  }
}
