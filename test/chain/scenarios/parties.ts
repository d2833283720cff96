/** Somebody is away, lies about seconds or times, or wastes other people's. */
import { judgeVoucher } from '../../../operator/core/allocation/grace.ts';
import { signableSeconds } from '../../../operator/core/lease/serve.ts';
import { finalizableAt, wayToClose } from '../../../operator/core/money/escrow.ts';
import { priceOf } from '../../../operator/core/money/price.ts';
import { observed, record } from '../../support/builders.ts';
import type { ChainLab } from '../lab.ts';
import { startOperator } from '../operator.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const price = 340_000n;

/** Until anybody may finalize, and a little. */
async function passClaimWindow(lab: ChainLab, leaseId: `0x${string}`): Promise<void> {
  const { chain } = lab;
  const lease = (await lab.lease(leaseId))!;
  await chain.pass(Math.max(1, finalizableAt(lease, chain.client.claimWindowSeconds) - (await chain.now()) + 2));
}

const send = async (
  lab: ChainLab,
  by: 'consumer' | 'provider' | 'stranger',
  key: string,
  call: { to: `0x${string}`; data: `0x${string}` },
) => {
  const outbox = await lab.outbox({ key: lab.chain.keys[by] });
  const submitted = await outbox.submit({ key, ...call });
  expect(submitted.outcome === 'accepted', `${key} is refused: ${JSON.stringify(submitted)}`);
  const entry = await lab.untilMined(outbox, key);
  expect(entry.state === 'mined', `${key} is ${entry.state}`);
};

