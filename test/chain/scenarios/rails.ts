/** How a deposit comes out of a wallet, against people who play its signatures first; and two chains at a time. */
import { Interface, keccak256, Transaction, toUtf8Bytes } from 'ethers';
import { createLeaseMoney } from '../../../operator/adapters/chain/lease-money.ts';
import { hashQuote, leaseIdOf, quoteToJson, signQuote } from '../../../operator/adapters/chain/messages.ts';
import { createOutbox, type OutboxRecord } from '../../../operator/adapters/chain/outbox.ts';
import type { Rpc } from '../../../operator/adapters/chain/rpc.ts';
import { memoryStore } from '../../../operator/adapters/chain/store.ts';
import { createEscrowChains } from '../../../operator/adapters/gateway/escrow-chains.ts';
import { createNotary } from '../../../operator/adapters/gateway/notary.ts';
import type { Hex, Hex32, Quote } from '../../../operator/api/messages.ts';
import { gpuToken } from '../../../operator/contracts/generated/gpu-token.ts';
import { leaseEscrow } from '../../../operator/contracts/generated/lease-escrow.ts';
import { intents, type QuoteRecord } from '../../../operator/core/lease/observed.ts';
import { type AllowancePolicy, type FundingWay, waysToFund } from '../../../operator/core/money/funding.ts';
import { matchOffers } from '../../../operator/core/offer/match.ts';
import type { RailFact } from '../../../operator/core/provider/assess.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import {
  factsOf,
  observed,
  provider,
  providerFact,
  quoteRecord,
  rail,
  record,
  settings,
  signedQuote,
} from '../../support/builders.ts';
import { type EscrowChain, startEscrowChain } from '../../support/escrow-chain.ts';
import type { ChainLab } from '../lab.ts';
import { startOperator } from '../operator.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const tokenAbi = new Interface([...gpuToken.abi, 'function mint(address to, uint256 amount)']);
const escrowAbi = new Interface(leaseEscrow.abi);
const unlimited = 2n ** 256n - 1n;
let wallets = 90;

/** A wallet that has tokens and gas, and has approved nothing; its operator, and what its outbox keeps. */
async function newWallet(lab: ChainLab, policy: AllowancePolicy = 'Standing') {
  const { chain } = lab;
  const wallet = lab.key(wallets++);
  const mint = tokenAbi.encodeFunctionData('mint', [wallet.address, 10n ** 9n]) as Hex;
  await chain.send(chain.keys.deployer, { to: chain.usdc, data: mint });
  const rpc = await lab.connect();
  const store = memoryStore<OutboxRecord>();
  const outbox = createOutbox({ rpc, key: wallet, store, now: lab.clock.now });
  const operator = startOperator(lab, { rpc, outbox, wallet });

  /** One look at a lease that is quoted and not open, and what it wishes for. */
  async function look(lease: Awaited<ReturnType<ChainLab['openIntent']>>) {
    const quote = await operator.remember(lease);
    const seen = {
      record: record({ quote, deposit: String(lease.deposit) }),
      now: new Date((await chain.now()) * 1000),
      settings: settings({ allowance: policy, maxEscrow: () => 10n ** 12n }),
    };
    const { plan } = await operator.look(seen);
    const [wish] = plan.actions;
    const way: FundingWay | undefined =
      wish?.do === 'approveToken' ? 'Approve' : wish?.do === 'openEscrow' ? wish.way : undefined;
    expect(way !== undefined, `it wishes for ${wish?.do}: ${plan.conditions.find((c) => c.type === 'Ready')?.message}`);
    return { way, obey: () => operator.obey(plan.actions) };
  }

  return {
    wallet,
    outbox,
    operator,
    look,
    lease: (deposit = 100_000n) => lab.openIntent({ consumer: wallet.address }, deposit),
    allowance: () => chain.client.allowance(chain.usdc, wallet.address),
    nonce: () => lab.nonce(wallet),
    /** The call that was signed under this key, as anybody sees it in the pool. */
    async pooled(key: string) {
      const { value } = await store.load();
      const raw = value?.entries.find((one) => one.key === key)?.raw;
      expect(raw !== undefined, `nothing is signed for ${key}`);
      return escrowAbi.parseTransaction({ data: Transaction.from(raw).data })!;
    },
  };
}

