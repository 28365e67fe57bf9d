// The picture: the image with the labels, or the groups of a stage, over it.

const DARK = [14, 17, 23]; // colour over the background and the parts that are not highlighted
const LONGEST_SIDE = 1024; // pixels, until an answer gives its own size

export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.tint = document.createElement("canvas");
    this.image = null;
    this.layers = new Map(); // view → {indexes: Uint8Array, colours, dimmed: the index that is dimmed, or null}
  }

  show(image) {
    this.image = image;
    this.layers.clear();
    const scale = Math.min(LONGEST_SIDE / Math.max(image.width, image.height), 4);
    this.resize(Math.max(Math.round(image.width * scale), 1), Math.max(Math.round(image.height * scale), 1));
  }

  // Takes the maps of an answer.
  async read(answer) {
    const layers = new Map();
    const labels = await pixels(answer.labels);
    const labelOf = new Map(answer.colours.map(([red, green, blue], label) => [(red << 16) | (green << 8) | blue, label]));
    layers.set("words", {
      indexes: mapped(labels, (red, green, blue) => labelOf.get((red << 16) | (green << 8) | blue) ?? 255),
      colours: answer.colours,
      dimmed: answer.has_background ? 0 : null,
    });
    for (const [index, stage] of answer.groups.entries()) {
      const groups = mapped(await pixels(stage.map), (grey) => grey);
      layers.set(`stage-${index + 1}`, { indexes: groups, colours: stage.colours, dimmed: null });
    }
    this.layers = layers;
    this.resize(answer.width, answer.height);
  }

  resize(width, height) {
    for (const canvas of [this.canvas, this.tint]) Object.assign(canvas, { width, height });
  }

  // `lit`: the index to highlight, or null.
  draw(view, opacity, lit) {
    if (!this.image) return;
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // under transparent pixels, as the model sees them
    context.fillRect(0, 0, width, height);
    context.drawImage(this.image, 0, 0, width, height);
    const layer = this.layers.get(view);
    if (!layer || opacity === 0) return;
    const over = new ImageData(width, height);
    const strength = Math.round(255 * opacity / 100);
    const { indexes, colours, dimmed } = layer;
    for (let place = 0, at = 0; place < indexes.length; place++, at += 4) {
      const index = indexes[place];
      const dark = index === dimmed ? lit !== index : lit !== null && lit !== index;
      const colour = dark || index === dimmed ? DARK : colours[index] ?? DARK;
      const edge = (place % width < width - 1 && indexes[place + 1] !== index) || (indexes[place + width] ?? index) !== index;
      over.data[at] = edge ? 255 : colour[0];
      over.data[at + 1] = edge ? 255 : colour[1];
      over.data[at + 2] = edge ? 255 : colour[2];
      over.data[at + 3] = index === dimmed && !edge ? (lit === index ? 0 : strength * 0.75) : dark && !edge ? Math.max(strength * 0.8, 150) : strength;
    }
    this.tint.getContext("2d").putImageData(over, 0, 0);
    context.drawImage(this.tint, 0, 0);
  }

  // The index under a pointer, or null.
  indexAt(event, view) {
    const layer = this.layers.get(view);
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * this.canvas.width);
    const y = Math.floor((event.clientY - box.top) / box.height * this.canvas.height);
    if (!layer || x < 0 || y < 0 || x >= this.canvas.width || y >= this.canvas.height) return null;
    return layer.indexes[y * this.canvas.width + x];
  }
}

async function pixels(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

function mapped(data, index) {
  const indexes = new Uint8Array(data.length / 4);
  for (let place = 0, at = 0; place < indexes.length; place++, at += 4) {
    indexes[place] = index(data[at], data[at + 1], data[at + 2]);
  }
  return indexes;
}
