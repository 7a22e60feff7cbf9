import type { ViewProps } from "../view";
import { Note } from "../ui/Note";

export function Compare({ run }: ViewProps) {
  return <Note title="Compare">{run.entry.summary}</Note>;
}
