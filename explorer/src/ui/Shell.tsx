import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { printable } from "../format";
import { href, type Route } from "../route";
import type { Manifest, RunEntry } from "../schema/explorer";
import type { View } from "../view";

export function Header({ runs, current, beside, onRun, onBeside, sign }: {
  runs: RunEntry[]; current: RunEntry; beside: RunEntry | undefined; onRun: (name: string) => void; onBeside: (name: string) => void; sign?: ComponentChildren;
}) {
  return (
    <header class="top">
      <a class="brand" href="#/" aria-label="jaxablate, overview"><Mark />jaxablate</a>
      {runs.length > 1 ? (
        <label class="run-choice"><span class="soft">run</span>
          <select value={current.name} onChange={(e) => onRun(e.currentTarget.value)}>
            {runs.map((r) => <option key={r.name} value={r.name}>{printable(r.name)}</option>)}
          </select>
        </label>
      ) : null}
      {runs.length > 1 ? (
        <label class="run-choice"><span class="soft">beside</span>
          <select value={beside?.name ?? ""} onChange={(e) => onBeside(e.currentTarget.value)} title="Another run in a second column, at the same place">
            <option value="">–</option>
            {runs.filter((r) => r !== current).map((r) => <option key={r.name} value={r.name}>{printable(r.name)}</option>)}
          </select>
        </label>
      ) : <span class="run-name">{printable(current.name)}</span>}
      {sign}
      <Theme />
    </header>
  );
}

/** Two streams, one of them cut: the package's sign. */
function Mark() {
  return (
    <svg width="22" height="22" viewBox="0 0 22 22" aria-hidden="true">
      <path d="M6 2v18" stroke="var(--c0)" stroke-width="3" stroke-linecap="round" />
      <path d="M15 2v6m0 6v6" stroke="var(--c1)" stroke-width="3" stroke-linecap="round" />
      <circle cx="15" cy="11" r="1.6" fill="var(--c1)" />
    </svg>
  );
}

export function Nav({ views, current, route }: { views: View[]; current: View; route: Route }) {
  return (
    <nav class="views" aria-label="Views">
      {views.map((v) => <a key={v.id} href={href(v.id, [], { run: route.params.run })} aria-current={v === current ? "page" : undefined}>{v.title}</a>)}
    </nav>
  );
}

const THEMES = ["auto", "light", "dark"] as const;
document.documentElement.dataset.theme = stored(); // before anything is drawn

function Theme() {
  const [theme, setTheme] = useState<string>(stored);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("jaxablate-theme", theme); } catch { /* a page from a disk may have no storage */ }
  }, [theme]);
  return (
    <label class="theme"><span class="hidden">Colours</span>
      <select value={theme} onChange={(e) => setTheme(e.currentTarget.value)} title="Colours of the page">
        {THEMES.map((t) => <option key={t} value={t}>{{ auto: "◐ auto", light: "○ light", dark: "● dark" }[t]}</option>)}
      </select>
    </label>
  );
}

function stored(): string {
  try {
    const found = localStorage.getItem("jaxablate-theme");
    return (THEMES as readonly string[]).includes(found ?? "") ? found! : "auto";
  } catch {
    return "auto";
  }
}

export function Footer({ manifest }: { manifest: Manifest }) {
  return (
    <footer class="bottom soft">
      <p>Written by jaxablate {manifest.version}. {manifest.live ? "It comes from jaxablate serve on this machine." : "Everything is in this page: it needs no network."}</p>
    </footer>
  );
}
