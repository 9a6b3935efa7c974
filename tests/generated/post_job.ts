import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { argv: string[] };

const client = createClient<paths>({ baseUrl: process.argv[2] ?? "" });
const request: components["schemas"]["JobRequest"] = { class_label: "torus", steps: 5 };
const { data, error } = await client.POST("/v1/jobs", { body: request, headers: { Prefer: "wait=20" } });
if (data === undefined) throw new Error(error?.detail);
if ("data" in data) throw new Error("one job was asked for, and several were made");
const images: string[] = data.images.map((each) => each.url);
console.log(JSON.stringify({ id: data.id, status: data.status, images: images.length }));
