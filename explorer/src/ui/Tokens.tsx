import { useRef } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { inText, printable, visible } from "../format";
import { diverging, sequential } from "../colours";

interface Props {
  tokens: readonly string[];
  /** A number for each token, shown as its shade; null for none. Sequential from 0 to `most`, diverging from -most to most. */
  values?: ArrayLike<number | null>;
  most?: number;
  scale?: "sequential" | "diverging";
  current?: number | null;
  onHover?: (index: number | null) => void;
  onPick?: (index: number) => void;
  /** What the title of a token says; its text and value by default. */
  title?: (index: number) => string;
  /** Drawn inside a token after its text. */
  mark?: (index: number) => ComponentChildren;
  label: string;
}

/** A text token by token. Arrow keys go from token to token, Enter picks one; white space is visible, lines break where the text's do. */
export function Tokens({ tokens, values, most, scale = "sequential", current, onHover, onPick, title, mark, label }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const top = most ?? Math.max(1e-12, ...Array.from(values ?? [], (x) => Math.abs(x ?? 0)));
  const move = (e: KeyboardEvent, i: number) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -i, End: tokens.length - 1 - i }[e.key];
    if (step === undefined) return;
    box.current?.querySelector<HTMLElement>(`[data-token="${Math.min(tokens.length - 1, Math.max(0, i + step))}"]`)?.focus();
    e.preventDefault();
  };
  const focusable = current ?? 0;
  return (
    <div class="tokens" ref={box} role={onPick ? "listbox" : "group"} aria-label={label} onMouseLeave={() => onHover?.(null)}>
      {tokens.map((token, i) => {
        const value = values?.[i];
        const look = value == null ? undefined : { backgroundColor: (scale === "diverging" ? diverging : sequential)(value / top) };
        const about = title?.(i) ?? `${visible(printable(token))}${value == null ? "" : `  ${value.toPrecision(3)}`}`;
        const [gap, shown] = apart(inText(printable(token)));
        return [
          gap,
          <span key={i} data-token={i} class={`token ${current === i ? "current" : ""}`} style={look} title={about}
            role={onPick ? "option" : undefined} aria-selected={onPick ? current === i : undefined} tabIndex={onPick ? (i === focusable ? 0 : -1) : undefined}
            onMouseEnter={() => onHover?.(i)} onFocus={() => onHover?.(i)} onClick={() => onPick?.(i)}
            onKeyDown={(e) => { if (e.key === "Enter" || e.key === " ") { onPick?.(i); e.preventDefault(); } else move(e, i); }}>
            {shown}{mark?.(i)}
          </span>,
          token.includes("\n") && <br key={`${i}-end`} />,
        ];
      })}
    </div>
  );
}

/** The spaces before a token's words, which stand between shades, and the rest. */
function apart(text: string): [string, string] {
  const words = text.replace(/^ +/, "");
  return [text.slice(0, text.length - words.length), words];
}
