// Grey levels: the windows that radiologists use for CT, and percentiles for everything else.

const WINDOWS = [
  ["Soft tissue", 400, 40],
  ["Lung", 1500, -600],
  ["Bone", 1800, 400],
  ["Brain", 80, 40],
  ["Liver", 160, 60],
]; // width and centre in HU
const PERCENTILES = [
  ["1–99 %", 0.01, 0.99],
  ["5–95 %", 0.05, 0.95],
  ["Bright", 0.5, 0.999],
  ["All", 0, 1],
];
const SAMPLES = 200_000;

/** The presets of a scan, the first of them the one to begin with: {label, low, high}. */
export function presets(isCt, volume) {
  if (isCt) return WINDOWS.map(([label, width, centre]) => ({ label, low: centre - width / 2, high: centre + width / 2 }));
  const values = sample(volume);
  const at = (fraction) => volume.intensityRaw2Scaled(values[Math.round(fraction * (values.length - 1))]);
  return PERCENTILES.map(([label, low, high]) => ({ label, low: at(low), high: Math.max(at(high), at(low) + 1e-6) }));
}

function sample({ img }) {
  const step = Math.max(1, Math.floor(img.length / SAMPLES));
  const values = new Float32Array(Math.ceil(img.length / step));
  for (let index = 0; index < values.length; index++) values[index] = img[index * step];
  return values.sort();
}

export function levelsText([low, high]) {
  const digits = high - low < 10 ? 2 : 0;
  return `Window ${(high - low).toFixed(digits)}, level ${((high + low) / 2).toFixed(digits)}`;
}
