/** Blocks are taken back, and come again without what was in them. */

import { signRelease } from '../../../operator/adapters/chain/messages.ts';
import type { Hex, Hex32 } from '../../../operator/api/messages.ts';
import { priceOf } from '../../../operator/core/money/price.ts';
import { startGateway } from '../gateway.ts';
import type { ChainLab } from '../lab.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const of = 'reorg';

const opening = (depth: number): ChainScenario => ({
  name: `reorg-open-${depth}`,
  of,
  broke: `an open and a top-up are mined, then ${depth} block${depth === 1 ? ' is' : 's are'} taken back (anvil_reorg)`,
  async run(lab) {
    await lab.mine(depth + 2);
    const key = lab.chain.keys.consumer;
    const before = await lab.nonce(key);
    const outbox = await lab.outbox();
    const lease = await lab.openIntent();
    await outbox.submit(lease.intent);
    const opened = await lab.untilMined(outbox, lease.intent.key);
    const topUp = lab.topUpIntent(lease);
    await outbox.submit(topUp);
    await lab.untilMined(outbox, topUp.key);
    await lab.hold();
    // Down to the open, where it is that deep: of one block, the top-up alone.
    const head = Number(await lab.anvil.rpc<Hex>('eth_blockNumber'));
    const more = Math.max(0, depth - 1 - (head - opened.receipt!.blockNumber));
    if (more > 0) await lab.mine(more);
    await lab.reorganise(depth);
    const after = await lab.nonce(key);
    expect(after === (depth === 1 ? before + 1 : before), `${before + 2 - after} transactions were taken back`);
    await outbox.tick();
    const stood = (await outbox.state(topUp.key))!;
    expect(stood.state === 'broadcast' && !stood.receipt, `the top-up stands as ${stood.state}`);
    await lab.go();
    await lab.untilMined(outbox, lease.intent.key);
    await lab.untilFinal(outbox, topUp.key);
    const entries = await outbox.entries();
    expect(
      entries.every((one) => one.hashes.length === 1),
      'other bytes were sent than before',
    );
    const { deposit } = (await lab.lease(lease.leaseId))!;
    expect(deposit === lease.deposit + 7_000n, `the deposit is ${deposit}`);
    expect((await lab.nonce(key)) === before + 2, 'more than two nonces were used');
    return `${before + 2 - after} of 2 transactions vanished, the same bytes were mined again; 1 effect each`;
  },
});

const closing = (depth: number): ChainScenario => ({
  name: `reorg-close-${depth}`,
  of,
  broke: `a close with the last voucher is mined, then ${depth} block${depth === 1 ? ' is' : 's are'} taken back`,
  async run(lab) {
    const { chain } = lab;
    const lease = await lab.open();
    await chain.pass(100);
    await lab.mine(depth + 2);
    const outbox = await lab.outbox({ key: chain.keys.provider });
    const key = `close:${lease.leaseId}`;
    const credit = await chain.client.credit(chain.usdc, chain.keys.provider.address);
    await outbox.submit({ key, ...chain.client.calls.close(await lab.voucher(lease.leaseId, 50, true)) });
    const mined = await lab.untilMined(outbox, key);
    await lab.hold();
    const head = Number(await lab.anvil.rpc<Hex>('eth_blockNumber'));
    const more = Math.max(0, depth - 1 - (head - mined.receipt!.blockNumber));
    if (more > 0) await lab.mine(more);
    await lab.reorganise(depth);
    expect((await lab.lease(lease.leaseId))?.closed === false, 'the close was not taken back');
    await lab.go();
    await lab.untilFinal(outbox, key);
    const closed = (await lab.lease(lease.leaseId))!;
    const claimed = priceOf(50, 1, 340_000n);
    expect(closed.closed && closed.claimed === claimed, `it paid ${closed.claimed}`);
    const earned = (await chain.client.credit(chain.usdc, chain.keys.provider.address)) - credit;
    expect(earned === claimed - closed.feeTaken, `${earned} was credited`);
    return 'closed again by the same bytes; paid once';
  },
});

/** Takes back what another party sent in the last blocks; its sender is gone, so it does not come again. */
async function takeBack(lab: ChainLab, sinceBlock: number): Promise<void> {
  await lab.hold();
  const head = Number(await lab.anvil.rpc<Hex>('eth_blockNumber'));
  await lab.reorganise(head - sinceBlock + 1);
  await lab.go();
}

/** What the provider has earned in it, fee taken off. */
const earnedOf = async (lab: ChainLab) => lab.chain.client.credit(lab.chain.usdc, lab.chain.keys.provider.address);

/** Until the escrow is closed, as the gateway goes on looking. */
async function untilClosed(lab: ChainLab, gateway: { round(): Promise<void> }, leaseId: Hex32): Promise<void> {
  await lab.until('close of the escrow', async () => {
    await gateway.round();
    return (await lab.lease(leaseId))?.closed ? true : undefined;
  });
}

