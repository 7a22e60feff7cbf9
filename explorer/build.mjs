// Bundles the application into one HTML file, jaxablate/reports/explorer.html, into which Python puts the data.
import { build, context } from "esbuild";
import { readFile, writeFile } from "node:fs/promises";

const here = new URL("./", import.meta.url);
const out = new URL("../jaxablate/reports/explorer.html", import.meta.url);

/** Puts script and style into the page; the same sources give the same bytes. */
const page = {
  name: "page",
  setup(job) {
    job.onEnd(async (result) => {
      if (result.errors.length) return;
      const text = (suffix) => result.outputFiles.find((f) => f.path.endsWith(suffix)).text;
      const template = await readFile(new URL("index.html", here), "utf8");
      // In a script nothing may look like its end; functions, since "$&" in a replacement has a meaning.
      const script = text(".js").replaceAll("</script", "<\\/script").trim();
      await writeFile(out, template
        .replace("/*style*/", () => text(".css").trim())
        .replace("/*script*/", () => script));
    });
  },
};

const options = {
  absWorkingDir: new URL(".", here).pathname,
  entryPoints: ["src/main.tsx"],
  bundle: true,
  minify: true,
  write: false,
  outdir: "out",
  format: "iife",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  legalComments: "inline",
  plugins: [page],
};
if (process.argv.includes("--watch")) await (await context(options)).watch();
else await build(options);
