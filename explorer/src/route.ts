// The address after "#" is the state that matters: view, what is looked at in it, and settings.
import { useEffect, useState } from "preact/hooks";

export interface Route {
  view: string;
  /** Parts of the path after the view. */
  path: string[];
  params: Record<string, string>;
}

export function parseRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view = "", ...rest] = path.split("/").map(decode);
  return { view, path: rest, params: Object.fromEntries(new URLSearchParams(query)) };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Link to a view; a setting that is undefined or empty is left out. The run, and the one beside it, stay as they are. */
export function href(view: string, path: (string | number)[] = [], params: Record<string, string | number | undefined> = {}): string {
  const query = new URLSearchParams();
  const { run, beside } = parseRoute(location.hash).params;
  for (const [name, value] of Object.entries({ run, beside, ...params })) if (value !== undefined && value !== "") query.set(name, String(value));
  const parts = [view, ...path.map(String)].map(encodeURIComponent).join("/");
  return `#/${parts}${query.size ? `?${query}` : ""}`;
}

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parseRoute(location.hash));
  useEffect(() => {
    const read = () => setRoute(parseRoute(location.hash));
    addEventListener("hashchange", read);
    addEventListener("popstate", read);
    return () => { removeEventListener("hashchange", read); removeEventListener("popstate", read); };
  }, []);
  return route;
}

/** Goes to a link. `replace`: without a new entry of the browser's history, for settings that move all the time. */
export function go(link: string, replace = false): void {
  if (!replace) {
    location.hash = link;
    return;
  }
  history.replaceState(null, "", link);
  dispatchEvent(new PopStateEvent("popstate"));
}

/** Changes settings of the view that is shown; undefined takes one away. */
export function setParams(changes: Record<string, string | number | undefined>, replace = true): void {
  const now = parseRoute(location.hash);
  go(href(now.view, now.path, { ...now.params, ...changes }), replace);
}
