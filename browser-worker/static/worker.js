// The donate page's worker: a module Web Worker that loads the wasm and leaves the rest to it.
import init from "./browser_worker.js";

try {
  await init();
} catch (error) {
  const reason = `the worker's code does not load (${error}): reload the page to try again`;
  postMessage(JSON.stringify({ type: "failed", reason }));
}
