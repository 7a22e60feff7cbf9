import * as Plot from "@observablehq/plot";
import { useMemo, useState } from "preact/hooks";
import { diverging, sequential } from "../../colours";
import { percent, printable, visible } from "../../format";
import { Chart } from "../../ui/Chart";
import { Term } from "../../ui/Term";
import { NeuronGraph } from "./NeuronGraph";
import { at, SORTS, type Context, type Effect, type Model, type Unit } from "./model";
import { unpack } from "../../data";

interface Props {
  model: Model;
  unit: Unit;
  link: (unit: Unit) => string;
}

/** Everything about one unit. */
export function UnitPage({ model, unit, link }: Props) {
  const [hovered, setHovered] = useState<number | null>(null);
  const { group } = unit;
  const words = SORTS[group.sort];
  const contexts = useMemo(() => model.contexts(unit), [model, unit]);
  const fired = Math.round(unit.rate * model.data.tokens);
  const twin = model.twin(unit);
  return (
    <article class="unit-page" aria-labelledby="unit-title">
      <header>
        <h2 id="unit-title" tabIndex={-1}><span class="unit-sort">{words.one}</span> {unit.name}</h2>
        <p class="soft">
          {group.sort === "latent" ? <>of the autoencoder <b>{printable(group.name)}</b>, at </> : <>layer {group.layer}, </>}<code>{group.site}</code>
          {twin && <> · <a href={link(twin)}>{twin.group.sort.endsWith("gate") ? "its gate" : `the ${twin.group.sort} it gates`}</a></>}
        </p>
      </header>
      <dl class="unit-tiles">
        <Tile name={<Term name="firing rate">fires on</Term>} value={shareOf(unit.rate)} note={`${fired.toLocaleString("en")} of ${model.data.tokens.toLocaleString("en")} tokens`} />
        <Tile name={group.sort.endsWith("gate") ? <Term name="winning margin">largest margin</Term> : "strongest"} value={short(unit.strongest)} note={unit.rate === 0 ? "never above its threshold" : `fires above ${short(at(unpack(group.threshold), unit.index))}`} />
        {["information", "effective_tokens"].map((name) => {
          const measure = group.measures.find((m) => m.name === name);
          if (!measure) return null;
          const m = model.measure(unit, measure);
          const null_ = name === "information" ? m.random : m.shuffled;
          return <Tile key={name} name={<Term name={name.replace("_", " ")}>{measure.label}</Term>} value={short(m.value)} note={null_ == null || Number.isNaN(null_) ? "" : `by chance ${short(null_)}`} />;
        })}
      </dl>
      {contexts.length === 0 ? <section class="card"><h3>Where it fires</h3><p class="soft">It is never active in the {model.data.tokens.toLocaleString("en")} tokens that were read.</p></section> : (
        <section class="card">
          <h3>Where it is strongest</h3>
          <Contexts model={model} unit={unit} contexts={contexts.filter((c) => !c.weaker)} onHover={setHovered} />
          {contexts.some((c) => c.weaker) && <>
            <h3 class="later">And where it is weaker</h3>
            <Contexts model={model} unit={unit} contexts={contexts.filter((c) => c.weaker)} onHover={setHovered} />
          </>}
          <p class="soft unit-legend"><Ramp signed={group.signed} /> shade: activation as a share of the strongest; underlined: the place itself.</p>
        </section>
      )}
      <div class="unit-columns">
        {contexts.length > 0 && <Histogram model={model} unit={unit} hovered={hovered} />}
        <FiringTokens model={model} unit={unit} />
        {group.promotes && <Effects model={model} unit={unit} />}
        <Measures model={model} unit={unit} />
        <Partners model={model} unit={unit} link={link} />
      </div>
      {unit.graph && <NeuronGraph model={model} graph={unit.graph} />}
    </article>
  );
}

function Tile({ name, value, note }: { name: preact.ComponentChildren; value: string; note: string }) {
  return <div class="unit-tile"><dt>{name}</dt><dd>{value}</dd><dd class="soft">{note}</dd></div>;
}

function Ramp({ signed }: { signed: boolean }) {
  const steps = signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  return <span class="unit-ramp" aria-hidden="true">{steps.map((x) => <i key={x} style={{ backgroundColor: signed ? diverging(x) : sequential(x) }} />)}</span>;
}

function Contexts({ model, unit, contexts, onHover }: { model: Model; unit: Unit; contexts: Context[]; onHover: (value: number | null) => void }) {
  return (
    <ol class="unit-contexts" onMouseLeave={() => onHover(null)}>
      {contexts.map((c) => (
        <li key={`${c.window} ${c.position}`}>
          <span class="unit-activation">{short(c.tokens[c.pivot]!.share * unit.strongest)}</span>
          <Line model={model} unit={unit} context={c} onHover={onHover} />
        </li>
      ))}
    </ol>
  );
}

