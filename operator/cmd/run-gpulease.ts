/** The papers of settled leases, for people, accountants and their tools; and the sweep. `gpulease.ts` gives it a terminal. */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { connectEscrow, type EscrowClient } from '../adapters/chain/escrow-client.ts';
import { chainWordsOf, proofsOf } from '../adapters/chain/receipt-proofs.ts';
import { ChainUnavailable, NoContract, RpcError, WrongChain } from '../adapters/chain/rpc.ts';
import {
  type FoundReceipt,
  receiptsInCluster,
  receiptsInFile,
  UnreadableSource,
} from '../adapters/kube/receipt-source.ts';
import type { Address } from '../api/messages.ts';
import type { Receipt } from '../api/receipt.ts';
import { receiptField, receiptSecretType, receiptSelector } from '../controllers/consumer/receipts.ts';
import { gpusInWords } from '../core/lease/amounts.ts';
import { formatAmount } from '../core/money/amount.ts';
import { csvOf } from '../core/receipt/csv.ts';
import { checkRate, focusCsv, focusRows, focusSchema, focusVersion, ratesMissing } from '../core/receipt/focus.ts';
import { instantOf, monthOf, periodOf } from '../core/receipt/period.ts';
import { inOrder, statementCsv, statementMarkdown, statementOf } from '../core/receipt/statement.ts';
import { type ChainWords, type Fault, faultsOf, remarksOn } from '../core/receipt/verify.ts';
import { connectCluster } from '../engine/cluster.ts';
import { isApiError, UnknownOutcomeError } from '../engine/errors.ts';
import { integer, type Option, pairs, parseOptions, text, UsageError } from './options.ts';
import { NotNow, sweepEscrows } from './sweep.ts';

const usage = `
The papers of settled leases, and escrows that nobody ended.

  gpulease receipt list                  one line a receipt; --format json gives them whole, as an archive
  gpulease receipt show ESCROW           one receipt: id of the escrow (or its beginning), or name of the lease
  gpulease receipt verify [FILE …]       are they true? By signatures and sums alone; with --chain also by the chain
  gpulease statement                     what one namespace leased in one month: --lease-namespace, --month
  gpulease focus                         charges in the columns of FinOps FOCUS ${focusVersion}: --rate, --currency
  gpulease focus schema                  the metadata that goes with them
  gpulease sweep                         finalize abandoned escrows: --chain, --escrow; says what that would cost, --yes does it
  gpulease provider check                is this cluster fit to have tenants? See its own --help
  gpulease relay                         another program: connects consumers to providers behind NAT; see its --help

Receipts are read from the operator's Secrets, which takes the right to list Secrets in its namespace, or from --from: files
or folders, - for standard input. A file holds one receipt or a list of them. Statements and charges are made of receipts that verify, and of no others.

  gpulease receipt list --format json > archive.json
  gpulease receipt verify archive.json --chain 42161=https://arb1.example.org
  gpulease statement --lease-namespace ml --month 2026-11
  gpulease focus --month 2026-11 --currency USD --rate USDC=1 --from archive.json > focus.csv
  gpulease sweep --chain 42161=https://arb1.example.org --escrow 0x… --from-block 1000000 --key-file sweeper.json --yes

A sweep reads the contract's log from --from-block to the safe head, and finalizes what is past its claim window. Anyone may;
what was not earned goes back to who paid it. The contract takes one escrow a transaction. Give it an account that nothing else
sends from, never a wallet of operator or gateway: each account has one writer. It may be stopped and repeated at any time. Its
last line is JSON. It exits with 1 when the contract refused some, with 3 when some were not seen in a block.

Exit status: 0 all is well; 1 a receipt is not true, each fault with its field, what it says and what it should say;
2 the command was not understood; 3 something could not be read or asked, so nothing is known.
`;

const formats = ['text', 'json', 'csv'] as const;
const month: Option<string> = {
  description: 'Receipts whose billing stopped in this month (UTC).',
  value: 'YYYY-MM',
  parse: (t) => {
    if (!periodOf(t)) throw new Error('must be a month such as 2026-11');
    return t;
  },
};
const address = (description: string): Option<string> => ({
  description,
  value: 'ADDRESS',
  parse: (t) => {
    if (!/^0x[0-9a-fA-F]{40}$/.test(t)) throw new Error('must be an address: 0x and 40 hexadecimal digits');
    return t;
  },
});

