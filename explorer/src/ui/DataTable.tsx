import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { csv, download, estimate, isEstimate, number, printable, type EstimateLike } from "../format";
import { Explained } from "./Term";
import { Value } from "./Value";

export type CellValue = string | number | EstimateLike | null;

export interface Column<Row> {
  title: string;
  /** What is sorted, filtered and exported; shown as it is where there is no `show`. */
  value: (row: Row) => CellValue;
  show?: (row: Row) => ComponentChildren;
  /** Explanation of the heading; without one the glossary is asked. */
  about?: string;
  /** Smallest first when its heading is first pressed; default is the largest of numbers, A to Z of words. */
  ascending?: boolean;
  width?: string;
}

export interface Order {
  column: number;
  ascending: boolean;
}

interface Props<Row> {
  /** What the table holds, for screen readers and as the name of the exported file. */
  name: string;
  columns: Column<Row>[];
  rows: readonly Row[];
  /** A field that filters rows by any words of them; by default where there are more than eight. */
  filter?: boolean;
  onRow?: (row: Row) => void;
  isCurrent?: (row: Row) => boolean;
  /** Height at which the table scrolls inside itself, pixels. */
  height?: number;
  /** Column that is sorted at first, and its direction. */
  sorted?: Order | undefined;
  /** Called when a heading was pressed. With it the caller sorts: `rows` are in order, and `sorted` says in which. */
  onSort?: (order: Order | null) => void;
  /** Said where no row is left. */
  none?: string;
  tools?: ComponentChildren;
}

const ROW_HEIGHT = 33;
const VIRTUAL_FROM = 150;

