import { useState } from "preact/hooks";
import { loadRun, theManifest, usePromise, type Run } from "../data";
import { flatten, heading, number, printable, short, type EstimateLike } from "../format";
import { highlights, type Highlight } from "../highlights";
import { href } from "../route";
import type { RunEntry } from "../schema/explorer";
import type { ViewProps } from "../view";
import { DataTable } from "../ui/DataTable";
import { LineChart, type Line } from "../ui/LineChart";
import { Note } from "../ui/Note";
import { Folded } from "../ui/Panel";
import { Tabs } from "../ui/Tabs";
import { Hint, Term } from "../ui/Term";
import { Value } from "../ui/Value";
import { lookUp } from "../glossary";
import { title } from "./Measurements";

/** What was trained, the figures that matter, and how it got there. */
export function Overview({ run, route }: ViewProps) {
  const entry = baselineOf(run.entry);
  const baseline = usePromise(() => (entry ? loadRun(entry) : null), [entry]);
  const shown = highlights(run.results);
  const link = (suite: string) => href("measurements", [suite], { run: route.params.run });
  return (
    <>
      <header class="page-head"><h1>{printable(run.entry.name)}</h1><p class="soft">{printable(run.entry.summary)}</p></header>
      {theManifest().notes.length > 0 && <Note title="Mind"><ul class="plain">{theManifest().notes.map((n) => <li key={n}>{printable(n)}</li>)}</ul></Note>}
      {shown.length > 0
        ? <section class="tiles" aria-label="Figures that matter">{shown.map((h) => <Tile key={h.figure.name} highlight={h} link={link(h.suite)} baseline={baseline.state === "ready" ? baseline.value : null} />)}</section>
        : <Note title="Nothing is measured yet">Run <code>jaxablate score --workdir DIR</code> for figures with intervals and nulls.</Note>}
      <div class="two">
        <Training run={run} />
        <Facts run={run} />
      </div>
      <section class="card">
        <h2>What was measured</h2>
        <ul class="suites-list">
          {Object.values(run.results.suites).map((s) => <li key={s.suite}><a href={s.figures.length + s.panels.length > 0 ? link(s.suite) : href(OF_SUITE[s.suite] ?? "measurements", [], { run: route.params.run })}>{title(s.suite)}</a> <span class="soft">{printable(s.about)}</span></li>)}
        </ul>
      </section>
    </>
  );
}

/** Views of suites whose findings are theirs alone. */
const OF_SUITE: Record<string, string> = { texts: "text", units: "units" };

/** The run of this page to set beside: the one that its entry names. */
function baselineOf(entry: RunEntry): RunEntry | undefined {
  return theManifest().runs.find((r) => r.name === entry.baseline);
}

function Tile({ highlight: h, link, baseline }: { highlight: Highlight; link: string; baseline: Run | null }) {
  const base = baseline?.results.suites[h.suite]?.figures.find((f) => f.name === h.figure.name)?.estimate;
  const rows: [string, EstimateLike, string][] = [["this run", h.figure.estimate, "own"]];
  if (base && base.value !== null) rows.push([`baseline`, base, "base"]);
  if (h.null) rows.push([h.null.label, h.null.estimate, "null"]);
  const about = lookUp(h.figure.name);
  return (
    <article class="card tile">
      <h2>{about ? <Hint text={about}>{h.title}</Hint> : h.title}</h2>
      <p class="tile-value"><Value estimate={h.figure.estimate} /> <span class="soft unit">{heading("", h.figure.unit, h.figure.better)}</span></p>
      <Strip rows={rows} />
      <p class="says">{h.says}</p>
      <a class="soft more" href={link} aria-label={`More of ${h.title}: ${h.figure.name}`}>{printable(h.figure.name)} →</a>
    </article>
  );
}

/** The figure, its baseline and its null on one small axis. */
function Strip({ rows }: { rows: [string, EstimateLike, string][] }) {
  const values = rows.flatMap(([, e]) => [e.value, e.low, e.high]).filter((x): x is number => x !== null && Number.isFinite(x));
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * 0.08;
  const at = (x: number) => `${(100 * (x - low + room)) / (high - low + 2 * room)}%`;
  if (rows.length < 2) return null;
  return (
    <div class="strip">
      {rows.map(([label, e, kind]) => (
        <div key={label} class={`strip-row ${kind}`}>
          <span class="soft">{kind === "null" ? <Hint text={lookUp("null")!}>{label}</Hint> : kind === "base" ? <Term name="baseline">{label}</Term> : label}</span>
          <span class="track">
            {e.low !== null && e.high !== null && e.low !== e.high && <i class="whisker" style={{ left: at(e.low), width: `calc(${at(e.high)} - ${at(e.low)})` }} />}
            {e.value !== null && <i class="dot" style={{ left: at(e.value) }} />}
          </span>
          <span class="n">{e.low === null && e.value !== null ? short(e.value) : number(e.value, e.low, e.high)}</span>
        </div>
      ))}
    </div>
  );
}

interface Picture { id: string; title: string; names: string[]; label: string; log?: boolean }

