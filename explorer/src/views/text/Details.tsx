// What the model makes of one token: its cost, what may follow, which units win, which latents are active.
import { useState } from "preact/hooks";
import { diverging } from "../../colours";
import { printable, visible } from "../../format";
import { setParams } from "../../route";
import type { LanguageText, LanguageTexts } from "../../schema/texts";
import { Hint, Term } from "../../ui/Term";
import { candidatesAt, headOf, latentsAt, numbers, winnersAt, type Candidate, type UnitKind, type Winner } from "./model";

export const streamColour = (stream: string) => (stream === "clean" ? "var(--c0)" : "var(--c1)");

export function Details({ texts, text, tokens, position, pinned, colour }: { texts: LanguageTexts; text: LanguageText; tokens: string[]; position: number; pinned: boolean; colour: string }) {
  const id = texts.vocabulary.ids && candidateId(texts, text, position);
  return (
    <section class="card details" aria-label="The token">
      <header>
        <h2><code class="big">{visible(printable(tokens[position] ?? ""))}</code></h2>
        <span class="soft">token {position + 1} of {tokens.length} · id {id}{pinned ? "" : " · pointed at"}</span>
      </header>
      <Cost texts={texts} text={text} position={position} />
      <Next texts={texts} candidates={candidatesAt(texts, text, position)} after={tokens[position] ?? ""} />
      {text.winners && <Winners texts={texts} text={text} position={position} colour={colour} />}
      {texts.autoencoders.length > 0 && <ActiveLatents texts={texts} text={text} position={position} colour={colour} />}
    </section>
  );
}

function candidateId(texts: LanguageTexts, text: LanguageText, position: number): number {
  return numbers(texts.vocabulary.ids)[numbers(text.tokens)[position] ?? -1] ?? -1;
}

/** Nats of the token itself in each stream, and its leakage. */
function Cost({ texts, text, position }: { texts: LanguageTexts; text: LanguageText; position: number }) {
  if (position === 0) return <p class="soft cost">The first token: nothing predicts it.</p>;
  const of = (packed: LanguageText["leakage"]) => (packed ? numbers(packed)[position]! : NaN);
  return (
    <dl class="cost">
      {texts.streams.map((s) => (
        <div key={s}><dt><i class="sign" style={{ background: streamColour(s) }} /> <Hint text={`Nats that this token costs the ${s} stream, predicted from those before it.`}>loss, {s}</Hint></dt><dd>{nats(of(text.loss[s]!))}</dd></div>
      ))}
      {text.leakage && <div><dt><Hint text="Nats by which it costs the ablated stream less if that is told only which gates were open at the token before, than with gates at random.">leakage</Hint></dt><dd>{nats(of(text.leakage))}</dd></div>}
    </dl>
  );
}

const nats = (x: number) => (Math.abs(x) < 0.0005 ? "<0.001" : Math.abs(x) < 1 ? x.toFixed(3) : x.toPrecision(3)).replace("-", "−");
const share = (p: number) => (p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "<0.1 %");

