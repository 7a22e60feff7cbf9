// What a query box understands: conditions that must all hold, such as  neurons fires on " dog" after " the" rate < 1%
import type { Model, Sort, Unit } from "./model";

export interface Answer {
  /** Units that meet every condition, best match first where a condition says how well. */
  units: Unit[];
  /** How well each matches, where that is not just yes or no: number among all units -> strength in [0, 1] and why. */
  matches: Map<number, Match>;
  /** What the query was taken to mean, a phrase a condition. */
  meaning: string[];
  problems: Problem[];
}

export interface Match {
  strength: number;
  why: string;
}

export interface Problem {
  text: string;
  /** Queries that may have been meant. */
  instead: string[];
}

/** Queries that find something among these units, to begin with. */
export function examples(model: Model): { query: string; about: string }[] {
  const telling = (sort: Sort) => model.units.filter((u) => u.group.sort === sort && u.value("information") > 0).sort((a, b) => b.value("information") - a.value("information")).slice(0, 40);
  const found: { query: string; about: string }[] = [];
  const plain = (token: number) => /^ ?[\p{L}]{2,}$/u.test(model.word(token)) && model.word(token);
  for (const unit of [...telling("neuron"), ...telling("latent")]) {
    const read = model.reader(unit), word = plain(read(0, 0)), before = plain(read(0, 1));
    if (word && before) { found.push({ query: `fires on "${word}" after "${before}"`, about: "fires on a token, directly after another" }); break; }
  }
  for (const unit of telling("neuron").reverse()) {
    const word = plain(model.effects(unit, "promotes")[0]?.token ?? -1);
    if (word) { found.push({ query: `promotes "${word}"`, about: "raises the logit of a token" }); break; }
  }
  const layer = Math.max(...model.data.groups.map((g) => g.layer));
  found.push({ query: `neurons layer ${layer} rate < 2%`, about: "neurons of a layer that fire rarely" }, { query: "information > random effective tokens < 5", about: "tells more than random directions, and fires on few tokens" });
  if (model.data.groups.some((g) => g.sort === "neuron gate")) found.push({ query: "gates never fire", about: "gates that never win" });
  if (model.data.groups.some((g) => g.sort === "latent")) found.push({ query: "latents rate < 0.1%", about: "latents that are rarely active" });
  return found;
}

const MEASURES: Record<string, string> = {
  information: "information", bits: "information", "effective tokens": "effective_tokens", tokens: "effective_tokens", selectivity: "selectivity",
  "lifetime sparsity": "lifetime_sparsity", sparsity: "lifetime_sparsity", hoyer: "hoyer", gini: "gini", "excess kurtosis": "kurtosis", kurtosis: "kurtosis",
};
const FIELDS = ["rate", "density", "strongest", "maximum", "max", "layer", "unit", ...Object.keys(MEASURES)].sort((a, b) => b.length - a.length);
const KINDS: Record<string, Sort[]> = {
  neuron: ["neuron"], channel: ["channel"], gate: ["neuron gate", "channel gate"], "neuron gate": ["neuron gate"], "channel gate": ["channel gate"], latent: ["latent"], feature: ["latent"],
};
const PHRASES = ["fires on", "fires at", "after", "with", "promotes", "suppresses"] as const;

type Phrase = (typeof PHRASES)[number];
type Test = (unit: Unit) => boolean | Match;

interface Condition {
  meaning: string;
  test: Test;
}

/** Units that meet a query; an empty one is met by all. */
export function search(model: Model, units: readonly Unit[], query: string): Answer {
  const { conditions, problems } = parse(model, query);
  const matches = new Map<number, Match>();
  const found = units.filter((unit) => {
    const parts: Match[] = [];
    for (const c of conditions) {
      const result = c.test(unit);
      if (result === false) return false;
      if (result !== true) parts.push(result);
    }
    if (parts.length) matches.set(unit.id, { strength: parts.reduce((a, p) => a * p.strength, 1) ** (1 / parts.length), why: parts.map((p) => p.why).join("; ") });
    return true;
  });
  if (matches.size) found.sort((a, b) => matches.get(b.id)!.strength - matches.get(a.id)!.strength || a.id - b.id);
  return { units: found, matches, meaning: conditions.map((c) => c.meaning).filter(Boolean), problems };
}

