import * as Plot from "@observablehq/plot";
import { useMemo, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { series as colourOf } from "../colours";
import { number, printable } from "../format";
import { Chart } from "./Chart";
import { Slider } from "./Slider";
import { Choice } from "./Tabs";
import { Explained } from "./Term";

export interface Line {
  label: string;
  x: readonly (number | null)[];
  y: readonly (number | null)[];
  /** Number of its colour, by default its place. */
  colour?: number;
  dashed?: boolean;
}

interface Props {
  name: string;
  lines: readonly Line[];
  xLabel: string;
  yLabel: string;
  logX?: boolean;
  logY?: boolean;
  /** Whether there is a slider that smooths the curves. */
  smoothing?: boolean;
  /** Whether the scales can be chosen. */
  scales?: boolean;
  height?: number;
  children?: ComponentChildren;
}

/** Points from which a curve is smoothed: a few that were measured on a whole split are left as they are. */
const MANY = 60;

interface Point { x: number; y: number; raw: number; label: string; line: number }

/** Curves over one pair of axes: hover for values, press a name to hide it. */
export function LineChart({ name, lines, xLabel, yLabel, logX = false, logY = false, smoothing, scales, height = 300, children }: Props) {
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [smooth, setSmooth] = useState(smoothing && lines.some((l) => l.x.length > MANY) ? 0.6 : 0);
  const [yScale, setYScale] = useState<"linear" | "log">(logY ? "log" : "linear");
  const [xScale, setXScale] = useState<"linear" | "log">(logX ? "log" : "linear");
  const data = useMemo(() => lines.map((l, i) => points(l, i, smooth, xScale === "log", yScale === "log")), [lines, smooth, xScale, yScale]);
  const drawn = data.filter((_, i) => !hidden.has(lines[i]!.label));
  const all = drawn.flat();
  const toggle = (label: string) => setHidden((now) => { const next = new Set(now); if (!next.delete(label)) next.add(label); return next; });
  const colour = (i: number) => colourOf(lines[i]!.colour ?? i);
  return (
    <Chart alt={`${name}: ${yLabel} over ${xLabel}. ${lines.map((l) => `${l.label} ends at ${number(l.y.at(-1))}`).slice(0, 8).join("; ")}.`}
      deps={[drawn, xScale, yScale]}
      options={(width) => ({
        height: width < 480 ? Math.min(height, 240) : height, marginLeft: 52, marginRight: 22, marginBottom: 34,
        x: { label: xLabel, type: xScale, labelAnchor: "right", ticks: xScale === "log" ? logTicks(all.map((p) => p.x)) : width < 480 ? 4 : 8, tickFormat: tick },
        y: { label: yLabel, type: yScale, grid: yScale === "linear", ticks: yScale === "log" ? [] : 6, tickFormat: tick, nice: yScale === "linear" },
        marks: [
          ...(yScale === "log" ? [Plot.gridY(logTicks(all.map((p) => p.y))), Plot.axisY(logTicks(all.map((p) => p.y)), { tickFormat: tick, label: null })] : []),
          ...drawn.flatMap((d) => d.length === 0 ? [] : [
            smooth > 0 ? Plot.line(d, { x: "x", y: "raw", stroke: colour(d[0]!.line), strokeOpacity: 0.22, strokeWidth: 1 }) : null,
            Plot.line(d, { x: "x", y: "y", stroke: colour(d[0]!.line), strokeWidth: 1.9, strokeDasharray: lines[d[0]!.line]!.dashed ? "5 4" : undefined }),
            d.length < 25 ? Plot.dot(d, { x: "x", y: "y", fill: colour(d[0]!.line), r: 2.6 }) : null,
          ]),
          Plot.ruleX(all, Plot.pointerX({ x: "x", maxRadius: Infinity, stroke: "var(--soft)", strokeOpacity: 0.5 })),
          Plot.dot(all, Plot.pointerX({ x: "x", y: "y", maxRadius: Infinity, r: 4, fill: (p: Point) => colour(p.line) })),
          Plot.tip(all, Plot.pointerX({ x: "x", y: "y", maxRadius: Infinity, fill: "var(--raised)", stroke: "var(--rule)", title: (p: Point) => said(p, drawn, lines, xLabel) })),
        ].filter((m) => m !== null),
      })}
      table={{
        name: `${name}, numbers`,
        columns: [{ title: "curve", value: (p: Point) => p.label }, { title: xLabel, value: (p: Point) => p.x, ascending: true }, { title: yLabel, value: (p: Point) => p.raw }],
        rows: data.flat(),
      }}>
      <div class="legend">
        {lines.map((l, i) => (
          <span key={l.label} class={`key ${hidden.has(l.label) ? "off" : ""}`}>
            <button type="button" class="swatch" aria-pressed={!hidden.has(l.label)} aria-label={`Show ${l.label}`} onClick={() => toggle(l.label)}>
              <i style={{ borderColor: colour(i), borderStyle: l.dashed ? "dashed" : "solid" }} />
            </button>
            <Explained text={printable(l.label)} />
          </span>
        ))}
      </div>
      {(smoothing || scales) && (
        <div class="controls">
          {scales && <Choice label="Scale of the heights" options={[["linear", "linear"], ["log", "log"]]} value={yScale} onChange={setYScale} />}
          {scales && <span class="inline"><span class="soft">{xLabel}</span><Choice label={`Scale of ${xLabel}`} options={[["linear", "linear"], ["log", "log"]]} value={xScale} onChange={setXScale} /></span>}
          {smoothing && <Slider label="smoothing" min={0} max={0.98} step={0.02} value={smooth} format={(v) => v.toFixed(2)} onChange={setSmooth} />}
        </div>
      )}
      {children}
    </Chart>
  );
}

/** Points that can be drawn, their heights smoothed by an exponential mean whose start is corrected. */
function points(line: Line, index: number, smooth: number, logX: boolean, logY: boolean): Point[] {
  const out: Point[] = [];
  let mean = 0, weight = 0;
  const keep = line.x.length > MANY ? smooth : 0;
  line.x.forEach((x, i) => {
    const y = line.y[i];
    if (x == null || y == null || (logX && x <= 0) || (logY && y <= 0)) return;
    mean = keep * mean + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    out.push({ x, y: mean / weight, raw: y, label: line.label, line: index });
  });
  return out;
}

/** What the note at a point says: every curve's value at the nearest place. */
function said(p: Point, drawn: Point[][], lines: readonly Line[], xLabel: string): string {
  const rows = drawn.filter((d) => d.length).map((d) => d.reduce((a, b) => (Math.abs(b.x - p.x) < Math.abs(a.x - p.x) ? b : a)));
  return [`${xLabel} ${number(p.x)}`, ...rows.slice(0, 12).map((r) => `${r.line === p.line ? "▸ " : "   "}${lines[r.line]!.label}  ${number(r.y)}`)].join("\n");
}

/** Round places on a logarithmic axis: 1, 2 and 5 of each decade, or of a short stretch equal steps. */
function logTicks(values: number[]): number[] {
  const low = Math.min(...values), high = Math.max(...values);
  if (!(low > 0) || high / low < 4) return high > low ? ticks(low, high, 5) : [low];
  const few = high / low > 1e3, out = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) for (const m of few ? [1] : [1, 2, 5]) out.push(Number((m * 10 ** p).toPrecision(3)));
  return out.filter((t) => t >= low * 0.999 && t <= high * 1.001);
}

/** Round places on an axis. */
export function ticks(low: number, high: number, about = 5): number[] {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((s) => s * power >= raw) ?? 10);
  const out = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) out.push(Math.abs(t) < step * 1e-9 ? 0 : Number(t.toPrecision(12)));
  return out;
}

export function tick(value: number | Date): string {
  const x = Number(value);
  if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) return x.toExponential(0).replace("e+", "e");
  return Math.abs(x) >= 1e4 ? `${x / 1e3}k` : String(Number(x.toPrecision(6)));
}
