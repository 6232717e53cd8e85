// Writes the place of a click into the hidden field of its picture, of which the kernel hears. `this` is the layer.
const box = this.getBoundingClientRect(), field = this.closest('.misas-picture').querySelector('.misas-place input');
const place = [(event.clientX - box.left)/box.width, (event.clientY - box.top)/box.height];
field.value = [...place, Date.now()].join(' ');
for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}));
