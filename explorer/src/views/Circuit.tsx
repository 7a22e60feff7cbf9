import type { ViewProps } from "../view";
import { Note } from "../ui/Note";

export function Circuit({ run }: ViewProps) {
  return <Note title="Circuit">Drawn from the attachments of {run.entry.name}: {Object.keys(run.entry.attachments).join(", ") || "none yet"}.</Note>;
}
