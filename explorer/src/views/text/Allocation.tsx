import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { unpack } from "../../data";
import { printable, visible } from "../../format";
import { sequential } from "../../colours";
import type { Reading } from "../../schema/texts";
import { numbers, place } from "./model";

/** Words by neurons as shades, with each word's capacity at the end of its row. */
export function Allocation({ reading, tokens, current, onNeuron }: { reading: Reading; tokens: readonly string[]; current: number; onNeuron: (neuron: number) => void }) {
  const values = unpack(reading.activations), neurons = unpack(reading.neurons).data, n = neurons.length, capacity = numbers(reading.capacity);
  const [at, setAt] = useState<{ t: number; c: number } | null>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const most = Math.max(1, ...values.data);
  useLayoutEffect(() => {
    const pen = canvas.current?.getContext("2d");
    if (!pen || !n) return;
    canvas.current!.width = n;
    canvas.current!.height = tokens.length;
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--shade").trim().match(/[0-9a-f]{2}/gi)?.map((x) => parseInt(x, 16)) ?? [63, 134, 221];
    const image = pen.createImageData(n, tokens.length);
    for (let i = 0; i < n * tokens.length; i++) image.data.set([hex[0]!, hex[1]!, hex[2]!, 255 * (values.data[i]! / most) ** 0.6], 4 * i);
    pen.putImageData(image, 0, 0);
  }, [reading]);
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
