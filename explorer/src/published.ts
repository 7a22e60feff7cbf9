// Figures that the paper published: one run a row, the best of one to three by perplexity, without seeds or intervals.
// Ferrao, Mikaelson, Pepper, Perez-Campanero Antolin: Self-Ablating Transformers, 2025, arXiv 2505.00509.
import type { Results } from "./schema/results";

export const SOURCE = "Ferrao et al. 2025, arXiv 2505.00509, one run a row, no interval";

interface PublishedRow {
  name: string;
  ablation: "none" | "global" | "local";
  k: number | null;
  edges: number;
  l0: number;
  ce: number;
  perplexity: number;
  weight: number;
}

const row = (ablation: PublishedRow["ablation"], k: number | null, edges: number, l0: number, ce: number, perplexity: number, weight: number): PublishedRow =>
  ({ name: k === null ? "baseline" : `${ablation}, k ${k}`, ablation, k, edges, l0, ce, perplexity, weight });

export const PUBLISHED: PublishedRow[] = [
  row("none", null, 79, 7.22, 0.63, 5.73, 0.44),
  row("global", 8, 70, 5.22, 0.65, 6.97, 0.74), row("local", 8, 36, 5.0, 0.72, 6.47, 0.67),
  row("global", 4, 41, 4.9, 0.67, 6.73, 0.72), row("local", 4, 30, 4.01, 0.65, 6.58, 0.76),
  row("global", 2, 30, 4.57, 0.71, 6.66, 0.73), row("local", 2, 54, 4.9, 0.7, 6.55, 0.71),
  row("global", 1, 38, 5.48, 0.66, 6.49, 0.62), row("local", 1, 36, 5.33, 0.69, 6.58, 0.7),
];

/** The published row of a run's variant and k; none where the paper has no such. */
export function publishedRow(results: Results): PublishedRow | undefined {
  const model = results.config.model as Record<string, unknown>;
  if (model.ablation === "none") return PUBLISHED[0];
  const single = (k: unknown) => (Array.isArray(k) && new Set(k).size === 1 ? k[0] : k);
  return PUBLISHED.find((p) => p.ablation === model.ablation && p.k === single(model.k_neurons) && p.k === single(model.k_attention));
}

/** Whether a run has the paper's shape, so that published figures may be set beside its own. */
export function paperShape(results: Results): boolean {
  const model = results.config.model as Record<string, unknown>;
  return model.n_layers === 8 && model.d_model === 128 && model.vocab_size === 50257;
}

/** What the paper says of a figure of ours; undefined where it does not. */
export function published(of: PublishedRow, suite: string, name: string): number | undefined {
  if (suite === "perplexity" && name === "perplexity clean") return of.perplexity;
  if (suite === "circuits" && name === "edges tau 0.03 clean") return of.edges;
  if (suite === "weights" && name === "mean |w| as released") return of.weight;
  if (suite === "sae" && name.startsWith("L0 at")) return of.l0;
  if (suite === "sae" && name.startsWith("CE score at")) return of.ce;
  return undefined;
}
