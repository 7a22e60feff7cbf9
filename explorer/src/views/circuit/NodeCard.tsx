import { useAttachment, type Run } from "../../data";
import { printable, visible } from "../../format";
import { href, setParams } from "../../route";
import type { TaskEdges } from "../../schema/circuits";
import type { LanguageTexts, Texts } from "../../schema/texts";
import { Matrix, strongest } from "../text/Attention";
import { pattern, short, words } from "../text/model";
import "../text/text.css";
import { node, type Edge } from "./model";

/** Everything about the node that is held: what it reads and who reads it, where it looks, its units. */
export function NodeCard({ run, task, name, panes, onNode }: { run: Run; task: TaskEdges; name: string; panes: { title: string; edges: Edge[] }[]; onNode: (name: string) => void }) {
  const found = node(name, task.n_layers), layer = Math.floor(Math.max(0, found.row) / 2);
  const texts = useAttachment<Texts>(run, "texts");
  const of = texts.state === "ready" && texts.value.kind === "language" ? texts.value : null;
  const units = run.entry.attachments["units"] !== undefined, what = { head: `head ${found.head} of layer ${layer}`, mlp: `the neurons of layer ${layer}`, start: "the embedding of token and position", end: "the final residual stream, from which logits are made" }[found.kind];
  return (
    <section class="card node-card" aria-label={`Node ${name}`}>
      <div class="controls"><h2>{printable(name)}</h2><span class="soft">{what}</span><button type="button" class="quiet" onClick={() => setParams({ node: undefined })}>Let go</button></div>
      <div class="node-lists">
        {panes.map((p) => (
          <div key={p.title}>
            {panes.length > 1 && <h3>{printable(p.title)}</h3>}
            <EdgeList words="reads" edges={p.edges.filter((e) => is(e.target, name))} end={(e) => e.source} onNode={onNode} />
            <EdgeList words="is read by" edges={p.edges.filter((e) => is(e.source, name))} end={(e) => e.target} onNode={onNode} />
          </div>
        ))}
      </div>
      {found.kind === "head" && of && <Looks texts={of} run={run} layer={layer} head={found.head} />}
      {units && (found.kind === "head" || found.kind === "mlp") && (
        <p>{found.kind === "mlp" ? <a href={href("units", [`neuron-${layer}`], { run: run.entry.name })}>Its neurons, with what fires them →</a>
          : <a href={href("units", [`channel-${layer}`], { run: run.entry.name })}>The channels of layer {layer}{of ? `; its own are ${channels(of, found.head)}` : ""} →</a>}</p>
      )}
    </section>
  );
}

const is = (a: string, name: string) => a === name || a.replace(/-\d+$/, "") === name;

function channels(texts: LanguageTexts, head: number): string {
  const width = texts.n_channels / texts.n_heads;
  return `${head * width} to ${(head + 1) * width - 1}`;
}

function EdgeList({ words, edges, end, onNode }: { words: string; edges: Edge[]; end: (e: Edge) => string; onNode: (name: string) => void }) {
  return (
    <div class="edge-list">
      <h4 class="soft">{words}{edges.length === 0 ? " nothing here" : ""}</h4>
      <ol>
        {edges.slice(0, 12).map((e) => (
          <li key={e.name}><button type="button" onClick={() => onNode(end(e).replace(/^(A\d+\.\d+)-\d+$/, "$1"))}>{printable(end(e))}</button>{e.port && <i class={`port-sign ${e.port.toLowerCase()}`}>{e.port}</i>}<span class="n">{short(e.score)}</span></li>
        ))}
        {edges.length > 12 && <li class="soft">and {edges.length - 12} weaker ones</li>}
      </ol>
    </div>
  );
}

/** The head's attention on a prompt of the task, with a link to every text. */
function Looks({ texts, run, layer, head }: { texts: LanguageTexts; run: Run; layer: number; head: number }) {
  const prompt = texts.texts.findIndex((t) => t.kind === "prompt" && t.attention), at = prompt >= 0 ? prompt : texts.texts.findIndex((t) => t.attention);
  const text = texts.texts[at];
  const found = text && pattern(text, "clean", layer, head);
  if (!text || !found) return null;
  const tokens = words(texts.vocabulary, text.tokens), last = tokens.length - 1;
  const link = (position: number) => href("text", [at], { position, layer, head, run: run.entry.name });
  return (
    <div class="attention">
      <div>
        <h3>Where it looks</h3>
        <p class="soft">{printable(text.title)}: from the last token, <code>{visible(printable(tokens[last]!))}</code></p>
        <ol class="looks">
          {strongest(found, last, 8).map(({ key, weight }) => (
            <li key={key}><code>{visible(printable(tokens[key]!))}</code> <span class="weight-bar"><i style={{ width: `${100 * weight}%` }} /></span><span class="n">{Math.round(100 * weight)} %</span></li>
          ))}
        </ol>
        <p><a href={link(last)}>This head in the text →</a></p>
      </div>
      <Matrix pattern={found} tokens={tokens} current={last} onPick={(query) => { location.hash = link(query); }} label={`Attention of head ${head} in layer ${layer} on a prompt`} deps={[found]} />
    </div>
  );
}
