import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { useAttachment } from "../data";
import { go, href, parseRoute, setParams } from "../route";
import type { UnitsData } from "../schema/units";
import { DataTable, type Column } from "../ui/DataTable";
import { Failed, Loading, Note } from "../ui/Note";
import type { ViewProps } from "../view";
import { Model, SORTS, type Sort, type Unit } from "./units/model";
import { examples, search, type Answer } from "./units/query";
import { shareOf, short, UnitPage, Words } from "./units/UnitPage";
import "./units/units.css";

/** Neurons, channels, gates and latents: a list to search and sort, and a page of each. */
export function Units({ run, route }: ViewProps) {
  const loaded = useAttachment<UnitsData>(run, "units");
  if (loaded.state === "loading") return <Loading />;
  if (loaded.state === "failed") return <Failed what="Units" why={loaded.why} />;
  if (loaded.state === "absent" || loaded.value.groups.length === 0) return <Note title="Units">This run has no units to show.</Note>;
  return <Browser data={loaded.value} route={route} />;
}

function Browser({ data, route }: { data: UnitsData; route: ViewProps["route"] }) {
  const model = useMemo(() => new Model(data), [data]);
  const unit = model.find(route.path[0], route.path[1]);
  const query = route.params.query ?? "";
  const kinds = useMemo(() => [...new Set(data.groups.map((g) => g.sort))], [data]);
  const only = unit ? undefined : data.groups.find((g) => g.name === route.path[0]);
  const kind = only?.sort ?? kinds.find((k) => k === route.params.kind);
  const listed = useMemo(() => (only ? model.units.slice(only.first, only.first + only.n) : kind ? model.units.filter((u) => u.group.sort === kind) : model.units), [model, kind, only]);
  const found = useMemo(() => search(model, listed, query), [model, listed, query]);
  // Without another wish the units that tell most come first, or those that fit a query best.
  const sort = route.params.sort ?? (found.matches.size ? "-match" : "-information");
  const answer = useMemo(() => ({ ...found, units: sorted(found, model, sort) }), [found, model, sort]);
  const link = (u: Unit) => href("units", [u.group.name, u.index], route.params);
  useEffect(() => {
    if (unit) document.getElementById("unit-title")?.focus({ preventScroll: true });
    if (unit && !document.querySelector<HTMLElement>(".units-list")?.offsetParent) scrollTo({ top: 0 });
  }, [unit?.id]);
  const around = unit && neighbours(answer.units, unit);
  return (
    <>
      <div class="units-head">
        <h1>Units</h1>
        <p class="soft">{data.tokens.toLocaleString("en")} tokens of the validation split were read. {data.left_out}</p>
      </div>
      <QueryBox query={query} answer={answer} model={model} />
      <Kinds kinds={kinds} model={model} current={kind} onKind={(k) => (only ? go(href("units", [], { ...route.params, kind: k })) : setParams({ kind: k }))} />
      {only && <p class="soft only">Only {only.title.charAt(0).toLowerCase() + only.title.slice(1)}. <a href={href("units", [], { ...route.params, kind: only.sort })}>Show all {SORTS[only.sort].many.toLowerCase()}</a></p>}
      <div class="units-room"><div class={`units-layout ${unit ? "with-page" : ""}`}>
        <section class="card units-list" aria-label="List of units">
          <List key={only?.name ?? kind ?? "all"} model={model} answer={answer} current={unit} narrow={unit !== undefined} link={link} sort={sort} />
        </section>
        {unit && around && (
          <div class="units-page">
            <nav class="unit-steps" aria-label="Units of the list">
              <a href={href("units", [], route.params)} class="back">← all units</a>
              <span class="steps">
                {around.before && <a href={link(around.before)} rel="prev">‹ {SORTS[around.before.group.sort].one} {around.before.name}</a>}
                {around.after && <a href={link(around.after)} rel="next">{SORTS[around.after.group.sort].one} {around.after.name} ›</a>}
              </span>
            </nav>
            <UnitPage key={unit.id} model={model} unit={unit} link={link} />
          </div>
        )}
      </div></div>
    </>
  );
}

