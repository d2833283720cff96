/** The sponsor: tokens for customers who pay in money. Reads configuration, wires, starts, stops; and prints invoices. */
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { loadKey } from '../adapters/chain/key.ts';
import { createOutbox, type OutboxRecord } from '../adapters/chain/outbox.ts';
import { connectRpc } from '../adapters/chain/rpc.ts';
import { connectSponsorChain } from '../adapters/chain/sponsor-chain.ts';
import { stripe } from '../adapters/invoice/card-processor.ts';
import { startWebhookServer } from '../adapters/invoice/webhook-server.ts';
import { createSecretStore } from '../adapters/kube/secret-store.ts';
import { createLog } from '../adapters/telemetry/log.ts';
import { createMetrics } from '../adapters/telemetry/metrics.ts';
import { startOperationsServer } from '../adapters/telemetry/operations-server.ts';
import { labels, managedBy } from '../api/labels.ts';
import type { Address } from '../api/messages.ts';
import { createSponsor } from '../controllers/sponsor/sponsor.ts';
import { type Account, type Customer, type EarlyReversals, emptyAccount, microsOf } from '../core/invoice/account.ts';
import { type Issuer, invoiceHtml, invoiceOf } from '../core/invoice/invoice.ts';
import { parseAmount } from '../core/money/amount.ts';
import { periodOf } from '../core/receipt/period.ts';
import { connectCluster } from '../engine/cluster.ts';
import type { Cluster } from '../engine/types.ts';
import { choice, integer, type Option, pairs, parseOptions, text, UsageError } from './options.ts';

const usage = `
Tops up the escrows of customers who pay in money, within their credit, and writes their invoices.

  sponsor --key-file FILE --chain ID=URL --escrow ADDRESS --token ADDRESS --customers FILE [options]
  sponsor invoice CUSTOMER --month YYYY-MM --customers FILE [--format html]

A customer's own operator opens each escrow with a small deposit of its own (--deposit-seconds 300, say); everything beyond
comes from the sponsor, and what is not spent goes back to the sponsor. Payments come in by the card processor's webhook; each
carries the number of its invoice in its metadata, as "invoice".

The file of customers: {"issuer": {"lines": […], "notes": […], "dueDays": 14}, "token": {"symbol": "USDC", "decimals": 6},
"customers": [{"name", "consumer", "creditLimit", "currency", "rate", "marginBps", "billTo": […]}]}. A change of it takes a
restart; amounts that were charged stay as they were.
`;

const address = (description: string): Option<Address> => ({
  description,
  value: 'ADDRESS',
  parse: (t) => {
    if (!/^0x[0-9a-fA-F]{40}$/.test(t)) throw new Error('must be an address: 0x and 40 hexadecimal digits');
    return t as Address;
  },
});

const declared = {
  keyFile: text("The sponsor's key: 32 bytes in hexadecimal, or a keystore.", 'FILE'),
  keyPasswordFile: text('Password of the keystore.', 'FILE'),
  chain: pairs('The chain, and its JSON-RPC endpoints.', 'ID=URL[,URL]'),
  escrow: address('The LeaseEscrow contract.'),
  token: address('The token that escrows are topped up with.'),
  customers: text('Who is sponsored, on which terms (JSON).', 'FILE'),
  fromBlock: integer('New accounts look for escrows from this block on.', 'NUMBER', 0, Number.MAX_SAFE_INTEGER, 0),
  lowWaterSeconds: integer('An escrow is topped up when it covers less than this.', 'SECONDS', 30, 86_400, 1800),
  aheadSeconds: integer('… to cover so much: what a provider who vanishes can hold up.', 'SECONDS', 60, 86_400, 3600),
  intervalSeconds: integer('How often is looked.', 'SECONDS', 1, 600, 5),
  kubeconfig: text('Kubeconfig of the cluster that keeps the accounts, in Secrets.', 'FILE', 'in-cluster'),
  namespace: text('Namespace of those Secrets.', 'NAME', 'gpulease-system'),
  webhookSecretFile: text(
    "Secret of the card processor's webhook (whsec_…); while it is replaced, the former in a second line. Without it no webhook is served.",
    'FILE',
  ),
  webhookPort: integer('Port of the webhook; TLS ends before it.', 'PORT', 0, 65_535, 8081),
  webhookPath: text('Path of the webhook.', 'PATH', '/webhooks/stripe'),
  webhookMode: choice(
    "Which of the processor's modes counts: payments of the test mode are worth nothing.",
    ['live', 'test'],
    'live',
  ),
  month: {
    description: 'invoice: the month (UTC).',
    value: 'YYYY-MM',
    parse: (t: string) => {
      if (!periodOf(t)) throw new Error('must be a month such as 2026-11');
      return t;
    },
  } as Option<string>,
  format: choice('invoice: html is a page that a browser prints, or saves as PDF.', ['json', 'html'], 'json'),
  operationsPort: integer('Port of /metrics, /livez and /readyz; 0 picks a free one.', 'PORT', 0, 65_535, 8080),
  logLevel: choice('How much is logged.', ['debug', 'info', 'warn', 'error'], 'info'),
  logFormat: choice('For machines or for people.', ['json', 'pretty'], 'json'),
};

