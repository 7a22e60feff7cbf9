import { setParams } from "../../route";
import type { LanguageText, LanguageTexts } from "../../schema/texts";
import { PLURAL, type UnitKind } from "./model";

interface Parts {
  what: string;
  kind: UnitKind;
  layer: number;
  unit: number;
}

/** The parts of a key of `colouring`: what is shown, and of which unit. */
function parts(key: string): Parts {
  const [what = "", ...rest] = key.split("."), n = (i: number) => Number(rest[i]) || 0;
  if (what === "neuron" || what === "channel") return { what: "activation", kind: what, layer: n(0), unit: n(1) };
  if (what === "gate" || what === "passes") return { what, kind: rest[0] === "channel" ? "channel" : "neuron", layer: n(1), unit: n(2) };
  if (what === "latent") return { what, kind: "neuron", layer: n(0), unit: n(1) };
  return { what: what === "loss" ? key : what, kind: "neuron", layer: 0, unit: 0 };
}

function keyOf({ what, kind, layer, unit }: Parts): string {
  if (what === "activation") return `${kind}.${layer}.${unit}`;
  if (what === "gate" || what === "passes") return `${what}.${kind}.${layer}.${unit}`;
  return what === "latent" ? `latent.${layer}.${unit}` : what;
}

/** Chooses what tokens are coloured by, and of which unit. */
export function ColourBy({ texts, text, value }: { texts: LanguageTexts; text: LanguageText; value: string }) {
  const now = parts(value), gated = text.winners !== null, both = texts.streams.length > 1;
  const set = (change: Partial<Parts>) => setParams({ colour: keyOf({ ...now, ...change }) });
  const ofUnit = ["activation", "gate", "passes"].includes(now.what), ofLatent = now.what === "latent";
  const size = ofLatent ? texts.autoencoders[now.layer]?.latents ?? 1 : now.kind === "neuron" ? texts.n_neurons : texts.n_channels;
  return (
    <span class="colour-by">
      <label><span class="soft">Colour</span>
        <select aria-label="Colour by" value={now.what} onChange={(e) => set({ what: e.currentTarget.value, ...(e.currentTarget.value === "latent" ? { layer: 0, unit: 0 } : {}) })}>
          <optgroup label="What a token costs">
            <option value="loss.clean">loss{both ? ", clean stream" : ""}</option>
            {both && <option value="loss.ablated">loss, ablated stream</option>}
            {both && <option value="loss.gap">ablated − clean loss</option>}
            {text.leakage && <option value="leakage">leakage of gates</option>}
          </optgroup>
          <optgroup label="A unit">
            {text.activations && <option value="activation">activation</option>}
            {gated && <option value="passes">what passes its gate</option>}
            {gated && <option value="gate">its gate</option>}
            {texts.autoencoders.length > 0 && <option value="latent">latent of an autoencoder</option>}
          </optgroup>
          {text.attention && <optgroup label="A head"><option value="attention">attention from the chosen token</option></optgroup>}
          <option value="none">nothing</option>
        </select>
      </label>
      {ofUnit && (
        <>
          <label><span class="hidden">Kind of unit</span>
            <select value={now.kind} onChange={(e) => set({ kind: e.currentTarget.value as UnitKind, unit: 0 })}>
              {Object.keys(PLURAL).map((k) => <option key={k} value={k}>{k}</option>)}
            </select>
          </label>
          <label><span class="soft">layer</span>
            <select value={now.layer} onChange={(e) => set({ layer: Number(e.currentTarget.value) })}>
              {Array.from({ length: texts.n_layers }, (_, i) => <option key={i} value={i}>{i}</option>)}
            </select>
          </label>
        </>
      )}
      {ofLatent && texts.autoencoders.length > 1 && (
        <label><span class="soft">of</span>
          <select value={now.layer} onChange={(e) => set({ layer: Number(e.currentTarget.value), unit: 0 })}>
            {texts.autoencoders.map((a, i) => <option key={i} value={i}>{a.name}</option>)}
          </select>
        </label>
      )}
      {(ofUnit || ofLatent) && (
        <label><span class="soft">number</span>
          <input type="number" min={0} max={size - 1} value={now.unit} onInput={(e) => {
            const unit = e.currentTarget.valueAsNumber;
            if (Number.isInteger(unit) && unit >= 0 && unit < size) set({ unit });
          }} />
        </label>
      )}
    </span>
  );
}
