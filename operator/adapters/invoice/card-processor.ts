/**
 * What a card processor tells over its webhook, checked and put into our own words. One processor is known, Stripe:
 *
 *   Stripe-Signature: t=UNIX,v1=HEX[,v1=HEX…]     HMAC-SHA256 over "t.body" with the endpoint's secret (whsec_…); several while a
 *                                                 secret is being replaced; schemes other than v1 are passed over
 *   payment_intent.succeeded                      data.object: amount_received, currency, metadata.invoice
 *   charge.refunded                               data.object: payment_intent, amount_refunded (all refunds together)
 *   charge.dispute.created                        data.object: payment_intent, amount
 *
 * https://docs.stripe.com/webhooks, https://docs.stripe.com/api/events. The body is checked as it came, byte for byte, before
 * anything of it is read.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { z } from 'zod';
import type { CardEvent } from '../../core/invoice/account.ts';

export interface CardProcessor {
  /** Name of the header that the signature is in, in small letters. */
  readonly header: string;
  /** Undefined: true, and about nothing that concerns us. Throws BadSignature or BadEvent. */
  read(body: Buffer, signature: string | undefined): CardEvent | undefined;
}

/** Not from the processor, or not now. */
export class BadSignature extends Error {
  override readonly name = 'BadSignature';
}
/** From the processor, and not understood. */
export class BadEvent extends Error {
  override readonly name = 'BadEvent';
}

export interface StripeOptions {
  /** The present one and, while it is being replaced, the former. */
  readonly secrets: readonly string[];
  readonly now: () => Date;
  /** Older, or further ahead, is refused: nobody may keep an event and send it later. */
  readonly toleranceSeconds?: number;
  /** Events of the test mode are worth nothing: they are for this alone. */
  readonly testMode?: boolean;
}

const id = z.string().min(1).max(255);
const amount = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const event = z.object({
  id,
  object: z.literal('event'),
  type: z.string().max(128),
  created: z.int().min(0),
  livemode: z.boolean(),
  data: z.object({ object: z.looseObject({}) }),
});
const paymentIntent = z.object({
  id,
  object: z.literal('payment_intent'),
  amount_received: amount,
  currency: z.string().length(3),
  metadata: z.record(z.string(), z.string()).nullish(),
});
const refundedCharge = z.object({ object: z.literal('charge'), payment_intent: id.nullish(), amount_refunded: amount });
const dispute = z.object({ object: z.literal('dispute'), payment_intent: id.nullish(), amount });

/** Currencies whose amounts are not hundredths (https://docs.stripe.com/currencies): invoices in them are not made here. */
const notHundredths = new Set(
  'bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf bhd jod kwd omr tnd'.split(' '),
);

export function stripe({ secrets, now, toleranceSeconds = 300, testMode = false }: StripeOptions): CardProcessor {
  return {
    header: 'stripe-signature',
    read(body, signature) {
      verify(body, signature, secrets, Math.floor(now().getTime() / 1000), toleranceSeconds);
      const { id: eventId, type, created, livemode, data } = parse(event, jsonOf(body));
      // A signed event of the other mode is no error of anybody's: endpoints are told of both where they share a secret.
      if (livemode === testMode) return undefined;
      switch (type) {
        case 'payment_intent.succeeded': {
          const intent = parse(paymentIntent, data.object);
          const invoice = intent.metadata?.invoice;
          // A payment for something else of the same merchant.
          if (invoice === undefined) return undefined;
          const currency = intent.currency.toLowerCase();
          if (notHundredths.has(currency)) throw new BadEvent(`invoices are not made in ${currency.toUpperCase()}`);
          return {
            kind: 'paid',
            eventId,
            paymentId: intent.id,
            invoice,
            currency: currency.toUpperCase(),
            cents: BigInt(intent.amount_received),
            at: created,
          };
        }
        case 'charge.refunded': {
          const charge = parse(refundedCharge, data.object);
          return reversed(eventId, charge.payment_intent, charge.amount_refunded);
        }
        case 'charge.dispute.created': {
          const disputed = parse(dispute, data.object);
          return reversed(eventId, disputed.payment_intent, disputed.amount);
        }
        default:
          return undefined;
      }
    },
  };
}

const reversed = (eventId: string, paymentId: string | null | undefined, cents: number): CardEvent | undefined =>
  paymentId ? { kind: 'reversed', eventId, paymentId, cents: BigInt(cents) } : undefined;

function verify(body: Buffer, header: string | undefined, secrets: readonly string[], now: number, tolerance: number) {
  if (header === undefined || header.length > 4096) throw new BadSignature('the request is not signed');
  const parts = header.split(',').map((part) => part.trim().split('=', 2) as [string, string | undefined]);
  const time = parts.find(([key]) => key === 't')?.[1];
  if (time === undefined || !/^[0-9]{1,12}$/.test(time)) throw new BadSignature('the signature names no time');
  const given = parts.filter(([key]) => key === 'v1').map(([, hex]) => Buffer.from(hex ?? '', 'hex'));
  const signed = Buffer.concat([Buffer.from(`${time}.`), body]);
  const matches = secrets.some((secret) => {
    const expected = createHmac('sha256', secret).update(signed).digest();
    return given.some((one) => one.length === expected.length && timingSafeEqual(one, expected));
  });
  if (!matches) throw new BadSignature('the signature is not made with the secret of this endpoint');
  if (Math.abs(now - Number(time)) > tolerance)
    throw new BadSignature(`the signature is ${Math.abs(now - Number(time))} s away from now: check the clock`);
}

function jsonOf(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    throw new BadEvent('the body is not JSON');
  }
}

function parse<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new BadEvent(`${issue?.path.join('.') || 'the event'}: ${issue?.message}`);
}