export const parties: ChainScenario[] = [
  {
    name: 'provider-vanishes',
    of: 'provider vanishes',
    broke: 'the provider neither settles nor releases nor closes',
    async run(lab) {
      const { client, keys, usdc } = lab.chain;
      const lease = await lab.open();
      await lab.chain.pass(100);
      const credit = await client.credit(usdc, keys.consumer.address);
      const way = async () =>
        wayToClose((await lab.lease(lease.leaseId))!, await lab.chain.now(), client.claimWindowSeconds);
      expect((await way()) === 'requestClose', 'the consumer has no way out');
      await send(lab, 'consumer', 'request-close', client.calls.requestClose(lease.leaseId));
      expect((await way()) === undefined, 'it may take everything back at once');
      await passClaimWindow(lab, lease.leaseId);
      expect((await way()) === 'finalize', 'the consumer cannot finalize');
      await send(lab, 'consumer', 'finalize', client.calls.finalize(lease.leaseId));
      const refund = (await client.credit(usdc, keys.consumer.address)) - credit;
      expect(refund === lease.deposit, `${refund} of ${lease.deposit} came back`);
      return 'requestClose, claim window, finalize: all of the deposit came back (there is no bond to take yet)';
    },
  },
  {
    name: 'consumer-vanishes',
    of: 'consumer vanishes',
    broke: 'the consumer signs no more after 150 s, and never closes',
    async run(lab) {
      const { client, keys, usdc } = lab.chain;
      const lease = await lab.open({ maxSeconds: 600 }, priceOf(600, 1, price));
      await lab.chain.pass(200);
      const earned = await client.credit(usdc, keys.provider.address);
      await send(lab, 'provider', 'settle', client.calls.settle(await lab.voucher(lease.leaseId, 150)));
      await passClaimWindow(lab, lease.leaseId);
      await send(lab, 'stranger', 'finalize', client.calls.finalize(lease.leaseId));
      const { claimed, refunded, feeTaken, closeReason } = (await lab.lease(lease.leaseId))!;
      expect(claimed === priceOf(150, 1, price), `${claimed} was paid`);
      expect(refunded === lease.deposit - claimed && closeReason === 'Expired', `${refunded} back, ${closeReason}`);
      const credited = (await client.credit(usdc, keys.provider.address)) - earned;
      expect(credited === claimed - feeTaken, `the provider was credited ${credited}`);
      return '150 s were paid, the rest went back, finalized by a stranger';
    },
  },
  {
    name: 'both-vanish',
    of: 'both vanish',
    broke: 'consumer and provider are gone; a sponsor had topped up',
    async run(lab) {
      const { client, keys, usdc } = lab.chain;
      const lease = await lab.open({ maxSeconds: 900 }, priceOf(300, 1, price));
      const gift = priceOf(300, 1, price);
      await lab.chain.send(keys.consumer, {
        to: usdc,
        data: transferOf(keys.stranger.address, gift),
      });
      await lab.chain.send(keys.stranger, client.calls.approve(usdc));
      await send(lab, 'stranger', 'sponsor', client.calls.topUp(lease.leaseId, gift));
      const before = {
        consumer: await client.credit(usdc, keys.consumer.address),
        sponsor: await client.credit(usdc, keys.stranger.address),
      };
      await passClaimWindow(lab, lease.leaseId);
      await send(lab, 'stranger', 'finalize', client.calls.finalize(lease.leaseId));
      await send(lab, 'stranger', 'refund', client.calls.refundSponsor(lease.leaseId, 0));
      const consumer = (await client.credit(usdc, keys.consumer.address)) - before.consumer;
      const sponsor = (await client.credit(usdc, keys.stranger.address)) - before.sponsor;
      expect(consumer === lease.deposit && sponsor === gift, `${consumer} and ${sponsor} came back`);
      return 'anybody finalized; each got back what it had put in';
    },
  },
  {
    name: 'checkers-vanish',
    of: 'checkers',
    broke: 'checkers collude or vanish',
    missing: 'there are no checkers in the contract yet; every scenario here is paid by vouchers alone',
    async run() {
      return '';
    },
  },
  {
    name: 'token-paused',
    of: 'token',
    broke: 'the stablecoin refuses every transfer while leases in it end; leases in the other token run',
    async run(lab) {
      const { client, keys, usdc, gpu } = lab.chain;
      const one = await lab.open();
      const other = await lab.open({ token: gpu, pricePerGpuHour: 10n ** 15n }, priceOf(3600, 1, 10n ** 15n));
      await lab.chain.pass(100);
      const code = await lab.anvil.rpc<string>('eth_getCode', usdc, 'latest');
      // Reverts whatever it is asked.
      await lab.anvil.rpc('anvil_setCode', usdc, '0x60006000fd');
      try {
        await send(lab, 'provider', 'close', client.calls.close(await lab.voucher(one.leaseId, 50, true)));
        await send(lab, 'provider', 'close-other', client.calls.close(await lab.voucher(other.leaseId, 50, true)));
        await send(lab, 'provider', 'withdraw-other', client.calls.withdraw(gpu, keys.provider.address));
        const outbox = await lab.outbox({ key: keys.provider });
        const refused = await outbox.submit({ key: 'withdraw', ...client.calls.withdraw(usdc, keys.provider.address) });
        expect(refused.outcome === 'refused', 'a withdrawal of it went through');
        const opening = await lab.outbox();
        const wish = await opening.submit((await lab.openIntent()).intent);
        expect(wish.outcome === 'refused', 'an open in it went through');
      } finally {
        await lab.anvil.rpc('anvil_setCode', usdc, code);
      }
      const credit = await client.credit(usdc, keys.provider.address);
      const had = await client.balance(usdc, keys.provider.address);
      await send(lab, 'provider', 'withdraw-later', client.calls.withdraw(usdc, keys.provider.address));
      expect((await client.balance(usdc, keys.provider.address)) === had + credit, 'the credit is gone');
      return 'both closed, credits waited and came later; the other token was paid out meanwhile';
    },
  },
  ...([3600, -3600] as const).map(
    (skew): ChainScenario => ({
      name: skew > 0 ? 'chain-clock-ahead' : 'chain-clock-behind',
      of: 'clock',
      broke: `the chain's clock is an hour ${skew > 0 ? 'ahead of' : 'behind'} ours while a lease is served`,
      async run(lab) {
        const rpc = await lab.connect();
        const operator = startOperator(lab, { rpc, outbox: await lab.outbox({ rpc }) });
        const lease = await lab.open({ maxSeconds: 14_400 }, priceOf(7200, 1, price));
        const { openedAt } = (await lab.lease(lease.leaseId))!;
        const quote = await operator.remember(lease);
        // 300 s have passed by the one clock, an hour more or less by the other.
        await lab.chain.pass(skew > 0 ? 3900 : 300);
        const chainNow = await lab.chain.now();
        const now = new Date((chainNow - skew) * 1000);
        const kept = record({
          quote,
          deposit: String(lease.deposit),
          startedAt: new Date(openedAt * 1000).toISOString(),
        });
        const fact = await operator.money.facts(quote, kept);
        const seconds = signableSeconds(observed({ record: kept, chain: fact, now }), 5000);
        const passed = Math.min(chainNow, now.getTime() / 1000) - openedAt;
        expect(seconds <= passed && seconds >= passed - 2, `${seconds} s would be signed, ${passed} s have passed`);
        await lab.chain.send(
          lab.chain.keys.provider,
          lab.chain.client.calls.settle(await lab.voucher(lease.leaseId, seconds)),
        );
        const { servedSeconds } = (await lab.lease(lease.leaseId))!;
        expect(servedSeconds === seconds, `${servedSeconds} s were counted`);
        return `${seconds} s signed: no more than the earlier clock allows; all counted`;
      },
    }),
  ),
  {
    name: 'oversigned',
    of: 'oversigned voucher',
    broke: 'the session key signs for 10 and 100 times what has passed',
    async run(lab) {
      const lease = await lab.open();
      await lab.chain.pass(60);
      const { openedAt } = (await lab.lease(lease.leaseId))!;
      for (const seconds of [600, 3600]) {
        const verdict = judgeVoucher(
          { servedSeconds: seconds, last: false },
          undefined,
          { openedAt, maxSeconds: 3600 },
          await lab.chain.now(),
        );
        expect(!verdict.take && verdict.refused !== undefined, `the gateway takes a voucher for ${seconds} s`);
        await send(
          lab,
          'provider',
          `settle-${seconds}`,
          lab.chain.client.calls.settle(await lab.voucher(lease.leaseId, seconds)),
        );
        const { claimed, servedSeconds } = (await lab.lease(lease.leaseId))!;
        const passed = (await lab.chain.now()) - openedAt;
        expect(servedSeconds <= passed, `${servedSeconds} s were counted, ${passed} s have passed`);
        expect(claimed === priceOf(servedSeconds, 1, price), `${claimed} was paid for ${servedSeconds} s`);
      }
      return 'the gateway refuses it; the contract pays what has passed, to the base unit';
    },
  },
  {
    name: 'dust-and-spam',
    of: 'dust, spam',
    broke: 'opens with dust, with other people’s quotes, with one quote twice, and of a cancelled quote',
    async run(lab) {
      const { client, keys } = lab.chain;
      const consumer = await lab.outbox();
      const stranger = await lab.outbox({ key: keys.stranger });
      const held = (await client.totals(lab.chain.usdc)).held;
      const refusalOf = async (box: typeof consumer, intent: Parameters<typeof consumer.submit>[0]) => {
        const submitted = await box.submit(intent);
        return submitted.outcome === 'refused' ? submitted.refusal.name : 'accepted';
      };
      const least = priceOf(60, 1, price);
      const dust = await refusalOf(consumer, (await lab.openIntent({}, least - 1n)).intent);
      const stolen = await refusalOf(stranger, (await lab.openIntent()).intent);
      const wish = await lab.openIntent({ nonce: 424_242n + BigInt(Date.now()) });
      await lab.chain.send(keys.provider, client.calls.cancelQuote(wish.quote.nonce));
      const cancelled = await refusalOf(consumer, wish.intent);
      const names = [dust, stolen, cancelled].join(', ');
      expect(names === 'DepositOutOfRange, NotAuthorized, QuoteIsCancelled', names);
      expect((await client.totals(lab.chain.usdc)).held === held, 'money was locked');
      return `${names}; nothing locked`;
    },
  },
];

const transferOf = (to: string, amount: bigint): `0x${string}` =>
  `0xa9059cbb${to.slice(2).toLowerCase().padStart(64, '0')}${amount.toString(16).padStart(64, '0')}`;
