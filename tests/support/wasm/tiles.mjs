// node tiles.mjs MODULE: runs the tiles on the numbers of stdin and writes their outputs to stdout.
import fs from 'fs';

const { exports } = new WebAssembly.Instance(new WebAssembly.Module(fs.readFileSync(process.argv[2])), {});
const numbers = fs.readFileSync(0);
const size = new DataView(exports.memory.buffer).getUint32(exports.out_bytes.value, true);
const start = Math.ceil(exports.__heap_base.value / 64) * 64;
exports.memory.grow(Math.ceil((numbers.length + size + 64) / 65536));
new Uint8Array(exports.memory.buffer, start, numbers.length).set(numbers);
const out = start + numbers.length;
exports.run_cases(start, out);
fs.writeSync(1, new Uint8Array(exports.memory.buffer, out, size));
