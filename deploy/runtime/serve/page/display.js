// How the scan is shown: view, slices, grey levels, channel and the mask's opacity.

import { byId, make, radioButtons } from "./dom.js";
import { PLANES } from "./geometry.js";
import { levelsText, presets } from "./levels.js";
import { VIEWS } from "./viewer.js";

const LABELS = { all: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", "3d": "3-D" };

export class Display {
  #isCt = null;
  #setRadio = () => {};

  constructor(viewer) {
    this.viewer = viewer;
    this.sliders = PLANES.map((plane) => this.#slider(plane));
    byId("slices").replaceChildren(...this.sliders.map(({ label }) => label));
    const choices = VIEWS.map((value, index) => ({ value, label: LABELS[value], title: `Key ${(index + 1) % 10}` }));
    this.#setRadio = radioButtons(byId("views"), choices, (view) => this.setView(view));
    byId("opacity").addEventListener("input", () => viewer.setOpacity(this.opacity));
  }

  get opacity() {
    return byId("opacity").value / 100;
  }

  changeOpacity(percent) {
    byId("opacity").value = Number(byId("opacity").value) + percent;
    this.viewer.setOpacity(this.opacity);
  }

  /** Begin with a scan: a picture has one plane, and a narrow window room for one. */
  begin(isCt) {
    const { viewer } = this;
    this.flat = PLANES.filter((plane) => viewer.count(plane) === 1);
    byId("view-bar").hidden = false;
    byId("views").hidden = this.flat.length > 0;
    const narrow = byId("images").clientWidth < 600;
    this.setView(this.flat[0] ?? (narrow ? "axial" : "all"));
    byId("slices").hidden = this.flat.length > 0;
    byId("display-section").hidden = false;
    byId("empty").hidden = true;
    this.#isCt = null;
    this.setModality(isCt);
  }

  end() {
    byId("display-section").hidden = true;
    byId("slices").hidden = byId("view-bar").hidden = true;
    byId("empty").hidden = false;
  }

  /** Offer the grey levels of CT or those of other scans, and take the first where that changes. */
  setModality(isCt) {
    if (isCt === this.#isCt) return;
    this.#isCt = isCt;
    const choices = presets(isCt, this.viewer.scan);
    byId("windows").replaceChildren(
      ...choices.map(({ label, low, high }) => {
        const button = make("button", { type: "button" }, label);
        button.addEventListener("click", () => this.viewer.setLevels(low, high));
        return button;
      }),
    );
    this.viewer.setLevels(choices[0].low, choices[0].high);
  }

  setView(view) {
    if (this.flat?.length && view !== this.flat[0]) return;
    this.viewer.setView(view);
    this.#setRadio(view);
    for (const { label, plane } of this.sliders) label.hidden = view !== "all" && view !== plane;
  }

  /** What changes with every frame. */
  update() {
    for (const { input, output, plane } of this.sliders) {
      input.max = this.viewer.count(plane);
      input.value = this.viewer.slice(plane) + 1;
      output.textContent = `${input.value} / ${input.max}`;
    }
    byId("window-now").textContent = levelsText(this.viewer.levels);
  }

  #slider(plane) {
    const input = make("input", { type: "range", min: 1, max: 1, step: 1 });
    const output = make("output", {});
    input.addEventListener("input", () => this.viewer.setSlice(plane, Number(input.value) - 1));
    const label = make("label", { className: "line", hidden: true }, make("span", {}, LABELS[plane]), input, output);
    return { label, input, output, plane };
  }
}
