import * as Plot from "@observablehq/plot";
import { useMemo } from "preact/hooks";
import { printable } from "../../format";
import { series } from "../../colours";
import type { StreamEdges } from "../../schema/circuits";
import { Chart } from "../../ui/Chart";

interface Point { method: string; percent: number; share: number }

/** Faithfulness over the size of circuits, a curve for each method, and ACDC's circuits as points. */
export function Faithfulness({ stream, title }: { stream: StreamEdges; title: string }) {
  const curves = useMemo(() => stream.curves.flatMap((c) => c.percents.map((percent, i): Point => ({ method: printable(c.method), percent: percent ?? NaN, share: c.faithfulness[i] ?? NaN }))), [stream]);
  const methods = stream.curves.map((c) => printable(c.method));
  const points = stream.circuits.filter((c) => c.faithfulness.value !== null && c.edges > 0)
    .map((c) => ({ method: printable(c.name), percent: (100 * c.edges) / stream.edges, share: c.faithfulness.value!, low: c.faithfulness.low ?? c.faithfulness.value!, high: c.faithfulness.high ?? c.faithfulness.value! }));
  if (!curves.length && !points.length) return <div><h3>{printable(title)}</h3><p class="soft">The logit difference may be that of the corrupt prompts: there is nothing to explain.</p></div>;
  const shares = [0, 1, ...curves.map((c) => c.share), ...points.flatMap((p) => [p.low, p.high])].map((x) => Math.min(2, Math.max(-1, x)));
  return (
    <div>
      <h3>{printable(title)}</h3>
      <Chart alt={`Faithfulness of circuits of the ${title} over their size, for ${methods.join(", ")}`} deps={[stream]}
        table={{ name: `Faithfulness, ${title}`, rows: [...curves, ...points], columns: [{ title: "circuit", value: (r: Point) => r.method }, { title: "edges, % of all", value: (r: Point) => r.percent }, { title: "faithfulness", value: (r: Point) => r.share }] }}
        options={(width) => ({
          height: Math.round(Math.min(330, Math.max(230, width * 0.55))), marginLeft: 46, marginRight: 12, clip: true,
          x: { type: "log", label: "edges, % of all →", tickFormat: (x: number) => `${x}`, ticks: width < 420 ? 3 : 6, domain: [Math.min(...curves.map((c) => c.percent), ...points.map((p) => p.percent)) * 0.9, 100] },
          y: { label: "↑ faithfulness", ticks: 5, domain: [Math.min(...shares) - 0.03, Math.max(...shares) + 0.05], grid: true },
          color: { legend: true, domain: methods, range: methods.map((m, i) => (m === "random" ? "var(--dead)" : series(i))) },
          marks: [
            Plot.ruleY([0, 1], { stroke: "var(--rule)" }),
            Plot.line(curves, { x: "percent", y: "share", stroke: "method", strokeWidth: 1.8, clip: true }),
            Plot.ruleX(points, { x: "percent", y1: "low", y2: "high", stroke: "var(--ink)", clip: true }),
            Plot.dot(points, { x: "percent", y: "share", r: 4.5, fill: "var(--ink)", stroke: "var(--card)", symbol: "diamond" }),
            Plot.tip([...curves, ...points], Plot.pointer({ x: "percent", y: "share", title: (p: Point) => `${p.method}\n${p.percent.toPrecision(3)} % of the edges\nfaithfulness ${p.share.toFixed(2)}` })),
          ],
        })}>
        <p class="soft">{points.length > 0 && "◆ ACDC's circuits with 95 % intervals over prompts. "}Curves: circuits of the largest scores by each method.</p>
      </Chart>
    </div>
  );
}