/** A table to sort, filter and export. Long ones draw only the rows that are seen. */
export function DataTable<Row>({ name, columns, rows, filter, onRow, isCurrent, height = 520, sorted, onSort, none = "No row has these words.", tools }: Props<Row>) {
  const [own, setOwn] = useState<Order | null>(sorted ?? null);
  const order = onSort ? sorted ?? null : own;
  const [words, setWords] = useState("");
  const [top, setTop] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  const numeric = useMemo(() => columns.map((c) => rows.length > 0 && rows.every((r) => typeof c.value(r) !== "string")), [columns, rows]);
  const texts = useMemo(() => (words ? rows.map((r) => columns.map((c) => cellText(c.value(r))).join(" ").toLowerCase()) : []), [rows, columns, words]);
  const shown = useMemo(() => {
    const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = parts.length ? rows.filter((_, i) => parts.every((p) => texts[i]!.includes(p))) : [...rows];
    const column = order && columns[order.column];
    if (!order || !column || onSort) return kept;
    const keyed = kept.map((row, i) => ({ row, i, key: sortKey(column.value(row)) }));
    keyed.sort((a, b) => compareKeys(a.key, b.key, order.ascending) || a.i - b.i);
    return keyed.map((x) => x.row);
  }, [rows, columns, order, words, texts]);
  const current = isCurrent ? shown.findIndex(isCurrent) : -1;
  useEffect(() => { box.current?.scrollTo({ top: 0 }); setTop(0); }, [rows, order?.column, order?.ascending, words]);
  useEffect(() => { // the current row is in sight
    const at = current * ROW_HEIGHT, seen = box.current;
    if (current >= 0 && seen && (at < seen.scrollTop || at > seen.scrollTop + seen.clientHeight - 2 * ROW_HEIGHT)) seen.scrollTo({ top: Math.max(0, at - seen.clientHeight / 3) });
  }, [current, rows]);

  const virtual = shown.length > VIRTUAL_FROM;
  const first = virtual ? Math.max(0, Math.floor(top / ROW_HEIGHT) - 10) : 0;
  const last = virtual ? Math.min(shown.length, first + Math.ceil(height / ROW_HEIGHT) + 20) : shown.length;
  const press = (j: number) => {
    const natural = columns[j]!.ascending ?? !numeric[j];
    const next = order?.column !== j ? { column: j, ascending: natural } : order.ascending === natural ? { column: j, ascending: !natural } : null;
    setOwn(next);
    onSort?.(next);
  };
  const save = () => download(`${name.replace(/[^\p{L}\p{N}.-]+/gu, "-")}.csv`, csv(csvRows(columns, shown)));
  // One row is reached by the tab key, the others from it by the arrows.
  const reachable = onRow && isCurrent ? Math.max(0, shown.slice(first, last).findIndex(isCurrent)) : 0;
  const filtered = filter ?? rows.length > 8;
  return (
    <div class="data-table">
      <div class="table-tools">
        {filtered && <input type="search" placeholder="Filter rows" aria-label={`Filter rows of ${name}`} value={words} onInput={(e) => setWords(e.currentTarget.value)} />}
        {tools}
        <span class="soft" role="status">{words ? `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : filtered ? `${rows.length.toLocaleString("en")} rows` : ""}</span>
        <button type="button" class="quiet" onClick={save} title="Save these rows as CSV">CSV</button>
      </div>
      <div class={`scroll ${virtual ? "virtual" : ""}`} ref={box} tabIndex={0} role="region" aria-label={name} style={{ maxHeight: `${height}px` }}
        onScroll={(e) => virtual && setTop(e.currentTarget.scrollTop)}>
        <table aria-rowcount={shown.length + 1}>
          <thead>
            <tr>{columns.map((c, j) => (
              <th key={j} scope="col" class={numeric[j] ? "n" : ""} style={c.width ? { width: c.width } : undefined}
                aria-sort={order?.column === j ? (order.ascending ? "ascending" : "descending") : "none"}>
                <button type="button" onClick={() => press(j)} title={c.about}>
                  {printable(c.title)}<span class="sort" aria-hidden="true">{order?.column === j ? (order.ascending ? "▲" : "▼") : ""}</span>
                </button>
              </th>))}
            </tr>
          </thead>
          <tbody>
            {first > 0 && <tr aria-hidden="true" style={{ height: `${first * ROW_HEIGHT}px` }}><td colSpan={columns.length} /></tr>}
            {shown.slice(first, last).map((row, i) => (
              <tr key={first + i} aria-rowindex={first + i + 2} class={`${onRow ? "press" : ""} ${isCurrent?.(row) ? "current" : ""}`}
                tabIndex={onRow && (i === reachable ? 0 : -1)} onKeyDown={onRow && ((e) => rowKey(e, () => onRow(row)))}
                onClick={onRow && (() => onRow(row))}>
                {columns.map((c, j) => <td key={j} class={numeric[j] ? "n" : ""}>{c.show ? c.show(row) : <Cell value={c.value(row)} />}</td>)}
              </tr>))}
            {last < shown.length && <tr aria-hidden="true" style={{ height: `${(shown.length - last) * ROW_HEIGHT}px` }}><td colSpan={columns.length} /></tr>}
          </tbody>
        </table>
        {shown.length === 0 && <p class="soft empty">{none}</p>}
      </div>
    </div>
  );
}

function rowKey(e: KeyboardEvent, press: () => void): void {
  const row = e.currentTarget as HTMLElement;
  if (e.target !== row) return;
  const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[e.key];
  if (next instanceof HTMLElement) next.focus();
  else if (e.key === "Enter" || e.key === " ") press();
  else return;
  e.preventDefault();
}

function Cell({ value }: { value: CellValue }) {
  if (isEstimate(value)) return <Value estimate={value} />;
  if (typeof value === "string") return <Explained text={printable(value)} />;
  return <>{number(value)}</>;
}

function cellText(value: CellValue): string {
  return isEstimate(value) ? estimate(value) : typeof value === "string" ? value : number(value);
}

function sortKey(value: CellValue): number | string | null {
  const plain = isEstimate(value) ? value.value : value;
  return typeof plain === "number" && Number.isNaN(plain) ? null : plain;
}

/** Order of two cells; what is missing comes last whichever way. */
function compareKeys(a: number | string | null, b: number | string | null, ascending: boolean): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  const sign = ascending ? 1 : -1;
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

/** Rows for CSV, in full precision; an estimate's value and ends in columns of their own. */
export function csvRows<Row>(columns: Column<Row>[], rows: readonly Row[]): (string | number | null)[][] {
  const split = columns.map((c) => rows.some((r) => isEstimate(c.value(r))));
  const head = columns.flatMap((c, j) => (split[j] ? ["", " low", " high", " n"].map((x) => c.title + x) : [c.title]));
  return [head, ...rows.map((row) => columns.flatMap((c, j) => {
    const value = c.value(row);
    if (isEstimate(value)) return [value.value, value.low, value.high, value.n ?? null];
    return split[j] ? [value, null, null, null] : [value];
  }))];
}
