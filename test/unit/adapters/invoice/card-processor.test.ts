/** The card processor's webhook: whom it believes, for how long, and what it makes of what it is told. */
import { afterEach, describe, expect, it } from 'vitest';
import { BadEvent, BadSignature, stripe } from '../../../../operator/adapters/invoice/card-processor.ts';
import { startWebhookServer } from '../../../../operator/adapters/invoice/webhook-server.ts';
import type { CardEvent } from '../../../../operator/core/invoice/account.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import {
  disputed,
  refunded,
  type SentEvent,
  send,
  signatureOf,
  succeeded,
  webhookSecret,
} from '../../../support/card-processor.ts';

const at = 1_764_150_000;
const now = () => new Date(at * 1000);
const processor = (more: Partial<Parameters<typeof stripe>[0]> = {}) =>
  stripe({ secrets: [webhookSecret], now, ...more });
const text = (event: SentEvent) => JSON.stringify(event);
const paid = succeeded('pi_1', 'acme-2026-11', 1234, at);
const read = (body: string, header: string | undefined, more = {}) => processor(more).read(Buffer.from(body), header);

describe('a signature', () => {
  it.each<[string, string, object]>([
    ['of now', signatureOf(text(paid), at), {}],
    ['of five minutes ago', signatureOf(text(paid), at - 300), {}],
    ['of a clock that is five minutes ahead', signatureOf(text(paid), at + 300), {}],
    [
      'by the former secret, while it is replaced',
      signatureOf(text(paid), at, 'whsec_former'),
      { secrets: [webhookSecret, 'whsec_former'] },
    ],
    [
      'among others of another secret and scheme',
      `${signatureOf(text(paid), at, 'whsec_other')},${signatureOf(text(paid), at).split(',')[1]},v0=00`,
      {},
    ],
  ])('%s is taken', (_, header, more) => {
    expect(read(text(paid), header, more)).toMatchObject({ kind: 'paid', invoice: 'acme-2026-11' });
  });

  it.each<[string, string, string | undefined]>([
    ['that is missing', text(paid), undefined],
    ['that is empty', text(paid), ''],
    ['without a time', text(paid), signatureOf(text(paid), at).split(',')[1]],
    ['of a time that is no number', text(paid), `t=soon,${signatureOf(text(paid), at).split(',')[1]}`],
    ['of another secret', text(paid), signatureOf(text(paid), at, 'whsec_other')],
    ['of another scheme alone', text(paid), signatureOf(text(paid), at, webhookSecret, 'v0')],
    ['of another body', `${text(paid)} `, signatureOf(text(paid), at)],
    ['put under another time', text(paid), signatureOf(text(paid), at - 10).replace(String(at - 10), String(at))],
    ['five minutes and a second old: it was kept', text(paid), signatureOf(text(paid), at - 301)],
    ['too far ahead', text(paid), signatureOf(text(paid), at + 301)],
    ['cut short', text(paid), signatureOf(text(paid), at).slice(0, -2)],
    ['that is endless', text(paid), `${signatureOf(text(paid), at)},${'v1=00,'.repeat(2000)}`],
  ])('%s is refused', (_, body, header) => {
    expect(() => read(body, header)).toThrow(BadSignature);
  });

  it('is looked at before anything of the body is', () => {
    expect(() => read('not even JSON', signatureOf('another', at))).toThrow(BadSignature);
    expect(() => read('not even JSON', signatureOf('not even JSON', at))).toThrow(BadEvent);
  });

  it('tells nobody the secret', () => {
    for (const header of [undefined, 't=1,v1=00'])
      try {
        read(text(paid), header);
      } catch (error) {
        expect(`${error}${JSON.stringify(error)}`).not.toContain('whsec_');
      }
  });
});

describe('an event', () => {
  const told = (event: SentEvent, more = {}) => read(text(event), signatureOf(text(event), at), more);

  it.each<[string, SentEvent, Partial<CardEvent> | undefined]>([
    [
      'of a payment is one for its invoice',
      paid,
      { kind: 'paid', paymentId: 'pi_1', invoice: 'acme-2026-11', currency: 'USD', cents: 1234n, at },
    ],
    [
      'of a refund tells all that was given back',
      refunded('pi_1', 400, at),
      { kind: 'reversed', paymentId: 'pi_1', cents: 400n },
    ],
    [
      'of a dispute takes the payment back',
      disputed('pi_1', 1234, at),
      { kind: 'reversed', paymentId: 'pi_1', cents: 1234n },
    ],
    ['of a payment for something else is none of ours', succeeded('pi_2', undefined, 5, at), undefined],
    ['of another kind is none of ours', { ...paid, type: 'customer.created' }, undefined],
    ['of the test mode is worth nothing', { ...paid, livemode: false }, undefined],
  ])('%s', (_, event, expected) => {
    const known = told(event);
    if (expected === undefined) expect(known).toBeUndefined();
    else expect(known).toMatchObject(expected);
  });

  it('of the live mode is worth nothing in a trial', () => {
    expect(told(paid, { testMode: true })).toBeUndefined();
    expect(told({ ...paid, livemode: false }, { testMode: true })).toMatchObject({ kind: 'paid' });
  });

  it.each<[string, SentEvent]>([
    ['without an amount', succeeded('pi_1', 'acme-2026-11', 1, at, {}, { amount_received: undefined })],
    ['with half a cent', succeeded('pi_1', 'acme-2026-11', 1.5, at)],
    ['with less than nothing', succeeded('pi_1', 'acme-2026-11', -1, at)],
    ['in a currency without cents', succeeded('pi_1', 'acme-2026-11', 1000, at, {}, { currency: 'jpy' })],
    ['that is none', { ...paid, object: 'list' as never }],
  ])('%s is refused by name', (_, event) => {
    expect(() => told(event)).toThrow(BadEvent);
  });
});

describe('the webhook', () => {
  let close: (() => Promise<void>) | undefined;
  afterEach(async () => close?.());

  async function start(take: (event: CardEvent) => Promise<void> = async () => undefined) {
    const server = await startWebhookServer({
      host: '127.0.0.1',
      port: 0,
      path: '/webhooks/stripe',
      processor: processor(),
      take,
      log: silentLog,
    });
    close = server.close;
    return `http://127.0.0.1:${server.port}/webhooks/stripe`;
  }

  it('answers 200 when the event is stored, and asks for it again when it could not be', async () => {
    const taken: CardEvent[] = [];
    let broken = true;
    const url = await start(async (event) => {
      if (broken) throw new Error('the API server does not answer');
      taken.push(event);
    });
    expect(await send(url, paid)).toBe(500);
    broken = false;
    expect(await send(url, paid)).toBe(200);
    expect(taken).toHaveLength(1);
  });

  it.each<[string, string, RequestInit, number]>([
    ['another path', '/', { method: 'POST' }, 404],
    ['another method', '/webhooks/stripe', { method: 'GET' }, 405],
    ['no signature', '/webhooks/stripe', { method: 'POST', body: '{}' }, 400],
    ['a body without end', '/webhooks/stripe', { method: 'POST', body: 'x'.repeat(300 * 1024) }, 413],
  ])('refuses %s, and stores nothing', async (_, path, init, status) => {
    let taken = 0;
    const url = await start(async () => {
      taken += 1;
    });
    const answer = await fetch(new URL(path, url), init).then(
      (response) => response.status,
      // Some clients notice the end of the connection before the answer.
      () => 413,
    );
    expect([answer, taken]).toEqual([status, 0]);
  });
});
