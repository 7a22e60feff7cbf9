// The query box of the units, on four units made by hand. `npm test` runs this.
import assert from "node:assert/strict";
import { test } from "node:test";
import { build } from "esbuild";

const bundled = await build({
  stdin: { contents: 'export { Model } from "./model"; export { search, parse } from "./query";', resolveDir: new URL("../src/views/units", import.meta.url).pathname, loader: "ts" },
  bundle: true, write: false, format: "esm", platform: "neutral", mainFields: ["module", "main"],
  alias: { "preact/hooks": new URL("../node_modules/preact/hooks/dist/hooks.mjs", import.meta.url).pathname, preact: new URL("../node_modules/preact/dist/preact.mjs", import.meta.url).pathname },
});
const { Model, search } = await import(`data:text/javascript;base64,${Buffer.from(bundled.outputFiles[0].contents).toString("base64")}`);

const ARRAYS = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };
const pack = (dtype, shape, values, scale = 1) => ({ dtype, shape, scale, data: Buffer.from(ARRAYS[dtype].from(values).buffer).toString("base64") });

const words = ["<|endoftext|>", " the", " dog", " cat", " park", " Dog", "dog"];
//             0      1       2       3       4       5   6: end
const text = [1, 2, 4, 1, 3, 2, 0, 1, 2, 3, 3, 5];
const n = 4;

/** Unit 0 fires on " dog" after " the", 1 on " dog" after " cat", 2 on " cat", 3 never. */
function group(sort, layer, first) {
  const float = (values) => pack("float32", [n], values);
  const effect = (token) => ({ tokens: pack("uint16", [n, 2], [token, 0, token, 0, 0, token, 0, 0]), effects: pack("float32", [n, 2], Array(8).fill(0.5)) });
  return {
    name: `${sort.replace(" ", "-")}-${layer}`, sort, title: sort, site: "here", layer, first, n, signed: false, sparse: false,
    rate: float([0.02, 0.005, 0.3, 0]), threshold: float([0, 0, 0, 0]), low: float([0, 0, 0, 0]), high: float([1, 2, 3, 0]), strongest: float([1, 2, 3, 0]),
    histogram: pack("int32", [n, 2], [9, 1, 9, 1, 9, 1, 0, 0]), places: pack("int32", [n, 3], [1, 8, -1, 5, -1, -1, 4, 9, -1, -1, -1, -1]),
    around: pack("int8", [n, 3, 3], Array(36).fill(63), 1 / 63), firing_tokens: pack("int32", [n, 2], [2, -1, 2, 4, 3, -1, -1, -1]),
    firing_shares: pack("uint16", [n, 2], [900, 0, 800, 200, 1000, 0, 0, 0], 0.001), firing_rates: pack("uint16", [n, 2], Array(8).fill(500), 0.001),
    promotes: sort === "neuron" ? effect(4) : null, suppresses: sort === "neuron" ? effect(1) : null,
    partners: pack("int32", [n, 1], [1, 0, -1, -1]), correlations: pack("int32", [n, 1], [500, 500, 0, 0], 0.001),
    measures: [{ name: "information", label: "information (bits)", values: float([0.5, 0.01, 0.2, NaN]), shuffled: null, directions: float([0.1, 0.1, 0.1, NaN]) }],
    graphs: [{ unit: 1, f1: 0.5, precision: null, recall: null, patterns: [] }],
  };
}
const data = {
  params_digest: "d", step: 1, vocabulary: words, end: 0, text: pack("uint16", [2, 6], text), tokens: 12, sampled: 12, before: 1, strongest: 2, left_out: "",
  groups: [group("neuron", 0, 0), group("neuron", 3, 4), group("neuron gate", 0, 8)],
};
const model = new Model(data);
const names = (query) => search(model, model.units, query).units.map((u) => `${u.group.name}/${u.index}`);
const meaning = (query) => search(model, model.units, query).meaning;
const problems = (query) => search(model, model.units, query).problems;

