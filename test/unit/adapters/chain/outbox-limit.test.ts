/** What a day's limit counts, in the very write that stores the transaction. */
import { expect, test } from 'vitest';
import type { TokenInfo } from '../../../../operator/adapters/chain/escrow-client.ts';
import { dayLimit } from '../../../../operator/adapters/chain/guarded-outbox.ts';
import { keyFromHex } from '../../../../operator/adapters/chain/key.ts';
import { createOutbox, type OutboxRecord } from '../../../../operator/adapters/chain/outbox.ts';
import type { Rpc } from '../../../../operator/adapters/chain/rpc.ts';
import type { Store } from '../../../../operator/adapters/chain/store.ts';
import { memoryStore } from '../../../../operator/adapters/chain/store.ts';
import { escrowAddress, t0, token } from '../../../support/builders.ts';

const key = keyFromHex('11'.repeat(32));
const rpc = {
  chainId: 1,
  contractCall: async () => '0x',
  async call(method: string) {
    const answers: Record<string, unknown> = {
      eth_estimateGas: '0x5208',
      eth_getBlockByNumber: { baseFeePerGas: '0x1', number: '0x1' },
      eth_maxPriorityFeePerGas: '0x1',
      eth_getBalance: '0xffffffffffff',
      eth_getTransactionCount: '0x0',
      eth_sendRawTransaction: '0x',
    };
    return answers[method];
  },
} as unknown as Rpc;
const info: TokenInfo = { address: token, symbol: 'USDC', decimals: 6, feeBps: 0, allowed: true };
const limit = dayLimit({ amounts: new Map([['USDC', '10']]) }, new Map([[token, info]]));
const spend = (name: string, amount: bigint) => ({
  key: name,
  to: escrowAddress,
  data: '0x' as const,
  spends: { what: token, amount },
});

test('is kept by whoever comes after a crash, and the same wish counts once', async () => {
  const store = memoryStore<OutboxRecord>();
  let seconds = t0;
  const open = (its: Store<OutboxRecord> = store) =>
    createOutbox({ rpc, key, store: its, limit, now: () => new Date(seconds * 1000) });
  const first = open();
  expect(await first.submit(spend('a', 6_000_000n))).toMatchObject({ outcome: 'accepted' });
  expect(await first.submit(spend('a', 6_000_000n))).toMatchObject({ outcome: 'accepted' });
  const second = open();
  expect(await second.submit(spend('b', 4_000_001n))).toMatchObject({
    outcome: 'refused',
    refusal: { name: 'DailyLimit', terminal: false },
  });
  expect(await second.submit(spend('b', 4_000_000n))).toMatchObject({ outcome: 'accepted' });
  expect(await second.submit(spend('c', 1n))).toMatchObject({ outcome: 'refused' });
  seconds += 25 * 3600;
  expect(await second.submit(spend('c', 1n))).toMatchObject({ outcome: 'accepted' });
});

test('counts what was stored although nobody heard that it was', async () => {
  const inner = memoryStore<OutboxRecord>();
  let lost = true;
  const store: Store<OutboxRecord> = {
    load: inner.load,
    async save(value, version) {
      const saved = await inner.save(value, version);
      if (lost) throw new Error('no answer');
      return saved;
    },
  };
  const outbox = createOutbox({ rpc, key, store, limit, now: () => new Date(t0 * 1000) });
  await expect(outbox.submit(spend('a', 10_000_000n))).rejects.toThrow('no answer');
  lost = false;
  expect(await outbox.submit(spend('b', 1n))).toMatchObject({ outcome: 'refused', refusal: { name: 'DailyLimit' } });
  expect(await outbox.submit(spend('a', 10_000_000n))).toMatchObject({ outcome: 'accepted' });
});
