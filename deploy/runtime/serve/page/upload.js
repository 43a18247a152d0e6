// Scans on their way to the server: files that are chosen, and files and folders that are dropped anywhere on the page.

import * as api from "./api.js";
import { alarm, byId, calm, say } from "./dom.js";

let limit = Infinity; // bytes
let running = null;

export function setUploadLimit(bytes) {
  limit = bytes;
}

export function acceptUploads(onScans) {
  const send = (files) => sendFiles(files, onScans);
  for (const id of ["pick-files", "pick-folder"]) {
    byId(id).addEventListener("change", ({ target }) => {
      send([...target.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
      target.value = "";
    });
  }
  let depth = 0; // dragenter and dragleave come for every element inside
  const lit = (on) => byId("drop").classList.toggle("over", on);
  const on = (name, handler) => addEventListener(name, handler, { capture: true }); // before the viewer's own
  on("dragenter", () => lit(++depth > 0));
  on("dragleave", () => lit(--depth > 0));
  on("dragover", (event) => event.preventDefault());
  on("drop", async (event) => {
    event.preventDefault();
    lit((depth = 0));
    send(await dropped(event.dataTransfer));
  });
  byId("upload-cancel").addEventListener("click", () => running?.abort());
}

async function sendFiles(files, onScans) {
  if (!files.length) return;
  calm();
  const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
  if (running) return alarm("Another scan is being sent: wait for it, or cancel it.");
  if (bytes > limit) return alarm(`These files have ${size(bytes)}, and this machine takes ${size(limit)} at once.`);
  running = new AbortController();
  const bar = byId("upload-bar");
  const progress = (fraction) => {
    bar.value = fraction;
    byId("upload-text").textContent = fraction < 1 ? `Sending ${size(bytes)}` : "Reading the scan";
    if (fraction === 1) bar.removeAttribute("value");
  };
  progress(0);
  byId("uploading").hidden = false;
  say(`Sending ${size(bytes)}`);
  try {
    onScans(await api.upload(files, { onProgress: progress, signal: running.signal }));
  } catch (error) {
    if (error.name !== "AbortError") alarm(error);
  } finally {
    running = null;
    byId("uploading").hidden = true;
  }
}

/** The files of a drop, those in folders by their paths. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  return (await Promise.all(entries.map((entry) => filesOf(entry, "")))).flat();
}

async function filesOf(entry, folder) {
  const name = folder + entry.name;
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name }];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most a hundred
    if (!some.length) return files;
    for (const each of some) files.push(...(await filesOf(each, `${name}/`)));
  }
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
