/** The chain's endpoints misbehave, or the chain itself does. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { RpcHabit } from '../../support/faulty-rpc.ts';
import type { Lab } from '../lab.ts';
import { expect, fairBill, fresh, type Scenario } from '../scenario.ts';

const both = (lab: Lab, habit: RpcHabit) => {
  for (const rpc of Object.values(lab.rpc)) rpc.misbehave(habit);
};
const behave = (lab: Lab) => {
  for (const rpc of Object.values(lab.rpc)) rpc.behave();
};
const leaseIdOf = (lab: Lab) => lab.base.witness.lease!.status!.settlement!.leaseId;

/** Vouchers need no chain: they go on, and the lease stays Ready. */
const outageServing = (name: string, seconds: number, broke: string, habit: RpcHabit, long = false): Scenario => ({
  name,
  broke,
  long,
  async run(lab, clock) {
    const before = (await lab.vouched(leaseIdOf(lab)))!;
    const since = Date.now();
    both(lab, habit);
    while (Date.now() - since < seconds * 1000) {
      await sleep(1000);
      const ready = lab.base.witness.lease?.status?.conditions?.find((c) => c.type === 'Ready');
      expect(ready?.status === 'True', `the lease is no longer Ready: ${ready?.reason}: ${ready?.message}`);
    }
    const vouched = (await lab.vouched(leaseIdOf(lab)))! - before;
    behave(lab);
    clock.mended();
    const passed = (Date.now() - since) / 1000;
    // One reading of the chain may have to run into its time limit first.
    expect(
      vouched >= passed - (habit.is === 'hang' || habit.is === 'slow' ? 14 : 5),
      `only ${vouched} s were vouched for in ${passed.toFixed(0)} s without a chain`,
    );
    clock.note(`${vouched} s vouched for meanwhile`);
  },
});

const whileOpening = (
  name: string,
  broke: string,
  point: string,
  strike: (lab: Lab) => Promise<void>,
  tell?: (lab: Lab) => string,
): Scenario => ({
  name,
  broke,
  async run(lab, clock) {
    lab.order({ point, do: 'hold', match: point.endsWith('Broadcast') ? '"open:' : undefined });
    const lease = await lab.begin(fresh('rpc'));
    await lab.reached();
    await strike(lab);
    clock.mended();
    await lease.ready(120);
    if (tell) clock.note(tell(lab));
    clock.note(`attempt ${lease.witness.lease?.status?.attempt}`);
    behave(lab);
    await clock.wanted();
    await lease.end();
    await fairBill(lab, lease, 5);
  },
});

const whileSettling = (name: string, broke: string, strike: (lab: Lab) => Promise<void>): Scenario => ({
  name,
  broke,
  async run(lab, clock) {
    const lease = await lab.begin(fresh('rpc'));
    await lease.ready();
    lab.order({ point: 'gateway.release:after', do: 'hold' });
    await lease.delete();
    await lab.reached();
    await strike(lab);
    clock.mended();
    await lease.gone();
    behave(lab);
    await clock.wanted();
    await fairBill(lab, lease, 5);
  },
});

/** Fees far above what was signed, so that what is sent stays in the pool. */
async function feeSpike(lab: Lab, seconds: number): Promise<void> {
  const { chain } = lab.sandbox;
  const until = Date.now() + seconds * 1000;
  while (Date.now() < until) {
    await chain.rpc('anvil_setNextBlockBaseFeePerGas', `0x${(400_000_000_000).toString(16)}`);
    await sleep(300);
  }
}

export const chain: Scenario[] = [
  outageServing('rpc-down-serving', 30, 'all RPC endpoints down for 30 s while serving', { is: 'down' }),
  outageServing(
    'rpc-down-serving-30min',
    1800,
    'all RPC endpoints down for 30 min while serving',
    { is: 'down' },
    true,
  ),
  outageServing('rpc-500-serving', 10, 'RPC answers HTTP 500 for 10 s', { is: 'error' }),
  outageServing('rpc-truncated-serving', 10, 'RPC answers half a JSON for 10 s', { is: 'truncate' }),
  outageServing('rpc-slow-serving', 15, 'RPC takes 3 s for each answer, for 15 s', { is: 'slow', seconds: 3 }),
  outageServing('rpc-hangs-serving', 20, 'RPC takes calls and never answers, for 20 s', { is: 'hang' }),
  {
    name: 'rpc-wrong-chain',
    broke: 'RPC comes back as another chain for 8 s: nothing is sent there',
    async run(lab, clock) {
      both(lab, { is: 'down' });
      await sleep(3000);
      const sent = () =>
        Object.values(lab.rpc).reduce((sum, rpc) => sum + (rpc.calls.get('eth_sendRawTransaction') ?? 0), 0);
      const before = sent();
      both(lab, { is: 'wrongChain', chainId: 4242 });
      const lease = await lab.begin(fresh('wrong'));
      await sleep(8000);
      expect(sent() === before, 'a transaction was sent to another chain');
      const ready = lease.witness.lease?.status?.conditions?.find((c) => c.type === 'Ready');
      expect(ready?.status !== 'True', 'a lease became Ready on another chain');
      clock.note(`a lease said ${ready?.reason}`);
      behave(lab);
      clock.mended();
      await lease.ready();
      await clock.wanted();
      await lease.end();
      await fairBill(lab, lease, 5);
    },
  },
  whileOpening('rpc-down-opening', 'RPC down for 5 s between signing and sending', 'beforeBroadcast', async (lab) => {
    both(lab, { is: 'down' });
    lab.release();
    await sleep(5000);
    behave(lab);
  }),
  whileOpening(
    'rpc-answers-lost-opening',
    'the answers to three sent transactions lost while opening',
    'beforeBroadcast',
    async (lab) => {
      both(lab, { is: 'dropAnswers', methods: /^eth_sendRawTransaction$/, times: 3 });
      lab.release();
    },
  ),
  whileOpening(
    'fee-spike-opening',
    'fees above ours for 40 s while opening; replacements below 10 % refused',
    'money.open:before',
    async (lab) => {
      lab.rpc.operator.refuseSmallBumps(true);
      lab.release();
      await feeSpike(lab, 40);
    },
    (lab) => `${lab.rpc.operator.replacements} replacements, ${lab.rpc.operator.bumpsRefused} refused`,
  ),
  whileSettling('rpc-down-settling', 'RPC down for 5 s when the provider has let go', async (lab) => {
    both(lab, { is: 'down' });
    lab.release();
    await sleep(5000);
    behave(lab);
  }),
  whileSettling(
    'rpc-answers-lost-settling',
    'the answers to three sent transactions lost while settling',
    async (lab) => {
      both(lab, { is: 'dropAnswers', methods: /^eth_sendRawTransaction$/, times: 3 });
      lab.release();
    },
  ),
  {
    name: 'reorg-opening',
    broke: 'three blocks taken back (anvil_reorg) just after the escrow was open',
    async run(lab, clock) {
      lab.order({ point: 'gateway.allocate:before', do: 'hold' });
      const lease = await lab.begin(fresh('reorg'));
      await lab.reached();
      await lab.sandbox.chain.rpc('anvil_reorg', 3, []);
      lab.release();
      clock.mended();
      await lease.ready();
      await clock.wanted();
      await lease.end();
      await fairBill(lab, lease, 5);
    },
  },
];
