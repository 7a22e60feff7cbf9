import type { ComponentChildren } from "preact";
import { useAttachment } from "../data";
import { isLive } from "../live";
import { href } from "../route";
import type { Texts } from "../schema/texts";
import { Failed, Loading, Note, NotMeasured } from "../ui/Note";
import type { ViewProps } from "../view";
import { Classifier } from "./text/Classifier";
import { SwitchedOff, switches, TypedBox, useTyped } from "./live/Typed";
import { Language } from "./text/Language";
import "./text/text.css";

/** Texts as the model reads them, token by token. */
export function Text({ run, route }: ViewProps) {
  if (isLive()) return route.params.typed ? <Typed run={run} route={route} /> : <Stored run={run} route={route} above={<TypedBox route={route} />} />;
  return <Stored run={run} route={route} />;
}

/** A text that was typed, read now. */
function Typed({ run, route }: ViewProps) {
  const { off, by } = switches(route);
  const found = useTyped(run, route.params.typed, off, by);
  const box = (said?: Parameters<typeof TypedBox>[0]["said"]) => (
    <section class="card" aria-label="Typed text">
      <TypedBox route={route} said={said} />
      <SwitchedOff route={route} />
      <p><a href={href("text", [], { run: route.params.run })}>← stored texts</a></p>
    </section>
  );
  if (found.state === "ready") return <Read texts={found.value} run={run} route={route} above={box()} />;
  return <><h1>Text</h1>{box(found.state === "failed" ? { state: "failed", why: found.why } : { state: "reading" })}</>;
}

function Stored({ run, route, above }: ViewProps & { above?: ComponentChildren }) {
  const found = useAttachment<Texts>(run, "texts");
  const suite = run.results.config.task === "classification" ? "explanations" : "texts";
  if (found.state === "loading") return <Loading />;
  if (found.state === "failed") return <Failed what="The texts" why={found.why} />;
  if (found.state === "absent" && above) return <><h1>Text</h1><section class="card">{above}</section><NotMeasured view="Stored texts" suite={suite} /></>;
  if (found.state === "absent") return <NotMeasured view="Text" suite={suite} />;
  if (!found.value.texts.length) return <Note title="Text">No text of the split has a length that can be shown.</Note>;
  return <Read texts={found.value} run={run} route={route} above={above && <section class="card" aria-label="Typed text">{above}</section>} />;
}

function Read({ texts, run, route, above }: ViewProps & { texts: Texts; above?: ComponentChildren }) {
  return texts.kind === "language" ? <Language texts={texts} run={run} route={route} above={above} /> : <Classifier texts={texts} route={route} above={above} />;
}
