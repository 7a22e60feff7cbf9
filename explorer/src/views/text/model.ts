// What the texts' data says, as plain numbers and words.
import { unpack, type PackedArray, type Unpacked } from "../../data";
import type { LanguageText, LanguageTexts } from "../../schema/texts";

/** Stands where there is no winner or latent. */
export const NONE = 65_535;
export type UnitKind = "neuron" | "channel";
/** The data's word for a kind of units. */
export const PLURAL = { neuron: "neurons", channel: "channels" } as const;

/** Numbers of a packed array, flat. */
export function numbers(packed: PackedArray): number[] {
  const { data, scale } = unpack(packed);
  return Array.from(data, (x) => x * scale);
}

/** Where an entry of an array lies in its flat data. */
export function place(array: Unpacked, ...index: number[]): number {
  return index.reduce((sum, i, axis) => sum * array.shape[axis]! + i, 0);
}

/** Words of an array of places in a vocabulary. */
export function words(vocabulary: { strings: string[] }, packed: PackedArray): string[] {
  return Array.from(unpack(packed).data, (i) => vocabulary.strings[i] ?? "");
}

/** The tokenizer's ids of an array of places in a vocabulary. */
export function ids(vocabulary: { ids: PackedArray }, packed: PackedArray): number[] {
  const all = unpack(vocabulary.ids).data;
  return Array.from(unpack(packed).data, (i) => all[i] ?? -1);
}

/** What the tokens are coloured by. */
export interface Colouring {
  /** What a shade is, in words. */
  label: string;
  /** One sentence more. */
  about: string;
  values: (number | null)[];
  scale: "sequential" | "diverging";
  /** Value of the fullest shade. */
  most: number;
  unit: string;
}

function finish(label: string, about: string, values: (number | null)[], unit: string, diverging = values.some((x) => (x ?? 0) < 0), most?: number): Colouring {
  const sizes = values.map((x) => Math.abs(x ?? 0));
  return { label, about, values, unit, scale: diverging ? "diverging" : "sequential", most: most ?? Math.max(1e-9, ...sizes) };
}

/** A number in three digits, without zeros that say nothing. */
export const short = (x: number) => (Number.isFinite(x) ? Number(x.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 8 }).replace("-", "−") : "–");

const finite = (x: number) => (Number.isFinite(x) ? x : null);

/** One unit's name as the data's other parts have it: layer.unit. */
export const unitName = (layer: number, unit: number) => `${layer}.${unit}`;

/** A head and the place in it of an attention channel. */
export function headOf(texts: { n_channels: number; n_heads: number }, channel: number): number {
  return Math.floor(channel / (texts.n_channels / texts.n_heads));
}

/** The colouring that a key names: loss.clean, loss.gap, leakage, neuron.L.U, gate.neuron.L.U, passes.channel.L.U, latent.A.S; null where the text has none such. */
export function colouring(texts: LanguageTexts, text: LanguageText, key: string): Colouring | null {
  const [what = "", ...rest] = key.split(".");
  if (what === "loss") return losses(text, rest[0] ?? "clean");
  if (what === "leakage") return text.leakage && finish("leakage", "Nats by which a token costs the ablated stream less if it is told only which gates are open, than with gates at random. What gates multiply is its mean in both.", numbers(text.leakage).map(finite), "nats", true);
  if (what === "latent") return latent(texts, text, Number(rest[0]), Number(rest[1]));
  const passing = what === "gate" || what === "passes";
  const [kind, layer, unit] = passing ? [rest[0], Number(rest[1]), Number(rest[2])] : [what, Number(rest[0]), Number(rest[1])];
  if ((kind !== "neuron" && kind !== "channel") || !Number.isInteger(layer) || !Number.isInteger(unit) || layer < 0 || layer >= texts.n_layers || unit < 0 || unit >= (kind === "neuron" ? texts.n_neurons : texts.n_channels)) return null;
  const name = kind === "neuron" ? `neuron ${unitName(layer, unit)}` : `channel ${unitName(layer, unit)} (head ${headOf(texts, unit)})`;
  return passing ? winner(text, kind, layer, unit, what, name) : activation(text, kind, layer, unit, name);
}

