// The list of scans that this page sent: which one is shown, when each is deleted, and deleting one now.

import * as api from "./api.js";
import { alarm, byId, clock, make, refill, say } from "./dom.js";

const deletedAt = ({ expires }) => `Deleted at ${clock(expires)}`;
const isDue = ({ expires }) => expires * 1000 <= Date.now();

export class ScanList {
  constructor({ onChoose, onGone }) {
    this.scans = [];
    this.chosen = null;
    this.clocks = new WeakMap(); // the elements that say when a scan is deleted
    this.onChoose = onChoose;
    this.onGone = onGone;
    setInterval(() => this.scans.filter(isDue).forEach((scan) => this.refresh(scan)), 5_000);
  }

  add(scans) {
    this.scans.push(...scans);
    this.choose(scans[0]);
    say(scans.length === 1 ? "The scan is here" : `${scans.length} scans are here`);
  }

  choose(scan) {
    this.chosen = scan;
    this.#show();
    this.onChoose(scan);
  }

  async remove(scan) {
    try {
      await api.removeScan(scan);
    } catch (error) {
      if (error.status !== 404) return alarm(error);
    }
    this.#forget(scan);
    say("Deleted from this machine");
  }

  /** Learn when a scan is deleted, which every use puts off; or that it is gone. */
  async refresh(scan) {
    try {
      scan.expires = (await api.scan(scan)).expires;
      this.clocks.get(scan)?.replaceChildren(deletedAt(scan)); // no new row: somebody may be clicking on this one
    } catch (error) {
      if (error.status !== 404 || !this.scans.includes(scan)) return;
      this.#forget(scan);
      alarm(`The scan was deleted at ${clock(scan.expires)}, with its masks. Send it again to go on.`);
    }
  }

  #forget(scan) {
    this.scans = this.scans.filter((each) => each !== scan);
    if (this.chosen === scan) {
      this.chosen = null;
      this.onGone(scan);
    }
    this.#show();
  }

  #show() {
    refill(byId("scans"), ...this.scans.map((scan) => this.#row(scan)));
    byId("drop").classList.toggle("small", this.scans.length > 0);
  }

  #row(scan) {
    const input = make("input", { type: "radio", name: "scan", checked: scan === this.chosen });
    input.addEventListener("change", () => this.choose(scan));
    const facts = [
      scan.modality,
      scan.shape.join(" × "),
      `${scan.spacing.map((mm) => mm.toFixed(2).replace(/\.?0+$/, "")).join(" × ")} mm`,
      scan.files > 1 && `${scan.files} files`,
    ];
    const remove = make("button", { type: "button", title: "Delete the scan and its masks from this machine now" }, "Delete now");
    remove.addEventListener("click", () => this.remove(scan));
    const deleted = make("span", { className: "quiet" }, deletedAt(scan));
    this.clocks.set(scan, deleted);
    return make(
      "li",
      {},
      make("label", {}, input, make("span", { className: "name" }, scan.name)),
      make("span", { className: "quiet" }, facts.filter(Boolean).join(", ")),
      make("span", { className: "row" }, deleted, remove),
    );
  }
}
