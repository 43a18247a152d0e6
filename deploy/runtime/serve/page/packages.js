// The choice of a package: those that fit the scan first, the others with the reason why they do not.

import { byId, make, refill } from "./dom.js";

export function showPackages(packages, { scan, chosen, onChoose }) {
  const fits = (each) => !scan || scan.fits.includes(each.id);
  const rows = [...packages].sort((a, b) => fits(b) - fits(a)).map((each) => {
    const input = make("input", { type: "radio", name: "package", checked: each === chosen, disabled: !fits(each) });
    input.addEventListener("change", () => onChoose(each));
    const text = fits(each) ? describe(each) : reason(each, scan);
    const label = make("label", {}, input, make("span", { className: "name" }, each.name));
    return make("div", { className: fits(each) ? "package" : "package unfit" }, label, make("span", { className: "quiet" }, text));
  });
  refill(byId("packages"), ...rows);
}

/** The package to begin with: the one chosen before if it fits, else the first that does. */
export function firstFitting(packages, scan, before) {
  const fitting = packages.filter((each) => scan.fits.includes(each.id));
  return fitting.includes(before) ? before : (fitting[0] ?? null);
}

export const structures = (chosen) => chosen.classes.filter(({ index }) => index !== 0);

function describe(each) {
  const names = structures(each).map(({ name }) => name);
  const shown = names.length > 6 ? `${names.slice(0, 5).join(", ")} and ${names.length - 5} more` : names.join(", ");
  const how = each.prompts_required ? "where you click or draw" : each.prompt_kinds.length ? "by itself, or where you click" : "";
  return [[each.modality, shown].filter(Boolean).join(": "), how].filter(Boolean).join("; ");
}

function reason(each, scan) {
  const count = each.channels.length;
  if (count !== scan.channels) return `Does not fit: takes ${count} (${each.channels.join(", ")}), and this scan has ${scan.channels}`;
  if (each.modality && scan.modality) return `Does not fit: for ${each.modality}, and this scan is ${scan.modality}`;
  return "Does not fit this scan";
}
