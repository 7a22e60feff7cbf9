import type { ComponentChildren } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import { unpack } from "../../data";
import { printable, visible } from "../../format";
import { setParams, type Route } from "../../route";
import type { ClassifiedText, ClassifiedTexts, Reading } from "../../schema/texts";
import { Choice } from "../../ui/Tabs";
import { Hint } from "../../ui/Term";
import { Tokens } from "../../ui/Tokens";
import { Allocation } from "./Allocation";
import { Arcs, Heads, Matrix, strongest } from "./Attention";
import { Chooser, chosenText } from "./Chooser";
import { StreamHeads, streamColour } from "./Details";
import { Legend } from "./Legend";
import { numbers, place, short, words, type Colouring, type Pattern } from "./model";

/** A text as a classifier reads it: what its words count for, and which of them share neurons. */
export function Classifier({ texts, route, above }: { texts: ClassifiedTexts; route: Route; above?: ComponentChildren }) {
  const text = texts.texts[chosenText(texts, route)]!;
  const tokens = useMemo(() => words(texts.vocabulary, text.tokens), [texts, text]);
  const [pointed, setPointed] = useState<number | null>(null);
  const asked = Number(route.params.position ?? 0);
  const pinned = Number.isInteger(asked) && asked >= 0 && asked < tokens.length ? asked : 0;
  const position = pointed !== null && pointed < tokens.length ? pointed : pinned;
  const stream = texts.streams.includes(route.params.stream ?? "") ? route.params.stream! : "clean";
  const layer = Math.min(texts.n_layers - 1, Math.max(0, Math.trunc(Number(route.params.layer ?? texts.n_layers - 1)) || 0));
  const reading = text.readings.find((r) => r.layer === layer && r.stream === stream) ?? text.readings[0]!;
  const colour = route.params.colour ?? (text.keep ? "keep" : "gradient");
  const pairs = route.params.pairs === "attention" ? "attention" : "alignment";
  const all = route.params.arcs === "all";
  const head = Math.min(texts.n_heads - 1, Math.max(0, Math.trunc(Number(route.params.head ?? 0)) || 0));
  const weights = useMemo(() => (pairs === "attention" ? heads(reading, head) : alignment(reading)), [reading, pairs, head]);
  const colours = useMemo(() => coloured(text, reading, colour, weights, position, tokens), [text, reading, colour, weights, position]);
  const host = useRef<HTMLDivElement>(null);
  return (
    <>
      <h1>Text</h1>
      <p class="soft">What the classifier makes of every word. Point at one or go through them with the arrow keys; click or Enter keeps it.</p>
      {above}
      {texts.texts.length > 1 && <Chooser texts={texts} route={route} separator=" " />}
      <div class="reading-room">
        <section class="card the-text" aria-label="The text">
          <div class="controls">
            <label><span class="soft">Colour</span>
              <select aria-label="Colour by" value={colour} onChange={(e) => setParams({ colour: e.currentTarget.value })}>
                <optgroup label="How much a word counts">
                  {text.keep && <option value="keep">kept by VMASK</option>}
                  <option value="gradient">gradient × input</option>
                </optgroup>
                <optgroup label="Neurons">
                  <option value="capacity">capacity</option>
                  <option value="active">active neurons</option>
                  <option value="owned">owned neurons</option>
                  {colour.startsWith("neuron.") && <option value={colour}>neuron {colour.slice(7)}</option>}
                </optgroup>
                <optgroup label="Pairs of words">
                  <option value="pairs">{pairs === "attention" ? "attention from" : "shared neurons with"} the chosen word</option>
                </optgroup>
                <option value="none">nothing</option>
              </select>
            </label>
            {texts.n_layers > 1 && <label><span class="soft">layer</span><select value={layer} onChange={(e) => setParams({ layer: Number(e.currentTarget.value) })}>{Array.from({ length: texts.n_layers }, (_, i) => <option key={i} value={i}>{i}</option>)}</select></label>}
            {texts.streams.length > 1 && <Choice label="Stream" options={texts.streams as ("clean" | "ablated")[]} value={stream as "clean"} onChange={(s) => setParams({ stream: s })} />}
            {colours && <Legend colours={colours} />}
          </div>
          <div class="arcs-host spaced" ref={host}>
            <Tokens tokens={tokens} values={colours?.values} most={colours?.most} scale={colours?.scale} current={position} label={text.title}
              onHover={setPointed} onPick={(i) => setParams({ position: i })} />
            <Arcs host={host} pattern={weights} from={all ? "all" : position} deps={[weights, tokens]} />
          </div>
          <p class="soft">{printable(text.about)} Arcs: {pairs === "attention" ? "attention" : "shared neurons"} {all ? "between the strongest pairs of words" : "of the chosen word"}.</p>
        </section>
        <Word texts={texts} text={text} reading={reading} tokens={tokens} position={position} pinned={position === pinned} stream={stream} />
        <div class="beneath">
          <section class="card" aria-label="Neurons">
            <h2><Hint text="Neurons (columns) stand under the word that drives them most; darker is stronger. The diagonal is what words have to themselves, what lies beside it is shared.">Which words have which neurons</Hint></h2>
            <p class="soft">{unpack(reading.neurons).data.length} of {reading.active_neurons} active neurons of {texts.n_neurons}. Point at one; a click colours the text by it.</p>
            <Allocation reading={reading} tokens={tokens} current={position} onNeuron={(n) => setParams({ colour: `neuron.${n}` })} />
          </section>
          <section class="card" aria-label="Pairs of words">
            <div class="controls"><h2>Pairs of words</h2>
              <Choice label="What joins them" options={[["alignment", "shared neurons"], ["attention", "attention"]]} value={pairs} onChange={(p) => setParams({ pairs: p === "alignment" ? undefined : p })} />
              <Choice label="Arcs over the text" options={[["one", "arcs of the chosen word"], ["all", "of all words"]]} value={all ? "all" : "one"} onChange={(a) => setParams({ arcs: a === "all" ? a : undefined })} />
            </div>
            <div class="attention">
              <div>
                {pairs === "attention" && <Heads count={texts.n_heads} head={head} onHead={(h) => setParams({ head: h })} pattern={(h) => heads(reading, h)} deps={[reading]} />}
                <Partners pattern={weights} tokens={tokens} position={position} pairs={pairs} />
              </div>
              <Matrix pattern={weights} tokens={tokens} current={position} onPick={(i) => setParams({ position: i })} symmetric={pairs === "alignment"} deps={[weights]}
                label={pairs === "attention" ? `Attention of head ${head}, ${tokens.length} by ${tokens.length} weights` : `How far pairs of the ${tokens.length} words share neurons`} />
            </div>
          </section>
        </div>
      </div>
    </>
  );
}

