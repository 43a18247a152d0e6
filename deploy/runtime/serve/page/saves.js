// What can be taken along: the mask as NIfTI, as DICOM-SEG where the scan is DICOM, and the report.

import { alarm, byId, make, saveBlob, say } from "./dom.js";

/** `files` are {label, name, blob: () => Promise<Blob>}. */
export function showSaves(files) {
  byId("save-section").hidden = files.length === 0;
  byId("saves").replaceChildren(
    ...files.map(({ label, name, blob }) => {
      const button = make("button", { type: "button", title: `Save ${name}` }, label);
      button.addEventListener("click", async () => {
        button.disabled = true;
        try {
          saveBlob(await blob(), name);
          say(`${label} saved`);
        } catch (error) {
          alarm(error);
        } finally {
          button.disabled = false;
        }
      });
      return button;
    }),
  );
}

/** The name of a scan without what its format adds, safe as a file's name. */
export function bareName({ name }) {
  const last = name.split(/[\\/]/).filter(Boolean).pop() ?? "scan";
  return last.replace(/\.(nii\.gz|nii|zip|dcm|png|jpe?g|tiff?|bmp)$/i, "").replace(/[^\p{L}\p{N}._-]+/gu, "_") || "scan";
}
