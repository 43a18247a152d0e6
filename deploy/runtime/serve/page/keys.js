// The keyboard: letters count while the images have the focus, the question mark everywhere but in a field.

import { byId, make } from "./dom.js";

/** `shortcuts` are {keys, says, run}: event.key values, what it does, and doing it with (key, event). */
export function listenToKeys(shortcuts) {
  byId("shortcuts").replaceChildren(
    ...shortcuts.flatMap(({ keys, shown = keys, says }) => [
      make("dt", {}, ...shown.flatMap((key, at) => [at ? " " : "", make("kbd", {}, key)])),
      make("dd", {}, says),
    ]),
  );
  const help = byId("help");
  byId("help-open").addEventListener("click", () => help.showModal());
  addEventListener("keydown", (event) => {
    if (event.key !== "?" || event.target.matches("input:not([type=radio], [type=checkbox], [type=range]), select")) return;
    event.preventDefault();
    if (help.open) help.close();
    else help.showModal();
  });
  const images = byId("images");
  images.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Tab" || event.key === "?" || event.ctrlKey || event.metaKey) return;
      event.stopPropagation(); // the viewer has keys of its own
      const shortcut = shortcuts.find(({ keys }) => keys.includes(event.key));
      if (!shortcut?.run) return;
      event.preventDefault();
      shortcut.run(event.key, event);
    },
    { capture: true },
  );
  images.addEventListener("keyup", (event) => event.stopPropagation(), { capture: true });
}
