// One sequential and one diverging scale, both from the page to a hue that colour-blind eyes tell apart (blue, orange).
// They are mixed by the browser, so that a text stays legible on light and on dark.

/** Shade of a value in [0, 1]. */
export function sequential(value: number): string {
  return `color-mix(in oklab, var(--shade) ${share(value)}%, transparent)`;
}

/** Shade of a value in [-1, 1]: orange below 0, blue above. */
export function diverging(value: number): string {
  return `color-mix(in oklab, var(${value < 0 ? "--shade-minus" : "--shade"}) ${share(Math.abs(value))}%, transparent)`;
}

function share(value: number): number {
  return Math.round(1000 * Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0))) / 10;
}

/** Colours of series, in order: distinct for colour-blind eyes, with contrast on both themes. */
export const SERIES = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => `var(--c${i})`);
export function series(index: number): string {
  return SERIES[index % SERIES.length]!;
}
