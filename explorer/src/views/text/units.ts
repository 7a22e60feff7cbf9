// Links from a text to the units' pages.
import type { Run } from "../../data";
import { href } from "../../route";
import type { LanguageTexts } from "../../schema/texts";

/** The page of the unit that a text is coloured by; null where it is no unit, or the page has no units. */
export function unitLink(run: Run, texts: LanguageTexts, colour: string): { href: string; words: string } | null {
  if (run.entry.attachments["units"] === undefined) return null;
  const [what = "", ...rest] = colour.split(".");
  if (what === "latent") {
    const of = texts.autoencoders[Number(rest[0])];
    return of ? link(run, of.name, rest[1], `latent ${rest[1]}`) : null;
  }
  const [kind, layer, unit] = what === "gate" || what === "passes" ? rest : [what, ...rest];
  if (kind !== "neuron" && kind !== "channel") return null;
  const group = `${kind}${what === "gate" ? "-gate" : ""}-${layer}`;
  return link(run, group, unit, `${kind} ${layer}.${unit}`);
}

function link(run: Run, group: string, unit: string | undefined, words: string) {
  return { href: href("units", [group, unit ?? 0], { run: run.entry.name }), words: `${words} among the units →` };
}
