/** Who is let in, and by what: a gateway proves the provider's key for this connection of this listener, and nothing else counts. */
import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { keyFromHex } from '../../../operator/adapters/chain/key.ts';
import { signRegistration, verifyRegistration } from '../../../operator/adapters/chain/link-proofs.ts';
import { maxRegistrationSeconds, registrationMessage } from '../../../operator/api/link.ts';
import {
  admit,
  type Doorkeeper,
  type Introduction,
  introduce,
  NotAdmitted,
} from '../../../operator/wire/introduction.ts';
import { systemTiming } from '../../../operator/wire/timing.ts';
import type { WebSocketStream } from '../../../operator/wire/websocket.ts';

const key = keyFromHex('1'.repeat(64));
const stranger = keyFromHex('2'.repeat(64));
const audienceUrl = 'wss://links.example.com:9444';
const instance = `0x${'7'.repeat(64)}`;
const now = () => new Date('2026-01-01T00:00:00Z');
const nowSeconds = now().getTime() / 1000;

/** Words alone, between two ends. */
function words(): [WebSocketStream, WebSocketStream] {
  const queues = [[], []] as [string[], string[]];
  const waiting: ((said: string) => void)[][] = [[], []];
  const end = (mine: 0 | 1) =>
    Object.assign(new PassThrough(), {
      say(said: string) {
        const other = 1 - mine;
        const next = waiting[other]!.shift();
        if (next) next(said);
        else queues[other]!.push(said);
      },
      heard: () => {
        const said = queues[mine].shift();
        return said === undefined
          ? new Promise<string>((resolve) => waiting[mine]!.push(resolve))
          : Promise.resolve(said);
      },
    }) as unknown as WebSocketStream;
  return [end(0), end(1)];
}

const keeper = (change: Partial<Doorkeeper> = {}): Doorkeeper => ({
  audiences: new Set([audienceUrl]),
  verify: verifyRegistration,
  refuses: () => undefined,
  now,
  ...change,
});
const own: Introduction = {
  provider: key.address,
  audienceUrl,
  instance,
  sign: (message) => signRegistration(key, message),
  now,
};

test('a gateway that proves the key of its provider is let in', async () => {
  const [gateway, listener] = words();
  const admitted = admit(listener, keeper(), systemTiming, '192.0.2.1');
  await introduce(gateway, own, systemTiming);
  expect(await admitted).toEqual({ provider: key.address.toLowerCase(), instance });
});

interface Case {
  /** What the gateway does with the challenge. */
  readonly say: (challenge: string) => Promise<unknown>;
  readonly keeper?: Partial<Doorkeeper>;
  readonly why: RegExp;
  readonly soon?: boolean;
}
const registration = async (change: object, signer = key) => {
  const message = registrationMessage({
    provider: key.address,
    audienceUrl,
    instance,
    challenge: `0x${'0'.repeat(64)}`,
    expiresAt: nowSeconds + maxRegistrationSeconds,
    ...change,
  });
  return { ...message, signature: await signRegistration(signer, message) };
};
const cases: Record<string, Case> = {
  'a stranger who names the provider': {
    say: (challenge) => registration({ challenge }, stranger),
    why: /not signed by/,
  },
  'a registration that was caught on an earlier connection': {
    say: () => registration({ challenge: `0x${'5'.repeat(64)}` }),
    why: /another challenge/,
  },
  'one that was made for another listener': {
    say: (challenge) => registration({ challenge, audienceUrl: 'wss://evil.example.com:443' }),
    why: /this is wss:\/\/links/,
  },
  'one that has run out': {
    say: (challenge) => registration({ challenge, expiresAt: nowSeconds - 31 }),
    why: /has run out/,
  },
  'one that holds for ever': {
    say: (challenge) => registration({ challenge, expiresAt: nowSeconds + 86_400 }),
    why: /for too long/,
  },
  'one whose instance was changed on the way': {
    say: async (challenge) => ({ ...(await registration({ challenge })), instance: `0x${'8'.repeat(64)}` }),
    why: /not signed by/,
  },
  'a signature that is none': {
    say: async (challenge) => ({ ...(await registration({ challenge })), signature: `0x${'0'.repeat(130)}` }),
    why: /not signed by/,
  },
  'something else than a registration': { say: async () => ({ hello: 1 }), why: /no registration/ },
  'a provider that nobody here knows': {
    say: (challenge) => registration({ challenge }),
    keeper: { refuses: () => ({ why: 'no GpuProvider here' }) },
    why: /no GpuProvider here/,
  },
  'anybody, while it is not known yet who is one': {
    say: (challenge) => registration({ challenge }),
    keeper: { refuses: () => ({ why: 'just started', soon: true }) },
    why: /just started/,
    soon: true,
  },
};

test.each(Object.entries(cases))('refused is %s', async (_, { say, keeper: change, why, soon }) => {
  const [gateway, listener] = words();
  const admitted = admit(listener, keeper(change), systemTiming, '192.0.2.1').catch((error: unknown) => error);
  const { challenge } = JSON.parse(await gateway.heard(1, systemTiming)) as { challenge: string };
  gateway.say(JSON.stringify(await say(challenge)));
  const error = (await admitted) as NotAdmitted;
  expect(error).toBeInstanceOf(NotAdmitted);
  expect(error.message).toMatch(why);
  // And the other side is told, and whether it is worth asking again.
  expect(JSON.parse(await gateway.heard(1, systemTiming))).toMatchObject({ accepted: false, final: !soon });
});

test('every connection is asked for another signature', async () => {
  const asked = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const [gateway, listener] = words();
      void admit(listener, keeper(), systemTiming, '192.0.2.1').catch(() => undefined);
      return JSON.parse(await gateway.heard(1, systemTiming)).challenge as string;
    }),
  );
  expect(new Set(asked).size).toBe(20);
});
