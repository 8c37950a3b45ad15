/** Packets that our rules logged. */
import { packetLogReader } from "../../src/kernel/packet_log.ts";
import { UnavailableError } from "../../src/sdk/errors.ts";

export const readPacketLog = packetLogReader((message, cause) => new UnavailableError(message, { cause }));
