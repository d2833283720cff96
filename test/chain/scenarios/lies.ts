/** Endpoints that answer, and are not to be believed. */
import { setTimeout as sleep } from 'node:timers/promises';
import { connectEscrow } from '../../../operator/adapters/chain/escrow-client.ts';
import { ChainUnavailable, type Rpc, WrongChain } from '../../../operator/adapters/chain/rpc.ts';
import { instant, record } from '../../support/builders.ts';
import { type ChainLab, escrowOver } from '../lab.ts';
import { startOperator } from '../operator.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const of = 'wrong chain, lying RPC';

const errorOf = (work: Promise<unknown>): Promise<Error | undefined> =>
  work.then(
    () => undefined,
    (error: Error) => error,
  );

/** The host that is not believed, and why; told by the connection. */
async function connectTelling(lab: ChainLab): Promise<{ rpc: Rpc; doubts: string[] }> {
  const doubts: string[] = [];
  const rpc = await lab.connect({ onDoubt: (_, doubt) => doubts.push(doubt ?? 'believed again') });
  await connectEscrow({ rpc, escrow: lab.chain.client.address });
  return { rpc, doubts };
}

/** Every endpoint is another's from now on: nothing must be sent there, and the wish must be kept. */
const swapped = (name: string, broke: string, swap: (lab: ChainLab) => Promise<void>): ChainScenario => ({
  name,
  of,
  broke,
  async run(lab) {
    const lease = await lab.open();
    const { rpc } = await connectTelling(lab);
    const outbox = await lab.outbox({ rpc });
    const first = lab.topUpIntent(lease);
    await outbox.submit(first);
    await lab.untilMined(outbox, first.key);
    const deposit = (await lab.lease(lease.leaseId))!.deposit;
    // An operator notices at the first failure: a swap cuts the connections that were open.
    for (const one of lab.endpoints) one.misbehave({ is: 'down' });
    await errorOf(rpc.call('eth_blockNumber', []));
    for (const one of lab.endpoints) one.behave();
    await swap(lab);
    const sent = lab.sentToNodes();
    const intent = lab.topUpIntent({ ...lease, deposit });
    const error = await errorOf(outbox.submit(intent));
    expect(error instanceof WrongChain, `it said ${error?.name}: ${error?.message}`);
    await errorOf(outbox.tick());
    expect(lab.sentToNodes() === sent, 'a transaction was sent there');
    for (const one of lab.endpoints) {
      one.behave();
      one.aim(lab.anvil.rpcUrl);
    }
    expect((await outbox.submit(intent)).outcome === 'accepted', 'it does not go on with the right chain');
    await lab.untilMined(outbox, intent.key);
    expect((await lab.lease(lease.leaseId))!.deposit === deposit + 7_000n, 'not exactly one effect');
    return `WrongChain, nothing sent: “…${error.message.slice(-90)}”`;
  },
});

const aimBoth = (lab: ChainLab, url: string) => {
  for (const one of lab.endpoints) one.aim(url);
};

