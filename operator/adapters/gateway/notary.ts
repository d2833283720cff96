/** The provider's key behind what the gateway may do with it: sign quotes and releases, and check what consumers signed. */
import { randomBytes } from 'node:crypto';
import type {
  Access,
  Address,
  Hex,
  Hex32,
  MessageDomain,
  Quote,
  Release,
  Signed,
  Voucher,
} from '../../api/messages.ts';
import { boundedMap } from '../../engine/bounded-map.ts';
import type { ChainKey } from '../chain/key.ts';
import {
  hashJson,
  hashQuote,
  leaseIdOf,
  SignatureMismatch,
  signQuote,
  signRelease,
  verifyAccess,
  verifyQuote,
  verifyVoucher,
} from '../chain/messages.ts';

export interface ProviderNotary {
  readonly address: Address;
  hashJson(value: unknown): Hex32;
  hashQuote(domain: MessageDomain, quote: Quote): Hex32;
  leaseIdOf(consumer: Address, leaseRef: Hex32): Hex32;
  signQuote(domain: MessageDomain, quote: Quote): Promise<Hex>;
  signRelease(domain: MessageDomain, release: Release): Promise<Hex>;
  verifyQuote(domain: MessageDomain, signed: Signed<Quote>): Promise<boolean>;
  verifyVoucher(domain: MessageDomain, signed: Signed<Voucher>, signer: Address): boolean;
  verifyAccess(domain: MessageDomain, signed: Signed<Access>, signer: Address): boolean;
  quoteNonce(): bigint;
}

/** False for a signature of somebody else; any other failure is thrown. */
function holds(verify: () => void): boolean {
  try {
    verify();
    return true;
  } catch (error) {
    if (error instanceof SignatureMismatch) return false;
    throw error;
  }
}

const mostRemembered = 10_000;

export function createNotary(key: ChainKey): ProviderNotary {
  /** The last good voucher of each lease: whoever stores it and whoever acts on it look at the same one. */
  const good = boundedMap<Hex32, string>(mostRemembered);

  function verifyOnce(domain: MessageDomain, signed: Signed<Voucher>, signer: Address): void {
    const { leaseId } = signed.message;
    const name = JSON.stringify([domain, signed, signer]);
    if (good.get(leaseId) === name) return;
    verifyVoucher(domain, signed, signer);
    good.set(leaseId, name);
  }

  return {
    address: key.address,
    hashJson,
    hashQuote,
    leaseIdOf,
    signQuote: async (domain, quote) => (await signQuote(key, domain, quote)).signature,
    signRelease: async (domain, release) => (await signRelease(key, domain, release)).signature,
    // Our own key is an ordinary account: no chain is needed to check it.
    async verifyQuote(domain, signed) {
      try {
        await verifyQuote(domain, signed);
        return true;
      } catch (error) {
        if (error instanceof SignatureMismatch) return false;
        throw error;
      }
    },
    verifyVoucher: (domain, signed, signer) => holds(() => verifyOnce(domain, signed, signer)),
    verifyAccess: (domain, signed, signer) => holds(() => verifyAccess(domain, signed, signer)),
    quoteNonce: () => BigInt(`0x${randomBytes(32).toString('hex')}`),
  };
}
