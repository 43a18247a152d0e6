// One job of the server from its start to its mask: what is shown meanwhile, and cancelling it.

import * as api from "./api.js";
import { byId, say } from "./dom.js";

const STAGES = {
  reading: "Reading the scan",
  preparing: "Preparing the images",
  network: "Segmenting",
  writing: "Writing the mask",
};
const PAUSE = 250; // milliseconds between two looks, longer and longer up to the next
const LONGEST_PAUSE = 1_000;

/** Run a package on a scan. Gives the job when it is done, or null when it was cancelled; raises an Error if it failed. */
export async function runJob(scan, chosen, signal) {
  const started = await api.startJob(scan, chosen);
  const cancel = () => api.cancelJob(started).catch(() => {});
  signal.addEventListener("abort", cancel);
  try {
    for (let pause = PAUSE; ; pause = Math.min(pause * 1.2, LONGEST_PAUSE)) {
      const job = await api.job(started);
      if (job.state === "done") return job;
      if (job.state === "failed") throw new Error(job.error);
      if (job.state === "cancelled" || signal.aborted) return null;
      showProgress(jobText(job), job.state === "waiting" ? null : job.fraction);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  } catch (error) {
    if (signal.aborted) return null; // a job that was done when it was cancelled is gone
    throw error;
  } finally {
    signal.removeEventListener("abort", cancel);
    hideProgress();
  }
}

function jobText({ state, ahead, stage, seconds_left: seconds }) {
  if (state === "waiting") return ahead ? `Waiting: ${ahead} before it` : "Waiting";
  return [STAGES[stage] ?? "Starting", seconds != null && `about ${duration(seconds)} left`].filter(Boolean).join(", ");
}

function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

let said = "";

/** Show a bar with its text; without a fraction it only says that something goes on. */
export function showProgress(text, fraction, { cancellable = true } = {}) {
  byId("progress").hidden = false;
  byId("job-cancel").hidden = !cancellable;
  byId("job-text").textContent = text;
  const bar = byId("job-bar");
  if (fraction == null) bar.removeAttribute("value");
  else bar.value = fraction;
  const stage = text.split(",")[0]; // seconds are not read out
  if (stage !== said) say((said = stage));
}

export function hideProgress() {
  byId("progress").hidden = true;
  said = "";
}
