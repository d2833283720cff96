/**
 * Nonces that were used. Bounded: a nonce is remembered until the message that carries it runs out anyway, and when there
 * is no room for another, the message is refused rather than an older nonce forgotten.
 *
 * Each replica remembers its own, and none after a restart. A message that is caught on its way, inside TLS, and replayed to
 * another replica in time gives the very token that its sender got (tokens.ts), good for no longer: what it took to read the
 * message would have shown that one as well.
 */
import { Refusal } from '../core/allocation/refusal.ts';

export interface Nonces {
  /** Throws a Refusal for a nonce that was used before. */
  use(nonce: string, expiresAt: number): void;
}

export function createNonces(now: () => Date, capacity = 100_000): Nonces {
  const used = new Map<string, number>();
  return {
    use(nonce, expiresAt) {
      const nowSeconds = Math.floor(now().getTime() / 1000);
      const key = nonce.toLowerCase();
      if (used.has(key)) throw new Refusal('Unauthorized', 'this nonce was used before: sign another');
      if (used.size >= capacity) {
        for (const [old, until] of used) if (until < nowSeconds) used.delete(old);
        if (used.size >= capacity)
          throw new Refusal(429, 'too many tokens were asked for: try again', { retryAfterSeconds: 60 });
      }
      used.set(key, expiresAt);
    },
  };
}
