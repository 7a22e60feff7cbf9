import * as Plot from "@observablehq/plot";
import { number, printable } from "../format";
import type { HistogramGrid } from "../schema/results";
import { Chart } from "./Chart";
import { tick } from "./LineChart";
import { Explained } from "./Term";

interface Bin { from: number; to: number; low: number | null; high: number | null; count: number; label: string }

/** Small histograms side by side with one scale; what has a bar apart stands at the left of the axis. */
export function Histograms({ panel }: { panel: HistogramGrid }) {
  const most = Math.max(1, ...panel.histograms.flatMap((h) => [...h.counts, h.apart ?? 0]));
  const anyApart = panel.histograms.some((h) => h.apart !== null);
  return (
    <div class="multiples">
      {panel.histograms.map((h) => {
        const edges = h.edges.map((e) => e ?? NaN), total = h.counts.reduce((a, b) => a + b, 0) + (h.apart ?? 0);
        const bins: Bin[] = h.counts.map((count, i) => ({ from: i, to: i + 1, low: edges[i]!, high: edges[i + 1]!, count, label: `${number(edges[i])} to ${number(edges[i + 1])}` }));
        if (h.apart !== null) bins.unshift({ from: -2.4, to: -1.2, low: null, high: null, count: h.apart, label: h.apart_label || "apart" });
        const share = (n: number) => `${n.toLocaleString("en")} (${((100 * n) / Math.max(1, total)).toFixed(1)} %)`;
        const marks = axisPlaces(edges, panel.log_x);
        return (
          <div key={h.title} class="multiple">
            <h3><Explained text={printable(h.title)} /></h3>
            {(h.note || h.apart !== null) && <p class="soft">{[h.note, h.apart !== null && `${h.apart_label || "apart"}: ${share(h.apart)}`].filter(Boolean).join(" · ")}</p>}
            <Chart alt={`Histogram of ${panel.x_label}, ${h.title}: ${total.toLocaleString("en")} in all${h.apart ? `, ${h.apart} ${h.apart_label}` : ""}.`}
              deps={[h, most]}
              options={() => ({
                height: 150, marginLeft: 36, marginBottom: 30, marginRight: 8, marginTop: 8,
                x: { domain: [anyApart ? -2.7 : 0, h.counts.length], axis: null },
                y: { domain: [0, most], label: null, ticks: 3, grid: true, tickFormat: tick },
                marks: [
                  Plot.rectY(bins, { x1: "from", x2: "to", y: "count", insetLeft: 0.5, insetRight: 0.5, fill: (b: Bin) => (b.low === null ? "var(--dead)" : "var(--c0)") }),
                  Plot.axisX(marks.map((m) => m.at), { tickFormat: (_: unknown, i: number) => marks[i]!.text, tickSize: 4 }),
                  h.mark === null ? null : Plot.ruleX([position(h.mark, edges, panel.log_x)], { stroke: "var(--c1)", strokeDasharray: "4 3", strokeWidth: 1.6 }),
                  Plot.ruleY([0], { stroke: "var(--rule)" }),
                  Plot.tip(bins, Plot.pointerX({ x1: "from", x2: "to", y: "count", fill: "var(--raised)", stroke: "var(--rule)", title: (b: Bin) => `${b.label}\n${share(b.count)}` })),
                ].filter((m) => m !== null),
              })} />
          </div>
        );
      })}
      <p class="soft axis-name"><Explained text={panel.x_label} />{panel.log_x ? ", logarithmic" : ""}{panel.mark_label && <> · <i class="key-dash" /> {panel.mark_label}</>}</p>
    </div>
  );
}

/** Place of a value among the bins, in bins from the left. */
function position(value: number, edges: number[], log: boolean): number {
  const f = log ? Math.log : (x: number) => x;
  const i = Math.max(0, Math.min(edges.length - 2, edges.findIndex((e) => e > value) - 1));
  const low = f(edges[i]!), high = f(edges[i + 1]!);
  return Math.max(0, Math.min(edges.length - 1, i + (f(Math.max(value, Number.MIN_VALUE)) - low) / (high - low || 1)));
}

/** Places that are written under a histogram: powers of ten where it is logarithmic, else five of its edges. */
function axisPlaces(edges: number[], log: boolean): { at: number; text: string }[] {
  const low = edges[0]!, high = edges.at(-1)!;
  if (!log) return [0, 0.5, 1].map((s) => ({ at: s * (edges.length - 1), text: number(low + s * (high - low)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") }));
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first + 1) / 4));
  const out = [];
  for (let p = last; p >= first; p -= step) out.unshift({ at: position(10 ** p, edges, true), text: p >= -3 && p <= 4 ? String(Number((10 ** p).toPrecision(3))) : `1e${p}` });
  return out;
}
