// node web.mjs ARGUMENTS: times a compiled network and onnxruntime-web in turns, and collects their outputs.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const given = JSON.parse(readFileSync(process.argv[2]));
const require = createRequire(pathToFileURL(`${given.packages}/`));
const ort = require("onnxruntime-web");
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const load = async (folder) => {
  const { Network } = await import(pathToFileURL(`${folder}/net.js`));
  return Network.load(readFileSync(`${folder}/net.wasm`));
};
const networks = { int8: await load(given.int8), float: await load(given.float) };
const session = await ort.InferenceSession.create(readFileSync(given.onnx), { executionProviders: ["wasm"] });
const [, depth, height, width] = given.shape;
const size = depth * height * width;
const inputs = readFileSync(given.inputs);
const images = Array.from(
  { length: inputs.length / size },
  (_, i) => new Int8Array(inputs.buffer, inputs.byteOffset + i * size, size),
);

// onnxruntime's file takes uint8, channels first.
const tensors = images.map((image) => {
  const values = new Uint8Array(size);
  for (let c = 0; c < depth; c++) {
    for (let p = 0; p < height * width; p++) values[c * height * width + p] = image[p * depth + c] + 128;
  }
  return values;
});
const runOrt = async (i) => {
  const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("uint8", tensors[i], given.shape) });
  return found[session.outputNames[0]].data;
};

const outputs = { int8: [], float: [], ort: [] };
for (let i = 0; i < images.length; i++) {
  outputs.int8.push(Array.from(networks.int8.run(images[i])));
  outputs.float.push(Array.from(networks.float.run(images[i])));
  outputs.ort.push(Array.from(await runOrt(i), (value) => value - 128));
}

// Processor time, so that other programs on the machine do not decide.
const took = async (work) => {
  const began = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(began);
  return (user + system) / 1000;
};
const ms = { firebox: [], ort: [] };
for (let round = 0; round < given.rounds; round++) {
  const i = round % images.length;
  ms.firebox.push(await took(() => networks.float.run(images[i])));
  ms.ort.push(await took(() => runOrt(i)));
}
process.stdout.write(JSON.stringify({ outputs, ms, node: process.version, ort: ort.env.versions.web }));
