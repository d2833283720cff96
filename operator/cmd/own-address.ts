/** Where others reach this process, when nobody says: in a pod, the pod's address. */
import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import { UsageError } from './options.ts';

export function ownAddress(flag: string): string {
  for (const addresses of Object.values(networkInterfaces()))
    for (const one of addresses ?? []) if (!one.internal && one.family === 'IPv4') return one.address;
  throw new UsageError(`${flag} is missing: this machine has no address but loopback`);
}

/** One that this process can listen at, and others can reach. */
export function localAddress(flag: string, address: string): string {
  if (isIP(address) === 0) throw new UsageError(`${flag} must be an IP address; given: ${address.slice(0, 80)}`);
  const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  const found = own.find((one) => one.address === address);
  if (!found || found.internal)
    throw new UsageError(
      `${flag} must be an address of this machine that others reach; given: ${address}; there are: ${own
        .filter((one) => !one.internal)
        .map((one) => one.address)
        .join(', ')}`,
    );
  return address;
}
