// Bundles NiiVue into one minified file, and the licences of everything in it into another: node bundle.js FOLDER
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const folder = process.argv[2];

// Reads scans in pieces over the network, with codecs in WebAssembly: the page has no use for either.
const withoutZarr = {
  name: "without-zarr",
  setup(bundle) {
    bundle.onResolve({ filter: /^zarrita$/ }, ({ path }) => ({ path, namespace: "empty" }));
    bundle.onLoad({ filter: /.*/, namespace: "empty" }, () => ({ contents: "module.exports = {};" }));
  },
};

const { metafile } = await build({
  entryPoints: ["entry.js"],
  outfile: join(folder, "niivue.js"),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  logLevel: "error",
  metafile: true,
  plugins: [withoutZarr],
});

function licence(name) {
  const place = join("node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(place, "package.json")));
  const file = readdirSync(place).find((each) => /^licen[cs]e/i.test(each));
  // NiiVue's package says BSD-2-Clause and leaves the text out.
  const text = readFileSync(file ? join(place, file) : `LICENSE-${name.split("/").at(-1)}`, "utf8");
  return `${name} ${version} (${license})\n\n${text.trim()}\n`;
}

const names = new Set();
for (const path of Object.keys(metafile.inputs)) {
  const match = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/);
  if (match) names.add(match[1]);
}
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, "LICENSES.txt"), [...names].sort().map(licence).join(`\n${"-".repeat(78)}\n\n`));
