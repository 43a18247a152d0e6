// Clicks and boxes on the images, while a tool that prompts is on: the viewer hears nothing of them then.

import { AXES, voxelBox } from "./geometry.js";

const VIEWERS_OWN = ["mousedown", "mouseup", "mousemove", "touchstart", "touchmove", "touchend", "click", "dblclick", "contextmenu"];
const SMALLEST = 5; // CSS pixels: a shorter drag is no box

export class Drawing {
  /** `onPrompt` gets {kind: "point", inside, voxel} or {kind: "box", plane, through, voxels}. */
  constructor(images, viewer, marks, { onPrompt }) {
    Object.assign(this, { images, viewer, marks, onPrompt, tool: "browse", depth: 0, corner: null });
    for (const name of VIEWERS_OWN) images.addEventListener(name, (event) => this.#keep(event), { capture: true });
    images.addEventListener("wheel", (event) => this.#wheel(event), { capture: true, passive: false });
    images.addEventListener("pointerdown", (event) => this.#down(event));
    images.addEventListener("pointermove", (event) => this.#move(event));
    images.addEventListener("pointerup", (event) => this.#up(event));
    images.addEventListener("pointercancel", () => this.#stop());
  }

  get prompting() {
    return ["inside", "outside", "box"].includes(this.tool);
  }

  setTool(tool) {
    this.tool = tool;
    this.#stop();
    this.images.classList.toggle("prompting", this.prompting);
  }

  /** Prompt at the crosshair, from the keyboard; a box takes two corners. Gives what to say. */
  atCrosshair() {
    const { viewer } = this;
    const frac = viewer.crosshair;
    if (this.tool !== "box") {
      this.#point(frac, this.tool === "inside");
      return this.tool === "inside" ? "Point inside" : "Point outside";
    }
    if (!this.corner) {
      this.corner = frac;
      return "First corner; move to the opposite one and press Enter";
    }
    this.#box(this.corner, frac, viewer.plane);
    this.corner = null;
    return "Box";
  }

  #keep(event) {
    if (!this.prompting || !this.viewer.scan || this.#inRendering(event)) return;
    event.stopPropagation();
    if (event.cancelable) event.preventDefault();
  }

  /** With Ctrl the wheel zooms, as two fingers on a touchpad do; without, the viewer turns slices. */
  #wheel(event) {
    if (!event.ctrlKey || !this.viewer.scan) return;
    event.preventDefault();
    event.stopPropagation();
    this.viewer.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
  }

  #inRendering(event) {
    return !this.frameStart && !this.viewer.tileAt(...this.#place(event));
  }

  #down(event) {
    this.images.querySelector("canvas").focus({ preventScroll: true });
    if (!this.viewer.scan || event.button > 0) return;
    const [x, y] = this.#place(event);
    const tile = this.viewer.tileAt(x, y);
    if (tile) this.viewer.plane = tile.plane;
    if (!this.prompting || !tile) return;
    const frac = this.viewer.fracAt(x, y, tile);
    if (this.tool !== "box") {
      const swapped = event.altKey || event.shiftKey;
      return this.#point(frac, (this.tool === "inside") !== swapped);
    }
    this.frameStart = { tile, frac, at: [x, y] };
    this.images.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.frameStart) return;
    const { tile, at } = this.frameStart;
    this.marks.frame = { from: at, to: this.#within(tile, event) };
    this.marks.draw();
  }

  #up(event) {
    if (!this.frameStart) return;
    const { tile, frac, at } = this.frameStart;
    const to = this.#within(tile, event);
    this.#stop();
    if (Math.min(Math.abs(to[0] - at[0]), Math.abs(to[1] - at[1])) < SMALLEST) return;
    this.#box(frac, this.viewer.fracAt(...to, tile), tile.plane);
  }

  #stop() {
    this.frameStart = this.marks.frame = null;
    this.corner = null;
    this.marks.draw();
  }

  #point(frac, inside) {
    const voxel = this.viewer.voxelOf(frac).map((value) => Math.round(value * 100) / 100);
    this.viewer.moveTo(frac);
    this.onPrompt({ kind: "point", inside, voxel });
  }

  #box(from, to, plane) {
    const { viewer } = this;
    const through = Math.abs(viewer.scan.permRAS[AXES[plane][2]]) - 1;
    const voxels = voxelBox(from, to, plane, this.depth, viewer.scan);
    viewer.moveTo(from.map((value, axis) => (value + to[axis]) / 2));
    this.onPrompt({ kind: "box", plane, through, voxels });
  }

  /** Where an event lies on the images, in CSS pixels; a touch's first finger. */
  #place(event) {
    const { clientX, clientY } = event.touches?.[0] ?? event.changedTouches?.[0] ?? event;
    const { left, top } = this.images.getBoundingClientRect();
    return [clientX - left, clientY - top];
  }

  #within({ left, top, width, height }, event) {
    const [x, y] = this.#place(event);
    const between = (value, low, size) => Math.min(Math.max(value, low + 0.5), low + size - 0.5);
    return [between(x, left, width), between(y, top, height)];
  }
}