/** Another chain, with another id, contract and tokens; and our wallet there, which has approved nothing. */
async function secondChain(lab: ChainLab) {
  const other = await startEscrowChain({
    chainId: 31338,
    slotsInAnEpoch: 4,
    ...(lab.mode === 'block-time 1' && { blockTimeSeconds: 1 }),
  });
  const { keys } = lab.chain;
  const access = async (chain: EscrowChain, rpc: Rpc) => {
    const store = memoryStore<OutboxRecord>();
    const outbox = createOutbox({ rpc, key: keys.consumer, store, now: lab.clock.now });
    return { chainId: chain.client.chainId, rpc: async () => rpc, outbox: async () => outbox };
  };
  const rpc = await lab.connect();
  const chains = new Map([
    [lab.chain.client.chainId, await access(lab.chain, rpc)],
    [other.client.chainId, await access(other, other.rpc)],
  ]);
  const { consumer: wallet, session } = keys;
  const money = createLeaseMoney({
    wallet,
    session,
    clusterUid: 'test',
    chains,
    monotonicMs: () => performance.now(),
  });
  const railOf = (chain: EscrowChain) =>
    rail({ chainId: chain.client.chainId, escrow: chain.client.address, token: chain.usdc, maxEscrow: '100000' });

  /** The same lease, as a provider would quote it on either chain. */
  async function quoteOn(chain: EscrowChain, changes: Partial<Quote>): Promise<QuoteRecord> {
    const quote = await chain.quote({ token: chain.usdc, ...changes });
    const { domain } = chain.client;
    const { signature } = await signQuote(keys.provider, domain, quote);
    const signed = { ...signedQuote({}, { ...domain, signature }), quote: quoteToJson(quote) };
    return quoteRecord(
      {},
      { signed, leaseId: leaseIdOf(quote.consumer, quote.leaseRef), hash: hashQuote(domain, quote) },
    );
  }

  async function open(chain: EscrowChain, quote: QuoteRecord, deposit = 100_000n) {
    const facts = await money.facts(quote, record({ quote, deposit: String(deposit) }));
    expect(facts.state === 'known', `chain ${chain.client.chainId} is not read`);
    const { allowance, signs } = facts.wallet;
    const [way] = waysToFund({ amount: deposit, allowance, signatures: signs, policy: 'Standing' });
    const refused = await money.open(quote, deposit, way!);
    expect(refused === undefined, `the opening is refused: ${refused?.message}`);
    const outbox = await chains.get(chain.client.chainId)!.outbox();
    await lab.untilMined(outbox, intents.open(quote.leaseId));
    expect((await chain.client.lease(quote.leaseId))?.deposit === deposit, 'the escrow is not open');
    return way!;
  }

  return { other, money, chains, railOf, quoteOn, open };
}