const billed = (seconds: number): bigint => {
  const claimed = priceOf(seconds, 1, 340_000n);
  return claimed - (claimed * 200n) / 10_000n;
};

const forgetting: ChainScenario = {
  name: 'reorg-forgotten-close',
  of,
  broke:
    'the consumer closes with our Release, the gateway sees it, and then the close is taken back and never comes again',
  async run(lab) {
    const { client, keys } = lab.chain;
    const lease = await lab.open();
    await lab.chain.pass(100);
    await lab.makeSafe();
    const { leaseId } = lease;
    const gateway = await startGateway(lab, lease, await lab.voucher(leaseId, 50, true), {
      state: 'Ended',
      reason: 'Released',
    });
    const before = await earnedOf(lab);
    const release = await signRelease(keys.provider, client.domain, { leaseId, servedSeconds: 50 });
    const { blockNumber } = await lab.chain.send(keys.consumer, client.calls.closeWithRelease(release));
    await gateway.round();
    expect(!(await gateway.record()).settled, 'a record was forgotten whose close could be taken back');
    await takeBack(lab, blockNumber);
    expect((await lab.lease(leaseId))?.closed === false, 'the close was not taken back');
    await untilClosed(lab, gateway, leaseId);
    expect((await earnedOf(lab)) - before === billed(50), `${(await earnedOf(lab)) - before} was credited`);
    await gateway.round();
    expect(!(await gateway.record()).settled, 'it was forgotten before its own close was safe');
    await lab.makeSafe();
    await gateway.round();
    expect((await gateway.record()).settled === true, 'it is not forgotten when all is safe');
    return 'the gateway closed it itself with the last voucher; paid once, forgotten when that was safe';
  },
};

const givingUp: ChainScenario = {
  name: 'reorg-given-up-voucher',
  of,
  broke:
    'a stranger settles the last voucher of who did not pay, the gateway sees it, and then the settlement is taken back',
  async run(lab) {
    const { client, keys } = lab.chain;
    const lease = await lab.open();
    await lab.chain.pass(100);
    await lab.makeSafe();
    const { leaseId } = lease;
    const voucher = await lab.voucher(leaseId, 50);
    const gateway = await startGateway(lab, lease, voucher, { state: 'Suspended', reason: 'Unpaid' });
    const before = await earnedOf(lab);
    const { blockNumber } = await lab.chain.send(keys.stranger, client.calls.settle(voucher));
    await gateway.round();
    await gateway.round();
    expect((await lab.lease(leaseId))?.closed === false, 'closed on the strength of a settlement that is not safe');
    await takeBack(lab, blockNumber);
    expect((await lab.lease(leaseId))?.servedSeconds === 0, 'the settlement was not taken back');
    await lab.until('settlement', async () => {
      await gateway.round();
      return (await lab.lease(leaseId))!.servedSeconds === 50 ? true : undefined;
    });
    await lab.makeSafe();
    await untilClosed(lab, gateway, leaseId);
    expect((await earnedOf(lab)) - before === billed(50), `${(await earnedOf(lab)) - before} was credited`);
    return 'settled again by the gateway, and closed once that was safe; the 50 s are paid';
  },
};

export const reorgs: ChainScenario[] = [
  forgetting,
  givingUp,
  opening(1),
  opening(5),
  opening(20),
  closing(1),
  closing(5),
  closing(20),
  {
    name: 'reorg-steals-nonce',
    of,
    broke: 'four blocks are taken back, and another transaction of the account comes in the place of ours',
    async run(lab) {
      const key = lab.chain.keys.consumer;
      const lease = await lab.open();
      await lab.mine(6);
      const outbox = await lab.outbox();
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      const { nonce, receipt } = await lab.untilMined(outbox, intent.key);
      await lab.hold();
      const head = Number(await lab.anvil.rpc<Hex>('eth_blockNumber'));
      const more = Math.max(0, 3 - (head - receipt!.blockNumber));
      if (more > 0) await lab.mine(more);
      const other = await key.signTransaction({
        type: 2,
        chainId: lab.anvil.chainId,
        nonce,
        to: key.address,
        value: 0n,
        gasLimit: 21_000n,
        maxFeePerGas: 100_000_000_000n,
        maxPriorityFeePerGas: 1n,
      });
      await lab.reorganise(4, [[other, 0]]);
      await lab.go();
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit, 'the top-up was not taken back');
      await outbox.tick();
      expect((await outbox.submit(intent)).outcome === 'accepted', 'refused');
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit, 'it was sent anew before that was certain');
      await lab.makeSafe();
      await outbox.tick();
      lab.clock.pass(61);
      await outbox.tick();
      expect((await outbox.state(intent.key))!.state === 'lost', `it is ${(await outbox.state(intent.key))!.state}`);
      await outbox.submit(intent);
      await lab.untilMined(outbox, intent.key);
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit + 7_000n, 'not exactly one effect');
      return 'found lost once that was safe, then made anew; 1 effect';
    },
  },
];
