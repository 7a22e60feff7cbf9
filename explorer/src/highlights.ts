// The six figures of a run that matter, each with what stands for nothing beside it, and one plain sentence of what it says.
import { percent, short, type EstimateLike } from "./format";
import type { Figure, Results } from "./schema/results";

export interface Highlight {
  suite: string;
  figure: Figure;
  title: string;
  null: { label: string; estimate: EstimateLike } | null;
  says: string;
}

interface Candidate {
  suite: string;
  /** Name of the figure, or how it begins where the rest names an autoencoder. */
  name: string;
  title: string;
  nothing?: (results: Results, figure: Figure) => Highlight["null"];
  says: (x: number, nothing: number | null, figure: Figure) => string;
}

const plain = (value: number): EstimateLike => ({ value, low: null, high: null });
const figure = (results: Results, suite: string, name: string) => results.suites[suite]?.figures.find((f) => f.name === name || f.name.startsWith(`${name} at `));
const other = (suite: string, name: string, label: string) => (results: Results) => {
  const found = figure(results, suite, name);
  return found && found.estimate.value !== null ? { label, estimate: found.estimate } : null;
};
const fixed = (value: number, label: string) => () => ({ label, estimate: plain(value) });
const apart = (f: Figure, value: number) => (f.estimate.low ?? f.estimate.value ?? 0) > value || (f.estimate.high ?? f.estimate.value ?? 0) < value;

/** Loss of a row of the suite leakage's bars. */
const bar = (suite: string, label: string, f: (x: number) => number, name: string) => (results: Results) => {
  for (const panel of results.suites[suite]?.panels ?? [])
    if (panel.kind === "bars") for (const b of panel.bars) if (b.label === label && b.estimate.value !== null) return { label: name, estimate: plain(f(b.estimate.value)) };
  return null;
};

/** A cell of a table: the row that has these words in its first columns, the column of this name. */
const cell = (suite: string, title: string, row: string[], column: string, name: string) => (results: Results) => {
  for (const panel of results.suites[suite]?.panels ?? []) {
    if (panel.kind !== "grid" || panel.title !== title) continue;
    const j = panel.columns.indexOf(column);
    const cells = panel.rows.filter((r) => row.every((w) => r.includes(w))).map((r) => r[j]);
    const values = cells.map((v) => (typeof v === "object" && v !== null ? v.value : v)).filter((v): v is number => typeof v === "number");
    if (values.length) return { label: name, estimate: plain(values.reduce((a, b) => a + b, 0) / values.length) };
  }
  return null;
};

