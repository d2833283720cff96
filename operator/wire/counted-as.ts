import { isIPv6 } from 'node:net';

/**
 * What is counted as one caller: an IPv4 address, but a whole /64 of IPv6, which is what one customer gets: who has one can
 * choose among more addresses than any table could hold.
 */
export function countedAs(address: string): string {
  const plain = address.replace(/%.*$/, '');
  if (!isIPv6(plain)) return address;
  // As WHATWG writes it: shortest, in lower case, and IPv4 in it as hexadecimal.
  const [left = '', right] = new URL(`http://[${plain}]/`).hostname.slice(1, -1).split('::');
  const head = left === '' ? [] : left.split(':');
  const tail = right === undefined || right === '' ? [] : right.split(':');
  const all =
    right === undefined ? head : [...head, ...Array<string>(8 - head.length - tail.length).fill('0'), ...tail];
  return `${all.slice(0, 4).join(':')}::/64`;
}
