// The graph of a decoder as the data has it, and where its nodes stand on a drawing.
import { unpack } from "../../data";
import type { StreamEdges, TaskEdges } from "../../schema/circuits";

export type Kind = "start" | "head" | "mlp" | "end";
export interface GraphNode {
  name: string;
  kind: Kind;
  /** Row from the bottom: -1 the start, 2 i the heads of block i, 2 i + 1 its MLP, twice the blocks the end. */
  row: number;
  head: number;
}

export interface Edge {
  /** Its name, source->destination. */
  name: string;
  source: string;
  /** Node that reads it: the name of a destination without its port. */
  target: string;
  /** What of a head reads it: Q, K, V; empty for other nodes. */
  port: string;
  score: number;
  kept: boolean;
}

/** A node by its name; heads that share keys and values (A3.4-7) stand at the first of them. */
export function node(name: string, layers: number): GraphNode {
  const head = name.match(/^A(\d+)\.(\d+)/), mlp = name.match(/^MLP (\d+)$/);
  if (head) return { name, kind: "head", row: 2 * Number(head[1]), head: Number(head[2]) };
  if (mlp) return { name, kind: "mlp", row: 2 * Number(mlp[1]) + 1, head: 0 };
  return name.endsWith("Start") ? { name, kind: "start", row: -1, head: 0 } : { name, kind: "end", row: 2 * layers, head: 0 };
}

/** The edges of a stream by one method's score, the largest first; those of a circuit are marked. */
export function edges(stream: StreamEdges, method: string, circuit: string): Edge[] {
  const source = unpack(stream.source).data, destination = unpack(stream.destination).data;
  const scores = stream.scores[method], values = scores ? unpack(scores) : null;
  const of = stream.circuits.find((c) => c.name === circuit), kept = of ? unpack(of.kept).data : null;
  return Array.from(source, (s, i) => {
    const from = stream.sources[s]!, to = stream.destinations[destination[i]!]!, port = to.match(/\.([QKV])$/);
    return { name: `${from}->${to}`, source: from, target: port ? to.slice(0, -2) : to, port: port?.[1] ?? "", score: values ? values.data[i]! * values.scale : NaN, kept: kept ? kept[i] === 1 : true };
  }).sort((a, b) => Math.abs(b.score) - Math.abs(a.score));
}

export interface Place { x: number; y: number; w: number; h: number }
export interface Layout {
  width: number;
  height: number;
  /** Every node of the model, whether it has edges or not, at the same place in every drawing. */
  places: Map<string, Place & { node: GraphNode }>;
  rows: { label: string; top: number; height: number }[];
}

const SIDE = 44, LANE = 104, GAP = 60, PORT = 9;
export const PORTS = ["Q", "K", "V"];

/** Start and MLPs in the middle from the bottom up, heads on both sides in their order. */
export function layout(task: Pick<TaskEdges, "n_layers" | "n_heads">, room: number): Layout {
  const { n_layers: L, n_heads: N } = task, left = Math.ceil(N / 2), right = N - left;
  const step = Math.max(25, Math.min(58, (Math.max(room, 300) - SIDE - LANE - 16) / Math.max(2, 2 * left)));
  const middle = SIDE + left * step + LANE / 2, width = Math.max(room, middle + LANE / 2 + right * step + 10);
  const shift = Math.max(0, (width - (middle + LANE / 2 + right * step + 10)) / 2), centre = middle + shift;
  const height = (2 * L + 1) * GAP + 52, y = (row: number) => height - 30 - (row + 1) * GAP;
  const places: Layout["places"] = new Map();
  const put = (name: string, x: number, w: number, h: number) => {
    const found = node(name, L);
    places.set(name, { node: found, x, y: y(found.row), w, h });
  };
  put("Resid Start", centre, 96, 22);
  for (let i = 0; i < L; i++) {
    for (let h = 0; h < N; h++) put(`A${i}.${h}`, h < left ? centre - LANE / 2 - (left - h - 0.5) * step : centre + LANE / 2 + (h - left + 0.5) * step, Math.min(42, step - 4), 22);
    put(`MLP ${i}`, centre, 62, 22);
  }
  put("Resid End", centre, 96, 22);
  const rows = Array.from({ length: L }, (_, i) => ({ label: `layer ${i}`, top: y(2 * i + 1) - 24, height: GAP + 50 }));
  return { width, height, places, rows };
}

/** Where on a node's lower side an edge ends. */
export function entry(place: Place, port: string): { x: number; y: number } {
  const shift = port ? (PORTS.indexOf(port) - 1) * Math.min(PORT + 2, place.w / 3.2) : 0;
  return { x: place.x + shift, y: place.y + place.h / 2 + (port ? PORT : 0) };
}

/** The place of a node; of heads that share keys and values that of the first. */
export function at(places: Layout["places"], name: string): (Place & { node: GraphNode }) | undefined {
  return places.get(name) ?? places.get(name.replace(/-\d+$/, ""));
}

/** A curve from a node's upper side to another's lower side; one that would run straight behind others is bent aside. */
export function route(places: Layout["places"], edge: Edge, index: number): string {
  const source = at(places, edge.source), target = at(places, edge.target);
  if (!source || !target) return "";
  const x1 = source.x, y1 = source.y - source.h / 2, { x: x2, y: y2 } = entry(target, edge.port);
  const rows = target.node.row - source.node.row, reach = Math.min(0.5 * (y1 - y2), 26 + 0.14 * (y1 - y2));
  const bend = rows > 1 && Math.abs(x1 - x2) < 8 ? (index % 2 ? 1 : -1) * (34 + Math.min(22, 4 * rows)) : 0;
  return `M${x1.toFixed(1)} ${y1.toFixed(1)}C${(x1 + bend).toFixed(1)} ${(y1 - reach).toFixed(1)} ${(x2 + bend).toFixed(1)} ${(y2 + reach).toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`;
}