/** A context in one run of text; line ends are signs, so that it stays together. */
function Line({ model, unit, context, onHover }: { model: Model; unit: Unit; context: Context; onHover: (value: number | null) => void }) {
  const shade = unit.group.signed ? diverging : sequential;
  return (
    <span class="unit-context">
      {context.cut[0] && <span class="soft">… </span>}
      {context.tokens.map(({ token, share }, i) => {
        const value = share * unit.strongest;
        return (
          <span key={i} class={`ctx ${i === context.pivot ? "pivot" : ""}`} style={share ? { backgroundColor: shade(share) } : undefined}
            title={`${visible(printable(model.word(token)))}   ${short(value)}`} onMouseEnter={() => onHover(value)}>
            {inline(model.word(token))}
          </span>
        );
      })}
      {context.cut[1] && <span class="soft"> …</span>}
    </span>
  );
}

/** A token as running text: spaces as they are, so that a line can break at them, line ends as signs. */
export function inline(word: string): string {
  const text = printable(word).replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");
  return text === "" ? "∅" : text;
}

function Histogram({ model, unit, hovered }: { model: Model; unit: Unit; hovered: number | null }) {
  const bins = useMemo(() => model.histogram(unit).filter((b) => b.count > 0), [model, unit]);
  const threshold = at(unpack(unit.group.threshold), unit.index);
  const gate = unit.group.sort.endsWith("gate");
  const title = gate ? "By how much it wins" : "How strong it is";
  const inside = bins.length > 0 && threshold > bins[0]!.from && threshold < bins.at(-1)!.to && !unit.group.sparse;
  return (
    <section class="card">
      <h3>{title}</h3>
      <Chart alt={`Histogram of the ${gate ? "margin" : "activation"} of ${SORTS[unit.group.sort].one} ${unit.name}: tokens on a logarithmic scale.`}
        deps={[bins, hovered, threshold]}
        options={(width) => ({
          height: Math.min(220, Math.max(150, width / 2.2)), marginLeft: 46, marginBottom: 34,
          x: { label: gate ? "margin" : "activation", labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor(width / 90)) },
          y: { type: "log", label: "tokens", grid: true, domain: [0.8, Math.max(10, ...bins.map((b) => b.count))], tickFormat: "~s", ticks: 4 },
          marks: [
            Plot.rectY(bins, { x1: "from", x2: "to", y1: 0.8, y2: "count", fill: "var(--c0)", inset: 0.5, title: (b: { from: number; to: number; count: number }) => `${short(b.from)} to ${short(b.to)}: ${b.count.toLocaleString("en")} tokens`, tip: { format: { x: false, y: false } } }),
            inside ? Plot.ruleX([threshold], { stroke: "var(--ink)", strokeDasharray: "3 3" }) : null,
            hovered !== null ? Plot.ruleX([hovered], { stroke: "var(--c1)", strokeWidth: 2 }) : null,
          ],
        })}
        table={{ name: `histogram of ${unit.group.sort} ${unit.name}`, rows: bins, columns: [
          { title: "from", value: (b) => round(b.from) }, { title: "to", value: (b) => round(b.to) }, { title: "tokens", value: (b) => b.count },
        ] }} />
      <p class="soft">{unit.group.sparse ? "Zeros are left out." : inside ? "Dashed: it fires beyond this." : ""} Pointing at a token of a context marks its place.</p>
    </section>
  );
}

function FiringTokens({ model, unit }: { model: Model; unit: Unit }) {
  const tokens = model.firingTokens(unit);
  if (!tokens.length) return null;
  const rest = 1 - tokens.reduce((a, t) => a + t.share, 0);
  return (
    <section class="card">
      <h3>Tokens it fires on</h3>
      <table class="unit-bars">
        <thead><tr><th scope="col">token</th><th scope="col">share of its firings</th><th scope="col" class="n">of the token</th></tr></thead>
        <tbody>
          {tokens.map((t) => (
            <tr key={t.token}><th scope="row"><Word model={model} token={t.token} /></th><td><Bar share={t.share} text={percent(t.share)} /></td><td class="n">{percent(t.rate)}</td></tr>
          ))}
          {rest > 0.005 && <tr class="soft"><th scope="row">others</th><td><Bar share={rest} text={percent(rest)} soft /></td><td /></tr>}
        </tbody>
      </table>
      <p class="soft">Of the token: on what share of its occurrences the unit fires.</p>
    </section>
  );
}

