/** The sponsor's rounds against a chain of the contract's own model, with a store that can fail at any write. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { memoryStore } from '../../../../operator/adapters/chain/store.ts';
import { stripe } from '../../../../operator/adapters/invoice/card-processor.ts';
import { startWebhookServer } from '../../../../operator/adapters/invoice/webhook-server.ts';
import type { Hex32 } from '../../../../operator/api/messages.ts';
import { createSponsor, type Sponsor, type SponsorChain } from '../../../../operator/controllers/sponsor/sponsor.ts';
import { type Account, type Customer, type EarlyReversals, owed } from '../../../../operator/core/invoice/account.ts';
import type { Escrow } from '../../../../operator/core/money/escrow.ts';
import { silentLog } from '../../../../operator/engine/log.ts';
import { escrow, t0 } from '../../../support/builders.ts';
import {
  disputed,
  refunded,
  type SentEvent,
  send,
  signatureOf,
  succeeded,
  webhookSecret,
} from '../../../support/card-processor.ts';

const customer: Customer = {
  name: 'acme',
  consumer: `0x${'c'.repeat(40)}`,
  creditLimit: '1',
  currency: 'USD',
  rate: '1',
  marginBps: 0,
  billTo: ['Acme'],
};
const id = (digit: string): Hex32 => `0x${digit.repeat(64)}`;

/** What the contract would do, as far as a sponsor sees it. */
function fakeChain() {
  const state = {
    now: t0,
    escrows: new Map<Hex32, { escrow: Escrow; pieces: { amount: bigint; refundable: bigint; gone: boolean }[] }>(),
    found: [] as Hex32[],
    log: [] as string[],
    down: false,
    searchedFrom: 0,
  };
  const submitted = new Set<string>();
  const must = () => {
    if (state.down) throw new Error('no answer');
  };
  const chain: SponsorChain = {
    address: `0x${'5'.repeat(40)}`,
    token: { symbol: 'USDC', decimals: 6 },
    async head() {
      must();
      return { time: state.now, block: state.now, safeBlock: state.now - 600 };
    },
    async openedBy(_consumer, from, to) {
      state.searchedFrom = from;
      return { leaseIds: [...state.found], scannedTo: Math.min(to, from + 50_000) };
    },
    escrows: async (ids) => ids.map((one) => state.escrows.get(one)?.escrow),
    settledEscrow: async (one) => state.escrows.get(one)?.escrow,
    pieces: async (one) =>
      state.escrows
        .get(one)!
        .pieces.flatMap(({ amount, refundable, gone }, index) => (gone ? [] : [{ index, amount, refundable }])),
    allow: async () => undefined,
    async topUp(one, amount, total) {
      must();
      if (submitted.has(`${one}:${total}`)) return undefined;
      submitted.add(`${one}:${total}`);
      const kept = state.escrows.get(one)!;
      kept.escrow = { ...kept.escrow, deposit: kept.escrow.deposit + amount };
      kept.pieces.push({ amount, refundable: 0n, gone: false });
      state.log.push(`topUp ${amount} to ${total}`);
      return undefined;
    },
    async refund(one, index) {
      state.escrows.get(one)!.pieces[index]!.gone = true;
      state.log.push(`refund ${index}`);
      return undefined;
    },
    withdraw: async () => undefined,
    tick: async () => undefined,
  };
  return {
    state,
    chain,
    open(leaseId: Hex32, deposit = 30_000n) {
      const one = escrow({ leaseId, deposit, maxSeconds: 36_000, openedAt: state.now, endsAt: state.now + 36_900 });
      state.escrows.set(leaseId, { escrow: one, pieces: [] });
      state.found.push(leaseId);
    },
    close(leaseId: Hex32, servedSeconds: number) {
      const kept = state.escrows.get(leaseId)!;
      const claimed = BigInt(servedSeconds) * 100n;
      let left = kept.escrow.deposit - claimed;
      for (const piece of kept.pieces.toReversed()) {
        piece.refundable = left < piece.amount ? left : piece.amount;
        left -= piece.refundable;
      }
      kept.escrow = { ...kept.escrow, closed: true, closingAt: state.now, servedSeconds, claimed };
    },
  };
}

let world: ReturnType<typeof fakeChain>;
let store: ReturnType<typeof memoryStore<Account>>;
let early: ReturnType<typeof memoryStore<EarlyReversals>>;
let failing: number;
let writes: number;
const start = (): Sponsor =>
  createSponsor({
    chain: world.chain,
    customers: [customer],
    store: () => ({
      load: store.load,
      async save(value, version) {
        writes += 1;
        if (writes === failing) throw new Error('nobody knows whether it was written');
        return store.save(value, version);
      },
    }),
    early,
    ahead: { lowWaterSeconds: 1800, aheadSeconds: 3600 },
    fromBlock: 0,
    log: silentLog,
  });

