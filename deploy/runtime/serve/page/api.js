// The server's HTTP interface. Whatever goes wrong is an Error whose message is the server's own sentence.

const AWAY = "The server does not answer. Is `serve` still running on this machine?";

async function answer(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(AWAY, { cause: error });
  }
  if (!response.ok) throw failure(response.status, await response.text());
  return response;
}

function failure(status, text) {
  let sentence = "";
  try {
    sentence = JSON.parse(text).error;
  } catch {
    // Not the server's own answer.
  }
  const error = new Error(sentence || `The server answered with status ${status}.`);
  error.status = status;
  return error;
}

const json = (method, value) => ({
  method,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
});

const scanPath = (scan) => `/api/scans/${encodeURIComponent(scan.id)}`;
const jobPath = (job) => `/api/jobs/${encodeURIComponent(job.id)}`;

export const packages = async () => (await answer("/api/packages")).json();

export const image = async (scan, channel) => (await answer(`${scanPath(scan)}/image?channel=${channel}`)).arrayBuffer();

export const scan = async (known) => (await answer(scanPath(known))).json();

export const removeScan = (scan) => answer(scanPath(scan), { method: "DELETE" });

export const startJob = async (scan, chosen) =>
  (await answer("/api/jobs", json("POST", { scan: scan.id, package: chosen.id }))).json();

export const job = async (started) => (await answer(jobPath(started))).json();

export const cancelJob = (started) => answer(jobPath(started), { method: "DELETE" });

export const mask = async (done) => (await answer(`${jobPath(done)}/mask`)).blob();

export const jobFile = (done, kind) => `${jobPath(done)}/${kind}`;

/** The mask that prompts show, and the volumes of its classes in ml. */
export async function promptMask(scan, chosen, prompts) {
  const response = await answer(`${scanPath(scan)}/prompts`, json("POST", { package: chosen.id, prompts }));
  return { blob: await response.blob(), volumes: JSON.parse(response.headers.get("X-Volumes-Ml") ?? "{}") };
}

export const promptSeg = async (scan, chosen, prompts) =>
  (await answer(`${scanPath(scan)}/prompts?as=seg`, json("POST", { package: chosen.id, prompts }))).blob();

export const encoding = async (scan, chosen) =>
  (await answer(`${scanPath(scan)}/session?package=${encodeURIComponent(chosen.id)}`)).json();

/** Send files as one or more scans. `onProgress` gets the fraction that is sent; `signal` cancels. */
export function upload(files, { onProgress, signal }) {
  const form = new FormData();
  for (const { file, name } of files) form.append("files", file, name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch() says nothing about what is sent
    request.open("POST", "/api/scans");
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total);
    });
    request.addEventListener("load", () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText).scans);
      else reject(failure(request.status, request.responseText));
    });
    request.addEventListener("error", () => reject(new Error(AWAY)));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
