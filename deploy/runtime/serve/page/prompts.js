// The prompts of a scan as data: what was clicked and drawn, undo and redo, and the JSON that the server reads.

/** Each prompt is {index, kind: "point", inside, voxel} or {index, kind: "box", plane, voxels}. */
export class PromptHistory {
  #actions = [];
  #undone = [];

  add(prompt) {
    this.#actions.push(prompt);
    this.#undone = [];
  }

  /** Take all prompts back at once; undo brings them again. */
  clear() {
    if (this.current.length) this.add({ kind: "clear" });
  }

  undo() {
    if (this.#actions.length) this.#undone.push(this.#actions.pop());
  }

  redo() {
    if (this.#undone.length) this.#actions.push(this.#undone.pop());
  }

  /** Forget the last prompt for good: it was refused. */
  drop() {
    this.#actions.pop();
  }

  get canUndo() {
    return this.#actions.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  /** What holds now: a class has one box on a slice, so that a new one takes the place of those it shares slices with. */
  get current() {
    let current = [];
    for (const action of this.#actions) {
      if (action.kind === "clear") current = [];
      else current = [...current.filter((each) => !replaces(action, each)), action];
    }
    return current;
  }

  /** The prompt JSON, in voxels, or null without prompts. `names` are those of the classes by their indices. */
  json(names) {
    const classes = {};
    for (const { index, kind, inside, voxel, voxels } of this.current) {
      const prompts = (classes[names.get(index)] ??= {});
      if (kind === "point") (prompts.points ??= []).push([...voxel, inside ? 1 : 0]);
      else (prompts.boxes ??= []).push(voxels);
    }
    return Object.keys(classes).length ? { space: "voxel", classes } : null;
  }
}

function replaces(fresh, old) {
  if (fresh.kind !== "box" || old.kind !== "box" || fresh.index !== old.index) return false;
  const meet = [0, 1, 2].map((axis) => fresh.voxels[axis] <= old.voxels[axis + 3] && old.voxels[axis] <= fresh.voxels[axis + 3]);
  return meet.every(Boolean) || (fresh.plane === old.plane && meet[fresh.through]);
}
