import type { Address } from "../pure/address.ts";
export function startLive(_address: Address, _problems: readonly string[]): void {}
