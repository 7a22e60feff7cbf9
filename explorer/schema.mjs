// TypeScript types of the data, from the JSON Schemas that Python makes of its dataclasses.
import { compile } from "json-schema-to-typescript";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";

const from = new URL("../jaxablate/reports/schemas/", import.meta.url);
const to = new URL("./src/schema/", import.meta.url);
await mkdir(to, { recursive: true });
for (const name of (await readdir(from)).filter((x) => x.endsWith(".schema.json")).sort()) {
  const schema = JSON.parse(await readFile(new URL(name, from), "utf8"));
  const text = await compile(schema, schema.title, { bannerComment: "", unreachableDefinitions: true, format: false });
  await writeFile(new URL(name.replace(".schema.json", ".ts"), to), text);
}