/** Next tokens with a bar for each stream. */
function Next({ texts, candidates, after }: { texts: LanguageTexts; candidates: Candidate[]; after: string }) {
  return (
    <div class="next">
      <h3><Hint text="The tokens that a stream holds likeliest after this one, and the one that follows in the text.">What may follow <code>{visible(printable(after))}</code></Hint></h3>
      <table class="paired">
        <StreamHeads streams={texts.streams} first="token" />
        <tbody>
          {candidates.map((c, i) => (
            <tr key={i} class={c.follows ? "follows" : ""}>
              <th scope="row" title={`id ${c.id}`}><code>{visible(printable(c.token))}</code>{c.follows && <span class="tick" title="follows in the text">✓<span class="hidden"> follows in the text</span></span>}</th>
              <td class="pair" aria-hidden="true">{texts.streams.map((s) => <i key={s} style={{ width: `${Math.max(0.4, 100 * c.probability[s]!)}%`, background: streamColour(s) }} />)}</td>
              {texts.streams.map((s) => <td key={s} class="n">{share(c.probability[s]!)}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
      <p class="soft"><span class="tick">✓</span> follows in the text</p>
    </div>
  );
}

/** Heads of a table with a pair of bars and a number for each stream in a row. */
export function StreamHeads({ streams, first }: { streams: string[]; first: string }) {
  return (
    <thead class={streams.length > 1 ? "" : "hidden"}>
      <tr><th scope="col"><span class="hidden">{first}</span></th><td /> {streams.map((s) => <th key={s} scope="col"><i class="sign" style={{ background: streamColour(s) }} /> <Term name={`${s} stream`}>{s}</Term></th>)}</tr>
    </thead>
  );
}

const KINDS: [UnitKind, string][] = [["neuron", "neurons"], ["channel", "channels"]];

/** Units whose gate is open, layer by layer; pressing one colours the text by it. */
function Winners({ texts, text, position, colour }: { texts: LanguageTexts; text: LanguageText; position: number; colour: string }) {
  return (
    <div class="winners">
      <h3><Hint text="Units whose gate is open at this token, the one that lets most through first. Blue: what passes is positive; orange: negative. Press one to colour the text by what passes it.">Which units win</Hint></h3>
      {Array.from({ length: texts.n_layers }, (_, layer) => (
        <div class="layer" key={layer}>
          <h4>layer {layer}</h4>
          {KINDS.map(([kind, plural]) => {
            const found = winnersAt(text, kind, layer, position);
            return found && (
              <p key={kind}><span class="soft">{plural}, {found.open} of {kind === "neuron" ? texts.n_neurons : texts.n_channels}</span>
                <Chips listed={found.listed} total={found.open} keyOf={(u) => `passes.${kind}.${layer}.${u}`} title={(w) => `${kind} ${layer}.${w.unit}${kind === "channel" ? `, head ${headOf(texts, w.unit)}` : ""}: ${w.value.toPrecision(2)} passes${w.gate < 0.995 ? `, gate ${w.gate.toFixed(2)}` : ""}`} colour={colour} />
              </p>
            );
          })}
        </div>
      ))}
    </div>
  );
}

const FEW = 12;

function Chips({ listed, total, keyOf, title, colour }: { listed: Winner[]; total: number; keyOf: (unit: number) => string; title: (w: Winner) => string; colour: string }) {
  const [all, setAll] = useState(false);
  const most = Math.max(1e-9, ...listed.map((w) => Math.abs(w.value)));
  const shown = all ? listed : listed.slice(0, FEW);
  return (
    <span class="chips">
      {shown.map((w) => (
        <button type="button" key={w.unit} class="chip" aria-pressed={colour === keyOf(w.unit)} title={title(w)} aria-label={title(w)} style={{ backgroundColor: diverging(w.value / most) }}
          onClick={() => setParams({ colour: colour === keyOf(w.unit) ? undefined : keyOf(w.unit) })}>{w.unit}</button>
      ))}
      {listed.length > FEW && <button type="button" class="chip others" onClick={() => setAll(!all)}>{all ? "fewer" : `${listed.length - FEW} more`}</button>}
      {total > listed.length && <span class="soft"> the {listed.length} strongest</span>}
    </span>
  );
}

/** The strongest latents of each autoencoder. */
function ActiveLatents({ texts, text, position, colour }: { texts: LanguageTexts; text: LanguageText; position: number; colour: string }) {
  return (
    <div class="winners">
      <h3><Hint text="Latents of the run's sparse autoencoders that are active at this token, the strongest first. Press one to colour the text by it.">Which latents are active</Hint></h3>
      {latentsAt(text, position).map(({ autoencoder, listed, active }) => {
        const of = texts.autoencoders[autoencoder]!;
        return (
          <div class="layer" key={autoencoder}>
            <p><span class="soft" title={of.name}>{printable(of.site)}, {active} of {of.latents.toLocaleString("en")}</span>
              <Chips listed={listed.map((x) => ({ unit: x.unit, value: x.value, gate: 1 }))} total={active} keyOf={(u) => `latent.${autoencoder}.${u}`} title={(w) => `latent ${w.unit}: ${w.value.toPrecision(3)}`} colour={colour} />
            </p>
          </div>
        );
      })}
    </div>
  );
}
