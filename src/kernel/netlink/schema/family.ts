/** AF_* numbers as message headers carry them. */
import type { Address, Family } from "../../../model/address.ts";

export const AF_UNSPEC = 0;
export const AF_INET = 2;
export const AF_INET6 = 10;

export const familyNumber = (address: Address): number => address.length === 4 ? AF_INET : AF_INET6;
/** AF_UNSPEC, which means both, where absent. */
export const familyOf = (family: Family | undefined): number =>
  family === undefined ? AF_UNSPEC : family === 4 ? AF_INET : AF_INET6;
/** Undefined for a family that is not IP. */
export const familyFrom = (number: number): Family | undefined =>
  number === AF_INET ? 4 : number === AF_INET6 ? 6 : undefined;
