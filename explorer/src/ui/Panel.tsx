import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { sequential } from "../colours";
import { number, printable, visible } from "../format";
import { href } from "../route";
import type { Beside, CircuitGraph, Grid, Heatmap, Network, Passages, Series, SuiteRecord } from "../schema/results";
import { DataTable, type CellValue } from "./DataTable";
import { DotChart } from "./DotChart";
import { Histograms } from "./Histograms";
import { LineChart, type Line } from "./LineChart";

export type Panel = SuiteRecord["panels"][number];

/** What a suite shows, drawn by its kind. `numbers` is the table of the same figures, folded away below a picture. */
export function PanelBody({ panel, numbers }: { panel: Panel; numbers?: Grid }) {
  return (
    <>
      {body(panel)}
      {numbers && (
        <Folded summary="In numbers">
          {numbers.caption && <p class="soft">{printable(numbers.caption)}</p>}
          <GridTable panel={numbers} />
        </Folded>
      )}
    </>
  );
}

function body(panel: Panel): ComponentChildren {
  switch (panel.kind) {
    case "grid": return <GridTable panel={panel} />;
    case "bars": return <DotChart name={panel.title} unit={panel.unit} dots={panel.bars} mark={panel.mark} markLabel={panel.mark_label} />;
    case "curves": return <LineChart name={panel.title} lines={kin(panel.series)} xLabel={panel.x_label} yLabel={panel.y_label} logX={panel.log_x} logY={panel.log_y} scales={panel.series.some((s) => s.x.length > 20)} />;
    case "histograms": return <Histograms panel={panel} />;
    case "passages": return <PassageList panel={panel} />;
    case "heatmap": return <HeatmapTable panel={panel} />;
    case "network": return <ArcDiagram panel={panel} />;
    case "beside": return <SideBySide panel={panel} />;
    case "circuit": return <EdgeList panel={panel} />;
  }
}

/** Curves of which "x, y" has the colour of "x", dashed, where there is an "x". */
function kin(lines: readonly Series[]): Line[] {
  const stems = lines.map((l) => l.label.split(", ")[0]!);
  const own = [...new Set(stems)].filter((s) => lines.some((l) => l.label === s));
  return lines.map((l, i) => (own.includes(stems[i]!) ? { ...l, colour: own.indexOf(stems[i]!), dashed: l.label !== stems[i] } : { ...l, colour: own.length + i }));
}

/** Something that is drawn only once it is opened. */
export function Folded({ summary, children, open: start = false }: { summary: ComponentChildren; children: ComponentChildren; open?: boolean }) {
  const [open, setOpen] = useState(start);
  return <details class="numbers" open={open} onToggle={(e) => setOpen(e.currentTarget.open)}><summary>{summary}</summary>{open && children}</details>;
}

function GridTable({ panel }: { panel: Grid }) {
  const seen = new Map<string, number>();
  const columns = panel.columns.map((title, j) => {
    const n = (seen.get(title) ?? 0) + 1;
    seen.set(title, n);
    return { title, value: (row: CellValue[]) => row[j] ?? null };
  });
  return <DataTable name={panel.title} columns={columns} rows={panel.rows as CellValue[][]} height={420} />;
}

function PassageList({ panel }: { panel: Passages }) {
  return (
    <div class="passages">
      {panel.passages.map((p, i) => (
        <blockquote key={i}>
          <p class="given">{printable(p.given)}</p>
          <dl>{p.said.map(([voice, text], j) => [<dt key={`${j}v`}>{printable(voice)}</dt>, <dd key={`${j}t`}>{prose(text) || <span class="soft">(ends at once)</span>}</dd>])}</dl>
        </blockquote>
      ))}
    </div>
  );
}

function prose(text: string): string {
  return printable(text.trim().replace(/\n\s*\n/g, "\n\n"));
}

