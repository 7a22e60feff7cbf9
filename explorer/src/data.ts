// What the page holds: a manifest, and blobs that are unpacked when a view first asks for them.
import { useEffect, useState } from "preact/hooks";
import type { Comparison, Differences, History, Manifest, RunEntry } from "./schema/explorer";
import type { Results } from "./schema/results";

declare global {
  interface Window {
    explorerBlob?: (index: number, data: string) => void;
  }
}

/** A run of the page with what every view needs. */
export interface Run {
  entry: RunEntry;
  results: Results;
  history: History;
}

export type Loaded<T> = { state: "loading" } | { state: "absent" } | { state: "failed"; why: string } | { state: "ready"; value: T };

export function readManifest(): Manifest {
  const text = document.getElementById("manifest")?.textContent;
  if (!text) throw new Error("This page holds no data: it is the empty application. jaxablate score DIR writes one with data.");
  return JSON.parse(text) as Manifest;
}

let manifest: Manifest | undefined;
export function theManifest(): Manifest {
  return (manifest ??= readManifest());
}

const blobs = new Map<number, Promise<unknown>>();

/** A blob by its number: parsed JSON. Kept once it was read, unless the page is live. */
export function blob<T>(index: number): Promise<T> {
  let found = blobs.get(index);
  if (!found) {
    found = readBlob(index);
    blobs.set(index, found);
  }
  return found as Promise<T>;
}

async function readBlob(index: number): Promise<unknown> {
  const inside = document.getElementById(`blob-${index}`)?.textContent;
  if (inside) return JSON.parse(await gunzip(inside));
  const { folder, live } = theManifest();
  if (folder) return JSON.parse(await gunzip(await besideThePage(`${folder}/blob-${index}.js`, index)));
  if (live) {
    const answer = await fetch(`${live}/blobs/${index}${location.search}`);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  throw new Error(`part ${index} is not in this page`);
}

/** A script with data, which a page from a disk may load where it may not fetch. */
function besideThePage(path: string, index: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const waiting = window.explorerBlob;
    window.explorerBlob = (i, data) => (i === index ? resolve(data) : waiting?.(i, data));
    const script = document.createElement("script");
    script.src = path;
    script.onerror = () => reject(new Error(`${path} is missing; keep the folder beside the page`));
    document.head.append(script);
  });
}

async function gunzip(base64: string): Promise<string> {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function bytes(base64: string): Uint8Array<ArrayBuffer> {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

/** What a promise gives, as a component sees it; a later promise takes the place of an earlier one. */
export function usePromise<T>(make: () => Promise<T> | null, deps: readonly unknown[]): Loaded<T> {
  const [held, setHeld] = useState<{ deps: readonly unknown[]; loaded: Loaded<T> }>({ deps: [], loaded: { state: "loading" } });
  useEffect(() => {
    let current = true;
    const promise = make();
    const settle = (loaded: Loaded<T>) => current && setHeld({ deps, loaded });
    if (!promise) settle({ state: "absent" });
    else promise.then((value) => settle({ state: "ready", value }), (e: unknown) => settle({ state: "failed", why: e instanceof Error ? e.message : String(e) }));
    return () => { current = false; };
  }, deps as unknown[]);
  const fresh = held.deps.length === deps.length && held.deps.every((x, i) => Object.is(x, deps[i]));
  return fresh ? held.loaded : { state: "loading" };
}

export function loadRun(entry: RunEntry): Promise<Run> {
  return Promise.all([blob<Results>(entry.results), blob<History>(entry.history)]).then(([results, history]) => ({ entry, results, history }));
}

/** What a suite attached to a run, by name (texts, units); absent where the run has none. */
export function useAttachment<T>(run: Run, name: string): Loaded<T> {
  const index = run.entry.attachments[name];
  return usePromise(() => (index === undefined ? null : blob<T>(index)), [index]);
}

export function useComparison(): Loaded<Comparison> {
  const index = theManifest().comparison;
  return usePromise(() => blob<Comparison>(index), [index]);
}

/** What all configurations differ by from one of them; absent where there are none. */
export function useDifferences(reference: number): Loaded<Differences> {
  const index = theManifest().differences[reference];
  return usePromise(() => (index === undefined ? null : blob<Differences>(index)), [index]);
}

/** An array of the data, as the schemas have it. */
export interface PackedArray {
  dtype: "uint8" | "int8" | "uint16" | "int32" | "float32";
  shape: number[];
  data: string;
  scale: number | null;
}

export interface Unpacked {
  /** Stored numbers in C order; a value is `scale` times one. */
  data: Uint8Array | Int8Array | Uint16Array | Int32Array | Float32Array;
  shape: number[];
  scale: number;
}

const unpackedArrays = new WeakMap<PackedArray, Unpacked>();
const ARRAYS = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };

/** The array behind a packed one; unpacked once. */
export function unpack(packed: PackedArray): Unpacked {
  let found = unpackedArrays.get(packed);
  if (!found) {
    const raw = bytes(packed.data);
    found = { data: new ARRAYS[packed.dtype](raw.buffer), shape: packed.shape, scale: packed.scale ?? NaN };
    unpackedArrays.set(packed, found);
  }
  return found;
}

/** Row `index` of the first dimension, values as numbers; the inner dimensions flat. */
export function rowOf(array: Unpacked, ...index: number[]): Float32Array {
  const inner = array.shape.slice(index.length).reduce((a, b) => a * b, 1);
  let start = 0;
  index.forEach((i, axis) => { start += i * array.shape.slice(axis + 1).reduce((a, b) => a * b, 1); });
  return Float32Array.from(array.data.subarray(start, start + inner), (x) => x * array.scale);
}
