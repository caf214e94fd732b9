// SPDX-License-Identifier: Apache-2.0
// The worker that holds ONNX Runtime Web, so that the page stays responsive. One message, one answer.

const BUILDS = {wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs"};
const LEAST_CALLS = 20, MOST_CALLS = 300, LEAST_MS = 3000, WARM_UP = 5;
let ort = null, session = null, shape = null;

async function load({bytes, backend, threads, size}) {
  await session?.release();
  session = null;
  ort = await import(BUILDS[backend]);
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  ort.env.logLevel = "error";
  shape = [1, ...size];
  const options = {executionProviders: [backend], graphOptimizationLevel: "all"};
  await (await ort.InferenceSession.create(bytes, options)).release(); // the first one starts the runtime itself
  const start = performance.now();
  session = await ort.InferenceSession.create(bytes, options);
  const loadMs = performance.now() - start;
  const blank = new Float32Array(shape.reduce((a, b) => a * b, 1));
  const firstMs = await timed(blank, 1);
  return {loadMs, firstMs};
}

async function run(values) {
  const input = new ort.Tensor("float32", values, shape);
  const results = await session.run({[session.inputNames[0]]: input});
  const output = results[session.outputNames[0]];
  return output.data ?? await output.getData();
}

// Milliseconds of one call, as the mean of so many.
async function timed(values, calls) {
  const start = performance.now();
  for (let i = 0; i < calls; i++) await run(values);
  return (performance.now() - start) / calls;
}

// The clock of a page that is not isolated is coarse: one timing is of several calls then.
function clockStep() {
  let step = Infinity, last = performance.now();
  for (let changes = 0; changes < 10;) {
    const now = performance.now();
    if (now > last) { step = Math.min(step, now - last); last = now; changes++; }
  }
  return step;
}

async function measure() {
  const values = Float32Array.from({length: shape.reduce((a, b) => a * b, 1)}, () => Math.random() * 2 - 1);
  const typical = await timed(values, WARM_UP);
  const each = Math.min(50, Math.max(1, Math.ceil(50 * clockStep() / Math.max(typical, 1e-3))));
  const times = [], begin = performance.now();
  while (times.length < LEAST_CALLS || (times.length < MOST_CALLS && performance.now() - begin < LEAST_MS)) {
    times.push(await timed(values, each));
    if (times.length % 5 === 0) {
      const done = Math.min(times.length / LEAST_CALLS, Math.max((performance.now() - begin) / LEAST_MS, times.length / MOST_CALLS));
      postMessage({progress: Math.min(1, done)});
    }
  }
  times.sort((a, b) => a - b);
  const at = share => {
    const place = (times.length - 1) * share, low = Math.floor(place), high = Math.ceil(place);
    return times[low] + (times[high] - times[low]) * (place - low);
  };
  return {median: at(0.5), p5: at(0.05), p95: at(0.95), calls: times.length * each};
}

const work = {
  load,
  measure,
  async predict({values}) {
    const start = performance.now(), logits = Array.from(await run(values));
    return {logits, ms: performance.now() - start};
  },
};

addEventListener("message", async ({data}) => {
  try {
    postMessage({answer: await work[data.method](data)});
  } catch (error) {
    postMessage({error: String(error?.message ?? error)});
  }
});
