// From NiiVue's fractions of a scan, in RAS order, to voxels (i, j, k) of its file, the centre of the first at 0, and back.

export const PLANES = ["axial", "coronal", "sagittal"]; // by NiiVue's axCorSag
/** By plane, the RAS axes to the right, upwards and through it. */
export const AXES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };

/** `permRAS` holds, for each RAS axis, the file's axis from 1, negative where it runs the other way. */
export function toVoxel(frac, { permRAS, dimsRAS }) {
  const voxel = [0, 0, 0];
  permRAS.forEach((axis, ras) => {
    const along = frac[ras] * dimsRAS[ras + 1] - 0.5;
    voxel[Math.abs(axis) - 1] = axis > 0 ? along : dimsRAS[ras + 1] - 1 - along;
  });
  return voxel;
}

export function toFrac(voxel, { permRAS, dimsRAS }) {
  return permRAS.map((axis, ras) => {
    const along = voxel[Math.abs(axis) - 1];
    return ((axis > 0 ? along : dimsRAS[ras + 1] - 1 - along) + 0.5) / dimsRAS[ras + 1];
  });
}

/** The voxel box, both ends included, of a rectangle between two places on a plane, `depth` slices thick on each side. */
export function voxelBox(from, to, plane, depth, volume) {
  const through = AXES[plane][2];
  const low = from.map((value, axis) => Math.min(value, to[axis]));
  const high = from.map((value, axis) => Math.max(value, to[axis]));
  const slice = sliceOf(from, through, volume);
  low[through] = (slice - depth + 0.5) / volume.dimsRAS[through + 1];
  high[through] = (slice + depth + 0.5) / volume.dimsRAS[through + 1];
  const [a, b] = [toVoxel(low, volume), toVoxel(high, volume)];
  const dims = volume.hdr.dims.slice(1, 4); // of the file: volume.dims are those of RAS
  const within = (value, axis) => Math.min(Math.max(Math.round(value), 0), dims[axis] - 1);
  return [
    ...a.map((value, axis) => within(Math.min(value, b[axis]), axis)),
    ...a.map((value, axis) => within(Math.max(value, b[axis]), axis)),
  ];
}

/** The index of the slice, from 0, that a place lies in, along a RAS axis. */
export function sliceOf(frac, ras, { dimsRAS }) {
  const count = dimsRAS[ras + 1];
  return Math.min(Math.max(Math.floor(frac[ras] * count), 0), count - 1);
}
