import type { ComponentChildren } from "preact";
import { diverging, sequential } from "../../colours";
import { Hint } from "../../ui/Term";
import { short, type Colouring } from "./model";

const STEPS = [0, 0.25, 0.5, 0.75, 1];

/** What shades of tokens mean: a strip from the least to the greatest. */
export function Legend({ colours, children }: { colours: Colouring; children?: ComponentChildren }) {
  const both = colours.scale === "diverging", steps = both ? [...STEPS.slice(1).reverse().map((x) => -x), ...STEPS] : STEPS;
  const unit = colours.unit ? ` ${colours.unit}` : "";
  return (
    <div class="shade-key">
      <span class="shade-words"><Hint text={colours.about}>{colours.label}</Hint></span>
      <span class="shade-strip" aria-hidden="true">
        <span class="n">{both ? `−${short(colours.most)}` : "0"}</span>
        <span class="shades">{steps.map((x) => <i key={x} style={{ backgroundColor: (both ? diverging : sequential)(x) }} />)}</span>
        <span class="n">{short(colours.most)}{unit}</span>
      </span>
      {children}
    </div>
  );
}
