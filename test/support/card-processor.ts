/** A card processor as a webhook meets it: events of the shape that Stripe's API has, signed as Stripe signs, sent by HTTP. */
import { createHmac } from 'node:crypto';

export const webhookSecret = 'whsec_test_double_0123456789abcdef';

export interface SentEvent {
  readonly id: string;
  readonly object: 'event';
  readonly api_version: string;
  readonly created: number;
  readonly livemode: boolean;
  readonly pending_webhooks: number;
  readonly request: { readonly id: string | null; readonly idempotency_key: string | null };
  readonly type: string;
  readonly data: { readonly object: Record<string, unknown> };
}

let events = 0;

function event(
  type: string,
  object: Record<string, unknown>,
  created: number,
  change: Partial<SentEvent> = {},
): SentEvent {
  events += 1;
  return {
    id: `evt_${String(events).padStart(24, '0')}`,
    object: 'event',
    api_version: '2026-01-28',
    created,
    livemode: true,
    pending_webhooks: 1,
    request: { id: `req_${events}`, idempotency_key: null },
    type,
    data: { object },
    ...change,
  };
}

export const succeeded = (
  paymentId: string,
  invoice: string | undefined,
  cents: number,
  created: number,
  change: Partial<SentEvent> = {},
  intent: Record<string, unknown> = {},
): SentEvent =>
  event(
    'payment_intent.succeeded',
    {
      id: paymentId,
      object: 'payment_intent',
      amount: cents,
      amount_capturable: 0,
      amount_received: cents,
      capture_method: 'automatic_async',
      currency: 'usd',
      customer: 'cus_R5m3Qz',
      latest_charge: `ch_${paymentId.slice(3)}`,
      livemode: true,
      metadata: invoice === undefined ? {} : { invoice },
      payment_method_types: ['card'],
      status: 'succeeded',
      ...intent,
    },
    created,
    change,
  );

export const refunded = (paymentId: string, cents: number, created: number): SentEvent =>
  event(
    'charge.refunded',
    {
      id: `ch_${paymentId.slice(3)}`,
      object: 'charge',
      amount: 100_000,
      amount_captured: 100_000,
      amount_refunded: cents,
      currency: 'usd',
      payment_intent: paymentId,
      refunded: false,
      status: 'succeeded',
    },
    created,
  );

export const disputed = (paymentId: string, cents: number, created: number): SentEvent =>
  event(
    'charge.dispute.created',
    {
      id: 'dp_1QhZ',
      object: 'dispute',
      amount: cents,
      charge: `ch_${paymentId.slice(3)}`,
      currency: 'usd',
      payment_intent: paymentId,
      reason: 'fraudulent',
      status: 'needs_response',
    },
    created,
  );

/** `Stripe-Signature` of a body. */
export function signatureOf(body: string, at: number, secret = webhookSecret, scheme = 'v1'): string {
  return `t=${at},${scheme}=${createHmac('sha256', secret).update(`${at}.${body}`).digest('hex')}`;
}

/** Answers with the status: a processor sends again what gets none of 2xx. */
export async function send(url: string, sent: SentEvent, at = sent.created): Promise<number> {
  const body = JSON.stringify(sent);
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json; charset=utf-8', 'stripe-signature': signatureOf(body, at) },
    body,
  });
  return response.status;
}