export const lies: ChainScenario[] = [
  swapped('swap-chain-id', 'all endpoints become those of another chain id', async (lab) => {
    for (const one of lab.endpoints) one.misbehave({ is: 'wrongChain', chainId: 4242 });
  }),
  swapped(
    'swap-no-contract',
    'all endpoints become those of a chain of the same id, without the contract',
    async (lab) => {
      const twin = await lab.twin(0);
      await twin.rpc('anvil_setCode', lab.chain.client.address, '0x');
      aimBoth(lab, twin.rpcUrl);
    },
  ),
  swapped(
    'swap-other-code',
    'all endpoints become those of a chain where other code stands at its address',
    async (lab) => {
      const twin = await lab.twin(0);
      // Takes every call, and says nothing.
      await twin.rpc('anvil_setCode', lab.chain.client.address, '0x00');
      aimBoth(lab, twin.rpcUrl);
    },
  ),
  {
    name: 'one-of-two-wrong',
    of,
    broke: 'the endpoint that is asked first names another chain id',
    async run(lab) {
      lab.endpoints[0].misbehave({ is: 'wrongChain', chainId: 4242 });
      const { rpc, doubts } = await connectTelling(lab);
      const sent = lab.endpoints[0].calls.get('eth_sendRawTransaction') ?? 0;
      const lease = await lab.open();
      const outbox = await lab.outbox({ rpc });
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      await lab.untilMined(outbox, intent.key);
      expect((lab.endpoints[0].calls.get('eth_sendRawTransaction') ?? 0) === sent, 'a transaction went to it');
      expect(doubts.length === 1, `it was told of ${doubts.length} times`);
      return `passed over: “${doubts[0]}”`;
    },
  },
  {
    name: 'one-on-a-fork',
    of,
    broke: 'one of two endpoints follows another fork: same chain id, same contracts, other blocks',
    async run(lab) {
      await lab.makeSafe();
      const { rpc, doubts } = await connectTelling(lab);
      const client = await escrowOver(lab, rpc);
      const lease = await lab.open();
      // From here on the fork has blocks of its own: it lacks the block that both will have told of last.
      const twin = await lab.twin(96);
      await lab.mine(60);
      // Time for a comparison, so that both have told of a block that the fork has not.
      for (let turn = 0; turn < 3; turn++) {
        await rpc.call('eth_blockNumber', []);
        await sleep(250);
      }
      lab.endpoints[0].misbehave({ is: 'down' });
      await rpc.call('eth_blockNumber', []);
      lab.endpoints[0].behave();
      lab.endpoints[0].aim(twin.rpcUrl);
      await lab.until('doubt', async () => {
        await rpc.call('eth_blockNumber', []);
        return doubts.some((doubt) => /safe block/.test(doubt)) ? true : undefined;
      });
      const seen = await client.lease(lease.leaseId);
      expect(seen?.deposit === lease.deposit, 'what is read is not what the right chain says');
      return `passed over: “${doubts.at(-1)}”`;
    },
  },
  {
    name: 'two-that-contradict',
    of,
    broke: 'at the start, two endpoints of the same chain id tell of different safe blocks',
    async run(lab) {
      await lab.makeSafe();
      const twin = await lab.twin(60);
      await lab.mine(60);
      lab.endpoints[1].aim(twin.rpcUrl);
      const error = await errorOf(lab.connect());
      expect(error instanceof ChainUnavailable, `it said ${error?.name}: ${error?.message}`);
      expect(/no more than half agree/.test(error.message), error.message);
      return 'neither is believed: unknown, not wrong';
    },
  },
  {
    name: 'one-lags',
    of,
    broke: 'the endpoint that is asked first is two minutes behind, and has not heard of an escrow that is open',
    async run(lab) {
      const { rpc, doubts } = await connectTelling(lab);
      const client = await escrowOver(lab, rpc);
      const before = Number(await lab.anvil.rpc<string>('eth_blockNumber'));
      const lease = await lab.open();
      await lab.chain.pass(120);
      const head = Number(await lab.anvil.rpc<string>('eth_blockNumber'));
      lab.endpoints[0].misbehave({ is: 'lags', blocks: head - before });
      const first = await client.lease(lease.leaseId);
      await lab.until('doubt', async () => {
        await rpc.call('eth_blockNumber', []).catch(() => undefined);
        return doubts.length > 0 ? true : undefined;
      });
      expect((await client.lease(lease.leaseId)) !== undefined, 'the newest state is not read');
      lab.endpoints[1].misbehave({ is: 'down' });
      const error = await errorOf(client.lease(lease.leaseId));
      expect(error instanceof ChainUnavailable, 'it is believed when it is alone');
      return `${first ? 'passed over at once' : 'believed until heads were compared, then passed over'}; alone: unknown`;
    },
  },
  {
    name: 'nodes-behind-one-url',
    of,
    broke: 'one URL, behind it nodes at different heads: receipts of what is mined are not known for a while',
    async run(lab) {
      const [first] = lab.endpoints;
      const lease = await lab.open();
      const before = await lab.nonce(lab.chain.keys.consumer);
      const outbox = await lab.outbox({ rpc: await lab.connect({ urls: [first.url] }) });
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      await lab.until('nonce being used', async () =>
        (await lab.nonce(lab.chain.keys.consumer)) > before ? true : undefined,
      );
      await lab.makeSafe();
      // Receipts alone come from a node that is behind; heads and nonces from one that is not.
      first.misbehave({ is: 'lags', blocks: 40, methods: /^eth_getTransaction(Receipt|ByHash)$/ });
      for (let turn = 0; turn < 6; turn++) {
        await outbox.tick();
        lab.clock.pass(9);
      }
      const { state } = (await outbox.state(intent.key))!;
      expect(state === 'broadcast', `after 54 s it is ${state}`);
      expect((await outbox.submit(intent)).outcome === 'accepted', 'refused');
      first.behave();
      await outbox.tick();
      expect((await outbox.state(intent.key))!.state === 'mined', 'its receipt is not taken');
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit + 7_000n, 'made twice');
      expect((await lab.nonce(lab.chain.keys.consumer)) === before + 1, 'more than one nonce was used');
      return 'not given up, not sent anew; 1 effect';
    },
  },
  {
    name: 'safe-read-behind',
    of,
    broke: 'a quote ran out beside its open escrow; state is read at a node that is behind the one that named the head',
    async run(lab) {
      const rpc = await lab.connect({ urls: [lab.endpoints[0].url] });
      const operator = startOperator(lab, { rpc, outbox: await lab.outbox({ rpc }) });
      await lab.mine(80);
      const lease = await lab.open({ expiresAt: (await lab.chain.now()) + 300 });
      const quote = await operator.remember(lease);
      await lab.chain.pass(400);
      await lab.makeSafe();
      const seen = {
        record: record({ quote, deposit: String(lease.deposit), startedAt: instant(0) }),
        now: new Date(((await lab.chain.now()) + 1) * 1000),
      };
      expect((await operator.look(seen)).chain.state === 'known', 'the chain cannot be read');
      lab.endpoints[0].misbehave({ is: 'lags', blocks: 80, methods: /^eth_call$/ });
      const { chain, plan } = await operator.look(seen);
      const wishes = plan.actions.map((one) => one.do);
      expect(!wishes.includes('nextAttempt') && !wishes.includes('beginEnd'), `it wished for ${wishes}`);
      expect(chain.state === 'unknown', 'what it read is taken for true');
      return 'unknown: no second attempt beside an open escrow';
    },
  },
];