const declared = {
  from: { ...text('Read receipts from this file or folder instead of a cluster.', 'PATH'), many: true as const },
  kubeconfig: text('Kubeconfig of the consumer cluster. Default: KUBECONFIG, then ~/.kube/config.', 'FILE'),
  namespace: text("The operator's namespace, in which the receipts are.", 'NAME', 'gpulease-system'),
  leaseNamespace: text('Only leases of this namespace.', 'NAME'),
  month,
  format: {
    description: `One of ${formats.join(', ')}. Default: text; for focus, csv.`,
    value: 'WORD',
    parse: (t: string) => {
      if (!(formats as readonly string[]).includes(t)) throw new Error(`must be one of ${formats.join(', ')}`);
      return t as (typeof formats)[number];
    },
  },
  chain: pairs(
    'verify: ask this chain, too, by its JSON-RPC endpoints. sweep: the one that the escrows are on.',
    'ID=URL[,URL]',
  ),
  escrow: address('sweep: the contract.'),
  fromBlock: integer('sweep: the block from which on escrows are looked for.', 'NUMBER', 0, Number.MAX_SAFE_INTEGER, 0),
  keyFile: text(
    'sweep: private key (32 bytes in hexadecimal) or keystore of the account that pays for the gas.',
    'FILE',
  ),
  passwordFile: text('sweep: password of the keystore.', 'FILE'),
  yes: { description: 'sweep: send the transactions. Without it nothing is sent.', parse: (t: string) => t === 'true' },
  most: integer('sweep: finalize no more than so many.', 'NUMBER', 1, 10_000, 1000),
  maxFeeGwei: integer('sweep: pay no more for a unit of gas.', 'GWEI', 1, 1_000_000, 500),
  provider: address('verify: the provider that must have signed.'),
  consumer: address("verify: the consumer's wallet that the quote must be bound to."),
  sessionKey: address('verify: the session key that must have signed; see `settlement.signer` of a receipt you trust.'),
  currency: {
    description: 'focus: national currency that costs are written in, as ISO 4217 names it.',
    value: 'CODE',
    fallback: 'USD',
    parse: (t: string) => {
      if (!/^[A-Z]{3}$/.test(t)) throw new Error('must be three capital letters such as USD');
      return t;
    },
  },
  rate: pairs('focus: what one token is worth in that currency.', 'SYMBOL=RATE'),
};
type Options = NonNullable<ReturnType<typeof parseOptions<typeof declared>>>;

/** Where a command is run from, and what it is heard by. */
export interface Surroundings {
  readonly env: NodeJS.ProcessEnv;
  readonly stdin: () => Promise<string>;
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
}

const json = (value: unknown) => JSON.stringify(value, null, 2);

/** Nothing is known; not to be mistaken for a receipt that is false. */
class Unknown extends Error {}
/** Told already: a receipt is false. */
class NotTrue extends Error {}

/** Answers with the exit status. What is thrown is a fault of the program. */
export async function runGpulease(args: readonly string[], io: Surroundings): Promise<0 | 1 | 2 | 3> {
  try {
    const words: string[] = [];
    const given = parseOptions(usage, declared, args, io.env, words);
    if (!given) return 0;
    const { text: said, status: ended = 0 } = await answer(words, given, io);
    io.out(said.endsWith('\n') ? said : `${said}\n`);
    return ended;
  } catch (error) {
    const status = error instanceof UsageError ? 2 : error instanceof NotTrue ? 1 : isUnknown(error) ? 3 : undefined;
    if (status === undefined) throw error;
    io.err(`gpulease: ${(error as Error).message}\n`);
    return status;
  }
}

/** Only a fact about a receipt may be called false. */
const isUnknown = (error: unknown): boolean =>
  [Unknown, NotNow, UnreadableSource, ChainUnavailable, NoContract, WrongChain, RpcError, UnknownOutcomeError].some(
    (kind) => error instanceof kind,
  ) || isApiError(error);

interface Said {
  readonly text: string;
  readonly status?: 0 | 1 | 3;
}

