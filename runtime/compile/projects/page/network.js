/** The compiled network: one instance has its own memory, and runs one image at a time. */
export class Network {
  static model = MODEL.name;
  static classes = Object.freeze([...MODEL.classes]);
  static height = MODEL.height;
  static width = MODEL.width;
  static channels = MODEL.channels;

  #exports;
  // The int8 value of each pixel value, 256 for each channel.
  #tables = new Int8Array(fromBase64(MODEL.tables).buffer);
  #inputs = MODEL.height * MODEL.width * MODEL.channels.length;

  constructor(instance) {
    this.#exports = instance.exports;
  }

  /** Loads the network from an address, by default the file beside this module, or from the bytes of that file. */
  static async load(source = new URL(MODEL.file, import.meta.url)) {
    let bytes = source;
    if (typeof source === "string" || source instanceof URL) {
      const response = await fetch(source);
      if (!response.ok) throw new Error(`cannot load ${source}: ${response.status} ${response.statusText}`);
      bytes = await response.arrayBuffer();
    }
    return new Network((await WebAssembly.instantiate(bytes, {})).instance);
  }

  /** Runs the network on int8 values, rows of pixels with the channels last, and returns its output. */
  run(input) {
    if (input.length !== this.#inputs) throw new RangeError(`the input has ${input.length} values, not ${this.#inputs}`);
    const { memory, input: at, output, run } = this.#exports;
    new Int8Array(memory.buffer, at(), this.#inputs).set(input);
    run();
    const Output = MODEL.output.kind === "float32" ? Float32Array : Int8Array;
    return new Output(memory.buffer, output(), MODEL.classes.length).slice();
  }

  /** The output for an image as real numbers, one for each class; `classify` says what an image may be. */
  predict(image) {
    const output = this.run(this.#quantize(this.crop(image)));
    if (output instanceof Float32Array) return output;
    return Float32Array.from(output, (value) => (value - MODEL.output.zeroPoint) * MODEL.output.scale);
  }

  /**
   * The most probable classes of an image, most probable first. The image is an ImageData of any size, which is resized
   * and cropped as in training; or RGBA pixels of the network's size; or such pixels in the network's own channels.
   */
  classify(image, top = 5) {
    const output = this.predict(image);
    const scores = MODEL.answer === "logits" ? softmax(output) : Array.from(output);
    const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
    return order.slice(0, top).map((index) => ({ label: MODEL.classes[index], index, score: scores[index] }));
  }

  /** An image as the network sees it: uint8, after resize and crop, rows of pixels with the channels last. */
  crop(image) {
    const { height, width, channels } = MODEL;
    if (typeof image.width === "number") return resizeAndCrop(image);
    if (image.length === height * width * channels.length) return image;
    if (image.length === height * width * 4) return planes(image, height * width);
    throw new RangeError(`the image has ${image.length} values, not ${height} x ${width} x 4`);
  }

  /** Runs the test image; true if the output has the expected bits, null if the model came without a test image. */
  async selfTest() {
    if (!MODEL.golden) return null;
    const pixels = await inflate(fromBase64(MODEL.golden.pixels));
    const expected = fromBase64(MODEL.golden.output);
    const found = new Uint8Array(this.run(this.#quantize(pixels)).buffer);
    return found.length === expected.length && found.every((byte, i) => byte === expected[i]);
  }

  #quantize(pixels) {
    const depth = MODEL.channels.length;
    return Int8Array.from(pixels, (pixel, i) => this.#tables[(i % depth) * 256 + pixel]);
  }
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** RGBA pixels in the network's channels; grey has the weights of ITU-R 601-2, in the integers of Pillow. */
function planes(rgba, count) {
  const depth = MODEL.channels.length;
  const out = new Uint8Array(count * depth);
  const [red, blue] = MODEL.channels === "BGR" ? [2, 0] : [0, 2];
  for (let i = 0; i < count; i++) {
    const r = rgba[4 * i], g = rgba[4 * i + 1], b = rgba[4 * i + 2];
    if (depth === 1) {
      out[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    } else {
      out[3 * i + red] = r;
      out[3 * i + 1] = g;
      out[3 * i + blue] = b;
    }
  }
  return out;
}

/** Resizes and crops as in training: the bilinear filter of Pillow 13 in its integers. */
function resizeAndCrop(image) {
  const { height, width, resize } = MODEL;
  let [tall, wide] = [height, width];
  if (resize !== null) {
    const ratio = resize / Math.min(image.width, image.height);
    wide = Math.max(resize, Math.trunc(image.width * ratio));
    tall = Math.max(resize, Math.trunc(image.height * ratio));
  }
  const columns = filter(image.width, wide, roundHalfEven((wide - width) / 2), width);
  const rows = filter(image.height, tall, roundHalfEven((tall - height) / 2), height);
  const pixels = planes(image.data, image.width * image.height);
  // Pillow 13 begins with the height if that shrinks much more; the order decides some roundings.
  if (image.height > tall && image.height - tall > 2 * (image.width - wide)) {
    return horizontal(vertical(pixels, image.width, rows), image.width, columns);
  }
  return vertical(horizontal(pixels, image.width, columns), width, rows);
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

// Weights have 22 bits behind the point.
const BITS = 22;
const HALF = 1 << (BITS - 1);

/** For each of `count` outputs from `first` on: the first input that it reads, and the weights from there on. */
function filter(size, scaled, first, count) {
  const scale = size / scaled;
  const reach = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    if (size === scaled) return { start: first + index, weights: Int32Array.of(1 << BITS) };
    const centre = (first + index + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), size);
    const found = [];
    for (let x = start; x < end; x++) found.push(Math.max(1 - Math.abs((x - centre + 0.5) * (1 / reach)), 0));
    const sum = found.reduce((a, b) => a + b, 0);
    return { start, weights: Int32Array.from(found, (weight) => 0.5 + (weight / sum) * (1 << BITS)) };
  });
}

function horizontal(pixels, width, columns) {
  const depth = MODEL.channels.length;
  const pitch = width * depth;
  const out = new Uint8Array((pixels.length / width) * columns.length);
  let to = 0;
  for (let row = 0; row < pixels.length; row += pitch) {
    for (let x = 0; x < columns.length; x++) {
      const { start, weights } = columns[x];
      for (let c = 0; c < depth; c++) {
        let sum = HALF;
        let at = row + start * depth + c;
        for (let i = 0; i < weights.length; i++, at += depth) sum += pixels[at] * weights[i];
        out[to++] = Math.min(sum >> BITS, 255);
      }
    }
  }
  return out;
}

function vertical(pixels, width, rows) {
  const pitch = width * MODEL.channels.length;
  const out = new Uint8Array(rows.length * pitch);
  let to = 0;
  for (const { start, weights } of rows) {
    for (let x = 0; x < pitch; x++) {
      let sum = HALF;
      let at = start * pitch + x;
      for (let i = 0; i < weights.length; i++, at += pitch) sum += pixels[at] * weights[i];
      out[to++] = Math.min(sum >> BITS, 255);
    }
  }
  return out;
}
