import type { ViewProps } from "../view";
import { Note } from "../ui/Note";

export function Measurements({ run }: ViewProps) {
  return <Note title="Measurements">{run.entry.summary}</Note>;
}