function Effects({ model, unit }: { model: Model; unit: Unit }) {
  const up = model.effects(unit, "promotes"), down = model.effects(unit, "suppresses");
  const most = Math.max(...[...up, ...down].map((e) => Math.abs(e.effect)), 1e-12);
  const column = (title: string, effects: Effect[], minus: boolean) => (
    <table class="unit-bars">
      <thead><tr><th scope="col">{title}</th><th scope="col"><Term name="logit effect">logit</Term></th></tr></thead>
      <tbody>{effects.map((e) => (
        <tr key={e.token}><th scope="row"><Word model={model} token={e.token} /></th><td><Bar share={Math.abs(e.effect) / most} text={signed(e.effect)} minus={minus} /></td></tr>
      ))}</tbody>
    </table>
  );
  return (
    <section class="card">
      <h3>Tokens it makes likelier and less likely</h3>
      <div class="unit-effects">{column("promotes", up, false)}{column("suppresses", down, true)}</div>
      <p class="soft">Change of the logit for an activation of 1, by what the unit writes into the residual stream itself.</p>
    </section>
  );
}

function Measures({ model, unit }: { model: Model; unit: Unit }) {
  return (
    <section class="card">
      <h3>Specialisation, beside chance</h3>
      <table class="unit-measures">
        <thead><tr><th scope="col">measure</th><th scope="col" class="n">unit</th><th scope="col" class="n"><Term name="shuffled tokens">shuffled</Term></th><th scope="col" class="n"><Term name="random directions">random</Term></th></tr></thead>
        <tbody>{unit.group.measures.map((measure) => {
          const m = model.measure(unit, measure);
          return (
            <tr key={measure.name}>
              <th scope="row"><Term name={measure.name.replace("_", " ")}>{measure.label}</Term></th>
              <td class="n">{short(m.value)}</td><td class="n soft">{short(m.shuffled)}</td><td class="n soft">{short(m.random)}</td>
            </tr>
          );
        })}</tbody>
      </table>
      <p class="soft">Shuffled: expected if the text's tokens were permuted. Random: directions of the same space that fire as often.</p>
    </section>
  );
}

function Partners({ model, unit, link }: Props) {
  const partners = model.partners(unit);
  return (
    <section class="card">
      <h3>Fires together with</h3>
      {partners.length === 0 ? <p class="soft">No unit's activation correlates with this one's by 0.1 or more{unit.rate * model.data.sampled < 6 ? "; it fires on too few tokens to tell" : ""}.</p> : (
        <table class="unit-bars">
          <thead><tr><th scope="col">unit</th><th scope="col">correlation</th><th scope="col">fires on</th></tr></thead>
          <tbody>{partners.map((p) => (
            <tr key={p.unit.id}>
              <th scope="row"><a href={link(p.unit)}>{SORTS[p.unit.group.sort].one} {p.unit.name}</a></th>
              <td><Bar share={Math.abs(p.correlation)} text={p.correlation.toFixed(2).replace("-", "−")} minus={p.correlation < 0} /></td>
              <td class="unit-words"><Words model={model} tokens={model.firingTokens(p.unit).slice(0, 3).map((t) => t.token)} /></td>
            </tr>
          ))}</tbody>
        </table>
      )}
      <p class="soft">Correlation over {model.data.sampled.toLocaleString("en")} tokens.</p>
    </section>
  );
}

/** A token as a chip, its white space visible. */
export function Word({ model, token }: { model: Model; token: number }) {
  return <span class="unit-word">{visible(printable(model.word(token)))}</span>;
}

export function Words({ model, tokens }: { model: Model; tokens: readonly number[] }) {
  return <>{tokens.map((t) => <Word key={t} model={model} token={t} />)}</>;
}

function Bar({ share, text, minus, soft }: { share: number; text: string; minus?: boolean; soft?: boolean }) {
  return <span class="unit-bar"><span><i style={{ width: `${Math.max(1, 100 * Math.min(1, share))}%` }} class={minus ? "minus" : soft ? "rest" : ""} /></span><span>{text}</span></span>;
}

function signed(value: number): string {
  return `${value < 0 ? "−" : "+"}${short(Math.abs(value))}`;
}


export function shareOf(rate: number): string {
  return rate === 0 ? "no token" : `${short(100 * rate)} %`;
}

/** Data has three to four digits; more would be noise of how it is stored. */
export function round(value: number, digits = 4): number {
  return Number.isFinite(value) ? Number(value.toPrecision(digits)) : value;
}

/** A number in three significant digits. */
export function short(value: number | null): string {
  if (value === null || Number.isNaN(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(1).replace("-", "−");
  return value.toLocaleString("en-US", { minimumSignificantDigits: Math.abs(value) < 1000 && value !== 0 ? 3 : 1, maximumSignificantDigits: Math.abs(value) < 1000 ? 3 : 6 }).replace("-", "−");
}
