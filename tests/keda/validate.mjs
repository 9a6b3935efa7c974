// Reads a ScaledObject as JSON and holds it against the schema of KEDA's own definitions, which the package carries.
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";

new ScaledObject(JSON.parse(readFileSync(0, "utf8"))).validate();