beforeEach(() => {
  world = fakeChain();
  store = memoryStore<Account>();
  early = memoryStore<EarlyReversals>();
  [failing, writes] = [0, 0];
});

describe('a sponsor', () => {
  it('tops up what its customer opened, charges for what was spent, and asks the rest back', async () => {
    const sponsor = start();
    world.open(id('1'));
    await sponsor.round();
    await sponsor.round();
    expect(world.state.log).toEqual(['topUp 330000 to 360000']);
    world.state.now += 2000;
    await sponsor.round();
    expect(world.state.log).toEqual(['topUp 330000 to 360000', 'topUp 200000 to 560000']);
    world.close(id('1'), 4000);
    await sponsor.round();
    // 4000 s cost 400,000, of which 30,000 were the customer's own.
    expect(world.state.log.slice(2)).toEqual(['refund 1']);
    const account = await sponsor.account(customer);
    expect(account.charges).toMatchObject([{ units: '370000', micros: '370000' }]);
    expect([account.open, account.toppedUpTo, owed(account)]).toEqual([[], {}, 370_000n]);
    await sponsor.round();
    expect((await sponsor.account(customer)).charges).toHaveLength(1);
  });

  it('stops at the credit limit, and goes on when the invoice is paid', async () => {
    const sponsor = start();
    for (const digit of ['1', '2', '3', '4']) world.open(id(digit));
    await sponsor.round();
    const all = () => world.state.log.reduce((sum, one) => sum + BigInt(one.split(' ')[1]!), 0n);
    expect([world.state.log.length, all()]).toEqual([4, 1_000_000n]);
    for (const digit of ['1', '2', '3']) world.close(id(digit), 3600);
    world.state.now += 3000;
    await sponsor.round();
    expect(all()).toBe(1_000_000n);
    const cents = owed(await sponsor.account(customer)) / 10_000n;
    await sponsor.take({
      kind: 'paid',
      eventId: 'evt_1',
      paymentId: 'pi_1',
      invoice: 'acme-2026-11',
      currency: 'USD',
      cents,
      at: t0,
    });
    await sponsor.round();
    expect(all()).toBeGreaterThan(1_000_000n);
    expect(owed(await sponsor.account(customer))).toBe(0n);
  });

  it('funds what is found in a block that is not safe yet, and forgets it when a reorganisation takes it back', async () => {
    const sponsor = start();
    world.open(id('1'), 400_000n);
    await sponsor.round();
    expect((await sponsor.account(customer)).open).toEqual([id('1')]);
    world.state.escrows.delete(id('1'));
    world.state.found.length = 0;
    await sponsor.round();
    expect((await sponsor.account(customer)).open).toEqual([]);
    world.open(id('1'));
    await sponsor.round();
    expect(world.state.log).toEqual(['topUp 330000 to 360000']);
  });

  it('searches each block that is safe once, and goes on from there after a restart', async () => {
    const sponsor = start();
    await sponsor.round();
    await sponsor.round();
    expect(world.state.searchedFrom).toBe(50_001);
    const before = writes;
    await sponsor.round();
    expect(writes).toBe(before + 1);
    await start().round();
    expect(world.state.searchedFrom).toBe(150_003);
  });

  it('decides nothing while the chain is silent', async () => {
    const sponsor = start();
    world.open(id('1'));
    await sponsor.round();
    world.state.down = true;
    world.state.now += 3000;
    await sponsor.round();
    expect(world.state.log).toHaveLength(1);
  });

  it.each([
    1, 2, 3, 4, 5,
  ])('that dies at its write %i tops up, charges and refunds once all the same', async (write) => {
    failing = write;
    let sponsor = start();
    const rounds = async () => {
      for (let round = 0; round < 3; round++) {
        await sponsor.round();
        sponsor = start(); // another process, with what was stored
      }
    };
    world.open(id('1'));
    await rounds();
    world.close(id('1'), 1000);
    await rounds();
    expect(world.state.log).toEqual(['topUp 330000 to 360000', 'refund 0']);
    expect((await sponsor.account(customer)).charges).toMatchObject([{ units: '70000' }]);
  });

  it('asks for an event again that could not be stored, and books it once', async () => {
    const sponsor = start();
    const event = {
      kind: 'paid',
      eventId: 'evt_1',
      paymentId: 'pi_1',
      invoice: 'acme-2026-11',
      currency: 'USD',
      cents: 5n,
      at: t0,
    } as const;
    failing = 1;
    await expect(sponsor.take(event)).rejects.toThrow('nobody knows');
    await sponsor.take(event);
    await sponsor.take(event);
    expect((await sponsor.account(customer)).payments).toHaveLength(1);
  });

  it('takes a payment that belongs to nobody, so that it is not sent for ever', async () => {
    await start().take({
      kind: 'paid',
      eventId: 'evt_1',
      paymentId: 'pi_1',
      invoice: 'stranger-2026-11',
      currency: 'USD',
      cents: 5n,
      at: t0,
    });
    expect(writes).toBe(0);
  });
});

