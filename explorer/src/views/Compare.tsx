import { useMemo } from "preact/hooks";
import { loadRun, theManifest, useComparison, useDifferences, usePromise, type Run } from "../data";
import { estimate, heading, interval, number, printable } from "../format";
import { PUBLISHED, SOURCE, paperShape, published, publishedRow } from "../published";
import { href, setParams } from "../route";
import type { Column as Figure, Comparison, Difference, Row as Configuration } from "../schema/explorer";
import type { ViewProps } from "../view";
import { DataTable, type Column } from "../ui/DataTable";
import { DotChart, type Dot } from "../ui/DotChart";
import { LineChart } from "../ui/LineChart";
import { Failed, Loading, Note } from "../ui/Note";
import { Explained, Hint, Term } from "../ui/Term";
import { Value } from "../ui/Value";
import { curves } from "./Overview";

/** Configurations side by side: every figure, its difference to one of them, seeds as points, published figures apart. */
export function Compare({ route }: ViewProps) {
  const comparison = useComparison();
  const entries = theManifest().runs;
  const runs = usePromise(() => Promise.all(entries.map(loadRun)), []);
  if (comparison.state === "failed") return <Failed what="The comparison" why={comparison.why} />;
  if (runs.state === "failed") return <Failed what="The runs" why={runs.why} />;
  if (comparison.state !== "ready" || runs.state !== "ready") return <Loading />;
  return <Side comparison={comparison.value} runs={runs.value} params={route.params} />;
}

interface Line { figure: Figure; index: number }

function Side({ comparison, runs, params }: { comparison: Comparison; runs: Run[]; params: Record<string, string> }) {
  const rows = comparison.rows, names = rows.map((r) => label(comparison, r));
  const choices = names.slice(0, Math.max(1, theManifest().differences.length));
  const reference = Math.max(0, params.to ? choices.indexOf(params.to) : rows.slice(0, choices.length).findIndex((r) => gateless(r, runs)));
  const suites = [...new Set(comparison.columns.map((c) => c.suite))];
  const suite = suites.includes(params.suite ?? "") ? params.suite! : "";
  const lines: Line[] = useMemo(() => comparison.columns.map((figure, index) => ({ figure, index })).filter((l) => !suite || l.figure.suite === suite), [comparison, suite]);
  const picked = lines.find((l) => `${l.figure.suite}/${l.figure.name}` === params.figure) ?? lines[0];
  const paper = PUBLISHED.find((p) => p.name === params.paper) ?? (params.paper === "none" ? undefined : rows.map((r) => publishedRow(first(r, runs).results)).find((p) => p && p.k !== null));
  const notes = [...theManifest().notes, ...comparison.notes];
  const against = useDifferences(reference);
  const found = useMemo(() => new Map(against.state === "ready" ? against.value.found.map((d) => [`${d.row}/${d.column}`, d]) : []), [against]);
  const tested = against.state === "ready" && against.value.found.some((d) => d.corrected !== null);
  const comparable = rows.every((r) => paperShape(first(r, runs).results));
  const language = runs[0]!.results.config.task !== "classification";
  const columns: Column<Line>[] = [
    { title: "figure", value: (l) => heading(l.figure.name, l.figure.unit, l.figure.better), show: (l) => <><Explained text={l.figure.name} /> <span class="soft">{heading("", l.figure.unit, l.figure.better)}</span></> },
    ...[reference, ...rows.keys()].filter((i, at) => at === 0 || i !== reference).flatMap((i): Column<Line>[] => { const r = rows[i]!; return [
      { title: names[i]! + (r.runs.length > 1 ? ` (n = ${r.runs.length})` : ""), value: (l) => r.cells[l.index]!, show: (l) => <Value estimate={r.cells[l.index]!} /> },
      ...(i === reference ? [] : [{
        title: `${rows.length > 2 ? `${names[i]} ` : ""}− ${names[reference]}`, about: "Difference with its 95 % interval.",
        value: (l: Line) => found.get(`${i}/${l.index}`)?.estimate ?? null,
        show: (l: Line) => <Delta of={found.get(`${i}/${l.index}`)} better={l.figure.better} />,
      }]),
      ...(i === reference || !tested ? [] : [{
        title: "p", about: "Two-sided p of a t-test over seeds, after Holm's correction for all tests shown.", ascending: true,
        value: (l: Line) => found.get(`${i}/${l.index}`)?.corrected ?? null,
        show: (l: Line) => pText(found.get(`${i}/${l.index}`)?.corrected),
      }]),
    ]; }),
    ...(suite ? [] : [{ title: "suite", value: (l: Line) => l.figure.suite, show: (l: Line) => <span class="soft">{l.figure.suite}</span> }]),
    ...(paper && language ? [{ title: `paper: ${paper.name}`, about: SOURCE, value: (l: Line) => published(paper, l.figure.suite, l.figure.name) ?? null, show: (l: Line) => <PaperValue value={published(paper, l.figure.suite, l.figure.name)} /> }] : []),
  ];
  return (
    <>
      <header class="page-head"><h1>Compare</h1>
        <p class="soft">{rows.length} configurations, {runs.length} runs. {rows.some((r) => r.runs.length > 1) ? <>n runs of a configuration: mean with its 95 % interval (<Term name="student t">Student t</Term> over runs). </> : ""}A run alone has the interval of its suite, within the run: it says nothing of other <Term name="seed">seeds</Term>.</p>
      </header>
      {notes.length > 0 && <Note title="Mind"><ul class="plain">{notes.map((n) => <li key={n}>{printable(n)}</li>)}</ul></Note>}
      <Configurations comparison={comparison} runs={runs} />
      <section class="card">
        <h2>Figures</h2>
        <div class="controls">
          <label><span class="soft">suite</span> <select value={suite} onChange={(e) => setParams({ suite: e.currentTarget.value })}><option value="">all</option>{suites.map((s) => <option key={s}>{s}</option>)}</select></label>
          <label><span class="soft">differences to</span> <select value={names[reference]} onChange={(e) => setParams({ to: e.currentTarget.value })}>{choices.map((n) => <option key={n} value={n}>{printable(n)}</option>)}</select></label>
          {language && <label><span class="soft">published row</span> <select value={paper?.name ?? "none"} onChange={(e) => setParams({ paper: e.currentTarget.value })}><option value="none">none</option>{PUBLISHED.map((p) => <option key={p.name}>{p.name}</option>)}</select></label>}
        </div>
        {paper && language && <p class="soft"><span class="paper">paper</span> {SOURCE}. {comparable ? "" : "Its models have 8 layers of width 128 and were trained on TinyStories: these runs have another shape or corpus, so the column is for orientation, not for comparison."}</p>}
        <DataTable name="comparison" columns={columns} rows={lines} filter height={560} onRow={(l) => setParams({ figure: `${l.figure.suite}/${l.figure.name}` })} isCurrent={(l) => l === picked} />
        <p class="soft">{against.state === "ready" && against.value.explanation} {tested ? "Marked: p below 0.05." : "Marked: the interval leaves out 0, as one in twenty does by chance."} Press a row to see it as a picture.</p>
      </section>
      {picked && <Picture comparison={comparison} line={picked} names={names} runs={runs} paper={paper && language ? { name: paper.name, value: published(paper, picked.figure.suite, picked.figure.name) } : null} />}
      <Curves comparison={comparison} runs={runs} metric={params.metric} />
    </>
  );
}

