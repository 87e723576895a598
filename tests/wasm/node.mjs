// node node.mjs WHAT MODEL GOLDEN MODULE...: runs `run.mjs`, which says more.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { setFlagsFromString } from "node:v8";

// Newer ones have it without being asked.
const RELAXED = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253,
  15, 65, 2, 253, 15, 253, 128, 2, 11,
];
if (!WebAssembly.validate(Uint8Array.from(RELAXED))) {
  setFlagsFromString("--experimental-wasm-relaxed-simd");
}

const run = await import("./run.mjs");
const [what, model, golden, ...modules] = process.argv.slice(2);
const bytes = (path) => (path ? readFileSync(path) : null);
const named = modules.map((path) => [basename(path, ".wasm"), bytes(path)]);
const files = { modules: Object.fromEntries(named), model: bytes(model), golden: bytes(golden) };
process.exitCode = (await run[what](files, console.log)) ? 1 : 0;
