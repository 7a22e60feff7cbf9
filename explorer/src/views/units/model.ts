// The units of a run as rows, and what is known of each.
import { rowOf, unpack, type Unpacked } from "../../data";
import type { TokenEffects, UnitGraph, UnitMeasure, Units, UnitsData } from "../../schema/units";

export type Sort = Units["sort"];

export const SORTS: Record<Sort, { one: string; many: string; term: string }> = {
  neuron: { one: "neuron", many: "Neurons", term: "neuron" },
  channel: { one: "channel", many: "Channels", term: "attention channel" },
  "neuron gate": { one: "neuron gate", many: "Neuron gates", term: "gate" },
  "channel gate": { one: "channel gate", many: "Channel gates", term: "gate" },
  latent: { one: "latent", many: "Latents", term: "latent" },
};

/** One unit of the list. */
export class Unit {
  constructor(readonly group: Units, /** Number in its group. */ readonly index: number, private readonly columns: Columns) {}

  /** Number among all units. */
  get id(): number { return this.group.first + this.index; }
  /** 3.17, or the number of a latent. */
  get name(): string { return this.group.sort === "latent" ? `${this.index}` : `${this.group.layer}.${this.index}`; }
  get rate(): number { return at(this.columns.rate, this.index); }
  get strongest(): number { return at(this.columns.strongest, this.index); }
  get graph(): UnitGraph | undefined { return this.columns.graphs.get(this.index); }

  /** A measure by name; NaN where the unit does not have it. `random`: what random directions have that fire as often. */
  value(name: string, random = false): number {
    const array = (random ? this.columns.random : this.columns.measures).get(name);
    return array ? at(array, this.index) : NaN;
  }
}

/** What units of a group share: numbers of each, unpacked once. */
interface Columns {
  rate: Unpacked;
  strongest: Unpacked;
  measures: Map<string, Unpacked>;
  random: Map<string, Unpacked>;
  graphs: Map<number, UnitGraph>;
}

/** A token of a context. */
export interface ContextToken {
  token: number;
  /** Value as a share of the unit's strongest. */
  share: number;
}

export interface Context {
  tokens: ContextToken[];
  /** Place of the token at which the unit is strongest among `tokens`. */
  pivot: number;
  /** Whether the story begins before what is shown, and goes on after it. */
  cut: [boolean, boolean];
  weaker: boolean;
  window: number;
  position: number;
}

export interface Effect {
  token: number;
  effect: number;
}

export interface FiringToken {
  token: number;
  share: number;
  rate: number;
}

export interface Partner {
  unit: Unit;
  correlation: number;
}

/** All units of a run. */
export class Model {
  readonly units: Unit[];
  private readonly text: Unpacked;
  private readonly length: number;
  private readonly byString = new Map<string, number[]>();

  constructor(readonly data: UnitsData) {
    this.text = unpack(data.text);
    this.length = data.text.shape[1] ?? 1;
    this.units = data.groups.flatMap((group) => unitsOf(group));
    data.vocabulary.forEach((word, i) => {
      const same = this.byString.get(word);
      if (same) same.push(i);
      else this.byString.set(word, [i]);
    });
  }

  word(token: number): string {
    return this.data.vocabulary[token] ?? "";
  }

  /** Tokens with exactly this text; several where a tokenizer has parts of characters. */
  tokensOf(text: string): number[] {
    return this.byString.get(text) ?? [];
  }

  find(group: string | undefined, index: string | undefined): Unit | undefined {
    const found = this.data.groups.find((g) => g.name === group);
    const i = Number(index);
    return found && Number.isInteger(i) && i >= 0 && i < found.n && index !== "" ? this.units[found.first + i] : undefined;
  }

  /** The unit of another sort with the same layer and number: a neuron's gate, a gate's neuron. */
  twin(unit: Unit): Unit | undefined {
    const other = { neuron: "neuron gate", "neuron gate": "neuron", channel: "channel gate", "channel gate": "channel", latent: "" }[unit.group.sort];
    const group = this.data.groups.find((g) => g.sort === other && g.layer === unit.group.layer);
    return group && this.units[group.first + unit.index];
  }