function Partners({ pattern, tokens, position, pairs }: { pattern: Pattern; tokens: string[]; position: number; pairs: string }) {
  const found = strongest(pattern, position, 9).filter((x) => pairs === "attention" || x.key !== position).slice(0, 8);
  return (
    <>
      <p class="soft from"><code>{printable(tokens[position] ?? "")}</code> {pairs === "attention" ? "looks at" : "shares neurons with"}</p>
      {found.length === 0 && <p class="soft">no other word</p>}
      <ol class="looks">
        {found.map(({ key, weight }) => (
          <li key={key}><button type="button" onClick={() => setParams({ position: key })}><code>{visible(printable(tokens[key]!))}</code></button> <span class="weight-bar"><i style={{ width: `${100 * Math.min(1, weight)}%` }} /></span><span class="n">{weight.toFixed(2)}</span></li>
        ))}
      </ol>
    </>
  );
}

function alignment(reading: Reading): Pattern {
  const stored = unpack(reading.alignment), T = stored.shape[0]!;
  return { T, causal: false, at: (i, j) => stored.data[i * T + j]! * stored.scale };
}

function heads(reading: Reading, head: number): Pattern {
  const stored = unpack(reading.attention), T = stored.shape[1]!, start = place(stored, head, 0, 0);
  return { T, causal: false, at: (i, j) => stored.data[start + i * T + j]! * stored.scale };
}

