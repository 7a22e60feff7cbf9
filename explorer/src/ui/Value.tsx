import { estimate, hasInterval, interval, number, type EstimateLike } from "../format";

/** A number with its interval in a softer tone; how the interval was made on hovering. */
export function Value({ estimate: e }: { estimate: EstimateLike }) {
  const about = hasInterval(e) ? `95 % interval${e.how ? ` (${e.how})` : ""}${e.n ? `, n = ${e.n.toLocaleString("en")}` : ""}` : undefined;
  return <span class="value" title={about} aria-label={estimate(e)}>{number(e.value, e.low, e.high)}{hasInterval(e) && <span class="interval"> {interval(e)}</span>}</span>;
}
