import { useMemo, useState } from "preact/hooks";
import { blob, theManifest, useAttachment, usePromise } from "../data";
import { printable } from "../format";
import { isLive } from "../live";
import { setParams } from "../route";
import type { StreamEdges, TaskEdges } from "../schema/circuits";
import { DataTable, type Column } from "../ui/DataTable";
import { Failed, Loading, NotMeasured } from "../ui/Note";
import { Slider } from "../ui/Slider";
import { Choice } from "../ui/Tabs";
import { Hint, Term } from "../ui/Term";
import { Value } from "../ui/Value";
import type { ViewProps } from "../view";
import { Faithfulness } from "./circuit/Faithfulness";
import { Graph } from "./circuit/Graph";
import { edges, type Edge } from "./circuit/model";
import { short } from "./text/model";
import { NodeCard } from "./circuit/NodeCard";
import { Switches } from "./live/Switches";
import { switches, toggled } from "./live/Typed";
import "./circuit/circuit.css";

const EVERY = "every edge";
const MOST_DRAWN = 600;

interface Pane {
  title: string;
  task: TaskEdges;
  stream: StreamEdges;
  circuit: string;
  /** By falling size of score, those of the circuit alone. */
  edges: Edge[];
}

/** The circuit of a task: who reads whom, how much that matters, and how much of the behaviour it has. */
export function Circuit({ run, route }: ViewProps) {
  const found = useAttachment<TaskEdges>(run, "circuits");
  const others = theManifest().runs.filter((r) => r.name !== run.entry.name && r.attachments["circuits"] !== undefined);
  const beside = others.find((r) => r.name === route.params.other) ?? others[0];
  const other = usePromise(() => (beside && route.params.panes === "run" ? blob<TaskEdges>(beside.attachments["circuits"]!) : null), [beside, route.params.panes]);
  if (found.state === "loading" || other.state === "loading") return <Loading />;
  if (found.state === "failed") return <Failed what="The circuits" why={found.why} />;
  if (other.state === "failed") return <Failed what={`The circuits of ${beside?.name}`} why={other.why} />;
  if (found.state === "absent" && isLive()) return <><h1>Circuit</h1><Switches run={run} route={route} /><NotMeasured view="Edges" suite="circuits" /></>;
  if (found.state === "absent") return <NotMeasured view="Circuit" suite="circuits" />;
  return <Circuits key={run.entry.name} run={run} route={route} task={found.value} other={other.state === "ready" && beside ? { name: beside.name, task: other.value } : null} others={others.map((r) => r.name)} />;
}

/** Start and end of the graph are no parts of the model that could be off. */
const switchable = (name: string) => /^(A\d+\.\d+|MLP \d+)$/.test(name);

type Panes = "streams" | "pruning" | "run" | "alone";

