// The page: which scan, which package, what came out, and who is told when one of them changes.

import * as api from "./api.js";
import { Display } from "./display.js";
import { alarm, byId, calm, make, radioButtons, say } from "./dom.js";
import { Drawing } from "./drawing.js";
import { hideProgress, runJob } from "./job.js";
import { listenToKeys } from "./keys.js";
import { Marks } from "./marks.js";
import { showFlags, showOrgans } from "./organs.js";
import { firstFitting, showPackages, structures } from "./packages.js";
import { PromptHistory } from "./prompts.js";
import { bareName, showSaves } from "./saves.js";
import { ScanList } from "./scans.js";
import { PromptSession } from "./session.js";
import { acceptUploads, setUploadLimit } from "./upload.js";
import { openViewer, VIEWS } from "./viewer.js";

const TOOLS = [
  { value: "browse", label: "Browse", title: "Click and drag through the scan (N)" },
  { value: "levels", label: "Grey levels", title: "Drag to change window and level, as the right button always does (W)" },
  { value: "inside", label: "+ Inside", title: "Click on what belongs to the class; with Shift outside (I)", kind: "point" },
  { value: "outside", label: "− Outside", title: "Click on what does not belong to the class (O)", kind: "outside point" },
  { value: "box", label: "Box", title: "Draw a box around the class (B)", kind: "box" },
];

export const page = {
  packages: [],
  scan: null,
  chosen: null, // the package
  viewer: null,
  job: null, // the one that is done
  result: null, // {blob, volumes, flags, prompts}
  hidden: new Set(), // indices of structures
  history: new PromptHistory(),
  session: null,
  running: null, // an AbortController
};

let display, marks, drawing, setTool, scans;

// Scan and package.

async function chooseScan(scan) {
  page.scan = scan;
  calm();
  choosePackage(firstFitting(page.packages, scan, page.chosen));
  const names = page.packages.find(({ id }) => scan.fits.includes(id))?.channels ?? [];
  const options = Array.from({ length: scan.channels }, (_, value) => make("option", { value }, names[value] ?? `Channel ${value}`));
  byId("channel-label").hidden = scan.channels < 2;
  byId("channel").replaceChildren(...options);
  await showImage(0);
}

async function showImage(channel) {
  const { viewer, scan } = page;
  if (!viewer) return;
  try {
    const bytes = await api.image(scan, channel);
    if (page.scan !== scan) return;
    await viewer.showScan(bytes);
    display.begin(isCt());
    await showMask();
    scans.refresh(scan);
  } catch (error) {
    if (page.scan === scan) alarm(error);
  }
}

/** A NIfTI file does not say what it is: then its package does. */
const isCt = () => /^(CE|NC)?CT$/i.test(page.scan.modality ?? page.chosen?.modality ?? "");

function choosePackage(chosen) {
  stop();
  Object.assign(page, { chosen, job: null, history: new PromptHistory(), hidden: new Set() });
  showPackages(page.packages, { scan: page.scan, chosen, onChoose: choosePackage });
  if (page.viewer?.scan && page.scan && chosen) display.setModality(isCt());
  preparePrompts();
  showResult(null);
  showRun();
}

function scanGone() {
  stop();
  Object.assign(page, { scan: null, job: null, history: new PromptHistory() });
  page.viewer?.clear();
  display?.end();
  showPackages(page.packages, { scan: null, chosen: page.chosen, onChoose: choosePackage });
  preparePrompts();
  showResult(null);
  showRun();
}

/** End what is under way: its scan or its package is no longer the one that is shown. */
function stop() {
  page.running?.abort();
  page.session?.close();
  page.running = page.session = null;
  hideProgress();
}

// Segmenting.

function showRun() {
  const { scan, chosen, running, viewer } = page;
  const button = byId("segment");
  button.hidden = Boolean(chosen?.prompts_required);
  button.disabled = !scan || !chosen || Boolean(running);
  byId("run-hint").textContent = runHint(scan, chosen, viewer);
}

function runHint(scan, chosen, viewer) {
  if (!scan) return "Give a scan first.";
  if (!chosen) return "No package on this machine fits this scan.";
  if (!chosen.prompt_kinds.length) return "";
  if (!viewer) return "This package takes clicks as well, which need the viewer.";
  const ways = [chosen.prompt_kinds.includes("point") && "click on it", chosen.prompt_kinds.includes("box") && "draw a box around it"];
  const how = ways.filter(Boolean).join(", or ");
  return chosen.prompts_required ? `Show what you mean in the images: ${how}.` : `Or show a structure yourself: ${how}.`;
}

