import { useId, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { GLOSSARY, lookUp } from "../glossary";

/** Words with their meaning on hover, on focus and on a tap. `name`: the entry of the glossary, if not the words. */
export function Term({ name, children }: { name: string; children?: ComponentChildren }) {
  const entry = GLOSSARY[name];
  if (!entry) return <>{children ?? name}</>;
  return <Hint text={entry}>{children ?? name}</Hint>;
}

/** A label of the data, explained where the glossary knows its words. */
export function Explained({ text }: { text: string }) {
  const entry = lookUp(text);
  return entry ? <Hint text={entry}>{text}</Hint> : <>{text}</>;
}

/** Any words with a note that appears beside them. */
export function Hint({ text, children }: { text: string; children: ComponentChildren }) {
  const id = useId();
  const at = useRef<HTMLButtonElement>(null);
  const [place, setPlace] = useState<{ left: number; top: number; above: boolean } | null>(null);
  const open = () => {
    const box = at.current?.getBoundingClientRect();
    if (!box) return;
    const above = box.bottom > innerHeight - 170 && box.top > 170;
    setPlace({ left: Math.max(8, Math.min(box.left, innerWidth - 328)), top: above ? box.top - 6 : box.bottom + 6, above });
  };
  const close = () => setPlace(null);
  return (
    <span class="term" onMouseEnter={open} onMouseLeave={close}>
      <button type="button" class="term-words" ref={at} aria-describedby={place ? id : undefined} onFocus={open} onBlur={close}
        onClick={(e) => { e.preventDefault(); e.stopPropagation(); open(); }}
        onKeyDown={(e) => e.key === "Escape" && close()}>{children}</button>
      {place && (
        <span role="tooltip" id={id} class={`hint ${place.above ? "above" : ""}`} style={{ left: `${place.left}px`, top: `${place.top}px` }}>{text}</span>
      )}
    </span>
  );
}
