// The images: NiiVue on one canvas, a scan in it and a mask over it.

import { AXES, PLANES, sliceOf, toFrac, toVoxel } from "./geometry.js";

export const VIEWS = ["all", ...PLANES, "3d"];

/** The viewer on a canvas, or null where the page was built without NiiVue. Raises an Error without WebGL 2. */
export async function openViewer(canvas) {
  let niivue;
  try {
    niivue = await import("./vendor/niivue.js");
  } catch {
    return null;
  }
  const nv = new niivue.Niivue({
    isRadiologicalConvention: true, // the patient's left is on the right
    multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.25, 0.75, 1, 0.9],
    crosshairWidth: 0.3,
    crosshairWidthUnit: "percent",
    crosshairGap: 12,
    multiplanarPadPixels: 4,
    fontColor: [0.9, 0.9, 0.9, 1],
    fontMinPx: 15,
    show3Dcrosshair: false,
    dragMode: niivue.DRAG_MODE.windowing, // of the right button; with "pan" the wheel would zoom
    dragAndDropEnabled: false,
    showLegend: false,
    loadingText: "",
    logLevel: "error",
  });
  await nv.attachToCanvas(canvas, true);
  return new Viewer(nv, niivue);
}

class Viewer {
  constructor(nv, { NVImage, SLICE_TYPE, DRAG_MODE }) {
    this.nv = nv;
    this.view = "all";
    this.plane = "axial"; // where keys move
    this.onDraw = () => {};
    this.readImage = (buffer, name) => NVImage.loadFromUrl({ url: name, name, buffer });
    this.sliceTypes = {
      all: SLICE_TYPE.MULTIPLANAR,
      axial: SLICE_TYPE.AXIAL,
      coronal: SLICE_TYPE.CORONAL,
      sagittal: SLICE_TYPE.SAGITTAL,
      "3d": SLICE_TYPE.RENDER,
    };
    this.dragModes = { browse: DRAG_MODE.crosshair, levels: DRAG_MODE.windowing };
    const draw = nv.drawScene.bind(nv);
    nv.drawScene = () => {
      draw();
      if (this.scan) this.onDraw();
    };
  }

  get scan() {
    return this.nv.volumes[0] ?? null;
  }

  get mask() {
    return this.nv.volumes[1] ?? null;
  }

