/** The three messages of text with which a gateway offers itself: see api/link.ts. */
import { randomBytes } from 'node:crypto';
import {
  challenge,
  linkClockSkewSeconds,
  maxRegistrationSeconds,
  type Registration,
  registration,
  registrationMessage,
  type Verdict,
  verdict,
} from '../api/link.ts';
import type { Timing } from './timing.ts';
import { WebSocketError, type WebSocketStream } from './websocket.ts';

/** For each message. */
const sayWithinSeconds = 10;
const nowSeconds = (now: () => Date): number => Math.floor(now().getTime() / 1000);

export interface Doorkeeper {
  /** Under which this listener is dialled. */
  readonly audiences: ReadonlySet<string>;
  /** Whether the account that is named signed it. */
  verify(given: Registration): boolean;
  /** Why this provider may not link here, from this address, or undefined. `soon`: it may in a moment. */
  refuses(provider: string, from: string): { readonly why: string; readonly soon?: boolean } | undefined;
  readonly now: () => Date;
}

/** Not let in. `final`: asking again soon changes nothing. */
export class NotAdmitted extends Error {
  override readonly name = 'NotAdmitted';
  readonly final: boolean;
  constructor(why: string, final = false) {
    super(why);
    this.final = final;
  }
}

/** The side that was dialled. Rejects with NotAdmitted, having told the other side; or with what befell the connection. */
export async function admit(
  socket: WebSocketStream,
  keeper: Doorkeeper,
  clock: Timing,
  from: string,
): Promise<{ provider: string; instance: string }> {
  const given = `0x${randomBytes(32).toString('hex')}`;
  socket.say(JSON.stringify({ challenge: given }));
  const said = parsed(registration, await socket.heard(sayWithinSeconds, clock));
  const refusal = said ? refusalOf(said, given, keeper, from) : new NotAdmitted('this is no registration', true);
  const answer: Verdict = refusal
    ? { accepted: false, why: refusal.message.slice(0, 512), final: refusal.final }
    : { accepted: true };
  socket.say(JSON.stringify(answer));
  if (refusal || !said) {
    socket.end();
    throw refusal;
  }
  return { provider: said.provider.toLowerCase(), instance: said.instance.toLowerCase() };
}

function refusalOf(said: Registration, given: string, keeper: Doorkeeper, from: string): NotAdmitted | undefined {
  const now = nowSeconds(keeper.now);
  if (said.challenge.toLowerCase() !== given)
    return new NotAdmitted('the registration answers another challenge: it was made for another connection', true);
  if (!keeper.audiences.has(said.audienceUrl))
    return new NotAdmitted(
      `the registration is for ${said.audienceUrl.slice(0, 200)}, this is ${[...keeper.audiences].join(' or ')}: dial the URL that it was published with`,
      true,
    );
  if (said.expiresAt <= now - linkClockSkewSeconds)
    return new NotAdmitted('the registration has run out: set the clock of the gateway by NTP', true);
  if (said.expiresAt > now + maxRegistrationSeconds + linkClockSkewSeconds)
    return new NotAdmitted('the registration holds for too long: set the clock of the gateway by NTP', true);
  if (!keeper.verify(said)) return new NotAdmitted(`the registration is not signed by ${said.provider}`, true);
  const no = keeper.refuses(said.provider.toLowerCase(), from);
  return no && new NotAdmitted(no.why, no.soon !== true);
}

export interface Introduction {
  readonly provider: string;
  readonly audienceUrl: string;
  readonly instance: string;
  readonly sign: (message: ReturnType<typeof registrationMessage>) => Promise<string>;
  readonly now: () => Date;
}

/** The gateway's side. Rejects with NotAdmitted when it is not let in. */
export async function introduce(socket: WebSocketStream, own: Introduction, clock: Timing): Promise<void> {
  const asked = parsed(challenge, await socket.heard(sayWithinSeconds, clock));
  if (!asked) throw new WebSocketError('no challenge was given');
  const message = registrationMessage({
    provider: own.provider,
    audienceUrl: own.audienceUrl,
    instance: own.instance,
    challenge: asked.challenge,
    expiresAt: nowSeconds(own.now) + maxRegistrationSeconds,
  });
  socket.say(JSON.stringify({ ...message, signature: await own.sign(message) }));
  const answer = parsed(verdict, await socket.heard(sayWithinSeconds, clock));
  if (!answer) throw new WebSocketError('no verdict was given');
  if (!answer.accepted) throw new NotAdmitted(answer.why, answer.final);
}

function parsed<T>(schema: { safeParse(value: unknown): { data?: T } }, said: string): T | undefined {
  try {
    return schema.safeParse(JSON.parse(said)).data;
  } catch {
    return undefined;
  }
}
