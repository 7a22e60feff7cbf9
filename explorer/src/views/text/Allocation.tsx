import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { unpack } from "../../data";
import { printable, visible } from "../../format";
import { sequential } from "../../colours";
import type { Reading } from "../../schema/texts";
import { paint } from "./Attention";
import { numbers, place } from "./model";

/** Words by neurons as shades, with each word's capacity at the end of its row. */
export function Allocation({ reading, tokens, current, onNeuron }: { reading: Reading; tokens: readonly string[]; current: number; onNeuron: (neuron: number) => void }) {
  const values = unpack(reading.activations), neurons = unpack(reading.neurons).data, n = neurons.length, capacity = numbers(reading.capacity);
  const [at, setAt] = useState<{ t: number; c: number } | null>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const most = Math.max(1, ...values.data);
  useLayoutEffect(() => { if (canvas.current) paint(canvas.current, tokens.length, n, (t, c) => values.data[place(values, t, c)]! / most); }, [reading]);
  const box = useRef<HTMLDivElement>(null);
  const find = (e: MouseEvent) => {
    const frame = box.current!.getBoundingClientRect();
    const cell = (x: number, size: number, count: number) => Math.min(count - 1, Math.max(0, Math.floor((x / size) * count)));
    return { t: cell(e.clientY - frame.top, frame.height, tokens.length), c: cell(e.clientX - frame.left, frame.width, n) };
  };
  if (!n) return <p class="soft">No neuron is active.</p>;
  return (
    <div class="allocation">
      <div class="rows">
        <ol class="names" aria-hidden="true">{tokens.map((t, i) => <li key={i} class={i === current ? "current" : ""}>{visible(printable(t))}</li>)}</ol>
        <div class="field" ref={box} role="img" aria-label={`Activations of ${n} neurons at ${tokens.length} words`} onMouseMove={(e) => setAt(find(e))} onMouseLeave={() => setAt(null)} onClick={(e) => onNeuron(neurons[find(e).c]!)}>
          <canvas ref={canvas} aria-hidden="true" />
          {at && <i class="cell" style={{ top: `${(100 * at.t) / tokens.length}%`, left: `${(100 * at.c) / n}%`, width: `${100 / n}%`, height: `${100 / tokens.length}%` }} />}
        </div>
        <ol class="capacity" aria-label="Capacity of each word">{capacity.map((x, i) => <li key={i} title={`capacity ${x.toFixed(2)}`}><i style={{ width: `${100 * x}%`, background: sequential(1) }} /><span class="hidden">{tokens[i]}: {x.toFixed(2)}</span></li>)}</ol>
      </div>
      <p class="soft reading" aria-live="off">{at ? <>“{visible(printable(tokens[at.t]!))}”, neuron {neurons[at.c]}: <b>{(values.data[place(values, at.t, at.c)]! * values.scale).toPrecision(2)}</b></> : "Bars at the right: capacity, 1 for a word that shares no direction."}</p>
    </div>
  );
}
