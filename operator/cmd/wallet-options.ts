/** Flags of the wallet, and the files that they name. */
import type { RailConfig } from '../adapters/gateway/escrow-chains.ts';
import type { Address } from '../api/messages.ts';
import { parseAmount } from '../core/money/amount.ts';
import { accountOf } from '../core/rights/accounts.ts';
import { walletNamespace } from '../core/rights/consumer.ts';
import { userOf } from '../core/rights/rule.ts';
import { railsOfAddresses, railsOfFile } from './gateway-options.ts';
import { choice, integer, type Option, pairs, parseOptions, text, UsageError } from './options.ts';

const usage = `
Signs and sends the transactions that the operator asks for, and no others: the only process that has the wallet's key.

  wallet --key-file FILE --chain ID=URL --addresses FILE --daily-limit SYMBOL=AMOUNT [options]
`;

const list = (description: string, value: string): Option<string> & { many: true } => ({
  description,
  value,
  many: true,
  parse: (t) => t,
});

const address = (t: string): Address => {
  if (!/^0x[0-9a-fA-F]{40}$/.test(t)) throw new Error('must be an address: 0x and 40 hexadecimal digits');
  return t as Address;
};

export const walletOptions = {
  kubeconfig: text(
    'Kubeconfig of the consumer cluster; "in-cluster" for a pod\'s own service account.',
    'FILE',
    'in-cluster',
  ),
  namespace: text(
    'Where the wallet keeps its transactions, its leader lock, and where it may be found. Nobody else should read Secrets there.',
    'NAME',
    walletNamespace,
  ),
  keyFile: text('Key of the account that pays: 32 bytes in hexadecimal, or a keystore.', 'FILE'),
  keyPasswordFile: text('Password of the keystore.', 'FILE'),
  keySecret: text('The same from the field "key" of a Secret of --namespace, and "password" for a keystore.', 'NAME'),
  signerUrl: text('Remote signer that has the key, by eth_signTransaction: web3signer, Clef.', 'URL'),
  signerAccount: {
    description: 'Account that the remote signer signs as.',
    value: 'ADDRESS',
    parse: address,
  } as Option<Address>,
  signerTokenFile: text('Bearer token that is shown to the remote signer; read anew for each request.', 'FILE'),
  chain: pairs('Chain that leases may be paid on, and its JSON-RPC endpoints.', 'ID=URL[,URL]'),
  addresses: list('Contracts as deploy-contracts wrote them: they and all their tokens may be used.', 'FILE'),
  rails: list('Contracts and tokens that may be used: JSON, a list of {chainId, escrow, token}.', 'FILE'),
  provider: {
    description: 'Account of a provider that may be paid. Default: any whose signature is on the quote.',
    value: 'ADDRESS',
    many: true,
    parse: address,
  } as Option<Address> & { many: true },
  dailyLimit: pairs(
    'Most that goes into escrows within a day, in whole tokens, refunds not taken off: of each token of this symbol on each chain. A token without a limit is not used.',
    'SYMBOL=AMOUNT',
  ),
  dailyTransactions: integer('Most transactions signed within a day, on each chain.', 'COUNT', 1, 1_000_000, 20_000),
  operatorAccount: text('Who may ask, as the API server names it.', 'USER', userOf(accountOf('operator'))),
  listen: text('Address and port that the operator connects to; port 0 picks a free one.', 'HOST:PORT', '0.0.0.0:8444'),
  advertise: text(
    'Address of this process as the operator reaches it. Default: the first address of this machine that is not loopback.',
    'IP',
  ),
  chainTickSeconds: integer('How often transactions under way are looked after.', 'SECONDS', 1, 60, 3),
  leaderElection: choice('Leader lock, so that several replicas can run.', ['on', 'off'], 'on'),
  operationsPort: integer('Port of /metrics, /livez and /readyz; 0 picks a free one.', 'PORT', 0, 65_535, 8080),
  logLevel: choice('How much is logged.', ['debug', 'info', 'warn', 'error'], 'info'),
  logFormat: choice('For machines or for people.', ['json', 'pretty'], 'json'),
};

export function parseWalletOptions(args: readonly string[], env: NodeJS.ProcessEnv) {
  const options = parseOptions(usage, walletOptions, args, env);
  if (!options) return undefined;
  const sources = [options.keyFile, options.keySecret, options.signerUrl].filter((one) => one !== undefined);
  if (sources.length !== 1)
    throw new UsageError(
      `${sources.length === 0 ? 'the key is missing' : 'there is one key'}: give --key-file, --key-secret or --signer-url`,
    );
  if ((options.signerUrl === undefined) !== (options.signerAccount === undefined))
    throw new UsageError('--signer-url and --signer-account are given together, or neither');
  if (options.signerUrl !== undefined && !isHttp(options.signerUrl))
    throw new UsageError('--signer-url must be a URL such as https://signer.example.com:9000');
  if (options.chain.length === 0)
    throw new UsageError('--chain is missing: e.g. --chain 42161=https://rpc.example.com');
  const configured: readonly RailConfig[] = [
    ...options.addresses.flatMap(railsOfAddresses),
    ...options.rails.flatMap(railsOfFile),
  ];
  if (configured.length === 0)
    throw new UsageError('--addresses or --rails is missing: the contracts and tokens that may be used');
  if (options.dailyLimit.length === 0)
    throw new UsageError('--daily-limit is missing: e.g. --daily-limit USDC=100; nothing is spent without one');
  for (const [symbol, amount] of options.dailyLimit) {
    try {
      parseAmount(amount, 6);
    } catch (error) {
      throw new UsageError(`--daily-limit ${symbol}=${amount}: ${(error as Error).message}`);
    }
  }
  const rails = configured.flatMap(({ chainId, escrow, tokens }) =>
    tokens.map((token) => ({ chainId, escrow, token })),
  );
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:]*)):(\d{1,5})$/.exec(options.listen);
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new UsageError(`--listen must be HOST:PORT; given: ${options.listen}`);
  return { ...options, railList: rails, host: match[1] ?? (match[2] || '0.0.0.0'), port };
}

const isHttp = (url: string) => URL.canParse(url) && /^https?:$/.test(new URL(url).protocol);
