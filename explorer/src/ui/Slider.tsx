import { useId } from "preact/hooks";

/** A number between two ends, with its value written beside it. */
export function Slider({ label, min, max, step, value, format = String, onChange }: {
  label: string; min: number; max: number; step: number; value: number; format?: (value: number) => string; onChange: (value: number) => void;
}) {
  const id = useId();
  return (
    <span class="slider">
      <label for={id}>{label}</label>
      <input id={id} type="range" min={min} max={max} step={step} value={value} aria-valuetext={format(value)} onInput={(e) => onChange(e.currentTarget.valueAsNumber)} />
      <output for={id}>{format(value)}</output>
    </span>
  );
}
