import type { LiveState } from "../live";

/** How a served run stands: growing, still, or out of reach. */
export function LiveSign({ state }: { state: LiveState }) {
  if (state.lost !== null) return <span class="live-state lost" role="status" title={state.lost}><i />jaxablate serve does not answer</span>;
  return (
    <span class={`live-state ${state.growing ? "growing" : ""}`} title={state.growing ? "The run is training: curves grow by themselves" : "The log has not grown for a minute"}>
      <i />{state.growing ? "training" : "live"}, step {state.checkpoint.toLocaleString("en")} saved
      {state.rescored && <button type="button" class="quiet" onClick={() => location.reload()}>new results</button>}
    </span>
  );
}
