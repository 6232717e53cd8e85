(() => {
'use strict';
const $ = id => document.getElementById(id), all = selector => [...document.querySelectorAll(selector)];
const M = misas, n = M.values.length, canvas = $('picture'), slider = $('value'), images = new Map();
let asked = 0, painted = 0, timer = 0;
const at = () => Number(slider.value), metric = () => Number($('metric').value);
const classes = M.classes.map((_, j) => j + 1), shown = k => $('class-' + k).checked;

function load(number) {  // a file of the page as a decoded image
  if (!images.has(number)) {
    const image = new Image();
    image.src = 'data:image/' + M.pool[number];
    images.set(number, image.decode().then(() => image));
  }
  return images.get(number);
}

function layers(frame) {  // [file, opacity] from below
  const out = [[frame.grey, 1]];
  const add = (files, alpha) => classes.filter(k => k in files && shown(k)).forEach(k => out.push([files[k], alpha]));
  if ($('prediction').checked) add(frame.filled, Number($('opacity').value));
  if (frame.hatched !== null) out.push([frame.hatched, 1]);
  if ($('truth').checked) add(frame.lines, 1);
  return out;
}

async function paint() {
  const mine = ++asked, i = at(), frame = M.frames[i], stack = layers(frame);
  let files;
  try { files = await Promise.all(stack.map(([file]) => load(file))) }
  catch (e) { $('message').textContent = 'The picture at ' + M.values[i] + ' cannot be shown: ' + e.message; return }
  if (mine < painted) return;  // a later one is there already
  painted = mine;
  [canvas.height, canvas.width] = frame.size;
  const pen = canvas.getContext('2d');
  pen.imageSmoothingEnabled = false;
  files.forEach((file, j) => { pen.globalAlpha = stack[j][1]; pen.drawImage(file, 0, 0, canvas.width, canvas.height) });
  canvas.style.width = 100*frame.mm[1]/M.wide + '%';
  canvas.style.height = 100*frame.mm[0]/M.high + '%';
  sharpen();
  $('hatched').hidden = frame.hatched === null;
  canvas.setAttribute('aria-label', M.sample + ', ' + M.transform + ' ' + M.values[i] + ': ' + M.alt);
  canvas.dataset.shown = i;
}

function sharpen() {  // whole pixels; where there are more than the screen has, thin lines would be lost
  const fits = canvas.width <= canvas.getBoundingClientRect().width*window.devicePixelRatio + 1;
  canvas.style.imageRendering = fits ? 'pixelated' : 'auto';
}

function stage() {  // room for the largest picture, so that nothing jumps
  M.high = Math.max(...M.frames.map(f => f.mm[0]));
  M.wide = Math.max(...M.frames.map(f => f.mm[1]));
  $('stage').style.aspectRatio = M.wide + ' / ' + M.high;
  $('stage').style.maxWidth = 'max(240px, ' + 75*M.wide/M.high + 'vh)';
}
function numbers() {  // marker, scores and texts of the value shown
  const i = at(), m = metric(), text = M.values[i];
  slider.setAttribute('aria-valuetext', text);
  $('shown').textContent = $('here').textContent = text;
  all('figure').forEach((figure, j) => {
    figure.hidden = j !== m;
    const line = figure.querySelector('.mark');
    line.setAttribute('x1', M.places[i]);
    line.setAttribute('x2', M.places[i]);
    classes.forEach(k => {
      const [x, y] = M.dots[j][k - 1][i] || [-9, -9], dot = figure.querySelector('.dot[data-k="' + k + '"]');
      dot.setAttribute('cx', x);
      dot.setAttribute('cy', y);
    });
  });
  all('.summary').forEach((o, j) => { o.hidden = j !== m });
  all('#now tbody tr').forEach((row, j) => {
    row.cells[1].textContent = M.scores[m][j][i];
    row.cells[2].textContent = M.changes[m][j][i];
  });
  all('#all tbody tr').forEach((row, j) => row.classList.toggle('now', j === i));
  classes.forEach(k => all('figure [data-k="' + k + '"]').forEach(o => { o.style.display = shown(k) ? '' : 'none' }));
}

function show() { numbers(); return paint() }
function go(i) { slider.value = i; return show() }

function pick(event) {  // the value nearest to a place on the curve
  const box = event.currentTarget.getBoundingClientRect(), x = (event.clientX - box.left)/box.width*M.width;
  go(M.places.reduce((best, p, i) => Math.abs(p - x) < Math.abs(M.places[best] - x) ? i : best, 0));
}

function play(on) {
  clearTimeout(timer);
  timer = on ? setTimeout(async () => { await go((at() + 1) % n); if (timer) play(true) }, 250) : 0;
  $('play').setAttribute('aria-pressed', String(Boolean(on)));
  $('play').textContent = on ? '⏸ pause' : '▶ play';
}

slider.addEventListener('input', show);
$('metric').addEventListener('change', numbers);
all('fieldset input').forEach(o => o.addEventListener('input', show));
all('figure svg').forEach(o => {
  o.addEventListener('pointerdown', pick);
  o.addEventListener('pointermove', e => { if (e.buttons === 1) pick(e) });
});
$('play').addEventListener('click', () => play(!timer));
document.addEventListener('keydown', e => {
  const busy = e.target.closest('button, select, summary, input[type=checkbox]');
  if (e.key === ' ' && !busy) { e.preventDefault(); if (!e.repeat) play(!timer) }
});
window.addEventListener('resize', sharpen);
stage();
show();
})();
