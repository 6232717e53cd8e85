// Maps over the image, their colours and what these mean. Follows viewer.js, and in a widget viewer_widget.js, in one text.
//
// A frame with a map has, besides `map`: {mapTop, mapRange, mapLimits, mapUnit}. Its numbers go from 0 to mapTop, the values of
// these two are mapRange; mapLimits are the values at which the colours may end. `look.mapColours` go from minus this limit to the
// limit. `region` is a mask to be outlined, and `regionName` what it is.

Object.assign(STATE, {
  strength: .85,        // opacity of the map's colours
  threshold: 0,         // what is smaller than this fraction of the limit is hidden
  sign: 0,              // 0: both, 1: only what is above zero, 2: only what is below
  limit: 0,             // number of the limit
  region: true,         // is it outlined?
});
if (typeof SAME !== 'undefined') SAME.push('strength', 'threshold', 'sign', 'limit', 'region');

const mapLimit = (frame, state) => frame.mapLimits[Math.min(state.limit, frame.mapLimits.length - 1)];

const asText = (value, digits = 2) => Number(value.toPrecision(digits)).toString().replace('-', '−');

/** What a number of a map stands for. */
export function mapValue(frame, number) {
  const [low, high] = frame.mapRange;
  return low + number/frame.mapTop*(high - low);
}

/** The map at a voxel, and whether that is in the region. */
export function mapWords(frame, index) {
  const value = mapValue(frame, frame.map[index]), where = frame.region ? `, ${frame.region[index] ? 'inside' : 'outside'} the ${frame.regionName ?? 'target'}` : '';
  return `map ${value > 0 ? '+' : ''}${asText(value, 3)} ${frame.mapUnit}`.trim() + where;
}

/** The colours as they are seen, from minus the limit to the limit. */
function coloursSeen(state, look) {
  const zero = (look.mapColours.length - 1)/2;
  const hidden = at => Math.abs(at - zero) < state.threshold*zero || (state.sign === 1 && at < zero) || (state.sign === 2 && at > zero);
  return look.mapColours.map(([r, g, b, alpha], at) => [r, g, b, hidden(at) ? 0 : alpha*state.strength]);
}

/** A function that gives the colour of a number of a map. */
export function mapPainter(frame, state, look) {
  const colours = coloursSeen(state, look), zero = (colours.length - 1)/2, aValue = zero/mapLimit(frame, state);
  return number => colours[clamp(Math.round(zero + mapValue(frame, number)*aValue), 0, 2*zero)];
}

const LEGEND_STYLE = `
.mv-legend { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: flex-start; padding: 6px 0 2px; max-width: 560px }
.mv-scale { flex: 1 1 240px; min-width: 0 }
.mv-scale canvas { display: block; width: 100%; height: 12px }
.mv-ticks { position: relative; height: 1.5em; font-variant-numeric: tabular-nums }
.mv-ticks span { position: absolute; white-space: nowrap }
`;

/** What the colours of a map mean: they, over grey, and numbers. */
class MapLegend {
  constructor(viewer) {
    this.viewer = viewer;
    this.root = element('div', 'mv-legend');
    this.root.setAttribute('role', 'img');
    viewer.stage.after(this.root);
    element('style', '', this.root).textContent = LEGEND_STYLE;
    const scale = element('div', 'mv-scale', this.root);
    this.ramp = element('canvas', '', scale);
    this.ticks = element('div', 'mv-ticks', scale);
    this.unit = element('div', '', this.root);
  }

  draw() {
    const {frame, state, look} = this.viewer, limit = mapLimit(frame, state), signed = frame.mapRange[0] < 0;
    this.root.style.visibility = state.map ? '' : 'hidden';
    this.paint(coloursSeen(state, look), signed);
    const words = (signed ? [-1, 0, 1] : [0, .5, 1]).map(share => asText(share*limit));
    if (frame.mapRange[1] > 1.001*limit) words[2] = `≥ ${words[2]}`;
    if (frame.mapRange[0] < -1.001*limit) words[0] = `≤ ${words[0]}`;
    this.ticks.replaceChildren(...words.map((text, n) => this.tick(text, 50*n)));
    this.unit.textContent = frame.mapUnit;
    this.root.setAttribute('aria-label', `colours of the map, from ${words[0]} to ${words[2]} ${frame.mapUnit}`);
  }

  tick(text, percent) {
    const out = element('span');
    out.textContent = text;
    out.style.left = `${percent}%`;
    out.style.transform = `translateX(-${percent}%)`;
    return out;
  }

  /** The colours over mid-grey, a pixel each; it is stretched. */
  paint(colours, signed) {
    const shown = signed ? colours : colours.slice((colours.length - 1)/2), out = new Uint8ClampedArray(4*shown.length).fill(128);
    shown.forEach((colour, at) => { blend(out, 4*at, colour); out[4*at + 3] = 255; });
    [this.ramp.width, this.ramp.height] = [shown.length, 1];
    this.ramp.getContext('2d').putImageData(new ImageData(out, shown.length, 1), 0, 0);
  }
}

export function drawLegend(viewer) {
  viewer.legend ??= new MapLegend(viewer);
  viewer.legend.draw();
}