function Circuits({ run, route, task, other, others }: ViewProps & { task: TaskEdges; other: { name: string; task: TaskEdges } | null; others: string[] }) {
  const names = task.streams.map((s) => s.stream), asked = route.params;
  const stream = names.includes(asked.stream ?? "") ? asked.stream! : names[0]!;
  const options: [Panes, string][] = [...(names.length > 1 ? [["streams", "both streams"] as [Panes, string]] : []), ["pruning", "before and after pruning"], ...(others.length ? [["run", "another run"] as [Panes, string]] : []), ["alone", "alone"]];
  const beside = options.find(([id]) => id === asked.panes)?.[0] ?? options[0]![0];
  const of = task.streams.find((s) => s.stream === stream)!, methods = Object.keys(of.scores);
  const method = methods.includes(asked.score ?? "") ? asked.score! : methods.includes(task.shown_method) ? task.shown_method : methods[0]!;
  const circuits = [...of.circuits.map((c) => c.name), EVERY];
  const circuit = circuits.includes(asked.circuit ?? "") ? asked.circuit! : firstCircuit(of);
  const pruned = circuit === EVERY ? of.circuits[0]?.name ?? EVERY : circuit;
  const panes = useMemo(() => {
    const pane = (title: string, t: TaskEdges, s: StreamEdges | undefined, c: string): Pane[] => (s ? [{ title, task: t, stream: s, circuit: c, edges: edges(s, method, c).filter((e) => e.kept) }] : []);
    const called = (t: TaskEdges, s: string) => t.streams.find((x) => x.stream === s);
    if (beside === "streams") return names.flatMap((s) => pane(`${s} stream`, task, called(task, s), circuit));
    if (beside === "pruning") return [...pane(`before: every edge, ${stream} stream`, task, of, EVERY), ...pane(`after: ${pruned}`, task, of, pruned)];
    if (beside === "run" && other) return [...pane(`${run.entry.name}, ${stream} stream`, task, of, circuit), ...pane(`${other.name}, ${called(other.task, stream) ? stream : "clean"} stream`, other.task, called(other.task, stream) ?? other.task.streams[0], circuit)];
    return pane(`${stream} stream`, task, of, circuit);
  }, [task, other, beside, stream, circuit, method]);
  const sizes = useMemo(() => [...new Set(panes.flatMap((p) => p.edges.map((e) => Math.abs(e.score))))].filter(Number.isFinite).sort((a, b) => a - b), [panes]);
  const start = useMemo(() => beginning(panes, sizes), [panes, sizes]);
  const least = asked.least === undefined ? start : sizes.findIndex((x) => x >= Number(asked.least) * (1 - 1e-9));
  const level = least < 0 ? sizes.length - 1 : Math.min(least, sizes.length - 1);
  const floor = sizes[level] ?? 0, most = sizes.at(-1) ?? 1;
  const shown = panes.map((p) => p.edges.filter((e) => !(Math.abs(e.score) < floor)).slice(0, MOST_DRAWN));
  const [pointed, setPointed] = useState<string | null>(null);
  const held = asked.node ?? null;
  const { off } = switches(route), press = isLive() && asked.press === "switch";
  return (
    <>
      <h1>Circuit</h1>
      <p class="soft">The task <b>{printable(task.task)}</b>, {task.prompts} prompts. Nodes write into the residual stream and read from it; an edge is what one reads of another. Point at a node or an edge; press a node to hold it.</p>
      <div class="controls">
        {options.length > 1 && <Choice label="What stands side by side" options={options} value={beside} onChange={(b) => setParams({ panes: b })} />}
        {beside === "run" && others.length > 1 && (
          <label><span class="soft">run</span> <select value={other?.name} onChange={(e) => setParams({ other: e.currentTarget.value })}>{others.map((n) => <option key={n} value={n}>{printable(n)}</option>)}</select></label>
        )}
        {beside !== "streams" && names.length > 1 && <Choice label="Stream" options={names} value={stream} onChange={(s) => setParams({ stream: s })} />}
        <label><Hint text="ACDC cuts edges one after another as long as the model's predictions change by less than tau nats. Every edge: those of the largest scores, whether a circuit has them or not.">circuit</Hint>{" "}
          <select aria-label="Circuit" value={circuit} onChange={(e) => setParams({ circuit: e.currentTarget.value, least: undefined })}>{circuits.map((c) => <option key={c} value={c}>{c}</option>)}</select>
        </label>
        <label><Hint text="By how much the answer suffers when the edge alone is cut, as the method estimates it; positive edges help the answer.">score</Hint>{" "}
          <select aria-label="Score" value={method} onChange={(e) => setParams({ score: e.currentTarget.value, least: undefined })}>{methods.map((m) => <option key={m} value={m}>{printable(m)}</option>)}</select>
        </label>
        {sizes.length > 1 && (
          <Slider label="weakest edge" min={0} max={sizes.length - 1} step={1} value={level} onChange={(i) => setParams({ least: sizes[i]?.toPrecision(6) })}
            format={(i) => `${short(sizes[i] ?? 0)}: ${panes.map((p) => p.edges.filter((e) => Math.abs(e.score) >= (sizes[i] ?? 0)).length).join(" and ")} edges`} />
        )}
      </div>
      <div class={`graphs ${panes.length > 1 ? "twin" : ""}`}>
        {panes.map((p, i) => (
          <section class="card" key={p.title} aria-label={p.title}>
            <h2>{printable(p.title)}</h2>
            <Facts pane={p} drawn={shown[i]!.length} />
            <Graph task={p.task} edges={shown[i]!} most={most} pointed={pointed} held={held} onPoint={setPointed}
              off={off} onHold={(n) => setParams(press && switchable(n) ? { off: toggled(off, n) } : { node: n === held ? undefined : n })} label={`${p.title}: ${shown[i]!.length} edges`} />
          </section>
        ))}
      </div>
      <p class="soft graph-key">
        <svg width="30" height="10" aria-hidden="true"><path d="M1 5h28" class="flow" stroke-width="3" /></svg> helps the answer
        <svg width="30" height="10" aria-hidden="true"><path d="M1 5h28" class="flow minus" stroke-width="3" /></svg> hinders it; the wider, the more.
        <span class="ports"><i class="q">Q</i> queries <i class="k">K</i> keys <i class="v">V</i> values of a head.</span>
      </p>
      {isLive() && <Switches run={run} route={route} drawing />}
      <div class={held ? "below" : ""}>
        {held && <NodeCard run={run} task={task} name={held} panes={panes.map((p, i) => ({ title: p.title, edges: shown[i]! }))} onNode={(n) => setParams({ node: n })} />}
        <section class="card"><h2>Edges</h2><EdgeTable panes={panes} shown={shown} held={held} /></section>
      </div>
      <section class="card">
        <h2><Term name="faithfulness">How faithful circuits are</Term></h2>
        <p class="soft">Share of the model's logit difference that the circuit alone has, on prompts it was not found on: 1 is the model, 0 is everything patched.</p>
        <div class={`graphs ${panes.length > 1 && beside !== "pruning" ? "twin" : ""}`}>
          {(beside === "pruning" ? panes.slice(0, 1) : panes).map((p) => <Faithfulness key={p.title} title={beside === "pruning" ? `${stream} stream` : p.title} stream={p.stream} />)}
        </div>
      </section>
      {held && <p class="hidden" aria-live="polite">{held} is held</p>}
    </>
  );
}

