import { useEffect, useMemo, useState } from "preact/hooks";
import { heading, printable } from "../format";
import { href, setParams } from "../route";
import type { Grid, Results, SuiteRecord } from "../schema/results";
import type { ViewProps } from "../view";
import { DataTable } from "../ui/DataTable";
import { Note } from "../ui/Note";
import { Folded, PanelBody, type Panel } from "../ui/Panel";
import { Explained } from "../ui/Term";
import { Value } from "../ui/Value";

const NUMBERS = ", in numbers";

/** All figures and panels of one suite at a time; a search finds them in all. */
export function Measurements({ run, route }: ViewProps) {
  const suites = Object.values(run.results.suites).filter((s) => s.figures.length + s.panels.length > 0);
  const words = route.params.find ?? "";
  const current = suites.find((s) => s.suite === route.path[0]) ?? suites[0];
  if (!current) return <Note title="Nothing is measured yet">Run <code>jaxablate score --workdir DIR</code>.</Note>;
  const link = (suite: string, find?: string) => href("measurements", [suite], { run: route.params.run, find });
  return (
    <div class="with-side">
      <aside class="side" aria-label="Suites">
        <input type="search" placeholder="Find a figure or panel" aria-label="Find a figure or panel in all suites" value={words} onInput={(e) => setParams({ find: e.currentTarget.value })} />
        <nav class="suites" aria-label="Suites">
          {suites.map((s) => (
            <a key={s.suite} href={link(s.suite)} aria-current={!words && s === current ? "page" : undefined}>
              {title(s.suite)} <span class="soft">{s.figures.length + s.panels.length}</span>
            </a>
          ))}
        </nav>
      </aside>
      <div class="body">
        {words ? <Found results={run.results} words={words} link={link} /> : <Suite key={`${run.entry.name} ${current.suite}`} record={current} results={run.results} at={route.params.panel} link={(panel) => href("measurements", [current.suite], { run: route.params.run, panel })} />}
      </div>
    </div>
  );
}

export function title(suite: string): string {
  return printable(suite.length > 3 ? suite[0]!.toUpperCase() + suite.slice(1) : suite.toUpperCase());
}

function Suite({ record, results, at, link }: { record: SuiteRecord; results: Results; at?: string; link: (panel: string) => string }) {
  const panels = useMemo(() => joined(record.panels), [record]);
  const [closed, setClosed] = useState<ReadonlySet<string>>(new Set());
  const every = closed.size < panels.length;
  const jump = (name: string) => document.getElementById(anchor(name))?.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  useEffect(() => { if (at) jump(at); }, [at]);
  return (
    <>
      <header class="suite-head">
        <div><h1>{title(record.suite)}</h1><p class="soft">{printable(record.about)}</p></div>
        {panels.length > 1 && <button type="button" class="quiet" onClick={() => setClosed(every ? new Set(panels.map((p) => p.panel.title)) : new Set())}>{every ? "Fold all" : "Unfold all"}</button>}
      </header>
      {panels.length > 2 && <nav class="jump" aria-label="Panels of this suite">{panels.map(({ panel }) => <a key={panel.title} href={link(panel.title)} onClick={() => jump(panel.title)}>{printable(panel.title)}</a>)}</nav>}
      {record.figures.length > 0 && <section class="card"><h2>Figures</h2><Figures record={record} /></section>}
      <div class="panels">
        {panels.map(({ panel, numbers }, i) => (
          <details key={`${i} ${panel.title}`} id={anchor(panel.title)} class={`card panel ${wide(panel) ? "wide" : ""}`} open={!closed.has(panel.title)}
            onToggle={(e) => { const open = e.currentTarget.open; setClosed((now) => { const next = new Set(now); if (open) next.delete(panel.title); else next.add(panel.title); return next; }); }}>
            <summary><h2>{printable(panel.title)}</h2></summary>
            {panel.caption && <p class="about">{printable(panel.caption)}</p>}
            {!closed.has(panel.title) && <PanelBody panel={panel} numbers={numbers} />}
          </details>
        ))}
      </div>
      <Conditions record={record} results={results} />
    </>
  );
}

function anchor(name: string): string {
  return `panel-${name.replace(/[^\p{L}\p{N}]+/gu, "-")}`;
}

