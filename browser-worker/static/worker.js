// The donate page's worker: a module Web Worker that loads the wasm and leaves the rest to it.
// It has helpers of the same address and `helper` behind it.

// A module of one function that uses i16x8.relaxed_dot_i8x16_i7x16_s: a browser without relaxed
// SIMD refuses it.
const RELAXED = Uint8Array.of(
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, // magic, version 1
  1, 7, 1, 0x60, 2, 0x7b, 0x7b, 1, 0x7b, // type 0: (v128, v128) -> v128
  3, 2, 1, 0, // function 0 has type 0
  10, 11, 1, 9, 0, // one body of 9 bytes, no locals
  0x20, 0, 0x20, 1, // local.get 0, local.get 1
  0xfd, 0x92, 2, // i16x8.relaxed_dot_i8x16_i7x16_s
  0x0b, // end
);

// The fastest first; `?simd=128` has the plain one.
function modules() {
  const plain = new URLSearchParams(location.search).get("simd") === "128";
  return !plain && WebAssembly.validate(RELAXED) ? ["relaxed", "simd128"] : ["simd128"];
}

// What a helper hears first: its chief's module and that one's folder. It computes with just
// that, even if another is served by now.
const helps = location.search.endsWith("helper");
const chiefs = helps ? new Promise((heard) => (onmessage = ({ data }) => heard(data))) : undefined;

async function load() {
  if (helps) {
    const [name, module] = await chiefs;
    const { default: init } = await import(`./${name}/browser_worker.js`);
    return await init({ module_or_path: module });
  }
  let problem;
  for (const name of modules()) {
    try {
      const { default: init } = await import(`./${name}/browser_worker.js`);
      return await init();
    } catch (error) {
      console.warn(`the module ${name} does not load: ${error}`);
      problem ??= error;
    }
  }
  throw problem;
}

try {
  await load();
} catch (error) {
  const reason = `the worker's code does not load (${error}): reload the page to try again`;
  postMessage(JSON.stringify({ type: "failed", reason }));
}
