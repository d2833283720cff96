/** A round of settlements over several chains: one that is away holds up none of the others. */
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { createChainView } from '../../../../operator/controllers/provider/chain-view.ts';
import { type Rounds, settleAll } from '../../../../operator/controllers/provider/settlement.ts';
import { type EscrowChain, noCounters } from '../../../../operator/controllers/provider/world.ts';
import { silentLog } from '../../../../operator/engine/log.ts';

/** A chain whose reads wait until they are let go, or fail. */
function chainOf(chainId: number) {
  const state = { ticks: 0, release: undefined as ((failed: boolean) => void) | undefined, hangs: false };
  const chain = {
    chainId,
    escrow: `0x${'e'.repeat(40)}`,
    claimWindowSeconds: 600,
    async tick() {
      state.ticks += 1;
      if (!state.hangs) return;
      await new Promise<void>((resolve, reject) => {
        state.release = (failed) => (failed ? reject(new Error('no answer')) : resolve());
      });
    },
    leases: async () => [],
    async inFlight() {
      if (state.hangs) throw new Error('no answer');
      return [];
    },
  } as unknown as EscrowChain;
  return { state, chain };
}

function world() {
  const [one, other] = [chainOf(1), chainOf(2)];
  const rounds: Rounds = { failed: new Set(), busy: new Set() };
  const round = () =>
    settleAll(
      {
        watched: { list: () => [] } as never,
        records: {} as never,
        chains: { all: () => [one.chain, other.chain] } as never,
        view: createChainView(),
        rounds,
        rules: () => ({}) as never,
        now: () => new Date(0),
        log: silentLog,
        counters: noCounters,
        changed: () => undefined,
      },
      new AbortController().signal,
    );
  return { one: one.state, other: other.state, rounds, round };
}

describe('a round of settlements', () => {
  it('looks at every chain', async () => {
    const { one, other, round } = world();
    await round();
    expect([one.ticks, other.ticks]).toEqual([1, 1]);
  });

  it('waits once for a chain that does not answer, and then goes on without it', async () => {
    const { one, other, rounds, round } = world();
    one.hangs = true;
    const first = round();
    await turn();
    one.release!(true);
    await first;
    expect(rounds.failed.size).toBe(1);
    // The second round of the first chain hangs; the other chain has its second and third all the same.
    await round();
    await round();
    expect([one.ticks, other.ticks]).toEqual([2, 3]);
    expect(rounds.busy.size).toBe(1);
  });

  it('never has two under way on one chain, and waits for it again when it answers', async () => {
    const { one, rounds, round } = world();
    one.hangs = true;
    const first = round();
    await turn();
    one.release!(true);
    await first;
    await round();
    one.hangs = false;
    one.release!(false);
    await turn();
    expect([rounds.busy.size, rounds.failed.size]).toEqual([0, 0]);
    await round();
    expect(one.ticks).toBe(3);
  });
});
