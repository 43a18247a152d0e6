// Prompts on their way to a mask: one request at a time, and the newest prompts win.

import * as api from "./api.js";
import { hideProgress, showProgress } from "./job.js";

const PAUSE = 120; // milliseconds in which more prompts may come
const LOOK = 300;

export class PromptSession {
  #next = null;
  #running = false;
  #timer = 0;
  #closed = false;
  #encoded = false;

  /** `onMask` gets {blob, volumes} with the prompts they come from, `onRefused` an Error with the prompts. */
  constructor(scan, chosen, { onMask, onRefused, onBusy }) {
    Object.assign(this, { scan, chosen, onMask, onRefused, onBusy });
  }

  show(prompts) {
    this.#next = prompts;
    this.onBusy(true);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#send(), PAUSE);
  }

  close() {
    this.#closed = true;
    this.#next = null;
    clearTimeout(this.#timer);
  }

  async #send() {
    if (this.#running) return;
    this.#running = true;
    while (this.#next) {
      const prompts = this.#next;
      this.#next = null;
      if (!this.#encoded) this.#watch();
      try {
        const result = await api.promptMask(this.scan, this.chosen, prompts);
        this.#encoded = true;
        if (!this.#closed) await this.onMask(result, prompts);
      } catch (error) {
        if (!this.#closed) this.onRefused(error, prompts);
      }
    }
    this.#running = false;
    if (!this.#closed) this.onBusy(false);
  }

  /** Show how far the first prompt's encoding is, until its mask is there. */
  async #watch() {
    while (this.#running && !this.#encoded && !this.#closed) {
      const { state, fraction } = await api.encoding(this.scan, this.chosen).catch(() => ({}));
      if (state === "encoding") showProgress("Encoding the scan, once", fraction, { cancellable: false });
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
    if (!this.#closed) hideProgress();
  }
}