async function answer(words: readonly string[], given: Options, io: Surroundings): Promise<Said> {
  const command = words.slice(0, words[0] === 'receipt' || words[1] === 'schema' ? 2 : 1).join(' ');
  const rest = words.slice(command === '' ? 0 : command.split(' ').length);
  const takes = (most: number, what: string) => {
    if (rest.length > most)
      throw new UsageError(`${command} takes ${what}, not ${JSON.stringify(rest[most])}. See --help.`);
  };
  switch (command) {
    case 'receipt list':
      takes(0, 'no names');
      return { text: list(await read(given, io), given) };
    case 'receipt show':
      takes(1, 'one escrow id or lease name');
      if (!rest[0]) throw new UsageError('receipt show takes one escrow id or lease name. See --help.');
      return { text: show(await read(given, io), rest[0]) };
    case 'receipt verify':
      return verify(await read({ ...given, from: [...given.from, ...rest] }, io), given);
    case 'statement':
      takes(0, 'no names');
      return { text: statement(await readTrue(given, io), given) };
    case 'focus':
      takes(0, 'no names');
      return { text: focus(await readTrue(given, io), given) };
    case 'focus schema':
      takes(0, 'no names');
      return { text: json(focusSchema()) };
    case 'sweep': {
      takes(0, 'no names');
      const settings = { ...given, yes: given.yes === true };
      const { lines, status } = await sweepEscrows(settings, {
        tell: (line) => io.err(`${line}\n`),
        now: () => new Date(),
      });
      return { text: lines.join('\n'), status };
    }
    case '':
      throw new UsageError(
        'say what to do: receipt list, receipt show, receipt verify, statement, focus or sweep. See --help.',
      );
    default:
      throw new UsageError(`there is no command ${JSON.stringify(command)}. See --help.`);
  }
}

/** Those asked for, oldest first; those of a wrong form at the end. */
async function read(given: Options, io: Surroundings): Promise<FoundReceipt[]> {
  const found: FoundReceipt[] = [];
  if (given.from.length > 0) {
    for (const path of given.from) found.push(...(await receiptsInFile(path, io.stdin)));
  } else {
    const cluster = connectCluster({
      name: 'consumer',
      kubeconfig: kubeconfigOf(given, io.env),
      userAgent: 'gpulease',
    });
    const selector = receiptSelector({ namespace: given.leaseNamespace, month: given.month });
    const secret = { type: receiptSecretType, field: receiptField };
    found.push(...(await receiptsInCluster(cluster, given.namespace, selector, secret)));
  }
  const asked = found.filter(
    ({ receipt }) =>
      !receipt ||
      ((given.leaseNamespace === undefined || receipt.lease.namespace === given.leaseNamespace) &&
        (given.month === undefined || monthOf(receipt.settlement.closingAt) === given.month)),
  );
  return asked.toSorted((a, b) => (a.receipt && b.receipt ? inOrder(a.receipt, b.receipt) : a.receipt ? -1 : 1));
}

function kubeconfigOf({ kubeconfig }: Options, env: NodeJS.ProcessEnv): string {
  const path = kubeconfig ?? env.KUBECONFIG ?? join(homedir(), '.kube/config');
  if (path !== 'in-cluster' && !existsSync(path))
    throw new UsageError(`there is no kubeconfig ${path}: name one with --kubeconfig, or files with --from`);
  return path;
}

/** Receipts to add up: each must be true, and is counted once. */
async function readTrue(given: Options, io: Surroundings): Promise<Receipt[]> {
  const receipts = new Map<string, Receipt>();
  const wrong: string[] = [];
  for (const one of await read(given, io)) {
    const faults = one.receipt ? faultsOf(one.receipt, await proofsOf(one.receipt, one.raw)) : one.faults;
    if (faults.length > 0) wrong.push(...faultLines(one, faults));
    else receipts.set(one.receipt!.leaseId.toLowerCase(), one.receipt!);
  }
  if (wrong.length > 0)
    throw new NotTrue(
      `nothing is made of receipts that are not true: leave them out, or get them right\n${wrong.join('\n')}`,
    );
  const all = [...receipts.values()];
  const clusters = new Set(all.map(({ lease }) => lease.clusterUid));
  if (clusters.size > 1)
    throw new UsageError(
      `these receipts are of ${clusters.size} clusters (${[...clusters].join(', ')}): take one at a time`,
    );
  return all;
}

function list(found: readonly FoundReceipt[], { format }: Options): string {
  // Whole and as they were found: an archive that verifies.
  if (format === 'json') return json(found.map(({ raw }) => raw));
  const rows = found.map(({ receipt, from }) =>
    receipt
      ? {
          namespace: receipt.lease.namespace,
          lease: receipt.lease.name,
          ended: instantOf(new Date(receipt.settlement.closingAt * 1000)),
          seconds: receipt.settlement.servedSeconds,
          billed: formatAmount(BigInt(receipt.settlement.claimed), receipt.asset.decimals),
          asset: receipt.asset.symbol,
          provider: receipt.providerName,
          reason: receipt.end.reason,
          escrow: format === 'csv' ? receipt.leaseId : receipt.leaseId.slice(0, 18),
        }
      : {
          namespace: '',
          lease: `no receipt: ${from}`,
          ended: '',
          seconds: 0,
          billed: '',
          asset: '',
          provider: '',
          reason: '',
          escrow: '',
        },
  );
  const columns = [
    'namespace',
    'lease',
    'ended',
    'seconds',
    'billed',
    'asset',
    'provider',
    'reason',
    'escrow',
  ] as const;
  if (format === 'csv') return csvOf(columns, rows);
  return rows.length === 0 ? 'No receipts.' : table(columns, rows);
}

