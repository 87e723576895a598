// onnxruntime-web on the same adapter: MatMulNBits (4 bits, blocks of 32) and MatMul of the
// same shapes. A model is a few fields of ONNX's protobuf, written here.

const bytes = (...parts) => {
  const flat = parts.flatMap((part) => (part instanceof Uint8Array ? [part] : [Uint8Array.from(part)]));
  const all = new Uint8Array(flat.reduce((sum, part) => sum + part.length, 0));
  flat.reduce((at, part) => (all.set(part, at), at + part.length), 0);
  return all;
};
const varint = (value) => {
  const out = [];
  for (; value >= 128; value = Math.floor(value / 128)) out.push((value % 128) + 128);
  return [...out, value];
};
const int = (field, value) => bytes(varint(field * 8), varint(value));
const part = (field, content) =>
  bytes(varint(field * 8 + 2), varint(content.length), content);
const text = (field, value) => part(field, new TextEncoder().encode(value));

const FLOAT = 1, UINT8 = 2;
const tensor = (name, type, dims, raw) =>
  bytes(...dims.map((n) => int(1, n)), int(2, type), text(8, name), part(9, raw));
const value = (name, dims) => {
  const shape = bytes(...dims.map((n) => part(1, int(1, n))));
  return bytes(text(1, name), part(2, part(1, bytes(int(1, FLOAT), part(2, shape)))));
};
const attribute = (name, number) => bytes(text(1, name), int(3, number), int(20, 2));
const model = (nodes, initializers, inputs, outputs) => {
  const graph = bytes(
    ...nodes.map((node) => part(1, node)), text(2, "one"),
    ...initializers.map((one) => part(5, one)),
    ...inputs.map((one) => part(11, one)), ...outputs.map((one) => part(12, one)));
  const opset = (domain, version) => part(8, bytes(text(1, domain), int(2, version)));
  return bytes(int(1, 8), part(7, graph), opset("", 17), opset("com.microsoft", 1));
};
const node = (inputs, op, domain, attributes = []) => bytes(
  ...inputs.map((name) => text(1, name)), text(2, "y"), text(4, op),
  ...attributes.map((one) => part(5, one)), text(7, domain));

const [N, K] = [1536, 576];
const floats = (count, value) => new Uint8Array(new Float32Array(count).fill(value).buffer);

const nibbles = (m) => model(
  [node(["x", "w", "d"], "MatMulNBits", "com.microsoft", [
    attribute("K", K), attribute("N", N), attribute("bits", 4), attribute("block_size", 32)])],
  [tensor("w", UINT8, [N, K / 32, 16], new Uint8Array((N * K) / 2).fill(0x97)),
    tensor("d", FLOAT, [(N * K) / 32], floats((N * K) / 32, 0.01))],
  [value("x", [m, K])], [value("y", [m, N])]);
const plain = (m) => model(
  [node(["x", "w"], "MatMul", "")],
  [tensor("w", FLOAT, [K, N], floats(N * K, 0.01))],
  [value("x", [m, K])], [value("y", [m, N])]);

try {
  const ort = await import("./ort/ort.webgpu.min.mjs");
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = 1;
  const measured = [];
  for (const [op, make] of [["MatMulNBits", nibbles], ["MatMul", plain]]) {
    for (const [m, runs] of [[1, 20], [512, 3]]) {
      const session = await ort.InferenceSession.create(make(m), { executionProviders: ["webgpu"] });
      const x = new ort.Tensor("float32", new Float32Array(m * K).fill(0.5), [m, K]);
      const times = [];
      // The first run compiles.
      for (let run = 0; run <= runs; run++) {
        const start = performance.now();
        const { y } = await session.run({ x });
        if (!Number.isFinite(y.data[0])) throw new Error(`${op} gave ${y.data[0]}`);
        if (run > 0) times.push(performance.now() - start);
      }
      times.sort((a, b) => a - b);
      measured.push({
        name: `${op} [${N}, ${K}] x ${m}`,
        seconds: times[times.length >> 1] / 1000,
        flops: 2 * m * N * K,
      });
      await session.release();
    }
  }
  postMessage({ measured });
} catch (error) {
  postMessage({ failed: String(error) });
}