  contexts(unit: Unit): Context[] {
    const { group, index } = unit;
    const places = rowOf(unpack(group.places), index);
    const around = unpack(group.around);
    const width = group.around.shape[2]!;
    return [...places].flatMap((place, i) => (place < 0 ? [] : [this.context(place, rowOf(around, index, i), width, i >= this.data.strongest)]));
  }

  private context(place: number, shares: Float32Array, width: number, weaker: boolean): Context {
    const { before, end } = this.data;
    const window = Math.floor(place / this.length);
    const position = place - window * this.length;
    const at = (offset: number) => this.text.data[place + offset]!;
    let first = 0, last = 0;
    while (first > -before && position + first > 0 && at(first - 1) !== end) first--;
    while (last < width - before - 1 && position + last < this.length - 1 && at(last) !== end) last++;
    const tokens = Array.from({ length: last - first + 1 }, (_, i) => ({ token: at(first + i), share: shares[before + first + i]! }));
    const more: [boolean, boolean] = [position + first > 0 && at(first - 1) !== end, position + last < this.length - 1 && at(last) !== end];
    return { tokens, pivot: -first, cut: more, weaker, window, position };
  }

  /** Tokens up to and with the pivot of one of the strongest places, the last first; for searching. */
  reader(unit: Unit): (place: number, back: number) => number {
    const places = unpack(unit.group.places);
    const size = unit.group.places.shape[1]!;
    return (place, back) => {
      if (place >= this.data.strongest) return -1;
      const start = places.data[unit.index * size + place]!;
      if (start < 0 || back > start % this.length) return -1;
      for (let i = 1; i <= back; i++) if (this.text.data[start - i] === this.data.end) return -1;
      return this.text.data[start - back]!;
    };
  }

  firingTokens(unit: Unit): FiringToken[] {
    const { firing_tokens, firing_shares, firing_rates } = unit.group;
    const tokens = rowOf(unpack(firing_tokens), unit.index);
    const shares = rowOf(unpack(firing_shares), unit.index);
    const rates = rowOf(unpack(firing_rates), unit.index);
    return [...tokens].map((token, i) => ({ token, share: shares[i]!, rate: rates[i]! })).filter((x) => x.token >= 0 && x.share > 0);
  }

  effects(unit: Unit, which: "promotes" | "suppresses"): Effect[] {
    const found: TokenEffects | null = unit.group[which];
    if (!found) return [];
    const tokens = rowOf(unpack(found.tokens), unit.index);
    const effects = rowOf(unpack(found.effects), unit.index);
    return [...tokens].map((token, i) => ({ token, effect: effects[i]! }));
  }

  partners(unit: Unit): Partner[] {
    const ids = rowOf(unpack(unit.group.partners), unit.index);
    const correlations = rowOf(unpack(unit.group.correlations), unit.index);
    return [...ids].flatMap((id, i) => (id < 0 ? [] : [{ unit: this.units[id]!, correlation: correlations[i]! }]));
  }

  histogram(unit: Unit): { from: number; to: number; count: number }[] {
    const counts = rowOf(unpack(unit.group.histogram), unit.index);
    const low = at(unpack(unit.group.low), unit.index), high = at(unpack(unit.group.high), unit.index);
    const step = (high - low) / counts.length;
    return [...counts].map((count, i) => ({ from: low + i * step, to: low + (i + 1) * step, count }));
  }

  measure(unit: Unit, measure: UnitMeasure): { value: number; shuffled: number | null; random: number | null } {
    const read = (array: UnitMeasure["shuffled"]) => (array ? at(unpack(array), unit.index) : null);
    return { value: read(measure.values)!, shuffled: read(measure.shuffled), random: read(measure.directions) };
  }
}

export function at(array: Unpacked, index: number): number {
  return array.data[index]! * array.scale;
}

function unitsOf(group: Units): Unit[] {
  const columns: Columns = {
    rate: unpack(group.rate), strongest: unpack(group.strongest), graphs: new Map(group.graphs.map((g) => [g.unit, g])),
    measures: new Map(group.measures.map((m) => [m.name, unpack(m.values)])),
    random: new Map(group.measures.flatMap((m) => (m.directions ? [[m.name, unpack(m.directions)] as const] : []))),
  };
  return Array.from({ length: group.n }, (_, index) => new Unit(group, index, columns));
}
