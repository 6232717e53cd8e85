// Scores against values: drawings that are made once, a marker that moves in them, and the numbers at the marker.
// Each curve: {svg, places, dots, label, scores, changes}; scores and changes are texts, by class and value.

const STYLE = `
.mc { container-type: inline-size; color: var(--jp-ui-font-color1, CanvasText); font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif) }
.mc svg { display: block; width: 100%; height: auto; cursor: crosshair; touch-action: pan-y }
.mc svg text { fill: currentColor }
.mc svg .same, .mc svg .axis { stroke: currentColor }
.mc svg .grid { stroke: color-mix(in srgb, currentColor 18%, transparent) }
.mc table { border-collapse: collapse; margin-top: 4px; font-variant-numeric: tabular-nums }
.mc th, .mc td { padding: 1px 12px 1px 0; text-align: right; font-weight: normal }
.mc th:first-child { text-align: left }
.mc-told { min-height: 1.4em }
`;

const element = (tag, name, parent) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
};

class Curves {
  constructor(parent, heard) {
    this.heard = heard;                  // f(number of the value that was picked)
    this.root = element('div', 'mc', parent);
    element('style', '', this.root).textContent = STYLE;
    this.drawing = element('div', 'mc-drawing', this.root);
    this.told = element('div', 'mc-told', this.root);
    this.numbers = element('table', '', this.root);
    this.drawing.addEventListener('pointerdown', event => { this.drawing.setPointerCapture(event.pointerId); this.pick(event); });
    this.drawing.addEventListener('pointermove', event => (event.buttons === 1 ? this.pick(event) : this.hover(event)));
    this.drawing.addEventListener('pointerleave', () => { this.told.textContent = ''; });
    this.root.curves = this;             // for whoever wants to know what is shown
  }

  /** Everything anew: other curves, or another metric. */
  show(curves, metric, names) {
    [this.curve, this.names] = [curves[metric], names];
    this.drawing.innerHTML = this.curve.svg;
    this.svg = this.drawing.querySelector('svg');
    this.numbers.replaceChildren();
    this.row('th', ['', this.curve.label, 'change']);
    this.rows = names.classes.map((name, k) => this.row('td', [name, '', ''], names.colours[k]));
  }

  row(tag, texts, colour) {
    const row = element('tr', '', this.numbers);
    return texts.map((text, i) => {
      const cell = element(i && tag === 'td' ? 'td' : 'th', '', row);
      cell.scope = tag === 'th' ? 'col' : 'row';
      if (!i && colour) Object.assign(element('span', '', cell), {textContent: '■ '}).style.color = colour;
      const said = element('span', '', cell);
      said.textContent = text;
      return said;
    });
  }

  /** To a value. */
  mark(at, hidden) {
    const line = this.svg.querySelector('.mark');
    for (const end of ['x1', 'x2']) line.setAttribute(end, this.curve.places[at]);
    this.rows.forEach(([, score, change], k) => {
      const [x, y] = this.curve.dots[k][at] ?? [-9, -9], dot = this.svg.querySelector(`.dot[data-k="${k + 1}"]`);
      dot.setAttribute('cx', x);
      dot.setAttribute('cy', y);
      [score.textContent, change.textContent] = [this.curve.scores[k][at], this.curve.changes[k][at]];
      for (const part of this.svg.querySelectorAll(`[data-k="${k + 1}"]`)) part.style.display = hidden.includes(k + 1) ? 'none' : '';
    });
  }

  under(event) {
    const box = this.svg.getBoundingClientRect(), x = (event.clientX - box.left)/box.width*this.svg.viewBox.baseVal.width;
    return this.curve.places.reduce((best, place, i) => (Math.abs(place - x) < Math.abs(this.curve.places[best] - x) ? i : best), 0);
  }

  pick(event) { this.heard(this.under(event)); }

  hover(event) {
    const i = this.under(event);
    const scores = this.names.classes.map((name, k) => `${name} ${this.curve.scores[k][i]}`);
    this.told.textContent = `${this.names.values[i]}: ${scores.slice(0, 8).join(', ')}${scores.length > 8 ? ', ...' : ''}`;
  }
}

export default {
  render({model, el}) {
    const curves = new Curves(el, at => {
      model.set('at', at);
      model.set('hand', model.get('hand') + 1);  // see InPage
      model.save_changes();
    });
    const names = () => model.get('names'), last = () => names().values.length - 1;
    const move = () => curves.mark(Math.min(Math.max(0, model.get('at')), last()),
      names().classes.map((_, n) => n + 1).filter(k => model.get(`class_${k}`) === false));
    const show = () => { curves.show(model.get('curves'), model.get('metric'), names()); move(); };
    const heard = [...['curves', 'metric', 'names'].map(name => [`change:${name}`, show]),
      ...['at', ...names().classes.map((_, n) => `class_${n + 1}`)].map(name => [`change:${name}`, move])];
    for (const [name, f] of heard) model.on(name, f);
    show();
    return () => { for (const [name, f] of heard) model.off(name, f); };
  },
};
