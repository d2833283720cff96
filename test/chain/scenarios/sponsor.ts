/** A sponsor, its customer's credit, and the card processor's webhook, around escrows that are real. */
import { Interface } from 'ethers';
import { connectSponsorChain } from '../../../operator/adapters/chain/sponsor-chain.ts';
import { memoryStore } from '../../../operator/adapters/chain/store.ts';
import { stripe } from '../../../operator/adapters/invoice/card-processor.ts';
import { startWebhookServer } from '../../../operator/adapters/invoice/webhook-server.ts';
import type { Hex } from '../../../operator/api/messages.ts';
import { createSponsor } from '../../../operator/controllers/sponsor/sponsor.ts';
import {
  type Account,
  type Customer,
  type EarlyReversals,
  invoiceNumber,
  monthOfCharge,
  owed,
} from '../../../operator/core/invoice/account.ts';
import { invoiceOf } from '../../../operator/core/invoice/invoice.ts';
import { silentLog } from '../../../operator/engine/log.ts';
import { refunded, send, succeeded, webhookSecret } from '../../support/card-processor.ts';
import type { OpenLease } from '../lab.ts';
import { type ChainScenario, expect } from '../scenario.ts';

const tokenAbi = new Interface(['function mint(address to, uint256 amount)']);

export const sponsor: ChainScenario[] = [
  {
    name: 'sponsor-within-credit',
    of: 'invoice',
    broke:
      'a customer who pays by card opens more than its credit allows; the sponsor dies between rounds; the card is charged, refunded',
    async run(lab) {
      const { chain } = lab;
      const { client, keys, usdc } = chain;
      const sponsorKey = lab.key(112);
      const consumer = lab.key(113);
      for (const { address } of [sponsorKey, consumer]) {
        const mint = tokenAbi.encodeFunctionData('mint', [address, 10n ** 9n]) as Hex;
        await chain.send(keys.deployer, { to: usdc, data: mint });
      }
      await chain.send(consumer, client.calls.approve(usdc));
      const customer: Customer = {
        name: 'acme',
        consumer: consumer.address,
        creditLimit: '0.50',
        currency: 'USD',
        rate: '1',
        marginBps: 0,
        billTo: ['Acme'],
      };
      const store = memoryStore<Account>();
      const early = memoryStore<EarlyReversals>();
      const outbox = await lab.outbox({ key: sponsorKey });
      const rpc = await lab.connect();
      const parts = { rpc, escrow: client.address, token: usdc, outbox };
      const fromBlock = (await client.block('latest')).number;
      const start = async () =>
        createSponsor({
          chain: await connectSponsorChain(parts),
          customers: [customer],
          store: () => store,
          early,
          ahead: { lowWaterSeconds: 1800, aheadSeconds: 3600 },
          fromBlock,
          log: silentLog,
        });
      // 0.34 an hour each; a minute is the customer's own. Credit is for one and a half of them.
      const leases: Pick<OpenLease, 'leaseId' | 'quote'>[] = [];
      for (let count = 0; count < 2; count++) {
        const { quote, leaseId, intent } = await lab.openIntent(
          { consumer: consumer.address, maxSeconds: 7200 },
          6_000n,
        );
        await chain.send(consumer, intent);
        leases.push({ quote, leaseId });
      }
      const rounds = async (count: number) => {
        for (let round = 0; round < count; round++) {
          const sponsor = await start(); // another process each time
          await sponsor.round();
          await lab.makeSafe();
        }
        return (await start()).account(customer);
      };
      const deposits = async () => Promise.all(leases.map(async (one) => (await lab.lease(one.leaseId))!.deposit));
      await rounds(5);
      const funded = await deposits();
      const sponsored = funded.reduce((sum, one) => sum + one, 0n) - 12_000n;
      expect(sponsored === 500_000n, `${sponsored} base units are sponsored, the credit is for 500000`);

      await chain.pass(1800);
      const [first] = leases;
      await chain.send(keys.provider, client.calls.close(await lab.voucher(first!.leaseId, 1200, true)));
      await lab.makeSafe();
      let account = await rounds(4);
      // 1200 s cost 113,333, of which 6,000 were the customer's.
      expect(
        account.charges.map((one) => one.units).join() === '107333',
        `charged: ${account.charges.map((one) => one.units)}`,
      );
      const closed = (await lab.lease(first!.leaseId))!;
      expect(closed.refunded === funded[0]! - closed.claimed, 'the refund is not the rest');
      const balance = await client.balance(usdc, sponsorKey.address);
      const second = (await deposits())[1]!;
      expect(
        balance + (second - 6_000n) + 107_333n === 10n ** 9n,
        `the sponsor has ${balance}, and ${second - 6_000n} in the other escrow`,
      );

      const at = Math.floor(lab.clock.now().getTime() / 1000);
      const [charge] = account.charges;
      const number = invoiceNumber('acme', monthOfCharge(charge!));
      const server = await startWebhookServer({
        host: '127.0.0.1',
        port: 0,
        path: '/webhooks/stripe',
        processor: stripe({ secrets: [webhookSecret], now: lab.clock.now }),
        take: async (event) => (await start()).take(event),
        log: silentLog,
      });
      try {
        const url = `http://127.0.0.1:${server.port}/webhooks/stripe`;
        const paid = succeeded('pi_acme', number, 10, at);
        const answers = [await send(url, paid), await send(url, paid), await send(url, { ...paid, id: 'evt_again' })];
        account = await (await start()).account(customer);
        expect(answers.join() === '200,200,200' && owed(account) === 7_333n, `owed after ${answers}: ${owed(account)}`);
        await send(url, refunded('pi_acme', 10, at));
        account = await (await start()).account(customer);
        expect(owed(account) === 107_333n, `owed after a refund: ${owed(account)}`);
      } finally {
        await server.close();
      }
      const token = { symbol: 'USDC', decimals: 6 };
      const month = monthOfCharge(charge!);
      const invoice = invoiceOf(account, customer, token, { lines: ['Sponsor'], dueDays: 14 }, month, new Date());
      expect(invoice.total === '0.10' && invoice.due === '0.10', `the invoice says ${invoice.total}, ${invoice.due}`);
      return '0.50 of 0.50 sponsored and no more; 0.107333 charged, the rest back to the base unit; paid once of three times told';
    },
  },
];