test("a token that units fire on, and the token before it", () => {
  assert.deepEqual(names('layer 3 fires on " dog"'), ["neuron-3/0", "neuron-3/1"]);
  assert.deepEqual(names('layer 3 fires on " dog" after " the"'), ["neuron-3/0"]);
  assert.deepEqual(names('layer 3 fires on " dog" after " cat"'), ["neuron-3/1"]);
  assert.deepEqual(names('layer 3 fires on " cat" with " the"'), ["neuron-3/2"]);
  assert.deepEqual(names('layer 3 fires on " cat" with " cat"'), []); // before it
  assert.deepEqual(names('layer 3 " the dog"'), ["neuron-3/0"]);
  assert.deepEqual(meaning('fires on " dog" after " the"'), ['fires on " dog" directly after " the"']);
  assert.match(search(model, model.units, 'layer 3 fires on " dog"').matches.get(4).why, /^90 % of its firings, 2 of its 2/);
});

test("words without their space, in other capitals, in single quotes or without any", () => {
  assert.deepEqual(names("layer 3 fires on DOG"), ["neuron-3/0", "neuron-3/1"]);
  assert.deepEqual(names("layer 3 fires on ' dog'"), ["neuron-3/0", "neuron-3/1"]);
  assert.deepEqual(names("layer 3 fires on “ dog”"), ["neuron-3/0", "neuron-3/1"]);
});

test("numbers, percentages, ranges and kinds", () => {
  assert.deepEqual(names("neurons layer 0 rate < 1%"), ["neuron-0/1", "neuron-0/3"]);
  assert.deepEqual(names("neurons layer 0 rate < 0.01"), ["neuron-0/1", "neuron-0/3"]);
  assert.deepEqual(names("layer 1-3 rate 1% - 50%"), ["neuron-3/0", "neuron-3/2"]);
  assert.deepEqual(names("gates strongest >= 2"), ["neuron-gate-0/1", "neuron-gate-0/2"]);
  assert.deepEqual(names("layer 3, information above 0.1"), ["neuron-3/0", "neuron-3/2"]);
  assert.deepEqual(names("neuron gates information < random"), ["neuron-gate-0/1"]);
  assert.deepEqual(names("layer 3 dead"), ["neuron-3/3"]);
  assert.deepEqual(names("layer 3 and has a graph"), ["neuron-3/1"]);
  assert.deepEqual(names("3.2"), ["neuron-3/2"]);
});

test("promoted and suppressed tokens, the most promoted first", () => {
  assert.deepEqual(names('layer 3 promotes " park"'), ["neuron-3/0", "neuron-3/1", "neuron-3/2"]);
  assert.deepEqual(names('layer 3 suppresses " the"'), ["neuron-3/0", "neuron-3/1", "neuron-3/2"]);
});

test("what is not understood is said, with what may have been meant", () => {
  assert.deepEqual(problems("dog"), [{ text: "“dog” is not understood.", instead: ['fires on " dog"'] }]);
  assert.deepEqual(problems('fires on " dig"')[0].text, 'No token of the text is " dig".');
  assert.deepEqual(problems('fires on " dog" or rate < 1%')[0].text, "“or” is not understood: every condition must hold.");
  assert.deepEqual(problems("rate")[0].instead, ["rate < 1%"]);
  assert.deepEqual(problems("layer 2")[0].text, "There is no layer 2; layers are 0, 3.");
  assert.deepEqual(problems("fires on")[0].text, "“fires on” needs a token in quotes.");
  for (const query of ['"', "''", "((", "fires on \"", "\\", "rate <", "<<<", "\u0000", "💥", 'promotes "', "%".repeat(500)]) search(model, model.units, query);
  assert.deepEqual(names('fires on "nothing like it"'), []);
});

test("contexts end with their story", () => {
  const [first] = model.contexts(model.units[2]);
  assert.deepEqual(first.tokens.map((t) => words[t.token]), [" the", " cat", " dog"]);
  const second = model.contexts(model.units[0])[1]; // the story before it ended at the window's first token
  assert.deepEqual([second.tokens.map((t) => words[t.token]), second.pivot, second.cut], [[" the", " dog", " cat"], 1, [false, true]]);
});