function label(comparison: Comparison, row: Configuration): string {
  if (comparison.fields.length === 1 && comparison.fields[0] === "run") return row.labels[0] === "all" ? "all runs" : row.labels[0]!;
  return comparison.fields.map((f, i) => `${f.split(".").at(-1)} ${row.labels[i]}`).filter((_, i) => row.labels[i] !== "-").join(", ") || row.runs[0]!;
}

const first = (row: Configuration, runs: Run[]) => runs.find((r) => r.entry.name === row.runs[0]) ?? runs[0]!;
const gateless = (row: Configuration, runs: Run[]) => (first(row, runs).results.config.model as Record<string, unknown>).ablation === "none";

function Delta({ of, better }: { of: Difference | undefined; better: string }) {
  if (!of || of.estimate.value === null) return <span class="soft">–</span>;
  const { value, low, high } = of.estimate, sure = surely(of);
  const good = (better === "up" && value > 0) || (better === "down" && value < 0);
  const kind = !sure ? "unsure" : better === "none" ? "other" : good ? "good" : "bad";
  const words = { good: "better", bad: "worse", other: "differs", unsure: sure === null ? "no interval" : "may be nothing" }[kind];
  const sign = value > 0 ? "+" : "", how = { paired: "seeds paired", unpaired: "Welch's t-test", single: "of two single runs" }[of.kind];
  return (
    <span class={`delta ${kind}`} title={[`${words}: ${sign}${estimate(of.estimate)}`, how, of.p !== null && `p ${pText(of.p)}, corrected ${pText(of.corrected)}`].filter(Boolean).join("; ")}>
      {kind === "good" ? "✓ " : kind === "bad" ? "✗ " : ""}{sign}{number(value, low, high)} <span class="interval">{interval(of.estimate)}</span><span class="hidden">, {words}</span>
    </span>
  );
}

