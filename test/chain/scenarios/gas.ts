/** Nobody can pay for gas, or the contract refuses. */
import { Interface } from 'ethers';
import { signQuote } from '../../../operator/adapters/chain/messages.ts';
import { decodeRefusal, knownRefusals } from '../../../operator/adapters/chain/refusal.ts';
import type { Hex, Hex32 } from '../../../operator/api/messages.ts';
import { gpuToken } from '../../../operator/contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../../operator/contracts/generated/lease-escrow.ts';
import { authorizedOpen } from '../../support/authorization.ts';
import { record } from '../../support/builders.ts';
import type { ChainLab } from '../lab.ts';
import { startOperator } from '../operator.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const setGas = (lab: ChainLab, address: string, wei: bigint) =>
  lab.anvil.rpc('anvil_setBalance', address, `0x${wei.toString(16)}`);
const gasOf = async (lab: ChainLab, address: string) =>
  BigInt(await lab.anvil.rpc<Hex>('eth_getBalance', address, 'latest'));

/** The wallet has tokens and no, or too little, gas; the operator looks again and again. */
const withoutGas = (name: string, broke: string, wei: bigint): ChainScenario => ({
  name,
  of: 'no gas',
  broke,
  async run(lab) {
    const { keys } = lab.chain;
    const wallet = keys.consumer.address;
    const had = await gasOf(lab, wallet);
    const rpc = await lab.connect();
    const outbox = await lab.outbox({ rpc });
    const operator = startOperator(lab, { rpc, outbox });
    const wish = await lab.openIntent();
    const quote = await operator.remember(wish);
    const seen = { record: record({ quote, deposit: '100000' }), now: new Date((await lab.chain.now()) * 1000) };
    await setGas(lab, wallet, wei);
    try {
      const sent = lab.sentToNodes();
      let soonest = Number.POSITIVE_INFINITY;
      for (let turn = 0; turn < 20; turn++) {
        const { plan, ready } = await operator.look(seen);
        await operator.obey(plan.actions);
        if (turn === 0) continue; // too little is found out by the first wish
        expect(
          ready.status === 'False' && ready.reason === 'InsufficientFunds',
          `it says ${ready.reason}: ${ready.message}`,
        );
        expect(ready.message.includes('PayerOutOfGas') && ready.message.includes(wallet), ready.message);
        soonest = Math.min(soonest, plan.requeueAfterSeconds);
      }
      expect(lab.sentToNodes() === sent, 'something was sent');
      expect((await outbox.entries()).length === 0, 'something was signed');
      expect(soonest >= 15, `it looks again after ${soonest} s`);
      await setGas(lab, wallet, had);
      const { plan } = await operator.look(seen);
      await operator.obey(plan.actions);
      await lab.untilMined(outbox, wish.intent.key);
      expect((await lab.lease(wish.leaseId))?.deposit === 100_000n, 'the escrow is not open');
      return 'InsufficientFunds: PayerOutOfGas in 20 looks, 0 signed, 0 sent; opened once there was gas';
    } finally {
      await setGas(lab, wallet, had);
    }
  },
});

