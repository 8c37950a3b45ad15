import { datastoreContract } from "./datastore.ts";
import { MemoryStorage } from "./memory_datastore.ts";

datastoreContract("memory", async () => {
  const storage = new MemoryStorage();
  return {
    datastore: storage.client(),
    another: async () => storage.client(),
    [Symbol.asyncDispose]: async () => {},
  };
});