/** Whether a difference is more than chance, by its corrected test, else by its interval; null where it has neither. */
function surely(d: Difference): boolean | null {
  const { low, high } = d.estimate;
  return d.corrected !== null ? d.corrected < 0.05 : low === null || high === null ? null : low > 0 || high < 0;
}

function pText(p: number | null | undefined): string {
  return p == null ? "" : p < 1e-4 ? "< 0.0001" : p.toFixed(4);
}

function PaperValue({ value }: { value: number | undefined }) {
  return value === undefined ? <span class="soft">–</span> : <span class="paper"><Hint text={`Published: ${SOURCE}.`}>{value}</Hint></span>;
}

function Configurations({ comparison, runs }: { comparison: Comparison; runs: Run[] }) {
  const columns: Column<Configuration>[] = [
    ...comparison.fields.map((f, i) => ({ title: f.split(".").at(-1)!, about: f, value: (r: Configuration) => r.labels[i] ?? "" })),
    { title: "n", value: (r) => r.runs.length },
    { title: "seeds", value: (r) => r.seeds.join(" ") },
    { title: "checkpoint", value: (r) => r.steps.map((s) => s.toLocaleString("en")).join(" ") },
    { title: "runs", value: (r) => r.runs.join(", "), show: (r) => <>{r.runs.map((n, i) => [i > 0 && ", ", <a key={n} href={href("", [], { run: n })}>{printable(n)}</a>])}</> },
    { title: "parameters", value: (r) => first(r, runs).results.parameters },
  ];
  return <section class="card"><h2>Configurations</h2><DataTable name="configurations" columns={columns} rows={comparison.rows} filter={false} height={320} /></section>;
}

function Picture({ comparison, line, names, runs, paper }: { comparison: Comparison; line: Line; names: string[]; runs: Run[]; paper: { name: string; value: number | undefined } | null }) {
  const { figure, index } = line;
  const dots: Dot[] = comparison.rows.map((r, i) => ({
    label: names[i]!, estimate: r.cells[index]!,
    points: r.runs.length < 2 ? undefined : r.runs.map((n) => runs.find((x) => x.entry.name === n)?.results.suites[figure.suite]?.figures.find((f) => f.name === figure.name)?.estimate.value).filter((x): x is number => typeof x === "number"),
  })).filter((d) => d.estimate.value !== null);
  return (
    <section class="card">
      <h2><Explained text={figure.name} /> <span class="soft">{heading("", figure.unit, figure.better)}</span></h2>
      <DotChart key={`${figure.suite}/${figure.name}`} name={figure.name} dots={dots} unit={figure.unit} flat mark={paper?.value ?? null} markLabel={paper?.value === undefined ? "" : `paper, ${paper.name}: ${paper.value} (one run)`} />
      {dots.some((d) => d.points) && <p class="soft">Small points: single seeds.</p>}
    </section>
  );
}

/** What was logged of every run, one hue a configuration; of many runs only what was validated. */
function Curves({ comparison, runs, metric }: { comparison: Comparison; runs: Run[]; metric?: string }) {
  const names = [...new Set(runs.flatMap((r) => r.history.metrics.map((m) => m.name)))];
  const chosen = names.includes(metric ?? "") ? metric! : ["loss_clean", "accuracy", "loss"].find((n) => names.includes(n)) ?? names[0];
  if (!chosen) return null;
  const hue = (r: Run) => Math.max(0, comparison.rows.findIndex((row) => row.runs.includes(r.entry.name)));
  const all = runs.flatMap((r) => curves(r, [chosen], `${r.entry.name}: `).map((l) => ({ ...l, colour: hue(r) })));
  const validated = all.filter((l) => l.dashed);
  const lines = runs.length > 3 && validated.length ? validated.map((l) => ({ ...l, dashed: false })) : all;
  return (
    <section class="card">
      <h2>Training</h2>
      <div class="controls"><label><span class="soft">number</span> <select value={chosen} onChange={(e) => setParams({ metric: e.currentTarget.value })}>{names.map((n) => <option key={n} value={n}>{n.replace(/_/g, " ")}</option>)}</select></label></div>
      <LineChart key={chosen} name={`Training, ${chosen}`} lines={lines} xLabel="step" yLabel={chosen.replace(/_/g, " ")} logY={chosen.startsWith("loss")} smoothing scales height={340} />
    </section>
  );
}
