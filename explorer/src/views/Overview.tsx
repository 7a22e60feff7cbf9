import type { ViewProps } from "../view";
import { Note } from "../ui/Note";

export function Overview({ run }: ViewProps) {
  return <Note title="Overview">{run.entry.summary}</Note>;
}