/** From the wire to what is stored: all that a card processor, the network and strangers can do with a webhook. */
describe('the webhook of a sponsor', () => {
  let now: number;
  let url: string;
  let close: () => Promise<void>;
  beforeEach(async () => {
    now = t0;
    const server = await startWebhookServer({
      host: '127.0.0.1',
      port: 0,
      path: '/webhooks/stripe',
      processor: stripe({ secrets: [webhookSecret], now: () => new Date(now * 1000) }),
      // Another process for each: nothing counts but what is stored.
      take: (event) => start().take(event),
      log: silentLog,
    });
    url = `http://127.0.0.1:${server.port}/webhooks/stripe`;
    close = server.close;
  });
  afterEach(() => close());

  const paid = (paymentId = 'pi_1', cents = 1000) => succeeded(paymentId, 'acme-2026-11', cents, t0);
  const cents = async () => {
    const { payments } = await start().account(customer);
    return payments.map((one) => `${one.id} ${one.cents} less ${one.reversedCents}`);
  };
  /** As it was caught on its way, signature and all. */
  const replay = async (event: SentEvent, signature: string) => {
    const headers = { 'stripe-signature': signature };
    return (await fetch(url, { method: 'POST', headers, body: JSON.stringify(event) })).status;
  };

  it('counts an event that is sent again, or caught and sent again, once', async () => {
    const event = paid();
    const caught = signatureOf(JSON.stringify(event), t0);
    expect(await send(url, event)).toBe(200);
    now = t0 + 299;
    expect([await replay(event, caught), await send(url, event, now)]).toEqual([200, 200]);
    now = t0 + 301;
    expect(await replay(event, caught)).toBe(400);
    expect(await cents()).toEqual(['pi_1 1000 less 0']);
  });

  it('still counts it once when a thousand others came since', async () => {
    const [event, refund] = [paid(), refunded('pi_1', 400, t0)];
    await send(url, event);
    await send(url, refund);
    const sponsor = start();
    for (let count = 0; count < 1001; count++)
      await sponsor.take({ kind: 'reversed', eventId: `evt_later_${count}`, paymentId: 'pi_1', cents: 400n });
    expect((await sponsor.account(customer)).events).not.toContain(event.id);
    expect([await send(url, event), await send(url, refund)]).toEqual([200, 200]);
    expect(await cents()).toEqual(['pi_1 1000 less 400']);
  });

  it('takes an event that is three days late, signed anew as each attempt is, and counts it once', async () => {
    const event = paid();
    now = t0 + 3 * 86_400;
    expect([await send(url, event, now), await send(url, event, now)]).toEqual([200, 200]);
    expect(await cents()).toEqual(['pi_1 1000 less 0']);
  });

  it.each<[string, (body: string) => string]>([
    ['with a signature of another secret', (body) => signatureOf(body, t0, 'whsec_of_somebody_else')],
    ['with a signature of other bytes', (body) => signatureOf(`${body} `, t0)],
    [
      'with a signature that is put under a later time',
      (body) => signatureOf(body, t0 - 600).replace(/t=\d+/, `t=${t0}`),
    ],
    ['with a signature of three days ago', (body) => signatureOf(body, t0 - 3 * 86_400)],
    ['with a signature that is none', () => 'v1=1234'],
  ])('refuses an event %s, and stores nothing', async (_, sign) => {
    const event = paid();
    expect(await replay(event, sign(JSON.stringify(event)))).toBe(400);
    expect([await cents(), writes]).toEqual([[], 0]);
  });

  const orders = (events: readonly SentEvent[]): SentEvent[][] =>
    events.length < 2
      ? [[...events]]
      : events.flatMap((one) => orders(events.filter((other) => other !== one)).map((rest) => [one, ...rest]));
  const three = [paid(), refunded('pi_1', 300, t0 + 60), disputed('pi_1', 700, t0 + 120)];
  it.each(
    orders(three).map((order) => [order.map((one) => one.type).join(', '), order] as const),
  )('owes the same whatever the order: %s', async (_, order) => {
    // What is not the customer's comes between.
    await send(url, refunded('pi_of_something_else', 5, t0));
    for (const event of order) {
      expect(await send(url, event)).toBe(200);
      expect(await send(url, event)).toBe(200);
    }
    expect(await cents()).toEqual(['pi_1 1000 less 700']);
    expect(owed(await start().account(customer))).toBe(-3_000_000n);
  });

  it('asks again for a reversal that came first and could not be kept', async () => {
    const { save } = early;
    early.save = async () => {
      throw new Error('nobody knows whether it was written');
    };
    const refund = refunded('pi_1', 300, t0);
    expect(await send(url, refund)).toBe(500);
    early.save = save;
    expect([await send(url, refund), await send(url, paid())]).toEqual([200, 200]);
    expect(await cents()).toEqual(['pi_1 1000 less 300']);
  });
});
