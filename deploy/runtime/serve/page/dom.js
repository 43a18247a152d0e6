// Small helpers around the document. Text from a scan gets into the page through make() alone, as text.

export const byId = (id) => document.getElementById(id);

/** A new element. `properties` are set as properties, or where the name has a hyphen or is `role` as attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Give an element other contents; what had the focus in it, by its place among inputs and buttons, has it again. */
export function refill(element, ...children) {
  const inputs = () => [...element.querySelectorAll("input, button")];
  const at = inputs().indexOf(document.activeElement);
  element.replaceChildren(...children);
  if (at >= 0) inputs()[at]?.focus();
}

/** Buttons of which one is on, as a radio group: `choices` are {value, label, title}. Gives a function that sets it. */
export function radioButtons(group, choices, onChoose) {
  const name = group.id;
  const inputs = choices.map(({ value, label, title = "" }) => {
    const input = make("input", { type: "radio", name, value });
    input.addEventListener("change", () => onChoose(value));
    return [input, make("label", { title }, input, make("span", {}, label))];
  });
  group.replaceChildren(...inputs.map(([, label]) => label));
  return (value) => {
    for (const [input] of inputs) input.checked = input.value === value;
  };
}

/** Say something to screen readers, politely. */
export function say(text) {
  byId("status").textContent = text;
}

/** Show what went wrong, until it is closed or something else goes wrong. */
export function alarm(error) {
  byId("alarm-text").textContent = error instanceof Error ? error.message : String(error);
  byId("alarm").hidden = false;
}

export function calm() {
  byId("alarm").hidden = true;
}

export function clock(epochSeconds) {
  return new Date(epochSeconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
}

/** A save of bytes that this page holds. */
export function saveBlob(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
