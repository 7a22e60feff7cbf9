import { useState } from "preact/hooks";
import { series as colourOf } from "../colours";
import { estimate, hasInterval, number, printable, type EstimateLike } from "../format";
import { tick, ticks } from "./LineChart";
import { Choice } from "./Tabs";
import { Explained } from "./Term";

export interface Dot {
  label: string;
  estimate: EstimateLike;
  /** Single measurements behind it, for example one a seed. */
  points?: number[];
}

interface Props {
  name: string;
  dots: readonly Dot[];
  unit?: string;
  mark?: number | null;
  markLabel?: string;
  /** Whether labels are taken as they are, not split into groups. */
  flat?: boolean;
}

/** Numbers as dots with whiskers on one axis; those that share words before a comma stand together, each kind in its colour. */
export function DotChart({ name, dots, unit = "", mark = null, markLabel = "", flat = false }: Props) {
  const values = dots.flatMap((d) => [d.estimate.value, d.estimate.low, d.estimate.high, ...(d.points ?? [])]).filter((x): x is number => x !== null && Number.isFinite(x));
  if (mark !== null) values.push(mark);
  const least = Math.min(...values), most = Math.max(...values);
  const near = least > 0 && least > most / 3;
  const [from, setFrom] = useState<"zero" | "fit">(near ? "fit" : "zero");
  if (values.length === 0) return <p class="soft">No number.</p>;
  const start = from === "zero" ? Math.min(0, least) : least, end = from === "zero" ? Math.max(0, most) : most;
  const room = (end - start || Math.abs(end) || 1) * 0.06;
  const axis = { low: start === 0 ? 0 : start - room, high: end === 0 ? 0 : end + room };
  const at = (x: number) => `${(100 * (x - axis.low)) / (axis.high - axis.low)}%`;
  const groups = flat ? dots.map((d) => ({ title: d.label, parts: [{ kind: "", dot: d }] })) : grouped(dots);
  const kinds = [...new Set(groups.flatMap((g) => g.parts.map((p) => p.kind)))];
  const colour = (kind: string) => (kinds.length > 1 ? colourOf(kinds.indexOf(kind)) : "var(--c0)");
  return (
    <figure class="dots" aria-label={`${name}${unit ? `, in ${unit}` : ""}`}>
      {kinds.length > 1 && kinds.some(Boolean) && groups.length > 1 && groups.some((g) => g.parts.length > 1) && (
        <div class="legend">{kinds.map((k) => <span class="key" key={k}><i class="dot" style={{ background: colour(k) }} /><Explained text={printable(k || "itself")} /></span>)}</div>
      )}
      <div class="dot-rows">
        {groups.map((g) => (
          <div class="dot-group" key={g.title}>
            {g.parts.map((p, i) => (
              <div class="dot-row" key={p.dot.label}>
                <span class="dot-label">{i === 0 || g.parts.length === 1 ? <Explained text={printable(g.title)} /> : ""}{g.parts.length === 1 && p.kind ? `, ${printable(p.kind)}` : ""}
                  {g.parts.length > 1 && <span class="narrow-kind soft">{i === 0 ? " · " : ""}{printable(p.kind || "itself")}</span>}</span>
                <span class="track" title={`${p.dot.label}: ${estimate(p.dot.estimate)}`}>
                  {axis.low < 0 && axis.high > 0 && <i class="zero" style={{ left: at(0) }} />}
                  {mark !== null && <i class="mark" style={{ left: at(mark) }} />}
                  {p.dot.points?.map((x, j) => <i key={j} class="point" style={{ left: at(x), background: colour(p.kind) }} />)}
                  {hasInterval(p.dot.estimate) && <i class="whisker" style={{ left: at(p.dot.estimate.low), width: `calc(${at(p.dot.estimate.high)} - ${at(p.dot.estimate.low)})`, color: colour(p.kind) }} />}
                  {p.dot.estimate.value !== null && <i class="dot" style={{ left: at(p.dot.estimate.value), background: colour(p.kind) }} />}
                </span>
                <span class="dot-value">{number(p.dot.estimate.value, p.dot.estimate.low, p.dot.estimate.high)}</span>
              </div>
            ))}
          </div>
        ))}
        <div class="dot-row axis" aria-hidden="true"><span /><span class="track">{ticks(axis.low, axis.high).map((t) => <i key={t} style={{ left: at(t) }}>{tick(t)}</i>)}</span><span class="dot-value soft">{unit}</span></div>
      </div>
      <div class="controls">
        {start > 0 || near || from === "zero" && least > 0 ? <Choice label="Axis" options={[["fit", "fit"], ["zero", "from 0"]]} value={from} onChange={setFrom} /> : null}
        {mark !== null && <span class="soft"><i class="key-dash" /> {markLabel || number(mark)}</span>}
      </div>
    </figure>
  );
}

interface Group { title: string; parts: { kind: string; dot: Dot }[] }

/** Dots whose labels differ only in what follows the last comma or colon, together where that makes few kinds. */
function grouped(dots: readonly Dot[]): Group[] {
  const split = dots.map((d) => {
    const i = Math.max(d.label.lastIndexOf(", "), d.label.lastIndexOf(": "));
    return i < 0 ? { title: d.label, kind: "", dot: d } : { title: d.label.slice(0, i), kind: d.label.slice(i + 2), dot: d };
  });
  const titles = new Set(split.map((s) => s.title)), kinds = new Set(split.map((s) => s.kind));
  if (titles.size > 0.7 * dots.length || kinds.size > 6 || titles.size === 1) return dots.map((d) => ({ title: d.label, parts: [{ kind: "", dot: d }] }));
  return [...titles].map((title) => ({ title, parts: split.filter((s) => s.title === title) }));
}
