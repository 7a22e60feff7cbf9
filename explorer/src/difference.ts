import type { EstimateLike } from "./format";

/**
 * a - b with its interval, of two independent estimates whose intervals may be lopsided: the method of variance
 * estimates recovery (Zou and Donner 2008, equation 4). No interval where one of them has none.
 */
export function difference(a: EstimateLike, b: EstimateLike): EstimateLike {
  if (a.value === null || b.value === null) return { value: null, low: null, high: null };
  const value = a.value - b.value;
  if (a.low === null || a.high === null || b.low === null || b.high === null) return { value, low: null, high: null };
  return {
    value,
    low: value - Math.hypot(a.value - a.low, b.high - b.value),
    high: value + Math.hypot(a.high - a.value, b.value - b.low),
    how: "of two independent estimates",
  };
}

/** Whether the interval of a difference leaves out 0; null where there is no interval. */
export function differs(d: EstimateLike): boolean | null {
  return d.low === null || d.high === null ? null : d.low > 0 || d.high < 0;
}
