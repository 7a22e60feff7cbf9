import * as Plot from "@observablehq/plot";
import { useEffect, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { DataTable, type Column } from "./DataTable";

interface Props<Row> {
  /** What is to be seen, in a sentence: the text in place of the picture. */
  alt: string;
  /** Options of Observable Plot for a width in pixels. */
  options: (width: number) => Plot.PlotOptions;
  /** What the picture is drawn from; it is drawn anew when one of these changes. */
  deps: readonly unknown[];
  /** The numbers behind it, folded away below. */
  table?: { name: string; columns: Column<Row>[]; rows: readonly Row[] };
  children?: ComponentChildren;
}

/** A picture by Observable Plot, as wide as its place, with its numbers as a table below. */
export function Chart<Row>({ alt, options, deps, table, children }: Props<Row>) {
  const place = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  const [open, setOpen] = useState(false);
  useEffect(() => {
    const box = place.current!;
    const measure = () => setWidth(Math.floor(box.clientWidth));
    const watch = new ResizeObserver(measure);
    watch.observe(box);
    measure();
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    if (!width) return;
    const drawn = Plot.plot({ style: { background: "none", fontFamily: "inherit", fontSize: "12px", overflow: "visible" }, ...options(width), width });
    const svg = drawn instanceof SVGElement ? drawn : drawn.querySelector("svg:last-of-type");
    svg?.setAttribute("role", "img");
    svg?.setAttribute("aria-label", alt);
    // Plot names its groups for readers, which within a picture nobody may read.
    for (const group of drawn.querySelectorAll<SVGGElement>("g[aria-label]")) {
      group.dataset.mark = group.getAttribute("aria-label")!;
      group.removeAttribute("aria-label");
    }
    place.current!.replaceChildren(drawn);
  }, [width, alt, ...deps]);
  return (
    <figure class="chart">
      <div ref={place} class="plot" />
      {children}
      {table && (
        <details class="numbers" onToggle={(e) => setOpen(e.currentTarget.open)}>
          <summary>Numbers</summary>
          {open && <DataTable {...table} />}
        </details>
      )}
    </figure>
  );
}
