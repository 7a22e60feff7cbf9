import type { ComponentChildren } from "preact";

/** Something the reader should know, in the place of what cannot be shown. */
export function Note({ title, children }: { title: string; children: ComponentChildren }) {
  return <section class="card note"><h2>{title}</h2><div>{children}</div></section>;
}

/** A view whose suite was not run on this checkpoint. */
export function NotMeasured({ view, suite }: { view: string; suite: string }) {
  return (
    <Note title={`${view}: not measured yet`}>
      This view is drawn from what the suite <code>{suite}</code> finds. Run <code>jaxablate score --workdir DIR --suites {suite}</code> and open the page again.
    </Note>
  );
}

export function Loading() {
  return <p class="soft loading" role="status">Unpacking ...</p>;
}

export function Failed({ what, why }: { what: string; why: string }) {
  return <section class="card note" role="alert"><h2>{what} cannot be shown</h2><p>{why}</p></section>;
}
