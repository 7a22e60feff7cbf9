// Where heads look: a square of weights, thumbnails to choose a head by, and arcs over the text.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { RefObject } from "preact";
import { printable, visible } from "../../format";
import type { Pattern } from "./model";

/** Shade of a weight: small ones are lifted, for most are small. */
const lifted = (weight: number) => Math.min(1, Math.max(0, weight)) ** 0.6;
const LEAST_ARC = 0.02, MOST_NAMES = 26;

/** Paints shades in [0, 1], one canvas pixel each, row by row; the page scales them up. */
export function paint(canvas: HTMLCanvasElement, rows: number, columns: number, at: (row: number, column: number) => number): void {
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d");
  if (!pen || !rows || !columns) return;
  const [r = 63, g = 134, b = 221] = getComputedStyle(document.documentElement).getPropertyValue("--shade").match(/[0-9a-f]{2}/gi)?.map((x) => parseInt(x, 16)) ?? [];
  const image = pen.createImageData(columns, rows);
  for (let i = 0, at4 = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++, at4 += 4) {
      image.data[at4] = r;
      image.data[at4 + 1] = g;
      image.data[at4 + 2] = b;
      image.data[at4 + 3] = 255 * lifted(at(i, j));
    }
  }
  pen.putImageData(image, 0, 0);
}

