// Numbers as Python's jaxablate.stats prints them.
export interface EstimateLike {
  value: number | null;
  low: number | null;
  high: number | null;
  n?: number | null;
  how?: string;
}

export function isEstimate(x: unknown): x is EstimateLike {
  return typeof x === "object" && x !== null && "value" in x && "low" in x && "high" in x;
}

/** A number as people read it: as many decimals as its interval warrants, else four significant digits. */
export function number(value: number | null | undefined, low?: number | null, high?: number | null): string {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && (Math.abs(value) >= 1e4 || (low ?? high) == null)) return grouped(value, 0);
  if (low != null && high != null && Number.isFinite(high - low) && high > low)
    return grouped(value, Math.max(0, Math.min(6, 1 - Math.floor(Math.log10((high - low) / 2)))));
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  return size < -5 ? value.toExponential(2) : grouped(value, Math.max(0, 3 - size));
}

/** A number within a sentence: three significant digits. */
export function short(value: number): string {
  return Number.isFinite(value) && value !== 0 && Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : number(Math.round(value));
}

export function grouped(value: number, decimals: number): string {
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

export function hasInterval(e: EstimateLike): e is EstimateLike & { low: number; high: number } {
  return e.low !== null && e.high !== null && e.low !== e.high;
}

export function interval(e: EstimateLike): string {
  return hasInterval(e) ? `[${number(e.low, e.low, e.high)}, ${number(e.high, e.low, e.high)}]` : "";
}

/** A number with its interval: 1.80 [1.79, 1.82]. */
export function estimate(e: EstimateLike): string {
  return hasInterval(e) ? `${number(e.value, e.low, e.high)} ${interval(e)}` : number(e.value);
}

export function percent(value: number | null | undefined, decimals = 1): string {
  return value == null ? "–" : `${(100 * value).toFixed(decimals)} %`;
}

/** A figure's name with its unit and an arrow to what is better, as in Python's tables. */
export function heading(name: string, unit: string, better: string): string {
  const arrow = { up: "↑", down: "↓" }[better] ?? "";
  return [name, unit && unit !== "fraction" ? `(${unit})` : "", arrow].filter(Boolean).join(" ");
}

/** White space made visible: the return sign for line ends, a dot for a space that would not be seen. */
export function visible(token: string): string {
  const text = token.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");
  if (text === "") return "∅";
  return text.trim() === "" ? text.replace(/ /g, "·") : text.replace(/^ +/, (x) => "·".repeat(x.length)).replace(/ +$/, (x) => "·".repeat(x.length));
}

/** A token as it stands in its text: spaces between words as they are, others and line ends visible. */
export function inText(token: string): string {
  return token.trim() === "" ? visible(token) : token.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");
}

/** CSV of cells, RFC 4180; words that a spreadsheet would run as a formula get an apostrophe. */
export function csv(rows: (string | number | null)[][]): string {
  return rows.map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}

function csvCell(cell: string | number | null): string {
  if (cell === null) return "";
  if (typeof cell === "number") return Number.isFinite(cell) ? String(cell) : "";
  const formula = /^\s*[=+\-@\uFF1D\uFF0B\uFF0D\uFF20]/.test(cell) || /^[\t\n\r]/.test(cell);
  const plain = cell === "-" || /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(cell);
  const text = formula && !plain ? `'${cell}` : cell;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The settings of a nested config under dotted names. */
export function flatten(config: unknown, prefix = ""): Record<string, unknown> {
  if (typeof config !== "object" || config === null || Array.isArray(config)) return prefix ? { [prefix]: config } : {};
  return Object.assign({}, ...Object.entries(config).map(([k, v]) => flatten(v, prefix ? `${prefix}.${k}` : k)));
}

/** Saves a text as a file of the user. */
export function download(name: string, text: string, type = "text/csv"): void {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const UNPRINTABLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ufffe\uffff]|\p{Surrogate}/gu;

/** Text with a sign in the place of characters that turn the direction of writing or have no place on a page. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, "�");
}
