import { useId, useRef } from "preact/hooks";
import type { ComponentChildren } from "preact";

/** One of a few; arrow keys move. `panel` is what belongs to the chosen one. */
export function Tabs({ label, tabs, current, onChange, panel }: {
  label: string; tabs: { id: string; title: ComponentChildren }[]; current: string; onChange: (id: string) => void; panel?: ComponentChildren;
}) {
  const id = useId();
  const box = useRef<HTMLDivElement>(null);
  const move = (e: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!step) return;
    const next = tabs[(tabs.findIndex((t) => t.id === current) + step + tabs.length) % tabs.length]!;
    onChange(next.id);
    box.current?.querySelector<HTMLElement>(`[data-tab="${CSS.escape(next.id)}"]`)?.focus();
    e.preventDefault();
  };
  return (
    <>
      <div class="tabs" role="tablist" aria-label={label} ref={box} onKeyDown={move}>
        {tabs.map((t) => (
          <button type="button" key={t.id} role="tab" id={`${id}-${t.id}`} data-tab={t.id} aria-selected={t.id === current} tabIndex={t.id === current ? 0 : -1}
            aria-controls={panel && t.id === current ? `${id}-panel` : undefined} onClick={() => onChange(t.id)}>{t.title}</button>
        ))}
      </div>
      {panel && <div role="tabpanel" id={`${id}-panel`} aria-labelledby={`${id}-${current}`}>{panel}</div>}
    </>
  );
}

/** Two or three settings of one kind, of which one holds. */
export function Choice<T extends string>({ label, options, value, onChange }: { label: string; options: readonly (T | readonly [T, string])[]; value: T; onChange: (value: T) => void }) {
  return (
    <span class="choice" role="group" aria-label={label}>
      {options.map((o) => {
        const [id, title] = typeof o === "string" ? [o, o] : o;
        return <button type="button" key={id} aria-pressed={id === value} onClick={() => onChange(id as T)}>{title}</button>;
      })}
    </span>
  );
}
