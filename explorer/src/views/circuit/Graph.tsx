import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { TaskEdges } from "../../schema/circuits";
import { short } from "../text/model";
import { at, entry, layout, PORTS, route, type Edge, type GraphNode, type Place } from "./model";

/** How wide and how dark an edge is: by the root of its share of the largest, for scores differ by powers of ten. */
const weight = (score: number, most: number) => (Number.isFinite(score) ? Math.sqrt(Math.min(1, Math.abs(score) / (most || 1))) : 1);

/** A decoder's nodes from the start at the bottom to the end at the top, and edges between them. */
export function Graph({ task, edges, most, pointed, held, off, onPoint, onHold, label }: {
  task: TaskEdges; edges: Edge[]; most: number; pointed: string | null; held: string | null; off: readonly string[]; onPoint: (name: string | null) => void; onHold: (name: string) => void; label: string;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [room, setRoom] = useState(0);
  const [said, setSaid] = useState<Edge | null>(null);
  useEffect(() => {
    const watch = new ResizeObserver(() => setRoom(Math.floor(box.current?.clientWidth ?? 0)));
    watch.observe(box.current!);
    return () => watch.disconnect();
  }, []);
  const plan = useMemo(() => layout(task, room), [task, room]);
  const wires = useMemo(() => edges.map((e, i) => ({ edge: e, d: route(plan.places, e, i) })).filter((w) => w.d).reverse(), [edges, plan]);
  const crowd = Math.min(1, (20 / Math.max(1, edges.reduce((sum, e) => sum + weight(e.score, most), 0))) ** 0.45);
  const ports = useMemo(() => {
    const used = new Map<string, Set<string>>();
    for (const e of edges) if (e.port) used.set(shared(e.target), (used.get(shared(e.target)) ?? new Set()).add(e.port));
    return used;
  }, [edges]);
  const busy = useMemo(() => new Set(edges.flatMap((e) => [shared(e.source), shared(e.target)])), [edges]);
  const chosen = pointed ?? held;
  const touches = (e: Edge) => chosen !== null && (e.name === chosen || shared(e.source) === chosen || shared(e.target) === chosen);
  const near = useMemo(() => new Set(edges.filter(touches).flatMap((e) => [shared(e.source), shared(e.target)])), [edges, chosen]);
  const point = (e: Edge | null) => { setSaid(e); onPoint(e?.name ?? null); };
  return (
    <>
      <div class="graph" ref={box} tabIndex={0} role="group" aria-label={label}>
        {room > 0 && (
          <svg width={plan.width} height={plan.height} class={chosen && near.size ? "some" : ""} onMouseLeave={() => point(null)}>
            {plan.rows.map((r) => (
              <g key={r.label}><rect class="block" x="0" y={r.top} width={plan.width} height={r.height} rx="7" /><text class="block-name" x="6" y={r.top + 14}>{r.label}</text></g>
            ))}
            {wires.map(({ edge, d }) => (
              <g key={edge.name} class={`edge ${touches(edge) ? "on" : ""}`} onMouseEnter={() => point(edge)} onMouseLeave={() => point(null)}>
                <path class="reach" d={d} />
                <path class={`flow ${edge.score < 0 ? "minus" : ""}`} d={d} stroke-width={0.8 + 4.2 * crowd * weight(edge.score, most)} stroke-opacity={(0.35 + 0.55 * weight(edge.score, most)) * (0.45 + 0.55 * crowd)}>
                  <title>{`${edge.name}: ${short(edge.score)}`}</title>
                </path>
              </g>
            ))}
            {[...plan.places.values()].map((p) => (
              <Node key={p.node.name} place={p} ports={ports.get(p.node.name)} busy={busy.has(p.node.name)} on={chosen === p.node.name || near.has(p.node.name)} held={held === p.node.name} off={off.includes(p.node.name)}
                about={counts(p.node.name, edges)} onPoint={(on) => { setSaid(null); onPoint(on ? p.node.name : null); }} onHold={() => onHold(p.node.name)} />
            ))}
          </svg>
        )}
      </div>
      <p class="soft said-edge" aria-live="polite">{said ? <><b>{said.name.replace("->", " → ")}</b>: {short(said.score)}</> : chosen && at(plan.places, chosen) ? `${chosen}: ${counts(chosen, edges)}` : " "}</p>
    </>
  );
}

/** Heads that share keys and values stand at the first of them. */
const shared = (name: string) => name.replace(/^(A\d+\.\d+)-\d+$/, "$1");

function counts(name: string, edges: Edge[]): string {
  const into = edges.filter((e) => shared(e.target) === name), out = edges.filter((e) => shared(e.source) === name).length;
  const by = PORTS.map((p) => [p, into.filter((e) => e.port === p).length] as const).filter(([, n]) => n);
  return `${into.length} in${by.length ? ` (${by.map(([p, n]) => `${p} ${n}`).join(", ")})` : ""}, ${out} out`;
}

function Node({ place, ports, busy, on, held, off, about, onPoint, onHold }: {
  place: Place & { node: GraphNode }; ports: Set<string> | undefined; busy: boolean; on: boolean; held: boolean; off: boolean; about: string; onPoint: (on: boolean) => void; onHold: () => void;
}) {
  const { node, x, y, w, h } = place, words = node.kind === "head" && w < 40 ? String(node.head) : node.name;
  return (
    <g class={`node ${node.kind} ${busy ? "" : "idle"} ${on ? "on" : ""} ${held ? "held" : ""} ${off ? "off" : ""}`} role="button" aria-pressed={held} tabIndex={busy || held ? 0 : -1} aria-label={`${node.name}: ${about}`}
      onMouseEnter={() => onPoint(true)} onMouseLeave={() => onPoint(false)} onFocus={() => onPoint(true)} onBlur={() => onPoint(false)} onClick={onHold}
      onKeyDown={(e) => { if (e.key === "Enter" || e.key === " ") { onHold(); e.preventDefault(); } }}>
      <title>{`${node.name}: ${about}`}</title>
      <rect class="body" x={x - w / 2} y={y - h / 2} width={w} height={h} rx="5" />
      <text x={x} y={y + 4}>{words}</text>
      {PORTS.filter((p) => ports?.has(p)).map((p) => {
        const at = entry(place, p);
        return <g key={p}><rect class={`port ${p.toLowerCase()}`} x={at.x - 4.5} y={at.y - 9} width="9" height="9" rx="2" /><text class="letter" x={at.x} y={at.y - 2}>{p}</text></g>;
      })}
    </g>
  );
}
