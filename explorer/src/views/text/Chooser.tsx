import { useId, useState } from "preact/hooks";
import { printable } from "../../format";
import { go, href, type Route } from "../../route";
import { search, words } from "./model";
import type { Vocabulary, Packed } from "../../schema/texts";

interface Choosable {
  vocabulary: Vocabulary;
  texts: { title: string; tokens: Packed }[];
}

/** Which text of the list an address names; the first for an address without one. */
export function chosenText(texts: { texts: unknown[] }, route: Route): number {
  const asked = Number(route.path[0] ?? 0);
  return Number.isInteger(asked) && asked >= 0 && asked < texts.texts.length ? asked : 0;
}

/** Goes to a text; what is coloured, and the head that is looked at, stay. */
export function goToText(route: Route, text: number, position?: number): void {
  go(href("text", [text], { ...route.params, position }));
}

/** A text chosen from the list, at random, or by token ids or words that it has. `separator` is what stands between tokens. */
export function Chooser({ texts, route, separator = "" }: { texts: Choosable; route: Route; separator?: string }) {
  const [pasted, setPasted] = useState("");
  const [said, setSaid] = useState("");
  const [last, setLast] = useState({ query: "", match: -1 });
  const id = useId();
  const current = chosenText(texts, route);
  const random = () => {
    const other = Math.floor(Math.random() * (texts.texts.length - 1));
    goToText(route, other >= current ? other + 1 : other);
  };
  const find = (e: Event) => {
    e.preventDefault();
    if (!pasted.trim()) return setSaid("");
    const found = search(texts, pasted, separator);
    const match = last.query === pasted ? (last.match + 1) % Math.max(1, found.length) : 0;
    setLast({ query: pasted, match });
    const hit = found[match];
    if (!hit) return setSaid(`None of the ${texts.texts.length} texts of this page has that. jaxablate serve runs any text.`);
    setSaid(found.length > 1 ? `${match + 1} of ${found.length} texts with it; Enter for the next` : "1 text with it");
    goToText(route, hit.text, hit.position);
  };
  return (
    <div class="controls chooser">
      <label class="choose"><span class="soft">Text</span>
        <select value={current} onChange={(e) => goToText(route, Number(e.currentTarget.value))}>
          {texts.texts.map((x, i) => <option key={i} value={i}>{x.title}: {beginning(texts, x, separator)}</option>)}
        </select>
      </label>
      <button type="button" class="quiet" onClick={random} disabled={texts.texts.length < 2}>Random</button>
      <form onSubmit={find} role="search">
        <input type="search" id={id} aria-label="Find a text by token ids or words" placeholder="Token ids or words" value={pasted} onInput={(e) => { setPasted(e.currentTarget.value); setSaid(""); }} />
        <button type="submit" class="quiet">Find</button>
      </form>
      <span class="soft found-text" role="status">{said}</span>
    </div>
  );
}

function beginning(texts: Choosable, text: { tokens: Packed }, separator: string): string {
  const all = printable(words(texts.vocabulary, text.tokens).slice(0, 16).join(separator)).replace(/\s+/g, " ").trim();
  return all.length > 48 ? `${all.slice(0, 47)}…` : all;
}
