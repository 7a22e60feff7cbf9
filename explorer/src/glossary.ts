// Every term that a page shows, in one or two sentences for somebody who has not read the papers.
export const GLOSSARY: Record<string, string> = {
  "clean stream": "The ordinary transformer: nothing is gated. After training it is the model; its loss is the published perplexity.",
  "ablated stream": "The second pass beside the clean one with the same weights, in which only k channels and k neurons of each layer may act at each token.",
};
const WORDS = Object.keys(GLOSSARY).sort((a, b) => b.length - a.length);
/** The entry that a label's words name, the longest first; none where the glossary has none. */
export function lookUp(text: string): string | undefined {
  const lower = text.toLowerCase();
  const found = GLOSSARY[lower] ? lower : WORDS.find((w) => lower === w || lower.startsWith(`${w} `) || lower.endsWith(` ${w}`));
  return found && GLOSSARY[found];
}