/** What the words are coloured by. */
function coloured(text: ClassifiedText, reading: Reading, key: string, weights: Pattern, position: number, tokens: string[]): Colouring | null {
  const made = (label: string, about: string, values: number[], most = Math.max(1e-9, ...values.map(Math.abs)), diverging = false): Colouring => ({ label, about, values, most, unit: "", scale: diverging ? "diverging" : "sequential" });
  if (key === "keep" && text.keep) return made("kept by VMASK", "Probability that the mask in front of the model keeps the word.", numbers(text.keep), 1);
  if (key === "gradient") {
    const found = text.gradient[reading.stream];
    return found ? made("gradient × input", "How the log-probability of the predicted class changes with the size of the word's embedding: blue speaks for the class, orange against it.", numbers(found), undefined, true) : null;
  }
  if (key === "capacity") return made("capacity", "1 for a word whose neurons share no direction with others', 1/m where m words have the same.", numbers(reading.capacity), 1);
  if (key === "active") return made("active neurons", "Neurons that the word drives at all.", numbers(reading.active));
  if (key === "owned") return made("owned neurons", "Active neurons that no other word drives more.", numbers(reading.owned));
  if (key === "pairs") return made(`with “${visible(printable(tokens[position] ?? ""))}”`, "What the square below has in the chosen word's row.", tokens.map((_, j) => weights.at(position, j)), 1);
  if (key.startsWith("neuron.")) {
    const column = unpack(reading.neurons).data.indexOf(Number(key.slice(7))), values = unpack(reading.activations);
    if (column < 0) return made(`neuron ${key.slice(7)}`, "This neuron is silent in this text, or not among the strongest.", tokens.map(() => 0), 1);
    const of = tokens.map((_, t) => values.data[place(values, t, column)]! * values.scale);
    return made(`neuron ${key.slice(7)}`, "Activation of the neuron.", of, Math.max(1e-9, ...of));
  }
  return null;
}

/** Everything about one word, under what the model makes of the text. */
function Word({ texts, text, reading, tokens, position, pinned, stream }: { texts: ClassifiedTexts; text: ClassifiedText; reading: Reading; tokens: string[]; position: number; pinned: boolean; stream: string }) {
  const of = (packed: ClassifiedText["keep"]) => (packed ? numbers(packed)[position]! : null);
  const values = unpack(reading.activations), columns = Array.from(unpack(reading.neurons).data);
  const strong = columns.map((neuron, c) => ({ neuron, value: values.data[place(values, position, c)]! * values.scale })).filter((x) => x.value > 0).sort((a, b) => b.value - a.value).slice(0, 12);
  const round = (x: number | null) => (x === null ? "–" : short(x));
  return (
    <section class="card details" aria-label="The word">
      <h2>The text</h2>
      <table class="paired">
        <StreamHeads streams={texts.streams} first="class" />
        <tbody>{texts.classes.map((name, c) => (
          <tr key={c} class={c === text.label ? "follows" : ""}>
            <th scope="row">{printable(name)}{c === text.label && <span class="tick" title="the label">✓<span class="hidden"> the label</span></span>}</th>
            <td class="pair" aria-hidden="true">{texts.streams.map((s) => <i key={s} style={{ width: `${Math.max(0.4, 100 * (text.probabilities[s]?.[c] ?? 0))}%`, background: streamColour(s) }} />)}</td>
            {texts.streams.map((s) => <td key={s} class="n">{`${(100 * (text.probabilities[s]?.[c] ?? 0)).toFixed(1)} %`}</td>)}
          </tr>))}
        </tbody>
      </table>
      <header class="second">
        <h2><code class="big">{visible(printable(tokens[position] ?? ""))}</code></h2>
        <span class="soft">word {position + 1} of {tokens.length}{pinned ? "" : " · pointed at"}</span>
      </header>
      <dl class="cost">
        {text.keep && <div><dt><Hint text="Probability that VMASK keeps the word.">kept</Hint></dt><dd>{round(of(text.keep))}</dd></div>}
        <div><dt><Hint text="How the log-probability of the predicted class changes with the size of the word's embedding.">gradient × input</Hint></dt><dd>{round(of(text.gradient[stream] ?? null))}</dd></div>
        <div><dt><Hint text="1 for a word that shares no direction, 1/m where m words have the same.">capacity</Hint></dt><dd>{round(of(reading.capacity))}</dd></div>
        <div><dt><Hint text="Neurons that it drives at all, and those that no other word drives more.">active, owned</Hint></dt><dd>{of(reading.active)}, {of(reading.owned)}</dd></div>
      </dl>
      <h3>Its strongest neurons</h3>
      {strong.length === 0 && <p class="soft">It drives none.</p>}
      <ol class="looks">
        {strong.map(({ neuron, value }) => (
          <li key={neuron}><button type="button" onClick={() => setParams({ colour: `neuron.${neuron}` })}>neuron {neuron}</button> <span class="weight-bar"><i style={{ width: `${(100 * value) / strong[0]!.value}%` }} /></span><span class="n">{value.toPrecision(2)}</span></li>
        ))}
      </ol>
    </section>
  );
}
