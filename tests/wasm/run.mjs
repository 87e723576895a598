// Runs the modules in Node or in a page. `files` has the modules' bytes by name and, where
// they are wanted, the model's and the golden's; `say` takes a line. Each run returns how many
// things failed.

class Instance {
  static async of(module) {
    const instance = new Instance();
    instance.exports = (await WebAssembly.instantiate(module, {})).exports;
    instance.exports.init();
    return instance;
  }

  // Copies bytes in; what `reserve` gave belongs to the next call.
  give(bytes) {
    const start = this.exports.reserve(bytes.length);
    new Uint8Array(this.exports.memory.buffer, start, bytes.length).set(bytes);
    return [start, bytes.length];
  }

  log() {
    const bytes = new Uint8Array(
      this.exports.memory.buffer, this.exports.log_start(), this.exports.log_len());
    const text = new TextDecoder().decode(bytes.slice());
    this.exports.log_clear();
    return text.trim();
  }
}

async function each(files, say, run) {
  let failed = 0;
  for (const [name, bytes] of Object.entries(files.modules)) {
    const module = await WebAssembly.compile(bytes);
    const instance = await Instance.of(module);
    say(`${name}: ${instance.log()}`);
    failed += await run(module, instance);
  }
  return failed;
}

// Every case of the table. A trap costs the instance.
export const cases = (files, say) => each(files, say, async (module, instance) => {
  let failed = 0;
  for (let i = 0; i < instance.exports.case_count(); i++) {
    instance.exports.case_name(i);
    const name = instance.log();
    const start = performance.now();
    try {
      instance.exports.case_run(i);
      say(`ok ${name} (${Math.round(performance.now() - start)} ms)`);
    } catch (error) {
      failed++;
      say(`FAILED ${name}: ${error}\n${instance.log()}`);
      instance = await Instance.of(module);
      instance.log();
    }
  }
  return failed;
});

// The golden hashes on the real model.
export const golden = (files, say) => each(files, say, async (module, instance) => {
  try {
    instance.exports.real_open(...instance.give(files.model));
    instance.exports.real_golden(...instance.give(files.golden));
    say(instance.log());
    return 0;
  } catch (error) {
    say(`FAILED: ${error}\n${instance.log()}`);
    return 1;
  }
});

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

// Milliseconds: the process's time on a core where there is such a clock, so that a busy
// machine takes less away; else the wall's.
const now = globalThis.process?.cpuUsage
  ? () => { const { user, system } = process.cpuUsage(); return (user + system) / 1000; }
  : () => performance.now();

// Tokens per second of each instruction set of the modules, in interleaved rounds.
export async function bench(files, say, { rounds = 3, prefill = 256, decode = 64 } = {}) {
  const cases = [];
  for (const [name, bytes] of Object.entries(files.modules)) {
    const instance = await Instance.of(await WebAssembly.compile(bytes));
    instance.exports.real_open(...instance.give(files.model));
    cases.push({ name, instance, prefill: [], decode: [], batch: [] });
  }
  for (let round = 0; round <= rounds; round++) {
    for (const { name, instance: { exports }, ...rates } of cases) {
      const timed = (tokens, run) => {
        const start = now();
        run();
        return (tokens * 1000) / (now() - start);
      };
      // Whatever the module was built for comes last.
      let isa = 2;
      while (isa > 0 && !exports.bench_load(isa)) isa--;
      if (isa === 0) exports.bench_load(0);
      // Without SIMD everything takes so long that less of it will do.
      const [rows, tokens, steps] = isa === 0 ? [32, 8, 1] : [prefill, decode, 4];
      const figures = {
        prefill: timed(rows, () => exports.bench_prefill(rows)),
        decode: timed(tokens, () => exports.bench_decode(tokens)),
        batch: timed(8 * steps, () => {
          for (let i = 0; i < steps; i++) exports.bench_batch(8, i);
        }),
      };
      exports.log_clear();
      if (round > 0) for (const [key, value] of Object.entries(figures)) rates[key].push(value);
    }
  }
  for (const { name, instance, ...rates } of cases) {
    const [p, d, b] = [rates.prefill, rates.decode, rates.batch].map(median);
    const gigabytes = (d * instance.exports.bench_bytes()) / 1e9;
    // The columns of the table that `bench` prints.
    say([name, p.toFixed(1), d.toFixed(1), b.toFixed(1), gigabytes.toFixed(1)].join("\t"));
  }
  return 0;
}

// Tokens per second of @wllama/wllama, as it says itself.
export async function wllama(files, say, { rounds = 3, decode = 64 } = {}) {
  const { Wllama } = await import("/wllama/index.js");
  const peer = new Wllama({ default: "/wllama/wllama.wasm" }, { suppressNativeLog: true });
  await peer.loadModel([new Blob([files.model])], { n_ctx: 1024, n_threads: 1, n_gpu_layers: 0 });
  const rates = { prefill: [], decode: [] };
  for (let round = 0; round <= rounds; round++) {
    // No two prompts begin alike, so that nothing is found in its cache.
    const prompt = `${round} ` + "The quick brown fox jumps over the lazy dog. ".repeat(20);
    const { timings } = await peer.createCompletion({
      prompt, max_tokens: decode, temperature: 0, cache_prompt: false, ignore_eos: true,
    });
    if (round === 0) continue;
    rates.prefill.push(timings.prompt_per_second);
    rates.decode.push(timings.predicted_per_second);
  }
  const [p, d] = [rates.prefill, rates.decode].map(median);
  say(["wllama", p.toFixed(1), d.toFixed(1), "", ""].join("\t"));
  return 0;
}