export const rails: ChainScenario[] = [
  {
    name: 'permit-opens',
    of: 'token',
    broke: 'the wallet has approved nothing: the first opening brings its permit, later ones and top-ups need none',
    async run(lab) {
      const payer = await newWallet(lab);
      const ways: FundingWay[] = [];
      for (let turn = 0; turn < 2; turn++) {
        const lease = await payer.lease();
        const { way, obey } = await payer.look(lease);
        ways.push(way);
        await obey();
        await lab.untilMined(payer.outbox, lease.intent.key);
        expect((await lab.lease(lease.leaseId))?.deposit === lease.deposit, 'the escrow is not open');
      }
      expect(ways.join() === 'Permit,Allowance', `they went by ${ways}`);
      expect((await payer.nonce()) === 2, `${await payer.nonce()} transactions for two leases`);
      expect((await payer.allowance()) === unlimited, 'the allowance does not stand');
      return 'Permit, then Allowance: 2 leases, 2 transactions';
    },
  },
  {
    name: 'permit-front-run',
    of: 'token',
    broke: 'a stranger takes the permit out of the pool and plays it in a transaction of its own, before the opening',
    async run(lab) {
      const { chain, anvil } = lab;
      const payer = await newWallet(lab);
      const lease = await payer.lease();
      await lab.hold();
      const { way, obey } = await payer.look(lease);
      expect(way === 'Permit', `it goes by ${way}`);
      await obey();
      const { args } = await payer.pooled(lease.intent.key);
      const { value, deadline, v, r, s } = args.permit;
      const data = tokenAbi.encodeFunctionData('permit', [
        payer.wallet.address,
        chain.client.address,
        value,
        deadline,
        v,
        r,
        s,
      ]);
      const { stranger } = chain.keys;
      const raw = await stranger.signTransaction({
        type: 2,
        chainId: anvil.chainId,
        nonce: await lab.nonce(stranger),
        to: chain.usdc,
        data,
        gasLimit: 200_000n,
        // More for the miner than the opening: it comes first in the block, or in one of its own.
        maxFeePerGas: 900_000_000_000n,
        maxPriorityFeePerGas: 800_000_000_000n,
      });
      const hash = await anvil.rpc<string>('eth_sendRawTransaction', raw);
      await lab.go();
      const opened = await lab.untilMined(payer.outbox, lease.intent.key);
      const theirs = await anvil.rpc<{ status: Hex; blockNumber: Hex; transactionIndex: Hex }>(
        'eth_getTransactionReceipt',
        hash,
      );
      const ours = await anvil.rpc<{ blockNumber: Hex; transactionIndex: Hex }>(
        'eth_getTransactionReceipt',
        opened.hash,
      );
      const at = (one: { blockNumber: Hex; transactionIndex: Hex }) =>
        Number(one.blockNumber) * 10_000 + Number(one.transactionIndex);
      expect(Number(theirs.status) === 1 && at(theirs) < at(ours), 'the stranger was not first: nothing was tried');
      expect(opened.state === 'mined', `the opening is ${opened.state}`);
      expect((await lab.lease(lease.leaseId))?.deposit === lease.deposit, 'the escrow is not open');
      return 'the stranger’s permit was mined first; the escrow opened all the same, with one deposit';
    },
  },
  {
    name: 'permits-at-once',
    of: 'token',
    broke:
      'six leases open at once, each with a permit of the same nonce; the first of them is dropped by the pool for a while',
    async run(lab) {
      const payer = await newWallet(lab);
      const leases = await Promise.all(Array.from({ length: 6 }, () => payer.lease()));
      await lab.hold();
      const ways: FundingWay[] = [];
      for (const lease of leases) {
        const { way, obey } = await payer.look(lease);
        ways.push(way);
        await obey();
      }
      expect(
        ways.every((way) => way === 'Permit'),
        `they went by ${ways}`,
      );
      const first = (await payer.outbox.state(leases[0]!.intent.key))!;
      await lab.anvil.rpc('anvil_dropTransaction', first.hash);
      await lab.go();
      for (const lease of leases) {
        const entry = await lab.untilMined(payer.outbox, lease.intent.key);
        expect(entry.state === 'mined', `${entry.key} is ${entry.state}`);
        expect((await lab.lease(lease.leaseId))?.deposit === lease.deposit, 'an escrow is not open');
      }
      expect((await payer.nonce()) === 6, 'not one transaction a lease');
      return '6 opened, 6 transactions, 0 reverted';
    },
  },
  {
    name: 'authorized-per-deposit',
    of: 'token',
    broke:
      'no allowance may stand: two deposits at once, each by an EIP-3009 authorization, and one is played by a stranger',
    async run(lab) {
      const { chain } = lab;
      const payer = await newWallet(lab, 'PerDeposit');
      const leases = [await payer.lease(), await payer.lease(70_000n)];
      await lab.hold();
      for (const lease of leases) {
        const { way, obey } = await payer.look(lease);
        expect(way === 'Authorization', `it goes by ${way}`);
        await obey();
      }
      // With another session key the authorization is worth nothing: the stranger can only open what was meant.
      const { args } = await payer.pooled(leases[0]!.intent.key);
      const { validAfter, validBefore, v, r, s } = args.authorization;
      const played = (signer: string) =>
        escrowAbi.encodeFunctionData('openWithAuthorization', [
          args.quote,
          args.signature,
          signer,
          args.deposit,
          { validAfter, validBefore, v, r, s },
        ]) as Hex;
      const stolen = await chain.client.simulate(chain.keys.stranger.address, {
        to: chain.client.address,
        data: played(chain.keys.stranger.address),
      });
      expect(stolen !== undefined, 'a stranger may name its own session key');
      await lab.go();
      for (const lease of leases) {
        const entry = await lab.untilMined(payer.outbox, lease.intent.key);
        expect(entry.state === 'mined', `${entry.key} is ${entry.state}`);
        expect((await lab.lease(lease.leaseId))?.deposit === lease.deposit, 'an escrow is not open');
      }
      expect((await payer.allowance()) === 0n, 'an allowance stands');
      return '2 opened at once, no allowance before or after; with another session key it is refused';
    },
  },
  {
    name: 'approval-taken-back',
    of: 'token',
    broke: 'somebody sets the allowance back to 0 by hand, after the operator’s own approval is final',
    async run(lab) {
      const { chain } = lab;
      const payer = await newWallet(lab);
      const lease = await payer.lease();
      const quote = await payer.operator.remember(lease);
      const approve = () => payer.operator.money.approve(quote);
      await approve();
      const key = `approve:${chain.client.chainId}:${chain.usdc.toLowerCase()}`;
      await lab.untilFinal(payer.outbox, key);
      const zero = tokenAbi.encodeFunctionData('approve', [chain.client.address, 0n]) as Hex;
      await payer.outbox.submit({ key: 'by hand', to: chain.usdc, data: zero });
      await lab.untilFinal(payer.outbox, 'by hand');
      expect((await payer.allowance()) === 0n, 'it still stands');
      await approve();
      await lab.untilMined(payer.outbox, key);
      expect((await payer.allowance()) === unlimited, 'it was not approved again');
      return 'approved again, once';
    },
  },
  {
    name: 'two-chains',
    of: 'two chains',
    broke:
      'one lease reference is quoted, opened and vouched for on two chains; each signature is shown to the other one',
    async run(lab) {
      const { chain: one } = lab;
      const second = await secondChain(lab);
      const { other, money, quoteOn } = second;
      try {
        const leaseRef = keccak256(toUtf8Bytes(`two chains, ${lab.mode}`)) as Hex32;
        const quotes = [await quoteOn(one, { leaseRef }), await quoteOn(other, { leaseRef })] as const;
        const { leaseId } = quotes[0];
        expect(quotes[1].leaseId === leaseId && quotes[1].hash !== quotes[0].hash, 'the domains are not apart');
        const provider = one.keys.provider.address;
        const ways = [await second.open(one, quotes[0]), await second.open(other, quotes[1])];
        for (const chain of [one, other]) await chain.pass(60);

        const refusals: string[] = [];
        for (const [here, there, own] of [
          [one, other, quotes[0]],
          [other, one, quotes[1]],
        ] as const) {
          // Off chain: the operator's and the gateway's own checks.
          const elsewhere = { ...own, signed: { ...own.signed, ...there.client.domain } };
          const taken = await money.checkQuote(elsewhere.signed, provider).then(
            () => true,
            () => false,
          );
          expect(!taken, 'the operator takes a quote of the other chain');
          const signature = await money.signVoucher(own, 30, false);
          const voucher = { message: { leaseId, servedSeconds: 30, last: false }, signature };
          const notary = createNotary(one.keys.provider);
          const session = one.keys.session.address;
          expect(notary.verifyVoucher(here.client.domain, voucher, session), 'the gateway refuses its own voucher');
          expect(!notary.verifyVoucher(there.client.domain, voucher, session), 'the gateway takes the other’s voucher');
          // On chain.
          const payer = one.keys.provider.address;
          const wrong = await there.client.simulate(payer, there.client.calls.settle(voucher));
          expect(wrong?.name === 'BadSignature', `the other chain says ${wrong?.name}`);
          const right = await here.client.simulate(payer, here.client.calls.settle(voucher));
          expect(right === undefined, `its own chain refuses: ${right?.message}`);
          await here.send(here.keys.provider, here.client.calls.settle(voucher));
          refusals.push(wrong.name);
        }
        const paid = await Promise.all([one, other].map(async (c) => (await c.client.lease(leaseId))!.servedSeconds));
        expect(paid.join() === '30,30', `settled: ${paid}`);
        return `one lease id, two escrows (${ways.join(' and ')}), 30 s paid on each; ${refusals.length} vouchers and ${refusals.length} quotes refused on the other chain`;
      } finally {
        await other.stop();
      }
    },
  },
  {
    name: 'cheapest-chain-wins',
    of: 'two chains',
    broke:
      'one token on two chains at one price: gas is dear on the first, then on the second, then the cheaper one goes away',
    async run(lab) {
      const { chain: one } = lab;
      const second = await secondChain(lab);
      const { other, money, railOf } = second;
      try {
        const spec = provider({ payment: { rails: [railOf(one), railOf(other)] } });
        const [ids, cheap, dear] = [[one.client.chainId, other.client.chainId] as const, 10n ** 6n, 10n ** 9n];
        const choose = async (gas: readonly [bigint, bigint], before: readonly RailFact[] = []) => {
          const read = await Promise.all(spec.spec.payment.rails.map((one) => money.railFact(one)));
          // As the provider's controller keeps them.
          const facts = read.map((fact, at) => {
            const known = before[at];
            return fact.ok || !known?.ok ? fact : { ...known, silent: true };
          });
          const rails = facts.flatMap((fact) => (fact.ok ? [{ ...fact, ...fact.rail }] : []));
          const values = { token: () => 10n ** 6n, gas: (id: number) => gas[ids.indexOf(id)] };
          const match = matchOffers({
            ...observed({
              providers: factsOf(providerFact({ provider: spec, rails })),
              settings: settings({ values }),
            }),
            avoid: [],
          });
          return { facts, chain: match.candidates[0]?.rail.chainId, shown: match.selection.rails ?? [] };
        };
        const first = await choose([dear, cheap]);
        expect(first.chain === ids[1], `chain ${first.chain} is taken while its gas is dear`);
        const turned = await choose([cheap, dear]);
        expect(turned.chain === ids[0], `chain ${turned.chain} is taken while its gas is dear`);
        expect(
          turned.shown.length === 2 && turned.shown.every((row) => row.fee === '0.0072' && row.total === '0.36'),
          `shown: ${JSON.stringify(turned.shown)}`,
        );
        for (const endpoint of lab.endpoints) endpoint.misbehave({ is: 'down' });
        const away = await choose([cheap, dear], turned.facts);
        expect(away.chain === ids[1], `chain ${away.chain} is taken, which is away`);
        expect(away.shown[1]?.note === `chain ${ids[0]} does not answer`, `it says ${away.shown[1]?.note}`);
        return 'the cheaper of both, each time; the dearer while the cheaper is away; costs shown for both';
      } finally {
        await other.stop();
      }
    },
  },
  {
    name: 'one-chain-away',
    of: 'two chains',
    broke:
      'all endpoints of one chain hang, with 60 leases on it, while a lease on another chain is served and settled',
    async run(lab) {
      const { chain: one } = lab;
      const second = await secondChain(lab);
      const { other, money, quoteOn } = second;
      try {
        const here = await quoteOn(one, {});
        const there = await quoteOn(other, {});
        await second.open(one, here);
        await second.open(other, there);
        const serving = (quote: QuoteRecord) =>
          record({ quote, deposit: '100000', startedAt: new Date(Date.now() - 60_000).toISOString() });
        await money.facts(here, serving(here));

        for (const endpoint of lab.endpoints) endpoint.misbehave({ is: 'hang' });
        let waited = 0;
        let held = 0;
        // As its workers would: sixteen at a time, of which each takes the next lease when it is done with one.
        const queue = Array.from({ length: 60 }, () => here);
        const states = new Set<string>();
        const workers = Array.from({ length: 16 }, async () => {
          for (let quote = queue.pop(); quote; quote = queue.pop()) {
            const since = performance.now();
            const fact = await money.facts(quote, serving(quote));
            // Both endpoints let a call wait for a second and a half.
            if (performance.now() - since >= 2900) held += 1;
            states.add(fact.state === 'unknown' ? `${fact.reason}${fact.last ? ' with the last read' : ''}` : 'known');
          }
        });
        const beside = (async () => {
          for (let look = 0; look < 20; look++) {
            const since = performance.now();
            const fact = await money.facts(there, serving(there));
            expect(fact.state === 'known', 'the other chain is unknown too');
            waited = Math.max(waited, performance.now() - since);
          }
        })();
        await Promise.all([...workers, beside]);
        expect([...states].join() === 'ChainUnreachable with the last read', `its leases are: ${[...states]}`);
        // Those that began before it was known to be silent, and one at a time after that; without, all sixty.
        expect(held >= 1 && held <= 24, `${held} of 60 looks at leases of the chain that is away waited for it`);

        await other.pass(60);
        const voucher = {
          message: { leaseId: there.leaseId, servedSeconds: 30, last: true },
          signature: await money.signVoucher(there, 30, true),
        };
        await other.send(other.keys.provider, other.client.calls.close(voucher));
        expect((await other.client.lease(there.leaseId))?.closed === true, 'the other lease is not settled');
        return `no look at the other chain took longer than ${(waited / 1000).toFixed(1)} s; of 60 at the silent one ${held} waited`;
      } finally {
        await other.stop();
      }
    },
  },
  {
    name: 'gateway-one-chain-away',
    of: 'two chains',
    broke: 'a gateway with two chains starts while all endpoints of one hang; later they answer',
    async run(lab) {
      const { chain: one } = lab;
      const second = await secondChain(lab);
      const { other } = second;
      const stop = new AbortController();
      for (const endpoint of lab.endpoints) endpoint.misbehave({ is: 'down' });
      try {
        const chains = createEscrowChains({
          rails: [one, other].map(({ client, usdc }) => ({ ...client.domain, tokens: [usdc] })),
          rpcUrls: new Map([
            [one.client.chainId, lab.endpoints.map((endpoint) => endpoint.url)],
            [other.client.chainId, [other.anvil.rpcUrl]],
          ]),
          key: one.keys.provider,
          payee: one.keys.provider.address,
          store: () => memoryStore<OutboxRecord>(),
          now: lab.clock.now,
          log: silentLog,
        });
        const connecting = chains.connect(stop.signal);
        await lab.until('chain that is there', async () => (chains.connected ? true : undefined));
        const ids = () => chains.rails().map((rail) => rail.chainId);
        expect(ids().join() === String(other.client.chainId), `it takes money on ${ids()}`);
        expect(
          chains.awaited(one.client.chainId, one.client.address) &&
            !chains.awaited(other.client.chainId, other.client.address),
          'it does not know which chain it waits for',
        );
        const lease = await second.quoteOn(other, {});
        await second.open(other, lease);
        const served = chains.chain(other.client.chainId, other.client.address)!;
        const [escrow] = await served.leases([lease.leaseId]);
        expect(escrow?.deposit === 100_000n, 'it cannot read the chain that is there');
        for (const endpoint of lab.endpoints) endpoint.behave();
        await connecting;
        expect(new Set(ids()).size === 2, 'the other chain is not found when it is there again');
        return 'ready with one chain, which is read; the other joins when it answers';
      } finally {
        stop.abort();
        await other.stop();
      }
    },
  },
];
