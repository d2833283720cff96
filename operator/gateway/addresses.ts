/**
 * Where a request comes from, as far as that can be known. A header is believed only from a proxy that the provider named:
 * anybody else could write into it whom he likes, and be counted as somebody else.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { BlockList, isIPv4, isIPv6 } from 'node:net';

/** As much of a request as says who sends it. */
export interface From {
  readonly headers: IncomingHttpHeaders;
  readonly socket?: {
    readonly remoteAddress?: string;
    readonly remotePort?: number;
    /** The place whose link brought it. */
    readonly linkedBy?: string;
  } | null;
}

export interface Addresses {
  /** Of the caller; `unknown` where the connection has none, as in a tunnel. */
  of(from: From): string;
  /** Whether it is a proxy of the provider's own. */
  isTrusted(address: string): boolean;
}

export const unknownAddress = 'unknown';
/** Before the name of a caller that a link brought. */
export const overLink = 'link ';
/** Proxies that a request may have come through. */
const mostHops = 16;

/** `trustedProxies`: addresses and networks (CIDR). Throws for what is neither. */
export function createAddresses(trustedProxies: readonly string[] = []): Addresses {
  const trusted = new BlockList();
  for (const text of trustedProxies) {
    const network = networkOf(text);
    if (network === undefined) throw new Error(`${text} is neither an address nor a network such as 10.0.0.0/8`);
    trusted.addSubnet(network.address, network.prefix, network.family);
  }
  const isTrusted = (address: string): boolean =>
    (isIPv4(address) && trusted.check(address, 'ipv4')) || (isIPv6(address) && trusted.check(address, 'ipv6'));
  return {
    isTrusted,
    of({ headers, socket }) {
      const remote = socket?.remoteAddress ?? '';
      // Whom a link names is no address here: nobody is a trusted proxy by the word of a relay.
      if (remote.startsWith(overLink)) return remote;
      let address = plain(remote) ?? unknownAddress;
      const told = headers['x-forwarded-for'];
      if (told === undefined || !isTrusted(address)) return address;
      // Each proxy adds at the end whom it heard from: from there backwards, as far as they are trusted.
      const hops = String(told).slice(-2048).split(',').slice(-mostHops).reverse();
      for (const hop of hops) {
        const before = plain(hop.trim());
        if (before === undefined) break;
        address = before;
        if (!isTrusted(address)) break;
      }
      return address;
    },
  };
}

/** For whoever reads configuration: undefined for what is neither an address nor a network. */
export function networkOf(text: string): { address: string; prefix: number; family: 'ipv4' | 'ipv6' } | undefined {
  const match = /^([0-9a-fA-F:.]{2,45})(?:\/(\d{1,3}))?$/.exec(text);
  const [, address = '', given] = match ?? [];
  const family = isIPv4(address) ? 'ipv4' : isIPv6(address) ? 'ipv6' : undefined;
  if (family === undefined) return undefined;
  const longest = family === 'ipv4' ? 32 : 128;
  const prefix = given === undefined ? longest : Number(given);
  return prefix > longest ? undefined : { address, prefix, family };
}

/** Without a zone, and IPv4 as itself where it comes inside IPv6; undefined for what is no address. */
function plain(text: string): string | undefined {
  const address = text.replace(/%.*$/, '');
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped !== undefined && isIPv4(mapped)) return mapped;
  return isIPv4(address) || isIPv6(address) ? address : undefined;
}
