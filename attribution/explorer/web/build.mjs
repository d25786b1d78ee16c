// Builds ../static from src. esbuild gives the same bytes for the same version, so a test compares them with a fresh build.
import { build } from "esbuild";
import { copyFile } from "node:fs/promises";

const out = process.argv[2] ?? "../static";
const options = {
  bundle: true,
  minify: true,
  charset: "utf8",
  target: ["es2022"],
  legalComments: "none",
  logLevel: "warning",
};
// One classic script: the single file and a notebook's frame insert the same text as an inline script.
await build({
  ...options,
  entryPoints: ["src/main.tsx"],
  format: "iife",
  jsx: "automatic",
  jsxImportSource: "preact",
  outfile: `${out}/explorer.js`,
});
await build({ ...options, entryPoints: ["src/style/explorer.css"], outfile: `${out}/explorer.css` });
await copyFile("src/style/favicon.svg", `${out}/favicon.svg`);