/** A column of the list: what a unit is sorted by, and whether small comes first by nature. */
const KEYS: Record<string, (u: Unit, model: Model, answer: Answer) => number | string> = {
  unit: (u) => u.id,
  match: (u, _, answer) => answer.matches.get(u.id)?.strength ?? 0,
  tokens: (u, model) => wordsOf(model, firedOn(model, u)),
  rate: (u) => u.rate,
  information: (u) => u.value("information"),
  random: (u) => u.value("information", true),
  effective: (u) => u.value("effective_tokens"),
  promotes: (u, model) => wordsOf(model, promoted(model, u)),
  strongest: (u) => u.strongest,
};

/** Units in the order of a column; those without a value last. */
function sorted(answer: Answer, model: Model, sort: string): Unit[] {
  const key = KEYS[sort.replace(/^-/, "")], sign = sort.startsWith("-") ? -1 : 1;
  if (!key) return answer.units;
  const keyed = answer.units.map((unit) => ({ unit, key: key(unit, model, answer) }));
  const missing = (x: number | string) => typeof x === "number" && Number.isNaN(x);
  keyed.sort((a, b) => {
    if (missing(a.key) || missing(b.key)) return Number(missing(a.key)) - Number(missing(b.key)) || a.unit.id - b.unit.id;
    const order = typeof a.key === "number" && typeof b.key === "number" ? a.key - b.key : String(a.key) < String(b.key) ? -1 : String(a.key) > String(b.key) ? 1 : 0;
    return sign * order || a.unit.id - b.unit.id;
  });
  return keyed.map((x) => x.unit);
}

const firedOn = (model: Model, unit: Unit) => model.firingTokens(unit).slice(0, 3).map((t) => t.token);
const promoted = (model: Model, unit: Unit) => model.effects(unit, "promotes").slice(0, 3).map((e) => e.token);

function neighbours(units: readonly Unit[], unit: Unit): { before: Unit | undefined; after: Unit | undefined } {
  const i = units.indexOf(unit);
  return i < 0 ? { before: undefined, after: undefined } : { before: units[i - 1], after: units[i + 1] };
}

function QueryBox({ query, answer, model }: { query: string; answer: Answer; model: Model }) {
  const shown = useMemo(() => examples(model), [model]);
  const [text, setText] = useState(query);
  const waiting = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => { if (query !== parseRoute(location.hash).params.query || document.activeElement?.id !== "unit-query") setText(query); }, [query]);
  const ask = (value: string, now = true) => {
    setText(value);
    clearTimeout(waiting.current);
    waiting.current = setTimeout(() => setParams({ query: value || undefined }), now ? 0 : 250);
  };
  return (
    <section class="card query" aria-label="Search">
      <form role="search" onSubmit={(e) => { e.preventDefault(); ask(text); }}>
        <label for="unit-query">Find units</label>
        <input id="unit-query" type="search" spellcheck={false} autocomplete="off" autocapitalize="off" value={text} placeholder={shown[0]?.query}
          aria-describedby="unit-answer" onInput={(e) => ask(e.currentTarget.value, false)} />
      </form>
      <div id="unit-answer" role="status">
        {answer.meaning.length > 0 && <p><b>{answer.units.length.toLocaleString("en")}</b> {answer.units.length === 1 ? "unit" : "units"}: {answer.meaning.join(", and ")}</p>}
        {answer.problems.map((p) => (
          <p key={p.text} class="problem">{p.text}{p.instead.length > 0 && <> Try {p.instead.map((q, i) => <>{i > 0 && ", "}<button type="button" class="example" onClick={() => ask(q)}>{q}</button></>)}.</>}</p>
        ))}
      </div>
      {(query === "" || answer.problems.length > 0) && (
        <p class="examples"><span class="soft">for example</span> {shown.map((e) => <button type="button" key={e.query} class="example" title={e.about} onClick={() => ask(e.query)}>{e.query}</button>)}</p>
      )}
    </section>
  );
}

