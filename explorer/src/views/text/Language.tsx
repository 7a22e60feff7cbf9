import type { ComponentChildren } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import type { Run } from "../../data";
import { printable, visible } from "../../format";
import { href, setParams, type Route } from "../../route";
import type { LanguageText, LanguageTexts } from "../../schema/texts";
import { Choice } from "../../ui/Tabs";
import { Hint, Term } from "../../ui/Term";
import { Tokens } from "../../ui/Tokens";
import { Arcs, Heads, Matrix, strongest } from "./Attention";
import { Chooser, chosenText } from "./Chooser";
import { ColourBy } from "./ColourBy";
import { Details } from "./Details";
import { Legend } from "./Legend";
import { colouring, pattern, words, type Colouring } from "./model";
import { unitLink } from "./units";

/** A number of the address, in its range. */
function setting(route: Route, name: string, size: number, otherwise = 0): number {
  const asked = Number(route.params[name] ?? NaN);
  return Number.isInteger(asked) && asked >= 0 && asked < size ? asked : otherwise;
}

/** A story or a prompt as a language model reads it. */
export function Language({ texts, run, route, above }: { texts: LanguageTexts; run: Run; route: Route; above?: ComponentChildren }) {
  const text = texts.texts[chosenText(texts, route)]!;
  const tokens = useMemo(() => words(texts.vocabulary, text.tokens), [texts, text]);
  const [pointed, setPointed] = useState<number | null>(null);
  const pinned = setting(route, "position", tokens.length, tokens.length - 1);
  const position = pointed !== null && pointed < tokens.length ? pointed : pinned;
  const colour = route.params.colour ?? "loss.clean";
  const head = { layer: setting(route, "layer", texts.n_layers), head: setting(route, "head", texts.n_heads), stream: texts.streams.includes(route.params.stream ?? "") ? route.params.stream! : "clean" };
  const weights = useMemo(() => pattern(text, head.stream, head.layer, head.head), [text, head.stream, head.layer, head.head]);
  const arcs = (route.params.draw ?? "arcs") === "arcs";
  const colours: Colouring | null = useMemo(() => {
    if (colour !== "attention") return colouring(texts, text, colour);
    return weights && { label: `attention from “${visible(printable(tokens[position] ?? ""))}”`, about: `Weights of head ${head.head} of layer ${head.layer}, ${head.stream} stream.`, scale: "sequential", most: 1, unit: "", values: tokens.map((_, j) => weights.at(position, j)) };
  }, [texts, text, colour, weights, position]);
  const host = useRef<HTMLDivElement>(null);
  const link = unitLink(run, texts, colour);
  return (
    <>
      <h1>Text</h1>
      <p class="soft">What the model makes of every token. Point at one or go through them with the arrow keys; click or Enter keeps it.</p>
      {above}
      {texts.texts.length > 1 && <Chooser texts={texts} route={route} />}
      <div class="reading-room">
        <section class="card the-text" aria-label="The text">
          <div class="controls">
            <ColourBy texts={texts} text={text} value={colour} />
            {colours && <Legend colours={colours}>{link && <a href={link.href}>{link.words}</a>}</Legend>}
            {!colours && colour !== "none" && <span class="soft">This text has no numbers of that.</span>}
          </div>
          <div class="arcs-host" ref={host}>
            <Tokens tokens={tokens} values={colours?.values} most={colours?.most} scale={colours?.scale} current={position} label={text.title}
              onHover={setPointed} onPick={(i) => setParams({ position: i })} />
            {weights && arcs && <Arcs host={host} pattern={weights} from={position} deps={[weights, tokens]} />}
          </div>
          <p class="soft">{printable(text.about)}</p>
        </section>
        <Details texts={texts} text={text} tokens={tokens} position={position} pinned={position === pinned} colour={colour} />
        <Attention texts={texts} text={text} tokens={tokens} position={position} settings={head} arcs={arcs} />
      </div>
    </>
  );
}

interface HeadSettings { layer: number; head: number; stream: string }

/** Where one head looks, from every token and from the chosen one. */
function Attention({ texts, text, tokens, position, settings, arcs }: { texts: LanguageTexts; text: LanguageText; tokens: string[]; position: number; settings: HeadSettings; arcs: boolean }) {
  const { layer, head, stream } = settings;
  if (!text.attention) {
    const other = texts.texts.findIndex((x) => x.attention);
    return (
      <section class="card beneath"><h2>Attention</h2>
        <p class="soft">To keep the page small, attention patterns and activations are stored for some of the texts only{other >= 0 && <>, for example <a href={href("text", [other])}>{texts.texts[other]!.title}</a></>}.</p>
      </section>
    );
  }
  const found = pattern(text, stream, layer, head)!;
  return (
    <section class="card beneath" aria-label="Attention">
      <div class="controls">
        <h2><Term name="attention pattern">Attention</Term></h2>
        <label><span class="soft">layer</span>
          <select aria-label="Layer of the head" value={layer} onChange={(e) => setParams({ layer: Number(e.currentTarget.value) })}>{Array.from({ length: texts.n_layers }, (_, i) => <option key={i} value={i}>{i}</option>)}</select>
        </label>
        {texts.streams.length > 1 && <Choice label="Stream" options={texts.streams as ("clean" | "ablated")[]} value={stream as "clean"} onChange={(s) => setParams({ stream: s })} />}
        <Choice label="Drawn as" options={[["arcs", "arcs over the text"], ["none", "no arcs"]]} value={arcs ? "arcs" : "none"} onChange={(draw) => setParams({ draw: draw === "arcs" ? undefined : draw })} />
      </div>
      <div class="attention">
        <div>
          <Heads count={texts.n_heads} head={head} onHead={(h) => setParams({ head: h })} pattern={(h) => pattern(text, stream, layer, h)} deps={[text, stream, layer]} />
          <p class="soft from"><Hint text="Weights of the query at this token over the keys; they sum to 1.">From <code>{visible(printable(tokens[position] ?? ""))}</code>, head {head} looks at</Hint></p>
          <ol class="looks">
            {strongest(found, position, 8).map(({ key, weight }) => (
              <li key={key}><button type="button" onClick={() => setParams({ position: key })}><code>{visible(printable(tokens[key]!))}</code></button> <span class="weight-bar"><i style={{ width: `${100 * weight}%` }} /></span><span class="n">{Math.round(100 * weight)} %</span></li>
            ))}
          </ol>
        </div>
        <Matrix pattern={found} tokens={tokens} current={position} onPick={(query) => setParams({ position: query })} label={`Attention of head ${head} in layer ${layer}, ${stream} stream: a square of ${tokens.length} by ${tokens.length} weights`} deps={[found]} />
      </div>
    </section>
  );
}