function losses(text: LanguageText, which: string): Colouring | null {
  const of = (stream: string) => (text.loss[stream] ? numbers(text.loss[stream]!).map(finite) : null);
  if (which === "gap") {
    const [clean, ablated] = [of("clean"), of("ablated")];
    return clean && ablated && finish("ablated loss − clean loss", "Nats that a token costs the ablated stream more than the clean one; orange where it costs less.", ablated.map((x, i) => (x === null || clean[i] == null ? null : x - clean[i]!)), "nats", true);
  }
  const values = of(which);
  return values && finish(`loss, ${which} stream`, "Nats that a token costs, predicted from those before it: the more, the more surprising.", values, "nats", false);
}

function activation(text: LanguageText, kind: UnitKind, layer: number, unit: number, name: string): Colouring | null {
  const found = text.activations?.[PLURAL[kind]];
  if (!found) return null;
  const values = unpack(found.values), largest = unpack(found.largest);
  const size = largest.data[place(largest, layer, unit)]! * largest.scale;
  const at = (t: number) => values.data[place(values, layer, t, unit)]! * values.scale * size;
  return finish(name, "Activation in the clean stream.", Array.from({ length: values.shape[1]! }, (_, t) => at(t)), "", undefined);
}

function winner(text: LanguageText, kind: UnitKind, layer: number, unit: number, what: string, name: string): Colouring | null {
  const found = text.winners?.[PLURAL[kind]];
  if (!found) return null;
  const units = unpack(found.units), told = unpack(what === "gate" ? found.gates : found.values);
  const [, length = 0, k = 0] = units.shape;
  const values = Array.from({ length }, (_, t) => {
    const start = place(units, layer, t, 0);
    const slot = units.data.subarray(start, start + k).indexOf(unit);
    return slot < 0 ? 0 : told.data[start + slot]! * told.scale;
  });
  return what === "gate" ? finish(`gate of ${name}`, "Where the gate is open.", values, "", false, 1)
    : finish(`what passes ${name}`, "Activation of the ablated stream times its gate: nothing where the gate is shut.", values, "");
}

function latent(texts: LanguageTexts, text: LanguageText, autoencoder: number, unit: number): Colouring | null {
  const found = text.latents.find((x) => x.autoencoder === autoencoder), of = texts.autoencoders[autoencoder];
  if (!found || !of || !(unit >= 0 && unit < of.latents)) return null;
  const units = unpack(found.units), told = unpack(found.values), [length = 0, m = 0] = units.shape;
  const values = Array.from({ length }, (_, t) => {
    const slot = units.data.subarray(t * m, (t + 1) * m).indexOf(unit);
    return slot < 0 ? 0 : told.data[t * m + slot]! * told.scale;
  });
  return finish(`latent ${unit} of ${of.name}`, `Activation of a latent of the autoencoder at ${of.site}.`, values, "", false);
}

export interface Winner { unit: number; gate: number; value: number }

/** Open gates of one token and layer, the one that lets most through first, and how many there are. */
export function winnersAt(text: LanguageText, kind: UnitKind, layer: number, position: number): { listed: Winner[]; open: number } | null {
  const found = text.winners?.[PLURAL[kind]];
  if (!found) return null;
  const [units, gates, values, open] = [found.units, found.gates, found.values, found.open].map(unpack) as [Unpacked, Unpacked, Unpacked, Unpacked];
  const start = place(units, layer, position, 0), listed: Winner[] = [];
  for (let i = start; i < start + units.shape[2]!; i++) {
    if (units.data[i] !== NONE) listed.push({ unit: units.data[i]!, gate: gates.data[i]! * gates.scale, value: values.data[i]! * values.scale });
  }
  return { listed, open: open.data[place(open, layer, position)]! };
}

export interface Candidate { token: string; id: number; follows: boolean; probability: Record<string, number> }