function table(columns: readonly string[], rows: readonly Readonly<Record<string, unknown>>[]): string {
  const cells = [columns.map((c) => c.toUpperCase()), ...rows.map((row) => columns.map((c) => String(row[c])))];
  const widths = columns.map((_, at) => Math.max(...cells.map((row) => row[at]!.length)));
  return cells
    .map((row) =>
      row
        .map((cell, at) => cell.padEnd(widths[at]!))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

function show(found: readonly FoundReceipt[], wanted: string): string {
  const byId = /^0x[0-9a-fA-F]{4,}$/.test(wanted);
  const matches = found.filter(({ receipt }) =>
    byId ? receipt?.leaseId.toLowerCase().startsWith(wanted.toLowerCase()) : receipt?.lease.name === wanted,
  );
  if (matches.length === 0) throw new Unknown(`there is no receipt of ${wanted}: see gpulease receipt list`);
  if (matches.length > 1)
    throw new UsageError(
      `${wanted} names ${matches.length} receipts: ${matches.map(({ receipt }) => receipt!.leaseId).join(', ')}. Name one escrow`,
    );
  return json(matches[0]!.raw);
}

interface Verdict {
  readonly from: string;
  readonly lease?: string;
  readonly leaseId?: string;
  readonly verdict: 'true' | 'false' | 'unknown';
  readonly faults: readonly Fault[];
  readonly remarks: readonly string[];
  /** Why the chain could not be asked. By itself such a receipt is true. */
  readonly unknown?: string;
  readonly checked: readonly string[];
}

async function verify(found: readonly FoundReceipt[], given: Options): Promise<Said> {
  if (found.length === 0) throw new Unknown('there is no receipt to verify: name files, or see gpulease receipt list');
  const { provider, consumer, sessionKey, format = 'text' } = given;
  const chains = new Map(given.chain);
  const clients = new Map<string, EscrowClient>();
  const verdicts: Verdict[] = [];
  const lines: string[] = [];
  for (const one of found) {
    const { receipt, raw, from } = one;
    const about = receipt && { lease: `${receipt.lease.namespace}/${receipt.lease.name}`, leaseId: receipt.leaseId };
    let { faults } = one;
    let unknown: string | undefined;
    const checked: string[] = [];
    if (receipt) {
      const asked = await askChain(receipt, chains, clients);
      unknown = asked.unknown;
      faults = faultsOf(
        receipt,
        await proofsOf(receipt, raw, asked.rpc),
        { provider, consumer, sessionKey },
        asked.words,
      );
      checked.push('signatures', 'sums', ...(asked.words ? [`chain ${receipt.quote.chainId}`] : []));
    }
    const remarks = receipt ? remarksOn(receipt) : [];
    const verdict: Verdict = {
      from,
      ...about,
      verdict: faults.length > 0 ? 'false' : unknown === undefined ? 'true' : 'unknown',
      faults,
      remarks,
      ...(unknown === undefined ? {} : { unknown }),
      checked,
    };
    verdicts.push(verdict);
    if (faults.length > 0 || !receipt) lines.push(...faultLines(one, faults));
    else if (unknown !== undefined)
      lines.push(`UNKNOWN ${from}: ${verdict.lease}, escrow ${receipt.leaseId}`, `       ${unknown}`);
    else lines.push(...trueLines(receipt, verdict));
  }
  const some = (kind: Verdict['verdict']) => verdicts.some(({ verdict }) => verdict === kind);
  const status = some('false') ? 1 : some('unknown') ? 3 : 0;
  if (format === 'json') return { text: json(verdicts), status };
  return { text: format === 'csv' ? verdictsCsv(verdicts) : lines.join('\n'), status };
}

interface Asked {
  readonly words?: ChainWords;
  readonly rpc?: EscrowClient['rpc'];
  readonly unknown?: string;
}

/** Nothing, where no chain is to be asked. That a chain cannot be asked is no verdict on a receipt, nor on those after it. */
async function askChain(
  receipt: Receipt,
  chains: ReadonlyMap<string, string>,
  clients: Map<string, EscrowClient>,
): Promise<Asked> {
  if (chains.size === 0) return {};
  try {
    const client = await clientOf(receipt, chains, clients);
    return { words: await chainWordsOf(receipt, client), rpc: client.rpc };
  } catch (error) {
    if (!isUnknown(error)) throw error;
    return { unknown: (error as Error).message };
  }
}

const verdictsCsv = (verdicts: readonly Verdict[]): string =>
  csvOf(
    ['from', 'lease', 'leaseId', 'verdict', 'fault', 'field', 'given', 'expected'],
    verdicts.flatMap(({ from, lease = null, leaseId = null, verdict, faults }) =>
      faults.length === 0
        ? [{ from, lease, leaseId, verdict }]
        : faults.map(({ fault, field, given, expected }) => ({
            ...{ from, lease, leaseId, verdict },
            ...{ fault, field, given, expected },
          })),
    ),
  );

function trueLines(receipt: Receipt, { from, lease, checked, remarks }: Verdict): string[] {
  const { asset, settlement, quote, leaseId } = receipt;
  const amount = (units: string) => `${formatAmount(BigInt(units), asset.decimals)} ${asset.symbol}`;
  const price = `${settlement.servedSeconds} s × ${gpusInWords(quote.quote.gpus)} × ${amount(quote.quote.pricePerGpuHour)} an hour`;
  const parts = `${amount(settlement.paid)} to ${quote.quote.payee}, ${amount(settlement.fee)} fee`;
  const asked = checked.length > 2 ? '' : '; the chain was not asked: give --chain';
  return [
    `TRUE   ${from}: ${lease}, escrow ${leaseId}`,
    `       ${price} = ${amount(settlement.claimed)}: ${parts}; ${amount(settlement.refunded)} refunded`,
    `       by ${checked.join(', ')}${asked}`,
    ...remarks.map((remark) => `       note: ${remark}`),
  ];
}

const faultLines = ({ from, receipt }: FoundReceipt, faults: readonly Fault[]): string[] => [
  `FALSE  ${from}${receipt ? `: ${receipt.lease.namespace}/${receipt.lease.name}, escrow ${receipt.leaseId}` : ''}`,
  ...faults.map(
    ({ fault, field, given, expected, message }) =>
      `       ${fault}: ${field} is ${given}; expected ${expected} (${message})`,
  ),
];

async function clientOf(
  receipt: Receipt,
  chains: ReadonlyMap<string, string>,
  clients: Map<string, EscrowClient>,
): Promise<EscrowClient> {
  const { chainId, escrow } = receipt.quote;
  const urls = chains.get(String(chainId));
  if (urls === undefined)
    throw new Unknown(`escrow ${receipt.leaseId} is on chain ${chainId}, of which no --chain names an endpoint`);
  const name = `${chainId}/${escrow.toLowerCase()}`;
  const known = clients.get(name);
  if (known) return known;
  // A contract or chain that is not there is no verdict on the receipt: perhaps the URL is another chain's.
  const client = await connectEscrow({ rpcUrls: urls.split(','), chainId, escrow: escrow as Address });
  clients.set(name, client);
  return client;
}

function statement(receipts: readonly Receipt[], { leaseNamespace, month: asked, format }: Options): string {
  if (!leaseNamespace || !asked)
    throw new UsageError('a statement is of one namespace and month: give --lease-namespace and --month');
  const clusterUid = receipts[0]?.lease.clusterUid;
  if (clusterUid === undefined) throw new Unknown(`namespace ${leaseNamespace} has no receipts of ${asked}`);
  const made = statementOf(receipts, { clusterUid, namespace: leaseNamespace, month: asked });
  if (format === 'json') return json(made);
  return format === 'csv' ? statementCsv(made) : statementMarkdown(made);
}

function focus(receipts: readonly Receipt[], { rate, currency, format }: Options): string {
  const rates = new Map(rate);
  for (const [symbol, worth] of rates) {
    try {
      checkRate(worth);
    } catch (error) {
      throw new UsageError(`--rate ${symbol}=${worth}: ${(error as Error).message}`);
    }
  }
  const missing = ratesMissing(receipts, { currency, rates });
  if (missing.length > 0)
    throw new UsageError(
      `FOCUS wants costs in a national currency: say what a token is worth in ${currency}, ${missing.map((one) => `--rate ${one}=…`).join(' ')}`,
    );
  if (format === 'text') throw new UsageError('focus has no text form: --format csv or json');
  const rows = focusRows(receipts, { currency, rates });
  return format === 'json' ? json(rows) : focusCsv(rows);
}
