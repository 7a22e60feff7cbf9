// What a page can do while the program that served it still answers: curves that grow, texts that the model reads.
import { useEffect, useState } from "preact/hooks";
import { theManifest, type Run } from "./data";
import type { History } from "./schema/explorer";

/** Whether a program answers, so that texts can be typed. */
export function isLive(): boolean {
  return theManifest().live !== null;
}

type Line = Record<string, number | string>;

interface RunState {
  checkpoint: number;
  lines: number;
  from: number;
  log: Line[];
  scored: number;
}

export interface LiveState {
  /** Newest checkpoint of the run. */
  checkpoint: number;
  /** Whether it was scored anew since the page was loaded. */
  rescored: boolean;
  /** Why the program does not answer; null while it does. */
  lost: string | null;
  /** Whether the log has grown in the last minute. */
  growing: boolean;
}

const EVERY_MS = 2500;

/** The run with its log as it grows, and how it stands; the run as it is where the page is a file. */
export function useLive(run: Run | null): { run: Run | null; state: LiveState | null } {
  const [now, setNow] = useState<{ of: Run | null; run: Run | null; state: LiveState | null }>({ of: run, run, state: null });
  useEffect(() => {
    setNow({ of: run, run, state: null });
    if (!run || !isLive()) return;
    let lines: Line[] = [], scored: number | undefined, ended = false, grownAt = 0, timer: ReturnType<typeof setTimeout> | undefined;
    const ask = async () => {
      try {
        if (!document.hidden) {
          const name = run.entry.name;
          const answer = await fetch(address("state", { after: JSON.stringify({ [name]: lines.length }) }));
          if (!answer.ok) throw new Error(await answer.text());
          const state = ((await answer.json()) as Record<string, RunState>)[name];
          if (ended || !state) return;
          const grown = state.log.length > 0 || state.from < lines.length;
          if (grown && lines.length) grownAt = Date.now();
          lines = [...lines.slice(0, state.from), ...state.log];
          scored ??= state.scored;
          const next = { checkpoint: state.checkpoint, rescored: state.scored !== scored, lost: null, growing: Date.now() - grownAt < 60_000 };
          setNow((before) => ({ of: run, run: grown ? { ...run, history: historyOf(lines) } : before.run, state: next }));
        }
      } catch (e) {
        if (!ended) setNow((before) => ({ ...before, state: { checkpoint: before.state?.checkpoint ?? 0, rescored: false, growing: false, lost: e instanceof Error ? e.message : String(e) } }));
      }
      if (!ended) timer = setTimeout(ask, EVERY_MS);
    };
    void ask();
    return () => { ended = true; clearTimeout(timer); };
  }, [run]);
  return now.of === run ? now : { run, state: null };
}

const MOST_POINTS = 1000;

/** Every logged number over steps, as the page's own data has it. */
function historyOf(lines: readonly Line[]): History {
  const logged = new Map<string, { name: string; split: string; points: Map<number, number> }>();
  for (const line of lines) {
    const { step, split, ...values } = line;
    if (typeof step !== "number" || (split !== "train" && split !== "valid")) continue;
    for (const [name, value] of Object.entries(values)) {
      if (typeof value !== "number") continue;
      const key = `${split} ${name}`;
      const series = logged.get(key) ?? { name, split, points: new Map<number, number>() };
      series.points.set(step, value);
      logged.set(key, series);
    }
  }
  return { metrics: [...logged.values()].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.split < b.split ? -1 : 1)).map(({ name, split, points }) => {
    const sorted = [...points].sort((a, b) => a[0] - b[0]);
    const size = Math.ceil(sorted.length / MOST_POINTS);
    const groups = Array.from({ length: Math.ceil(sorted.length / size) }, (_, i) => sorted.slice(i * size, (i + 1) * size));
    const mean = (axis: 0 | 1) => groups.map((g) => g.reduce((sum, p) => sum + p[axis], 0) / g.length);
    return { name, split, steps: mean(0), values: mean(1) };
  }) };
}

/** A text as the run's newest checkpoint reads it, with nodes of its graph switched off; data as the suite `texts` gives. */
export async function readText<T>(run: Run, text: string, off: readonly string[] = [], replacedBy: "mean" | "zero" = "mean"): Promise<T> {
  const answer = await fetch(address("read"), {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ run: run.entry.name, text, off, replaced_by: replacedBy }),
  }).catch(() => { throw new Error("jaxablate serve does not answer any more; start it again"); });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json() as Promise<T>;
}

/** Address of the program, with the page's token. */
function address(path: string, params: Record<string, string> = {}): string {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(params)) query.set(name, value);
  return `${path}?${query}`;
}