/** Numbers of the log by what they are about. */
const PICTURES: Picture[] = [
  { id: "loss", title: "Loss", names: ["loss_clean", "loss_ablated", "cross_entropy", "loss"], label: "nats", log: true },
  { id: "accuracy", title: "Accuracy", names: ["accuracy", "accuracy_ablated"], label: "share of texts" },
  { id: "gates", title: "Live units", names: ["live_attention", "live_neurons"], label: "share of units" },
  { id: "terms", title: "Other terms", names: ["reconstruction", "importance", "interaction"], label: "term before its coefficient" },
  { id: "optimiser", title: "Gradient", names: ["grad_norm"], label: "gradient norm", log: true },
  { id: "rate", title: "Learning rate", names: ["learning_rate"], label: "learning rate" },
  { id: "speed", title: "Speed", names: ["tokens_per_second", "texts_per_second"], label: "a second" },
];

export function curves(run: Run, names: readonly string[], prefix = "", colourFrom = 0): Line[] {
  const order = [...new Set(names)];
  return run.history.metrics.filter((m) => order.includes(m.name)).sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name) || a.split.localeCompare(b.split))
    .map((m) => ({ label: `${prefix}${m.split === "train" ? "training" : "validation"}, ${m.name.replace(/_/g, " ")}`, x: m.steps, y: m.values, dashed: m.split !== "train", colour: colourFrom + order.indexOf(m.name) }));
}

function Training({ run }: { run: Run }) {
  const known = new Set(PICTURES.flatMap((p) => p.names));
  const rest = [...new Set(run.history.metrics.map((m) => m.name))].filter((n) => !known.has(n));
  const all: Picture[] = [...PICTURES, ...rest.map((n) => ({ id: n, title: n.replace(/_/g, " "), names: [n], label: n }))];
  const pictures = all.map((p) => ({ ...p, lines: curves(run, p.id === "loss" && run.history.metrics.some((m) => m.name === "loss_clean") ? p.names.slice(0, 2) : p.names) })).filter((p) => p.lines.length > 0);
  const [id, setId] = useState(pictures[0]?.id ?? "");
  const current = pictures.find((p) => p.id === id) ?? pictures[0];
  return (
    <section class="card">
      <h2>Training</h2>
      {current ? (
        <Tabs label="What was logged" tabs={pictures} current={current.id} onChange={setId}
          panel={<LineChart key={current.id} name={current.title} lines={current.lines} xLabel="step" yLabel={current.label} logY={current.log} smoothing scales height={320} />} />
      ) : <p class="soft">No training log lies beside this run.</p>}
    </section>
  );
}

function Facts({ run }: { run: Run }) {
  const { entry, results } = run, config = results.config as Record<string, Record<string, unknown> | undefined>;
  const train = config.train ?? {}, data = config.data ?? {}, model = config.model ?? {};
  const settings = Object.entries(flatten(results.config)).map(([name, value]) => ({ name, value: typeof value === "string" ? value : JSON.stringify(value) }));
  const words = (x: unknown) => (Array.isArray(x) ? x.join(" ") : typeof x === "number" ? x.toLocaleString("en") : String(x));
  const facts: [string, string | null][] = [
    ["task", results.config.task === "classification" ? "text classification" : "language model"],
    ["parameters", results.parameters.toLocaleString("en")],
    ["shape", `${words(model.n_layers)} layer${model.n_layers === 1 ? "" : "s"}, width ${words(model.d_model)}, ${words(model.n_heads)} heads`],
    ["ablation", model.ablation === "none" ? "none (no gates)" : `${words(model.ablation)}, ${words(model.gate)}; k ${words(model.k_attention)} of attention, ${words(model.k_neurons)} of neurons`],
    ["data", [data.source ?? data.dataset, data.tokenizer && `tokenizer ${words(data.tokenizer)}`].filter(Boolean).map(String).join(", ") || null],
    ["trained for", train.steps ? `${words(train.steps)} steps of ${words(train.batch_size)} × ${words(train.sequence_length)} tokens` : train.epochs ? `up to ${words(train.epochs)} epochs of batches of ${words(train.batch_size)}` : null],
    ["checkpoint", `step ${results.step.toLocaleString("en")}`],
    ["seed", String(results.seed)],
    ["started", entry.started?.replace("T", " ").replace("+00:00", " UTC") ?? null],
    ["device", entry.device],
    ["revision", entry.revision],
    ["weights", results.params_digest],
    ["evaluation data", results.data_hash.slice(0, 16)],
  ];
  return (
    <section class="card">
      <h2>What was trained</h2>
      <dl class="facts">{facts.filter(([, v]) => v).map(([k, v]) => [<dt key={k}>{k}</dt>, <dd key={`${k}v`}>{printable(v!)}</dd>])}</dl>
      <Folded summary={`All ${settings.length} settings`}>
        <DataTable name="settings" rows={settings} height={360} columns={[{ title: "setting", value: (s) => s.name, show: (s) => <code>{s.name}</code> }, { title: "value", value: (s) => s.value, show: (s) => <code>{printable(s.value)}</code> }]} />
      </Folded>
    </section>
  );
}
