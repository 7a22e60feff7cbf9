import { useRef } from "preact/hooks";
import { usePromise, type Run } from "../../data";
import { printable, visible } from "../../format";
import { readText } from "../../live";
import { href, setParams, type Route } from "../../route";
import type { LanguageTexts } from "../../schema/texts";
import { candidatesAt, numbers, words } from "../text/model";
import { SwitchedOff, switches, toggled, TypedBox, useTyped } from "./Typed";

const START = "Once upon a time, there was a";

/** Heads and MLPs that are switched on and off, and what the model then says after a typed text. */
export function Switches({ run, route, drawing = false }: { run: Run; route: Route; drawing?: boolean }) {
  const { off, by } = switches(route), text = route.params.typed ?? START;
  const whole = usePromise(() => readText<LanguageTexts>(run, text), [run.entry.name, text]);
  const changed = useTyped<LanguageTexts>(run, off.length ? text : undefined, off, by);
  const kept = useRef<LanguageTexts | null>(null);
  if (changed.state === "ready") kept.current = changed.value;
  const failed = [whole, changed].find((x) => x.state === "failed");
  const waits = whole.state === "loading" || changed.state === "loading";
  return (
    <section class="card switches" aria-label="Switch nodes off">
      <h2>Switch nodes off</h2>
      <p class="soft">The newest checkpoint reads a text of yours with and without parts of it. Press a node to switch it off or on.</p>
      <TypedBox route={route} otherwise={START} said={failed?.state === "failed" ? { state: "failed", why: failed.why } : waits ? { state: "reading" } : undefined} />
      <Nodes run={run} off={off} />
      {drawing && <label class="check"><input type="checkbox" checked={route.params.press === "switch"} onChange={(e) => setParams({ press: e.currentTarget.checked ? "switch" : undefined })} /> pressing a node of the drawing above switches it, too</label>}
      <SwitchedOff route={route} />
      {whole.state === "ready" && <Difference whole={whole.value} after={off.length ? kept.current : null} waits={changed.state === "loading"} />}
      {whole.state === "ready" && <p><a href={href("text", [], { run: route.params.run, typed: text, off: off.join(",") || undefined, by: route.params.by })}>This text token by token →</a></p>}
    </section>
  );
}

/** Every head and MLP, layer by layer, as a switch. */
function Nodes({ run, off }: { run: Run; off: string[] }) {
  const model = run.results.config.model as { n_layers: number; n_heads: number };
  const node = (name: string, label: string) => (
    <button type="button" key={name} aria-pressed={!off.includes(name)} aria-label={name} title={`${name}: ${off.includes(name) ? "off" : "on"}`} onClick={() => setParams({ off: toggled(off, name) })}>{label}</button>
  );
  return (
    <div class="node-switches" role="group" aria-label="Nodes">
      {Array.from({ length: model.n_layers }, (_, i) => (
        <div key={i}><span class="soft">layer {i}</span>{Array.from({ length: model.n_heads }, (_, h) => node(`A${i}.${h}`, `A${i}.${h}`))}{node(`MLP ${i}`, `MLP ${i}`)}</div>
      ))}
    </div>
  );
}

interface Row { token: string; whole: number; off: number | null }

/** What each stream holds likely after the text, with everything on and with nodes off. */
function Difference({ whole, after, waits }: { whole: LanguageTexts; after: LanguageTexts | null; waits: boolean }) {
  return (
    <div class={`difference ${waits ? "waits" : ""}`}>
      {whole.streams.map((stream) => {
        const rows = likely(whole, after, stream);
        const most = Math.max(...rows.flatMap((r) => [r.whole, r.off ?? 0]), 1e-9);
        return (
          <div key={stream}>
            <h3>{whole.streams.length > 1 ? `${stream} stream` : "next token"} <span class="soft">loss {loss(whole, stream)}{after && <> → <b>{loss(after, stream)}</b></>}</span></h3>
            <table class="unit-bars">
              <thead><tr><th scope="col">next token</th><th scope="col">whole</th>{after && <th scope="col">switched off</th>}</tr></thead>
              <tbody>{rows.map((r) => (
                <tr key={r.token}><th scope="row"><code>{visible(printable(r.token))}</code></th><td><Share value={r.whole} most={most} /></td>{after && <td><Share value={r.off} most={most} changed /></td>}</tr>
              ))}</tbody>
            </table>
          </div>
        );
      })}
    </div>
  );
}

function Share({ value, most, changed }: { value: number | null; most: number; changed?: boolean }) {
  return <span class="unit-bar"><span><i class={changed ? "minus" : ""} style={{ width: `${(100 * (value ?? 0)) / most}%` }} /></span><span>{value === null ? "less" : value < 0.0005 ? "<0.1 %" : `${(100 * value).toFixed(1)} %`}</span></span>;
}

/** The likeliest next tokens of both readings after the last token; null where one has not told a token's share. */
function likely(whole: LanguageTexts, changed: LanguageTexts | null, stream: string): Row[] {
  const of = (texts: LanguageTexts) => {
    const text = texts.texts[0]!, last = words(texts.vocabulary, text.tokens).length - 1;
    const at = candidatesAt(texts, text, last);
    return new Map(at.map((c) => [c.token, c.probability[stream] ?? 0]));
  };
  const before = of(whole), after = changed && of(changed);
  const tokens = [...new Set([...before.keys(), ...(after?.keys() ?? [])])];
  const row = (token: string): Row => ({ token, whole: before.get(token) ?? 0, off: after ? after.get(token) ?? null : null });
  return tokens.map(row).sort((a, b) => Math.max(b.whole, b.off ?? 0) - Math.max(a.whole, a.off ?? 0)).slice(0, 8);
}

function loss(texts: LanguageTexts, stream: string): string {
  const values = numbers(texts.texts[0]!.loss[stream]!).filter(Number.isFinite);
  return (values.reduce((a, b) => a + b, 0) / Math.max(1, values.length)).toFixed(3);
}
