const element = (id) => document.getElementById(id);
const view = element("view"), video = element("video"), camera = element("camera"), status = element("status");
let network, stream;

async function start() {
  const text = element("wasm").textContent;
  network = await Network.load(fromBase64(text));
  element("wasm").remove();
  const passed = await network.selfTest();
  const golden = element("golden");
  golden.textContent = passed === null ? "The model came without a test image." :
    passed ? "✓ The test image gives the expected bits in this browser." :
    "✗ The test image gives other bits than expected in this browser.";
  golden.className = passed === null ? "" : passed ? "good" : "bad";
  element("file").disabled = camera.disabled = false;
  say("");
}

function say(text) {
  status.textContent = text;
}

/** Shows what the network sees, its answer and the time. */
function show(image) {
  const pixels = network.crop(image);
  const began = performance.now();
  const found = network.classify(pixels);
  const took = performance.now() - began;
  view.getContext("2d").putImageData(visible(pixels), 0, 0);
  element("time").textContent = `${took.toFixed(1)} ms`;
  element("answer").replaceChildren(...found.map(row));
  document.body.dataset.answer = String(found[0].index);
}

function row({ label, score }) {
  const line = document.createElement("li"), name = document.createElement("bdi");
  const bar = document.createElement("meter"), share = document.createElement("span");
  name.textContent = label;
  bar.value = score;
  share.textContent = `${(100 * score).toFixed(1)} %`;
  line.append(name, bar, share);
  return line;
}

/** Pixels in the network's channels as ImageData. */
function visible(pixels) {
  const { height, width, channels } = Network;
  const depth = channels.length, order = channels === "BGR" ? [2, 1, 0] : depth === 1 ? [0, 0, 0] : [0, 1, 2];
  const out = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) out.data[4 * i + c] = pixels[i * depth + order[c]];
    out.data[4 * i + 3] = 255;
  }
  return out;
}

function draw(source, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

/** Decodes a file to the pixels that it stores: colour profiles and transparency are ignored, as in training. */
async function open(file) {
  if (!file || !network) return;
  stop();
  try {
    const image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    say("");
    show(draw(image, image.width, image.height));
    image.close();
  } catch {
    say("This file is not an image that the browser can read.");
  }
}

async function film() {
  if (stream) return stop();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}`);
  }
  say("");
  camera.textContent = "Stop the camera";
  video.srcObject = stream;
  await video.play();
  const next = () => {
    if (!stream) return;
    show(draw(video, video.videoWidth, video.videoHeight));
    requestAnimationFrame(next);
  };
  next();
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = undefined;
  camera.textContent = "Use the camera";
}

[view.width, view.height] = [Network.width, Network.height];
element("file").addEventListener("change", (event) => open(event.target.files[0]));
camera.addEventListener("click", film);
for (const kind of ["dragover", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
}
start().catch((error) => say(`The network cannot run in this browser: ${error.message}`));