const line = z.string().max(200);
const amount = (places: number) =>
  z.string().refine((t) => {
    try {
      return parseAmount(t, places) >= 0n;
    } catch {
      return false;
    }
  }, `must be an amount with at most ${places} places, such as "1.5"`);
const customersFile = z.strictObject({
  issuer: z.strictObject({
    lines: z.array(line).min(1).max(12),
    notes: z.array(line).max(12).optional(),
    dueDays: z.int().min(0).max(365).default(14),
  }),
  token: z.strictObject({ symbol: z.string().min(1).max(12), decimals: z.int().min(0).max(36) }),
  customers: z
    .array(
      z.strictObject({
        name: z.string().regex(/^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$/),
        consumer: z.string().regex(/^0x[0-9a-fA-F]{40}$/),
        creditLimit: amount(2),
        currency: z.string().regex(/^[A-Z]{3}$/),
        rate: amount(6),
        marginBps: z.int().min(0).max(10_000).default(0),
        billTo: z.array(line).min(1).max(12),
      }),
    )
    .min(1)
    .max(200),
});

export interface SponsorConfig {
  readonly issuer: Issuer;
  readonly token: { readonly symbol: string; readonly decimals: number };
  readonly customers: readonly Customer[];
}

/** Throws UsageError with the field that is wrong. */
export function readCustomers(file: string, content: string): SponsorConfig {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch {
    throw new UsageError(`--customers: ${file} is not JSON`);
  }
  const result = customersFile.safeParse(value);
  if (!result.success) {
    const [issue] = result.error.issues;
    throw new UsageError(`--customers: ${file}: ${issue?.path.join('.')}: ${issue?.message}`);
  }
  const config = result.data as SponsorConfig;
  for (const field of ['name', 'consumer'] as const) {
    const values = config.customers.map((one) => one[field].toLowerCase());
    const twice = values.find((one, at) => values.indexOf(one) !== at);
    if (twice) throw new UsageError(`--customers: ${file}: ${field} ${twice} is there twice`);
  }
  for (const one of config.customers)
    if (microsOf(10n ** BigInt(config.token.decimals), one, config.token.decimals) < 10_000n)
      throw new UsageError(`--customers: ${file}: the rate of ${one.name} makes a token worth less than a cent`);
  return config;
}

const secretIn = <T>(cluster: Cluster, namespace: string, name: string) =>
  createSecretStore<T>({ cluster, namespace, name, labels: { [labels.managedBy]: managedBy } });
const storeIn = (cluster: Cluster, namespace: string) => (customer: Customer) =>
  secretIn<Account>(cluster, namespace, `sponsored-${customer.name}`);