/** The circuit at the papers' threshold, or at another that has edges; without any, every edge. */
function firstCircuit(stream: StreamEdges): string {
  const some = stream.circuits.filter((c) => c.edges > 0);
  return (some.find((c) => c.name.endsWith(" 0.03")) ?? some[0])?.name ?? EVERY;
}

/** Weakest edge that is shown at first: so that no drawing begins with more than can be told apart. */
function beginning(panes: Pane[], sizes: number[]): number {
  const floors = panes.map((p) => (p.circuit === EVERY || p.edges.length > 150 ? Math.abs(p.edges[Math.min(79, p.edges.length - 1)]?.score ?? 0) : 0));
  const floor = Math.min(Math.max(...floors), Math.abs(sizes.at(-1) ?? 0));
  return Math.max(0, sizes.findIndex((x) => x >= floor));
}

/** Size and worth of a pane's circuit, in a line. */
function Facts({ pane, drawn }: { pane: Pane; drawn: number }) {
  const of = pane.stream.circuits.find((c) => c.name === pane.circuit);
  return (
    <p class="soft circuit-facts">
      {of ? <><b>{of.edges.toLocaleString("en")}</b> of {pane.stream.edges.toLocaleString("en")} edges{of.faithfulness.value !== null && <>, <Term name="faithfulness">faithfulness</Term> <Value estimate={of.faithfulness} /></>}</>
        : <>{pane.edges.length.toLocaleString("en")} of {pane.stream.edges.toLocaleString("en")} edges are scored here</>}
      {drawn < pane.edges.length && <>; {drawn.toLocaleString("en")} drawn</>}
      . The model is right on <Value estimate={pane.stream.accuracy} /> of the prompts.
      {of?.edges === 0 && <b> No edge is kept: at this threshold the task needs none.</b>}
    </p>
  );
}

interface Row { name: string; source: string; target: string; port: string; scores: (number | null)[] }

/** Every edge that some drawing has, with its score in each. */
function EdgeTable({ panes, shown, held }: { panes: Pane[]; shown: Edge[][]; held: string | null }) {
  const rows = useMemo(() => {
    const all = new Map<string, Row>();
    shown.forEach((list, i) => list.forEach((e) => {
      const row = all.get(e.name) ?? { name: e.name, source: e.source, target: e.target, port: e.port, scores: panes.map(() => null) };
      row.scores[i] = e.score;
      all.set(e.name, row);
    }));
    return [...all.values()].filter((r) => !held || r.source === held || r.target === held);
  }, [panes, shown, held]);
  const columns: Column<Row>[] = useMemo(() => [
    { title: "from", value: (r) => r.source, about: "Node that writes" },
    { title: "to", value: (r) => r.target, about: "Node that reads" },
    { title: "reads as", value: (r) => ({ Q: "queries", K: "keys", V: "values" })[r.port] ?? "input", about: "What of a head reads it" },
    ...panes.map((p, i): Column<Row> => ({ title: panes.length > 1 ? p.title : "score", value: (r) => r.scores[i] ?? null, about: "Empty where the edge is not drawn" })),
    ...(panes.length > 1 ? [{ title: "difference", value: (r: Row) => (r.scores[0] == null || r.scores[1] == null ? null : r.scores[1] - r.scores[0]), about: "Second minus first" }] : []),
  ], [panes]);
  return <DataTable name={held ? `Edges of ${held}` : "Edges"} columns={columns} rows={rows} filter height={420} />;
}
