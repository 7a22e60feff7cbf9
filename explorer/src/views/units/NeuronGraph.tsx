import { number, percent, printable, visible } from "../../format";
import type { UnitGraph } from "../../schema/units";
import { Term } from "../../ui/Term";
import type { Model } from "./model";

interface Node {
  label: string[];
  more: number;
  depth: number;
  /** Strength of a pattern that ends here. */
  strength: number | null;
  before: Node[];
  y: number;
}

const LINE = 15, PAD = 6, GAP = 10, COLUMN = 118;

/** The patterns of a neuron as a tree that is read from left to right, to the token at which it fires. */
export function NeuronGraph({ model, graph }: { model: Model; graph: UnitGraph }) {
  const roots = tree(model, graph);
  let bottom = GAP;
  const place = (node: Node): void => {
    const height = node.label.length * LINE + 2 * PAD;
    if (node.before.length === 0) {
      node.y = bottom + height / 2;
      bottom += height + GAP;
      return;
    }
    const top = bottom;
    node.before.forEach(place);
    node.y = (node.before[0]!.y + node.before.at(-1)!.y) / 2;
    bottom = Math.max(bottom, node.y + height / 2 + GAP);
    if (node.y - height / 2 < top) { const by = top - node.y + height / 2; shift(node, by); bottom += by; }
  };
  roots.forEach(place);
  const nodes = roots.flatMap(all);
  const deepest = Math.max(...nodes.map((n) => n.depth));
  const width = (deepest + 1) * COLUMN + 50, x = (n: Node) => 10 + (deepest - n.depth) * COLUMN;
  const boxWidth = COLUMN - 26;
  const scores = [["F1", graph.f1], ["precision", graph.precision], ["recall", graph.recall]] as const;
  return (
    <section class="card">
      <h3><Term name="neuron graph">Neuron graph</Term></h3>
      <p class="soft">Patterns of tokens that fire it, found by replacing tokens of its strongest examples, read forward to the token at which it fires; beside it the pattern's strength. On text that no example is of: {scores.map(([name, value]) => `${name} ${number(value === null ? null : Number(value.toPrecision(3)))}`).join(", ")}.</p>
      <div class="scroll unit-graph" tabIndex={0} role="region" aria-label="Neuron graph">
        <svg width={width} height={bottom} role="img" aria-label={graph.patterns.map((p) => words(model, p.tokens, p.more)).join("; ")}>
          {nodes.flatMap((n) => n.before.map((b, i) => (
            <path key={`${n.y} ${i}`} class="unit-wire" d={`M${x(b) + boxWidth} ${b.y} C${x(b) + boxWidth + 14} ${b.y} ${x(n) - 14} ${n.y} ${x(n)} ${n.y}`} />
          )))}
          {nodes.map((n, i) => {
            const height = n.label.length * LINE + 2 * PAD;
            return (
              <g key={i}>
                <rect x={x(n)} y={n.y - height / 2} width={boxWidth} height={height} rx="6" class={n.depth === 0 ? "unit-box pivot" : "unit-box"} />
                {n.label.map((word, j) => <text key={j} x={x(n) + boxWidth / 2} y={n.y - height / 2 + PAD + 11 + j * LINE} text-anchor="middle">{word}</text>)}
                {n.depth === 0 && <text class="strength" x={x(n) + boxWidth + 6} y={n.y + 4}>{percent(strongest(n), 0)}</text>}
              </g>
            );
          })}
        </svg>
      </div>
    </section>
  );
}

function strongest(node: Node): number {
  return Math.max(node.strength ?? 0, ...node.before.map(strongest));
}

function all(node: Node): Node[] {
  return [node, ...node.before.flatMap(all)];
}

function shift(node: Node, by: number): void {
  node.y += by;
  node.before.forEach((n) => shift(n, by));
}

/** Patterns that begin alike at the pivot share their nodes. */
function tree(model: Model, graph: UnitGraph): Node[] {
  const roots: Node[] = [], known = new Map<string, Node>();
  for (const pattern of graph.patterns) {
    let key = "", siblings = roots, node: Node | undefined;
    pattern.tokens.forEach((tokens, depth) => {
      key += `/${tokens?.join(",") ?? "*"}`;
      node = known.get(key);
      if (!node) {
        const label = tokens ? tokens.map((t) => shorten(visible(printable(model.word(t))))) : ["any"];
        const more = pattern.more[depth] ?? 0;
        if (more) label.push(`+${more} more`);
        node = { label, more, depth, strength: null, before: [], y: 0 };
        known.set(key, node);
        siblings.push(node);
      }
      siblings = node.before;
    });
    if (node) (node as Node).strength = Math.max((node as Node).strength ?? 0, pattern.strength ?? 0);
  }
  return roots;
}

function shorten(word: string): string {
  return word.length > 13 ? `${word.slice(0, 12)}…` : word;
}

function words(model: Model, tokens: UnitGraph["patterns"][number]["tokens"], more: readonly number[]): string {
  return tokens.map((t, i) => (t === null ? "any" : `${t.map((x) => model.word(x)).join(" or ")}${more[i] ? ` or ${more[i]} more` : ""}`)).reverse().join(", then ");
}
