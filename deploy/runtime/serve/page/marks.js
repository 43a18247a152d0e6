// What was clicked and drawn, over the images: inside a plus, outside a minus, boxes as frames in their class's colour.

import { AXES, sliceOf, toFrac } from "./geometry.js";

const RADIUS = 8; // CSS pixels
const NEAR = 3; // slices from which a point is still seen, faintly

export class Marks {
  constructor(canvas, viewer) {
    Object.assign(this, { canvas, viewer, prompts: [], colours: new Map(), frame: null });
  }

  /** `frame` is the box that is being drawn: {tile, from, to}, places on the canvas. */
  draw() {
    const { canvas, viewer } = this;
    const dpr = devicePixelRatio;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * dpr;
    canvas.height = height * dpr;
    const pen = canvas.getContext("2d");
    pen.scale(dpr, dpr);
    if (!viewer.scan || (!this.prompts.length && !this.frame)) return;
    for (const tile of viewer.tiles) {
      pen.save();
      pen.beginPath();
      pen.rect(tile.left, tile.top, tile.width, tile.height);
      pen.clip();
      for (const prompt of this.prompts) {
        if (prompt.kind === "point") this.#point(pen, prompt, tile);
        else this.#box(pen, prompt, tile);
      }
      pen.restore();
    }
    if (this.frame) rectangle(pen, this.frame.from, this.frame.to, "#fff");
  }

  #point(pen, { voxel, inside }, tile) {
    const { viewer } = this;
    const through = AXES[tile.plane][2];
    const frac = toFrac(voxel, viewer.scan);
    const away = Math.abs(sliceOf(frac, through, viewer.scan) - viewer.slice(tile.plane));
    if (away > NEAR) return;
    const [x, y] = viewer.placeOf(frac, tile);
    pen.globalAlpha = away ? 0.4 : 1;
    pen.beginPath();
    pen.arc(x, y, RADIUS, 0, 2 * Math.PI);
    pen.fillStyle = inside ? "#0a7d38" : "#c22";
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = "#fff";
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x - RADIUS / 2, y);
    pen.lineTo(x + RADIUS / 2, y);
    if (inside) {
      pen.moveTo(x, y - RADIUS / 2);
      pen.lineTo(x, y + RADIUS / 2);
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  #box(pen, { voxels, index }, tile) {
    const { viewer } = this;
    const through = AXES[tile.plane][2];
    const axis = Math.abs(viewer.scan.permRAS[through]) - 1;
    const at = viewer.voxelOf(viewer.crosshair)[axis];
    if (at < voxels[axis] - 0.5 || at > voxels[axis + 3] + 0.5) return;
    const low = viewer.placeOf(toFrac(voxels.slice(0, 3).map((value) => value - 0.5), viewer.scan), tile);
    const high = viewer.placeOf(toFrac(voxels.slice(3).map((value) => value + 0.5), viewer.scan), tile);
    rectangle(pen, low, high, `rgb(${(this.colours.get(index) ?? [255, 255, 255]).join(" ")})`);
  }
}

function rectangle(pen, [x0, y0], [x1, y1], colour) {
  const box = [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
  pen.setLineDash([]);
  pen.lineWidth = 4;
  pen.strokeStyle = "rgb(0 0 0 / 70%)"; // so that any colour is seen on any image
  pen.strokeRect(...box);
  pen.lineWidth = 2;
  pen.strokeStyle = colour;
  pen.strokeRect(...box);
}
