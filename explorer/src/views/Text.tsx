import { useAttachment } from "../data";
import type { Texts } from "../schema/texts";
import { Failed, Loading, Note, NotMeasured } from "../ui/Note";
import type { ViewProps } from "../view";
import { Classifier } from "./text/Classifier";
import { Language } from "./text/Language";
import "./text/text.css";

/** Texts as the model reads them, token by token. */
export function Text({ run, route }: ViewProps) {
  const found = useAttachment<Texts>(run, "texts");
  if (found.state === "loading") return <Loading />;
  if (found.state === "failed") return <Failed what="The texts" why={found.why} />;
  if (found.state === "absent") return <NotMeasured view="Text" suite={run.results.config.task === "classification" ? "explanations" : "texts"} />;
  if (!found.value.texts.length) return <Note title="Text">No text of the split has a length that can be shown.</Note>;
  return found.value.kind === "language" ? <Language texts={found.value} run={run} route={route} /> : <Classifier texts={found.value} route={route} />;
}
