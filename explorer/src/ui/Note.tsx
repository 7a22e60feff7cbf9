import type { ComponentChildren } from "preact";

/** Something the reader should know, in the place of what cannot be shown. */
export function Note({ title, children }: { title: string; children: ComponentChildren }) {
  return <section class="card note"><h2>{title}</h2><div>{children}</div></section>;
}

export function Loading() {
  return <p class="soft loading" role="status">Unpacking ...</p>;
}

export function Failed({ what, why }: { what: string; why: string }) {
  return <section class="card note" role="alert"><h2>{what} cannot be shown</h2><p>{why}</p></section>;
}