export async function runSponsor(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  out: (text: string) => void,
): Promise<void> {
  const words: string[] = [];
  const options = parseOptions(usage, declared, args, env, words);
  if (!options) return;
  if (!options.customers) throw new UsageError('--customers is missing: who is sponsored, on which terms');
  const config = readCustomers(options.customers, readFile('customers', options.customers));
  const { namespace } = options;
  const metrics = createMetrics();
  const cluster = connectCluster({
    name: 'sponsor',
    kubeconfig: options.kubeconfig,
    userAgent: 'gpulease-sponsor',
    metrics: metrics.engine,
  });

  if (words[0] === 'invoice') {
    const customer = config.customers.find((one) => one.name === words[1]);
    if (words.length !== 2 || !customer) throw new UsageError('invoice takes the name of one customer. See --help.');
    if (!options.month) throw new UsageError('--month is missing: e.g. --month 2026-11');
    const { value } = await storeIn(cluster, namespace)(customer).load();
    const invoice = invoiceOf(value ?? emptyAccount, customer, config.token, config.issuer, options.month, new Date());
    out(options.format === 'html' ? invoiceHtml(invoice) : `${JSON.stringify(invoice, null, 2)}\n`);
    return;
  }
  if (words.length > 0) throw new UsageError(`there is no command ${JSON.stringify(words[0])}. See --help.`);

  const { keyFile, escrow, token } = options;
  if (!keyFile || !escrow || !token)
    throw new UsageError('--key-file, --escrow and --token are needed to sponsor. See --help.');
  if (options.chain.length !== 1) throw new UsageError('--chain is given once: a sponsor works on one chain');
  if (options.aheadSeconds <= options.lowWaterSeconds)
    throw new UsageError('--ahead-seconds must be above --low-water-seconds');
  const [[id, urls]] = options.chain as [[string, string]];
  const chainId = Number(id);
  if (!Number.isSafeInteger(chainId) || chainId < 1)
    throw new UsageError(`--chain must be ID=URL[,URL]; given: ${id}=…`);

  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort(new Error(name)));
  const { signal } = stop;
  const log = createLog({ name: 'sponsor', level: options.logLevel, pretty: options.logFormat === 'pretty' });
  const now = () => new Date();
  const password = options.keyPasswordFile && readFile('key-password-file', options.keyPasswordFile).trim();
  const key = await loadKey(keyFile, password);
  const rpc = await connectRpc({ urls: urls.split(','), chainId }, signal);
  const outbox = createOutbox({
    rpc,
    key,
    store: createSecretStore<OutboxRecord>({
      cluster,
      namespace,
      name: `sponsor-outbox-${chainId}-${key.address.slice(2, 12).toLowerCase()}`,
    }),
    now,
  });
  const chain = await connectSponsorChain({ rpc, escrow, token, outbox }, signal);
  if (chain.token.symbol !== config.token.symbol || chain.token.decimals !== config.token.decimals)
    throw new UsageError(
      `--customers: the token is ${chain.token.symbol} with ${chain.token.decimals} decimals, the file says ${config.token.symbol} with ${config.token.decimals}`,
    );
  const sponsor = createSponsor({
    chain,
    customers: config.customers,
    store: storeIn(cluster, namespace),
    early: secretIn<EarlyReversals>(cluster, namespace, 'sponsor-early-reversals'),
    ahead: { lowWaterSeconds: options.lowWaterSeconds, aheadSeconds: options.aheadSeconds },
    fromBlock: options.fromBlock,
    log,
  });
  let lastRound = now().getTime();
  const operations = await startOperationsServer({
    port: options.operationsPort,
    registry: metrics.registry,
    log,
    live: () => ({ process: true }),
    ready: () => ({ rounds: now().getTime() - lastRound < 120_000 || 'no round came to its end for two minutes' }),
  });
  const webhook = options.webhookSecretFile
    ? await startWebhookServer({
        host: '0.0.0.0',
        port: options.webhookPort,
        path: options.webhookPath,
        processor: stripe({
          secrets: readFile('webhook-secret-file', options.webhookSecretFile).split(/\s+/).filter(Boolean),
          now,
          testMode: options.webhookMode === 'test',
        }),
        take: (event) => sponsor.take(event, signal),
        log,
      })
    : undefined;
  log.info({ sponsor: key.address, customers: config.customers.length, webhook: webhook?.port }, 'sponsor starts');
  while (!signal.aborted) {
    try {
      await sponsor.round(signal);
      lastRound = now().getTime();
    } catch (error) {
      if (!signal.aborted) log.warn({ error: (error as Error).message }, 'a round failed; trying again');
    }
    await new Promise<void>((resolve) => {
      const timer = setTimeout(done, options.intervalSeconds * 1000);
      signal.addEventListener('abort', done, { once: true });
      function done() {
        clearTimeout(timer);
        signal.removeEventListener('abort', done);
        resolve();
      }
    });
  }
  await webhook?.close();
  await operations.close();
  log.info({}, 'sponsor stopped');
}

function readFile(flag: string, file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new UsageError(
      `--${flag}: ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unreadable'})`,
    );
  }
}
