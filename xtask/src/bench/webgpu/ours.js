import init, { measure_kernels } from "./browser_worker.js";
try {
  await init();
  const measured = [];
  // What the peer is compared on, and nothing that takes a software GPU minutes.
  for (const filter of ["up Q4M [1536, 576] x 1", "up Q4M [1536, 576] x 512"]) {
    measured.push(...JSON.parse(await measure_kernels(filter)));
  }
  postMessage({ measured });
} catch (error) {
  postMessage({ failed: String(error) });
}