function Painted({ pattern, deps }: { pattern: Pattern; deps: readonly unknown[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => { if (canvas.current) paint(canvas.current, pattern.T, pattern.T, pattern.at); }, deps as unknown[]);
  return <canvas ref={canvas} aria-hidden="true" />;
}

/** A button for each head with its pattern in small. */
export function Heads({ count, pattern, head, onHead, deps }: { count: number; pattern: (head: number) => Pattern | null; head: number; onHead: (head: number) => void; deps: readonly unknown[] }) {
  return (
    <div class="heads" role="group" aria-label="Head">
      {Array.from({ length: count }, (_, h) => {
        const found = pattern(h);
        return (
          <button type="button" key={h} aria-pressed={h === head} onClick={() => onHead(h)} aria-label={`head ${h}`}>
            {found && <Painted pattern={found} deps={[...deps, h]} />}<span>{h}</span>
          </button>
        );
      })}
    </div>
  );
}

/** The square of weights: a row for each token that looks, a column for each that is looked at. */
export function Matrix({ pattern, tokens, current, onPick, label, deps, symmetric = false }: {
  pattern: Pattern; tokens: readonly string[]; current: number; onPick: (query: number) => void; label: string; deps: readonly unknown[]; symmetric?: boolean;
}) {
  const [at, setAt] = useState<{ i: number; j: number } | null>(null);
  const box = useRef<HTMLDivElement>(null);
  const find = (e: MouseEvent) => {
    const frame = box.current!.getBoundingClientRect(), T = pattern.T;
    const cell = (x: number, size: number) => Math.min(T - 1, Math.max(0, Math.floor((x / size) * T)));
    return { i: cell(e.clientY - frame.top, frame.height), j: cell(e.clientX - frame.left, frame.width) };
  };
  const name = (i: number) => `“${visible(printable(tokens[i] ?? ""))}”`;
  return (
    <div class="matrix">
      <div class="rows">
        {pattern.T <= MOST_NAMES && <ol class="names" aria-hidden="true">{tokens.map((_, i) => <li key={i} class={i === current ? "current" : ""}>{visible(printable(tokens[i]!))}</li>)}</ol>}
        <div class="square" ref={box} role="img" style={{ maxWidth: `${Math.max(150, 30 * pattern.T)}px` }} aria-label={label} onMouseMove={(e) => setAt(find(e))} onMouseLeave={() => setAt(null)} onClick={(e) => onPick(find(e).i)}>
          <Painted pattern={pattern} deps={deps} />
          <i class="row" style={{ top: `${(100 * current) / pattern.T}%`, height: `${100 / pattern.T}%` }} />
          {at && <i class="cell" style={{ top: `${(100 * at.i) / pattern.T}%`, left: `${(100 * at.j) / pattern.T}%`, width: `${100 / pattern.T}%`, height: `${100 / pattern.T}%` }} />}
        </div>
      </div>
      <p class="soft reading" aria-live="off">
        {at ? <>{name(at.i)} {symmetric ? "and" : "looks at"} {name(at.j)}: <b>{(100 * pattern.at(at.i, at.j)).toFixed(1)} %</b></>
          : symmetric ? "Point at the square: a row and a column for each token." : "Rows look, columns are looked at. Point for a weight, click to take the row's token."}
      </p>
    </div>
  );
}

/** The other end of a token's strongest weights, as words. */
export function strongest(pattern: Pattern, query: number, count: number): { key: number; weight: number }[] {
  return Array.from({ length: pattern.T }, (_, key) => ({ key, weight: pattern.at(query, key) }))
    .filter((x) => x.weight >= LEAST_ARC).sort((a, b) => b.weight - a.weight).slice(0, count);
}

interface Arc { d: string; weight: number; name: string }
interface Pair { from: number; key: number; weight: number }
const MOST_ARCS = 40, ARCS_A_TOKEN = 2, LEAST_PAIR = 0.05;

/** Arcs over a text as wide and as dark as the weight: from one token to those it looks at, or between the strongest of all pairs. */
export function Arcs({ host, pattern, from, deps }: { host: RefObject<HTMLElement | null>; pattern: Pattern | null; from: number | "all" | null; deps: readonly unknown[] }) {
  const [arcs, setArcs] = useState<Arc[]>([]);
  const [resized, setResized] = useState(0);
  useEffect(() => {
    const watch = new ResizeObserver(() => setResized((n) => n + 1));
    if (host.current) watch.observe(host.current);
    return () => watch.disconnect();
  }, []);
  useLayoutEffect(() => {
    const pairs = !pattern || from === null ? [] : from === "all" ? allPairs(pattern) : strongest(pattern, from, MOST_ARCS).map((x) => ({ ...x, from })).filter((x) => pattern.causal || x.key !== from);
    setArcs(host.current ? drawn(host.current, pairs) : []);
  }, [from, resized, ...deps]);
  return (
    <svg class="arcs" aria-hidden="true">
      {arcs.map((a) => <path key={a.name} d={a.d} stroke-width={0.75 + 3.25 * a.weight} stroke-opacity={0.2 + 0.7 * lifted(a.weight)} />)}
    </svg>
  );
}

/** Pairs of different tokens by the larger of both directions' weights: so many a token, the strongest. */
function allPairs({ T, at }: Pattern): Pair[] {
  const pairs: Pair[] = [];
  for (let i = 0; i < T; i++) for (let j = i + 1; j < T; j++) pairs.push({ from: i, key: j, weight: Math.max(at(i, j), at(j, i)) });
  return pairs.filter((p) => p.weight >= LEAST_PAIR).sort((a, b) => b.weight - a.weight).slice(0, ARCS_A_TOKEN * T);
}

function drawn(host: HTMLElement, pairs: Pair[]): Arc[] {
  const frame = host.getBoundingClientRect();
  const top = (i: number) => {
    const box = host.querySelector(`[data-token="${i}"]`)?.getClientRects()[0];
    return box && { x: box.left + box.width / 2 - frame.left, y: box.top - frame.top + 2 };
  };
  return pairs.flatMap(({ from, key, weight }): Arc[] => {
    const start = top(from), end = top(key);
    if (!start || !end) return [];
    const rise = Math.min(start.y, end.y) - (key === from ? 15 : 8 + Math.min(34, 0.16 * Math.abs(end.x - start.x)));
    const [a, b] = key === from ? [start.x - 7, end.x + 7] : [start.x, end.x];
    return [{ name: `${from}-${key}`, weight, d: `M${start.x} ${start.y}C${a} ${rise} ${b} ${rise} ${end.x} ${end.y}` }];
  }).reverse();
}