async function segment() {
  const { scan, chosen } = page;
  const running = (page.running = new AbortController());
  const mine = () => page.running === running;
  calm();
  showRun();
  try {
    const job = await runJob(scan, chosen, running.signal);
    if (!mine()) return;
    if (job) {
      page.job = job;
      await showJob();
      scans.refresh(scan);
      say("The mask is there");
    } else say("Cancelled");
  } catch (error) {
    if (mine()) alarm(error);
  } finally {
    if (mine()) {
      page.running = null;
      showRun();
    }
  }
}

async function showJob() {
  const { job } = page;
  const blob = await api.mask(job);
  if (page.job === job) await showResult({ blob, volumes: job.report.volumes_ml, flags: job.report.flags, prompts: null });
}

// The result.

async function showResult(result) {
  page.result = result;
  const { chosen, hidden } = page;
  byId("organs-section").hidden = !chosen || !page.scan;
  if (chosen) {
    const onGoTo = (index) => goTo(index);
    showOrgans(structures(chosen), { volumes: result?.volumes, hidden, onToggle: recolour, onGoTo });
  }
  showFlags(result?.flags ?? []);
  showSaves(result ? files(result) : []);
  await showMask();
}

async function showMask() {
  const { viewer, result } = page;
  if (!viewer?.scan) return;
  const buffer = result && (await result.blob.arrayBuffer());
  if (page.result === result) await viewer.showMask(buffer, colours(), display.opacity);
}

const colours = () => structures(page.chosen ?? { classes: [] }).map((each) => ({ ...each, visible: !page.hidden.has(each.index) }));

const recolour = () => page.viewer?.mask && page.viewer.colour(colours());

function goTo(index) {
  const voxel = page.viewer?.mask && page.viewer.middleOf(index);
  if (voxel) page.viewer.moveToVoxel(voxel);
}

function files({ blob, volumes, flags, prompts }) {
  const { scan, chosen, job } = page;
  const name = bareName(scan);
  const fetched = (kind) => async () => (await fetch(api.jobFile(job, kind))).blob();
  const report = { scan: scan.name, package: chosen.name, volumes_ml: volumes, flags, prompts };
  const asJson = async () => new Blob([JSON.stringify(report, null, 1), "\n"], { type: "application/json" });
  return [
    { label: "NIfTI", name: `${name}_mask.nii.gz`, blob: async () => blob },
    scan.dicom && {
      label: "DICOM-SEG",
      name: `${name}_seg.dcm`,
      blob: prompts ? () => api.promptSeg(scan, chosen, prompts) : fetched("seg"),
    },
    { label: "Report", name: `${name}_report.json`, blob: prompts ? asJson : fetched("report") },
  ].filter(Boolean);
}

// Prompts.

function preparePrompts() {
  const { scan, chosen, viewer } = page;
  const kinds = scan && viewer ? (chosen?.prompt_kinds ?? []) : [];
  const tools = TOOLS.filter(({ kind }) => !kind || kinds.includes(kind));
  setTool = radioButtons(byId("tools"), tools, chooseTool);
  byId("prompt-bar").hidden = kinds.length === 0;
  byId("box-depth-label").hidden = !kinds.includes("box");
  byId("prompt-class").replaceChildren(
    ...structures(chosen ?? { classes: [] }).map(({ index, name }) => make("option", { value: index }, name)),
  );
  if (!viewer) return;
  marks.colours = new Map(colours().map(({ index, color }) => [index, color]));
  chooseTool((chosen?.prompts_required && tools[2]?.value) || "browse");
  showPrompts();
}

function chooseTool(tool) {
  if (![...byId("tools").querySelectorAll("input")].some(({ value }) => value === tool)) return;
  setTool(tool);
  drawing.setTool(tool);
  page.viewer.setDragging(tool === "levels" ? "levels" : "browse");
}

function addPrompt(prompt) {
  page.history.add({ ...prompt, index: Number(byId("prompt-class").value) });
  promptsChanged();
}

function promptsChanged() {
  const { scan, chosen, history } = page;
  const names = new Map(chosen.classes.map(({ index, name }) => [index, name]));
  const prompts = history.json(names);
  calm();
  showPrompts();
  page.session ??= new PromptSession(scan, chosen, { onMask: showPrompted, onRefused: refused, onBusy: busy });
  if (prompts) return page.session.show(prompts);
  page.session.close();
  page.session = null;
  busy(false);
  if (page.job) showJob().catch(alarm);
  else showResult(null);
}

async function showPrompted({ blob, volumes }, prompts) {
  await showResult({ blob, volumes, flags: [], prompts });
  scans.refresh(page.scan);
  say("The mask has changed");
}

/** A prompt that cannot be used is taken back, and what was before it stays. */
function refused(error, prompts) {
  alarm(error);
  if (error.status !== 400) return;
  const names = new Map(page.chosen.classes.map(({ index, name }) => [index, name]));
  if (JSON.stringify(page.history.json(names)) !== JSON.stringify(prompts)) return; // newer ones are on their way
  page.history.drop();
  showPrompts();
}

