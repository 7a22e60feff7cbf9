import { useEffect, useState } from "preact/hooks";
import { usePromise, type Run } from "../../data";
import { readText } from "../../live";
import { setParams, type Route } from "../../route";
import type { Texts } from "../../schema/texts";
import { Choice } from "../../ui/Tabs";
import "./live.css";

export type ReplacedBy = "mean" | "zero";

/** Nodes that an address switches off, and what stands in their place. */
export function switches(route: Route): { off: string[]; by: ReplacedBy } {
  return { off: (route.params.off ?? "").split(",").filter(Boolean), by: route.params.by === "zero" ? "zero" : "mean" };
}

export function toggled(off: readonly string[], node: string): string | undefined {
  const next = off.includes(node) ? off.filter((n) => n !== node) : [...off, node];
  return next.join(",") || undefined;
}

/** A typed text as the run's newest checkpoint reads it. */
export function useTyped<T extends Texts = Texts>(run: Run, text: string | undefined, off: readonly string[], by: ReplacedBy) {
  return usePromise(() => (text ? readText<T>(run, text, off, by) : null), [run.entry.name, text, off.join(","), by]);
}

/** A field for a text of the reader's own; the address holds what was typed. */
export function TypedBox({ route, otherwise, said }: { route: Route; otherwise?: string; said?: { state: "reading" | "failed"; why?: string } }) {
  const typed = route.params.typed ?? otherwise ?? "";
  const [text, setText] = useState(typed);
  useEffect(() => setText(typed), [typed]);
  const ask = () => setParams({ typed: text || undefined, position: undefined }, false);
  return (
    <form class="typed" onSubmit={(e) => { e.preventDefault(); ask(); }}>
      <label for="typed-text">A text of your own</label>
      <textarea id="typed-text" rows={2} spellcheck={false} value={text} placeholder="Once upon a time, there was a" onInput={(e) => setText(e.currentTarget.value)}
        onKeyDown={(e) => { if (e.key === "Enter" && !e.shiftKey) { e.preventDefault(); ask(); } }} />
      <button type="submit" class="primary">Read</button>
      <p class={said?.state === "failed" ? "problem" : "soft"} role="status">{said?.state === "reading" ? "The model reads it ..." : said?.state === "failed" ? said.why : ""}</p>
    </form>
  );
}

/** Which nodes are off, with a way to switch them on again. */
export function SwitchedOff({ route }: { route: Route }) {
  const { off, by } = switches(route);
  if (!off.length) return null;
  return (
    <p class="switched-off"><span class="soft">switched off</span>
      {off.map((n) => <button type="button" key={n} class="chip" aria-label={`switch ${n} on`} title="switch on" onClick={() => setParams({ off: toggled(off, n) })}>{n} ×</button>)}
      <Choice label="Replaced by" options={[["mean", "by their mean"], ["zero", "by zeros"]]} value={by} onChange={(x) => setParams({ by: x === "mean" ? undefined : x })} />
      <button type="button" class="quiet" onClick={() => setParams({ off: undefined })}>Switch all on</button>
    </p>
  );
}