export const gas: ChainScenario[] = [
  withoutGas('no-gas', 'the wallet has no gas at all', 0n),
  withoutGas('too-little-gas', 'the wallet has some gas, too little for one transaction', 10_000n),
  {
    name: 'gas-gone-after-signing',
    of: 'no gas',
    broke: 'the gas is gone when a transaction is signed and dropped by the pool',
    async run(lab) {
      const wallet = lab.chain.keys.consumer.address;
      const lease = await lab.open();
      const had = await gasOf(lab, wallet);
      await lab.hold();
      const outbox = await lab.outbox();
      const intent = lab.topUpIntent(lease);
      await outbox.submit(intent);
      const { hash } = (await outbox.state(intent.key))!;
      await lab.anvil.rpc('anvil_dropTransaction', hash);
      await setGas(lab, wallet, 5n);
      try {
        const sent = lab.sentToNodes();
        for (let turn = 0; turn < 10; turn++) await outbox.tick();
        const tries = lab.sentToNodes() - sent;
        const entry = (await outbox.state(intent.key))!;
        expect(entry.problem === 'PayerOutOfGas', `nobody is told: ${entry.lastError}`);
        expect(entry.hashes.length === 1, 'it was signed again');
        expect(tries <= 10, `it was sent ${tries} times in 10 looks`);
      } finally {
        await setGas(lab, wallet, had);
      }
      await lab.go();
      await lab.untilMined(outbox, intent.key);
      expect((await lab.lease(lease.leaseId))!.deposit === lease.deposit + 7_000n, 'not exactly one effect');
      return 'told as PayerOutOfGas, the same bytes once a look; 1 effect once there was gas';
    },
  },
  {
    name: 'relayer-opens',
    of: 'no gas',
    broke: 'the wallet has no gas; a stranger submits its EIP-3009 authorization, and the exits',
    async run(lab) {
      const { chain } = lab;
      const { keys, client } = chain;
      const had = await gasOf(lab, keys.consumer.address);
      await setGas(lab, keys.consumer.address, 0n);
      try {
        const wish = await lab.openIntent();
        const signed = await signQuote(keys.provider, client.domain, wish.quote);
        const call = await authorizedOpen(chain, keys.consumer, signed, keys.session.address, wish.deposit);
        const relayer = await lab.outbox({ key: keys.stranger });
        const opened = await relayer.submit({ key: wish.intent.key, ...call });
        expect(opened.outcome === 'accepted', 'the authorization is refused');
        await lab.untilMined(relayer, wish.intent.key);
        await chain.pass(30);
        const settle = client.calls.settle(await lab.voucher(wish.leaseId, 20));
        await relayer.submit({ key: 'settle', ...settle });
        await lab.untilMined(relayer, 'settle');
        const lease = (await lab.lease(wish.leaseId))!;
        expect(lease.consumer === keys.consumer.address && lease.servedSeconds === 20, 'not the consumer’s lease');
        return 'opened and settled by who has gas';
      } finally {
        await setGas(lab, keys.consumer.address, had);
      }
    },
  },
  {
    name: 'custom-errors',
    of: 'revert',
    broke: 'each custom error of the contract and its token, as revert data',
    automineOnly: true,
    async run() {
      const abi = new Interface([...leaseEscrow.abi, ...gpuToken.abi].filter((item) => item.type === 'error'));
      const zero: Record<string, unknown> = {
        address: `0x${'0'.repeat(40)}`,
        bytes32: `0x${'0'.repeat(64)}`,
        string: '',
      };
      const unknown: string[] = [];
      const counts = { terminal: 0, retryable: 0 };
      abi.forEachError((error) => {
        const args = error.inputs.map((input) => zero[input.type] ?? 0);
        const refusal = decodeRefusal(abi.encodeErrorResult(error, args));
        expect(refusal?.name === error.name, `${error.name} is read as ${refusal?.name}`);
        counts[refusal.terminal ? 'terminal' : 'retryable'] += 1;
        if (
          !knownRefusals[error.name] &&
          leaseEscrow.abi.some((one) => one.type === 'error' && one.name === error.name)
        )
          unknown.push(error.name);
      });
      // Of tokens there are any: an error that nobody named is told by its name, and is terminal.
      const own = unknown.filter((name) => !/^(String|SafeCast|ECDSA|Invalid)/.test(name));
      expect(own.length === 0, `without words of their own: ${own.join(', ')}`);
      return `${counts.terminal} terminal, ${counts.retryable} retryable, each by name`;
    },
  },
  {
    name: 'refused-before-signing',
    of: 'revert',
    broke: 'wishes that the contract would refuse: terminal ones, and ones that time or others can lift',
    async run(lab) {
      const { keys, client } = lab.chain;
      const outbox = await lab.outbox();
      const before = await lab.nonce(keys.consumer);
      const lease = await lab.open();
      const used = (await lab.nonce(keys.consumer)) - before;
      const signed = await signQuote(keys.provider, client.domain, lease.quote);
      const wishes: readonly [string, boolean, Parameters<typeof outbox.submit>[0]][] = [
        ['LeaseExists', true, { key: 'again', ...client.calls.open(signed, keys.session.address, 100_000n) }],
        ['QuoteExpired', true, (await lab.openIntent({ expiresAt: 1 })).intent],
        ['DepositOutOfRange', true, (await lab.openIntent({}, 1n)).intent],
        ['TokenNotAllowed', true, (await lab.openIntent({ token: keys.stranger.address })).intent],
        ['LeaseNotFound', false, { key: 'none', ...client.calls.requestClose(`0x${'77'.repeat(32)}` as Hex32) }],
        ['NotFinalizableBefore', false, { key: 'early', ...client.calls.finalize(lease.leaseId) }],
      ];
      const sent = lab.sentToNodes();
      for (let turn = 0; turn < 5; turn++)
        for (const [name, terminal, intent] of wishes) {
          const submitted = await outbox.submit(intent);
          const refusal = submitted.outcome === 'refused' ? submitted.refusal : undefined;
          expect(refusal?.name === name && refusal.terminal === terminal, `${name}: ${JSON.stringify(refusal)}`);
        }
      expect(lab.sentToNodes() === sent, 'something was sent');
      expect((await lab.nonce(keys.consumer)) === before + used, 'a nonce was used');
      return `${wishes.length} refusals, 5 times each: 0 signed, 0 sent`;
    },
  },
  {
    name: 'reverts-when-mined',
    of: 'revert',
    broke: 'two opens of one escrow pass the simulation, and one reverts in the block',
    async run(lab) {
      const outbox = await lab.outbox();
      await lab.hold();
      const { intent, leaseId } = await lab.openIntent();
      await outbox.submit(intent);
      await outbox.submit({ ...intent, key: 'twin' });
      await lab.go();
      await lab.untilMined(outbox, intent.key);
      const twin = await lab.untilMined(outbox, 'twin');
      expect(twin.state === 'reverted', `it is ${twin.state}`);
      const sent = lab.sentToNodes();
      for (let turn = 0; turn < 5; turn++) {
        // Until the revert is safe, a reorganisation may still turn it: it stands, and is not asked for anew.
        expect((await outbox.submit({ ...intent, key: 'twin' })).outcome === 'accepted', 'it does not stand');
        await outbox.tick();
      }
      expect(lab.sentToNodes() === sent, 'it was sent again');
      await lab.makeSafe();
      await outbox.tick();
      const again = await outbox.submit({ ...intent, key: 'twin' });
      expect(again.outcome === 'refused' && again.refusal.name === 'LeaseExists', 'it may be sent again');
      expect((await lab.lease(leaseId))?.deposit === 100_000n, 'the escrow is not as it was wished for');
      return 'told as reverted, not sent again; then refused as LeaseExists';
    },
  },
];
