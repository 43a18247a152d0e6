// The structures of a package: colour, name, volume, and a box that shows or hides each in the images.

import { byId, make, refill } from "./dom.js";

/** `volumes` are ml by name, or null before there is a mask; `hidden` is a set of indices that the boxes change. */
export function showOrgans(classes, { volumes, hidden, onToggle, onGoTo }) {
  const all = byId("organs-all");
  const boxes = classes.map(({ index, name }) => {
    const box = make("input", { type: "checkbox", checked: !hidden.has(index), "aria-label": `Show ${name}` });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(index);
      else hidden.add(index);
      sum();
      onToggle();
    });
    return box;
  });
  const sum = () => {
    const count = boxes.filter((box) => box.checked).length;
    all.checked = count === boxes.length;
    all.indeterminate = count > 0 && count < boxes.length;
  };
  all.onchange = () => {
    boxes.forEach((box, at) => {
      box.checked = all.checked;
      if (all.checked) hidden.delete(classes[at].index);
      else hidden.add(classes[at].index);
    });
    onToggle();
  };
  sum();
  refill(byId("organs"), ...classes.map((each, at) => row(each, boxes[at], volumes?.[each.name], onGoTo)));
}

function row({ index, name, color }, box, ml, onGoTo) {
  const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
  swatch.style.backgroundColor = `rgb(${color.join(" ")})`;
  const found = ml > 0;
  const go = make("button", { type: "button", className: "link", disabled: !found, title: found ? "Show where it is" : "" }, name);
  go.addEventListener("click", () => onGoTo(index));
  const volume = ml == null ? "" : found ? format(ml) : "none";
  return make("tr", {}, make("td", {}, box), make("td", {}, swatch, go), make("td", { className: "number" }, volume));
}

export function showFlags(flags) {
  byId("flags").replaceChildren(...flags.map((flag) => make("li", {}, flag)));
}

function format(ml) {
  return ml >= 100 ? ml.toFixed(0) : ml >= 10 ? ml.toFixed(1) : ml.toPrecision(2);
}