function busy(on) {
  byId("prompt-state").textContent = on ? "Working" : "";
  byId("images").classList.toggle("busy", on);
}

function showPrompts() {
  const { history } = page;
  byId("prompt-undo").disabled = !history.canUndo;
  byId("prompt-redo").disabled = !history.canRedo;
  byId("prompt-clear").disabled = history.current.length === 0;
  marks.prompts = history.current;
  marks.draw();
}

function undo() {
  page.history.undo();
  promptsChanged();
}

function redo() {
  page.history.redo();
  promptsChanged();
}

function clear() {
  page.history.clear();
  promptsChanged();
}

// Keys.

function move(key, { shiftKey }) {
  const { viewer } = page;
  if (!viewer.scan) return;
  const many = shiftKey ? 5 : 1;
  const [right, up, through] = {
    ArrowLeft: [-many, 0, 0],
    ArrowRight: [many, 0, 0],
    ArrowUp: [0, many, 0],
    ArrowDown: [0, -many, 0],
    PageUp: [0, 0, many],
    PageDown: [0, 0, -many],
  }[key];
  if (viewer.view === "3d") viewer.rotate(right * 5, up * 5);
  else viewer.step(right, up, through);
}

const letter = (key, says, run) => ({ keys: [key, key.toUpperCase()], shown: [key.toUpperCase()], says, run });

const SHORTCUTS = [
  {
    keys: ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"],
    shown: ["← → ↑ ↓"],
    says: "Move the crosshair, with Shift by five voxels; turn the 3-D view",
    run: move,
  },
  { keys: ["PageUp", "PageDown"], shown: ["Page Up", "Page Down"], says: "Next and previous slice, as the wheel; with Ctrl the wheel zooms", run: move },
  {
    keys: VIEWS.map((_, at) => String(at + 1)),
    shown: ["1 – 5"],
    says: "All, axial, coronal, sagittal, 3-D",
    run: (key) => page.viewer.scan && display.setView(VIEWS[key - 1]),
  },
  letter("n", "Browse", () => chooseTool("browse")),
  letter("w", "Window and level by dragging", () => chooseTool("levels")),
  letter("i", "Click inside; with Shift outside", () => chooseTool("inside")),
  letter("o", "Click outside", () => chooseTool("outside")),
  letter("b", "Draw a box", () => chooseTool("box")),
  {
    keys: ["Enter"],
    says: "Prompt at the crosshair; a box takes two corners",
    run: () => drawing.prompting && page.viewer.scan && say(drawing.atCrosshair()),
  },
  { keys: ["z"], shown: ["Z"], says: "Undo a prompt", run: () => page.history.canUndo && undo() },
  { keys: ["Z"], shown: ["Shift", "Z"], says: "Redo it", run: () => page.history.canRedo && redo() },
  { keys: ["-", "+"], says: "Mask fainter, stronger", run: (key) => display.changeOpacity(key === "-" ? -10 : 10) },
  { keys: ["?"], says: "This list" },
];

async function begin() {
  scans = new ScanList({ onChoose: chooseScan, onGone: scanGone });
  acceptUploads((sent) => scans.add(sent));
  byId("segment").addEventListener("click", segment);
  byId("job-cancel").addEventListener("click", () => page.running?.abort());
  byId("alarm-close").addEventListener("click", calm);
  try {
    page.viewer = await openViewer(byId("canvas"));
  } catch {
    alarm("This browser draws no images (WebGL 2 is off). Scans are segmented and saved all the same.");
  }
  byId("no-viewer").hidden = Boolean(page.viewer);
  byId("viewer").hidden = !page.viewer;
  if (page.viewer) beginViewer();
  try {
    page.packages = await api.packages();
  } catch (error) {
    return alarm(error);
  }
  setUploadLimit(Math.max(...page.packages.map((each) => each.max_upload ?? Infinity)));
  page.chosen = page.packages[0] ?? null;
  showPackages(page.packages, { scan: null, chosen: page.chosen, onChoose: choosePackage });
  showRun();
}

function beginViewer() {
  const { viewer } = page;
  marks = new Marks(byId("marks"), viewer);
  drawing = new Drawing(byId("images"), viewer, marks, { onPrompt: addPrompt });
  display = new Display(viewer);
  display.end();
  viewer.onDraw = () => {
    display.update();
    marks.draw();
  };
  byId("channel").addEventListener("change", ({ target }) => showImage(Number(target.value)));
  byId("box-depth").addEventListener("change", ({ target }) => (drawing.depth = Math.max(0, Math.round(target.valueAsNumber || 0))));
  byId("prompt-undo").addEventListener("click", undo);
  byId("prompt-redo").addEventListener("click", redo);
  byId("prompt-clear").addEventListener("click", clear);
  listenToKeys(SHORTCUTS);
  preparePrompts();
}

await begin();