const LANGUAGE: Candidate[] = [
  { suite: "perplexity", name: "perplexity clean", title: "Perplexity", nothing: bar("leakage", "bigram counts", Math.exp, "counts of token pairs"),
    says: (x, n) => `The model is as unsure of the next token as among ${short(x)} equally likely ones${n ? `; counting pairs of tokens leaves ${short(n)}` : ""}.` },
  { suite: "perplexity", name: "loss ablated - clean", title: "Cost of gating", nothing: (r, f) => {
      const rise = figure(r, "leakage", "random gates - own")?.estimate.value;
      return rise == null || f.estimate.value === null ? null : { label: "random gates", estimate: plain(f.estimate.value + rise) };
    },
    says: (x, n) => `With gates the next token costs ${short(x)} nats more than without${n === null ? "" : `; with as many gates at random it would cost ${short(n)}`}.` },
  { suite: "ioi", name: "IOI accuracy clean", title: "Who receives", nothing: fixed(0.5, "chance"),
    says: (x, _, f) => apart(f, 0.5) ? `It names who receives the object in ${percent(x, 0)} of the prompts; a coin would in 50 %.` : `It cannot tell who receives the object from who gives it: ${percent(x, 0)}, as a coin would. A circuit for this task then means little.` },
  { suite: "circuits", name: "edges tau 0.03 clean", title: "Circuit", nothing: other("circuits", "edges tau 0.03 clean, random weights", "random weights"),
    says: (x, n) => `ACDC keeps ${short(x)} edges for the task${n === null ? "" : `; in models that were never trained it keeps ${short(n)}`}.` },
  { suite: "neurons", name: "token information neurons clean", title: "What a neuron tells", nothing: (r, f) => {
      const above = figure(r, "neurons", "token information neurons clean above random")?.estimate.value;
      return above == null || f.estimate.value === null ? null : { label: "random directions", estimate: plain(f.estimate.value - above) };
    },
    says: (x, n) => `A neuron's firing tells ${short(x)} bits of the current token on average${n === null ? "" : `; a random direction that fires as often tells ${short(n)}`}.` },
  { suite: "leakage", name: "share of mask alone", title: "Told by the mask alone", nothing: fixed(0, "no leak"),
    says: (x, _, f) => apart(f, 0) ? `The pattern of open gates, over mean activations, brings ${percent(x, 0)} of what own gates gain over random ones: part of the message is in the mask.` : `The pattern of open gates alone brings nothing that can be told from 0.` },
  { suite: "gates", name: "live neurons", title: "Neurons in use", nothing: cell("gates", "Gates by layer", ["neurons"], "live by chance", "chance"),
    says: (x, n) => `${percent(x, 0)} of the neurons are let through at some token${n === null ? "" : `; random gates would use ${percent(n, 0)}`}.` },
  { suite: "sae", name: "CE score", title: "Autoencoder", nothing: fixed(0, "zeros"),
    says: (x) => `With its reconstructions in place, the model keeps ${percent(x, 0)} of what the activations do for its loss.` },
  { suite: "sae", name: "L0", title: "Latents at a token", says: (x) => `An activation is written with ${short(x)} latents on average.` },
  { suite: "weights", name: "mean |w|", title: "Mean |w|", says: (x) => `Weights have a mean size of ${short(x)}: the paper's “sparsity”, which a change of scale alone can move.` },
];

const CLASSIFICATION: Candidate[] = [
  { suite: "classification", name: "accuracy", title: "Accuracy", nothing: fixed(0.5, "chance"),
    says: (x) => `${percent(x, 1)} of the test texts get the right class.` },
  { suite: "superposition", name: "SRS", title: "Superposition score", nothing: fixed(0, "no difference"),
    says: (x, _, f) => apart(f, 0) ? `Important tokens and attended pairs are set apart by ${short(x)} in all; 0 would be no difference.` : `Important tokens and attended pairs are not told apart from others.` },
  { suite: "importance", name: "post-hoc accuracy@3 vmask", title: "Three words suffice", nothing: other("importance", "post-hoc accuracy@3 random", "random words"),
    says: (x, n) => `The three most important words alone give the full text's class in ${percent(x, 0)} of texts${n === null ? "" : `; three random words in ${percent(n, 0)}`}.` },
  { suite: "importance", name: "AOPC vmask", title: "Deleting what matters", nothing: other("importance", "AOPC random", "random words"),
    says: (x, n) => `Deleting the most important words lowers the class's probability by ${short(x)}${n === null ? "" : `; deleting random ones by ${short(n)}`}.` },
  { suite: "superposition", name: "tokens with capacity > 0.5", title: "Tokens to themselves", says: (x) => `${percent(x, 0)} of the tokens have more than half a dimension of the neurons to themselves.` },
  { suite: "classification", name: "ECE", title: "Calibration error", nothing: fixed(0, "perfect"), says: (x) => `Predicted probabilities are off by ${short(x)} on average.` },
  { suite: "classification", name: "macro F1", title: "Macro F1", says: (x) => `Over both classes alike, precision and recall join to ${short(x)}.` },
];

/** Up to six figures, those of the list that the run has. */
export function highlights(results: Results): Highlight[] {
  const out: Highlight[] = [];
  for (const c of results.config.task === "classification" ? CLASSIFICATION : LANGUAGE) {
    const found = figure(results, c.suite, c.name);
    if (!found || found.estimate.value === null || out.length === 6) continue;
    const nothing = c.nothing?.(results, found) ?? null;
    out.push({ suite: c.suite, figure: found, title: c.title, null: nothing, says: c.says(found.estimate.value, nothing?.estimate.value ?? null, found) });
  }
  return out;
}