export function parse(model: Model, query: string): { conditions: Condition[]; problems: Problem[] } {
  const conditions: Condition[] = [], problems: Problem[] = [];
  const words: Partial<Record<Phrase, string[]>> = {};
  let rest = query.replace(/[“”„]/g, '"').replace(/[’‘]/g, "'");
  while ((rest = rest.replace(/^[\s,;]+/, ""))) {
    const [taken, result] = next(model, rest);
    if ("phrase" in result) (words[result.phrase] ??= []).push(result.text);
    else if ("problem" in result) problems.push(result.problem);
    else if ("meaning" in result) conditions.push(result);
    rest = rest.slice(Math.max(taken, 1));
  }
  conditions.push(...tokenConditions(model, words, problems));
  return { conditions, problems };
}

type Parsed = Condition | { problem: Problem } | { phrase: Phrase; text: string } | { nothing: true };

/** The first condition of a text, and how many characters it takes. */
function next(model: Model, text: string): [number, Parsed] {
  const quoted = (start: number): [number, string] | null => {
    const m = /^\s*(?:"([^"]*)"?|'([^']*)'?|([^\s,;"'<>=]+))/.exec(text.slice(start));
    return m && [start + m[0].length, m[1] ?? m[2] ?? m[3]!];
  };
  if (/^["']/.test(text)) {
    const [end, word] = quoted(0)!;
    return [end, word === "" ? { nothing: true } : { phrase: "fires on", text: word }];
  }
  const skipped = /^(and|that|which|where|is|are|units)\b/i.exec(text);
  if (skipped) return [skipped[0].length, { nothing: true }];
  const logic = /^(or|not)\b/i.exec(text);
  if (logic) return [logic[0].length, problem(`“${logic[0]}” is not understood: every condition must hold.`)];
  const phrase = /^(fires?\s+on|fires?\s+at|after|with|promotes?|suppresses|suppress)\b/i.exec(text);
  if (phrase) {
    const name = phrase[0].toLowerCase().replace(/^fires?\s+(on|at)$/, "fires on").replace(/^promotes?$/, "promotes").replace(/^suppress(es)?$/, "suppresses") as Phrase;
    const found = quoted(phrase[0].length);
    if (!found || found[1] === "") return [phrase[0].length, problem(`“${phrase[0]}” needs a token in quotes.`, [`${phrase[0]} " dog"`])];
    return [found[0], { phrase: name, text: found[1] }];
  }
  const kind = /^(?:kind\s+)?((?:neuron|channel)\s+gate|neuron|channel|gate|latent|feature)s?\b/i.exec(text);
  if (kind) {
    const sorts = KINDS[kind[1]!.toLowerCase().replace(/\s+/, " ")]!;
    return [kind[0].length, { meaning: `is a ${sorts.join(" or ")}`, test: (u) => sorts.includes(u.group.sort) }];
  }
  const state = /^(dead|never\s+fires?|live|has\s+(?:a\s+)?graph|graph)\b/i.exec(text);
  if (state) return [state[0].length, stateCondition(state[0].toLowerCase())];
  const named = /^(\d+)\.(\d+)(?![\d%])/.exec(text);
  if (named) return [named[0].length, { meaning: `is called ${named[0]}`, test: (u) => u.name === named[0] }];
  const field = FIELDS.find((f) => new RegExp(`^${f}\\b`, "i").test(text));
  if (field) return comparison(model, text, field);
  const word = /^[^\s,;]+/.exec(text)![0];
  const bare = word.replace(/["']/g, "");
  const near = [` ${bare}`, bare].filter((w) => model.tokensOf(w).length);
  return [word.length, problem(`“${word}” is not understood.`, near.slice(0, 1).map((w) => `fires on "${w}"`))];
}

function problem(text: string, instead: string[] = []): { problem: Problem } {
  return { problem: { text, instead } };
}

function stateCondition(words: string): Condition {
  if (words.endsWith("graph")) return { meaning: "has a graph", test: (u) => u.graph !== undefined };
  if (words === "live") return { meaning: "fires on some token", test: (u) => u.rate > 0 };
  return { meaning: "never fires on the text", test: (u) => u.rate === 0 };
}

const NUMBER = String.raw`(-?\d*\.?\d+(?:e-?\d+)?)\s*(%?)`;

/** layer 2, layer 1-3, rate < 1%, information > random */
function comparison(model: Model, text: string, field: string): [number, Parsed] {
  const lower = field.toLowerCase();
  const measure = MEASURES[lower];
  const value = (u: Unit): number => {
    if (lower === "layer") return u.group.layer;
    if (lower === "unit") return u.index;
    if (lower === "rate" || lower === "density") return u.rate;
    return measure ? u.value(measure) : u.strongest;
  };
  const title = measure ? lower : { density: "rate", maximum: "strongest", max: "strongest" }[lower] ?? lower;
  const rest = text.slice(field.length);
  const range = new RegExp(`^\\s*(?:from\\s+)?${NUMBER}\\s*(?:-|–|\\.\\.|to)\\s*${NUMBER}`, "i").exec(rest);
  if (range) {
    const low = amount(range[1]!, range[2]! || range[4]!), high = amount(range[3]!, range[4]!);
    return [field.length + range[0].length, { meaning: `${title} from ${low} to ${high}`, test: (u) => value(u) >= low && value(u) <= high }];
  }
  const random = /^\s*(<|>|above|below)\s*=?\s*(random|chance)(?:\s+directions?)?/i.exec(rest);
  if (random && measure) {
    const above = random[1] === ">" || random[1]!.toLowerCase() === "above";
    const test = (u: Unit) => { const by = u.value(measure, true); return above ? value(u) > by : value(u) < by; };
    return [field.length + random[0].length, { meaning: `${title} ${above ? "above" : "below"} that of random directions which fire as often`, test }];
  }
  const one = new RegExp(`^\\s*(<=|>=|=|<|>|≤|≥|above|over|below|under|at least|at most)?\\s*${NUMBER}`, "i").exec(rest);
  if (!one) {
    const layers = [...new Set(model.data.groups.map((g) => g.layer))];
    const example = lower === "layer" ? `layer ${layers[0] ?? 0}` : lower === "unit" ? "unit 17" : lower === "rate" || lower === "density" ? "rate < 1%" : `${field} > 0.5`;
    return [field.length, problem(`“${field}” needs a number.`, [example])];
  }
  const bound = amount(one[2]!, one[3]!);
  const sign = ({ above: ">", over: ">", below: "<", under: "<", "at least": ">=", "at most": "<=", "≤": "<=", "≥": ">=" } as Record<string, string>)[one[1]?.toLowerCase() ?? ""] ?? one[1] ?? "=";
  if (lower === "layer" && sign === "=" && !model.data.groups.some((g) => g.layer === bound))
    return [field.length + one[0].length, problem(`There is no layer ${bound}; layers are ${[...new Set(model.data.groups.map((g) => g.layer))].sort((a, b) => a - b).join(", ")}.`)];
  const tests: Record<string, (x: number) => boolean> = {
    "<": (x) => x < bound, ">": (x) => x > bound, "<=": (x) => x <= bound, ">=": (x) => x >= bound, "=": (x) => Math.abs(x - bound) <= 1e-9 + 5e-4 * Math.abs(bound),
  };
  return [field.length + one[0].length, { meaning: `${title} ${sign} ${one[2]}${one[3]}`, test: (u) => tests[sign]!(value(u)) }];
}

function amount(digits: string, percent: string): number {
  return Number(digits) / (percent ? 100 : 1);
}

/** Conditions about tokens belong together: the place where a unit fires on one is the place that must be after another. */
function tokenConditions(model: Model, words: Partial<Record<Phrase, string[]>>, problems: Problem[]): Condition[] {
  const conditions: Condition[] = [];
  for (const which of ["promotes", "suppresses"] as const) {
    for (const text of words[which] ?? []) {
      const wanted = asTokens(model, text, which, problems);
      if (!wanted) { conditions.push({ meaning: "", test: () => false }); continue; }
      conditions.push({ meaning: `${which} ${quote(text)}`, test: (u) => {
        const effects = model.effects(u, which);
        const i = effects.findIndex((x) => wanted.has(x.token));
        return i >= 0 && { strength: 1 - i / (2 * effects.length), why: `${which} it as number ${i + 1}` };
      } });
    }
  }
  const on = (words["fires on"] ?? []).map((text) => ends(model, text, "fires on", problems));
  const after = (words.after ?? []).map((text) => ends(model, text, "after", problems));
  const around = (words.with ?? []).map((text) => asTokens(model, text, "with", problems));
  if ([...on, ...after, ...around].some((x) => x === null)) {
    conditions.push({ meaning: "", test: () => false });
    return conditions;
  }
  if (on.length + after.length + around.length === 0) return conditions;
  const places = model.data.strongest;
  const single = on.length === 1 && !after.length && !around.length && on[0]!.tokens;
  const meaning = [...(words["fires on"] ?? []).map((t) => `fires on ${quote(t)}`), ...(words.after ?? []).map((t) => `directly after ${quote(t)}`), ...(words.with ?? []).map((t) => `with ${quote(t)} before it`)].join(" ");
  conditions.push({ meaning, test: (u) => {
    const read = model.reader(u);
    let shown = 0, matched = 0;
    for (let place = 0; place < places; place++) {
      if (read(place, 0) < 0) continue;
      shown++;
      const offset = after.length ? 1 : 0;
      const fits = on.every((x) => x!.fits((back) => read(place, back))) && after.every((x) => x!.fits((back) => read(place, back + offset))) && around.every((x) => {
        for (let back = 1; back <= model.data.before; back++) { const token = read(place, back); if (token < 0) return false; if (x!.has(token)) return true; }
        return false;
      });
      if (fits) matched++;
    }
    if (single) {
      const often = model.firingTokens(u).find((x) => single.has(x.token));
      if (often && often.share >= 0.02) return { strength: Math.max(often.share, matched / Math.max(shown, 1)), why: `${Math.round(100 * often.share)} % of its firings${matched ? `, ${matched} of its ${shown} strongest places` : ""}` };
    }
    return matched > 0 && { strength: matched / shown, why: `${matched} of its ${shown} strongest places` };
  } });
  return conditions;
}

function quote(text: string): string {
  return `"${text}"`;
}

/** Tokens that a text means: those that are it, else those that are it but for the space before and for capitals. */
function asTokens(model: Model, text: string, phrase: string, problems: Problem[]): Set<number> | null {
  const exact = model.tokensOf(text);
  if (exact.length) return new Set(exact);
  const plain = text.trim().toLowerCase();
  const loose = model.data.vocabulary.flatMap((word, i) => (plain && word.trim().toLowerCase() === plain ? [i] : []));
  if (loose.length) return new Set(loose);
  const near = model.data.vocabulary.filter((word) => plain.length > 1 && word.trim().toLowerCase().startsWith(plain.slice(0, Math.max(2, plain.length - 1)))).slice(0, 3);
  problems.push({ text: `No token of the text is ${quote(text)}.`, instead: near.map((word) => `${phrase} "${word}"`) });
  return null;
}

interface Ending {
  tokens: Set<number> | null;
  fits: (read: (back: number) => number) => boolean;
}

/** Whether a text that is read back ends with some words: one token, or several. */
function ends(model: Model, text: string, phrase: string, problems: Problem[]): Ending | null {
  const several = /\S\s+\S/.test(text) && !model.tokensOf(text).length;
  if (!several) {
    const tokens = asTokens(model, text, phrase, problems);
    return tokens && { tokens, fits: (read) => tokens.has(read(0)) };
  }
  return { tokens: null, fits: (read) => {
    let joined = "";
    for (let back = 0; joined.length < text.length; back++) {
      const token = read(back);
      if (token < 0) break;
      joined = model.word(token) + joined;
    }
    return joined.endsWith(text) || joined.toLowerCase().endsWith(` ${text.trim().toLowerCase()}`);
  } };
}
