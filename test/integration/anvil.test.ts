import { rmSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Anvil, startAnvil } from '../../operator/sandbox/chain/anvil.ts';
import { eventually, quiet, scratch } from '../support/clusters.ts';

describe('a local chain', () => {
  const dir = scratch('anvil');
  let chain: Anvil;
  beforeAll(async () => {
    chain = await startAnvil({ dir, blockTimeSeconds: 1, mineAtOnceToo: true, report: quiet });
  });
  afterAll(async () => {
    await chain?.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  const height = async (tag: string) =>
    Number((await chain.rpc<{ number: string }>('eth_getBlockByNumber', tag, false)).number);
  const balance = (tag: string) => chain.rpc<string>('eth_getBalance', chain.accounts[1]?.address, tag);

  it('makes blocks by itself, and safe ones within seconds', async () => {
    await eventually(async () => (await height('safe')) > 0, 'a safe block');
    expect((await height('latest')) - (await height('safe'))).toBe(4);
  });

  it('has the accounts whose keys it names', async () => {
    const { Wallet } = await import('ethers');
    const [first] = chain.accounts;
    expect(new Wallet(first?.privateKey ?? '').address).toBe(first?.address);
    expect(BigInt(await balance('latest'))).toBeGreaterThan(10n ** 21n);
  });

  it('goes on with the same chain after it was killed, also for reads at safe', async () => {
    const [from, to] = chain.accounts.map((account) => account.address);
    const hash = await chain.rpc('eth_sendTransaction', { from, to, value: '0x1' });
    await eventually(async () => (await chain.rpc('eth_getTransactionReceipt', hash)) !== null, 'a receipt');
    const before = await balance('latest');
    const safeBlock = `0x${(await height('safe')).toString(16)}`;
    const safe = await balance(safeBlock);
    const top = await height('latest');
    await chain.kill();
    await expect(chain.rpc('eth_blockNumber')).rejects.toThrow();
    await chain.restart();
    expect(await height('latest')).toBeGreaterThanOrEqual(top);
    expect(await balance('latest')).toBe(before);
    expect(await balance(safeBlock)).toBe(safe);
  });
});
