import memory from "../../dataplanes/memory/mod.ts";
import { dataplaneContract } from "./dataplane.ts";

dataplaneContract({ plugin: memory });