/** What each stream holds likely after a token, the likeliest of either first. */
export function candidatesAt(texts: LanguageTexts, text: LanguageText, position: number): Candidate[] {
  const tokens = unpack(text.predictions.tokens), all = unpack(texts.vocabulary.ids), count = tokens.shape[1]!;
  const next = position + 1 < tokens.shape[0]! ? unpack(text.tokens).data[position + 1] : text.following;
  const found = Array.from({ length: count }, (_, c) => {
    const i = place(tokens, position, c), at = tokens.data[i]!;
    const probability = Object.fromEntries(texts.streams.map((s) => {
      const p = unpack(text.predictions.probabilities[s]!);
      return [s, p.data[i]! * p.scale];
    }));
    return { token: texts.vocabulary.strings[at] ?? "", id: all.data[at] ?? -1, follows: at === next, probability };
  });
  const best = (c: Candidate) => Math.max(...Object.values(c.probability));
  return found.sort((a, b) => best(b) - best(a));
}

export interface LatentHere { autoencoder: number; unit: number; value: number }

export function latentsAt(text: LanguageText, position: number): { autoencoder: number; listed: LatentHere[]; active: number }[] {
  return text.latents.map((found) => {
    const units = unpack(found.units), values = unpack(found.values), m = units.shape[1]!, listed: LatentHere[] = [];
    for (let i = position * m; i < (position + 1) * m; i++)
      if (units.data[i] !== NONE) listed.push({ autoencoder: found.autoencoder, unit: units.data[i]!, value: values.data[i]! * values.scale });
    return { autoencoder: found.autoencoder, listed, active: unpack(found.active).data[position]! };
  });
}

/** One head's weights [T, T] of a text, a row for each query; of a decoder, which stores the lower triangle. */
export function pattern(text: LanguageText, stream: string, layer: number, head: number): Pattern | null {
  const packed = text.attention?.[stream];
  if (!packed) return null;
  const stored = unpack(packed), size = stored.shape[2]!, T = Math.round((Math.sqrt(8 * size + 1) - 1) / 2), start = place(stored, layer, head, 0);
  return { T, causal: true, at: (i, j) => (j > i ? 0 : stored.data[start + (i * (i + 1)) / 2 + j]! * stored.scale) };
}

/** A square of weights in [0, 1]. */
export interface Pattern {
  T: number;
  causal: boolean;
  at: (query: number, key: number) => number;
}

/** Texts that hold what was pasted: token ids in this order, or words of the text; where the first match begins. */
export function search(texts: { vocabulary: { strings: string[]; ids: PackedArray }; texts: { tokens: PackedArray }[] }, query: string, separator = ""): { text: number; position: number }[] {
  const pasted = query.trim();
  if (!pasted) return [];
  const asIds = /^[\s,;[\](){}\d]+$/.test(pasted) ? pasted.match(/\d+/g)?.map(Number) : undefined;
  const found: { text: number; position: number }[] = [];
  texts.texts.forEach((text, i) => {
    const position = asIds ? matchIds(ids(texts.vocabulary, text.tokens), asIds) : matchWords(words(texts.vocabulary, text.tokens), pasted, separator);
    if (position >= 0) found.push({ text: i, position });
  });
  return found;
}

/** Where a sequence of ids begins in a text; one that is longer than the text's part may begin with all of it. */
function matchIds(text: number[], wanted: number[]): number {
  for (let start = 0; start < text.length; start++) {
    const length = Math.min(wanted.length, text.length - start);
    if (length < wanted.length && start > 0) break;
    if (wanted.slice(0, length).every((id, i) => text[start + i] === id)) return start;
  }
  return -1;
}

function matchWords(tokens: string[], wanted: string, separator: string): number {
  const at = tokens.join(separator).toLowerCase().indexOf(wanted.toLowerCase());
  if (at < 0) return -1;
  let length = 0;
  return tokens.findIndex((token) => (length += token.length + separator.length) > at);
}