/** Rows of shades. The value under the pointer, or of the cell that has the focus, is written above. */
function HeatmapTable({ panel, most }: { panel: Heatmap; most?: number }) {
  const [at, setAt] = useState<[number, number] | null>(null);
  const flat = panel.values.flat().filter((x): x is number => x !== null);
  const least = Math.min(0, ...flat), top = most ?? Math.max(...flat, least + 1e-12);
  const width = panel.values[0]?.length ?? 0;
  const column = (j: number) => panel.columns[j] ?? `${panel.x_label.replace(/s$/, "")} ${j}`;
  const said = at ? `${visible(printable(panel.rows[at[0]]!))} × ${printable(column(at[1]))}: ${number(panel.values[at[0]]![at[1]])}` : `${panel.rows.length} rows × ${/^\d/.test(panel.x_label) ? "" : `${width.toLocaleString("en")} `}${panel.x_label}; shade: ${panel.value_label}, up to ${number(top)}`;
  const named = panel.columns.length > 0 && width <= 24;
  return (
    <div class="heatmap" role="img" aria-label={`Heat map of ${panel.value_label}: ${panel.rows.length} rows, ${width} ${panel.x_label}.`}>
      <p class="soft said" aria-live="off">{said}</p>
      <div class="scroll" tabIndex={0} role="group" aria-label="Heat map">
        <table class="heat" onMouseLeave={() => setAt(null)}>
          {named && <thead><tr><td />{panel.columns.map((c, j) => <th key={j} scope="col"><span>{printable(c)}</span></th>)}{panel.bars.length > 0 && <th scope="col"><span>{panel.bar_label}</span></th>}</tr></thead>}
          <tbody>
            {panel.values.map((row, i) => (
              <tr key={i}>
                <th scope="row" class={at?.[0] === i ? "on" : ""}>{visible(printable(panel.rows[i]!))}</th>
                {row.map((v, j) => <td key={j} style={{ backgroundColor: sequential(((v ?? 0) - least) / (top - least)), minWidth: width > 60 ? "4px" : width > 24 ? "12px" : "34px" }} onMouseEnter={() => setAt([i, j])} />)}
                {panel.bars.length > 0 && <td class="row-bar"><i style={{ "--part": `${100 * (panel.bars[i] ?? 0)}%` }} title={`${panel.bar_label}: ${number(panel.bars[i])}`} /></td>}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {panel.bars.length > 0 && !named && <p class="soft">Bars at the right: {panel.bar_label}.</p>}
    </div>
  );
}

/** Nodes in reading order with an arc for each tie; those of the node under the pointer stand out. */
function ArcDiagram({ panel, most }: { panel: Network; most?: number }) {
  const [at, setAt] = useState<number | null>(null);
  const widths = panel.nodes.map((n) => Math.max(26, visible(n.label).length * 8 + 14));
  const xs = widths.map((w, i) => widths.slice(0, i).reduce((a, b) => a + b, 0) + w / 2);
  const width = widths.reduce((a, b) => a + b, 0) + 8;
  const top = most ?? Math.max(1e-12, ...panel.edges.map((e) => e.weight ?? 0));
  const reach = Math.max(...panel.edges.map((e) => xs[e.second]! - xs[e.first]!), 40);
  const height = Math.min(180, reach / 2 + 20);
  const ties = at === null ? null : panel.edges.filter((e) => e.first === at || e.second === at);
  const said = at === null ? `${panel.edges.length} tie${panel.edges.length === 1 ? "" : "s"} between ${panel.nodes.length} tokens; width: ${panel.weight_label}; dots: ${panel.size_label}`
    : `${visible(printable(panel.nodes[at]!.label))} (${number(panel.nodes[at]!.size)}): ${ties!.map((e) => `${visible(printable(panel.nodes[e.first === at ? e.second : e.first]!.label))} ${number(e.weight)}`).join(", ") || "no tie"}`;
  return (
    <div class="network">
      <p class="soft said">{said}</p>
      <div class="scroll" tabIndex={0} role="group" aria-label={panel.title}>
        <svg width={width} height={height + 46} role="img" aria-label={`${panel.title}: ${said}`}>
          {panel.edges.map((e, i) => {
            const a = xs[e.first]!, b = xs[e.second]!, on = at === null || e.first === at || e.second === at;
            const strength = (e.weight ?? 0) / top;
            return <path key={i} d={`M${a} ${height}Q${(a + b) / 2} ${height - Math.min(2 * height - 12, b - a)} ${b} ${height}`} fill="none" stroke="var(--c0)" stroke-width={0.6 + 3.2 * strength} stroke-opacity={on ? 0.2 + 0.7 * strength : 0.05} />;
          })}
          {panel.nodes.map((n, i) => (
            <g key={i} onMouseEnter={() => setAt(i)} onMouseLeave={() => setAt(null)}>
              <rect x={xs[i]! - widths[i]! / 2} y={height - 10} width={widths[i]} height={56} fill="transparent" />
              <circle cx={xs[i]} cy={height + 8} r={2 + 5 * Math.sqrt(Math.max(0, n.size ?? 0))} fill="var(--c1)" />
              <text x={xs[i]} y={height + 34} text-anchor="middle" font-size="13" fill="var(--ink)" font-weight={at === i ? 650 : 400}>{visible(printable(n.label))}</text>
            </g>
          ))}
        </svg>
      </div>
    </div>
  );
}

function SideBySide({ panel }: { panel: Beside }) {
  const maps = panel.panels.filter((p): p is Heatmap => p.kind === "heatmap"), nets = panel.panels.filter((p): p is Network => p.kind === "network");
  const most = Math.max(1e-12, ...maps.flatMap((m) => m.values.flat()).map((x) => x ?? 0), ...nets.flatMap((n) => n.edges.map((e) => e.weight ?? 0)));
  return (
    <div class="beside">
      {panel.panels.map((p, i) => (
        <div key={i}>
          <h3>{printable(panel.labels[i]!)}</h3>
          {p.kind === "heatmap" ? <HeatmapTable panel={p} most={most} /> : <ArcDiagram panel={p} most={most} />}
        </div>
      ))}
    </div>
  );
}

function EdgeList({ panel }: { panel: CircuitGraph }) {
  const rows = panel.edges.map((e) => ({ from: panel.nodes[e.source]!.name, to: `${panel.nodes[e.destination]!.name}${e.port ? `.${e.port}` : ""}`, score: e.score === null ? null : (e.negative ? -1 : 1) * Math.abs(e.score) }));
  return (
    <>
      <p><a href={href("circuit")}>See it drawn in the view Circuit</a>: {panel.nodes.length} nodes, {panel.edges.length} edges.</p>
      <DataTable name={panel.title} height={360} rows={rows} columns={[{ title: "from", value: (r) => r.from }, { title: "to", value: (r) => r.to }, { title: panel.score_label, value: (r) => r.score }]} />
    </>
  );
}
