/**
 * Bearer tokens for one lease, minutes long. The token says which lease and until when, and is sealed with a key that the
 * replicas share; so any replica takes it, and none has to remember it.
 *
 * Until when follows from the Access that it is given for, not from the clock: one Access gives one token. Whoever could replay
 * it, at another replica say, which does not know its nonce, would get what the first answer held, and not a second more.
 */
import { createHmac, createSecretKey, timingSafeEqual } from 'node:crypto';
import type { Hex32 } from '../api/messages.ts';
import { Refusal } from '../core/allocation/refusal.ts';

export interface LeaseTokens {
  issue(leaseId: Hex32, accessExpiresAt: number): { token: string; expiresAt: number };
  /** Throws a Refusal unless the header carries a token of this lease that has not run out. */
  check(leaseId: Hex32, authorization: string | undefined): void;
}

export function createLeaseTokens(key: Uint8Array, now: () => Date, secondsAfterAccess = 480): LeaseTokens {
  if (key.length < 32) throw new Error('the key of the lease tokens has fewer than 32 bytes');
  // Made once: bytes would be made a key of with every call, which takes five times as long as the seal.
  const secret = createSecretKey(key);
  const seal = (content: string): Buffer => createHmac('sha256', secret).update(`gpulease-token.${content}`).digest();
  const nowSeconds = () => Math.floor(now().getTime() / 1000);
  const refused = (why: string) => new Refusal('Unauthorized', why);
  return {
    issue(leaseId, accessExpiresAt) {
      const expiresAt = accessExpiresAt + secondsAfterAccess;
      const content = Buffer.from(JSON.stringify({ l: leaseId.toLowerCase(), e: expiresAt })).toString('base64url');
      return { token: `${content}.${seal(content).toString('base64url')}`, expiresAt };
    },
    check(leaseId, authorization) {
      if (authorization === undefined) throw refused('a bearer token is needed: ask for one with an Access signature');
      const match = /^Bearer ([A-Za-z0-9_-]{1,1024})\.([A-Za-z0-9_-]{1,64})$/i.exec(authorization);
      if (!match) throw refused('the Authorization header is not a bearer token of this gateway');
      const [, content = '', given = ''] = match;
      const wanted = seal(content);
      const got = Buffer.from(given, 'base64url');
      if (got.length !== wanted.length || !timingSafeEqual(got, wanted))
        throw refused('the token is not one of this gateway');
      // Sealed by us, so it is as we wrote it.
      const { l, e } = JSON.parse(Buffer.from(content, 'base64url').toString('utf8')) as { l: string; e: number };
      if (e <= nowSeconds()) throw refused('the token has run out: ask for another');
      if (l !== leaseId.toLowerCase()) throw refused('the token is for another lease');
    },
  };
}