function wide(panel: Panel): boolean {
  switch (panel.kind) {
    case "grid": return panel.columns.length > 5;
    case "bars": return panel.bars.length > 8;
    case "heatmap": return (panel.values[0]?.length ?? 0) > 24;
    case "network": return panel.nodes.length > 14;
    default: return true;
  }
}

/** Panels, those that hold another one's numbers under it. */
function joined(panels: readonly Panel[]): { panel: Panel; numbers?: Grid }[] {
  const grids = new Map(panels.filter((p): p is Grid => p.kind === "grid" && p.title.endsWith(NUMBERS)).map((p) => [stem(p.title), p]));
  const out: { panel: Panel; numbers?: Grid }[] = [];
  for (const panel of panels) {
    if (panel.kind === "grid" && grids.get(stem(panel.title)) === panel && panels.some((p) => p !== panel && p.title.startsWith(stem(panel.title)))) continue;
    const key = [...grids.keys()].find((k) => panel.kind !== "grid" && panel.title.startsWith(k));
    out.push({ panel, numbers: key === undefined ? undefined : grids.get(key) });
  }
  return out;
}

function stem(name: string): string {
  return name.endsWith(NUMBERS) ? name.slice(0, -NUMBERS.length) : name;
}

function Figures({ record }: { record: SuiteRecord }) {
  return (
    <DataTable name={`${record.suite} figures`} rows={record.figures} height={460} columns={[
      { title: "figure", value: (f) => heading(f.name, f.unit, f.better), show: (f) => <><Explained text={f.name} /> <span class="soft">{heading("", f.unit, f.better)}</span></> },
      { title: "value", value: (f) => f.estimate, show: (f) => <Value estimate={f.estimate} /> },
      { title: "interval over", value: (f) => (f.estimate.low === null ? "" : [f.estimate.n?.toLocaleString("en"), f.estimate.how].filter(Boolean).join(", ")) },
    ]} />
  );
}

function Conditions({ record, results }: { record: SuiteRecord; results: Results }) {
  const p = record.provenance;
  const options = Object.entries(record.options);
  return (
    <section class="card conditions">
      <Folded summary={`Conditions: ${record.wall_seconds === null ? "" : `${record.wall_seconds.toFixed(1)} s, `}${p.device}, ${p.date}`}>
        <dl class="facts">
          <dt>revision</dt><dd><code>{p.revision ?? "unknown"}</code></dd>
          <dt>parameters</dt><dd><code>{results.params_digest}</code> at step {results.step.toLocaleString("en")}</dd>
          <dt>evaluation data</dt><dd><code>{results.data_hash.slice(0, 16)}</code></dd>
          {options.map(([k, v]) => [<dt key={k}>{k}</dt>, <dd key={`${k}v`}>{printable(typeof v === "string" ? v : JSON.stringify(v))}</dd>])}
          <dt>versions</dt><dd>{Object.entries(p.versions).map(([k, v]) => `${k} ${v}`).join(", ")}</dd>
        </dl>
      </Folded>
    </section>
  );
}

/** Figures and panels of all suites that have these words. */
function Found({ results, words, link }: { results: Results; words: string; link: (suite: string, find?: string) => string }) {
  const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (text: string) => parts.every((p) => text.toLowerCase().includes(p));
  const found = Object.values(results.suites).map((record) => ({
    record,
    figures: record.figures.filter((f) => has(`${record.suite} ${f.name}`)),
    panels: joined(record.panels).filter(({ panel }) => has(`${record.suite} ${panel.title} ${panel.caption}`)),
  })).filter((x) => x.figures.length + x.panels.length > 0);
  if (!found.length) return <Note title="Nothing found">No figure or panel has the words “{words}”.</Note>;
  return (
    <>
      {found.map(({ record, figures, panels }) => (
        <section key={record.suite} class="card">
          <h2><a href={link(record.suite)}>{title(record.suite)}</a></h2>
          {figures.length > 0 && <Figures record={{ ...record, figures }} />}
          {panels.map(({ panel, numbers }) => <Folded key={panel.title} summary={<>{printable(panel.title)}</>} open={panels.length < 2}><PanelBody panel={panel} numbers={numbers} /></Folded>)}
        </section>
      ))}
    </>
  );
}
