import type { ComponentType } from "preact";
import type { Run } from "./data";
import type { Route } from "./route";

export interface ViewProps {
  run: Run;
  route: Route;
}

/** A page of the explorer; `app.tsx` has the list of all. */
export interface View {
  /** First part of the address. */
  id: string;
  title: string;
  component: ComponentType<ViewProps>;
  /** Name of the attachment it is drawn from, and the command that makes it; a view without it says so. */
  needs?: { attachment: string; suite: string };
  /** Whether it stands in the navigation of this page. */
  shown?: (run: Run, runs: number) => boolean;
}
