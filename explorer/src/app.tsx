import { useEffect, useErrorBoundary } from "preact/hooks";
import { loadRun, theManifest, usePromise, type Run } from "./data";
import { printable } from "./format";
import { go, href, useRoute, type Route } from "./route";
import { useLive } from "./live";
import { LiveSign } from "./ui/LiveSign";
import { Footer, Header, Nav } from "./ui/Shell";
import { Failed, Loading, Note, NotMeasured } from "./ui/Note";
import { Circuit } from "./views/Circuit";
import { Compare } from "./views/Compare";
import { Measurements } from "./views/Measurements";
import { Overview } from "./views/Overview";
import { Text } from "./views/Text";
import { Units } from "./views/Units";
import type { View } from "./view";

const suite = (name: string) => (run: Run) => run.results.suites[name] !== undefined;

/** Every view, in the order of the navigation. */
export const VIEWS: View[] = [
  { id: "", title: "Overview", component: Overview },
  { id: "measurements", title: "Measurements", component: Measurements },
  { id: "text", title: "Text", component: Text },
  { id: "units", title: "Units", component: Units, needs: { attachment: "units", suite: "units" }, shown: (run) => run.results.config.task !== "classification" },
  { id: "circuit", title: "Circuit", component: Circuit, shown: (run) => suite("circuits")(run) || run.results.config.task !== "classification" },
  { id: "compare", title: "Compare", component: Compare, shown: (_, runs) => runs > 1 },
];

export function App() {
  const route = useRoute();
  let manifest;
  try {
    manifest = theManifest();
  } catch (e) {
    return <main class="alone"><Note title="Nothing to show">{(e as Error).message}</Note></main>;
  }
  const entry = manifest.runs.find((r) => r.name === route.params.run) ?? manifest.runs[0];
  if (!entry) return <main class="alone"><Note title="Nothing to show">This page holds no run.</Note></main>;
  const loaded = usePromise(() => loadRun(entry), [entry]);
  const other = manifest.runs.find((r) => r.name === route.params.beside && r !== entry && route.view !== "compare");
  const second = usePromise(() => (other ? loadRun(other) : null), [other]);
  const lives = [useLive(loaded.state === "ready" ? loaded.value : null), useLive(second.state === "ready" ? second.value : null)];
  const view = VIEWS.find((v) => v.id === route.view) ?? VIEWS[0]!;
  useEffect(() => {
    document.title = `${printable(entry.name)}${view.id ? ` · ${view.title}` : ""} · jaxablate`;
  }, [entry.name, view]);
  return (
    <>
      <a class="skip" href="#content" onClick={(e) => { e.preventDefault(); document.getElementById("content")?.focus(); }}>Skip to the content</a>
      <Header runs={manifest.runs} current={entry} beside={other} onRun={(name) => go(href(route.view, route.path, { run: name }))}
        sign={lives[0]!.state && <LiveSign state={lives[0]!.state} />} onBeside={(name) => go(href(route.view, route.path, { ...route.params, beside: name }))} />
      {loaded.state === "ready" && <Nav views={VIEWS.filter((v) => v.shown?.(loaded.value, manifest.runs.length) ?? true)} current={view} route={route} />}
      <main id="content" tabIndex={-1} class={other ? "pair" : ""}>
        {[loaded, ...(other ? [second] : [])].map((l, i) => (
          <div key={i} class="of-run">
            {other && <p class="of-run-name">{printable((i ? other : entry).name)}</p>}
            {l.state === "loading" && <Loading />}
            {l.state === "failed" && <Failed what="The results of this run" why={l.why} />}
            {l.state === "ready" && <Guarded key={`${view.id} ${l.value.entry.name}`} view={view} run={lives[i]!.run ?? l.value} route={route} />}
          </div>
        ))}
      </main>
      <Footer manifest={manifest} />
    </>
  );
}

/** A view; what it needs and is not there, and an error in it, are told in its place. */
function Guarded({ view, run, route }: { view: View; run: Run; route: Route }) {
  const [error] = useErrorBoundary((e: unknown) => console.error(e));
  if (error) return <Failed what={`The view ${view.title}`} why={error instanceof Error ? error.message : String(error)} />;
  if (view.needs && run.entry.attachments[view.needs.attachment] === undefined) {
    return <NotMeasured view={view.title} suite={view.needs.suite} />;
  }
  const Content = view.component;
  return <Content run={run} route={route} />;
}