  async showScan(buffer) {
    this.clear();
    this.nv.addVolume(await this.readImage(buffer, "scan.nii.gz"));
    this.nv.scene.crosshairPos = [0, 1, 2].map((ras) => this.#middle(ras));
    this.nv.drawScene();
  }

  clear() {
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(this.nv.volumes.length - 1);
  }

  /** Lay a label map over the scan, or with null take it away. `colours` are {index, color, visible}. */
  async showMask(buffer, colours, opacity) {
    if (!buffer) {
      if (this.mask) this.nv.removeVolumeByIndex(1);
      return;
    }
    const image = await this.readImage(buffer, "mask.nii.gz");
    if (this.mask) {
      this.mask.img = image.img;
      return this.colour(colours);
    }
    image.setColormapLabel(lut(colours));
    image.opacity = opacity;
    this.nv.addVolume(image);
  }

  colour(colours) {
    this.mask?.setColormapLabel(lut(colours));
    this.nv.updateGLVolume();
  }

  setOpacity(opacity) {
    if (this.mask) this.nv.setOpacity(1, opacity);
  }

  get levels() {
    return [this.scan.cal_min, this.scan.cal_max];
  }

  setLevels(low, high) {
    [this.scan.cal_min, this.scan.cal_max] = [low, high];
    this.nv.updateGLVolume();
  }

  setView(view) {
    this.view = view;
    if (view in AXES) this.plane = view;
    this.nv.setSliceType(this.sliceTypes[view]);
  }

  /** What dragging does, where no prompt is drawn. */
  setDragging(mode) {
    this.nv.opts.dragModePrimary = this.dragModes[mode];
  }

  // Slices.

  count(plane) {
    return this.scan.dimsRAS[AXES[plane][2] + 1];
  }

  slice(plane) {
    return sliceOf(this.nv.scene.crosshairPos, AXES[plane][2], this.scan);
  }

  setSlice(plane, index) {
    const through = AXES[plane][2];
    const at = [...this.nv.scene.crosshairPos];
    at[through] = (index + 0.5) / this.count(plane);
    this.moveTo(at);
  }

  moveTo(frac) {
    this.nv.scene.crosshairPos = frac;
    this.nv.drawScene();
  }

  moveToVoxel(voxel) {
    this.moveTo(toFrac(voxel, this.scan));
  }

  get crosshair() {
    return [...this.nv.scene.crosshairPos];
  }

  /** Move the crosshair by voxels to the right and upwards on the plane, as it is seen, and through it. */
  step(right, up, through) {
    const axes = AXES[this.plane];
    const at = this.crosshair;
    const steps = [right * (this.plane === "sagittal" ? 1 : -1), up, through];
    axes.forEach((ras, index) => {
      const voxel = 1 / this.#size(ras);
      at[ras] = Math.min(Math.max(at[ras] + steps[index] * voxel, voxel / 2), 1 - voxel / 2);
    });
    this.moveTo(at);
  }

  rotate(azimuth, elevation) {
    this.nv.setRenderAzimuthElevation(this.nv.scene.renderAzimuth + azimuth, this.nv.scene.renderElevation + elevation);
  }

  /** Enlarge the planes around the crosshair by a factor; 1 is the whole slice, and the least. */
  zoom(factor) {
    const { nv } = this;
    const [x, y, z, before] = nv.scene.pan2Dxyzmm;
    const after = Math.min(Math.max(before * factor, 1), 10);
    const mm = nv.frac2mm(nv.scene.crosshairPos);
    const pan = after === 1 ? [0, 0, 0] : [x, y, z].map((value, axis) => value - (after - before) * mm[axis]);
    nv.setPan2Dxyzmm([...pan, after]);
  }

  // Places on the canvas, in CSS pixels from its upper left corner.

  /** The planes that are drawn: {plane, left, top, width, height}. */
  get tiles() {
    const dpr = this.nv.uiData.dpr;
    return this.nv.screenSlices
      .map((slice, index) => ({ slice, index }))
      .filter(({ slice }) => slice.axCorSag in PLANES && slice.AxyzMxy.length)
      .map(({ slice, index }) => {
        const [left, top, width, height] = slice.leftTopWidthHeight.map((each) => each / dpr);
        const box = width < 0 ? { left: left + width, width: -width, mirrored: true } : { left, width, mirrored: false };
        return { plane: PLANES[slice.axCorSag], slice, index, top, height, ...box };
      });
  }

  tileAt(x, y) {
    const inside = ({ left, top, width, height }) => x >= left && x < left + width && y >= top && y < top + height;
    return this.tiles.find(inside) ?? null;
  }

  /** The place in the scan at a place on a tile, the nearest one where the tile is larger. */
  fracAt(x, y, tile) {
    const dpr = this.nv.uiData.dpr;
    const frac = this.nv.screenXY2TextureFrac(x * dpr, y * dpr, tile.index, false);
    return [...frac].map((value) => Math.min(Math.max(value, 0), 1 - 1e-6));
  }

  placeOf(frac, { plane, slice, left, top, width, height, mirrored }) {
    const mm = this.nv.frac2mm(frac);
    const [right, up] = AXES[plane];
    const x = (mm[right] - slice.leftTopMM[0]) / slice.fovMM[0];
    const y = (mm[up] - slice.leftTopMM[1]) / slice.fovMM[1];
    return [left + (mirrored ? 1 - x : x) * width, top + (1 - y) * height];
  }

  voxelOf(frac) {
    return toVoxel(frac, this.scan);
  }

  /** A voxel of a structure in the middle of the file's slice that holds most of it, or null. */
  middleOf(index) {
    const { img } = this.mask;
    const [nx, ny, nz] = this.mask.hdr.dims.slice(1); // of the file, as the voxels are
    const counts = new Uint32Array(nz);
    for (let at = 0; at < img.length; at++) if (img[at] === index) counts[Math.floor(at / (nx * ny))]++;
    const k = counts.indexOf(Math.max(...counts));
    const voxels = [];
    for (let at = k * nx * ny; at < (k + 1) * nx * ny; at++) if (img[at] === index) voxels.push([at % nx, Math.floor(at / nx) % ny, k]);
    if (!voxels.length) return null;
    const mean = (axis) => voxels.reduce((sum, voxel) => sum + voxel[axis], 0) / voxels.length;
    const [x, y] = [mean(0), mean(1)];
    const away = (voxel) => (voxel[0] - x) ** 2 + (voxel[1] - y) ** 2;
    return voxels.reduce((nearest, voxel) => (away(voxel) < away(nearest) ? voxel : nearest));
  }

  #size(ras) {
    return this.scan.dimsRAS[ras + 1];
  }

  #middle(ras) {
    return (Math.floor(this.#size(ras) / 2) + 0.5) / this.#size(ras);
  }
}

function lut(colours) {
  const rows = [{ index: 0, color: [0, 0, 0], visible: false }, ...colours];
  return {
    R: rows.map(({ color }) => color[0]),
    G: rows.map(({ color }) => color[1]),
    B: rows.map(({ color }) => color[2]),
    A: rows.map(({ visible }) => (visible ? 255 : 0)),
    I: rows.map(({ index }) => index),
  };
}