function Kinds({ kinds, model, current, onKind }: { kinds: Sort[]; model: Model; current: Sort | undefined; onKind: (kind: Sort | undefined) => void }) {
  const count = (kind?: Sort) => (kind ? model.data.groups.filter((g) => g.sort === kind).reduce((n, g) => n + g.n, 0) : model.units.length).toLocaleString("en");
  return (
    <div class="choice unit-kinds" role="group" aria-label="Kind of unit">
      {[undefined, ...kinds].map((k) => (
        <button type="button" key={k ?? "all"} aria-pressed={k === current} onClick={() => onKind(k)}>{k ? SORTS[k].many : "All"} <span class="count">{count(k)}</span></button>
      ))}
    </div>
  );
}

function List({ model, answer, current, narrow, link, sort }: {
  model: Model; answer: Answer; current: Unit | undefined; narrow: boolean; link: (u: Unit) => string; sort: string;
}) {
  const columns = useMemo(() => {
    const measured = (name: string, random = false) => (u: Unit) => short(u.value(name, random));
    const value = (name: string) => (u: Unit) => KEYS[name]!(u, model, answer);
    const all: [string, Column<Unit>][] = [
      ["unit", { title: "unit", value: label, ascending: true, width: "132px", show: (u) => <a href={link(u)}><span class="soft">{SORTS[u.group.sort].one}</span> {u.name}</a> }],
      ["tokens", { title: "fires on", value: value("tokens"), about: "The tokens on which most of its firings are", show: (u) => <Words model={model} tokens={firedOn(model, u).slice(0, narrow ? 2 : 3)} /> }],
      ["rate", { title: "rate", value: value("rate"), about: "Share of tokens on which it fires", show: (u) => shareOf(u.rate) }],
      ["information", { title: "information", value: value("information"), about: "Bits that its firing tells of the current token, less what it tells of shuffled tokens", show: measured("information") }],
      ["random", { title: "random", value: value("random"), about: "The same of random directions that fire as often", show: measured("information", true) }],
      ["effective", { title: "effective tokens", value: value("effective"), ascending: true, about: "How many tokens fire it, counted by the entropy of the token when it fires", show: measured("effective_tokens") }],
      ["promotes", { title: "promotes", value: value("promotes"), about: "Tokens whose logits it raises most", show: (u) => <Words model={model} tokens={promoted(model, u)} /> }],
      ["strongest", { title: "strongest", value: value("strongest"), about: "Greatest activation; of a gate the largest margin by which it won", show: (u) => short(u.strongest) }],
    ];
    if (answer.matches.size) all.splice(1, 0, ["match", { title: "match", value: value("match"), about: "How well it fits the query", show: (u) => <span title={answer.matches.get(u.id)?.why}>{answer.matches.get(u.id)?.why}</span> }]);
    const kept = answer.matches.size ? ["unit", "match", "tokens"] : ["unit", "tokens", "rate", "information"];
    return all.filter(([name]) => !narrow || kept.includes(name));
  }, [model, answer, narrow, link]);
  const place = columns.findIndex(([name]) => name === sort.replace(/^-/, ""));
  return (
    <DataTable name="units" columns={columns.map(([, c]) => c)} rows={answer.units} filter={false} height={narrow ? 860 : 720} sorted={place >= 0 ? { column: place, ascending: !sort.startsWith("-") } : undefined}
      onSort={(order) => setParams({ sort: order ? `${order.ascending ? "" : "-"}${columns[order.column]![0]}` : undefined })}
      onRow={(u) => go(link(u))} isCurrent={(u) => u === current} none="No unit meets the query." />
  );
}

function wordsOf(model: Model, tokens: number[]): string {
  return tokens.map((t) => model.word(t)).join(" ");
}

function label(unit: Unit): string {
  return `${SORTS[unit.group.sort].one} ${unit.name}`;
}
