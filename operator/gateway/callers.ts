/**
 * Who asks, and how often that may be. Without a good token a request counts against its address: a quote costs a signature,
 * an allocation a chain read, a guess at a token a look. With one it counts against the wallet that pays for the lease.
 *
 * A quote counts against its address alone: it names a wallet, but anybody can name anybody's. So can a link with addresses, so
 * what comes over it counts against the link as well.
 */
import type { Hex32 } from '../api/messages.ts';
import { Refusal } from '../core/allocation/refusal.ts';
import { countedAs } from '../wire/counted-as.ts';
import type { Addresses, From } from './addresses.ts';
import type { Connections } from './connections.ts';
import type { RateLimit } from './plugins/limits.ts';
import type { LeaseTokens } from './tokens.ts';

export interface Callers {
  /** For requests without a token. Throws a Refusal (429). */
  anybody(from: From): void;
  /** For requests with one: throws a Refusal unless it is a good one of this lease. */
  check(leaseId: Hex32, from: From): void;
  /** One more call of a request that was checked. Throws a Refusal (429). */
  again(leaseId: Hex32): void;
  /** A request without a token proved by signature that it is about this lease. */
  proved(leaseId: Hex32, from: From): void;
  /** It is about this lease, which anybody may have said: what is on chain is public. */
  about(leaseId: Hex32, from: From): void;
  /** The lease that a request was found to be about. */
  leaseOf(from: From): Hex32 | undefined;
  addressOf(from: From): string;
  /** The account behind a lease, where it is known here. */
  walletOf(leaseId: Hex32): string | undefined;
}

export function createCallers(options: {
  readonly tokens: Pick<LeaseTokens, 'check'>;
  readonly addresses: Addresses;
  readonly connections: Connections;
  readonly ofAddress: RateLimit;
  /** All that one link brings. */
  readonly ofPlace: RateLimit;
  readonly ofWallet: RateLimit;
  readonly walletOf: (leaseId: Hex32) => string | undefined;
}): Callers {
  const { tokens, addresses, connections, ofAddress, ofPlace, ofWallet, walletOf } = options;
  const leases = new WeakMap<object, Hex32>();
  const bucketOf = (from: From) => countedAs(addresses.of(from));
  const anybody = (from: From): void => {
    ofAddress.take(bucketOf(from));
    if (from.socket?.linkedBy !== undefined) ofPlace.take(from.socket.linkedBy);
  };
  const again = (leaseId: Hex32): void => ofWallet.take(walletOf(leaseId) ?? leaseId);
  return {
    anybody,
    check(leaseId, from) {
      try {
        tokens.check(leaseId, from.headers.authorization);
      } catch (error) {
        // A consumer whose token ran out asks once more; who guesses is soon told to wait.
        if (error instanceof Refusal) anybody(from);
        throw error;
      }
      connections.prove(from);
      again(leaseId);
      leases.set(from, leaseId);
    },
    again,
    proved(leaseId, from) {
      ofAddress.give(bucketOf(from));
      if (from.socket?.linkedBy !== undefined) ofPlace.give(from.socket.linkedBy);
      connections.prove(from);
      again(leaseId);
      leases.set(from, leaseId);
    },
    about: (leaseId, from) => void leases.set(from, leaseId),
    leaseOf: (from) => leases.get(from),
    addressOf: (from) => addresses.of(from),
    walletOf,
  };
}
